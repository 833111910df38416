"""Files written whole or not at all, and text as people's editors leave it."""

from __future__ import annotations

import json
import os
import stat

import pytest

from ace_lora.files import read_text, replace_atomically, write_json, write_text


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
