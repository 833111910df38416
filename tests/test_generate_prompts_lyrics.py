"""The command itself, on real files: `python -m pytest tests/test_generate_prompts_lyrics.py`.

The analysis backend needs no model; the qwen backend runs with the tiny random thinker of `tiny_qwen.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen.id3 import ID3, USLT

from ace_lora.commands import run_script
from ace_lora.lyrics.timed import TimedLine, parse_timed
from ace_lora.songs import split_tags
from generate_prompts_lyrics import main, parse_args
from tests.tiny_qwen import make_thinker

ROOT = Path(__file__).parent.parent
RATE = 44100
LRC = "[ti:x]\n[00:00.50]Hello morning\n[00:01.50]we are free\n[00:02.50]Goodbye\n[00:03.00]we are free\n"


def beats(bpm: float = 100, seconds: float = 6) -> np.ndarray:
    """[length, 2]: a click track over faint noise."""
    samples = np.random.default_rng(0).normal(scale=0.01, size=int(seconds * RATE))
    for beat in range(int(seconds * bpm / 60)):
        start = int(beat * 60 / bpm * RATE)
        tick = np.arange(min(4000, len(samples) - start))
        samples[start : start + len(tick)] += 0.5 * np.exp(-tick / 800) * np.sin(2 * np.pi * 300 * tick / RATE)
    return np.stack([samples, samples], axis=1)


@pytest.fixture(scope="session")
def beat_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("beats")
    for extension in ("wav", "mp3", "flac"):
        soundfile.write(folder / f"x.{extension}", beats(), RATE)
    return {path.suffix[1:]: path for path in folder.iterdir()}


@pytest.fixture
def songs(tmp_path, beat_files) -> Path:
    """A folder with a blank and Chinese in its name that holds `one.mp3`, `two.flac` and `三 首.wav`."""
    folder = tmp_path / "my songs 歌"
    folder.mkdir()
    for name in ("one.mp3", "two.flac", "三 首.wav"):
        shutil.copy(beat_files[name.rsplit(".", 1)[1]], folder / name)
    return folder


def run(folder: Path, *arguments: str, backend: str | None = "analysis", decided: bool = True) -> int:
    """The exit status of the command, run in this process; `decided`: songs without lyrics are instrumental."""
    chosen = [] if backend is None else ["--backend", backend]
    chosen += ["--assume_instrumental"] if decided else []
    return run_script(main, parse_args(["--data_dir", str(folder), *chosen, *arguments]))


def texts(folder: Path) -> dict[str, str]:
    """Everything in the folder but the audio, exactly as it was written."""
    return {
        path.name: path.read_bytes().decode("utf-8", errors="replace")
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix not in (".mp3", ".flac", ".wav")
    }


def kept_texts(folder: Path) -> list[str]:
    """What was set aside, after a look at the manifests from which the window restores it."""
    kept = []
    for manifest in sorted((folder / ".removed").glob("*/removed.json")):
        files = json.loads(manifest.read_text("utf-8"))["files"]
        assert {path.name for path in manifest.parent.iterdir()} == {"removed.json", *files}
        assert list(files) == list(files.values())  # each restored beside its song
        kept += [(manifest.parent / name).read_text("utf-8") for name in files]
    return kept


# --- The analysis backend ---


def test_prompts(songs, capsys):
    assert run(songs) == 0
    written = texts(songs)
    assert set(written) == {"one_prompt.txt", "two_prompt.txt", "三 首_prompt.txt"}
    for prompt in written.values():
        tags = split_tags(prompt)
        assert prompt == ", ".join(tags)
        assert tags == sorted(set(tags))
        assert len(tags) == 3
        assert not any("tempo" in tag or "bpm" in tag for tag in tags)
    out = capsys.readouterr().out
    assert f"song 1/3 | one.mp3 | done: {written['one_prompt.txt']}\n" in out
    assert "one.mp3: tempo: 100 bpm or 50 bpm or 200 bpm? Not written, because the signal does not tell which" in out
    assert f"song 3/3 | 三 首.wav | done: {written['三 首_prompt.txt']}\n" in out
    assert out.endswith("done 3, skipped 0, failed 0\n")


def test_bpm(songs):
    assert run(songs, "--bpm", "--only", "one") == 0
    assert "100 bpm" in split_tags(texts(songs)["one_prompt.txt"])


def test_bpm_without_a_pulse(tmp_path, capsys):
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(4 * RATE) / 20), RATE)
    assert run(tmp_path, "--bpm") == 0
    assert "bpm" not in texts(tmp_path)["tone_prompt.txt"]
    assert "tone.wav: no steady pulse found, so there is no tempo tag.\n" in capsys.readouterr().out


def test_a_second_run_changes_nothing(songs, capsys):
    assert run(songs, "--lyrics") == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in songs.iterdir()}
    capsys.readouterr()
    assert run(songs, "--lyrics") == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in songs.iterdir()} == before
    assert capsys.readouterr().out == (
        "song 1/3 | one.mp3 | skipped\nsong 2/3 | two.flac | skipped\nsong 3/3 | 三 首.wav | skipped\n"
        "done 0, skipped 3, failed 0\n"
    )


def test_lyrics_write_prompts_that_are_missing_and_no_others(songs):
    (songs / "one_prompt.txt").write_text("my own, tags\n", "utf-8")
    assert run(songs, "--lyrics") == 0
    written = texts(songs)
    assert written["one_prompt.txt"] == "my own, tags\n"
    assert set(written) == {f"{stem}_{kind}.txt" for stem in ("one", "two", "三 首") for kind in ("prompt", "lyrics")}
    assert written["one_lyrics.txt"] == "[instrumental]"


def test_assumed_instrumentals_are_said_to_be_assumed(songs, capsys):
    assert run(songs, "--lyrics", "--only", "one") == 0
    assert "one.mp3: no lyrics found; [instrumental] because of --assume_instrumental.\n" in capsys.readouterr().out


def test_nobody_decided_so_the_song_waits(songs, capsys):
    """Its prompt is written all the same; the run says how many wait and does not end with 0."""
    (songs / "two.lrc").write_text(LRC, "utf-8")
    (songs / "三 首.lrc").write_text("[00:01.00]纯音乐，请欣赏", "utf-8")
    assert run(songs, "--lyrics", decided=False) == 1
    captured = capsys.readouterr()
    assert (
        "song 1/3 | one.mp3 | waits for a decision: no lyrics in file,embedded,model and no model listened"
        in captured.out
    )
    assert captured.out.endswith("done 2, skipped 0, failed 0, waiting 1\n")
    assert "error: 2 of 3 songs have lyrics, 1 waits for a decision: one.mp3." in captured.err
    assert "--assume_instrumental" in captured.err
    written = texts(songs)
    assert "one_lyrics.txt" not in written and "one_prompt.txt" in written
    assert written["三 首_lyrics.txt"] == "[instrumental]"
    assert run(songs, "--lyrics") == 0
    assert texts(songs)["one_lyrics.txt"] == "[instrumental]"


def test_what_is_left_out_is_kept_with_the_reason(songs, capsys):
    credits = "[00:00.00]作词 : 甲\n[00:00.20]作曲 : 乙\n"
    source = credits + "[00:01.00]静かな夜に\n[00:01.00]寂静的夜里\n[00:02.00]星の海を\n[00:02.00]星辰的海洋\n"
    (songs / "one.lrc").write_text(source, "utf-8")
    assert run(songs, "--lyrics", "--structure", "off", "--only", "one") == 0
    written = texts(songs)
    assert written["one_lyrics.txt"] == "静かな夜に\n星の海を"
    about = json.loads(written["one_lyrics.json"])
    assert about["source"] == "one.lrc"
    assert [(line["kind"], line["text"]) for line in about["lines"]] == [
        ("credit", "作词 : 甲"),
        ("credit", "作曲 : 乙"),
        ("sung", "静かな夜に"),
        ("translation", "寂静的夜里"),
        ("sung", "星の海を"),
        ("translation", "星辰的海洋"),
    ]
    assert about["lines"][0] == {
        "time": 0.0,
        "text": "作词 : 甲",
        "kind": "credit",
        "sung": "",
        "why": "a credit at the head",
    }
    assert "lyrics from one.lrc, 2 lines with times; left out: 2 translation, 2 credit." in capsys.readouterr().out
    # New lyrics of which nothing is left out: the old account is set aside, the language that the user set stays.
    (songs / "one_lyrics.json").write_text(json.dumps(about | {"language": "ja"}), "utf-8")
    (songs / "one.lrc").write_text("[00:01.00]Hello morning", "utf-8")
    assert run(songs, "--lyrics", "--overwrite", "--only", "one") == 0
    assert json.loads(texts(songs)["one_lyrics.json"]) == {"format": 1, "language": "ja"}
    assert any('"credit"' in text for text in kept_texts(songs))


def test_times_behind_the_end_are_of_another_version(songs, capsys):
    (songs / "one.lrc").write_text(LRC + "[03:00.00]far away\n", "utf-8")
    assert run(songs, "--lyrics", "--only", "one") == 0
    assert "one.mp3: warning: 1 of 5 lines have times behind the end of the song (6 s; the last line is at 180 s)" in (
        capsys.readouterr().out
    )


def test_an_encoding_that_is_a_guess_is_a_question(songs, capsys):
    (songs / "one.lrc").write_bytes("[00:01.00]桜の花が咲いた".encode("cp932"))
    assert run(songs, "--lyrics", "--only", "one") == 0
    assert "one.mp3: question: 'one.lrc' is not Unicode. Read as cp932, which is a guess" in capsys.readouterr().out
    assert "cp932" in json.loads(texts(songs)["one_lyrics.json"])["questions"][0]
    (songs / "one.lrc").write_bytes("[00:01.00]月亮代表我的心".encode("gbk"))
    assert run(songs, "--lyrics", "--overwrite", "--only", "one", "--lyric_encoding", "gbk") == 0
    assert "question:" not in capsys.readouterr().out
    assert texts(songs)["one_lyrics.txt"] == "[verse]\n月亮代表我的心"


def test_overwriting_keeps_the_old_texts(songs, capsys):
    (songs / "one_prompt.txt").write_text("my own, tags", "utf-8")
    (songs / "one_lyrics.txt").write_text("my words", "utf-8")
    assert run(songs, "--lyrics", "--overwrite", "--only", "one.mp3") == 0
    assert run(songs, "--lyrics", "--overwrite", "--only", "one.mp3") == 0
    written = texts(songs)
    assert written["one_prompt.txt"] != "my own, tags"
    assert written["one_lyrics.txt"] == "[instrumental]"
    assert sorted(kept_texts(songs)) == sorted(
        ["my own, tags", "my words", "[instrumental]", written["one_prompt.txt"]]
    )


def test_only(songs, capsys):
    assert run(songs, "--only", "三 首", "ONE.mp3") == 0
    assert set(texts(songs)) == {"one_prompt.txt", "三 首_prompt.txt"}
    assert "song 2/2 | 三 首.wav" in capsys.readouterr().out


# --- Lyrics sources ---


def test_lrc_beside_the_song(songs):
    (songs / "one.lrc").write_bytes(LRC.encode("gbk"))
    assert run(songs, "--lyrics", "--only", "one") == 0
    written = texts(songs)
    assert written["one_lyrics.txt"] == (
        "[verse]\nHello morning\n\n[chorus]\nwe are free\n\n[verse]\nGoodbye\n\n[chorus]\nwe are free"
    )
    timed = parse_timed(written["one_lyrics.lrc"])
    assert [line for line in timed if line.seconds is not None] == [
        TimedLine(0.5, "Hello morning"),
        TimedLine(1.5, "we are free"),
        TimedLine(2.5, "Goodbye"),
        TimedLine(3.0, "we are free"),
    ]
    assert [line.text for line in timed] == written["one_lyrics.txt"].split("\n")
    assert "ti:" not in written["one_lyrics.lrc"]
    assert written["one.lrc"] == LRC


def test_structure_off(songs):
    (songs / "one.lrc").write_text(LRC, "utf-8-sig")
    assert run(songs, "--lyrics", "--structure", "off", "--only", "one") == 0
    assert texts(songs)["one_lyrics.txt"] == "Hello morning\nwe are free\nGoodbye\nwe are free"
    assert texts(songs)["one_lyrics.lrc"] == (
        "[00:00.50]Hello morning\n[00:01.50]we are free\n[00:02.50]Goodbye\n[00:03.00]we are free"
    )


def test_structure_that_is_there_stays(songs):
    (songs / "one.txt").write_text("[Verse 1]\nHello\n[Drop]\nHello", "utf-8")
    assert run(songs, "--lyrics", "--only", "one") == 0
    assert texts(songs)["one_lyrics.txt"] == "[verse]\nHello\n[inst]\nHello"
    assert not (songs / "one_lyrics.lrc").exists()


def embed(songs: Path) -> None:
    tags = ID3()
    tags.add(USLT(encoding=3, lang="eng", desc="", text="from the tag"))
    tags.save(songs / "one.mp3")
    file = mutagen.File(songs / "two.flac")
    file["LYRICS"] = "from the comment"
    file.save()


def test_sources_in_their_order_each_switchable(songs):
    embed(songs)
    (songs / "one.txt").write_text("from the file", "utf-8")
    assert run(songs, "--lyrics") == 0
    written = texts(songs)
    assert written["one_lyrics.txt"] == "[verse]\nfrom the file"
    assert written["two_lyrics.txt"] == "[verse]\nfrom the comment"
    assert written["三 首_lyrics.txt"] == "[instrumental]"
    for sources, expected in (("embedded", "[verse]\nfrom the tag"), ("model", "[instrumental]")):
        assert run(songs, "--lyrics", "--overwrite", "--only", "one", "--lyric_sources", sources) == 0
        assert texts(songs)["one_lyrics.txt"] == expected


def test_old_times_do_not_stay_beside_new_lyrics(songs):
    (songs / "one.lrc").write_text(LRC, "utf-8")
    assert run(songs, "--lyrics", "--only", "one") == 0
    (songs / "one.lrc").write_text("Quite another text", "utf-8")
    assert run(songs, "--lyrics", "--overwrite", "--only", "one") == 0
    written = texts(songs)
    assert written["one_lyrics.txt"] == "[verse]\nQuite another text"
    assert "one_lyrics.lrc" not in written
    assert any("[00:02.50]Goodbye" in text for text in kept_texts(songs))


def test_times_that_the_user_put_there_are_kept(songs):
    (songs / "one_lyrics.lrc").write_text(LRC, "utf-8")
    assert run(songs, "--lyrics", "--structure", "off", "--only", "one") == 0
    written = texts(songs)
    assert written["one_lyrics.txt"] == "Hello morning\nwe are free\nGoodbye\nwe are free"
    assert written["one_lyrics.lrc"] == LRC
    assert kept_texts(songs) == []


# --- Songs that fail, and wrong input ---


def test_a_song_that_fails_does_not_keep_the_others(songs, capsys):
    (songs / "broken.mp3").write_bytes(b"no audio at all" * 50)
    soundfile.write(songs / "silent.wav", np.zeros((4 * RATE, 2)), RATE)
    soundfile.write(songs / "short.wav", beats(seconds=0.3), RATE)
    assert run(songs, "--lyrics") == 1
    assert {name.split("_")[0] for name in texts(songs)} == {"one", "two", "三 首"}
    captured = capsys.readouterr()
    assert re.search(r"song 1/6 \| broken\.mp3 \| failed: .*broken\.mp3", captured.out)
    assert "| silent.wav | failed: The audio is silent" in captured.out
    assert "| short.wav | failed: The audio lasts 0.3 s" in captured.out
    assert "done 3, skipped 0, failed 3\n" in captured.out
    assert "error: No text was written for 3 of 6 songs: broken.mp3, short.wav, silent.wav." in captured.err
    assert "Traceback" not in captured.err


def test_an_unreadable_song_is_not_an_instrumental(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"no audio at all" * 50)
    (tmp_path / "song_prompt.txt").write_text("rock, pop", "utf-8")
    assert run(tmp_path, "--lyrics") == 1
    assert "song_lyrics.txt" not in texts(tmp_path)


def test_lyrics_in_no_known_encoding_fail_their_song_only(songs, capsys):
    (songs / "one.txt").write_bytes(b"\x81\xff\xff\x80\x80\xff\xfe\x81\xff" * 3)
    assert run(songs, "--lyrics") == 1
    assert not any(name.startswith("one_") for name in texts(songs))
    assert (songs / "two_lyrics.txt").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions bind no administrator")
def test_lyrics_that_may_not_be_read_fail_their_song_only(songs, capsys):
    (songs / "one.lrc").write_text(LRC, "utf-8")
    (songs / "one.lrc").chmod(0)
    assert run(songs, "--lyrics") == 1
    (songs / "one.lrc").chmod(0o644)
    assert re.search(r"one\.mp3 \| failed: '.*one\.lrc' cannot be read \(Permission denied\)", capsys.readouterr().out)
    assert {name.split("_")[0] for name in texts(songs)} == {"one.lrc", "two", "三 首"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions bind no administrator")
def test_a_folder_that_may_not_be_written(songs, capsys):
    (songs / "one_prompt.txt").write_text("my own, tags", "utf-8")
    songs.chmod(0o555)
    try:
        assert run(songs) == 2
        assert re.search(r"error: Nothing can be written in '.*' \(Permission denied\)", capsys.readouterr().err)
        assert run(songs, "--only", "one") == 0
    finally:
        songs.chmod(0o755)


def test_tags_of_broken_bytes_are_said_and_passed_over(songs, capsys):
    soundfile.write(songs / "damaged.ogg", beats(), RATE)
    data = (songs / "damaged.ogg").read_bytes()
    (songs / "damaged.ogg").write_bytes(data[: data.index(b"\x03vorbis") + 20])
    assert run(songs, "--lyrics") == 1
    captured = capsys.readouterr()
    assert "damaged.ogg: The tags embedded in 'damaged.ogg' cannot be read" in captured.out
    assert "done 3, skipped 0, failed 1\n" in captured.out
    assert ".." not in captured.out
    assert "Traceback" not in captured.err


def test_a_text_that_appears_meanwhile_stays(songs, capsys, monkeypatch):
    """The user writes it by hand, or a second run does, while the song is listened to."""
    import generate_prompts_lyrics

    describe = generate_prompts_lyrics.describe

    def slow(task, *arguments):
        found = describe(task, *arguments)
        task.song.prompt.write_text("my own, tags", "utf-8")
        task.song.lyrics.write_text("my own words", "utf-8")
        (songs / "two_prompt.txt").write_text("tags, of two", "utf-8")
        return found

    monkeypatch.setattr(generate_prompts_lyrics, "describe", slow)
    (songs / "one.lrc").write_text(LRC, "utf-8")
    assert run(songs, "--lyrics", "--only", "one") == 0
    assert texts(songs) == {
        "one.lrc": LRC,
        "one_prompt.txt": "my own, tags",
        "one_lyrics.txt": "my own words",
        "two_prompt.txt": "tags, of two",
    }
    assert "one.mp3: 'one_prompt.txt' has been written by somebody else meanwhile" in capsys.readouterr().out
    (songs / "two_prompt.txt").unlink()
    (songs / "one_prompt.txt").unlink()
    capsys.readouterr()
    assert run(songs, "--only", "one", "two") == 0
    assert "song 2/2 | two.flac | skipped\n" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="closes streams with a POSIX shell")
def test_without_streams(songs):
    command = f"'{sys.executable}' generate_prompts_lyrics.py --backend analysis --data_dir '{songs}' --only two"
    assert subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], cwd=ROOT).returncode == 0
    assert set(texts(songs)) == {"two_prompt.txt"}


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["--only", "four", "five.mp3"], [r"--only names 'four', 'five\.mp3'"]),
        (["--lyric_sources", "file,web,ocr"], [r"--lyric_sources holds 'ocr', 'web'; known are file, embedded, model"]),
        (["--language", "sv"], [r"--language 'sv' is not one that ACE-Step's lyrics know"]),
        (["--lyric_sources", " ,"], [r"--lyric_sources holds none"]),
        (["--lyric_encoding", "chinese2"], [r"--lyric_encoding 'chinese2' is no encoding that Python knows"]),
        (["--accept_found"], [r"--accept_found is about lyrics of a service\. Name it with --lyrics_source"]),
        (["--lyrics_source", "lrclib", "--lyrics_address", "x"], [r"--lyrics_address 'x' is no address of the web"]),
        (["--port", "0", "--timeout", "-1"], [r"--port 0 is no port", r"--timeout -1\.0 must be more than 0"]),
        (["--timeout", "inf", "--seed", "-1"], [r"--seed -1 is no seed", r"--timeout inf must be .* at most 86400"]),
        (["--seed", "9" * 30], [r"--seed 9{30} is no seed"]),
        (["--host", "http://127.0.0.1"], [r"--host 'http://127\.0\.0\.1' is no host name"]),
        (["--host", "a..b"], [r"--host 'a\.\.b' is no host name"]),
        (["--host", ""], [r"--host '' is no host name"]),
        (["--backend", "qwen", "--model", "./no/such/folder"], [r"--model '\./no/such/folder' is no folder"]),
        (
            ["--backend", "qwen", "--model", "ACE-Step/acestep-transcriber"],
            [r"writes lyrics and no tags\. Add --lyrics"],
        ),
        (
            ["--only", "four", "--language", "xx", "--backend", "qwen", "--model", "C:\\models\\qwen"],
            [r"--only", r"--language", r"--model"],
        ),
    ],
)
def test_wrong_input(songs, capsys, arguments, problems):
    assert run(songs, *arguments) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert re.match(f"error: .*{problem}", line)
    assert texts(songs) == {}


def test_wrong_folders(tmp_path, songs, capsys):
    assert run(tmp_path / "missing") == 2
    assert "missing' is not a folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 2
    assert "No audio in" in capsys.readouterr().err
    shutil.copy(songs / "one.mp3", songs / "One.wav")
    assert run(songs) == 2
    assert "'One.wav', 'one.mp3' would share 'One_prompt.txt'" in capsys.readouterr().err
    assert run(songs, "--only", "two", "三 首") == 0


def test_auto_without_a_card_is_analysis_and_says_so(songs, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert run(songs, "--only", "two", backend=None) == 0
    assert "--backend auto: analysis, because there is no CUDA device." in capsys.readouterr().out


@pytest.mark.parametrize("script", ["generate_prompts_lyrics.py", "generate_prompts_lyrics_llamacpp.py"])
def test_help_imports_nothing_heavy(script):
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'librosa', 'mutagen', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert "--data_dir" in result.stdout
    assert result.stdout.endswith("[]\n"), result.stdout + result.stderr


def test_parse_args_of_the_llamacpp_command():
    from generate_prompts_lyrics_llamacpp import parse_args as parse_llamacpp_args

    args = parse_llamacpp_args(["--data_dir", "x"])
    assert (args.backend, args.host, args.port) == ("llamacpp", "127.0.0.1", 8080)
    assert parse_args(["--data_dir", "x"]).backend == "auto"


def test_interrupted(songs):
    """Ctrl+C ends with 130; what is finished stays and nothing is half written."""
    if os.name != "posix":
        pytest.skip("sends SIGINT")
    import signal

    # The first line comes before the first song, the models of the measurements are loaded behind it.
    process = subprocess.Popen(
        [sys.executable, "generate_prompts_lyrics.py", "--data_dir", str(songs), "--lyrics"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert "--backend auto" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. Run the same command again to go on." in errors
    assert not any(name.startswith(".tmp-") for name in texts(songs))


# --- The qwen backend ---


@pytest.fixture(scope="session")
def thinker(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_thinker(folder)
    return folder


@pytest.fixture
def short_lyrics(monkeypatch):
    """A random model's lyrics would go on to the limit, for many seconds."""
    monkeypatch.setattr("ace_lora.captions.caption.MAX_LYRIC_TOKENS", 300)


def outcome_of(folder: Path, status: int, out: str, songs: int, lyrics: bool) -> None:
    """Files, lines and exit status of a run with a random model must tell the same story."""
    written = texts(folder)
    failed = re.findall(r"^song \d+/\d+ \| (.+?)\.\w+ \| failed: no usable answer in 4 attempts", out, re.MULTILINE)
    done = re.findall(r"^song \d+/\d+ \| (.+?)\.\w+ \| done: (.+)$", out, re.MULTILINE)
    assert len(done) + len(failed) == songs
    assert status == (1 if failed else 0)
    kinds = ("prompt", "lyrics") if lyrics else ("prompt",)
    assert set(written) == {f"{stem}_{kind}.txt" for stem, _ in done for kind in kinds}
    for stem, shown in done:
        tags = split_tags(written[f"{stem}_prompt.txt"])
        assert ", ".join(tags) == shown == written[f"{stem}_prompt.txt"]
        assert len(tags) >= 2
        assert tags == sorted(set(tags))
        assert all(tag == tag.lower() for tag in tags)
        if lyrics:
            assert written[f"{stem}_lyrics.txt"].strip()


@pytest.mark.parametrize(
    ("quantization", "seed", "flags"),
    [("none", "0", ["--lyrics", "--bpm"]), ("nf4", "0", [])],
)
def test_a_random_model_gives_real_files_or_failed_songs(
    songs, thinker, short_lyrics, capsys, quantization, seed, flags
):
    options = ("--model", str(thinker), "--device", "cpu", "--quantization", quantization, "--seed", seed)
    status = run(songs, *flags, *options, "--only", "one", "三 首", backend="qwen")
    outcome_of(songs, status, capsys.readouterr().out, songs=2, lyrics="--lyrics" in flags)


def test_step_3_after_step_2_asks_for_lyrics_only(songs, thinker, short_lyrics, monkeypatch):
    from ace_lora.captions.caption import Caption
    from ace_lora.captions.qwen import QwenCaptioner

    asked = []

    def ask(self, samples, **wanted):
        asked.append((wanted["tags"], wanted["lyrics"], len(samples)))
        return Caption(("pop", "rock"), True) if wanted["tags"] else Caption((), True, ("Hello morning",))

    monkeypatch.setattr(QwenCaptioner, "ask", ask)
    options = ("--model", str(thinker), "--device", "cpu", "--only", "two")
    assert run(songs, *options, backend="qwen") == 0
    prompt = texts(songs)["two_prompt.txt"]
    assert run(songs, *options, "--lyrics", backend="qwen") == 0
    assert {wanted[:2] for wanted in asked[:1]} == {(True, False)}
    assert {wanted[:2] for wanted in asked} == {(True, False), (False, True)}
    assert {length for *_, length in asked} == {6 * 16000}
    assert texts(songs)["two_prompt.txt"] == prompt


def test_the_model_is_not_loaded_for_lyrics_that_are_there(songs, thinker, capsys):
    embed(songs)
    (songs / "one_prompt.txt").write_text("a, b", "utf-8")
    assert run(songs, "--lyrics", "--only", "one", "--model", str(thinker), backend="qwen") == 0
    assert "Loading" not in capsys.readouterr().out
    assert texts(songs)["one_lyrics.txt"] == "[verse]\nfrom the tag"


def test_a_long_song_is_captioned_in_parts(tmp_path, thinker, capsys, monkeypatch):
    from ace_lora.captions.caption import Caption
    from ace_lora.captions.qwen import QwenCaptioner

    soundfile.write(tmp_path / "long.wav", np.tile(beats(seconds=10)[:, 0], 61)[:: RATE // 8000], 8000)
    seconds = soundfile.info(tmp_path / "long.wav").duration
    heard = []

    def ask(self, samples, **wanted):
        heard.append(len(samples) / 16000)
        return Caption((f"tag {len(heard)}", "rock"), True, (f"line {len(heard)}",))

    monkeypatch.setattr(QwenCaptioner, "ask", ask)
    assert (
        run(tmp_path, "--lyrics", "--model", str(thinker), "--device", "cpu", "--language", "en", backend="qwen") == 0
    )
    assert len(heard) == 3
    assert max(heard) <= 300
    assert sum(heard) == pytest.approx(seconds, abs=0.01)
    assert texts(tmp_path) == {
        "long_prompt.txt": "rock, tag 1, tag 2, tag 3",
        "long_lyrics.txt": "[verse]\nline 1\nline 2\nline 3",
    }
    out = capsys.readouterr().out
    assert "is more than the 300 s that the model hears at once: captioned in 3 parts." in out
    assert "of which training uses the first 360 s" in out


def test_silent_parts_are_not_described(tmp_path, thinker, monkeypatch):
    """A model would make up tags and lyrics for the silence before a hidden track."""
    from ace_lora.captions.caption import Caption
    from ace_lora.captions.qwen import QwenCaptioner

    song = beats(seconds=10)[:: RATE // 8000, 0]
    soundfile.write(tmp_path / "hidden.wav", np.concatenate([song, np.zeros(620 * 8000), song]), 8000)
    heard = []

    def ask(self, samples, **wanted):
        heard.append(float(np.abs(samples).max()))
        return Caption(("pop", "rock"), False, ())

    monkeypatch.setattr(QwenCaptioner, "ask", ask)
    assert run(tmp_path, "--model", str(thinker), "--device", "cpu", backend="qwen") == 0
    assert len(heard) == 2
    assert min(heard) > 0.1


def test_a_model_that_cannot_be_loaded_ends_the_run(songs, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    started = time.monotonic()
    result = subprocess.run(
        [
            sys.executable,
            "generate_prompts_lyrics.py",
            "--data_dir",
            str(songs),
            "--backend",
            "qwen",
            "--device",
            "cpu",
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=environment,
    )
    assert result.returncode == 1
    assert "error: The model 'Qwen/Qwen2.5-Omni-7B' cannot be loaded: it is not in the download cache" in result.stderr
    assert "--backend analysis" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - started < 100  # no attempt to reach the hub, which is retried for minutes
    assert texts(songs) == {}


def test_a_broken_checkpoint_ends_the_run(songs, thinker, tmp_path, capsys):
    broken = shutil.copytree(thinker, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    assert run(songs, "--model", str(broken), "--device", "cpu", backend="qwen") == 1
    captured = capsys.readouterr()
    assert "cannot be loaded" in captured.err
    assert "Traceback" not in captured.err
    assert texts(songs) == {}


def test_the_transcriber_gives_lyrics_and_measured_tags(songs, thinker, tmp_path, capsys, monkeypatch):
    from ace_lora.captions.qwen import QwenCaptioner

    questions = []

    def generate(self, samples, question, attempt, *, limit, schema=None):
        questions.append((question, schema))
        return "# Languages\nen\n# Lyrics\n[Verse 1]\nHello morning\n[Chorus]\nwe are free"

    monkeypatch.setattr(QwenCaptioner, "_generate", generate)
    model = shutil.copytree(thinker, tmp_path / "acestep-transcriber")
    options = ("--model", str(model), "--device", "cpu", "--only", "one")
    assert run(songs, "--lyrics", *options, backend="qwen") == 0
    assert questions == [("*Task* Transcribe this audio in detail", None)]
    assert texts(songs)["one_lyrics.txt"] == "[verse]\nHello morning\n[chorus]\nwe are free"
    assert "wide dynamics" in split_tags(texts(songs)["one_prompt.txt"])
    assert "this model gives no tags: measured ones are taken" in capsys.readouterr().out


def test_the_captioner_gives_tags_and_knows_instrumentals(songs, thinker, tmp_path, capsys, monkeypatch):
    from ace_lora.captions.qwen import QwenCaptioner

    replies = ["A calm piano piece. There are no vocals.", "A rock song with a raspy male vocal and drums."]
    monkeypatch.setattr(QwenCaptioner, "_generate", lambda self, *a, **k: replies.pop(0))
    model = shutil.copytree(thinker, tmp_path / "acestep-captioner")
    options = ("--model", str(model), "--device", "cpu", "--only", "one", "two")
    assert run(songs, "--lyrics", *options, backend="qwen") == 1
    assert texts(songs) == {"one_prompt.txt": "calm, piano", "one_lyrics.txt": "[instrumental]"}
    assert "two.flac | failed: the captioner hears a voice and cannot write down lyrics" in capsys.readouterr().out
