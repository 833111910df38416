"""Lyrics beside a song and inside it: `python -m pytest tests/test_lyric_sources.py`. All files are real ones."""

import base64
import shutil
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen.id3 import ID3, SYLT, TIT2, TLAN, TXXX, USLT, Encoding

from ace_lora.lyrics.encoding import UnknownEncoding, decode_lyrics, legacy_encoding
from ace_lora.lyrics.sources import FoundLyrics, UnreadableTags, embedded_lyrics, lyrics_beside
from ace_lora.lyrics.timed import TimedLine
from ace_lora.songs import SongFiles

LRC = "[ti:月亮]\n[ar:某人]\n[by:me]\n[00:12.00]月亮代表我的心\n[00:15.50]你问我爱你有多深\n"
LRC_LINES = (TimedLine(12.0, "月亮代表我的心"), TimedLine(15.5, "你问我爱你有多深"))
TEXT = "Hello morning\nGoodbye night"
TEXT_LINES = (TimedLine(None, "Hello morning"), TimedLine(None, "Goodbye night"))


@pytest.fixture(scope="module")
def audio_files(tmp_path_factory) -> dict[str, Path]:
    """One second of sound in every container that can be written here, by extension."""
    folder = tmp_path_factory.mktemp("audio")
    samples = 0.1 * np.random.default_rng(0).normal(size=48000).astype(np.float32)
    files = {}
    for extension, options in {
        "mp3": {"format": "MP3"},
        "flac": {"format": "FLAC"},
        "ogg": {"format": "OGG", "subtype": "VORBIS"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
        "wav": {"format": "WAV"},
    }.items():
        files[extension] = folder / f"sound.{extension}"
        soundfile.write(files[extension], samples, 48000, **options)
    files["m4a"], files["aac"] = folder / "sound.m4a", folder / "sound.aac"
    _encode_aac(samples, files["m4a"], "mp4")
    _encode_aac(samples, files["aac"], "adts")
    return files


def _encode_aac(samples: np.ndarray, path: Path, container: str) -> None:
    import av

    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        for start in range(0, len(samples) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate = 48000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@pytest.fixture
def song(tmp_path, audio_files):
    """A function that puts a song of an extension into an empty folder."""

    def make(extension: str, name: str = "song") -> SongFiles:
        path = tmp_path / f"{name}.{extension}"
        shutil.copy(audio_files[extension], path)
        return SongFiles(path)

    return make


def beside(song: SongFiles, name: str, data: bytes) -> FoundLyrics | None:
    (song.audio.parent / name).write_bytes(data)
    return lyrics_beside(song)


# --- Beside the song ---


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-le", "utf-16-be", "gbk", "gb18030"],
    ids=lambda encoding: encoding,
)
def test_lrc_in_every_encoding_with_its_times(song, encoding):
    data = b"\xff\xfe" + LRC.encode("utf-16-le") if encoding == "utf-16-le-bom" else LRC.encode(encoding)
    found = beside(song("mp3"), "song.lrc", data)
    assert found.lines == LRC_LINES
    assert found.timed
    assert found.text == "月亮代表我的心\n你问我爱你有多深"
    assert found.source.startswith("song.lrc")
    assert ("gb18030" in found.source) == encoding.startswith("gb")


def test_line_ends_of_windows_and_old_macs(song):
    assert beside(song("mp3"), "song.lrc", LRC.replace("\n", "\r\n").encode()).lines == LRC_LINES
    assert beside(song("mp3"), "song.lrc", LRC.replace("\n", "\r").encode()).lines == LRC_LINES


def test_txt_without_times(song):
    found = beside(song("mp3"), "song.txt", TEXT.encode())
    assert (found.lines, found.timed, found.source) == (TEXT_LINES, False, "song.txt")


def test_txt_with_times(song):
    assert beside(song("mp3"), "song.txt", LRC.encode()).lines == LRC_LINES


def test_lrc_comes_before_txt(song):
    (song("mp3").audio.parent / "song.txt").write_text("other", "utf-8")
    assert beside(song("mp3"), "song.lrc", LRC.encode()).lines == LRC_LINES


def test_an_empty_lrc_gives_way_to_the_txt(song):
    (song("mp3").audio.parent / "song.txt").write_text(TEXT, "utf-8")
    assert beside(song("mp3"), "song.lrc", b"[ti:Song]\n[00:00.00]\n\n").lines == TEXT_LINES


def test_credits_above_the_first_line_are_not_lyrics(song):
    credits = "[00:00.00]晴天 - 某人\n[00:01.00]作词：某人\n[00:02.00]Composed by: Somebody\n"
    text = credits + "[00:12.00]故事的小黄花\n[00:15.00]鼓：咚咚"
    found = beside(song("mp3"), "song.lrc", text.encode())
    assert found.lines == (TimedLine(12.0, "故事的小黄花"), TimedLine(15.0, "鼓：咚咚"))


def test_a_first_line_without_credits_below_it_is_sung(song):
    found = beside(song("mp3"), "song.lrc", "[00:01.00]Hello - again\n[00:03.00]曲终人散".encode())
    assert found.text == "Hello - again\n曲终人散"


def test_nothing_but_credits_is_no_lyrics(song):
    assert beside(song("mp3"), "song.lrc", "[00:00.00]作曲 : 某人\n[00:01.00]编曲 : 某人".encode()) is None


def test_upper_case_extension(song):
    assert beside(song("mp3"), "song.LRC", LRC.encode()).lines == LRC_LINES


def test_names_with_dots_and_chinese(song):
    assert beside(song("mp3", "第 1 首.final"), "第 1 首.final.lrc", LRC.encode()).lines == LRC_LINES


def test_other_songs_texts_are_not_taken(song):
    assert beside(song("mp3"), "song2.lrc", LRC.encode()) is None
    assert beside(song("mp3"), "song_prompt.txt", b"rock, pop") is None


def test_nothing_beside(song):
    assert lyrics_beside(song("mp3")) is None


def test_own_times_beside_are_a_source_until_lyrics_were_written(song):
    assert beside(song("mp3"), "song_lyrics.lrc", LRC.encode()).source == "song_lyrics.lrc"
    assert beside(song("mp3"), "song_lyrics.txt", TEXT.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        "纯音乐，请欣赏",
        "[00:00.00]纯音乐，请欣赏",
        "此歌曲为没有填词的纯音乐，请您欣赏",
        "[instrumental]",
        "Instrumental",
    ],
)
def test_what_players_write_for_music_without_a_voice(song, text):
    found = beside(song("mp3"), "song.lrc", text.encode())
    assert found.lines == (TimedLine(None, "[instrumental]"),)


def test_a_folder_of_that_name_is_no_file(song):
    (song("mp3").audio.parent / "song.lrc").mkdir()
    assert lyrics_beside(song("mp3")) is None


def test_bytes_of_no_encoding(song):
    with pytest.raises(UnknownEncoding, match=r"'song\.txt' is neither UTF-8 nor gb18030"):
        beside(song("mp3"), "song.txt", b"\x81\xff\xff\x80\x80\xff\xfe\x81\xff" * 3)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("我爱你中国", "gb18030"),
        ("我爱你", "gb18030"),
        ("[00:10.00]今天我 寒夜里看雪飘过\n怀着冷却了的心窝漂远方\nOh yeah baby", "gb18030"),
        ("月亮代表我的心\n你問我愛你有多深\n", "big5"),
        ("今天我 寒夜裡看雪飄過\n懷著冷卻了的心窩漂遠方", "big5"),
        ("桜の花が咲いた\n君を待つ春の日に\n", "cp932"),
        ("夜に駆ける 沈むように溶けてゆくように", "cp932"),
        ("사랑해요 그대를\n오늘도 기다려요\n", "cp949"),
        ("Я помню чудное мгновенье\nПередо мной явилась ты", "cp1251"),
        ("Elle était si belle\nÀ l'été passé, ça ira", "cp1252"),
        ("Für dich über alles\nschön", "cp1252"),
        ("Süße Grüße aus der Tiefe,\nfüße, büße, große Lüge", "cp1252"),
        ("Süßer Regen über den Dächern", "cp1252"),
        ("l’été “déjà” vu", "cp1252"),
        ("我love你", "gb18030"),
        ("爱 baby 我 want you", "gb18030"),
        ("Kocham cię, żółta łąko, jeszcze śnię", "cp1250"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy", "cp1250"),
        ("Aşkım seni çok özledim güneş doğuyor", "cp1254"),
        ("Я помню чудное мгновенье", "koi8-r"),
    ],
)
def test_legacy_encodings(text, encoding):
    assert legacy_encoding(text.encode(encoding)) == encoding
    assert decode_lyrics(text.encode(encoding), "name") == (text, encoding)


def test_a_damaged_utf8_file_is_no_other_encoding(song):
    data = "月亮代表我的心，你问我爱你有多深".encode()[:-1]
    found = beside(song("mp3"), "song.lrc", data)
    assert found.text == "月亮代表我的心，你问我爱你有多"
    assert "broken bytes" in found.questions[0]


def test_the_user_names_the_encoding(song):
    audio = song("mp3").audio
    audio.with_suffix(".lrc").write_bytes("Привет".encode("cp866"))
    assert lyrics_beside(SongFiles(audio), encoding="cp866").text == "Привет"
    audio.with_suffix(".lrc").write_text("Привет", "utf-8")  # what is Unicode stays what it is
    assert lyrics_beside(SongFiles(audio), encoding="cp866").text == "Привет"


@pytest.mark.parametrize("name", ["song.srt", "song.vtt", "song.lrcx", "song.json", "song.ass"])
def test_other_files_beside_the_song(song, name):
    texts = {
        "song.json": '{"lyrics": "Hello morning\\nGoodbye night"}',
        "song.lrcx": "[00:01.00]Hello morning\n[00:01.00][tr:zh]早\n[00:02.00]Goodbye night",
        "song.ass": "Dialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,Hello morning\n"
        "Dialogue: 0,0:00:02.00,0:00:03.00,D,,0,0,0,,Goodbye night",
    }
    text = texts.get(
        name, "1\n00:00:01,000 --> 00:00:02,000\nHello morning\n\n2\n00:00:02,000 --> 00:00:03,000\nGoodbye night\n"
    )
    assert beside(song("mp3"), name, text.encode()).text == TEXT


def test_tags_beside_the_song_are_no_lyrics(song):
    remarks: list[str] = []
    audio = song("mp3").audio
    audio.with_suffix(".txt").write_text("rock, electric guitar, 120 bpm, female vocal", "utf-8")
    assert lyrics_beside(SongFiles(audio), remarks=remarks) is None
    assert "'song.txt' looks like tags" in remarks[0]


@pytest.mark.parametrize("data", [bytes((0, 1, 2, 255, 254)) * 50, bytes(range(256)) * 4, b"\x00" * 64])
def test_what_is_no_text_is_no_lyrics(song, data):
    song("wav").audio.with_suffix(".lrc").write_bytes(data)
    with pytest.raises(UnknownEncoding, match=r"'song\.lrc' is no(t| text)|'song\.lrc' is neither"):
        lyrics_beside(song("wav"))


# --- Embedded ---


def test_nothing_embedded(song):
    for extension in ("mp3", "flac", "ogg", "opus", "wav", "m4a", "aac"):
        assert embedded_lyrics(song(extension).audio) is None


@pytest.mark.parametrize("extension", ["mp3", "aac", "wav"])
def test_uslt(song, extension):
    audio = song(extension).audio
    frame = USLT(encoding=Encoding.UTF8, lang="eng", desc="", text=TEXT)
    if extension == "wav":
        file = mutagen.File(audio)
        file.add_tags()
        file.tags.add(frame)
        file.save()
    else:
        tags = ID3()
        tags.add(frame)
        tags.save(audio)
    assert embedded_lyrics(audio) == FoundLyrics("embedded USLT", TEXT_LINES)


def save_id3(audio: Path, *frames) -> Path:
    tags = ID3()
    for frame in frames:
        tags.add(frame)
    tags.save(audio)
    return audio


@pytest.mark.parametrize("encoding", [Encoding.UTF8, Encoding.UTF16])
def test_uslt_holding_an_lrc(song, encoding):
    audio = save_id3(song("mp3").audio, USLT(encoding=encoding, lang="chi", desc="", text=LRC))
    assert embedded_lyrics(audio).lines == LRC_LINES


def test_uslt_that_says_latin_1_and_is_gbk(song):
    text = LRC.encode("gbk").decode("latin-1")
    audio = save_id3(song("mp3").audio, USLT(encoding=Encoding.LATIN1, lang="chi", desc="", text=text))
    assert embedded_lyrics(audio).lines == LRC_LINES


def test_uslt_that_is_latin_1(song):
    audio = save_id3(song("mp3").audio, USLT(encoding=Encoding.LATIN1, lang="fra", desc="", text="Elle était là"))
    assert embedded_lyrics(audio).text == "Elle était là"


def test_sylt_by_line(song):
    frame = SYLT(encoding=3, lang="eng", format=2, type=1, text=[("Hello morning", 1500), ("Goodbye night", 4250)])
    found = embedded_lyrics(save_id3(song("mp3").audio, frame))
    assert found == FoundLyrics("embedded SYLT", (TimedLine(1.5, "Hello morning"), TimedLine(4.25, "Goodbye night")))


def test_sylt_by_syllable(song):
    frame = SYLT(
        encoding=3, lang="eng", format=2, type=1, text=[("Hel", 1000), ("lo ", 1200), ("you", 1500), ("\nBye", 3000)]
    )
    assert embedded_lyrics(save_id3(song("mp3").audio, frame)).lines == (
        TimedLine(1.0, "Hello you"),
        TimedLine(3.0, "Bye"),
    )


def test_lyrics_timed_in_mpeg_frames_come_without_times(song):
    frame = SYLT(encoding=3, lang="eng", format=1, type=1, text=[("Hello morning", 57), ("Goodbye night", 163)])
    audio = save_id3(song("mp3").audio, frame)
    assert embedded_lyrics(audio).lines == (TimedLine(None, "Hello morning"), TimedLine(None, "Goodbye night"))
    save_id3(audio, frame, USLT(encoding=3, lang="eng", desc="", text=TEXT))
    assert embedded_lyrics(audio).source == "embedded USLT"  # which has its empty lines


def test_times_win_over_plain_lyrics(song):
    audio = save_id3(
        song("mp3").audio,
        USLT(encoding=3, lang="eng", desc="", text=TEXT),
        SYLT(encoding=3, lang="eng", format=2, type=1, text=[("Hello morning", 1500)]),
    )
    assert embedded_lyrics(audio).source == "embedded SYLT"


def test_chords_and_empty_frames_are_no_lyrics(song):
    audio = save_id3(
        song("mp3").audio,
        SYLT(encoding=3, lang="eng", format=2, type=5, text=[("Am", 0), ("F", 2000)]),
        USLT(encoding=3, lang="eng", desc="", text=" \n "),
        TXXX(encoding=3, desc="Comment", text=["not lyrics"]),
    )
    assert embedded_lyrics(audio) is None


JAPANESE = "静かな夜に船が出る\n星の海を渡って行こう\nもう一度会えるなら"
CHINESE = "寂静的夜里船出航\n一起渡过星辰的海洋"


def uslt(text: str, language: str, desc: str = "", encoding: int = 3) -> USLT:
    return USLT(encoding=encoding, lang=language, desc=desc, text=text)


@pytest.mark.parametrize(
    ("frames", "text", "asked"),
    [
        # The song's own language, not the shortest and not the first.
        ([uslt(CHINESE, "chi"), uslt(JAPANESE, "jpn")], JAPANESE, True),
        ([uslt(JAPANESE, "jpn"), uslt(CHINESE, "chi", "translation")], JAPANESE, True),
        ([uslt(CHINESE, "chi"), uslt(TEXT, "eng"), TIT2(encoding=3, text=["Good Morning"])], TEXT, True),
        ([uslt(TEXT, "eng"), uslt(CHINESE, "chi"), TIT2(encoding=3, text=["夜航"])], CHINESE, True),
        ([uslt(TEXT, "eng"), uslt(CHINESE, "chi"), TLAN(encoding=3, text=["zho"])], CHINESE, True),
        ([uslt("shizuka na yoru ni fune ga deru", "jpn", "romaji"), uslt(JAPANESE, "jpn")], JAPANESE, True),
        # A timed translation beside an untimed original.
        (
            [SYLT(encoding=3, lang="chi", format=2, type=1, text=[("寂静的夜里", 500)]), uslt(JAPANESE, "jpn")],
            JAPANESE,
            True,
        ),
        (
            [SYLT(encoding=3, lang="eng", format=2, type=1, text=[("Hello morning", 500)]), uslt(TEXT, "eng")],
            "Hello morning",
            False,
        ),
        # UTF-8 in a frame that says Latin-1.
        ([uslt(CHINESE.encode().decode("latin-1"), "chi", encoding=0)], CHINESE, False),
        ([TXXX(encoding=3, desc="LYRICS-ENG", text=[TEXT])], TEXT, False),
        ([TXXX(encoding=3, desc="Lyrics:jpn", text=[JAPANESE])], JAPANESE, False),
    ],
)
def test_of_several_lyrics_the_songs_own(song, frames, text, asked):
    found = embedded_lyrics(save_id3(song("mp3").audio, *frames))
    assert found.text == text
    assert bool(found.questions) == asked


def test_apev2(song):
    from mutagen.apev2 import APEv2

    audio = song("mp3").audio
    tags = APEv2()
    tags["Lyrics"] = TEXT
    tags.save(audio)
    assert embedded_lyrics(audio).lines == TEXT_LINES
    save_id3(audio, TXXX(encoding=3, desc="Comment", text=["x"]))  # both kinds, the lyrics in the one behind
    assert embedded_lyrics(audio).lines == TEXT_LINES


@pytest.mark.parametrize(
    "name", ["LYRICS-ENG", "LYRICS_ENG", "lyrics-jpn", "UNSYNCEDLYRICS-ENG", "Lyric", "UNSYNCED LYRICS"]
)
def test_comments_with_a_language(song, name):
    audio = song("flac").audio
    file = mutagen.File(audio)
    file[name] = TEXT
    file["LYRICIST"] = "Ann"
    file.save()
    assert embedded_lyrics(audio).lines == TEXT_LINES


def test_txxx(song):
    audio = save_id3(song("mp3").audio, TXXX(encoding=3, desc="LYRICS", text=[TEXT]))
    assert embedded_lyrics(audio).lines == TEXT_LINES


@pytest.mark.parametrize("extension", ["flac", "ogg", "opus"])
@pytest.mark.parametrize("name", ["LYRICS", "lyrics", "UNSYNCEDLYRICS"])
def test_vorbis_comments(song, extension, name):
    audio = song(extension).audio
    file = mutagen.File(audio)
    file[name] = TEXT
    file.save()
    assert embedded_lyrics(audio) == FoundLyrics(f"embedded {name.upper()} comment", TEXT_LINES)


@pytest.mark.parametrize("extension", ["flac", "ogg", "opus"])
def test_vorbis_comments_with_times(song, extension):
    audio = song(extension).audio
    file = mutagen.File(audio)
    file["LYRICS"] = TEXT
    file["SYNCEDLYRICS"] = LRC
    file.save()
    assert embedded_lyrics(audio).lines == LRC_LINES


def test_mp4(song):
    audio = song("m4a").audio
    file = mutagen.File(audio)
    file["\xa9lyr"] = [TEXT]
    file.save()
    assert embedded_lyrics(audio) == FoundLyrics("embedded MP4 lyrics", TEXT_LINES)


def test_mp4_freeform(song):
    audio = song("m4a").audio
    file = mutagen.File(audio)
    file["----:com.apple.iTunes:LYRICS"] = [LRC.encode()]
    file.save()
    assert embedded_lyrics(audio).lines == LRC_LINES


def test_the_extension_does_not_have_to_be_true(song, tmp_path):
    audio = song("flac").audio
    file = mutagen.File(audio)
    file["LYRICS"] = TEXT
    file.save()
    renamed = audio.rename(tmp_path / "renamed.mp3")
    assert embedded_lyrics(renamed).lines == TEXT_LINES


def test_damaged_tags_say_so(song):
    audio = song("flac").audio
    audio.write_bytes(b"fLaC" + b"\xff" * 200)
    with pytest.raises(UnreadableTags, match=r"'song\.flac' cannot be read"):
        embedded_lyrics(audio)


def test_an_ogg_whose_last_comment_has_no_end(song):
    """One byte too long, it swallows the bit behind it, and mutagen raises IndexError."""
    audio = song("ogg").audio
    file = mutagen.File(audio)
    file.delete()
    file["LYRICS"] = "la"
    file.save(padding=lambda _: 0)
    data = audio.read_bytes()
    assert data.count(b"\x09\x00\x00\x00LYRICS=la") == 1
    audio.write_bytes(data.replace(b"\x09\x00\x00\x00LYRICS=la", b"\x0a\x00\x00\x00LYRICS=la"))
    with pytest.raises(UnreadableTags, match="index"):
        embedded_lyrics(audio)


def test_bytes_of_no_encoding_in_an_mp4(song):
    audio = song("m4a").audio
    file = mutagen.File(audio)
    file["----:com.apple.iTunes:LYRICS"] = [b"caf\xe9 \x81 la"]
    file.save()
    with pytest.raises(UnreadableTags, match="0x81"):
        embedded_lyrics(audio)


def test_no_audio_at_all(tmp_path):
    path = tmp_path / "song.mp3"
    path.write_bytes(base64.b64decode("AAAA") * 100)
    with pytest.raises(UnreadableTags, match="MPEG"):
        embedded_lyrics(path)
    with pytest.raises(OSError, match="missing"):
        embedded_lyrics(tmp_path / "missing.mp3")
