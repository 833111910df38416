"""A sample of the wrong inputs of `tests/attack.py`; `python -m tests.attack` runs all of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests import attack

SAMPLE = 60


@pytest.mark.skipif(os.name != "posix", reason="the cases are forked")
def test_no_wrong_input_ends_badly(tmp_path):
    chosen = random.Random("2026").sample(list(attack.cases()), SAMPLE)
    # A process of its own: what forks should have no threads, and the test program has some.
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, str(Path.cwd()));"
        "from tests import attack; attack.load_libraries();"
        "world = Path(sys.argv[1]) / 'world'; attack.make_world(world);"
        "wanted = set(sys.stdin.read().splitlines());"
        "chosen = [case for case in attack.cases() if str(case) in wanted];"
        "results = [(*attack.judge(case, world), case) for case in chosen];"
        "[print(result, case, text[-1500:]) for result, text, case in results if result != 'ok'];"
        "print('judged', len(results))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input="\n".join(map(str, chosen)),
        capture_output=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == f"judged {SAMPLE}\n", done.stdout + done.stderr[-2000:]


def test_cases_have_names_of_their_own():
    names = [str(case) for case in attack.cases()]
    assert len(names) == len(set(names)) > 800
