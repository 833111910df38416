"""Write requirements.txt and requirements/GROUP.txt from base.in and GROUP.in: exact versions, each with its checksums.

    pip install uv
    python requirements/lock.py

Run it after a change of an .in file. Versions that stand in a lock already are kept where they still fit; for newer
ones delete the lock first. The groups list what they need beyond the base, so that they install without looking
further. Standard library only; uv asks the package index that it is set to.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST_PYTHON = "3.10"
# PyTorch brings its CUDA libraries; all of it comes from an index of its own.
WITH_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
# cutlet wants it everywhere, but there are no wheels for Python 3.13; there, ace_lora supplies the two functions.
OVERRIDES = "mojimoji==0.0.13 ; python_full_version < '3.13'\n"
BASE_HEADER = """\
# Exact versions of everything the base installation consists of, but for PyTorch (requirements/torch.txt), with the
# checksums of their files, for Python 3.10 to 3.14 on Windows, Linux and macOS. `python start.py` installs it; by hand:
# pip install -r requirements/torch.txt, then pip install --require-hashes --no-deps -r requirements.txt
# Made from requirements/base.in by requirements/lock.py.
"""


def resolve(source: Path, lock: Path) -> dict[str, str]:
    """Every package that `source` leads to: `name==version ; marker` and its whole entry with checksums."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-header", "--no-annotate"]
    with tempfile.TemporaryDirectory() as folder:
        output, overrides = Path(folder) / "lock.txt", Path(folder) / "overrides.txt"
        overrides.write_text(OVERRIDES, encoding="utf-8")
        command += ["--override", str(overrides)]
        if lock.exists():
            # uv keeps the versions of the file that it is to write.
            output.write_text(lock.read_text(encoding="utf-8"), encoding="utf-8")
        if source.name != "base.in":
            command += ["--constraint", str(HERE / "base.in"), "--constraint", str(HERE.parent / "requirements.txt")]
        subprocess.run([*command, str(source), "--output-file", str(output)], check=True, cwd=HERE)
        entries = re.split(r"\n(?=\S)", output.read_text(encoding="utf-8").strip())
    return {entry.split(" \\\n")[0]: entry for entry in entries if not WITH_TORCH.match(entry)}


def main() -> None:
    base = resolve(HERE / "base.in", HERE.parent / "requirements.txt")
    lines = BASE_HEADER + "\n".join(base.values()) + "\n"
    (HERE.parent / "requirements.txt").write_text(lines, encoding="utf-8", newline="\n")
    names = {line.split("==")[0] for line in base}
    for source in sorted(HERE.glob("*.in")):
        if source.name == "base.in":
            continue
        group = source.stem
        lock = HERE / f"{group}.txt"
        entries = [entry for line, entry in resolve(source, lock).items() if line.split("==")[0] not in names]
        what = source.read_text(encoding="utf-8").splitlines()[0]
        header = f"{what}. Install on top of requirements.txt: python start.py install {group}\n"
        header += f"# Made from requirements/{group}.in by requirements/lock.py.\n"
        lock.write_text(header + "\n".join(entries) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
