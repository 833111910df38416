"""The files that belong to a song."""

from __future__ import annotations

import os

from ace_lora.songs import SongFiles, overlooked_music, scan_songs, songs_with_equal_stem, split_tags


def test_scan_finds_audio_of_this_folder_in_code_point_order(tmp_path):
    for name in (
        "b.MP3",
        "A2.wav",
        "a.flac",
        "10.ogg",
        "9.opus",
        "晴 天.m4a",
        "x.aac",
        "._b.mp3",
        "notes.txt",
        "b.mp4",
    ):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp3").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.mp3").touch()
    names = [song.audio.name for song in scan_songs(tmp_path)]
    assert names == ["10.ogg", "9.opus", "A2.wav", "a.flac", "b.MP3", "x.aac", "晴 天.m4a"]


def test_music_that_is_not_used_is_named(tmp_path):
    folder = tmp_path / "歌"
    (folder / "CD1" / "deep").mkdir(parents=True)
    (folder / "covers").mkdir()
    (folder / ".removed").mkdir()
    for name in ("a.wma", "b.M4B", "c.aif", "CD1/deep/x.mp3", "CD1/y.flac", "covers/front.jpg", ".removed/z.mp3"):
        (folder / name).touch()
    for name in ("film.mp4", "晴天.ncm", "notes.txt", "._d.mp3"):
        (folder / name).touch()
    (folder / "folder.mp3").mkdir()
    if os.name == "posix":
        (folder / "gone.mp3").symlink_to(tmp_path / "nowhere.mp3")
        os.mkfifo(folder / "pipe.wav")
    assert [song.audio.name for song in scan_songs(folder)] == ["a.wma", "b.M4B", "c.aif"]
    said = overlooked_music(folder)
    assert said[0] == (
        "'CD1' is a subfolder with 2 songs ('CD1/y.flac' first), which are not used. "
        "Move them into the folder itself, or give the subfolder as the folder of songs."
    )
    assert said[1].startswith("'film.mp4' is not used: files of the kind .mp4 are not read. Save it as .flac or .mp3.")
    named = ["CD1", "film.mp4", *(["gone.mp3", "pipe.wav"] if os.name == "posix" else []), "晴天.ncm"]
    assert [sentence.split("'")[1] for sentence in said] == named
    if os.name == "posix":
        assert said[2].startswith("'gone.mp3' is a link to a file that is not there")
        assert said[3].startswith("'pipe.wav' is no file")


def test_texts_beside_a_song_keep_all_but_the_last_extension(tmp_path):
    song = SongFiles(tmp_path / "Two.dots.mp3")
    assert song.stem == "Two.dots"
    assert [path.name for path in (song.prompt, song.lyrics, song.timed_lyrics)] == [
        "Two.dots_prompt.txt",
        "Two.dots_lyrics.txt",
        "Two.dots_lyrics.lrc",
    ]


def test_equal_stems_are_found_whatever_their_case(tmp_path):
    songs = [SongFiles(tmp_path / name) for name in ("Dup.mp3", "dup.wav", "other.mp3")]
    assert songs_with_equal_stem(songs) == {"Dup": songs[:2]}


def test_tags():
    assert split_tags(" rock,  male vocal,,drums ,") == ["rock", "male vocal", "drums"]
    assert split_tags("") == []


def test_tags_are_told_apart_as_people_type_them():
    assert split_tags("摇滚，鼓、忧伤\n吉他\n\n female vocal , sad") == [
        "摇滚",
        "鼓",
        "忧伤",
        "吉他",
        "female vocal",
        "sad",
    ]
