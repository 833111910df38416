"""A program folder with tiny packages that a real pip installs, for the tests of setting up and of packing."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import start

SCRIPT = Path(start.__file__)
HOME = SCRIPT.parent


def build_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel that pip accepts and that holds one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def make_program(folder: Path) -> Path:
    """A program folder with start.py, tiny requirements, and a demo and a window that print that they started."""
    home = folder / "程序 folder"
    (home / "requirements").mkdir(parents=True)
    shutil.copy(SCRIPT, home)
    (home / "ace_lora").mkdir()
    for name in ("__init__.py", "commands.py", "files.py"):
        shutil.copy(HOME / "ace_lora" / name, home / "ace_lora")
    shutil.copytree(HOME / "ace_lora" / "set_up", home / "ace_lora" / "set_up")
    (home / "requirements" / "torch.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    for name in ("demo", "ace_gui"):
        (home / f"{name}.py").write_text(
            f"import sys, torch, base_package\nprint('{name}', torch.__version__, sys.prefix)\nraise SystemExit(7)\n",
            encoding="utf-8",
        )
    for name, version in (("torch", "2.13.0"), ("base_package", "1.0"), ("group_package", "1.0")):
        build_wheel(folder / "wheels", name, version)
    write_lock(home / "requirements.txt", folder / "wheels" / "base_package-1.0-py3-none-any.whl")
    write_lock(home / "requirements" / "prodigy.txt", folder / "wheels" / "group_package-1.0-py3-none-any.whl")
    return home


def write_lock(path: Path, wheel: Path) -> None:
    """A requirements file of one package with the checksum of its wheel."""
    name, version = wheel.name.split("-")[:2]
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    path.write_text(f"# 可选\n{name}=={version} \\\n    --hash=sha256:{checksum}\n", encoding="utf-8")


def variables_of_a_fresh_user(home: Path, links: Path | None = None, **more: str) -> dict[str, str]:
    """No pip configuration but this: the wheels of `links` are the only package index."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    variables.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(links or home.parent / "wheels"))
    # The user's own settings must not reach the environment.
    variables.update(PYTHONPATH=str(home.parent / "elsewhere"), PIP_USER="1")
    return {**variables, **more}
