"""Make the exe of the window for people without Python: `python build_exe.py` on the system that it is for.

Reads `ace_gui.py`; writes `dist/ACE-Step-LoRA.exe` (Windows) or `dist/ACE-Step-LoRA` (Linux, macOS): one windowed file
with the window, pypinyin, an icon and a version. The scripts and the models are not inside: the exe belongs into the
program folder, beside the scripts, and runs them with the Python environment that it finds or offers to make there.

Needs PyInstaller: python start.py install test
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ace_lora.commands import StepFailed, WrongInput, run_script

HOME = Path(__file__).resolve().parent
NAME = "ACE-Step-LoRA"
LARGEST_MB = 25
# Never imported by the window; named so that a stray import inside a dependency cannot drag them in.
EXCLUDED = ("torch", "numpy", "transformers", "datasets", "matplotlib", "PIL", "scipy", "pandas", "pytest", "IPython")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the exe of the window with PyInstaller, for this system.")
    parser.add_argument("--output_dir", type=Path, default=HOME / "dist", help="folder for the exe (default: dist)")
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


def main(args: argparse.Namespace) -> None:
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
        args.output_dir.mkdir(parents=True, exist_ok=True)
        target = args.output_dir / built.name
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.copy2(built, temporary)
        temporary.replace(target)
    print(f"Made {target} ({megabytes:.1f} MB). Put it beside ace_gui.py and start.py, then double-click it.")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
