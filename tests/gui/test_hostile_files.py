"""Projects and settings from strangers: whatever stands in their files, the window opens, and says what it left out."""

# The tables have one line for several cases.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ace_gui
from ace_gui import Settings
from tests.gui.desk import Desk, outcome, question
from tests.gui.window import ROOT, project_with_songs, write_stand_ins

needs_posix = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and names of POSIX")
Attack = Callable[[Path], Any]

BIDI = "\u202e\u2066gpj.\u200f"
DEEP = "[" * 100_000 + "]" * 100_000
NOT_JSON: dict[str, bytes] = {
    "nothing": b"", "spaces": b"  \n", "half": b'{"values": {"train"', "a list": b"[]", "a text": b'"x"', "null": b"null",
    "a number": b"5", "GBK": '{"titles": {"a.wav": "晴天"}}'.encode("gbk"), "UTF-16": '{"titles": {}}'.encode("utf-16"),
    "binary": bytes(range(256)), "nested lists": DEEP.encode(), "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep inside": ('{"titles": ' + "[" * 100 + "]" * 100 + "}").encode(), "a number without end": b'{"a": ' + b"9" * 9000 + b"}",
}  # fmt: skip
PROJECTS: dict[str, Any] = {
    "values a list": {"values": []}, "values of lists": {"values": {"train": []}}, "values of numbers": {"values": {"train": {"max_steps": 1e400}}},
    "values without end": {"values": {"train": {"max_steps": "9" * 9000, "learning_rate": "1e999", "batch_size": "nan"}}},
    "values with NUL": {"values": {"train": {"output_dir": "a\0b", "log_dir": "\0"}, "strength": {"output_name": "\0", "input_name": "\0"}}},
    "values of half pairs": {"values": {"train": {"output_dir": "\ud800", "log_dir": "\udfff", "exp_name": "\ud800"}}},
    "values too long": {"values": {"train": {"output_dir": "x" * 100_000, "log_dir": "y/" * 5000}, "strength": {"output_name": "z" * 5000}}},
    "values of devices": {"values": {"train": {"output_dir": "nul", "log_dir": "con"}}},
    "values of braces": {"values": {"strength": {"output_name": "{name}{0}{x.__class__}"}, "train": {"log_dir": "{}"}}},
    "values unknown": {"values": {"nothing": {"x": "y"}, "train": {"--evil": "1", "": ""}}},
    "titles a list": {"titles": [1]}, "titles of objects": {"titles": {"a.wav": {"x": []}}},
    "title of lines": {"titles": {"a.wav": "a\nb\r\nc\u2028d"}}, "title turned round": {"titles": {"a.wav": BIDI}},
    "title of controls": {"titles": {"a.wav": "\x07\x1b[31m\x00\x7f\x9b"}}, "title of half a pair": {"titles": {"a.wav": "\ud83d\udce0x"}},
    "title empty": {"titles": {"a.wav": ""}}, "title huge": {"titles": {"a.wav": "晴" * 2_000_000}},
    "title of braces": {"titles": {"a.wav": "{count} {0} %s $x [exit]"}},
    "receipts a text": {"receipts": "x"}, "receipts of texts": {"receipts": {"dataset": "x"}},
    "receipts without inputs": {"receipts": {"dataset": {"finished": "soon", "inputs": 5}}},
    "receipts of lists": {"receipts": {"dataset": {"finished": 9e99, "inputs": {"a": "x", "b": None}}}},
    "receipts of numbers": {"receipts": {"train": {"finished": None, "inputs": {"a": [1, 2]}}}},
    "receipt elsewhere": {"receipts": {"strength": {"output": ["x"]}, "train": {"step": "many"}}},
    "receipt with NUL": {"receipts": {"strength": {"output": "a\0b"}}},
    "probe of texts": {"probes": {"a.wav": ["x", "y", "z", ""]}}, "probe unknown": {"probes": {"a.wav": [1, 2, 3, "no_such_problem|x"]}},
    "probe endless": {"probes": {"a.wav": [1, 2, float("inf"), ""]}}, "probe not a number": {"probes": {"a.wav": [1, 2, float("nan"), "silent"]}},
    "probe negative": {"probes": {"a.wav": [-1, -1, -1e18, "long"]}}, "probe an object": {"probes": {"a.wav": {}}},
    "version of the future": {"version": 10**30, "unknown": {"x": [1, {"y": None}]}}, "names of half pairs": {"\ud800": 1, "titles": {"\udc80": "x"}},
    "moving anywhere": {"moving": "\0"}, "moving an object": {"moving": {"x": 1}}, "many songs": {"titles": {f"{n}.wav": "x" for n in range(20_000)}},
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "language unknown": {"language": "xx"}, "language a list": {"language": []}, "scale zero": {"scale": "0"}, "scale huge": {"scale": "99999999"},
    "scale of other digits": {"scale": "١٢٥"}, "geometry odd": {"geometry": "999999x1+-5+0; exit"}, "last project with NUL": {"last_project": "\0"},
    "last project a file": {"last_project": "/etc/hostname"}, "last project half a pair": {"last_project": "\ud800"},
    "recent of all kinds": {"recent": ["\0", 5, None, "x" * 9000, "\udfff", "/dev/zero"]}, "recent long": {"recent": ["/nowhere"] * 5000},
    "python with NUL": {"python": "a\0b"}, "program with NUL": {"program": "\0"}, "endpoint with NUL": {"endpoint": "http://x\0", "cache": "\ud800"},
    "presets odd": {"presets": {"a": [], "b": {"max_steps": {}}, "": {"": ""}}}, "draft odd": {"draft": {"train": {"max_steps": [1]}, "x": 5}},
    "log height huge": {"log_height": 10**30}, "log height a truth": {"log_height": True}, "offline a text": {"offline": "yes"},
    "trusted odd": {"trusted": [1, None, {}]}, "unknown deep": {"x": {"y": {"z": [1, 2]}}}, "comfyui with NUL": {"comfyui": "\0"},
}  # fmt: skip


def file(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


def metrics(text: str | bytes) -> Attack:
    return lambda home: file(home.parent.parent / "logs" / home.name / "run" / "1" / "metrics.csv", text)


def owner(text: str | bytes) -> Attack:
    return lambda home: file(home.parent.parent / "checkpoints" / ace_gui.OWNER_FILE, text)


def in_place(path: Path, make: Callable[[Path], Any]) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return make(path)


def huge(path: Path) -> None:
    with path.open("wb") as sparse:
        sparse.truncate(3 << 30)


HEAD = "step,loss,loss_smooth,learning_rate,val_loss\n"
FILES: dict[str, Attack] = {
    "metrics endless": metrics(HEAD + "1e999,inf,nan,-inf,1e999\n-5,1e308,1,1,-1e308\n1,2,3,4,5\n"),
    "metrics quoted": metrics(HEAD + '"1,2\n"""' * 50_000), "metrics of one line": metrics("x" * 5_000_000),
    "metrics binary": metrics(bytes(range(256)) * 500), "metrics without names": metrics("1,2,3\n" * 10),
    "metrics of NUL": metrics(HEAD.encode() + b"\0" * 1000 + b"\n1,0.5,0.5,1,\n"), "metrics twice": metrics(HEAD * 3 + "2,1,,,\n1,1,,,\n"),
    "owner a list": owner("[]"), "owner an object": owner('{"home": {"x": 1}}'), "owner with NUL": owner('{"home": "\\u0000"}'),
    "owner binary": owner(bytes(range(256))), "owner deep": owner(DEEP),
    "a lyrics file of one line": lambda home: file(home / "a_lyrics.txt", "la " * 700_000),
    "a prompt that is GBK": lambda home: file(home / "a_prompt.txt", "流行，温暖".encode("gbk")),
    "a prompt of controls": lambda home: file(home / "a_prompt.txt", "\0\x1b\u202e" * 100),
    "a prompt that is a folder": lambda home: in_place(home / "a_prompt.txt", Path.mkdir),
    "a song that is a folder": lambda home: (home / "c.wav").mkdir(),
    "a long name": lambda home: file(home / f"{'n' * 240}.wav", b"RIFF"),
    "records that are a file": lambda home: file(home.with_name(f"{home.name}_prep"), b"x"),
    "a dataset that is a file": lambda home: file(home.with_name(f"{home.name}_filenames"), b"x"),
    "checkpoints that are a file": lambda home: file(home.parent.parent / "checkpoints", b"x"),
    "LoRAs of odd names": lambda home: file(
        home.parent.parent / "checkpoints" / f"epoch=0-step={'9' * 200}_lora" / ace_gui.LORA_FILE, b"x"
    ),
    "a project file that is a folder": lambda home: in_place(home / ace_gui.PROJECT_FILE, Path.mkdir),
    "a bin that is a file": lambda home: file(home / ace_gui.BIN_FOLDER, b"x"),
    "a huge project file": lambda home: in_place(home / ace_gui.PROJECT_FILE, huge),
    "a huge prompt": lambda home: in_place(home / "a_prompt.txt", huge),
}  # fmt: skip
POSIX_FILES: dict[str, Attack] = {
    "a pipe as project file": lambda home: in_place(home / ace_gui.PROJECT_FILE, os.mkfifo),
    "a device as project file": lambda home: in_place(home / ace_gui.PROJECT_FILE, lambda p: p.symlink_to("/dev/zero")),
    "a circle as project file": lambda home: in_place(home / ace_gui.PROJECT_FILE, lambda p: p.symlink_to(p)),
    "a pipe as prompt": lambda home: in_place(home / "a_prompt.txt", os.mkfifo),
    "a device as lyrics": lambda home: in_place(home / "a_lyrics.txt", lambda p: p.symlink_to("/dev/zero")),
    "a pipe as song": lambda home: in_place(home / "c.mp3", os.mkfifo),
    "a device as song": lambda home: in_place(home / "c.mp3", lambda p: p.symlink_to("/dev/zero")),
    "a pipe as metrics": lambda home: in_place(home.parent.parent / "logs" / home.name / "metrics.csv", os.mkfifo),
    "a pipe as owner": lambda home: in_place(home.parent.parent / "checkpoints" / ace_gui.OWNER_FILE, os.mkfifo),
    "a name in GBK": lambda home: os.close(os.open(os.fsencode(home) + "/晴天.wav".encode("gbk"), os.O_CREAT)),
    "a name of lines": lambda home: file(home / "a\nb\u202e\x1b[1m.wav", b"RIFF"),
    "a name of braces": lambda home: file(home / "{0}{count}[exit].wav", b"RIFF"),
    "a circle of folders": lambda home: (home / "sub").symlink_to(home),
}


def stored(name: str, value: object) -> Attack:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda home: file(home / name, data)


IN_PROJECT = [
    *((f"project: {name}", stored(ace_gui.PROJECT_FILE, value)) for name, value in (NOT_JSON | PROJECTS).items()),
    *FILES.items(),
]
CASES = [
    *(pytest.param(attack, id=name) for name, attack in IN_PROJECT),
    *(pytest.param(attack, id=name, marks=needs_posix) for name, attack in POSIX_FILES.items()),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("program")
    write_stand_ins(program)
    return program


@pytest.fixture
def desk(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Desk]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    for name in ("tk", "ttk", "tkfont", "filedialog", "ScrolledText"):
        monkeypatch.setattr(ace_gui, name, None)
    for script in program.glob("*.py"):
        (tmp_path / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    return lambda home=None, **settings: Desk(tmp_path, home, **settings)


def works(opened: Desk) -> None:
    """Everything that the window asks of a project, without a display."""
    session = opened.session
    opened.tick()
    session.look(force=True)
    shown = [opened.runs.describe(step.key) for step in ace_gui.STEPS]
    shown += [(song.title, session.t("problems.item", name=song.title, what="")) for song in session.songs]
    shown += [
        (ace_gui.removed_label(session, entry), "")
        for entry in ace_gui.list_removed(session.project, session.space.checkpoints())
    ]
    for step in ace_gui.STEPS:
        session.space.problems(step.key)
        if step.script and session.project.home:
            session.space.arguments(step.key)
    for song in session.songs:
        shown += [
            (text, "") for text in ace_gui.OpenSong(session, song).loaded.values() if len(text) > ace_gui.MAX_SHOWN_LINE
        ]
    for text in (text for pair in shown for text in pair):
        assert not ace_gui._UNSEEN.search(text) and len(text) < 2000, text
    assert not any("\n" in song.title or not song.title for song in session.songs)
    session.save()


@pytest.mark.parametrize("attack", CASES)
def test_a_project_opens_whatever_stands_in_it(desk: Callable[..., Desk], tmp_path: Path, attack: Attack):
    home = project_with_songs(tmp_path, "lyrics")
    attack(home)
    begun = time.process_time()
    opened = desk(home)
    works(opened)
    assert time.process_time() - begun < 2
    assert opened.session.project.home == home and {"a", "b"} <= {song.stem for song in opened.session.songs}
    opened.close()


@pytest.mark.parametrize("value", [*NOT_JSON.values(), *SETTINGS.values()], ids=[*NOT_JSON, *SETTINGS])
def test_the_window_starts_whatever_its_settings_hold(desk: Callable[..., Desk], tmp_path: Path, value: object):
    stored(ace_gui.SETTINGS_FILE, value)(tmp_path)
    settings = Settings.load(tmp_path / ace_gui.SETTINGS_FILE)
    assert (settings.damaged is not None) == isinstance(value, bytes) and settings.unread == ""
    assert ace_gui.is_folder(Path(settings.last_project)) in (True, False)
    opened = desk()
    opened.session.settings = opened.session.space.settings = settings
    opened.environment.session.settings.child_environment()
    ace_gui.find_python(settings, tmp_path)
    works(opened)
    settings.save()
    Settings.load(settings.path)
    opened.close()


def test_there_are_enough_of_them():
    assert len(CASES) + len(NOT_JSON) + len(SETTINGS) >= 110


@needs_posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_now_is_not_written_over_as_a_user(desk: Callable[..., Desk], tmp_path: Path):
    home = project_with_songs(tmp_path)
    path = file(home / ace_gui.PROJECT_FILE, '{"titles": {"a.wav": "晴天"}}')
    path.chmod(0)
    opened = desk(home)
    assert "cannot be read at present" in opened.banner() and path.exists()
    path.chmod(0o644)


def test_a_file_that_cannot_be_read_now_is_not_written_over(
    desk: Callable[..., Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = project_with_songs(tmp_path)
    path = file(home / ace_gui.PROJECT_FILE, '{"titles": {"a.wav": "晴天"}}')
    read = ace_gui.read_bytes

    def held(asked: Path, limit: int) -> bytes:
        if asked.name in (ace_gui.PROJECT_FILE, "settings.json"):
            raise PermissionError(13, "The process cannot access the file")
        return read(asked, limit)

    monkeypatch.setattr(ace_gui, "read_bytes", held)
    opened = desk(home)
    assert "cannot be read at present" in opened.banner()
    opened.session.project.set_value("train", "max_steps", "5", "2000")
    opened.session.save()
    assert "Cannot save" in opened.banner() and path.read_text(encoding="utf-8") == '{"titles": {"a.wav": "晴天"}}'
    settings = file(tmp_path / "settings.json", '{"language": "en"}')
    loaded = Settings.load(settings)
    assert loaded.unread and loaded.damaged is None
    with pytest.raises(OSError, match="cannot access"):
        loaded.save()
    assert settings.read_text() == '{"language": "en"}'
    opened.close()


@pytest.mark.parametrize(
    ("flag", "text", "out"),
    [("output_dir", "/etc", True), ("output_dir", "D:/x", True), ("output_dir", "C:x", True), ("log_dir", "../../x", True),
     ("log_dir", "a/../../x", True), ("output_name", "\\\\server\\x", True), ("last_lora_path", "//server/x", True),
     ("output_dir", "~/x", True), ("output_dir", "checkpoints", False), ("log_dir", "logs/{name}", False),
     ("output_name", "x-step5.safetensors", False), ("last_lora_path", "/data/x.safetensors", False),
     ("host", "127.0.0.1", False), ("host", "localhost", False), ("host", "::1", False), ("host", "", False),
     ("host", "10.0.0.5", True), ("host", "127.0.0.1.evil.com", True), ("host", "0.0.0.0", True), ("max_steps", "/", False)],
)  # fmt: skip
def test_what_leads_out_of_the_project(flag: str, text: str, out: bool):
    assert ace_gui.leads_out(flag, text) is out


def test_places_of_a_project_are_asked_about_once(desk: Callable[..., Desk], tmp_path: Path):
    home = project_with_songs(tmp_path)
    values = {
        "train": {"output_dir": "/elsewhere/loras", "max_steps": "7"},
        "captions": {"backend": "llamacpp", "host": "10.1.2.3"},
    }
    path = file(home / ace_gui.PROJECT_FILE, json.dumps({"values": values}))
    first = desk(home)
    [asked] = first.asked
    assert "Output folder: /elsewhere/loras\nServer: 10.1.2.3" in asked.message
    assert first.session.space.checkpoints() == tmp_path / "checkpoints"  # nothing is used before the answer
    first.session.save()
    assert json.loads(path.read_text(encoding="utf-8"))["values"] == values  # nor lost
    assert asked.answer("use") is None and first.session.space.checkpoints() == Path("/elsewhere/loras")
    first.close()
    second = desk(home, **{key: getattr(first.settings, key) for key in ("trusted",)})
    assert second.asked == [] and second.session.space.checkpoints() == Path("/elsewhere/loras")
    second.close()
    third = desk(home)
    question(third.asked[0]).answer("default")
    third.close()
    assert json.loads(path.read_text(encoding="utf-8"))["values"] == {
        "train": {"max_steps": "7"},
        "captions": {"backend": "llamacpp"},
    }


def test_what_the_user_types_is_not_asked_about(desk: Callable[..., Desk], tmp_path: Path):
    first = desk(project_with_songs(tmp_path))
    row = next(row for row in ace_gui.TRAIN_FIELDS if row.flag == "output_dir")
    first.session.set_value("train", row, "/mine/loras")
    first.close()
    first.session.save()
    second = desk(first.session.project.home, trusted=Settings.load(first.settings.path).trusted)
    assert second.asked == [] and second.session.space.checkpoints() == Path("/mine/loras")
    second.close()


def test_a_text_that_cannot_be_shown_is_neither_shown_nor_written(desk: Callable[..., Desk], tmp_path: Path):
    home = project_with_songs(tmp_path, "lyrics")
    long = file(home / "a_lyrics.txt", "la" * 100_000)  # one line
    large = file(home / "a_prompt.txt", "pop,\n" * 300_000)
    opened = desk(home)
    song = ace_gui.OpenSong(opened.session, opened.session.songs[0])
    assert song.blocked == {"prompt", "lyrics"} and "cannot be shown here" in song.loaded["lyrics"]
    assert song.write(song.loaded) and (long.stat().st_size, large.stat().st_size) == (200_000, 1_500_000)
    assert opened.session.songs[0].prompt == "unusable" and opened.statuses()[1] == "ready"
    reply = question(ace_gui.ask_change(opened.session, "add_tag")).answer("ok", "warm")
    assert outcome(reply).sentence.startswith("Files changed: 1.") and large.stat().st_size == 1_500_000
    opened.close()


STARTS = [
    "project: title turned round", "metrics endless", "a lyrics file of one line", "owner deep", "LoRAs of odd names",
]  # fmt: skip
POSIX_STARTS = ["a device as lyrics", "a name in GBK", "a name of lines", "a pipe as prompt", "a circle of folders"]
START = """
import sys, time
from pathlib import Path
import ace_gui
program = Path(sys.argv[1])
settings = ace_gui.Settings.load(program / "ace_gui_settings.json")
root = ace_gui.open_root()
app = ace_gui.App(root, program, settings, Path(sys.argv[2]))
longest = 0.0
for page in ("songs", "prompts", "lyrics", "train", "strength", "environment"):
    app.window.show_page(page)
    for _ in range(5):
        begun = time.monotonic()
        root.update()
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.02)
app.window.menus.fill_bin()
print("open", app.session.project.home == Path(sys.argv[2]), f"{longest:.2f}", flush=True)
app.finish()
"""


def test_real_windows_start(display: None, tmp_path: Path):
    homes, attacks = [], dict(IN_PROJECT) | POSIX_FILES
    for number, names in enumerate((STARTS, POSIX_STARTS if os.name == "posix" else ["project: many songs"])):
        program = tmp_path / str(number)
        write_stand_ins(program)
        homes.append(project_with_songs(program, "lyrics"))
        for name in names:
            attacks[name](homes[-1])
    merged = {key: value for case in SETTINGS.values() for key, value in case.items()}
    stored(ace_gui.SETTINGS_FILE, merged)(tmp_path / "1")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONPATH": str(ROOT)}
    for number, home in enumerate(homes):
        ended = subprocess.run(
            [sys.executable, "-c", START, str(tmp_path / str(number)), str(home)], env=environment,
            capture_output=True, timeout=100, check=False,
        )  # fmt: skip
        assert ended.stdout.startswith(b"open True") and b"Traceback" not in ended.stderr, ended.stdout + ended.stderr
