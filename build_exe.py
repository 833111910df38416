"""Make what is given to people without Python, on the system that it is for.

    python build_exe.py           the exe of the window
    python build_exe.py --pack    one archive with everything: exe, scripts, Python and all packages; nothing to install

Reads `ace_gui.py`; writes `dist/ACE-Step-LoRA.exe` (Windows) or `dist/ACE-Step-LoRA` (Linux, macOS): one windowed file
with the window, pypinyin, an icon and a version. The scripts and the models are not inside: the exe belongs into the
program folder, beside the scripts, and runs them with the Python environment that it finds or offers to make there.

The pack (整合包) is `dist/ACE-Step-LoRA-VERSION-SYSTEM-BUILD.zip` (Linux, macOS: .tar.gz): one folder that works where
it is unpacked, offline, also after it was moved. Its Python is one that may be moved, fetched by uv or named with
--python; its packages are those of requirements.txt with their checksums. Before the archive gets its name it is
unpacked elsewhere, its checksums are compared, and the demonstration runs from it without a network.

Needs PyInstaller, the pack also uv unless --python is given: python start.py install test, pip install uv
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import file_sha256, read_text, replace_atomically, write_text
from ace_lora.set_up.environment import BROUGHT, LOCK, environment_python
from ace_lora.set_up.pip import LOG

HOME = Path(__file__).resolve().parent
NAME = "ACE-Step-LoRA"
LARGEST_MB = 25
# Never imported by the window; named so that a stray import inside a dependency cannot drag them in.
EXCLUDED = ("torch", "numpy", "transformers", "datasets", "matplotlib", "PIL", "scipy", "pandas", "pytest", "IPython")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the exe of the window with PyInstaller, for this system.")
    parser.add_argument("--output_dir", type=Path, default=HOME / "dist", help="folder for the exe (default: dist)")
    parser.add_argument("--pack", action="store_true", help="make the archive with everything")
    parser.add_argument("--torch", default="auto", help="pack: PyTorch's build, as for start.py (default: auto)")
    parser.add_argument("--groups", nargs="*", default=[], help="pack: optional groups to include (default: none)")
    parser.add_argument(
        "--python", type=Path, help="pack: folder of a Python that may be moved, copied (default: uv fetches one)"
    )
    return parser.parse_args(argv)


def read_version(source: Path) -> str:
    """The string assigned to `VERSION` in the window's source, read without running it."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["VERSION"]:
            return ast.literal_eval(node.value)
    raise WrongInput(f"'{source}' has no line VERSION = \"…\". Expected the version of the window there; add it.")


def windows_version_file(version: str, path: Path) -> Path:
    """Write the version resource that Windows shows in a file's properties."""
    numbers = tuple([*(int(part) for part in version.split(".")), 0, 0, 0][:4])
    path.write_text(
        f"""VSVersionInfo(
  ffi=FixedFileInfo(filevers={numbers}, prodvers={numbers}, mask=0x3F, flags=0x0, OS=0x40004, fileType=0x1),
  kids=[
    StringFileInfo([StringTable('040904B0', [
      StringStruct('FileDescription', 'ACE-Step LoRA GUI'),
      StringStruct('FileVersion', '{version}'),
      StringStruct('ProductName', 'ACE-Step LoRA GUI'),
      StringStruct('ProductVersion', '{version}'),
      StringStruct('LegalCopyright', 'Apache License 2.0')])]),
    VarFileInfo([VarStruct('Translation', [1033, 1200])])
  ])
""",
        encoding="utf-8",
    )
    return path


def build_exe(output_dir: Path) -> Path:
    """Build in a temporary folder, check the result, then put it in place."""
    missing = [name for name in ("PyInstaller", "pypinyin") if importlib.util.find_spec(name) is None]
    if missing:
        raise WrongInput(
            f"{' and '.join(missing)} not found in '{sys.executable}'. Expected them in the environment that "
            "builds the exe. Install them with: python start.py install test, then run this with the Python of '.venv'."
        )
    version = read_version(HOME / "ace_gui.py")
    suffix = ".exe" if sys.platform == "win32" else ""
    with tempfile.TemporaryDirectory(prefix="ace-exe-") as name:
        work = Path(name)
        command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
        command += ["--onefile", "--windowed", "--name", NAME, "--icon", str(HOME / "docs" / "icon.ico")]
        command += ["--distpath", str(work / "dist"), "--workpath", str(work / "build"), "--specpath", str(work)]
        # pypinyin is imported softly inside a function, and reads its dictionaries as data.
        command += ["--collect-data", "pypinyin", "--hidden-import", "pypinyin"]
        command += [word for module in EXCLUDED for word in ("--exclude-module", module)]
        if sys.platform != "win32" and shutil.which("strip"):
            # A Python built from source carries 15 MB of debugging symbols; strip spoils Windows' libraries.
            command.append("--strip")
        if sys.platform == "win32":
            command += ["--version-file", str(windows_version_file(version, work / "version.txt"))]
        print(f"Building {NAME} {version} …", flush=True)
        status = subprocess.run([*command, str(HOME / "ace_gui.py")], cwd=work).returncode
        if status != 0:
            raise StepFailed(f"PyInstaller ended with status {status}. Its lines above say why.")
        built = work / "dist" / f"{NAME}{suffix}"
        megabytes = built.stat().st_size / 1e6
        if megabytes > LARGEST_MB:
            raise StepFailed(
                f"'{built.name}' would be {megabytes:.1f} MB; expected at most {LARGEST_MB} MB. Something large was "
                "dragged in: find it with PyInstaller's warnings and add it to EXCLUDED in build_exe.py."
            )
        target = output_dir / built.name
        with replace_atomically(target) as temporary:
            shutil.copy2(built, temporary)
            mode = built.stat().st_mode
        target.chmod(mode)
    print(f"Made {target} ({megabytes:.1f} MB). Put it beside ace_gui.py and start.py, then double-click it.")
    return target


# --- The pack ---------------------------------------------------------------------------------------------------------

PACK_PYTHON = "3.12"
# What stays out of a pack: what a release machine has beside the program, and what only developers need.
NOT_PACKED = re.findall(r"\S+", ".git* .venv* .ci .*_cache __pycache__ tests benchmarks dist build python Taudio")
CHECKSUMS = "SHA256SUMS.txt"


def make_pack(args: argparse.Namespace) -> Path:
    """The archive with everything, checked. Raises WrongInput and StepFailed."""
    if args.python is not None and not args.python.is_dir():
        raise WrongInput(f"--python '{args.python}' is no folder. Expected that of a Python that may be moved.")
    version = read_version(HOME / "ace_gui.py")
    name = f"{NAME}-{version}-{platform.system().lower()}-{args.torch}"
    with tempfile.TemporaryDirectory(prefix="ace-pack-") as work:
        home = Path(work) / NAME
        shutil.copytree(HOME, home, ignore=shutil.ignore_patterns(*NOT_PACKED))
        bring_python(args.python, home / BROUGHT)
        build_exe(home)
        python = str(environment_python(home / BROUGHT))
        action = ["install", *args.groups] if args.groups else ["setup"]
        if subprocess.run([python, "start.py", "--torch", args.torch, *action], cwd=home).returncode != 0:
            raise StepFailed("The packages could not be installed into the pack. The lines above say why.")
        for folder in sorted(home.rglob("__pycache__")):
            shutil.rmtree(folder)
        for leftover in (LOCK, LOG):
            (home / BROUGHT / leftover).unlink(missing_ok=True)
        lines = [f"{checksum}  {file}" for file, checksum in checksums(home).items()]
        write_text(home / CHECKSUMS, "\n".join(lines) + "\n")
        print(f"Packing {len(lines)} files …", flush=True)
        made = Path(shutil.make_archive(str(Path(work) / name), PACK_FORMAT, work, NAME))
        check_pack(made, Path(work) / "别处 elsewhere")
        target = args.output_dir / made.name
        with replace_atomically(target) as temporary:
            shutil.copy2(made, temporary)
    print(f"Made {target}: {target.stat().st_size / 1e6:,.0f} MB, sha256 {file_sha256(target)}.")
    return target


PACK_FORMAT = "zip" if sys.platform == "win32" else "gztar"


def bring_python(source: Path | None, target: Path) -> None:
    """Put a Python that may be moved at `target`: a copy of the folder `source`, or the one that uv fetches."""
    if source is not None:
        # Packages of the machine that packs are none of the pack's.
        unwanted = shutil.ignore_patterns("__pycache__", "test", "tests", "site-packages")
        shutil.copytree(source, target, symlinks=True, ignore=unwanted)
    else:
        versions = target.with_name("python.part")
        command = ["python", "install", "--no-bin", "--install-dir", str(versions), PACK_PYTHON]
        if subprocess.run([sys.executable, "-m", "uv", *command]).returncode != 0:
            raise StepFailed(
                "uv fetched no Python. Install it (pip install uv) and check the network, or name the folder of a "
                "Python that may be moved with --python."
            )
        (fetched,) = [path for path in versions.glob(f"cpython-{PACK_PYTHON}.*") if not path.is_symlink()]
        fetched.rename(target)
        shutil.rmtree(versions)
    if not environment_python(target).is_file():
        raise WrongInput(f"'{source or target}' has no {environment_python(target).name}. Expected a Python's folder.")
    # A Python that a package manager looks after would say that pip is not for it.
    subprocess.run([str(environment_python(target)), "-m", "ensurepip"], capture_output=True)


def checksums(home: Path) -> dict[str, str]:
    """sha256 of every file below `home`, by its path in it; links and the list itself are left out."""
    files = sorted(path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(home).as_posix(): file_sha256(path) for path in files if path.name != CHECKSUMS}


def check_pack(archive: Path, folder: Path) -> None:
    """Unpack the archive in `folder`, compare its checksums, move it, and run the demonstration without a network."""
    shutil.unpack_archive(archive, folder)
    home = folder / NAME
    stated = dict(line.split("  ", 1)[::-1] for line in read_text(home / CHECKSUMS, 100_000_000).splitlines())
    if stated != checksums(home):
        raise StepFailed(f"'{archive.name}' does not hold what was packed. Is the disk full or damaged?")
    moved = home.rename(folder / "移动 moved")
    python = environment_python(moved / BROUGHT)
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "VIRTUAL"))
    }
    variables |= {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "PATH": str(python.parent)}
    for words in (["-c", "import tkinter"], ["start.py", "setup"], ["start.py", "demo"]):
        answer = subprocess.run([str(python), *words], cwd=moved, env=variables, capture_output=True, encoding="utf-8")
        if answer.returncode != 0 or "Installing" in answer.stdout:
            said = (answer.stdout + answer.stderr)[-3000:]
            raise StepFailed(f"The pack does not work, '{' '.join(words)}' ends with {answer.returncode}: {said}")


def main(args: argparse.Namespace) -> None:
    """Make what was asked for."""
    if args.pack:
        make_pack(args)
    else:
        build_exe(args.output_dir)


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
