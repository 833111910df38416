"""The window's owners that need no display, with what they said and asked; stand-in scripts run as real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ace_gui
from ace_gui import Environment, Importer, Outcome, Question, Reply, Session, Settings, StepRuns


class Desk:
    def __init__(self, program: Path, home: Path | None = None, **settings: Any):
        self.program = program
        self.settings = Settings(program / "settings.json", **{"language": "en", **settings})
        self.session = Session(program, self.settings)
        self.session.own_program = program
        self.runs = StepRuns(self.session)
        self.importer = Importer(self.session)
        self.environment = Environment(self.session, self.runs)
        self.asked: list[Question] = []
        self.lines: list[str] = []
        self.pages: list[tuple[str, list[str]]] = []
        self.painted = 0
        self.session.ask = self.asked.append
        self.session.log = lambda lines, current="", skipped=0: self.lines.extend(lines)
        self.session.lead_to = lambda page, wrong=(): self.pages.append((page, sorted(wrong)))
        self.session.repaint = self._paint
        self.session.open(home)

    def _paint(self) -> None:
        self.painted += 1

    def tick(self) -> None:
        self.session.tick()
        self.importer.tick()
        self.runs.tick()

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; log:\n" + "\n".join(self.lines[-50:])
            self.tick()
            time.sleep(0.005)

    def idle(self) -> bool:
        return self.session.state == "idle" and not self.runs.chain

    def tell(self, reply: Reply) -> Question | None:
        """As the window does with what a command answers; the question when it is one."""
        self.session.tell(reply)
        return reply if isinstance(reply, Question) else None

    def ended(self, reply: Reply = None) -> str:
        """The banner after everything that was started has ended."""
        assert self.tell(reply) is None
        self.until(self.idle)
        return self.banner()

    def banner(self) -> str:
        return self.session.banner.sentence if self.session.banner else ""

    def statuses(self) -> list[str]:
        self.session.look(force=True)
        return [self.runs.describe(step.key)[0] for step in ace_gui.STEPS]

    def close(self) -> None:
        self.runs.give_up()
        if self.runs.runner.active:
            self.runs.runner.kill()
        self.until(lambda: self.session.state in ("idle", "leaving"))
        self.session.release()


def question(reply: Reply) -> Question:
    assert isinstance(reply, Question), reply
    return reply


def outcome(reply: Reply) -> Outcome:
    assert isinstance(reply, Outcome), reply
    return reply
