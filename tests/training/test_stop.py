"""What asks a training to end."""

import os
import signal
import sys
import time

import pytest

from ace_lora.training.output import RunOutput
from ace_lora.training.stop import StopRequest


@pytest.fixture
def request_for(tmp_path):
    def make(**options):
        return StopRequest(tmp_path, RunOutput(), **options)

    return make


@pytest.mark.parametrize("content", ["", "stop\n", " STOP\r\n"])
def test_a_file_that_comes_after_the_start_is_a_request_and_is_removed(request_for, tmp_path, content):
    stop = request_for()
    assert not stop.requested()
    (tmp_path / "STOP").write_text(content, encoding="ascii")
    assert stop.look_for_old_file(time.time() - 1) is None and stop.requested()
    stop.forget_file()
    assert not (tmp_path / "STOP").exists() and not stop.requested()


def test_a_folder_or_a_link_to_nothing_is_no_request(request_for, tmp_path):
    (tmp_path / "STOP").mkdir()
    stop = request_for()
    assert stop.look_for_old_file(time.time()) is None and not stop.requested()
    stop.forget_file()
    assert (tmp_path / "STOP").is_dir()


def test_a_lost_reader_asks_unless_it_was_started_to_go_on(request_for):
    for go_on in (False, True):
        stop = request_for(go_on_unread=go_on)
        stop._output.reader_gone = True
        assert stop.requested() is stop.unread() is not go_on


@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes no terminal by a signal")
@pytest.mark.parametrize(("ignored", "go_on"), [(False, False), (False, True), (True, False)])
def test_a_closed_terminal_saves_and_ends_once(request_for, ignored, go_on):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        stop = request_for(go_on_unread=go_on)
        stop.install()
        for _ in range(3):  # the system and the shell may both say so
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested() is (not ignored and not go_on)
        stop.remove()
    finally:
        signal.signal(signal.SIGHUP, before)
