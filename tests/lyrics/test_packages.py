"""What is said about missing and other versions of the libraries that the lyrics need."""

import importlib.metadata

import pytest

from ace_lora.lyrics import packages
from ace_lora.lyrics.packages import MissingLyricSupport, japanese_install_command, require_package, version_warnings


@pytest.fixture
def installed(monkeypatch):
    """Set what is installed: {package: version}; the rest is missing."""

    def install(versions):
        def version(package):
            if package not in versions:
                raise importlib.metadata.PackageNotFoundError(package)
            return versions[package]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


CHECKED = {"py3langid": "0.3.0", "num2words": "0.5.14", "pypinyin": "0.53.0"}


def test_versions_of_this_installation_are_those_the_ids_were_checked_with():
    assert version_warnings() == []


def test_nothing_is_said_when_only_the_optional_japanese_is_missing(installed):
    installed(CHECKED)
    assert version_warnings() == []


def test_every_other_version_gets_a_sentence_with_the_command(installed):
    installed({**CHECKED, "pypinyin": "0.55.0", "unidic-lite": "1.0.9", "cutlet": "0.6.0", "fugashi": "1.5.2"})
    assert version_warnings() == [
        "pypinyin 0.55.0 is installed; lyric ids were checked with 0.53.0 and may differ. "
        "Run: pip install pypinyin==0.53.0",
        "unidic-lite 1.0.9 is installed; lyric ids were checked with 1.0.8 and may differ. "
        "Run: pip install unidic-lite==1.0.8",
        "cutlet 0.6.0 is installed; Japanese lyric ids were checked with cutlet>=0.5,<0.6 and may differ. "
        'Run: pip install "cutlet>=0.5,<0.6"',
    ]


def test_a_missing_package(installed):
    installed({"pypinyin": "0.55.0"})
    assert version_warnings()[0] == "py3langid is not installed; lyrics need it. Run: pip install py3langid==0.3.0"
    require_package("pypinyin")
    with pytest.raises(MissingLyricSupport, match=r"pypinyin 0\.55\.0 is installed, but .* depend on 0\.53\.0"):
        require_package("pypinyin", exactly=True)
    with pytest.raises(MissingLyricSupport, match=r"num2words is not installed\. Run: pip install num2words==0\.5\.14"):
        require_package("num2words")


@pytest.mark.parametrize(
    ("platform", "version", "by_hand"),
    [
        ("linux", (3, 13), "pip install cutlet==0.5.2 fugashi unidic-lite==1.0.8"),
        ("win32", (3, 12), "pip install cutlet==0.5.2 fugashi unidic-lite==1.0.8"),
        ("win32", (3, 13), "pip install --no-deps cutlet==0.5.2 fugashi jaconv unidic-lite==1.0.8"),
    ],
)
def test_the_japanese_command_avoids_a_compiler(monkeypatch, platform, version, by_hand):
    monkeypatch.setattr(packages.sys, "platform", platform)
    monkeypatch.setattr(packages.sys, "version_info", version)
    assert japanese_install_command() == f"python start.py install japanese (or: {by_hand})"
