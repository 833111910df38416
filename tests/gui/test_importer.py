"""Adding songs and looking into them in the background, without a display."""

from __future__ import annotations

import json
from pathlib import Path

import ace_gui
from tests.gui.desk import outcome, question
from tests.gui.window import project_with_songs, write_wav


def test_the_first_songs_bring_a_project_with_a_name(make_desk, program: Path, songs: list[Path]):
    desk = make_desk()
    asked = question(desk.importer.add(songs))
    assert asked.entries == (("project.name", "qing_tian"), ("home.parent", "Taudio"))
    assert desk.pages == [("songs", [])] and asked.answer("cancel", "x", "y") is None and desk.session.songs == []
    assert asked.answer("ok", "qing_tian", "Taudio") is None and desk.session.state == "importing"
    assert desk.importer.add(songs) is None  # one after the other
    desk.until(desk.idle)
    assert [song.title for song in desk.session.songs] == ["晴天", "夜曲 (Live)"]
    assert (desk.session.banner.level, desk.banner()) == ("good", "Songs added: 2.")
    assert desk.importer.progress[:2] == (2, 2)
    stored = json.loads((desk.session.project.home / ace_gui.PROJECT_FILE).read_text(encoding="utf-8"))
    assert sorted(stored["titles"].values()) == ["夜曲 (Live)", "晴天"]


def test_what_is_not_added_is_said_with_its_reason(make_desk, program: Path, songs: list[Path], tmp_path: Path):
    desk = make_desk(project_with_songs(program))
    assert outcome(desk.importer.add([tmp_path / "notes.txt"])).sentence.startswith("No audio files found.")
    twin = write_wav(tmp_path / "twin.wav", level=500)
    occupied = question(desk.importer.add([songs[0], twin, tmp_path / "nowhere.wav"]))
    assert occupied.title == "occupied.title" and occupied.answer("add") is None
    desk.until(desk.idle)
    assert desk.session.banner.level == "warn" and desk.banner().startswith("Songs added: 1.")
    assert "· twin.wav: has the same content as qing_tian.wav; not added." in desk.banner()
    assert "· nowhere.wav: there is no such file." in desk.banner()
    assert desk.importer.add([songs[1]]) is None  # the folder was agreed to
    desk.until(desk.idle)
    assert len(desk.session.songs) == 4


def test_only_the_first_reasons_stand_in_the_banner(make_desk, program: Path, tmp_path: Path):
    desk = make_desk(project_with_songs(program))
    desk.importer.copy(desk.session.project.home, [tmp_path / f"{n}.wav" for n in range(5)])
    desk.until(desk.idle)
    assert desk.banner().splitlines()[-1] == "… and 2 more, see the log." and len(desk.banner().splitlines()) == 5
    assert sum("there is no such file" in line for line in desk.lines) == 5


def test_cancelling_ends_after_the_present_song(make_desk, program: Path, tmp_path: Path):
    desk = make_desk(project_with_songs(program))
    sources = [write_wav(tmp_path / "in" / f"{n}.wav", level=n + 1) for n in range(300)]
    desk.importer.copy(desk.session.project.home, sources)
    desk.importer.cancel()
    desk.session.state = "closing"
    desk.until(lambda: desk.session.state == "leaving")
    assert len(desk.session.songs) < 302 and "was not copied" in desk.banner()
    assert not list(desk.session.project.home.glob(".tmp*"))


def test_faulty_songs_are_found_in_the_background(make_desk, program: Path):
    home = project_with_songs(program)
    for number in range(4):
        write_wav(home / f"quiet{number}.wav", seconds=0.5 + number, level=0)
    desk = make_desk(home)
    desk.session.tell(ace_gui.Outcome("warn", "read me"))
    desk.until(lambda: "attention" in desk.banner())
    lines = desk.banner().splitlines()
    assert lines[:2] == ["read me", "Songs that need attention: 4"] and lines[-1].startswith("… and 1 more")
    assert desk.session.project.probes["a.wav"][3] == "" and desk.session.project.probes["quiet0.wav"][3] == "silent"
    assert {song.problem for song in desk.session.songs} == {"", "silent"}


def test_what_was_found_for_a_project_that_was_left_is_not_told(make_desk, program: Path):
    home = project_with_songs(program)
    write_wav(home / "quiet.wav", level=0)
    desk = make_desk(home)
    desk.importer.tick()
    left = desk.session.project
    desk.session.open(None)
    desk.until(lambda: len(left.probes) == 3)
    desk.until(lambda: desk.session.inbox.empty())
    assert desk.banner() == "" and desk.session.songs == []
