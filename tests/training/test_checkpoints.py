"""Run with: pytest tests/test_checkpoints.py"""

import json
import os

import pytest
import torch

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.lora.config import TRAINING_CONFIG_NAME
from ace_lora.lora.file import COMFYUI_NAME, WEIGHTS_NAME
from ace_lora.training import checkpoints

CONFIG = {"r": 2, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q"]}
LORA = {"b.to_q.lora_A.weight": torch.ones(2, 3), "b.to_q.lora_B.weight": torch.zeros(4, 2)}


def write(folder, step, run_id="run", epoch=0, **options):
    state = checkpoints.SavedState({"run_id": run_id, "step": step, "epoch": epoch}, {"x": torch.arange(4.0) + step})
    return checkpoints.write_checkpoint(
        folder, epoch=epoch, step=step, lora=LORA, config=CONFIG, metadata={}, state=state, **options
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_and_state_come_back(tmp_path):
    folder = write(tmp_path, 7, epoch=2, comfyui=True)
    assert folder.name == "epoch=2-step=7_lora" and names(tmp_path) == [folder.name]
    expected = {WEIGHTS_NAME, COMFYUI_NAME, TRAINING_CONFIG_NAME, checkpoints.STATE_JSON, checkpoints.STATE_TENSORS}
    assert set(names(folder)) == expected
    state = checkpoints.read_state(folder)
    assert state.values["step"] == 7 and torch.equal(state.tensors["x"], torch.arange(4.0) + 7)
    if os.name == "posix":
        (tmp_path / "plain").mkdir()
        assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode
        (tmp_path / "new").touch()
        assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 1)
    assert names(tmp_path) == []


def test_order_is_by_steps_not_by_text(tmp_path):
    for step, epoch in ((100, 9), (20, 1), (3, 0)):
        write(tmp_path, step, epoch=epoch)
    (tmp_path / "epoch=0-step=5_lora.txt").touch()
    assert [found.step for found in checkpoints.find_checkpoints(tmp_path)] == [3, 20, 100]
    assert checkpoints.newest_state(tmp_path)[0].step == 100
    assert checkpoints.find_checkpoints(tmp_path / "none") == []


def test_the_same_step_again_replaces_only_the_same_run(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 1)
    assert names(tmp_path) == ["epoch=0-step=1_lora"]
    with pytest.raises(StepFailed, match="belongs to another"):
        write(tmp_path, 1, run_id="other")
    assert names(tmp_path) == ["epoch=0-step=1_lora"]


def remove(folder, newest, *, states=0, loras=0):
    removed = checkpoints.remove_old(folder, "run", newest, states=states, loras=loras)
    return [(old.folder.name, old.what) for old in removed]


def whole(folder):
    return [name for name in names(folder) if (folder / name / checkpoints.STATE_TENSORS).exists()]


def test_of_older_ones_only_the_lora_stays_and_other_runs_are_let_be(tmp_path):
    write(tmp_path, 900, run_id="other")
    removed = []
    for step in (1, 2, 3, 4):
        newest = write(tmp_path, step)
        removed += remove(tmp_path, newest, states=2)
    assert removed == [("epoch=0-step=1_lora", "state"), ("epoch=0-step=2_lora", "state")]
    assert whole(tmp_path) == ["epoch=0-step=3_lora", "epoch=0-step=4_lora", "epoch=0-step=900_lora"]
    assert len(names(tmp_path)) == 5 and (tmp_path / "epoch=0-step=1_lora" / WEIGHTS_NAME).is_file()
    assert remove(tmp_path, newest) == remove(tmp_path, newest, states=2) == []
    # They still count as this run's, and are no damage.
    assert checkpoints.run_id_of(tmp_path / "epoch=0-step=1_lora") == "run"
    assert checkpoints.set_damaged_aside(tmp_path, 0, 1) is None
    with pytest.raises(WrongInput, match=r"only the LoRA is left .*--last_lora_path"):
        checkpoints.read_state(tmp_path / "epoch=0-step=1_lora")
    assert remove(tmp_path, newest, states=2, loras=3) == [("epoch=0-step=1_lora", "all")]
    assert "epoch=0-step=1_lora" not in names(tmp_path)


def test_a_kill_while_a_state_is_removed_leaves_nothing_that_passes_for_whole(tmp_path, monkeypatch):
    old, newest = write(tmp_path, 1), write(tmp_path, 2)
    with monkeypatch.context() as killed:
        killed.setattr(type(old), "unlink", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path, newest, states=1)
    assert (old / checkpoints.STATE_TENSORS).exists()
    with pytest.raises(WrongInput, match="only the LoRA is left"):
        checkpoints.read_state(old)
    assert remove(tmp_path, newest, states=1) == [(old.name, "state")]
    assert not (old / checkpoints.STATE_TENSORS).exists()


def test_a_folder_that_holds_a_file_of_the_users_is_set_aside(tmp_path):
    old = write(tmp_path, 1)
    (old / "notes.txt").write_text("mine", encoding="utf-8")
    (removed,) = checkpoints.remove_old(tmp_path, "run", write(tmp_path, 2), states=1, loras=1)
    kept = removed.kept
    assert removed.folder == old and names(tmp_path) == [".removed", "epoch=0-step=2_lora"]
    assert (kept / old.name / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert json.loads((kept / "removed.json").read_text(encoding="utf-8"))["files"] == {old.name: old.name}
    # So is one that gives way to the same step, trained again.
    (tmp_path / "epoch=0-step=2_lora" / "mine.txt").touch()
    assert (write(tmp_path, 2) / WEIGHTS_NAME).is_file()
    assert len(list((tmp_path / ".removed").glob("*/epoch=0-step=2_lora/mine.txt"))) == 1
    assert names(tmp_path) == [".removed", "epoch=0-step=2_lora"]


def test_the_one_just_written_is_never_removed(tmp_path):
    # A run resumed at an early step, with later ones of the same run beside it.
    for step in (50, 60, 5):
        newest = write(tmp_path, step)
    assert remove(tmp_path, newest, loras=1) == [("epoch=0-step=50_lora", "all"), ("epoch=0-step=60_lora", "all")]
    assert names(tmp_path) == ["epoch=0-step=5_lora"]


def test_disk_of_a_whole_run():
    assert checkpoints.run_bytes(20, 100, 10, states=5, loras=0) == 5 * 100 + 15 * 10
    assert checkpoints.run_bytes(20, 100, 10, states=5, loras=8) == 5 * 100 + 3 * 10
    assert checkpoints.run_bytes(20, 100, 10, states=5, loras=2) == 2 * 100
    assert checkpoints.run_bytes(3, 100, 10, states=0, loras=0) == 300


@pytest.mark.parametrize(
    "name", [WEIGHTS_NAME, TRAINING_CONFIG_NAME, checkpoints.STATE_TENSORS, checkpoints.STATE_JSON]
)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_damage_of_any_file_is_found(tmp_path, name, how):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if how == "cut" else b"#" + content[1:])
    with pytest.raises(WrongInput, match=r"damaged|holds no training state"):
        checkpoints.read_state(path.parent)
    checkpoint, notes = checkpoints.newest_state(tmp_path)
    assert checkpoint.step == 1 and len(notes) == 1


def test_state_of_another_version_is_refused(tmp_path):
    path = write(tmp_path, 1) / checkpoints.STATE_JSON
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "version": 99}), encoding="utf-8")
    with pytest.raises(WrongInput, match="99"):
        checkpoints.read_state(path.parent)


def test_leftovers_of_a_killed_run_are_removed_and_never_taken_for_checkpoints(tmp_path):
    folder = write(tmp_path, 1)
    folder.rename(tmp_path / ".tmp-epoch=0-step=1_lora-ab12")
    (tmp_path / ".tmp-mine").mkdir()
    assert checkpoints.find_checkpoints(tmp_path) == [] and checkpoints.find_loras(tmp_path) == []
    checkpoints.remove_leftovers(tmp_path)
    assert names(tmp_path) == [".tmp-mine"]


def test_what_counts_as_a_lora(tmp_path):
    (tmp_path / "epoch=3-step=4_lora").mkdir()
    (tmp_path / "mine.safetensors").touch()
    (tmp_path / "STOP").touch()
    assert [path.name for path in checkpoints.find_loras(tmp_path)] == ["epoch=3-step=4_lora", "mine.safetensors"]


def test_nested_values_with_tensors_come_back_exactly():
    value = {
        "state": {0: {"step": torch.tensor(3.0), "moments": [torch.ones(2), None]}, 1: {"d": 0.1 + 0.2}},
        "groups": [{"betas": (0.9, 0.99), "growth": float("inf"), "name": "a", "on": True, "dtype": torch.bfloat16}],
    }
    tensors = {}
    packed = json.loads(json.dumps(checkpoints.pack(value, tensors, "optimizer")))
    found = checkpoints.unpack(packed, tensors)
    assert set(tensors) == {"optimizer/state/0/step", "optimizer/state/0/moments/0"}
    assert found["groups"] == value["groups"] and found["state"][1] == {"d": 0.1 + 0.2}
    assert torch.equal(found["state"][0]["moments"][0], torch.ones(2))
    with pytest.raises(TypeError, match="optimizer/f"):
        checkpoints.pack({"f": print}, {}, "optimizer")
