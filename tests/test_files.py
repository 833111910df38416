"""Files written whole or not at all, and text as people's editors leave it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import stat

import pytest

from ace_lora import files
from ace_lora.files import (
    UnusableFile,
    read_bytes,
    read_json,
    read_text,
    remove_own,
    replace_atomically,
    set_aside,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "晴天 1.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replace_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == "old"


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "song.txt"
    write_text(path, "old")
    with replace_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # renaming needs the same file system
    assert path.read_text() == "new"


def test_folders_are_made_and_text_is_utf_8_with_unix_line_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "song.txt"
    write_text(path, "一\n二")
    assert path.read_bytes() == "一\n二".encode()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no permission bits")
def test_others_may_read_the_result_as_any_new_file(tmp_path):
    write_text(tmp_path / "ours.txt", "")
    (tmp_path / "usual.txt").write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.txt", "usual.txt")]
    assert modes[0] == modes[1]


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "a.json", {"title": "晴天"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "title": "晴天"\n}\n'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"title": "晴天"}


def test_text_of_any_editor(tmp_path):
    path = tmp_path / "song.txt"
    path.write_bytes(b"\xef\xbb\xbf  a\r\nb\rc \r\n")
    assert read_text(path) == "a\nb\nc"
    path.write_bytes("晴天".encode("gbk"))
    with pytest.raises(UnicodeDecodeError):
        read_text(path)


# --- Folders ---


def fill(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)


def everything_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file() and path.name != "removed.json"
    }


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "数据 set"
    fill(target, old="1", stays_not="2")
    with replace_atomically(target, own=("*.txt",)) as temporary:
        fill(temporary, new="3")
        assert everything_below(target) == {"old.txt": "1", "stays_not.txt": "2"}
    assert everything_below(tmp_path) == {"数据 set/new.txt": "3"}
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "set"
    fill(target, old="1")
    with pytest.raises(RuntimeError, match="disk"), replace_atomically(target, own=("*.txt",)) as temporary:
        fill(temporary, new="3")
        raise RuntimeError("disk")
    assert everything_below(tmp_path) == {"set/old.txt": "1"} and len(list(tmp_path.iterdir())) == 1


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    target = tmp_path / "set"
    fill(target, old="1")
    replace, calls = os.replace, []

    def refuse_the_second(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("no")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse_the_second)
    with pytest.raises(OSError, match="no"), replace_atomically(target, own=("*.txt",)) as temporary:
        fill(temporary, new="3")
    assert everything_below(tmp_path) == {"set/old.txt": "1"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_folder_with_a_strangers_file_is_set_aside_and_not_removed(tmp_path, inner):
    target = tmp_path / "set"
    fill(target, old="1")
    fill(target / inner)
    (target / inner / "notes.md").write_text("mine")
    with replace_atomically(target, own=("*.txt",)) as temporary:
        fill(temporary, new="3")
    (aside,) = (tmp_path / ".removed").iterdir()
    kept = {"set/old.txt": "1", f"set/{inner}/notes.md".replace("//", "/"): "mine"}
    assert everything_below(aside) == kept and everything_below(target) == {"new.txt": "3"}
    assert json.loads((aside / "removed.json").read_text())["files"] == {"set": "set"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"set", ".removed"}


def test_remove_own(tmp_path):
    fill(tmp_path / "a", one="1")
    fill(tmp_path / "b", one="1")
    (tmp_path / "b" / "notes.md").write_text("mine")
    assert remove_own(tmp_path / "a", ["*.txt"], "old") is None
    aside = remove_own(tmp_path / "b", ["*.txt"], "old")
    assert aside is not None and everything_below(aside) == {"b/one.txt": "1", "b/notes.md": "mine"}
    assert [entry.name for entry in tmp_path.iterdir()] == [".removed"]


def test_what_is_set_aside_keeps_its_name_and_its_place(tmp_path):
    fill(tmp_path / "歌 folder", one="1")
    write_text(tmp_path / "s_prompt.txt", "rock")
    first = set_aside([tmp_path / "歌 folder", tmp_path / "s_prompt.txt", tmp_path / "never was"], "why 为什么")
    assert json.loads((first / "removed.json").read_text(encoding="utf-8")) == {
        "reason": "why 为什么",
        "files": {"歌 folder": "歌 folder", "s_prompt.txt": "s_prompt.txt"},
    }
    assert everything_below(first) == {"歌 folder/one.txt": "1", "s_prompt.txt": "rock"}
    write_text(tmp_path / "s_prompt.txt", "pop")
    second = set_aside([tmp_path / "s_prompt.txt"], "")
    assert second != first and second.parent == first.parent == tmp_path / ".removed"
    assert set_aside([tmp_path / "s_prompt.txt"], "") is None


# --- Windows ---


class Held(OSError):
    winerror = 32


def test_a_file_that_a_scanner_holds_for_a_moment_is_replaced(tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def held_at_first(source, target):
        calls.append(target)
        if len(calls) < 4:
            raise Held("held")
        replace(source, target)

    monkeypatch.setattr(os, "replace", held_at_first)
    write_text(tmp_path / "a.txt", "new")
    assert len(calls) == 4 and (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [Held("held"), PermissionError("no")])
def test_a_file_that_stays_held_is_an_error_that_names_the_reason(tmp_path, monkeypatch, error):
    def refuse(source, target):
        raise error

    monkeypatch.setattr(files, "PATIENCE_S", 0.2)
    monkeypatch.setattr(os, "replace", refuse)

    def cannot_clean_up(self, missing_ok=False):
        raise PermissionError("held as well")

    monkeypatch.setattr(pathlib.Path, "unlink", cannot_clean_up)
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "a.txt", "new")
    assert caught.value is error


# --- What comes from outside ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b'{"a":' * 61 + b"1" + b"}" * 61, "nested too deeply"),
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": [-Infinity]}', "-Infinity is no number"),
        (b'{"a": 1e999}', "a number that is too large"),
        (b"1" * 100_000, "digits"),
        (b'{"\\ud800": 1}', "a text that cannot be written"),
        ("晴天".encode("gbk"), "can't decode"),
    ],
)
def test_json_that_is_refused(tmp_path, content, reason):
    path = tmp_path / "晴 天.json"
    path.write_bytes(content)
    with pytest.raises(UnusableFile, match=re.escape(reason)) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"'{path}' ") and "Expected " in str(caught.value)


def test_json_that_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"晴": [1, 2.5, None, {"天": "😀"}]}).encode())
    assert read_json(path) == {"晴": [1, 2.5, None, {"天": "😀"}]}
    path.write_bytes(b"[" * 59 + b"]" * 59)
    assert isinstance(read_json(path), list)


def test_only_regular_files_of_the_stated_size_are_read(tmp_path):
    (tmp_path / "large.txt").write_bytes(b"a" * 11)
    (tmp_path / "right.txt").write_bytes(b"a" * 10)
    assert read_bytes(tmp_path / "right.txt", 10) == b"a" * 10
    with pytest.raises(UnusableFile, match="at most 10 bytes, found 11"):
        read_bytes(tmp_path / "large.txt", 10)
    with pytest.raises(UnusableFile, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes and devices among files")
def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", pathlib.Path("/dev/zero")):
        with pytest.raises(UnusableFile, match="no regular file"):
            read_text(path)
    if pathlib.Path("/proc/cpuinfo").exists():  # its size is told as 0
        with pytest.raises(UnusableFile, match="too large"):
            read_bytes(pathlib.Path("/proc/cpuinfo"), 10)
