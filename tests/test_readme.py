"""What the README files promise: commands that exist, links that lead somewhere, the same content in both languages."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import start
from ace_lora.set_up import environment as set_up

HOME = Path(__file__).resolve().parent.parent
LANGUAGES = ("README.md", "README_zh.md")


def commands(name: str) -> list[str]:
    """Every `python …` command of a README: in code blocks, and in backticks inside the text."""
    text = (HOME / name).read_text(encoding="utf-8")
    found = re.findall(r"^(python .+?)(?:\s+#.*)?$", text, flags=re.MULTILINE)
    found += re.findall(r"`(python .+?)`", text)
    return [command for command in found if "…" not in command]


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_command_is_accepted_by_its_script(name):
    checked = 0
    for command in commands(name):
        script, *arguments = shlex.split(command)[1:]
        if script == "start.py":
            set_up.parse_args(start.GROUPS, arguments)
        else:
            module = importlib.import_module(arguments.pop(0) if script == "-m" else script.removesuffix(".py"))
            if hasattr(module, "__path__"):  # `python -m` of a package
                module = importlib.import_module(f"{module.__name__}.__main__")
            module.parse_args(arguments)  # fails where a flag does not exist
        checked += 1
    assert checked >= 14


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_flag_that_the_text_names_exists(name):
    text = (HOME / name).read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in [*HOME.glob("*.py"), *HOME.glob("ace_lora/**/*.py")])
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z_]+", text)) - {"--help"}
    assert flags
    assert {flag for flag in flags if f'"{flag}"' not in sources} == set()


@pytest.mark.parametrize("name", (*LANGUAGES, "CONTRIBUTING.md"))
def test_every_local_link_leads_to_a_file(name):
    text = (HOME / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert {link for link in links if not (HOME / link).exists()} == set()


def test_both_languages_have_the_same_commands_and_sections():
    english, chinese = ({re.sub(r"[^\x20-\x7e]+", "", command) for command in commands(name)} for name in LANGUAGES)
    assert english == chinese
    headings = [
        [len(line.split()[0]) for line in (HOME / name).read_text(encoding="utf-8").splitlines() if line[:2] == "##"]
        for name in LANGUAGES
    ]
    assert headings[0] == headings[1]
