"""How every script of the workflow ends: one exit status per kind of outcome, and a sentence instead of a traceback.

    0    everything that was asked for has been done
    1    a step failed, in whole or for some of the songs
    2    wrong input: flags, folders or files that cannot be used (argparse uses 2 as well)
    130  interrupted by the user; the same command can be run again

Standard library only, so that `--help` of a script that imports this answers at once.
"""

from __future__ import annotations

import _thread
import argparse
import atexit
import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

ENDS_WITH_INPUT = "ACE_LORA_ENDS_WITH_INPUT"  # the environment variable by which the window asks for `_end_with_input`
SAVING_SECONDS = 180.0  # a training step and saving may take long on a small card


class WrongInput(Exception):
    """Flags, folders or files that cannot be used; holds every problem found, not just the first.

    Each problem says what is wrong (the path or value, quoted), what was expected, and what to do next.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class StepFailed(Exception):
    """The input was usable but the step, or a part of it, could not be done."""


def refuse_old_flags(parser: argparse.ArgumentParser, names: Mapping[str, str]) -> None:
    """Let the flags of earlier or other programs (the keys of `names`) end with the name of what is here instead."""

    class OldFlag(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, flag: str | None = None):
            parser.error(f"{flag} is a flag of another program. Use {names[str(flag)]} instead.")

    for name in names:
        parser.add_argument(name, action=OldFlag, nargs="*", dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run_script(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a script's `main` and return its exit status; problems go to stderr as `error: …` lines.

    SIGTERM and, on Windows, CTRL_BREAK interrupt `main` as Ctrl+C does (KeyboardInterrupt). So does SIGINT, also where
    it was ignored at the start: a shell script leaves it so for what it starts with `&`, a window for example.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Started without a console, or with the stream closed.
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the script runs
    for stream in (sys.stdout, sys.stderr):
        # A Windows console or pipe may default to a code page that cannot print the user's song names.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    if os.environ.pop(ENDS_WITH_INPUT, ""):  # popped: not for what the script starts
        _end_with_input()
    _quieten_libraries()
    _interrupt_on_termination()
    # Before it ends, Python would search all that PyTorch has imported for garbage, which takes seconds.
    atexit.register(gc.freeze)
    try:
        main(args)
    except WrongInput as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output (a pager, `head`, a window that closed) is gone: nobody is left to tell.
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - Python flushes them at its end
        return EXIT_FAILED
    except OSError as error:
        # The disk is full, a file is locked by another program, a drive was unplugged: the user's to mend.
        print(f"error: {_describe_os_error(error)}", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and "I/O error" in str(error):
            # What would be an OSError in a library that is not written in Rust.
            print(f"error: {error}. Free the disk, then run the same command again.", file=sys.stderr)
            return EXIT_FAILED
        # Not foreseen, so a bug of ours: the traceback is what a report needs.
        traceback.print_exc()
        print(
            f"error: Unexpected failure: {error}. This is a bug; please report it with the lines above.",
            file=sys.stderr,
        )
        return EXIT_FAILED
    return EXIT_DONE


def _quieten_libraries() -> None:
    """Keep remarks on optional speed-ups, which some libraries make while they are imported, out of the user's log."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _interrupt_on_termination() -> None:
    def interrupt(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)
    report_unraisable = sys.unraisablehook

    def interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
        # Where the signal found the program in a destructor or a callback of a compiled library, Python prints the
        # KeyboardInterrupt and goes on. A moment later, outside of it, the same signal ends the script.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, _interrupt_main_thread).start()
        else:
            report_unraisable(unraisable)

    sys.unraisablehook = interrupt_again


class _Unheard(io.FileIO):
    """Output that goes on when nobody reads it any more, so that what follows an interruption can still be saved."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def _end_with_input() -> None:
    """Interrupt `main` when standard input ends: the window holds its other end, so it was closed or killed.

    The interruption is that of SIGTERM, so what has been done is saved. What is left after SAVING_SECONDS is ended.
    """
    window = os.dup(0)
    # What the script starts gets no input, as without a window; on Windows it would wait for the reading below.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for number, name in ((1, "stdout"), (2, "stderr")):
        output = io.BufferedWriter(_Unheard(number, "wb", closefd=False))
        setattr(sys, name, io.TextIOWrapper(output, encoding="utf-8", errors="replace", line_buffering=True))

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(window, 4096):
                pass
        _interrupt_main_thread()
        time.sleep(SAVING_SECONDS)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # and its workers, which would hold the card
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt_main_thread() -> None:
    number = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and number is not None:
        # Ends a wait of the main thread too, which `interrupt_main` does on Windows only.
        signal.pthread_kill(number, signal.SIGTERM)
    else:
        _thread.interrupt_main()


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"{reason}. Free the disk or close the program that uses the file, then run the same command again."
    return (
        f"Cannot use '{error.filename}': {reason}. "
        "Check the disk, the permissions and programs that hold the file open, then run the same command again."
    )
