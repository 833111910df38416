"""What a training prints, with readers that are gone, silent, or out of room. Pipes are real."""

import contextlib
import os
import sys
import threading
from pathlib import Path

import pytest

from ace_lora.commands import StepFailed
from ace_lora.training import output
from ace_lora.training.output import RunOutput


class Pipe:
    """Standard output as a pipe, for as long as it is entered."""

    def __enter__(self):
        self.reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w", encoding="utf-8", newline="")
        self.before, sys.stdout = sys.stdout, self.stream
        return self

    def __exit__(self, *error):
        sys.stdout = self.before
        for close in (self.stream.close, lambda: os.close(self.reader)):
            with contextlib.suppress(OSError):
                close()


def test_everything_is_kept_and_handed_on_in_order(tmp_path, capsys):
    with RunOutput() as run:
        print("早", end="")
        print(" before there is a file")
        run.keep(tmp_path / "log.txt")
        print("to error", file=sys.stderr)
        print("50%\r", end="")
        print("last, without an end", end="")
    expected = "早 before there is a file\nto error\n50%\rlast, without an end"
    assert (tmp_path / "log.txt").read_bytes().decode() == expected
    out, err = capsys.readouterr()
    assert (out, err) == (expected.replace("to error\n", ""), "to error\n") and not run.reader_gone


def test_a_pipe_gets_every_line():
    with Pipe() as pipe, RunOutput() as run:
        for number in range(500):
            print(f"line {number}")
        received = b""
        while received.count(b"\n") < 500:
            received += os.read(pipe.reader, 65536)
    assert received.decode().split() == [word for n in range(500) for word in ("line", str(n))]
    assert not run.reader_gone


def test_a_reader_that_is_gone_is_noticed_and_nothing_fails(tmp_path):
    with Pipe() as pipe, RunOutput() as run:
        run.keep(tmp_path / "log.txt")
        os.close(pipe.reader)
        print("one")
        for _ in range(500):
            if run.reader_gone:
                break
            threading.Event().wait(0.01)
        assert run.reader_gone
        print("two")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "one\ntwo\n"


def test_a_reader_that_does_not_read_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "LAST_WORDS_S", 0.1)
    with Pipe():
        with RunOutput() as run:
            run.keep(tmp_path / "log.txt")
            for number in range(3000):
                print(f"{number} " + 100 * "x")
        assert not run.reader_gone
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(3000)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_output_or_log_is_no_failure(tmp_path):
    before = sys.stdout
    with Path("/dev/full").open("w") as full:
        sys.stdout = full
        try:
            with RunOutput() as run:
                run.keep(tmp_path / "log.txt")
                print("one")
        finally:
            sys.stdout = before
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "one\n" and not run.reader_gone
    (tmp_path / "full.txt").symlink_to("/dev/full")
    with RunOutput() as run:
        run.keep(tmp_path / "full.txt")
        print("two")


def test_how_it_ended_is_in_the_log(tmp_path):
    with pytest.raises(StepFailed), RunOutput() as run:
        run.keep(tmp_path / "log.txt")
        raise StepFailed("The disk is full.")
    with pytest.raises(ZeroDivisionError), RunOutput() as run:
        run.keep(tmp_path / "bug.txt")
        1 / 0  # noqa: B018
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "error: The disk is full.\n"
    assert "ZeroDivisionError" in (tmp_path / "bug.txt").read_text(encoding="utf-8")
