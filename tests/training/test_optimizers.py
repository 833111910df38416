"""Run with: pytest tests/test_optimizers.py

Expected numbers: the published trainer's schedule, and prodigyopt with its options on a toy problem (goldens).
"""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy
import pytest
import torch

from ace_lora.training import optimizers

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"


def rnd(name, shape):
    generator = numpy.random.Generator(numpy.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(generator.standard_normal(int(numpy.prod(shape)), dtype=numpy.float32).reshape(shape))


@pytest.mark.parametrize("case", json.loads((GOLDEN / "lr_multipliers.json").read_text(encoding="utf-8")))
def test_schedule(case):
    for step, expected in case["multiplier"].items():
        schedule = optimizers.RateSchedule(
            case["optimizer"], "linear", 1.0, warmup_steps=case["warmup_steps"], max_steps=case["max_steps"]
        )
        assert schedule.rate(int(step)) == pytest.approx(expected, abs=1e-12)


def rates(schedule, *steps):
    return [schedule.rate(step) for step in steps]


def test_other_schedules():
    cosine = optimizers.RateSchedule("adamw", "cosine", 2.0, 2, 10)
    assert rates(cosine, 0, 1, 2, 6, 10) == pytest.approx([0, 1, 2, 1, 0], abs=1e-12)
    constant = optimizers.RateSchedule("adamw", "constant", 2.0, 2, 10)
    assert rates(constant, 0, 1, 2, 9) == [0, 1, 2, 2]
    prodigy = optimizers.RateSchedule("prodigy", "cosine", 1.0, 0, 10)
    assert rates(prodigy, 0, 5, 10) == pytest.approx([1, 0.55, 0.1])


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_run_that_goes_on_never_raises_the_rate_unasked(kind):
    old = optimizers.RateSchedule("adamw", kind, 1e-3, 10, 100)
    assert old.changed(dataclasses.replace(old), 50) is old
    for step in (50, 100):
        for more in (60 if step == 50 else 101, 300):
            longer = old.changed(dataclasses.replace(old, max_steps=more), step)
            ahead = rates(longer, *range(step, more))
            assert ahead[0] == pytest.approx(old.rate(step - 1), rel=1e-12)
            assert ahead == sorted(ahead, reverse=True)
            end = ahead[0] if kind == "constant" else 0
            assert longer.rate(more) == pytest.approx(end, abs=1e-12)
            again = longer.changed(dataclasses.replace(old, max_steps=more + 50), more)
            assert again.rate(more) == pytest.approx(longer.rate(more - 1), rel=1e-12)
    # A rate that is given anew is where it goes on from, up or down.
    raised = old.changed(dataclasses.replace(old, peak=5e-3), 60)
    assert raised.rate(60) == 5e-3 and raised.rate(80) <= 5e-3
    # Still in the warm-up it goes on rising.
    early = old.changed(dataclasses.replace(old, max_steps=500), 4)
    assert rates(early, 4, 10) == pytest.approx([4e-4, 1e-3])


def test_prodigy_on_the_toy_problem(capsys):
    golden = json.loads((GOLDEN / "prodigy_toy.json").read_text(encoding="utf-8"))
    a = torch.nn.Parameter(rnd("toy.a", (5, 7)) / numpy.float32(numpy.sqrt(7)))
    b = torch.nn.Parameter(torch.zeros(4, 6))
    ta, tb = rnd("input:toy.ta", (5, 7)), rnd("input:toy.tb", (4, 6))
    optimizer = optimizers.build_optimizer(
        "prodigy",
        [a, b],
        learning_rate=golden["lr"],
        betas=tuple(golden["betas"]),
        weight_decay=golden["weight_decay"],
    )
    assert capsys.readouterr().out == ""
    rows = {row["step"]: row for row in golden["rows"]}
    for step in range(60):
        optimizer.zero_grad()
        loss = 0.5 * (a - ta).square().sum() + 0.5 * (b - tb).square().sum()
        loss.backward()
        optimizer.step()
        if step in rows:
            row = rows[step]
            assert loss.item() == pytest.approx(row["loss_before"], rel=1e-4)
            assert optimizers.prodigy_d(optimizer) == pytest.approx(row["d"], rel=1e-4)
            for name, tensor in (("a", a), ("b", b)):
                check = (tensor.detach().double() * rnd(f"check:toy.{name}", tensor.shape).double()).sum().item()
                assert check == pytest.approx(row[f"check_{name}"], abs=3e-4 * tensor.norm().item())
    assert optimizers.d_warning(optimizers.prodigy_d(optimizer), 60) is None


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_optimizer_lowers_a_loss_with_float32_parameters(name, capsys):
    assert optimizers.optimizer_problems(name) == []
    target = rnd("target", (80, 80))
    parameter = torch.nn.Parameter(torch.zeros(80, 80))
    rate = 1.0 if name in optimizers.PRODIGIES else 0.05
    optimizer = optimizers.build_optimizer(name, [parameter], learning_rate=rate, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (parameter - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * target.square().mean().item()
    assert parameter.dtype == torch.float32
    d = optimizers.prodigy_d(optimizer)
    assert (d is None) == (name not in optimizers.PRODIGIES)
    if name == "adamw":
        assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32
    if name == "adamw8bit":
        assert optimizer.state[parameter]["state1"].dtype == torch.uint8
    assert capsys.readouterr().out == ""


def warn(name="adamw", learning_rate=1e-4, beta2=0.99, max_steps=2000, clip=1.0):
    return optimizers.optimizer_warnings(name, learning_rate=learning_rate, beta2=beta2, max_steps=max_steps, clip=clip)


def test_warnings():
    assert warn() == []
    assert len(warn(beta2=0.9999)) == 1 and "1 / max_steps" in warn(beta2=0.9999)[0]
    assert warn(beta2=0.999, max_steps=2000) == []
    assert len(warn("prodigy")) == 1 and "--learning_rate 1" in warn("prodigy")[0]
    assert warn("prodigy", learning_rate=1.0) == []
    assert len(warn(learning_rate=1.0)) == 1
    assert "clipping" in warn("prodigy_schedule_free", learning_rate=1.0)[0]
    assert warn("prodigy_schedule_free", learning_rate=1.0, clip=0) == []


def test_prodigy_d_that_does_not_rise_is_said():
    assert "hardly trains" in optimizers.d_warning(1e-6, 100)
    assert optimizers.d_warning(2e-6, 100) is None
