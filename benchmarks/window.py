"""How the window bears a flood of output, and how fast it opens.

    python benchmarks/window.py            all figures, as a table
    python benchmarks/window.py --seconds 10 --rate 100000

A child process prints lines of 116 characters at the given rate through the window's own runner and log pane. Measured:
the longest time for which the event loop did nothing else (a heartbeat of 5 ms tells), lines read, memory. Then the
same for a progress bar redrawn 3,000 times, and the time from the start of the interpreter to the first painted window.
Needs a display, or Xvfb, which it starts itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import ace_gui  # noqa: E402 (it stands beside this folder)

FLOOD = """
import sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
block, number, begin = rate // 100, 0, time.monotonic()
while True:
    spent = time.monotonic() - begin
    if spent >= seconds:
        break
    if number <= spent * rate:
        sys.stdout.write("".join(f"line {n:09} " + "x" * 101 + "\\n" for n in range(number, number + block)))
        number += block
    else:
        time.sleep(0.001)
sys.stdout.flush()
print(f"printed {number} lines", file=sys.stderr)
"""
BAR = """
import sys, time
for n in range(3000):
    sys.stderr.write(f"\\r{n/30:.0f}%|{'#' * (n // 100)}| {n}/3000 [00:01<00:02, 300.00it/s]")
    sys.stderr.flush()
    time.sleep(0.001)
print("end of the bar")
"""


def memory_mb() -> float:
    """Resident memory of this process; nan where the system does not tell it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return float("nan")


def watch(app: ace_gui.App, code: str, *arguments: str) -> dict[str, float]:
    """Run `code` as a child of the window and measure what the event loop bears."""
    stalls: list[float] = []
    work: list[float] = []
    last, last_work = time.monotonic(), time.thread_time()

    def beat() -> None:
        nonlocal last, last_work
        now, now_work = time.monotonic(), time.thread_time()
        stalls.append(now - last)
        work.append(now_work - last_work)
        last, last_work = now, now_work
        app.root.after(5, beat)

    highest = before = memory_mb()
    app.runs.command(["-c", code, *arguments], "benchmark", lambda: None, Path(sys.executable))
    app.root.after(5, beat)
    begin = time.monotonic()
    while app.session.state != "idle":
        app.root.dooneevent() if hasattr(app.root, "dooneevent") else app.root.tk.dooneevent(0)
        highest = max(highest, memory_mb())
    seconds = time.monotonic() - begin
    return {
        "lines": app.runs.runner.text.total,
        "seconds": seconds,
        "lines/s": app.runs.runner.text.total / seconds,
        "longest stall ms": max(stalls) * 1000,
        "... of that computing, ms": max(work) * 1000,  # the rest is waiting, also for other programs' use of the cores
        "99 % of gaps below ms": statistics.quantiles(stalls, n=100)[-1] * 1000,
        "memory before MB": before,
        "memory highest MB": highest,
    }


def startup_seconds(folder: Path, runs: int = 5) -> list[float]:
    """From starting the interpreter to the first painted window, each in a fresh process."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport ace_gui; from pathlib import Path\n"
        "program = Path(sys.argv[1]); root = ace_gui.open_root()\n"
        "app = ace_gui.App(root, program, ace_gui.Settings.load(program / 's.json'))\nroot.update()\n"
        "print('painted', flush=True)\n"
    )
    found = []
    for _ in range(runs):
        begin = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        found.append(time.monotonic() - begin)
        process.wait()
    return found


def measure_all(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CONFIG_HOME"] = os.environ["APPDATA"] = name  # the log of a run without project goes there
        starts = startup_seconds(folder)
        median, slowest = statistics.median(starts), max(starts)
        print(f"start to painted window: median {median:.2f} s, slowest {slowest:.2f} s of {len(starts)}")
        app = ace_gui.App(ace_gui.open_root(), folder, ace_gui.Settings(folder / "s.json", language="en", scale="100"))
        app.root.update()
        app.environment.asking = True  # the question to the scripts' Python is no part of this
        for title, code, arguments in (
            (f"{args.rate} lines/s for {args.seconds:g} s", FLOOD, (str(args.rate), str(args.seconds))),
            ("a bar redrawn 3,000 times", BAR, ()),
        ):
            print(title)
            for key, value in watch(app, code, *arguments).items():
                print(f"    {key:28} {value:12,.1f}")
        app.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description="The window under a flood of output, and its start.")
    parser.add_argument("--rate", type=int, default=100_000, help="lines per second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the flood (default: %(default)s)")
    args = parser.parse_args()
    server = None
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        if not shutil.which("Xvfb"):
            raise SystemExit("error: There is no display. Set DISPLAY or install Xvfb.")
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x720x24", "-nolisten", "tcp"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert server.stdout is not None
        os.environ["DISPLAY"] = ":" + server.stdout.readline().decode().strip()
    try:
        measure_all(args)
    finally:
        if server is not None:
            server.terminate()
    print(json.dumps({"python": sys.version.split()[0], "platform": sys.platform, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
