"""The process runner of ace_gui.py with real children. Needs no display."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ace_gui
from ace_gui import Event, Runner, Settings
from tests.gui.window import gone


class Run:
    """A runner and what it told."""

    def __init__(self, tmp_path: Path):
        self.runner = Runner()
        self.folder = tmp_path
        self.log = tmp_path / "logs" / "run.log"
        self.events: list[Event] = []
        self.lines: list[str] = []

    def start(self, code: str, stop_file: Path | None = None) -> Run:
        environment = Settings(self.folder / "s.json").child_environment()
        self.runner.start([sys.executable, "-c", code], self.folder, environment, self.log, stop_file)
        return self

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> Run:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.events} {self.lines[-5:]}"
            self.events += self.runner.poll()
            self.lines += self.runner.text.take(10**6)[1]
            time.sleep(0.005)
        return self

    def wait(self, seconds: float = 30.0) -> Run:
        self.until(lambda: any(event.kind == "ended" for event in self.events), seconds)
        self.lines += self.runner.text.take(10**6)[1]
        return self

    @property
    def code(self) -> int | None:
        return self.events[-1].code


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_exit_0_with_output_of_both_streams(run: Run):
    run.start("import sys; print('out'); print('err', file=sys.stderr)").wait()
    assert [(event.kind, event.code) for event in run.events] == [("started", None), ("ended", 0)]
    assert sorted(run.lines) == ["err", "out"]
    assert not run.runner.active


def test_exit_3(run: Run):
    assert run.start("raise SystemExit(3)").wait().code == 3


def test_program_that_does_not_exist(run: Run):
    run.runner.start(["/no/such/program"], run.folder, dict(os.environ), run.log)
    run.wait()
    assert [(event.kind, event.code) for event in run.events] == [("ended", None)]
    assert "/no/such/program" in run.events[0].error
    assert not run.runner.active


def test_working_folder_that_does_not_exist(run: Run):
    run.runner.start([sys.executable, "-c", "pass"], run.folder / "nowhere", dict(os.environ), None)
    assert run.wait().code is None


def test_no_new_line_at_the_end(run: Run):
    assert run.start("import sys; sys.stdout.write('a\\nlast')").wait().lines == ["a", "last"]


def test_progress_bar_is_one_line(run: Run):
    code = "import sys\nfor n in range(1, 101):\n    sys.stderr.write(f'\\r{n}%|#| {n}/100')\nprint(file=sys.stderr)"
    assert run.start(code).wait().lines == ["100%|#| 100/100"]


def test_split_character_and_invalid_bytes(run: Run):
    code = (
        "import os, time\ndata = '歌词'.encode()\nos.write(1, data[:4])\ntime.sleep(0.2)\n"
        "os.write(1, data[4:] + b'\\n')\n"
        "os.write(1, b'x\\xff\\xfey\\n')"
    )
    assert run.start(code).wait().lines == ["歌词", "x\ufffd\ufffdy"]


def test_the_first_line_comes_before_the_child_ends(run: Run):
    run.start("import time; print('first'); time.sleep(60)")
    run.until(lambda: run.lines == ["first"])
    run.runner.kill()
    run.wait()


def test_the_child_prints_utf_8(run: Run):
    assert run.start("print('中文 🎵')").wait().lines == ["中文 🎵"]


def test_20000_lines_at_once_all_in_the_file(run: Run):
    run.start("import sys; sys.stdout.write(''.join(f'line {n}\\n' for n in range(20000)))")
    text = run.runner.text
    while run.runner.active:  # a window that looks away for the whole run
        run.events += run.runner.poll()
        time.sleep(0.01)
    skipped, lines, _ = text.take(10**6)
    assert (text.total, skipped + len(lines), len(lines), lines[-1]) == (
        20000,
        20000,
        ace_gui.MAX_LOG_LINES,
        "line 19999",
    )
    assert run.log.read_text(encoding="utf-8").splitlines()[1:] == [f"line {n}" for n in range(20000)]


def test_the_log_file_names_the_command(run: Run):
    run.start("pass").wait()
    assert sys.executable in run.log.read_text(encoding="utf-8").splitlines()[0]


def test_input_is_closed(run: Run):
    assert run.start("import sys; print(repr(sys.stdin.read()))").wait(10).lines == ["''"]


def test_gentle_stop_is_an_interrupt(run: Run):
    code = (
        "import time\ntry:\n    print('ready'); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('saved'); raise SystemExit(130)"
    )
    run.start(code).until(lambda: "ready" in run.lines)
    run.runner.request_stop()
    run.wait()
    assert (run.code, run.lines) == (130, ["ready", "saved"])


def test_gentle_stop_by_file(run: Run):
    stop = run.folder / "checkpoints" / "STOP"
    code = (
        f"import pathlib, time\nprint('ready')\n"
        f"while not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.01)\nprint('saved')"
    )
    run.start(code, stop).until(lambda: "ready" in run.lines)
    run.runner.request_stop()
    assert run.wait().code == 0
    assert run.lines == ["ready", "saved"]


def test_child_that_ignores_the_gentle_stop_is_killed(run: Run):
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)"
    run.start(code).until(lambda: "ready" in run.lines)
    run.runner.request_stop()
    run.runner.request_stop()
    time.sleep(0.1)
    assert run.runner.active and run.runner.stopping == "gentle"
    run.runner.kill()
    assert run.wait(10).code == -9


def test_stop_before_the_process_exists_still_counts(run: Run):
    run.start("import time; time.sleep(60)")
    run.runner.kill()
    assert run.wait(10).code == -9


@pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX")
@pytest.mark.parametrize("kill", [True, False])
def test_grandchild_that_holds_the_pipe_dies_with_the_run(run: Run, kill: bool):
    code = (
        "import subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\nprint(inner.pid)\n"
        + ("time.sleep(600)" if kill else "")
    )
    run.start(code).until(lambda: bool(run.lines))
    grandchild = int(run.lines[0])
    if kill:
        run.runner.kill()
    run.wait(15)
    deadline = time.monotonic() + 5
    while not gone(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(grandchild)


def test_a_second_run_while_one_is_active_is_refused(run: Run):
    run.start("import time; time.sleep(60)")
    with pytest.raises(RuntimeError):
        run.start("print('second')")
    run.runner.kill()
    run.wait()


def test_events_and_text_of_an_old_run_do_not_reach_the_next(run: Run):
    run.start("print('first')").wait()
    run.runner.events.put(Event(run.runner.run, "ended", 9))
    run.events.clear()
    run.lines.clear()
    run.start("print('second')").wait()
    assert (run.code, run.lines) == (0, ["second"])


def test_nothing_of_the_runner_waits(run: Run):
    """Every method that the window calls returns at once, also with a child that does not react."""
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)"
    begin = time.monotonic()
    run.start(code)
    started = time.monotonic() - begin
    run.until(lambda: "ready" in run.lines)
    begin = time.monotonic()
    run.runner.request_stop()
    run.runner.kill()
    list(run.runner.poll())
    assert started < 0.5 and time.monotonic() - begin < 0.5
    run.wait()


def test_only_a_script_of_this_repository_gets_an_input_that_the_window_holds(run: Run, tmp_path: Path):
    body = "import os, sys; print('ACE_LORA_ENDS_WITH_INPUT' in os.environ)"
    own, fork = tmp_path / "own.py", tmp_path / "fork.py"
    own.write_text(f"try:\n    from ace_lora.commands import run_script\nexcept ImportError:\n    pass\n{body}")
    fork.write_text(f"{body}; print(repr(sys.stdin.read()))")
    for script, lines in ((own, ["True"]), (fork, ["False", "''"])):
        run.lines.clear()
        run.events.clear()
        run.runner.start([sys.executable, script.name], tmp_path, dict(os.environ), None)
        run.wait()
        assert (run.code, run.lines) == (0, lines)


def test_a_log_file_that_cannot_be_written_does_not_keep_a_step_from_running(run: Run):
    (run.folder / "logs").write_text("a file where the folder should be")
    assert run.start("print('ran')").wait().code == 0
    assert run.lines[-1] == "ran" and run.lines[0].startswith("[log file: ")


def test_tensorboard_that_is_missing_says_so(tmp_path: Path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named tensorboard" >&2\nexit 1\n')
    fake.chmod(0o755)
    board = ace_gui.TensorBoard()
    board.open(fake, tmp_path / "logs", tmp_path, dict(os.environ))
    assert board.answers.get(timeout=20)[0] == "missing"
    assert not board.alive


def test_tensorboard_that_cannot_start_says_so(tmp_path: Path):
    board = ace_gui.TensorBoard()
    board.open(tmp_path / "nothing", tmp_path / "logs", tmp_path, dict(os.environ))
    assert board.answers.get(timeout=20)[0] == "failed"
