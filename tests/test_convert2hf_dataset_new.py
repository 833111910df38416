"""Step 4 on real folders: the golden table, what is reported, and what is never overwritten."""

import io
import json
import subprocess
import sys
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
import soundfile

import convert2hf_dataset_new as convert
from ace_lora.commands import WrongInput, run_script
from ace_lora.songs import SongFiles, scan_songs

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "tests/golden/audio/convert.json").read_text(encoding="utf-8"))


def audio_bytes(extension: str, seconds: float = 0.5) -> bytes:
    """A short tone in the container of the extension."""
    rate = 44100
    tone = (0.3 * np.sin(np.arange(int(rate * seconds)) * 0.05)).astype(np.float32)
    buffer = io.BytesIO()
    if extension in (".aac", ".m4a"):
        with av.open(buffer, "w", format="adts" if extension == ".aac" else "ipod") as container:
            stream = container.add_stream("aac", rate=rate)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    else:
        formats = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG"}
        soundfile.write(buffer, tone, rate, format=formats[extension])
    return buffer.getvalue()


@pytest.fixture
def golden_folder(tmp_path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    for name, text in GOLDEN["files"].items():
        if text is not None:
            (folder / name).write_bytes(text.encode("utf-8"))
        elif Path(name).suffix.lower() in (".wav", ".flac", ".mp3", ".ogg", ".aac", ".m4a"):
            (folder / name).write_bytes(audio_bytes(Path(name).suffix.lower()))
        elif name != "f.opus":  # not in the table: the reference does not know .opus
            (folder / name).touch()
    return folder


def expected_rows(folder: Path | str) -> list[dict]:
    """The golden rows, but for what is documented to differ: empty tags and byte-order marks are dropped."""
    rows = json.loads(json.dumps(GOLDEN["rows"]))
    for row in rows:
        row["filename"] = f"{folder}/{row['filename']}" if folder else row["filename"]
        row["tags"] = [tag for tag in row["tags"] if tag] or [""]
        row["norm_lyrics"] = row["norm_lyrics"].removeprefix("\ufeff")
    return rows


def run(*arguments: str | Path) -> int:
    return run_script(convert.main, convert.parse_args([str(argument) for argument in arguments]))


def test_golden_rows_in_order(golden_folder):
    rows = [convert.song_row(song, str(golden_folder), GOLDEN["default_tag"])[0] for song in scan_songs(golden_folder)]
    assert [Path(row["filename"]).as_posix() for row in rows] == [
        row["filename"] for row in expected_rows(golden_folder.as_posix())
    ]
    for row, expected in zip(rows, expected_rows(""), strict=True):
        assert {**row, "filename": Path(row["filename"]).name} == expected


def test_golden_dataset_on_disk(golden_folder, capsys):
    (golden_folder / "dup.wav").unlink()
    output = golden_folder.parent / "songs_filenames"
    assert run("--data_dir", golden_folder, "--output_name", output, "--default_tag", GOLDEN["default_tag"]) == 0
    assert sorted(path.name for path in golden_folder.parent.iterdir()) == ["songs", "songs_filenames"]
    dataset = datasets.load_from_disk(output)
    assert str(dataset.features) == GOLDEN["features"]
    assert dataset.column_names == GOLDEN["columns"]
    rows = [row for row in expected_rows("") if row["filename"] != "dup.wav"]
    assert [{**row, "filename": Path(row["filename"]).name} for row in dataset] == rows

    lines = capsys.readouterr().out.splitlines()
    assert "song 1/8 | A2.flac | done" in lines and "done 8, skipped 0, failed 0" in lines
    assert "warning: a.WAV: the prompt is empty (a_prompt.txt holds no tag); write tags into it" in lines
    assert "warning: e.aac: e_lyrics.txt is missing, taken as [instrumental]" in lines
    assert any(line.startswith("warning: c.ogg: the lyrics are empty") for line in lines)


def test_the_folder_is_joined_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Taudio/我的 歌").mkdir(parents=True)
    Path("Taudio/我的 歌/夜曲.flac").write_bytes(audio_bytes(".flac"))
    assert run("--data_dir", "Taudio/我的 歌", "--output_name", "Taudio/我的 歌_filenames") == 0
    (row,) = datasets.load_from_disk("Taudio/我的 歌_filenames")
    assert Path(row["filename"]) == Path("Taudio/我的 歌/夜曲.flac") and row["keys"] == "夜曲"


def test_all_problems_at_once_and_nothing_written(tmp_path, capsys):
    folder = tmp_path / "songs"
    folder.mkdir()
    (folder / "good.wav").write_bytes(audio_bytes(".wav"))
    (folder / "empty.mp3").touch()
    (folder / "text.flac").write_text("this is no audio", encoding="utf-8")
    for name in ("twice.wav", "Twice.flac"):
        (folder / name).write_bytes(audio_bytes(Path(name).suffix))
    (folder / "gbk.wav").write_bytes(audio_bytes(".wav"))
    (folder / "gbk_prompt.txt").write_bytes(b"\x81\xff\xff\x80\x80\xff\xfe\x81\xff" * 3)
    output = tmp_path / "out"
    assert run("--data_dir", folder, "--output_name", output) == 2
    assert not output.exists() and [path.name for path in tmp_path.iterdir()] == ["songs"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert "'Twice.flac' and 'twice.wav' have the same name" in errors[0]
    assert "empty.mp3" in errors[1] and "empty" in errors[1]
    assert "gbk_prompt.txt' is neither UTF-8 nor gb18030" in errors[2]
    assert "text.flac" in errors[3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "gbk", "utf-8-sig"])
def test_texts_of_other_encodings_are_read(tmp_path, capsys, encoding):
    folder = tmp_path / "songs"
    folder.mkdir()
    (folder / "a.wav").write_bytes(audio_bytes(".wav"))
    (folder / "a_prompt.txt").write_bytes("民谣, 吉他, 女声".encode(encoding))
    (folder / "a_lyrics.txt").write_bytes("灯火在河面慢慢散开\r\n我把名字写进风里来\r\n".encode(encoding))
    assert run("--data_dir", folder, "--output_name", tmp_path / "out") == 0
    row = datasets.load_from_disk(str(tmp_path / "out"))[0]
    assert row["tags"] == ["民谣", "吉他", "女声"]
    assert row["norm_lyrics"] == "灯火在河面慢慢散开\n我把名字写进风里来"
    guessed = "a_lyrics.txt is not Unicode; read as gb18030, which is a guess, it says '灯火在河面慢慢散开"
    assert (guessed in capsys.readouterr().out) == (encoding == "gbk")


def test_no_songs_and_no_folder(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert run("--data_dir", tmp_path, "--output_name", tmp_path / "out") == 2
    assert run("--data_dir", tmp_path / "gone", "--output_name", tmp_path / "out") == 2
    assert run("--data_dir", tmp_path / "notes.txt", "--output_name", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "No audio in" in errors and "does not exist" in errors and "is a file" in errors
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_this_step_is_replaced(tmp_path):
    folder, output = tmp_path / "songs", tmp_path / "out"
    folder.mkdir()
    (folder / "a.wav").write_bytes(audio_bytes(".wav"))
    assert run("--data_dir", folder, "--output_name", output, "--default_tag", "rock") == 0
    (folder / "b.wav").write_bytes(audio_bytes(".wav"))
    (tmp_path / ".tmp-out-killed").mkdir()
    assert run("--data_dir", folder, "--output_name", output, "--default_tag", "jazz, slow") == 0
    dataset = datasets.load_from_disk(output)
    assert dataset["keys"][:] == ["a", "b"] and dataset["tags"][0] == ["jazz", "slow"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "songs"]


@pytest.mark.parametrize("kind", ["file", "folder with a song", "dataset with other columns", "dataset with notes"])
def test_anything_else_at_the_output_is_not_touched(tmp_path, kind, capsys):
    folder, output = tmp_path / "songs", tmp_path / "out"
    folder.mkdir()
    (folder / "a.wav").write_bytes(audio_bytes(".wav"))
    if kind == "file":
        output.write_text("mine", encoding="utf-8")
    elif kind == "folder with a song":
        output.mkdir()
        (output / "song.mp3").touch()
    elif kind == "dataset with other columns":
        datasets.Dataset.from_list([{"text": "mine"}]).save_to_disk(output)
    else:
        assert run("--data_dir", folder, "--output_name", output) == 0
        (output / "notes.txt").touch()
    before = snapshot(tmp_path)
    assert run("--data_dir", folder, "--output_name", output) == 2
    assert snapshot(tmp_path) == before
    assert f"--output_name '{output}' is a " in capsys.readouterr().err


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_folder_can_be_written_to(tmp_path):
    folder, output = tmp_path / "songs", tmp_path / "deep" / "out"
    folder.mkdir()
    output.mkdir(parents=True)
    (folder / "a.opus").write_bytes(audio_bytes(".ogg"))
    assert run("--data_dir", folder, "--output_name", output) == 0
    assert datasets.load_from_disk(output)["keys"][:] == ["a"]


def test_timed_lyrics_alone_are_mentioned(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "a_lyrics.lrc").write_text("[00:01.00]la", encoding="utf-8")
    row, remarks = convert.song_row(SongFiles(tmp_path / "a.wav"), "x", "pop")
    assert row["norm_lyrics"] == "[instrumental]"
    assert remarks == ["a_lyrics.txt is missing, taken as [instrumental]; a_lyrics.lrc alone is not used"]


def test_texts_that_cannot_be_read(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "a_lyrics.txt").mkdir()
    with pytest.raises(WrongInput, match=r"a_lyrics\.txt' cannot be read"):
        convert.song_row(SongFiles(tmp_path / "a.wav"), "x", "pop")


def test_files_that_end_too_early_are_said_and_used(tmp_path, capsys):
    folder = tmp_path / "songs"
    folder.mkdir()
    whole = audio_bytes(".wav", 2)
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.wav").write_bytes(whole)
    assert run("--data_dir", folder, "--output_name", tmp_path / "out") == 0
    out = capsys.readouterr().out
    words = f"warning: cut.wav: '{folder / 'cut.wav'}' ends after 1.0 s, its header states 2.0 s."
    assert words in out and "whole.wav: '" not in out


def test_a_flac_without_samples_stops_the_step(tmp_path, capsys):
    folder = tmp_path / "songs"
    folder.mkdir()
    content = audio_bytes(".flac")
    (folder / "a.flac").write_bytes(content[: content.index(b"\xff\xf8")])
    assert run("--data_dir", folder, "--output_name", tmp_path / "out") == 2
    assert "a.flac' cannot be decoded (FFmpeg: it holds no audio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_music_that_is_not_used_is_named(tmp_path, capsys):
    folder = tmp_path / "songs"
    (folder / "CD1").mkdir(parents=True)
    (folder / "CD1" / "b.mp3").touch()
    assert run("--data_dir", folder, "--output_name", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "No audio in" in errors and "'CD1' is a subfolder with 1 song ('CD1/b.mp3' first)" in errors
    (folder / "a.wav").write_bytes(audio_bytes(".wav"))
    assert run("--data_dir", folder, "--output_name", tmp_path / "out") == 0
    assert "warning: 'CD1' is a subfolder with 1 song" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le"])
def test_unicode_texts_are_read(tmp_path, encoding):
    (tmp_path / "a.wav").touch()
    (tmp_path / "a_prompt.txt").write_bytes("民谣, guitar".encode(encoding))
    (tmp_path / "a_lyrics.txt").write_bytes("[verse]\r\n天亮了\r\n".encode(encoding))
    row, remarks = convert.song_row(SongFiles(tmp_path / "a.wav"), "x", "pop")
    assert (row["tags"], row["norm_lyrics"], remarks) == (["民谣", "guitar"], "[verse]\n天亮了", [])


def test_an_encoding_that_is_a_guess_is_asked_about_and_can_be_named(tmp_path, capsys):
    folder = tmp_path / "songs"
    folder.mkdir()
    (folder / "a.wav").write_bytes(audio_bytes(".wav"))
    (folder / "a_lyrics.txt").write_bytes("我们一起走过的路\n天亮了".encode("gbk"))
    arguments = ("--data_dir", folder, "--output_name", tmp_path / "out")
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert "read as gb18030, which is a guess, it says '我们一起走过的路" in said and "--text_encoding" in said
    assert run(*arguments, "--text_encoding", "gb18030") == 0
    assert "guess" not in capsys.readouterr().out
    assert datasets.load_from_disk(tmp_path / "out")["norm_lyrics"][:] == ["我们一起走过的路\n天亮了"]
    assert run(*arguments, "--text_encoding", "no-such-code") == 2
    assert "no-such-code" in capsys.readouterr().err


def test_what_a_killed_run_left_is_removed_but_not_a_file_of_the_users(tmp_path):
    folder, output = tmp_path / "songs", tmp_path / "out"
    folder.mkdir()
    (folder / "a.wav").write_bytes(audio_bytes(".wav"))
    left = tmp_path / ".tmp-out-killed"
    (left / "out").mkdir(parents=True)
    (left / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("--data_dir", folder, "--output_name", output) == 0
    (kept,) = tmp_path.glob(".removed/*/.tmp-out-killed/out/notes.txt")
    assert kept.read_text(encoding="utf-8") == "mine"


def test_help_needs_nothing_heavy():
    code = "import sys, convert2hf_dataset_new as c; c.parse_args(['--data_dir','a','--output_name','b']);"
    code += "print([m for m in ('torch', 'numpy', 'datasets', 'soundfile') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    bad = subprocess.run([sys.executable, ROOT / "convert2hf_dataset_new.py"], capture_output=True, text=True)
    assert bad.returncode == 2 and "--data_dir" in bad.stderr
