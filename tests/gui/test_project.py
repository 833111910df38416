"""Names, settings, project and song library of ace_gui.py. Needs no display."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from string import Formatter

import pytest

import ace_gui
from ace_gui import Project, Settings, Song, import_songs, readable_name, scan_library, unique_name
from tests.gui.window import put_back, removed, write_wav


def import_all(sources: list[Path], home: Path) -> tuple[ace_gui.ImportReport, dict[str, str]]:
    titles: dict[str, str] = {}
    report = import_songs(sources, home, lambda *_: None, titles.__setitem__, lambda: False)
    return report, titles


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Texts


def test_both_languages_have_the_same_fields_and_no_empty_text():
    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}

    for key, (chinese, english) in ace_gui.TEXTS.items():
        assert chinese.strip() and english.strip(), key
        assert fields(chinese) == fields(english), key
    for step in ace_gui.STEPS:
        for row in step.fields:
            for chinese, english in (row.label, row.help):
                assert chinese.strip() and english.strip(), row.flag
                assert fields(chinese) == fields(english), row.flag


def test_every_text_that_the_program_asks_for_exists_and_every_text_is_asked_for():
    import ast

    tree = ast.parse(Path(ace_gui.__file__).read_text(encoding="utf-8"))
    used, mentioned, patterns = set(), set(), set()
    questions: set[str] = set()
    for top in tree.body:
        if isinstance(top, ast.AnnAssign) and getattr(top.target, "id", "") == "TEXTS":
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                place = {"Finding": 1, "outcome": 1, "label": 1, "button": 1, "tool_button": 2, "drop_down": 2}.get(
                    name, 0
                )
                first = node.args[place] if len(node.args) > place else node.args[0]
                keyed = (*("t", "Finding", "outcome"), *("label", "button", "tool_button", "drop_down"))
                if name in keyed and isinstance(first, ast.Constant):
                    used.add(first.value)
                if name == "Question" and isinstance(first, ast.Constant):
                    questions.add(first.value)
                    title = node.args[3] if len(node.args) > 3 else ast.Constant(f"{first.value}.title")
                    used |= {title.value} if isinstance(title, ast.Constant) else set()
                    for key in node.args[2].keys if isinstance(node.args[2], ast.Dict) else ():  # its buttons
                        label = f"{first.value}.{key.value if key else 'cancel'}"
                        names = (label, label.split(".")[1], getattr(title, "value", ""))
                        used.add(next((name for name in names if name in ace_gui.TEXTS), label))
            if isinstance(node, ast.Constant):
                mentioned.add(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in node.values]
                patterns.add("".join(parts).split("\\|")[0])  # what follows a bar is no part of the key
    mentioned |= {f"{name}.{choice}" for name in questions for choice in mentioned}
    assert len(used) > 140
    assert used <= set(ace_gui.TEXTS), used - set(ace_gui.TEXTS)
    patterns = {pattern for pattern in patterns if re.match(r"\w+\\\.", pattern) or re.search(r"\\\.\w+$", pattern)}
    unused = [
        key for key in ace_gui.TEXTS if key not in mentioned and not any(re.fullmatch(one, key) for one in patterns)
    ]
    assert unused == []
    for step in ace_gui.STEPS:
        assert {"rail", "title", "about"} <= set(step.texts)
        assert ("start" in step.texts) == bool(step.script)


def test_the_index_in_the_docstring_matches_the_sections():
    source = Path(ace_gui.__file__).read_text(encoding="utf-8")
    index = [line.split(None, 1) for line in (ace_gui.__doc__ or "").splitlines() if line.strip()[:2].strip().isdigit()]
    banners = [line for line in source.splitlines() if line.startswith("# --- ")]
    assert [
        f"# --- {number}. {rest[: len(banner.split('. ')[1].strip(' -'))].strip()}"
        for (number, rest), banner in zip(index, banners, strict=True)
    ] == [banner.rstrip(" -") for banner in banners]


# Names


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("我的歌", "wo_de_ge"),
        ("夜空中最亮的星 (Live)", "ye_kong_zhong_zui_liang_de_xing_Live"),
        ("Summer Rain", "Summer_Rain"),
        ("two.dots", "two_dots"),
        ("café déjà", "cafe_deja"),
        ("さくら", "sa_ku_ra".replace("_", "")),
        ("Мир", "mir"),
        ("Жизнь", "zhizn"),
        ("  --  ", "song"),
        ("../../etc/passwd", "etc_passwd"),
        ("CON", "CON_song"),
        ("１２３ＡＢＣ", "123ABC"),
    ],
)
def test_readable_names(title: str, name: str):
    assert readable_name(title) == name


def test_long_names_end_at_a_word_within_40_characters():
    name = readable_name("这是一个非常非常非常长的歌名它永远不会结束因为作者喜欢写很长很长的名字")
    assert len(name) <= 40 and name.isascii() and not name.endswith("_")
    assert len(readable_name("x" * 300)) == 40


@pytest.mark.parametrize("title", ["🎵🎶", "🎵 歌", "‏", "\x00", "a/b\\c:d*e?f", "NUL", "   "])
def test_any_title_gives_a_usable_name(title: str):
    name = readable_name(title)
    assert name.isascii() and 0 < len(name) <= 40 and ace_gui.name_problem(name) is None


def test_without_pypinyin_titles_still_get_different_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    names = {readable_name(title) for title in ("我的歌", "你的歌", "他的歌 2")}
    assert len(names) == 3 and all(name.isascii() and name not in ("audio", "song") for name in names)


def test_unique_names_ignore_case_and_stay_short():
    assert unique_name("song", []) == "song"
    assert unique_name("song", ["Song", "song_2"]) == "song_3"
    long = "x" * 40
    assert unique_name(long, [long]) == "x" * 38 + "_2"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("歌 集", None), ("my songs", None), ("", "name.empty"), ("a/b", "name.characters"), ("a.", "name.characters"),
     (".a", "name.characters"), ("nul", "name.reserved"), ("x" * 81, "name.long")],
)  # fmt: skip
def test_name_problems(name: str, problem: str | None):
    assert ace_gui.name_problem(name) == problem


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_texts_of_people_are_read_in_their_encodings(tmp_path: Path, encoding: str):
    path = tmp_path / "t.txt"
    path.write_bytes("第一行\r\n第二行\r第三行".encode(encoding))
    assert ace_gui.read_text(path) == "第一行\n第二行\n第三行"


def test_numbers_for_people():
    assert [ace_gui.human_seconds(s) for s in (0, 65, 3725, None, -1)] == ["0:00", "1:05", "1:02:05", "--:--", "--:--"]
    assert [ace_gui.human_bytes(b) for b in (5, 2e3, 3e6, 4.5e9, 2e12)] == ["5 B", "2 KB", "3 MB", "4.5 GB", "2.0 TB"]


# Settings and project files


def test_settings_come_back_and_unknown_keys_stay(tmp_path: Path):
    path = tmp_path / "settings.json"
    path.write_text(
        json.dumps({"language": "en", "of_a_newer_version": [1, 2], "offline": "not a bool"}), encoding="utf-8"
    )
    settings = Settings.load(path)
    assert (settings.language, settings.offline) == ("en", False)
    settings.endpoint = "https://hf-mirror.com"
    settings.save()
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "language": "en", "of_a_newer_version": [1, 2], "endpoint": "https://hf-mirror.com",
    }  # fmt: skip
    assert Settings.load(path).endpoint == "https://hf-mirror.com"
    assert files_of(tmp_path) == ["settings.json"]


def test_a_damaged_file_is_put_aside_and_reported(tmp_path: Path):
    path = tmp_path / "settings.json"
    path.write_text('{"language": "en"', encoding="utf-8")
    settings = Settings.load(path)
    assert settings.language == "zh" and settings.damaged is not None
    assert settings.damaged.read_text(encoding="utf-8") == '{"language": "en"' and not path.exists()


def test_settings_move_to_the_user_folder_when_the_program_folder_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert ace_gui.settings_path(tmp_path) == tmp_path / ace_gui.SETTINGS_FILE
    monkeypatch.setattr(ace_gui, "try_writable", lambda folder: False)
    assert ace_gui.settings_path(tmp_path).parent == ace_gui.user_config_folder()


def test_the_environment_of_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    settings = Settings(tmp_path / "s.json", endpoint="https://hf-mirror.com/", cache="D:/cache", offline=True)
    environment = settings.child_environment()
    wanted = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "HF_ENDPOINT": "https://hf-mirror.com",
        "HF_HOME": "D:/cache",
        "HF_HUB_OFFLINE": "1",
    }
    assert {key: environment[key] for key in wanted} == wanted
    assert "HF_ENDPOINT" not in Settings(tmp_path / "s.json").child_environment()


def test_a_project_stores_only_what_was_changed(tmp_path: Path):
    home = tmp_path / "歌 单"
    home.mkdir()
    project = Project.load(home)
    project.set_value("train", "max_steps", "500", "2000")
    project.set_value("train", "batch_size", "2", "1")
    project.set_value("train", "batch_size", "1", "1")
    project.titles["a.mp3"] = "甲"
    project.unknown["later"] = {"x": 1}
    project.save()
    again = Project.load(home)
    assert (
        again.values == {"train": {"max_steps": "500"}}
        and again.titles == {"a.mp3": "甲"}
        and again.unknown == {"later": {"x": 1}}
    )
    assert again.dataset == tmp_path / "歌 单_filenames" and again.records == tmp_path / "歌 单_prep"
    assert files_of(home) == [ace_gui.PROJECT_FILE] and scan_library(again) == []


def test_a_project_writes_nothing_before_its_folder_exists(tmp_path: Path):
    Project(tmp_path / "later").save()
    Project().save()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_project_file_costs_no_song(tmp_path: Path):
    write_wav(tmp_path / "a.wav")
    (tmp_path / ace_gui.PROJECT_FILE).write_bytes(b"\x00\xff")
    project = Project.load(tmp_path)
    assert project.damaged is not None and [song.stem for song in scan_library(project)] == ["a"]


def test_moving_a_project_takes_songs_records_and_settings_along(tmp_path: Path):
    home = tmp_path / "Taudio" / "old"
    write_wav(home / "a.wav")
    project = Project(home, values={"train": {"max_steps": "7"}})
    for folder in (project.dataset, project.records):
        folder.mkdir()
    (project.dataset / "state.json").write_text("{}")
    (project.records / "a.safetensors").write_bytes(b"x")
    moved = ace_gui.move_project(project, tmp_path / "other place" / "新")
    assert moved.home == tmp_path / "other place" / "新"
    assert (moved.home / "a.wav").exists() and (moved.records / "a.safetensors").exists()
    assert not moved.dataset.exists() and Project.load(moved.home).values == {"train": {"max_steps": "7"}}
    assert removed(moved.home)[0][1] == "move"
    assert not home.exists()


def test_moving_onto_something_is_refused_and_moves_nothing(tmp_path: Path):
    write_wav(tmp_path / "old" / "a.wav")
    write_wav(tmp_path / "new_prep" / "b.wav")
    with pytest.raises(FileExistsError):
        ace_gui.move_project(Project(tmp_path / "old"), tmp_path / "new")
    assert files_of(tmp_path) == ["new_prep/b.wav", "old/a.wav"]


# The library


def test_import_gives_pinyin_names_keeps_extensions_and_brings_texts(tmp_path: Path):
    source = tmp_path / "我的 音乐 🎵"
    write_wav(source / "晴天.wav", level=1)
    write_wav(source / "晴天.WAV.wav", level=2)
    (source / "夜曲.mp3").write_bytes(b"ID3 not really music")
    (source / "晴天_prompt.txt").write_text("pop", encoding="utf-8")
    (source / "晴天.lrc").write_bytes("[00:01.00]故事".encode("gb18030"))
    (source / "晴天_lyrics.txt").write_text("故事", encoding="utf-8")
    home = tmp_path / "Taudio" / "x"
    report, titles = import_all([source], home)
    assert report.refused == []
    assert files_of(home) == [
        "qing_tian.lrc",
        "qing_tian.wav",
        "qing_tian_WAV.wav",
        "qing_tian_lyrics.txt",
        "qing_tian_prompt.txt",
        "ye_qu.mp3",
    ]
    assert titles == {"qing_tian.wav": "晴天", "qing_tian_WAV.wav": "晴天.WAV", "ye_qu.mp3": "夜曲"}
    assert (home / "qing_tian.lrc").read_bytes() == (source / "晴天.lrc").read_bytes()
    assert (home / "ye_qu.mp3").read_bytes() == (source / "夜曲.mp3").read_bytes()


def test_songs_with_equal_readings_become_2_and_3_whatever_their_extension(tmp_path: Path):
    for number, name in enumerate(("是.wav", "事.wav", "市.mp3")):
        write_wav(tmp_path / "in" / name, level=number + 5)
    home = tmp_path / "home"
    import_all(sorted((tmp_path / "in").iterdir()), home)
    assert sorted(path.stem for path in home.iterdir()) == ["shi", "shi_2", "shi_3"]
    import_all([write_wav(tmp_path / "more" / "式.wav", level=77)], home)
    assert (home / "shi_4.wav").exists()


def test_what_is_not_added_is_said_with_the_reason(tmp_path: Path):
    home, source = tmp_path / "home", tmp_path / "in"
    write_wav(home / "a.wav", level=9)
    (source / "x").mkdir(parents=True)
    (source / "empty.mp3").write_bytes(b"")
    (source / "broken.wav").write_bytes(b"RIFFxxxxJUNK")
    (source / "notes.pdf").write_bytes(b"%PDF")
    write_wav(source / "copy of a.wav", level=9)
    paths = [source / name for name in ("empty.mp3", "broken.wav", "notes.pdf", "copy of a.wav", "gone.mp3")]
    report, _ = import_all([*paths, home / "a.wav"], home)
    assert report.added == []
    assert report.refused == [
        ("empty.mp3", "import.empty"), ("broken.wav", "import.unreadable"), ("notes.pdf", "import.not_audio"),
        ("copy of a.wav", "import.duplicate|a.wav"), ("gone.mp3", "import.missing"), ("a.wav", "import.already_here"),
    ]  # fmt: skip
    assert files_of(home) == ["a.wav"]


def test_duplicates_within_one_import_are_found(tmp_path: Path):
    first, second = write_wav(tmp_path / "in" / "a.wav"), write_wav(tmp_path / "in" / "b.wav")
    report, _ = import_all([first, second], tmp_path / "home")
    assert (report.added, report.refused) == ([("a.wav", "a")], [("b.wav", "import.duplicate|a.wav")])


def test_the_texts_beside_a_duplicate_reach_the_song_that_stays(tmp_path: Path):
    home, source = tmp_path / "home", tmp_path / "in"
    write_wav(home / "a.wav", level=9)
    (home / "a_lyrics.txt").write_text("corrected by hand", encoding="utf-8")
    (home / "a_prompt.txt").write_text(" \n", encoding="utf-8")
    again = write_wav(source / "再来.wav", level=9)
    (source / "再来_prompt.txt").write_text("pop", encoding="utf-8")
    report, _ = import_all([again], home)
    assert report.refused == [("再来.wav", "import.duplicate_used|a.wav")]
    assert (home / "a_prompt.txt").read_text(encoding="utf-8") == "pop"
    assert import_all([again], home)[0].refused == [("再来.wav", "import.duplicate|a.wav")]
    (source / "再来_lyrics.txt").write_text("from the model", encoding="utf-8")
    (source / "再来.lrc").write_text("[00:01.00]from the model", encoding="utf-8")
    assert import_all([again], home)[0].refused == [("再来.wav", "import.duplicate_kept|a.wav")]
    assert (home / "a_lyrics.txt").read_text(encoding="utf-8") == "corrected by hand"
    assert files_of(home) == ["a.lrc", "a.wav", "a_lyrics.txt", "a_prompt.txt"]


def test_a_cancelled_import_leaves_whole_songs_only(tmp_path: Path):
    sources = [write_wav(tmp_path / "in" / f"{n}.wav", level=n + 1) for n in range(5)]
    home, added = tmp_path / "home", []
    report = import_songs(sources, home, lambda *_: None, lambda name, _: added.append(name), lambda: len(added) >= 2)
    assert len(report.added) == 2 and len(report.refused) == 3 and files_of(home) == ["0.wav", "1.wav"]


def test_an_import_that_cannot_write_says_why(tmp_path: Path):
    source = write_wav(tmp_path / "in" / "a.wav")
    home = tmp_path / "home"
    home.mkdir()
    (home / ace_gui.STAGING_FOLDER).symlink_to(tmp_path / "nowhere")  # the temporary folder cannot be made
    report, _ = import_all([source], home)
    assert report.added == [] and report.refused[0][1].startswith("import.failed|")


def test_removed_songs_come_back_with_texts_and_records(tmp_path: Path):
    home = tmp_path / "home"
    write_wav(home / "a.wav")
    write_wav(home / "b.wav")
    (home / "a_prompt.txt").write_text("pop")
    project = Project(home)
    project.records.mkdir()
    (project.records / "a.safetensors").write_bytes(b"r")
    before = files_of(tmp_path)
    songs = scan_library(project)
    folder = ace_gui.remove_songs(project, songs[:1])
    assert [song.stem for song in scan_library(project)] == ["b"]
    assert not (project.records / "a.safetensors").exists() and not (home / "a_prompt.txt").exists()
    assert folder is not None
    assert removed(home) == [(folder, "remove", ["a.wav", "a_prompt.txt", "../home_prep/a.safetensors"])]
    assert put_back(home, folder) == (["a.wav", "a_prompt.txt", "../home_prep/a.safetensors"], [])
    assert files_of(tmp_path) == before


def test_restoring_over_a_new_file_keeps_both(tmp_path: Path):
    home = tmp_path / "home"
    write_wav(home / "a.wav", level=1)
    folder = ace_gui.remove_songs(Project(home), scan_library(Project(home)))
    new = write_wav(home / "a.wav", level=2).read_bytes()
    assert folder is not None
    restored, replaced = put_back(home, folder)
    assert (restored, replaced) == (["a.wav"], ["a.wav"])
    [(kept, reason, _)] = removed(home)
    assert reason == "restore" and (kept / "a.wav").read_bytes() == new


def test_files_of_one_name_from_two_folders_both_go_into_the_bin_and_come_back(tmp_path: Path):
    for folder in ("x", "x_prep"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    kept = ace_gui.remove_to_bin(tmp_path / "x", [tmp_path / "x" / "a.txt", tmp_path / "x_prep" / "a.txt"], "remove")
    assert sorted(path.name for path in kept.glob("a*")) == ["a.txt", "a_2.txt"]
    put_back(tmp_path / "x", kept)
    assert [(tmp_path / folder / "a.txt").read_text() for folder in ("x", "x_prep")] == ["x", "x_prep"]


def test_clearing_moves_everything_and_can_be_undone(tmp_path: Path):
    home = tmp_path / "home"
    write_wav(home / "a.wav")
    (home / "cover.jpg").write_bytes(b"j")
    project = Project(home, values={"train": {"max_steps": "3"}})
    project.save()
    project.dataset.mkdir()
    (project.dataset / "state.json").write_text("{}")
    folder = ace_gui.clear_library(project)
    assert folder is not None and scan_library(project) == [] and not project.dataset.exists()
    assert Project.load(home).values == {"train": {"max_steps": "3"}}
    put_back(home, folder)
    assert (
        (home / "cover.jpg").exists() and (project.dataset / "state.json").exists() and len(scan_library(project)) == 1
    )


def test_renaming_takes_texts_and_record_along(tmp_path: Path):
    home = tmp_path / "home"
    write_wav(home / "a.wav")
    write_wav(home / "hao_ge.wav", level=3)
    for name in ("a_prompt.txt", "a_lyrics.txt", "a.lrc"):
        (home / name).write_text(name)
    project = Project(home, titles={"a.wav": "旧"})
    project.records.mkdir()
    (project.records / "a.safetensors").write_bytes(b"r")
    assert ace_gui.rename_song(project, scan_library(project)[0], "好歌") == "hao_ge_2.wav"
    assert [name for name in files_of(home) if not name.startswith(".")] == [
        "hao_ge.wav", "hao_ge_2.lrc", "hao_ge_2.wav", "hao_ge_2_lyrics.txt", "hao_ge_2_prompt.txt",
    ]  # fmt: skip
    assert (project.records / "hao_ge_2.safetensors").exists()
    assert Project.load(home).titles == {"hao_ge_2.wav": "好歌"}
    again = next(song for song in scan_library(project) if song.title == "好歌")
    assert ace_gui.rename_song(project, again, "好歌!") == "hao_ge_2.wav"


def test_states_of_a_song(tmp_path: Path):
    home = tmp_path / "home"
    for name in "abc":
        write_wav(home / f"{name}.wav")
    (home / "._a.wav").write_bytes(b"resource fork")
    (home / "sub").mkdir()
    write_wav(home / "sub" / "not_scanned.wav")
    (home / "a_prompt.txt").write_text("pop")
    (home / "a_lyrics.txt").write_text("[Instrumental]\n")
    (home / "b_prompt.txt").write_text(" \n")
    project = Project(home)
    project.records.mkdir()
    (project.records / "a.hdf5").write_bytes(b"r")
    os.utime(project.records / "a.hdf5", (1, 1))
    (project.records / "b.safetensors").write_bytes(b"r")
    found = [(song.stem, song.prompt, song.lyrics, song.record) for song in scan_library(project)]
    assert found == [
        ("a", "ok", "instrumental", "old"),
        ("b", "empty", "missing", "ok"),
        ("c", "missing", "missing", "missing"),
    ]


def test_probing_finds_length_silence_and_damage(tmp_path: Path):
    soundfile = pytest.importorskip("soundfile", reason="the probe of compressed audio uses it")
    numpy = pytest.importorskip("numpy")
    tone = numpy.sin(numpy.arange(8000 * 3) / 9).astype("float32")
    soundfile.write(tmp_path / "好 听.flac", tone, 8000)
    soundfile.write(tmp_path / "silent.flac", tone * 0, 8000)
    soundfile.write(tmp_path / "ok.ogg", tone, 8000)
    (tmp_path / "broken.mp3").write_bytes(b"\x00" * 5000)
    write_wav(tmp_path / "long.wav", 361)
    write_wav(tmp_path / "a.wav", 2.5)
    write_wav(tmp_path / "s.wav", level=0)
    cut = write_wav(tmp_path / "cut.wav", 4.0)
    cut.write_bytes(cut.read_bytes()[: 44 + 16000])  # a recorder that lost power
    (tmp_path / "empty.mp3").write_bytes(b"")
    found: dict[str, list] = {}
    paths = sorted(path for path in tmp_path.iterdir() if ace_gui.is_audio(path))
    environment = Settings(tmp_path / "s").child_environment()
    program = Path(ace_gui.__file__).parent
    ace_gui.probe_songs(
        paths, Path(sys.executable), program, environment, lambda path, probe: found.__setitem__(path.name, probe)
    )
    assert {name: probe[3].partition("|")[0] for name, probe in found.items()} == {
        "好 听.flac": "", "silent.flac": "silent", "ok.ogg": "", "broken.mp3": "unreadable", "long.wav": "long",
        "a.wav": "", "s.wav": "silent", "cut.wav": "", "empty.mp3": "empty",
    }  # fmt: skip
    assert found["ok.ogg"][2] == pytest.approx(3.0, abs=0.1)
    assert (found["a.wav"][2], found["cut.wav"][2]) == (2.5, 1.0)
    project = Project(tmp_path, probes=found)
    problems = {song.audio.name: song.problem for song in scan_library(project)}
    assert problems["broken.mp3"] == "unreadable" and problems["ok.ogg"] == ""
    (tmp_path / "ok.ogg").write_bytes(b"replaced")
    assert next(song for song in scan_library(project) if song.stem == "ok").seconds is None


def test_probing_without_a_python_only_finds_empty_files(tmp_path: Path):
    found: dict[str, list] = {}
    (tmp_path / "empty.wav").write_bytes(b"")
    paths = [write_wav(tmp_path / "a.wav"), tmp_path / "empty.wav", tmp_path / "gone.wav"]
    ace_gui.probe_songs(paths, None, tmp_path, {}, lambda path, probe: found.__setitem__(path.name, probe))
    assert {name: probe[2:] for name, probe in found.items()} == {"empty.wav": [None, "empty"]}


@pytest.mark.parametrize(
    ("function", "prompt", "tag", "expected"),
    [
        (ace_gui.add_tag, "rock, drums", "mystyle", "mystyle, rock, drums"),
        (ace_gui.add_tag, "rock,MyStyle", "mystyle", "rock, MyStyle"),
        (ace_gui.add_tag, "", "a, b", "a, b"),
        (ace_gui.remove_tag, "Rock, drums, rock", "rock", "drums"),
        (ace_gui.remove_tag, "rock ballad, rock", "rock", "rock ballad"),
    ],
)
def test_tags(function, prompt: str, tag: str, expected: str):
    assert function(prompt, tag) == expected


def test_changing_texts_keeps_the_old_ones(tmp_path: Path):
    (tmp_path / "a_prompt.txt").write_text("old")
    (tmp_path / "b_prompt.txt").write_text("same")
    changes = {tmp_path / "a_prompt.txt": "new", tmp_path / "b_prompt.txt": "same", tmp_path / "c_prompt.txt": "fresh"}
    assert ace_gui.change_texts(Project(tmp_path), changes, "replace") == 2
    [(folder, reason, names)] = removed(tmp_path)
    assert (reason, names) == ("replace", ["a_prompt.txt"]) and (folder / "a_prompt.txt").read_text() == "old"
    put_back(tmp_path, folder)
    assert (tmp_path / "a_prompt.txt").read_text() == "old"


def test_atomic_writing_leaves_no_half_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    ace_gui.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        ace_gui.write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and files_of(tmp_path) == ["a.txt"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path):
    path = tmp_path / "a.json"
    threads = [threading.Thread(target=ace_gui.write_json, args=(path, {"n": [n] * 2000})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(json.loads(path.read_text())["n"])) == 1 and files_of(tmp_path) == ["a.json"]


def test_fingerprints_tell_what_changed(tmp_path: Path):
    write_wav(tmp_path / "a.wav")
    project = Project(tmp_path)
    before = ace_gui.fingerprint(scan_library(project))
    assert ace_gui.compare_fingerprints(before, ace_gui.fingerprint(scan_library(project))) is None
    for name, key in (("a_prompt.txt", "prompt"), ("a_lyrics.txt", "lyrics"), ("a_lyrics.lrc", "timed")):
        (tmp_path / name).write_text("x")
        assert ace_gui.compare_fingerprints(before, ace_gui.fingerprint(scan_library(project))) == (
            f"stale.{key}",
            {"song": "a"},
        )
        (tmp_path / name).unlink()
    write_wav(tmp_path / "b.wav")
    assert ace_gui.compare_fingerprints(before, ace_gui.fingerprint(scan_library(project))) == (
        "stale.added",
        {"song": "b"},
    )
    assert ace_gui.compare_fingerprints(ace_gui.fingerprint(scan_library(project)), before) == (
        "stale.removed",
        {"song": "b"},
    )


def test_song_paths():
    song = Song(Path("x") / "two.dots.mp3", "t")
    assert (song.stem, song.prompt_path.name, song.lyrics_path.name) == (
        "two.dots",
        "two.dots_prompt.txt",
        "two.dots_lyrics.txt",
    )


# The command line


def run_gui(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    return subprocess.run(
        [sys.executable, ace_gui.__file__, *arguments], capture_output=True, encoding="utf-8", cwd=cwd, timeout=120,
        env={**own, "PYTHONUTF8": "1", **environment}, check=False,
    )  # fmt: skip


def test_check_prints_the_report_without_a_display(tmp_path: Path):
    result = run_gui("--check", "--language", "en", "--program", str(tmp_path), cwd=tmp_path)
    assert "[ok]  Python:" in result.stdout and "The script" in result.stdout
    assert result.returncode == 1 and result.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only X11 has a missing display")
def test_without_a_display_there_is_a_sentence_and_no_traceback(tmp_path: Path):
    result = run_gui("--program", str(tmp_path), cwd=tmp_path)
    assert (
        result.returncode == 1
        and result.stderr.startswith("error: The window cannot open")
        and "Traceback" not in result.stderr
    )


def test_without_tk_there_is_a_sentence_and_no_traceback(tmp_path: Path):
    (tmp_path / "tkinter.py").write_text("raise ImportError('no Tk here')")
    result = run_gui("--program", str(tmp_path), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and "no Tk" in result.stderr and "Traceback" not in result.stderr


def test_a_project_folder_that_does_not_exist_is_wrong_input(tmp_path: Path):
    result = run_gui("--project", "nowhere", cwd=tmp_path)
    assert result.returncode == 2 and "'nowhere'" in result.stderr


def test_the_window_imports_no_torch():
    code = "import sys, ace_gui; print([m for m in ('torch', 'numpy', 'ace_lora') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(ace_gui.__file__).parent, check=True
    )
    assert result.stdout.strip() == "[]"


def test_settings_and_projects_with_values_of_a_wrong_kind_still_open(tmp_path: Path):
    path = tmp_path / "settings.json"
    stored = {
        "scale": "large",
        "recent": [1, "kept"],
        "presets": {"a": 3, "b": {"max_steps": 5}},
        "draft": {"train": []},
    }
    path.write_text(json.dumps(stored), encoding="utf-8")
    settings = ace_gui.Settings.load(path)
    assert (settings.scale, settings.recent, settings.draft) == ("auto", ["kept"], {})
    assert settings.presets == {"b": {"max_steps": "5"}} and settings.damaged is None
    home = tmp_path / "x"
    home.mkdir()
    (home / "a.wav").write_bytes(b"")
    stored = {
        "titles": {"a.wav": 7}, "receipts": {"dataset": 5}, "probes": {"a.wav": [1]}, "backend_run": {"pid": "many"},
        "values": {"train": 3},
    }  # fmt: skip
    (home / ace_gui.PROJECT_FILE).write_text(json.dumps(stored), encoding="utf-8")
    project = ace_gui.Project.load(home)
    assert [song.title for song in scan_library(project)] == ["7"]
    assert (project.receipts, project.probes, project.unknown, project.values) == ({}, {}, {}, {})


def test_what_was_found_in_a_song_is_kept_and_what_is_no_finding_is_not(tmp_path: Path):
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "b.wav")
    good = {"a.wav": [*ace_gui.identity(tmp_path / "a.wav"), 2.5, ""], "b.wav": [1, 2, None, "unreadable|broken"]}
    bad = {"text": "abcd", "short": [1, 2, 3.0], "long": [1, 2, 3.0, "", 5], "no problem": [1, 2, 3.0, None]}
    project = Project(tmp_path, probes={**good, **bad})
    project.save()
    again = Project.load(tmp_path)
    assert again.probes == good
    song = scan_library(again)[0]
    assert (song.probed, song.seconds, song.problem) == (True, 2.5, "")


def test_a_wav_above_four_gigabytes_may_be_added(tmp_path: Path):
    path = tmp_path / "long.wav"
    path.write_bytes(b"RF64" + b"\xff" * 4 + b"WAVEds64" + bytes(60))
    (tmp_path / "bad.wav").write_bytes(b"no music")
    report, _ = import_all([path, tmp_path / "bad.wav"], tmp_path / "home")
    assert (report.added, report.refused) == ([("long.wav", "long")], [("bad.wav", "import.unreadable")])


def test_of_equal_songs_the_one_in_the_outer_folder_comes_first(tmp_path: Path):
    for name in ("copies/a.wav", "z.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = ace_gui.find_sources([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["z.wav", "copies/a.wav"]


# Locks


def test_a_folder_is_locked_for_others_and_by_whatever_name_it_is_called(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "歌").mkdir()
    lock = ace_gui.FolderLock.take(tmp_path / "歌")
    assert lock is not None
    assert ace_gui.FolderLock.take(Path("歌")) is None
    other = ace_gui.FolderLock.take(tmp_path / "other")
    assert other is not None
    lock.release()
    again = ace_gui.FolderLock.take(tmp_path / "歌")
    assert again is not None
    again.release()
    other.release()
    assert files_of(tmp_path / "歌") == []  # a file in there would keep Windows from moving the folder


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    code = (
        "import sys, time; from pathlib import Path; import ace_gui\n"
        "lock = ace_gui.FolderLock.take(Path(sys.argv[1])); print(lock is not None, flush=True); time.sleep(600)"
    )
    root = Path(ace_gui.__file__).parent
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline().strip() == b"True"
        assert ace_gui.FolderLock.take(tmp_path) is None
        holder.kill()
    lock = ace_gui.FolderLock.take(tmp_path)
    assert lock is not None
    lock.release()


def test_where_no_lock_can_be_made_nobody_is_kept_out(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("in the way of the folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "file"))
    for _ in range(2):
        lock = ace_gui.FolderLock.take(tmp_path)
        assert lock is not None and lock.heirs() == ()
        lock.release()
