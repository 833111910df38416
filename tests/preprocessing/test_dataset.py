"""The dataset of step 4, read back with what lies beside the songs."""

import os
from pathlib import Path

import datasets
import pytest

from ace_lora.commands import WrongInput
from ace_lora.preprocessing.dataset import DatasetSong, choose_prompt, read_dataset


def row(path, **changes) -> dict:
    return {
        "keys": path.stem,
        "filename": str(path),
        "tags": ["rock", "slow"],
        "speaker_emb_path": "",
        "norm_lyrics": "la",
        "recaption": {},
        **changes,
    }


def save(rows, folder):
    text = datasets.Value("string")
    features = {name: text for name in ("keys", "filename", "speaker_emb_path", "norm_lyrics")}
    features |= {"tags": [text], "recaption": {name: text for name in rows[0]["recaption"]}}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(folder)
    return str(folder)


def test_songs_in_order_with_timed_lyrics(tmp_path):
    first, second = tmp_path / "b.mp3", tmp_path / "夜.flac"
    (tmp_path / "b_lyrics.lrc").write_text("\ufeff[00:01.00]la\n", encoding="utf-8")
    name = save([row(first), row(second, tags=["", "jazz", ""], norm_lyrics="\ufeffla")], tmp_path / "data")
    assert read_dataset(name) == [
        DatasetSong("b", first, "rock, slow", "la", "[00:01.00]la"),
        DatasetSong("夜", second, "jazz", "la", ""),
    ]


def test_texts_that_changed_since_are_remarked(tmp_path):
    song = tmp_path / "a.mp3"
    (tmp_path / "a_prompt.txt").write_text("rock,slow\n", encoding="utf-8")
    (tmp_path / "a_lyrics.txt").write_text("la\n", encoding="utf-8")
    name = save([row(song)], tmp_path / "data")
    assert read_dataset(name)[0].remarks == ()
    (tmp_path / "a_prompt.txt").write_text("rock, fast", encoding="utf-8")
    (tmp_path / "a_lyrics.txt").write_text("lalala", encoding="utf-8")
    (tmp_path / "a_lyrics.lrc").write_bytes(b"\x81\xff\xff\x80\x80\xff\xfe\x81\xff" * 3)
    remarks = read_dataset(name)[0].remarks
    assert [remark.split(" ")[0] for remark in remarks] == ["a_prompt.txt", "a_lyrics.txt", "a_lyrics.lrc"]


def test_captions_of_other_tools_take_turns_with_the_tags(tmp_path):
    captions = {"short": "A rock song.", "empty": "", "none": None}
    drawn = {choose_prompt(f"song {number}", ["rock", "slow"], captions) for number in range(50)}
    assert drawn == {"rock, slow", "A rock song."}
    assert choose_prompt("x", ["rock"], captions) == choose_prompt("x", ["rock"], captions)
    assert choose_prompt("x", ["rock", "slow"], {}) == choose_prompt("x", ["rock", "slow"], None) == "rock, slow"
    name = save([row(tmp_path / "a.mp3", recaption=captions)], tmp_path / "data")
    assert read_dataset(name)[0].prompt in drawn


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(tmp_path / "other")
    for name, message in [
        ("gone", "does not exist"),
        ("file", "is a file"),
        ("folder", "cannot be read as a dataset"),
        ("other", "has no column filename, keys, norm_lyrics, tags"),
    ]:
        with pytest.raises(WrongInput, match=message):
            read_dataset(str(tmp_path / name))


def test_rows_that_cannot_be_used_are_listed_together(tmp_path):
    rows = [
        row(tmp_path / "a.mp3"),
        row(tmp_path / "A.wav"),
        row(tmp_path / "b.mp3", keys="../b"),
        row(tmp_path / "c.mp3", keys=None),
        row(tmp_path / "d.mp3", tags=None),
        row(tmp_path / "e.mp3", keys=".e"),
    ]
    with pytest.raises(WrongInput) as caught:
        read_dataset(save(rows, tmp_path / "data"))
    problems = caught.value.problems
    assert [problem.split(" of the dataset")[0] for problem in problems[:4]] == ["Row 3", "Row 4", "Row 5", "Row 6"]
    assert "would share one record" in problems[4] and "A.wav" in problems[4]
    assert len(problems) == 5


def good_folder(path: Path, **cells) -> Path:
    row = {"keys": "a", "filename": "a.wav", "tags": ["pop"], "norm_lyrics": "la", **cells}
    datasets.Dataset.from_list([row]).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", b"[" * 100_000, "nested too deeply"),
        ("state.json", b"{}", "its state.json is damaged"),
        ("state.json", b'{"_data_files": 7}', "its state.json is damaged"),
        ("state.json", b'{"_data_files": [{"filename": "../secret.arrow"}]}', "names files elsewhere"),
        ("state.json", b'{"_data_files": [{"filename": "gone.arrow"}]}', "No such file"),
        ("dataset_info.json", b'{"features": ' + b"[" * 5000, "nested too deeply"),
        ("dataset_info.json", None, "No such file"),
        ("data-00000-of-00001.arrow", b"no arrow", "cannot be read as a dataset"),
    ],
)
def test_folders_of_strangers_are_refused(tmp_path, file, content, message):
    folder = good_folder(tmp_path / "data")
    assert read_dataset(str(folder))[0].keys == "a"
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(WrongInput, match=message):
        read_dataset(str(folder))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_a_pipe_in_a_dataset_is_not_waited_for(tmp_path):
    folder = good_folder(tmp_path / "data")
    (folder / "data-00000-of-00001.arrow").unlink()
    os.mkfifo(folder / "data-00000-of-00001.arrow")
    with pytest.raises(WrongInput, match="is no file of a dataset"):
        read_dataset(str(folder))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"norm_lyrics": "la" * 600_000}, "texts are longer than 1,000,000 letters"),
        ({"filename": "a\0.wav"}, "control characters"),
        ({"keys": "a\nb"}, "control characters"),
        ({"keys": "长" * 100}, "too long for the name of a record file"),
        ({"keys": "../a"}, "cannot be the name of a record file"),
    ],
)
def test_rows_that_no_record_could_have_are_refused(tmp_path, cells, message):
    with pytest.raises(WrongInput, match=message):
        read_dataset(str(good_folder(tmp_path / "data", **cells)))
