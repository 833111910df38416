"""How scripts end: real child processes that call `run_script` with a `main` of every kind of outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ace_lora.commands import ENDS_WITH_INPUT, WrongInput

HOME = Path(__file__).resolve().parent.parent


def command(body: str) -> list[str]:
    """A Python command that runs `body` as the `main` of a script."""
    indented = "\n".join("    " + line for line in body.splitlines())
    code = (
        "import argparse, sys, time\n"
        "from ace_lora.commands import StepFailed, WrongInput, run_script\n"
        f"def main(args):\n{indented}\n"
        "sys.exit(run_script(main, argparse.Namespace()))"
    )
    return [sys.executable, "-c", code]


def run(body: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(body), cwd=HOME, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize(
    ("body", "status", "errors"),
    [
        ("print('done 晴天')", 0, ""),
        ("raise WrongInput(['one', 'two'])", 2, "error: one\nerror: two\n"),
        ("raise StepFailed('2 of 3 songs failed')", 1, "error: 2 of 3 songs failed\n"),
        ("raise KeyboardInterrupt", 130, "Interrupted. Run the same command again to go on.\n"),
    ],
)
def test_every_outcome_has_its_status_and_sentence(body, status, errors):
    answer = run(body)
    assert (answer.returncode, answer.stderr) == (status, errors)


def test_a_full_disk_is_a_sentence():
    answer = run("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'D:/songs/晴天.wav')")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: Cannot use 'D:/songs/晴天.wav': ")
    assert "Traceback" not in answer.stderr


def test_a_bug_keeps_its_traceback_and_asks_for_a_report():
    answer = run("return {}['nothing']")
    assert answer.returncode == 1
    assert "KeyError: 'nothing'" in answer.stderr
    assert "This is a bug; please report it" in answer.stderr


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM that a process could catch")
def test_a_request_to_end_is_an_interruption():
    process = subprocess.Popen(
        command("print('ready')\ntime.sleep(60)"), cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "Interrupted. Run the same command again to go on.\n")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT that is left ignored")
def test_an_interruption_works_where_the_starter_ignored_it():
    process = subprocess.Popen(
        command("print('ready')\ntime.sleep(60)"),
        cwd=HOME,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does with `&`
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "Interrupted. Run the same command again to go on.\n")


SWALLOWED = """
    class Held:
        def __del__(self):
            print('ready')
            end = time.monotonic() + 30
            while time.monotonic() < end:
                pass
    Held()
    time.sleep(60)"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM that a process could catch")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_inside_a_destructor_is_not_lost(number):
    process = subprocess.Popen(command(SWALLOWED), cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "Interrupted. Run the same command again to go on.\n")


def start_held(body: str) -> subprocess.Popen:
    """`body` as a script whose standard input the window holds."""
    pipe = subprocess.PIPE
    environment = {**os.environ, ENDS_WITH_INPUT: "1"}
    return subprocess.Popen(command(body), cwd=HOME, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


SAVES = """
try:
    print('ready')
    time.sleep(60)
except KeyboardInterrupt:
    for _ in range(1000):
        print('saving', 'x' * 1000)
    open(PATH, 'w').write('saved')
    raise"""


def test_a_script_saves_and_ends_with_the_window_that_holds_its_input(tmp_path):
    path = tmp_path / "saved.txt"
    process = start_held(SAVES.replace("PATH", repr(str(path))))
    assert process.stdout.readline() == "ready\n"
    for stream in (process.stdout, process.stderr, process.stdin):  # as the end of the window's process does
        stream.close()
    assert process.wait(timeout=30) == 130
    assert path.read_text() == "saved"


def test_only_who_asks_for_it_ends_with_its_input():
    process = subprocess.run(
        command("time.sleep(0.5); print('done')"), cwd=HOME, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (0, "done\n")


def test_what_a_held_script_starts_has_no_input_and_is_not_held():
    inner = f"import os, sys; print(repr(sys.stdin.read()), {ENDS_WITH_INPUT!r} in os.environ)"
    process = start_held(f"import subprocess; subprocess.run([sys.executable, '-c', {inner!r}])")
    assert process.stdout.read() == "'' False\n"
    assert process.wait(timeout=30) == 0
    process.communicate()


def test_a_held_script_that_does_not_listen_is_ended():
    process = start_held("""
import ace_lora.commands
ace_lora.commands.SAVING_SECONDS = 0.3
print('ready')
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass""")
    assert process.stdout.readline() == "ready\n"
    process.stdin.close()
    assert process.wait(timeout=30) == 130
    for stream in (process.stdout, process.stderr):
        stream.close()


def test_a_reader_that_left_is_no_full_disk():
    process = subprocess.Popen(
        command("while True: print('line')"), cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=30), errors) == (1, "")


def test_one_problem_may_be_given_as_a_text():
    assert WrongInput("one").problems == ["one"]
    assert str(WrongInput(["one", "two"])) == "one\ntwo"
