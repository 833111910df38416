"""What was removed or set aside, by the window and by the scripts, and its way back. Needs no display."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ace_gui
from ace_gui import Project, Removed, Unusable
from ace_lora.files import set_aside
from tests.gui.desk import outcome
from tests.gui.window import project_with_songs, write_wav

needs_posix = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_wav(tmp_path / "Taudio" / "x" / "a.wav")
    return tmp_path / "Taudio" / "x"


def entries(home: Path) -> list[Removed]:
    return ace_gui.list_removed(Project(home), home.parent.parent / "checkpoints")


def write(path: Path, text: str = "old") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_the_scripts_set_aside_is_shown_and_comes_back(make_desk, program: Path):
    home = project_with_songs(program, "prep")
    desk = make_desk(home)
    session, records = desk.session, desk.session.project.records
    checkpoint = program / "checkpoints" / "epoch=0-step=7_lora"
    write(checkpoint / "notes.txt", "mine")
    before = everything(program)
    folders = [
        set_aside([records / "a.safetensors"], "records of songs that are no longer in the dataset"),
        set_aside([home / "a_prompt.txt", home / "a_lyrics.txt"], "overwritten"),
        set_aside([checkpoint], "a checkpoint whose training state is damaged"),
        set_aside([home.with_name(f"{home.name}_filenames")], "replaced, and holds files that are not ours: x"),
    ]
    set_aside([write(home.parent / "another project" / "x.txt").parent], "clear")  # of another project: not shown here
    found = ace_gui.list_removed(session.project, session.space.checkpoints())
    assert {entry.folder for entry in found} == set(folders)
    labels = {entry.kind: ace_gui.removed_label(session, entry) for entry in found}
    day = f"{folders[0].name[:10]} {folders[0].name[11:16].replace('-', ':')}"
    assert labels == {
        "records": f"{day}  Records (songs that left the dataset)  a.safetensors",
        "texts": f"{day}  Prompts, lyrics (overwritten texts)  a_prompt.txt, a_lyrics.txt",
        "checkpoints": f"{day}  Checkpoints (a checkpoint that was damaged)  epoch=0-step=7_lora",
        "dataset": f"{day}  Dataset (a replaced folder with other files in it)  qing_tian_filenames",
    }
    for entry in found:
        assert outcome(ace_gui.restore(session, entry)).level == "good"
    after = everything(program)
    assert {name: data for name, data in after.items() if name in before} == before
    assert [Path(name).parts[:2] for name in after.keys() - before.keys()] == [("Taudio", ".removed")] * 2
    assert ace_gui.list_removed(session.project, session.space.checkpoints()) == []


def test_the_earlier_ways_are_recognised(home: Path):
    checkpoints = home.parent.parent / "checkpoints"
    write(home.with_name("x_prep.set_aside") / "2026-01-02_03-04-05" / "a.safetensors", "record")
    write(home.with_name("x_prep") / ".set_aside" / "2026-01-03_03-04-05" / "b.hdf5", "record b")
    write(checkpoints / "epoch=0-step=7_lora.damaged-2" / "training_state.json", "{")
    write(home / "a_prompt.txt.2026-01-04_03-04-05.bak", "old prompt")
    write(home / "a_lyrics.txt.2026-01-05_03-04-05-2.bak", "old lyrics")
    write(home / "a_prompt.txt", "new prompt")
    found = {(entry.kind, entry.when[:10] if entry.kind != "checkpoints" else "") for entry in entries(home)}
    assert found == {
        ("records", "2026-01-02"), ("records", "2026-01-03"), ("checkpoints", ""), ("texts", "2026-01-04"),
        ("texts", "2026-01-05"),
    }  # fmt: skip
    for entry in entries(home):
        ace_gui.restore_removed(entry)
    assert (home / "a_prompt.txt").read_text() == "old prompt" and (home / "a_lyrics.txt").read_text() == "old lyrics"
    assert (home.with_name("x_prep") / "a.safetensors").read_text() == "record"
    assert (home.with_name("x_prep") / "b.hdf5").read_text() == "record b"
    assert (checkpoints / "epoch=0-step=7_lora" / "training_state.json").read_text() == "{"
    [kept] = entries(home)  # what stood in the place of one
    assert kept.reason == "restore" and (kept.folder / "a_prompt.txt").read_text() == "new prompt"


def in_bin(home: Path, files: object, name: str = "x.txt", base: Path | None = None) -> Path:
    folder = (base or home) / ".removed" / "2026-01-01_00-00-00"
    write(folder / name, "stranger")
    write(folder / "removed.json", json.dumps({"reason": "remove", "files": files}))
    return folder


@needs_posix
@pytest.mark.parametrize(
    "place",
    ["../../autostart/x", "../y/x.txt", "../x_other/x.txt", "/etc/x.txt", "C:/x.txt", "c:x.txt", "..\\..\\x.txt",
     "\\\\server\\share\\x.txt", "//server/share/x.txt", ".", "", "..", "sub/../../../x.txt", "nul", "con.txt",
     "sub/LPT1.txt", "x.txt.", "x ", "a\0b", "a\nb", ".removed/2026-01-01_00-00-00/y", "../.removed/y", "out/x.txt",
     "deep/out/x.txt", "./x.txt", "a//b", "~/../../x", "../x_prep/../../x.txt"],
)  # fmt: skip
def test_a_place_outside_of_the_project_is_refused_and_nothing_moves(home: Path, place: str):
    outside = home.parent.parent / "outside"
    outside.mkdir()
    (home / "out").symlink_to(outside)
    (home / "deep").mkdir()
    (home / "deep" / "out").symlink_to(outside)
    folder = in_bin(home, {"x.txt": place, "y.txt": "y.txt"})
    write(folder / "y.txt", "a good one beside it")
    before = everything(home.parent.parent)
    for entry in entries(home):
        with pytest.raises(Unusable):
            ace_gui.restore_removed(entry)
    assert everything(home.parent.parent) == before and list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["../../../private.txt", "/etc/hostname", "..", ".", "removed.json", "sub/x.txt"])
def test_a_source_outside_of_the_bin_is_refused(home: Path, name: str):
    private = write(home.parent / "private.txt", "secret")
    in_bin(home, {name: "x.txt"}, "sub/x.txt")
    for entry in entries(home):
        with pytest.raises(Unusable):
            ace_gui.restore_removed(entry)
    assert private.read_text() == "secret" and not (home / "x.txt").exists()


@needs_posix
def test_links_lead_nowhere(home: Path, tmp_path: Path):
    private = write(tmp_path / "private" / "x.txt", "secret")
    folder = in_bin(home, {"link.txt": "x.txt"})
    (folder / "link.txt").symlink_to(private)
    with pytest.raises(Unusable):
        ace_gui.restore_removed(entries(home)[0])
    (home.with_name("x_prep")).symlink_to(tmp_path / "private")  # the place of the records is a link of a stranger
    in_bin(home, {"x.txt": "../x_prep/y.txt"})
    (folder / "link.txt").unlink()
    with pytest.raises(Unusable):
        ace_gui.restore_removed(entries(home)[0])
    other = in_bin(tmp_path / "elsewhere", {"x.txt": "x.txt"}).parent
    (home / ".removed").rename(home / "old bin")
    (home / ".removed").symlink_to(other)  # the bin itself is one
    with pytest.raises(Unusable):
        ace_gui.restore_removed(entries(home)[0])
    assert private.read_text() == "secret" and [path.name for path in private.parent.iterdir()] == ["x.txt"]


@needs_posix
def test_a_project_that_is_reached_by_a_link_restores(home: Path, tmp_path: Path):
    link = tmp_path / "by link"
    link.symlink_to(home)
    in_bin(home, {"x.txt": "x.txt"})
    assert ace_gui.restore_removed(entries(link)[0]) == (["x.txt"], [])
    assert (home / "x.txt").read_text() == "stranger"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
@needs_posix
def test_a_bin_that_is_odd_is_passed_over(home: Path):
    for number, text in enumerate(
        ["", "[]", "{", '{"files": []}', '{"files": {"x.txt": []}}', "[" * 10_000, '{"files": 5}']
    ):
        folder = home / ".removed" / f"2026-01-0{number + 1}_00-00-00"
        write(folder / "x.txt")
        write(folder / "removed.json", text)
    (home / ".removed" / "fifo").mkdir()
    os.mkfifo(home / ".removed" / "fifo" / "removed.json")
    write(home / ".removed" / "a file")
    assert [entry.files for entry in entries(home)] == [{"x.txt": "[]"}]
    assert len(list((home / ".removed").glob("*/removed.json"))) == 8  # nothing is moved by looking


def test_a_refused_restoring_is_said(make_desk, program: Path):
    home = project_with_songs(program)
    in_bin(home, {"x.txt": "../../autostart/x"})
    desk = make_desk(home)
    [entry] = ace_gui.list_removed(desk.session.project, desk.session.space.checkpoints())
    reply = outcome(ace_gui.restore(desk.session, entry))
    assert reply.level == "bad"
    assert reply.sentence == "Nothing was restored: x.txt → ../../autostart/x leads out of this project's folders."
