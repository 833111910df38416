"""Starting, following, stopping and ending the steps' scripts without a display; every run is a real process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import ace_gui
from ace_gui import TRAIN_FIELDS
from tests.gui.desk import outcome, question
from tests.gui.window import DEAF, project_with_songs

BATCH_SIZE, MAX_STEPS = TRAIN_FIELDS[0], TRAIN_FIELDS[4]


def test_a_step_runs_to_its_end_and_leaves_log_and_receipt(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "lyrics"))
    assert desk.statuses() == ["done"] * 3 + ["ready"] + ["locked"] * 3
    assert desk.runs.start("prep") is None and desk.session.state == "idle"  # locked
    assert desk.runs.start("dataset") is None
    assert desk.session.state == "running" and desk.runs.describe("dataset")[0] == "running"
    assert not desk.runs.can_start("prompts")
    assert desk.runs.start("prompts") is None and desk.runs.run.step == "dataset"
    desk.until(desk.idle)
    assert desk.session.banner.level == "good" and desk.banner().startswith("Dataset: done in 0:")
    assert desk.statuses()[3] == "done" and desk.runs.mark == "✓ Dataset – "
    home = desk.session.project.home
    stored = json.loads((home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))
    assert set(stored["receipts"]["dataset"]["inputs"]) == {"a", "b"}
    [log] = (home / "logs").glob("*_dataset.log")
    assert "convert2hf_dataset_new.py --data_dir" in log.read_text(encoding="utf-8")
    assert desk.lines[0].startswith("$ ") and "convert2hf_dataset_new.py --data_dir" in desk.lines[0]
    assert desk.lines[-1].startswith("— Dataset") and "0" in desk.lines[-1]


def test_everything_that_is_left_runs_in_order_until_the_first_failure(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    desk.session.set_value("train", MAX_STEPS, "3")
    (program / "fail_prep").write_text("")
    sentence = desk.ended(desk.runs.run_all())
    assert "Step 5, Preprocessing, failed (exit status 1)" in sentence and "ran out of memory" in sentence
    assert desk.statuses() == ["done"] * 4 + ["failed", "locked", "locked"]
    assert [page for page, _ in desk.pages] == ["prompts", "lyrics", "dataset", "prep"]
    desk.settings.language = "zh"
    assert "第 5 步“音频预处理”失败" in desk.runs.failure.outcome(desk.session).sentence
    desk.settings.language = "en"
    (program / "fail_prep").unlink()
    assert desk.ended(desk.runs.run_all()).startswith("LoRA strength: done")
    assert desk.statuses() == ["done"] * 7 and desk.runs.training.curve.steps == [1, 2, 3]
    assert outcome(desk.runs.run_all()).sentence == "All steps are done."


def test_success_without_a_result_is_a_failure(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "dataset"))
    (program / "empty_prep").write_text("")
    assert "left no result" in desk.ended(desk.runs.start("prep")) and desk.statuses()[4] == "failed"


def test_songs_that_failed_are_named(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    lines = ("song 1/2 | a.wav | done", "song 2/2 | b.wav | failed: The audio is silent.")
    (program / "generate_prompts_lyrics.py").write_text(f"print(*{lines!r}, sep='\\n')\nraise SystemExit(1)")
    assert "Songs that did not succeed: 1 (b.wav)." in desk.ended(desk.runs.start("prompts"))


def test_wrong_values_lead_to_their_page_and_nothing_starts(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prep"))
    desk.session.set_value("train", BATCH_SIZE, "0")
    desk.session.set_value("train", MAX_STEPS, "many")
    assert "marked in red: 2" in outcome(desk.runs.start("train")).sentence
    assert desk.pages == [("train", ["batch_size", "max_steps"])] and desk.runs.runner.run == 0


def test_a_script_or_a_python_that_is_missing_is_told(make_desk, program: Path, monkeypatch: pytest.MonkeyPatch):
    desk = make_desk(project_with_songs(program, "lyrics"))
    (program / "convert2hf_dataset_new.py").unlink()
    reply = outcome(desk.runs.start("dataset"))
    assert "convert2hf_dataset_new.py" in reply.sentence and reply.button == "title.environment"
    monkeypatch.setattr(ace_gui, "find_python", lambda settings, program: None)
    assert outcome(desk.runs.start("dataset")).sentence == desk.session.t("env.no_python")


def test_a_program_that_cannot_be_started_is_told(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    ended: list[str] = []
    desk.runs.command(["-V"], "Something", lambda: ended.append(desk.session.state), program / "no python")
    assert "Something" in desk.ended() and ended == ["idle"]
    assert desk.runs.failure is not None and desk.runs.failure.code is None


# Stopping


def test_stopping_saves_and_the_next_training_can_go_on(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prep"))
    desk.runs.start("train")
    desk.until(lambda: desk.runs.run.progress is not None)
    part, figures = desk.runs.run.figures(desk.session, 65.0)
    assert 0 < part < 0.1 and "elapsed 1:05" in figures and "0.31 it/s" in figures and "loss" in figures
    desk.runs.stop()
    assert desk.session.state == "stopping" and desk.runs.describe("train")[1] == desk.session.t("state.stopping")
    desk.until(desk.idle)
    assert desk.session.banner.level == "info" and "choose “Go on from the last”" in desk.banner()
    assert desk.runs.results == {"train": "stopped"} and desk.statuses()[5] == "done"
    stopped = desk.session.space.loras()[-1]
    checkpoints = question(desk.runs.start("train"))
    assert [key for key, _ in checkpoints.choices] == ["move", "resume", "cancel"]
    assert checkpoints.answer("cancel") is None and desk.session.state == "idle"
    assert checkpoints.answer("resume") is None and desk.session.state == "running"
    desk.until(lambda: desk.runs.run.progress is not None)
    assert "--resume" in next(line for line in reversed(desk.lines) if line.startswith("$ "))
    desk.runs.stop()
    desk.until(desk.idle)
    assert stopped in desk.session.space.loras()
    desk.session.set_value("train", MAX_STEPS, "2")
    assert question(desk.runs.start("train")).answer("move") is None
    desk.until(desk.idle)
    assert [path.name for path in desk.session.space.loras()] == ["epoch=0-step=2_lora"]
    [moved] = program.glob("checkpoints_*")
    assert (moved / stopped.name).is_dir()


def test_a_script_that_does_not_listen_is_killed_at_the_second_press_or_in_time(
    make_desk, program: Path, monkeypatch: pytest.MonkeyPatch
):
    desk = make_desk(project_with_songs(program, "lyrics"))
    (program / "convert2hf_dataset_new.py").write_text(DEAF)
    for seconds, presses, told in ((60.0, 2, False), (0.3, 1, True)):
        monkeypatch.setattr(ace_gui, "DEFAULT_STOP_SECONDS", seconds)
        desk.lines.clear()
        desk.runs.start("dataset")
        desk.until(lambda: "deaf" in desk.lines)
        for _ in range(presses):
            desk.runs.stop()
        desk.until(desk.idle, 20)
        assert ("— It did not stop in time and is ended now." in desk.lines) == told
        assert desk.banner().startswith("Dataset: stopped after") and desk.statuses()[3] == "ready"


def test_what_goes_on_ends_before_a_window_leaves(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prep"))
    desk.runs.start("train")
    desk.until(lambda: desk.runs.run.progress is not None)
    desk.runs.stop()
    desk.session.state = "closing"
    desk.until(lambda: desk.session.state == "leaving")
    assert desk.session.busy and desk.session.space.loras()


# Questions


def test_an_out_of_date_step_is_offered_first(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    desk.session.set_value("train", MAX_STEPS, "2")
    desk.ended(desk.runs.run_all())
    (desk.session.project.home / "a_prompt.txt").write_text("rock")
    assert desk.statuses() == ["done"] * 3 + ["stale"] * 4
    stale = question(desk.runs.start("prep"))
    assert "Step 4, Dataset." in stale.message and "The prompt of a was changed" in stale.message
    assert stale.answer("cancel") is None and desk.idle()
    assert desk.ended(stale.answer("first")).startswith("Preprocessing: done")
    assert desk.statuses()[3:5] == ["done", "done"]
    # What becomes of the LoRAs is asked before the first step, not hours later.
    again = question(desk.runs.run_all())
    assert again.title == "checkpoints.title" and desk.runs.chain == []
    assert desk.ended(again.answer("move")).startswith("LoRA strength: done") and desk.statuses() == ["done"] * 7


def test_a_small_disk_is_asked_about(make_desk, program: Path, monkeypatch: pytest.MonkeyPatch):
    desk = make_desk(project_with_songs(program, "dataset"))
    monkeypatch.setattr(ace_gui, "free_bytes", lambda folder: 1000.0)
    asked = question(desk.runs.start("prep"))
    assert asked.title == "disk.title" and "Only 1 KB of disk are free" in asked.message
    assert [key for key, _ in asked.choices] == ["cancel", "anyway"]  # Enter stays on the safe side
    assert asked.answer("cancel") is None and desk.idle() and desk.runs.runner.run == 0
    assert desk.ended(asked.answer("anyway")).startswith("Preprocessing: done")


def test_two_trainings_do_not_fill_one_folder(make_desk, program: Path):
    home = project_with_songs(program, "prep")
    for suffix in ("", "_filenames", "_prep"):
        shutil.copytree(home.with_name(home.name + suffix), home.with_name("other" + suffix))
    first, second = make_desk(home), make_desk(home.with_name("other"))
    first.runs.start("train")
    first.until(lambda: first.runs.run.progress is not None)
    assert "Another training is saving its LoRAs into checkpoints" in outcome(second.runs.start("train")).sentence
    first.runs.stop()
    first.until(first.idle)
    foreign = question(second.runs.start("train"))
    assert [key for key, _ in foreign.choices] == ["move", "cancel"] and "qing_tian" in foreign.message


# Trial and curve


def test_a_trial_ends_in_a_sentence_and_its_savings_at_a_click(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prep"))
    assert "1.50 s per step" in desk.ended(desk.runs.start("train", trial=True))
    assert desk.session.banner.button == "trial.apply" and desk.statuses()[5] == "ready"
    assert "--batch_size 2" in outcome(desk.session.banner.do()).sentence
    assert desk.session.space.value("train", BATCH_SIZE) == "2"
    (program / "small_card").write_text("")
    assert "it does not fit" in desk.ended(desk.runs.start("train", trial=True))
    assert desk.session.banner.do is None and desk.statuses()[5] == "ready"  # a trial is no failed training


def test_the_curve_of_a_trainer_that_writes_no_figures_comes_from_its_lines(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prep"))
    lines = [f"step {n}/3 | loss {1 / n:.4f} | lr 1.00e-04 | 0.31 it/s | left 0:05" for n in (1, 2, 3)]
    # It ends when the test has looked: it may start and end within one tick.
    code = f"import pathlib, time\nprint(*{lines!r}, sep='\\n', flush=True)\n"
    (program / "trainer_new.py").write_text(code + "while not pathlib.Path('go').exists(): time.sleep(0.01)")
    desk.runs.start("train")
    desk.until(lambda: desk.runs.run.progress is not None)
    assert desk.runs.training.follow(desk.runs.run.begun) and not desk.runs.training.follow(desk.runs.run.begun)
    (program / "go").touch()
    desk.until(desk.idle)
    assert (desk.runs.training.curve.steps, desk.runs.training.curve.loss) == ([1, 2, 3], [1.0, 0.5, 0.3333])


def test_only_one_song_is_done_again(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prompts"))
    assert desk.ended(desk.runs.start("prompts", only=["b.wav"])).startswith("Prompts: done")
    assert desk.lines[0].endswith("--only b.wav") and desk.session.project.receipts == {}
    assert sys.executable  # the scripts ran in a Python of their own, this one


def test_going_on_with_other_settings_is_asked_and_accepted(make_desk, program: Path):
    home = project_with_songs(program, "prep")
    desk = make_desk(home)
    lora = program / "checkpoints" / "epoch=0-step=7_lora"
    lora.mkdir(parents=True)
    (lora / ace_gui.LORA_FILE).write_text("x")
    (lora / "training_state.json").write_text('{"settings": {"learning_rate": 2e-5, "max_steps": 2000, "seed": null}}')
    assert not desk.session.space.can_resume()  # reduced to its LoRA
    (lora / "training_state.safetensors").write_text("x")
    assert desk.session.space.can_resume()
    script = program / "trainer_new.py"
    flag = 'parser.add_argument("--accept_changes", action="store_true")\nargs = parser.parse_args()'
    script.write_text(script.read_text(encoding="utf-8").replace("args = parser.parse_args()", flag), encoding="utf-8")
    desk.session.read_flags()
    resume = question(desk.runs.start("train"))
    changes = question(resume.answer("resume"))
    assert changes.name == "changes" and "\n\nLearning rate: 2e-05 → 1e-4\n\n" in changes.message
    changes.answer("cancel")
    assert desk.session.state == "idle"
    assert question(question(desk.runs.start("train")).answer("resume")).answer("accept") is None
    desk.until(lambda: any("--resume --accept_changes" in line for line in desk.lines))
    desk.runs.stop()
    desk.until(desk.idle)


def test_the_export_is_one_file_for_all_where_the_script_can(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prep"))
    space = desk.session.space
    assert "--for" not in space.arguments("strength")
    space.flags["add_alpha_in_lora.py"] = ace_gui.read_flags(Path(ace_gui.__file__).with_name("add_alpha_in_lora.py"))
    assert space.arguments("strength")[:2] == ["--for", "all"]
    assert "for" not in {row.flag for row in space.fields("strength")}
