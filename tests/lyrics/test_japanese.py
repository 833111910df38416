"""Japanese lines: the real packages where installed, and what happens without them."""

import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from ace_lora.lyrics import japanese
from ace_lora.lyrics.japanese import require_japanese, romanise_japanese
from ace_lora.lyrics.packages import MissingLyricSupport

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def forget_the_loaded_cutlet():
    japanese._load_cutlet.cache_clear()
    yield
    japanese._load_cutlet.cache_clear()


def needs(*packages):
    for package in packages:
        pytest.importorskip(package, reason=f"{package} of the optional Japanese support is not installed")


def test_a_line():
    needs("cutlet", "fugashi", "unidic_lite")
    assert romanise_japanese("夜の駅で君を待っていた") == "Yoru no eki de kimi wo matte ita"


@pytest.mark.parametrize("missing", ["cutlet", "fugashi", "unidic_lite"])
def test_a_missing_package_is_said_with_the_song_and_the_command(monkeypatch, missing):
    if missing != "cutlet":
        needs("cutlet")
        monkeypatch.delitem(sys.modules, "cutlet", raising=False)
        monkeypatch.delitem(sys.modules, "cutlet.cutlet", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingLyricSupport) as caught:
        require_japanese("夜の駅")
    assert str(caught.value).startswith(
        "The lyrics of '夜の駅' contain Japanese. Install the Japanese support (about 250 MB on disk): "
        "python start.py install japanese (or: pip install "
    )
    with pytest.raises(MissingLyricSupport, match=r"^The lyrics contain Japanese\. "):
        romanise_japanese("夜")


def test_a_missing_dictionary_is_said(monkeypatch, tmp_path):
    needs("cutlet", "fugashi", "unidic_lite")
    monkeypatch.setattr("unidic_lite.DICDIR", str(tmp_path))
    with pytest.raises(MissingLyricSupport) as caught:
        require_japanese("song")
    assert str(caught.value) == ("Japanese dictionary not found: pip install unidic-lite==1.0.8, and uninstall unidic")


def run_python(code, *folders):
    script = f"import sys; sys.path[:0] = {[str(ROOT), *map(str, folders)]!r}\n{code}"
    result = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", script], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_full_unidic_does_not_take_over(tmp_path):
    """fugashi would take the dictionary of an installed `unidic` (here one that is not even there)."""
    needs("cutlet", "fugashi", "unidic_lite")
    (tmp_path / "unidic.py").write_text(f"DICDIR = {str(tmp_path / 'dicdir')!r}\n", encoding="utf-8")
    code = "from ace_lora.lyrics.japanese import romanise_japanese\nprint(romanise_japanese('私は学生です'))"
    assert run_python(code, tmp_path) == "Watakushi wa gakusei desu"


def test_without_mojimoji_the_result_is_the_same_and_no_stand_in_is_left_behind():
    needs("cutlet", "fugashi", "unidic_lite")
    code = (
        "sys.modules['mojimoji'] = None\n"
        "from ace_lora.lyrics.japanese import romanise_japanese\n"
        "print(romanise_japanese('ＡＢＣ１２３ ｱｲｳ ‘a’ ”b”'))\n"
        "print(sys.modules.get('mojimoji'))"
    )
    assert run_python(code).splitlines() == ['ABC123 eye u `a\' "b"', "None"]


def test_the_stand_in_does_what_mojimoji_does_behind_nfkc():
    mojimoji = pytest.importorskip("mojimoji", reason="mojimoji has no wheels for this Python")
    source = random.Random(5)
    texts = [chr(code) for code in range(0x20, 0xD800)] + [
        "".join(
            chr(source.choice([source.randrange(0x20, 0x2100), source.randrange(0x3000, 0xFFF0)])) for _ in range(9)
        )
        for _ in range(500)
    ]
    for text in texts:
        text = unicodedata.normalize("NFKC", "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000))
        real = mojimoji.han_to_zen(mojimoji.zen_to_han(text, kana=False), digit=False, ascii=False)
        assert japanese._quotation_marks_to_ascii(text) == real, ascii(text)
