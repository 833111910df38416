"""The open project without a display: opening, saving, moving, and what is done to songs and texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ace_gui
from ace_gui import TRAIN_FIELDS, OpenSong
from tests.gui.desk import outcome, question
from tests.gui.window import project_with_songs, removed, write_wav

MAX_STEPS = TRAIN_FIELDS[4]


def test_a_project_is_open_in_one_session_at_a_time(make_desk, program: Path):
    home = project_with_songs(program)
    first, second = make_desk(home), make_desk(home)
    assert first.session.project.home == home and [song.stem for song in first.session.songs] == ["a", "b"]
    assert second.session.project.home is None and "is open in another window" in second.banner()
    retry = second.session.banner
    assert retry.button == "project.retry" and retry.do() is False
    first.session.release()
    assert retry.do() is True and second.session.project.home == home
    assert json.loads((program / "settings.json").read_text(encoding="utf-8"))["recent"] == [str(home)]


def test_nothing_else_is_opened_while_something_runs_or_a_text_is_not_stored(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    home = desk.session.project.home
    desk.session.state = "running"
    assert not desk.session.open(None) and desk.banner().startswith("Something is running")
    desk.session.state = "idle"
    desk.session.store_texts = lambda: False
    assert not desk.session.open(None) and desk.session.project.home == home
    desk.session.store_texts = lambda: True
    assert desk.session.open(None) and desk.session.project.home is None and desk.banner() == ""


def test_a_value_is_written_soon_after_it_was_typed(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    file = desk.session.project.home / ace_gui.PROJECT_FILE
    desk.session.set_value("train", MAX_STEPS, "12")
    desk.session.set_value("train", MAX_STEPS, "123")
    assert not file.exists()
    desk.until(file.exists)
    assert json.loads(file.read_text(encoding="utf-8"))["values"] == {"train": {"max_steps": "123"}}
    assert desk.session.save_due == float("inf")


def test_values_before_there_is_a_project_become_the_projects(make_desk, program: Path):
    desk = make_desk()
    desk.session.set_value("train", MAX_STEPS, "7")
    assert desk.settings.draft == {"train": {"max_steps": "7"}}
    assert ace_gui.use_home(desk.session, program / "Taudio" / "new") is None
    assert desk.session.space.value("train", MAX_STEPS) == "7" and desk.settings.draft == {}


def test_what_cannot_be_saved_is_told(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    (desk.session.project.home / ace_gui.PROJECT_FILE).mkdir()
    desk.session.save()
    assert desk.session.banner.level == "bad" and desk.banner().startswith(f"Cannot save {ace_gui.PROJECT_FILE}: ")


def test_a_damaged_project_file_is_told_and_kept(make_desk, program: Path):
    home = project_with_songs(program)
    (home / ace_gui.PROJECT_FILE).write_text("{broken")
    desk = make_desk(home)
    assert desk.session.banner.level == "warn" and str(desk.session.project.damaged) in desk.banner()
    assert desk.session.project.damaged.read_text() == "{broken"


def test_it_is_painted_only_when_the_folders_say_something_new(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    before = desk.painted
    desk.session.look()
    assert desk.painted == before
    write_wav(desk.session.project.home / "c.wav")
    desk.session.look()
    assert desk.painted == before + 1 and len(desk.session.songs) == 3


def test_another_program_folder_brings_its_flags(make_desk, program: Path, tmp_path: Path):
    desk = make_desk()
    other, told = tmp_path / "other", []
    shutil.copytree(program, other)
    (other / "trainer_new.py").unlink()
    desk.session.on_program = lambda: told.append(desk.session.program)
    desk.session.change_setting("program", str(other))
    assert told == [other] and desk.session.space.flags["trainer_new.py"] is None
    desk.session.change_setting("program", str(tmp_path / "nowhere"))
    assert desk.session.program == program and "max_steps" in desk.session.space.flags["trainer_new.py"]


def test_reset_touches_settings_only(make_desk, program: Path):
    desk = make_desk(project_with_songs(program), endpoint="https://hf-mirror.com", scale="150", language="zh")
    desk.session.set_value("train", MAX_STEPS, "7")
    files = sorted(path for path in program.rglob("*.wav"))
    desk.session.reset()
    assert desk.session.space.value("train", MAX_STEPS) == "2000"
    assert (desk.settings.endpoint, desk.settings.scale, desk.settings.language) == ("", "auto", "zh")
    assert sorted(program.rglob("*.wav")) == files


@pytest.mark.parametrize(("language", "sentence"), [("en", "Finish step 1 first"), ("zh", "请先完成第 1 步")])
def test_the_reason_of_a_locked_step_names_the_step_that_is_missing(make_desk, language: str, sentence: str):
    desk = make_desk(language=language)
    status, reason = desk.runs.describe("train")
    assert status == "locked" and reason.startswith(sentence)


# Where the project lies


def test_name_and_place_before_and_after_there_are_songs(make_desk, program: Path):
    desk = make_desk()
    session = desk.session
    assert "cannot hold" in outcome(ace_gui.change_home(session, "a?", "Taudio/a?")).sentence
    assert ace_gui.change_home(session, "style", "Taudio/style") is None
    assert session.project.home == program / "Taudio" / "style"
    write_wav(session.project.home / "a.wav")
    session.look()
    kept: list[None] = []
    session.keep_home = lambda: kept.append(None)
    move = question(ace_gui.change_home(session, "风格", "elsewhere/风格"))
    assert [key for key, _ in move.choices] == ["move", "open", "cancel"] and move.title == "move.title"
    move.answer("cancel")
    assert kept == [None] and session.project.home == program / "Taudio" / "style"
    assert outcome(move.answer("move")).level == "good"
    assert session.project.home == program / "elsewhere" / "风格" and len(session.songs) == 1
    assert not (program / "Taudio" / "style").exists()
    (program / "full").mkdir()
    (program / "full" / "notes.txt").write_text("mine")
    again = question(ace_gui.change_home(session, "full", "full"))
    assert "exists and is not empty" in outcome(again.answer("move")).sentence
    assert (program / "full" / "notes.txt").read_text() == "mine" and len(session.songs) == 1


def test_a_folder_with_songs_is_joined_cleared_or_left(make_desk, program: Path):
    desk, home, used = make_desk(), project_with_songs(program), []
    occupied = ace_gui.ask_occupied(desk.session, home, used.append)
    assert [key for key, _ in occupied.choices] == ["other", "clear", "add", "cancel"]
    occupied.answer("cancel")
    assert used == [] and home not in desk.session.joined
    other = question(occupied.answer("other"))
    assert other.entries == (("project.name", "qing_tian_2"), ("home.parent", "Taudio"))
    assert (
        other.wrong(["", "Taudio"]) and other.wrong(["x", " "]) == "Must not be empty." and not other.wrong(["x", "y"])
    )
    assert question(other.answer("ok", "qing_tian", "Taudio")).title == "occupied.title"  # there are songs, too
    other.answer("ok", "fresh", "Taudio")
    occupied.answer("add")
    assert used == [program / "Taudio" / "fresh", home] and len(list(home.glob("*.wav"))) == 2
    occupied.answer("clear")
    assert used[-1] == home and list(home.glob("*.wav")) == []
    [(_, reason, names)] = removed(home)
    assert reason == "clear" and {"a.wav", "b.wav"} <= set(names)


def test_a_folder_that_another_session_shows_is_not_cleared(make_desk, program: Path):
    home = project_with_songs(program)
    make_desk(home)
    second, used = make_desk(), []
    reply = ace_gui.ask_occupied(second.session, home, used.append).answer("clear")
    assert "is open in another window" in outcome(reply).sentence
    assert used == [] and len(list(home.glob("*.wav"))) == 2


# Songs and texts


def test_rename_remove_and_restore(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "lyrics"))
    session, home = desk.session, desk.session.project.home
    rename = question(ace_gui.ask_rename(session, session.songs[0]))
    assert rename.entries == (("column.title", "a"),) and rename.wrong([" "]) == "Must not be empty."
    assert rename.answer("cancel", "x") is None and (home / "a.wav").exists()
    assert rename.answer("ok", "新歌") is None
    assert session.current_song == "xin_ge.wav" and (home / "xin_ge_lyrics.txt").exists()
    remove = ace_gui.ask_remove(session, [song for song in session.songs if song.stem == "xin_ge"])
    assert remove.message.endswith("\n\n新歌") and remove.answer("cancel") is None
    assert outcome(remove.answer("remove")).sentence.startswith("Songs removed: 1.")
    assert [song.stem for song in session.songs] == ["b"]
    restored = outcome(ace_gui.restore(session, ace_gui.list_removed(session.project, home / "none")[0]))
    assert restored.level == "good" and [song.title for song in session.songs] == ["b", "新歌"]
    session.state = "running"
    assert ace_gui.ask_rename(session, session.songs[0]) is None
    session.state = "idle"


def test_songs_that_cannot_be_removed_are_not_said_to_be(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    (desk.session.project.home / ace_gui.BIN_FOLDER).write_text("a file where the bin should be")
    reply = outcome(ace_gui.ask_remove(desk.session, desk.session.songs).answer("remove"))
    assert reply.level == "bad" and len(desk.session.songs) == 2


def test_texts_of_all_songs_are_changed_at_once_and_can_be_had_back(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "prompts"))
    session, home = desk.session, desk.session.project.home

    def change(kind: str, *texts: str) -> str:
        asked = question(ace_gui.ask_change(session, kind))
        assert asked.answer("cancel", *texts) is None
        return outcome(asked.answer("ok", *texts)).sentence

    def prompts() -> list[str]:
        return [(home / f"{name}_prompt.txt").read_text(encoding="utf-8") for name in "ab"]

    assert question(ace_gui.ask_change(session, "replace")).wrong(["", "x"]) == "Must not be empty."
    assert change("add_tag", "mystyle").startswith("Files changed: 2.")
    assert prompts() == ["mystyle, pop, a", "mystyle, pop, b"]
    assert change("replace", "pop", "rock").startswith("Files changed: 2.")
    assert change("remove_tag", "mystyle").startswith("Files changed: 2.")
    assert prompts() == ["rock, a", "rock, b"]
    (home / "a_lyrics.txt").write_text("[verse]\nsung", encoding="utf-8")
    session.look()
    instrumental = question(ace_gui.ask_change(session, "instrumental_all"))
    instrumental.answer("missing")
    assert [(home / f"{name}_lyrics.txt").read_text() for name in "ab"] == ["[verse]\nsung", "[instrumental]"]
    instrumental.answer("all")
    assert (home / "a_lyrics.txt").read_text() == "[instrumental]"
    assert ace_gui.ask_change(make_desk().session, "add_tag") is None  # there are no songs


def test_an_open_song_keeps_what_others_wrote(make_desk, program: Path):
    desk = make_desk(project_with_songs(program, "lyrics"))
    home = desk.session.project.home
    song = OpenSong(desk.session, desk.session.songs[0])
    assert song.loaded == {"prompt": "pop, a", "lyrics": "[verse]\na"}
    (home / "a_prompt.txt").write_text("by a script")
    (home / "a_lyrics.txt").write_text("theirs")
    assert song.reread({"prompt": "pop, a", "lyrics": "mine"}) == ["prompt"]  # the lyrics are being edited
    assert song.write({"prompt": "by a script", "lyrics": "mine"})
    assert (home / "a_lyrics.txt").read_text() == "mine" and (home / "a_prompt.txt").read_text() == "by a script"
    [(folder, reason, names)] = removed(home)
    assert (reason, names) == ("overwritten", ["a_lyrics.txt"]) and (folder / "a_lyrics.txt").read_text() == "theirs"
    (home / "a_lyrics.txt").unlink()
    (home / "a_lyrics.txt").mkdir()
    assert not song.write({"prompt": "by a script", "lyrics": "more"}) and "Cannot save a_lyrics.txt" in desk.banner()


def test_presets(make_desk, program: Path):
    desk = make_desk(project_with_songs(program))
    session = desk.session
    session.set_value("train", MAX_STEPS, "50")
    save = ace_gui.ask_save_preset(session)
    assert save.wrong(["8 GB"]) and save.wrong([""]) and not save.wrong(["mine"])
    assert save.answer("ok", "mine") is None and desk.settings.presets == {"mine": {"max_steps": "50"}}
    session.set_value("train", MAX_STEPS, "60")
    assert ace_gui.apply_preset(session, "mine").level == "info"
    assert session.space.value("train", MAX_STEPS) == "50"


# What the window computes without a display


def test_every_key_of_the_menus_has_a_name_of_tks():
    shown = [row[1] for rows in ace_gui.MENUS.values() for row in rows if row and row[1]]
    assert sorted(map(ace_gui.key_sequence, shown)) == sorted(
        ["<Control-n>", "<Control-q>", "<Control-o>", "<Control-Shift-O>", "<F5>", "<Control-F5>", "<Shift-F5>", "<F9>",
         "<F8>"]
    )  # fmt: skip


def test_a_window_opens_where_it_was_unless_that_is_off_the_screen():
    assert ace_gui.fitting_geometry("1000x600+10+20", (1280, 720), round) == "1000x600+10+20"
    for stored in ("", "rubbish", "1400x600+0+0", "1000x600+1200+0", "1000x600+0+700"):
        assert ace_gui.fitting_geometry(stored, (1920, 1080) if not stored else (1280, 720), round) == (
            "1280x860+320+73" if not stored else "1280x610+0+36"
        )
