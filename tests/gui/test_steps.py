"""The step table of ace_gui.py: flags, command lines, what is done, environment. Needs no display."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from pathlib import Path

import pytest

import ace_gui
from ace_gui import (
    STEP,
    STEPS,
    Field,
    Project,
    Settings,
    StepState,
    Workspace,
    examine,
    form_fields,
    read_flags,
    scan_library,
)

ROOT = Path(__file__).resolve().parents[2]

# An excerpt of how the fork's trainer defines its flags; it cannot even be imported without torch.
FORK_TRAINER = """
import argparse
import torch
import no_such_package
STEPS = 2000
def main(args):
    model = Pipeline(args)
if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("--num_nodes", type=int, default=1)
    args.add_argument("--batch_size", type=int, default=1)
    args.add_argument("--num_workers", type=int, default=0)
    args.add_argument("--tag_dropout", type=float, default=0.5)
    args.add_argument("--learning_rate", type=float, default=1e-4)
    args.add_argument("--max_steps", type=int, default=STEPS)
    args.add_argument("--precision", type=str, default="bf16-mixed")
    args.add_argument("--save_every_n_train_steps", type=int, default=100)
    args.add_argument("--optimizer", type=str, choices=["adamw", "prodigy"], default="adamw")
    args.add_argument("--dataset_path", type=str, default=r"C:\\data\\x_prep")
    args.add_argument("--checkpoint_dir", type=str, default=None)
    args.add_argument("--last_lora_path", type=str, default=None)
    args.add_argument("--epochs", type=int, default=-1, help="passes over the data")
    args.add_argument("--exotic", action="store_true", help="something of the fork's own")
    main(args.parse_args())
"""


class Place:
    """A program folder with a project of two songs, and ways to bring it forward step by step."""

    def __init__(self, folder: Path):
        self.program = folder
        self.home = folder / "Taudio" / "xxx"
        self.home.mkdir(parents=True)
        for name in ("a", "b"):
            (self.home / f"{name}.mp3").write_bytes(name.encode() * 10)
        self.project = Project(self.home)
        self.space = Workspace(self.project, Settings(folder / "settings.json"), folder)
        self.clock = time.time() - 10_000

    def write(self, path: Path, text: str = "x") -> Path:
        """A file that is newer than every one written before, without waiting."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.clock += 10
        os.utime(path, (self.clock, self.clock))
        return path

    def make(self, *steps: str) -> Place:
        for step in steps:
            if step == "prompts":
                for name in "ab":
                    self.write(self.home / f"{name}_prompt.txt", "pop")
            elif step == "lyrics":
                for name in "ab":
                    self.write(self.home / f"{name}_lyrics.txt", "[instrumental]")
            elif step == "dataset":
                for name in ("data-00000-of-00001.arrow", "state.json"):
                    self.write(self.project.dataset / name)
            elif step == "prep":
                for name in "ab":
                    self.write(self.project.records / f"{name}.safetensors")
            elif step == "train":
                self.write(self.program / "checkpoints" / "epoch=0-step=100_lora" / ace_gui.LORA_FILE)
            elif step == "strength":
                output = self.space.lora_output()
                assert output
                self.write(output)
        return self

    def receipt(self, step: str) -> None:
        """As if the step had been run by the window now."""
        self.project.receipts[step] = {**ace_gui.take_receipt(self.space, step, self.songs), "finished": time.time()}

    @property
    def songs(self):
        return scan_library(self.project)

    def states(self) -> dict[str, StepState]:
        return examine(self.space, self.songs)

    def statuses(self) -> list[str]:
        return [state.status for state in self.states().values()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    made = Place(tmp_path)
    for song in made.songs:
        os.utime(song.audio, (made.clock - 100, made.clock - 100))
    return made


ORDER = ["songs", "prompts", "lyrics", "dataset", "prep", "train", "strength"]


# Gating


def test_steps_unlock_strictly_in_order_by_what_is_on_disk(place: Place):
    assert list(place.states()) == ORDER
    for number in range(1, len(ORDER)):
        expected = ["done"] * number + ["ready"] + ["locked"] * (len(ORDER) - number - 1)
        assert place.statuses() == expected, ORDER[number]
        place.make(ORDER[number])
    assert place.statuses() == ["done"] * 7


def test_an_empty_folder_and_no_project_lock_everything_but_the_songs(tmp_path: Path):
    space = Workspace(Project(), Settings(tmp_path / "s.json"), tmp_path)
    assert [state.status for state in examine(space, []).values()] == ["ready"] + ["locked"] * 6
    space = Workspace(Project(tmp_path), Settings(tmp_path / "s.json"), tmp_path)
    assert [state.status for state in examine(space, scan_library(space.project)).values()] == ["ready"] + [
        "locked"
    ] * 6


def test_the_lock_says_what_is_missing(place: Place):
    place.write(place.home / "a_prompt.txt", "pop")
    state = place.states()["train"]
    assert state.fields["number"] == 2
    assert state.fields["why"] == StepState("ready", "prompt.missing", {"count": 1, "songs": "b"})


def test_later_results_do_not_unlock_when_an_earlier_step_is_undone(place: Place):
    place.make(*ORDER[1:])
    (place.home / "b_lyrics.txt").unlink()
    # The last step needs the trained LoRA alone.
    assert place.statuses() == ["done", "done", "ready", "locked", "locked", "locked", "done"]


def test_an_empty_prompt_or_lyrics_file_does_not_count(place: Place):
    place.make("prompts")
    (place.home / "a_prompt.txt").write_text(" \n")
    assert place.states()["prompts"].reason == "prompt.missing"


def test_half_a_dataset_is_no_dataset(place: Place):
    place.make("prompts", "lyrics")
    place.write(place.project.dataset / "state.json")
    assert place.states()["dataset"].status == "ready"


def test_a_song_without_record_keeps_the_training_locked(place: Place):
    place.make(*ORDER[1:4])
    place.write(place.project.records / "a.safetensors")
    assert place.states()["prep"] == StepState("ready", "prep.missing", {"count": 1, "songs": "b"})
    place.write(place.project.records / ".tmp-b.safetensors")
    assert place.states()["prep"].status == "ready"
    place.write(place.project.records / "b.hdf5")  # the fork's format
    assert place.states()["prep"].status == "done"


def test_a_lora_folder_without_its_file_is_no_result(place: Place):
    place.make(*ORDER[1:5])
    place.write(place.program / "checkpoints" / "epoch=0-step=5_lora" / "adapter_config.json", "{}")
    place.write(place.program / "checkpoints" / ".tmp-epoch=0-step=6_lora" / ace_gui.LORA_FILE)
    assert place.states()["train"].status == "ready"


@pytest.mark.parametrize("with_receipts", [True, False])
@pytest.mark.parametrize(
    ("change", "key"),
    [("prompt", "stale.prompt"), ("lyrics", "stale.lyrics"), ("audio", "stale.audio")],
)
def test_a_change_of_the_inputs_makes_the_steps_out_of_date_with_the_reason(
    place: Place, with_receipts: bool, change: str, key: str
):
    place.make(*ORDER[1:])
    if with_receipts:
        for step in ORDER[3:]:
            place.receipt(step)
        assert place.statuses() == ["done"] * 7
    path = {
        "prompt": place.home / "b_prompt.txt",
        "lyrics": place.home / "b_lyrics.txt",
        "audio": place.home / "b.mp3",
    }[change]
    place.write(path, "something else")
    states = place.states()
    assert states["dataset"] == StepState("stale", key, {"song": "b"})
    assert [state.status for state in states.values()] == ["done"] * 3 + ["stale"] * 4
    assert states["prep"] == StepState("stale", "stale.before", {"number": 4})


def test_an_edit_taken_back_is_no_change(place: Place):
    place.make(*ORDER[1:])
    for step in ORDER[3:]:
        place.receipt(step)
    place.write(place.home / "b_prompt.txt", "rock")
    assert place.states()["dataset"].status == "stale"
    place.write(place.home / "b_prompt.txt", "pop")
    assert place.statuses() == ["done"] * 7


def test_added_and_removed_songs_are_noticed(place: Place):
    place.make(*ORDER[1:])
    for step in ORDER[3:]:
        place.receipt(step)
    for path in (place.home / "b.mp3", place.home / "b_prompt.txt", place.home / "b_lyrics.txt"):
        path.rename(place.program / path.name)
    assert place.states()["dataset"] == StepState("stale", "stale.removed", {"song": "b"})
    for name in ("b.mp3", "b_prompt.txt", "b_lyrics.txt"):
        (place.program / name).rename(place.home / name)
    assert place.statuses() == ["done"] * 7


def test_records_without_a_song_are_noticed(place: Place):
    place.make(*ORDER[1:])
    place.write(place.project.records / "gone.safetensors")
    assert place.states()["prep"] == StepState("stale", "stale.orphans", {"songs": "gone"})


def test_steps_done_again_one_after_another_are_up_to_date(place: Place):
    place.make(*ORDER[1:])
    for step in ORDER[3:]:
        place.receipt(step)
    place.write(place.home / "b_prompt.txt", "rock")
    for number, step in enumerate(ORDER[3:], start=3):
        assert place.states()[step].status == "stale"
        place.make(step)
        place.receipt(step)
        assert place.statuses()[: number + 1] == ["done"] * (number + 1), step


def test_a_step_run_from_a_terminal_counts_too(place: Place):
    place.make(*ORDER[1:])
    place.receipt("dataset")
    place.write(place.home / "b_prompt.txt", "rock")
    for name in ("data-00000-of-00001.arrow", "state.json"):
        path = place.project.dataset / name
        os.utime(path, (time.time() + 60, time.time() + 60))
    assert place.states()["dataset"].status == "done"


def test_a_newer_training_asks_for_the_last_step_again(place: Place):
    place.make(*ORDER[1:])
    place.receipt("strength")
    place.write(place.program / "checkpoints" / "epoch=1-step=200_lora" / ace_gui.LORA_FILE)
    assert place.states()["strength"] == StepState("stale", "stale.lora", {"lora": "epoch=1-step=200_lora"})


def test_checkpoints_of_another_project_are_not_this_ones_result(place: Place):
    place.make(*ORDER[1:6])
    place.space.claim_checkpoints()
    assert place.states()["train"].status == "done"
    other = Workspace(Project(place.program / "Taudio" / "other"), place.space.settings, place.program)
    assert other.foreign_owner() == "xxx" and place.space.foreign_owner() == ""
    other.claim_checkpoints()
    assert place.states()["train"] == StepState("ready", "train.foreign", {"owner": "other"})
    assert place.states()["strength"].status == "locked"


def test_loras_sort_by_step_not_by_name(tmp_path: Path):
    for step in (900, 1000, 100):
        folder = tmp_path / f"epoch=0-step={step}_lora"
        folder.mkdir()
        (folder / ace_gui.LORA_FILE).write_bytes(b"x")
    assert [ace_gui.lora_step(path) for path in ace_gui.list_loras(tmp_path)] == [100, 900, 1000]
    assert ace_gui.list_loras(tmp_path / "nowhere") == []


def test_the_last_step_follows_the_lora_that_was_chosen(place: Place):
    place.make("train")
    later = place.write(place.program / "checkpoints" / "epoch=1-step=200_lora" / ace_gui.LORA_FILE)
    place.write(later.with_name("lora_config.json"), "{}")
    arguments = place.space.arguments("strength")
    assert arguments[1] == "checkpoints/epoch=1-step=200_lora/pytorch_lora_weights.safetensors"
    assert arguments[3:6:2] == ["xxx-step200.safetensors", "checkpoints/epoch=1-step=200_lora/lora_config.json"]
    place.project.values["strength"] = {"input_name": f"checkpoints/epoch=0-step=100_lora/{ace_gui.LORA_FILE}"}
    arguments = place.space.arguments("strength")
    assert arguments[3:6:2] == ["xxx-step100.safetensors", "config/lora_config_transformer_only.json"]


def test_checkpoints_move_to_a_dated_folder(place: Place):
    place.make("train")
    moved = place.space.move_checkpoints()
    assert moved.name.startswith("checkpoints_") and (moved / "epoch=0-step=100_lora" / ace_gui.LORA_FILE).exists()
    assert not place.space.checkpoints().exists()


# Fields and flags


@pytest.mark.parametrize(
    ("flag", "text", "problem"),
    [
        ("batch_size", "1", None), ("batch_size", " 2 ", None), ("batch_size", "0", "wrong.range"),
        ("batch_size", "1.5", "wrong.int"),
        ("batch_size", "", "wrong.int"), ("batch_size", "二", "wrong.int"), ("tag_dropout", "1.1", "wrong.range"),
        ("tag_dropout", "0", None), ("learning_rate", "1e-4", None), ("learning_rate", "1e", "wrong.float"),
        ("learning_rate", "nan", "wrong.float"), ("learning_rate", "inf", "wrong.float"),
        ("learning_rate", "-1", "wrong.range"),
        ("max_steps", "0", "wrong.range"), ("precision", "", "wrong.empty"), ("optimizer", "sgd", "wrong.choice"),
        ("last_lora_path", "", None), ("last_lora_path", "no/such.safetensors", "wrong.file"), ("seed", "", None),
        ("seed", "-1", "wrong.low"),
    ],
)  # fmt: skip
def test_wrong_values_are_told(tmp_path: Path, flag: str, text: str, problem: str | None):
    row = next(row for row in ace_gui.TRAIN_FIELDS if row.flag == flag)
    found = row.problem(text, tmp_path)
    assert (found[0] if found else None) == problem
    if found:
        for language in ace_gui.LANGUAGES:
            assert ace_gui.say(language, *found)


def test_all_wrong_values_are_found_at_once(place: Place):
    place.project.values["train"] = {"batch_size": "x", "tag_dropout": "7", "max_steps": "10"}
    assert set(place.space.problems("train")) == {"batch_size", "tag_dropout"}


def test_the_seven_defaults_of_the_workflow():
    defaults = {row.flag: row.default for row in ace_gui.TRAIN_FIELDS if row.basic}
    assert defaults == {
        "batch_size": "1", "num_workers": "0", "tag_dropout": "0.5", "learning_rate": "1e-4", "max_steps": "2000",
        "precision": "bf16-mixed", "save_every_n_train_steps": "100",
    }  # fmt: skip
    for row in ace_gui.TRAIN_FIELDS:
        assert row.problem(row.default, ROOT) is None or "{" in row.default, row.flag


def test_flags_are_read_from_a_script_that_cannot_be_imported(tmp_path: Path):
    script = tmp_path / "trainer_new.py"
    script.write_text(FORK_TRAINER, encoding="utf-8")
    flags = read_flags(script)
    assert flags is not None and len(flags) == 14
    assert (flags["max_steps"].default, flags["learning_rate"].kind, flags["exotic"].kind) == ("2000", "float", "bool")
    assert flags["optimizer"].choices == ("adamw", "prodigy")


def test_unreadable_scripts_hide_nothing(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    assert read_flags(tmp_path / "broken.py") is None and read_flags(tmp_path / "missing.py") is None
    assert form_fields(STEP["train"], None) == list(ace_gui.TRAIN_FIELDS)


def test_flags_that_the_fork_does_not_know_are_hidden_and_its_own_are_shown(tmp_path: Path):
    (tmp_path / "trainer_new.py").write_text(FORK_TRAINER, encoding="utf-8")
    flags = read_flags(tmp_path / "trainer_new.py")
    shown = {row.flag: row for row in form_fields(STEP["train"], flags)}
    assert not {"ssl_coeff", "seed", "logger", "output_dir", "dataset_path", "checkpoint_dir", "resume"} & set(shown)
    assert shown["exotic"] == Field(
        "exotic",
        "bool",
        "false",
        label=("exotic",) * 2,
        help=("something of the fork's own",) * 2,
        script_default="false",
    )
    assert shown["num_nodes"].default == "1"
    space = Workspace(Project(tmp_path / "Taudio" / "x"), Settings(tmp_path / "s"), tmp_path, {"trainer_new.py": flags})
    assert space.arguments("train") == [
        "--dataset_path", "Taudio/x_prep", "--batch_size", "1", "--num_workers", "0", "--tag_dropout", "0.5",
        "--learning_rate", "1e-4", "--max_steps", "2000", "--precision", "bf16-mixed",
        "--save_every_n_train_steps", "100",
    ]  # fmt: skip
    assert space.stop_file("train") is None and not space.can_resume()


def test_the_forks_commands_are_those_of_its_manual(tmp_path: Path):
    """Scripts without any flag beyond the manual's get exactly the manual's command lines."""
    flags = {
        "generate_prompts_lyrics.py": {n: ace_gui.Flag(n) for n in ("data_dir", "lyrics")},
        "convert2hf_dataset_new.py": {n: ace_gui.Flag(n) for n in ("data_dir", "output_name")},
        "preprocess_dataset_new.py": {n: ace_gui.Flag(n) for n in ("input_name", "output_dir")},
        "add_alpha_in_lora.py": {n: ace_gui.Flag(n) for n in ("input_name", "output_name", "lora_config_path")},
    }
    lora = tmp_path / "checkpoints" / "epoch=0-step=100_lora" / ace_gui.LORA_FILE
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"x")
    project = Project(tmp_path / "Taudio" / "xxx", values={"strength": {"output_name": "out.safetensors"}})
    space = Workspace(project, Settings(tmp_path / "s"), tmp_path, flags)
    assert space.arguments("prompts") == ["--data_dir", "Taudio/xxx"]
    assert space.arguments("lyrics") == ["--data_dir", "Taudio/xxx", "--lyrics"]
    assert space.arguments("dataset") == ["--data_dir", "Taudio/xxx", "--output_name", "Taudio/xxx_filenames"]
    assert space.arguments("prep") == ["--input_name", "Taudio/xxx_filenames", "--output_dir", "Taudio/xxx_prep"]
    assert space.arguments("strength") == [
        "--input_name", "checkpoints/epoch=0-step=100_lora/pytorch_lora_weights.safetensors",
        "--output_name", "out.safetensors",
        "--lora_config_path", "config/lora_config_transformer_only.json",
    ]  # fmt: skip


def test_the_forks_llamacpp_captioner_is_a_script_of_its_own(tmp_path: Path):
    flags = {"generate_prompts_lyrics.py": {n: ace_gui.Flag(n) for n in ("data_dir", "lyrics")}}
    project = Project(tmp_path / "Taudio" / "x", values={"captions": {"backend": "llamacpp"}})
    space = Workspace(project, Settings(tmp_path / "s"), tmp_path, flags)
    assert space.script("prompts").name == "generate_prompts_lyrics.py"
    (tmp_path / ace_gui.LLAMACPP_SCRIPT).write_text("")
    assert space.script("prompts").name == ace_gui.LLAMACPP_SCRIPT
    assert space.arguments("prompts") == ["--data_dir", "Taudio/x"]


def test_paths_outside_the_program_folder_are_absolute(tmp_path: Path):
    home = tmp_path / "another disk" / "歌 🎵"
    space = Workspace(Project(home), Settings(tmp_path / "s"), tmp_path / "program")
    assert space.arguments("dataset")[:4] == ["--data_dir", str(home), "--output_name", str(home) + "_filenames"]


# The contract: the real scripts take these command lines and get the project's values


CHANGED = {
    "captions": {"backend": "analysis", "model": "Qwen/Qwen2.5-Omni-3B", "bpm": "true"},
    "dataset": {"default_tag": "my style, 中文"},
    "prep": {"ssl": "none"},
    "train": {
        "batch_size": "2", "num_workers": "1", "tag_dropout": "0.25", "learning_rate": "3e-5", "max_steps": "77",
        "precision": "32-true", "save_every_n_train_steps": "11", "optimizer": "prodigy", "beta2": "0.999",
        "warmup_steps": "3", "seed": "5", "ssl_coeff": "0",
        "exp_name": "my_run", "save_last": "2", "gradient_clip_val": "0.5",
    },
    "strength": {"output_name": "my lora.safetensors"},
}  # fmt: skip


@pytest.mark.parametrize("step", [step.key for step in STEPS if step.script])
@pytest.mark.parametrize("changed", [False, True])
def test_the_real_script_accepts_the_command_line_and_gives_the_values_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, changed: bool
):
    script = ROOT / STEP[step].script
    if not script.is_file():
        pytest.skip(f"{script.name} is not here")
    monkeypatch.chdir(ROOT)
    parse_args = importlib.import_module(script.stem).parse_args
    lora = tmp_path / "checkpoints" / "epoch=0-step=100_lora" / ace_gui.LORA_FILE
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"x")
    project = Project(tmp_path / "Taudio" / "歌 单")
    project.values = {key: dict(values) for key, values in CHANGED.items()} if changed else {}
    settings = Settings(tmp_path / "s", checkpoint_dir=str(tmp_path / "tiny base") if changed else "")
    flags = {name: read_flags(ROOT / name) for name in ace_gui.SCRIPTS}
    project.values.setdefault("train", {})["output_dir"] = str(tmp_path / "checkpoints")
    space = Workspace(project, settings, ROOT, flags)
    arguments = space.arguments(step)
    args = vars(parse_args(arguments))
    for row in space.fields(step):
        value, text = args[row.flag], space.value(step, row).strip()
        if text == "":  # not given: the script's own default
            assert f"--{row.flag}" not in arguments or row.basic
            continue
        if row.kind == "bool":
            assert value is (text == "true"), row.flag
        elif row.kind in ("int", "float"):
            assert (value if value is not None else "") == (float(text) if text else ""), row.flag
        elif value is None:
            assert text == "", row.flag
        elif isinstance(value, (list, tuple)):
            assert ",".join(map(str, value)) == text or " ".join(map(str, value)) == text, row.flag
        else:
            assert str(value) == text or Path(str(value)) == Path(text), row.flag
    if step in ("prompts", "lyrics", "dataset"):
        assert str(args["data_dir"]) == str(project.home)
    if step == "lyrics":
        assert args["lyrics"] is True
    if step == "prep":
        assert (str(args["input_name"]), str(args["output_dir"])) == (str(project.dataset), str(project.records))
    if step == "train":
        assert str(args["dataset_path"]) == str(project.records)
        assert vars(parse_args(space.arguments(step, resume=True)))["resume"] not in (None, False)
        if "trial" in (flags["trainer_new.py"] or {}):
            assert vars(parse_args(space.arguments(step, trial=True)))["trial"] is True
    if step in ("prep", "train") and changed:
        assert str(args["checkpoint_dir"]) == str(tmp_path / "tiny base")


@pytest.mark.parametrize("preset", list(ace_gui.PRESETS))
def test_presets_only_hold_values_that_the_real_trainer_takes(preset: str):
    flags = read_flags(ROOT / "trainer_new.py")
    if flags is None:
        pytest.skip("trainer_new.py is not here")
    fields = {row.flag: row for row in form_fields(STEP["train"], flags)}
    for flag, text in ace_gui.PRESETS[preset].items():
        if flag not in fields:
            continue  # hidden, and the preset leaves it out
        assert fields[flag].problem(text, ROOT) is None and (
            not fields[flag].choices or text in fields[flag].choices
        ), (flag, text)


@pytest.mark.parametrize(
    ("values", "hints"),
    [
        ({"optimizer": "adamw", "learning_rate": "1e-4", "max_steps": "2000", "beta2": "0.99"}, []),
        ({"optimizer": "prodigy", "learning_rate": "1e-4", "max_steps": "2000"}, ["hint.prodigy_rate"]),
        ({"optimizer": "adamw", "learning_rate": "1", "max_steps": "2000"}, ["hint.high_rate"]),
        ({"learning_rate": "1e-4", "max_steps": "500", "beta2": "0.999"}, ["hint.beta2"]),
        ({"learning_rate": "1e-4", "max_steps": "200", "save_every_n_train_steps": "500"}, ["hint.save"]),
        ({"learning_rate": "x", "max_steps": "", "beta2": "?"}, []),
    ],
)
def test_hints(values: dict[str, str], hints: list[str]):
    assert ace_gui.training_hints(values) == hints


# Environment


def test_the_python_is_searched_in_the_agreed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inner = "Scripts/python.exe" if os.name == "nt" else "bin/python3"
    for folder in (".venv", "python", "conda", "chosen"):
        path = tmp_path / folder / inner
        path.parent.mkdir(parents=True)
        path.write_text("")
        path.chmod(0o755)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    settings = Settings(tmp_path / "s", python=str(tmp_path / "chosen" / inner))
    found = ace_gui.python_candidates(settings, tmp_path)
    assert [where for where, _ in found[:5]] == ["setting", ".venv", "python", "CONDA_PREFIX", "running"]
    assert ace_gui.find_python(settings, tmp_path) == tmp_path / "chosen" / inner
    settings.python = str(tmp_path / "gone")
    assert ace_gui.find_python(settings, tmp_path) == tmp_path / ".venv" / inner


def test_the_frozen_exe_is_never_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exe = tmp_path / "python"
    exe.write_text("")
    monkeypatch.setattr(ace_gui, "FROZEN", True)
    monkeypatch.setattr(sys, "executable", str(exe))
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ace_gui.shutil, "which", lambda name: str(exe))
    assert ace_gui.python_candidates(Settings(tmp_path / "s"), tmp_path / "program") == []


def test_a_chosen_python_may_be_an_environments_folder_and_a_missing_one_is_said(place, tmp_path: Path):
    inner = ("Scripts/python.exe",) if ace_gui.WINDOWS else ("bin/python3",)
    python = tmp_path / "my env" / inner[0]
    python.parent.mkdir(parents=True)
    python.write_text("")
    settings = Settings(tmp_path / "s", python=str(tmp_path / "my env"))
    assert ace_gui.python_candidates(settings, tmp_path)[0] == ("setting", python)
    place.space.settings.python = str(tmp_path / "nowhere")
    found = ace_gui.python_candidates(place.space.settings, place.space.program)[0]
    findings = list(ace_gui.judge_environment(place.space, place.songs, found, None))
    assert "env.python_setting" in [finding.key for finding in findings]
    place.space.settings.python = settings.python
    found = ace_gui.python_candidates(place.space.settings, place.space.program)[0]
    findings = list(ace_gui.judge_environment(place.space, place.songs, found, None))
    assert found == ("setting", python) and "env.python_setting" not in [finding.key for finding in findings]


def report(**more) -> dict:
    packages = {name: "1.0" for name in ace_gui.PACKAGES}
    return {
        "python": "3.11.7",
        "bits": 64,
        "packages": packages,
        "torch": "2.13",
        "cuda_build": "13.0",
        "cards": [],
        **more,
    }


CARD = {"name": "RTX 3080", "gb": 10.0, "free_gb": 9.0, "bf16": True, "capability": "8.6"}


@pytest.mark.parametrize(
    ("answer", "level", "key"),
    [
        (None, "info", "env.asking"),
        ({"error": "boom"}, "bad", "env.python_broken"),
        (report(python="3.9.1"), "bad", "env.python_old"),
        (report(bits=32), "bad", "env.bits"),
        (report(cards=[CARD]), "ok", "env.bf16"),
        (report(cards=[{**CARD, "bf16": False}]), "warn", "env.no_bf16"),
        (report(), "warn", "env.no_card"),
        (report(mps=True), "warn", "env.mps"),
        (report(packages={**report()["packages"], "peft": ""}), "bad", "env.packages"),
        (report(packages={**report()["packages"], "tensorboard": ""}), "warn", "env.tensorboard"),
        (
            {k: v for k, v in report(torch_error="No module named 'torch'").items() if k != "torch"},
            "bad",
            "env.no_torch",
        ),
        ({k: v for k, v in report(torch_error="DLL load failed").items() if k != "torch"}, "bad", "env.torch_broken"),
    ],
)
def test_findings(place: Place, answer: dict | None, level: str, key: str):
    findings = list(ace_gui.judge_environment(place.space, place.songs, ("running", Path(sys.executable)), answer))
    assert (level, key) in [(finding.level, finding.key) for finding in findings]
    for language in ace_gui.LANGUAGES:
        text = ace_gui.report_text(findings, language)
        assert len(text.splitlines()) >= len(findings)


def test_no_python_is_a_finding_with_a_button(place: Place):
    findings = list(ace_gui.judge_environment(place.space, place.songs, None, None))
    assert ("bad", "env.no_python", "python") in [(finding.level, finding.key, finding.mend) for finding in findings]


def test_asking_a_real_python(tmp_path: Path):
    answer = ace_gui.query_python(Path(sys.executable), dict(os.environ), tmp_path)
    assert (
        answer["python"].startswith("3.")
        and answer["bits"] in (32, 64)
        and set(answer["packages"]) == set(ace_gui.PACKAGES)
    )
    assert "error" in ace_gui.query_python(tmp_path / "nothing", {}, tmp_path)


@pytest.mark.parametrize("layout", ["plain", "hub"])
def test_base_weights_are_found_in_both_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HOME", raising=False)
    root = tmp_path / "weights"
    for folder, hub, _ in ace_gui.BASE_WEIGHTS.values():
        if layout == "plain":
            path = root / folder
        else:
            path = root / f"models--{(hub or ace_gui.ACE_STEP_HUB).replace('/', '--')}" / "snapshots" / "abc"
            path = path if hub else path / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").write_bytes(b"12345")
    settings = Settings(tmp_path / "s", checkpoint_dir=str(root))
    assert {part: size for part, (_, size) in ace_gui.find_weights(settings, tmp_path).items()} == dict.fromkeys(
        ace_gui.BASE_WEIGHTS, 5
    )
    settings.checkpoint_dir = ""
    assert all(path is None for path, _ in ace_gui.find_weights(settings, tmp_path).values())


def test_what_the_window_uses_of_this_repository_stands_where_it_looks():
    if not (ROOT / "ace_lora").is_dir():
        pytest.skip("ace_lora is not here")
    assert ace_gui.can_download(ROOT) and not ace_gui.can_download(ROOT / "tests")
    [(module, name)] = re.findall(r"from (ace_lora[\w.]*) import (\w+)", ace_gui.PROBE_CODE)
    assert callable(getattr(importlib.import_module(module), name))


def test_optional_groups_are_read_from_the_setup_script(tmp_path: Path):
    (tmp_path / "start.py").write_text('import os\nGROUPS = {"captioning": "prompts"}\n', encoding="utf-8")
    assert ace_gui.read_groups(tmp_path / "start.py") == {"captioning": "prompts"}
    (tmp_path / "start.py").write_text("GROUPS = make()", encoding="utf-8")
    assert ace_gui.read_groups(tmp_path / "start.py") == {} == ace_gui.read_groups(tmp_path / "none.py")


def test_disk_estimate_follows_the_library(place: Place):
    before = ace_gui.disk_estimate(place.space, place.songs)
    place.make("prep")
    assert ace_gui.disk_estimate(place.space, place.songs) < before
    assert ace_gui.free_bytes(place.program / "not" / "there") > 0


def test_a_folder_that_may_not_be_entered_is_passed_over(place: Place, monkeypatch: pytest.MonkeyPatch):
    """Path.is_file raises there: one such folder in PATH kept the window from opening."""
    original = Path.stat

    def stat(path: Path, **arguments):
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, **arguments)

    monkeypatch.setattr(Path, "stat", stat)
    locked = place.program / "locked"
    settings = Settings(place.program / "s.json", python=str(locked / "python"), cache=str(locked))
    assert all("locked" not in path.parts for _, path in ace_gui.python_candidates(settings, place.program))
    assert ace_gui.find_weights(settings, place.program)
    assert not ace_gui.is_file(locked) and not ace_gui.is_folder(locked)
