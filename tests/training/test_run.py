"""Run with: pytest tests/training/test_run.py

Six optimizer steps of the loop are compared with the published trainer's (goldens, float32 on a CPU).
"""

import re

import pytest
import torch

import trainer_new
from ace_lora.device import HostCopy
from ace_lora.lora import layers as adapter
from ace_lora.training import run
from ace_lora.training.optimizers import RateSchedule, build_optimizer
from ace_lora.training.plan import Draw, Plan
from ace_lora.training.run import make_fabric, run_steps
from ace_lora.training.state import AdapterAverage, TrainingState
from ace_lora.training.step import MOST_STEPS_UNSEEN, NotFinite, TrainedStep
from ace_lora.v1.flow_matching import build_schedule
from tests.training.test_step import golden, make_batch, make_model


class OneSong:
    """Feeds the loop the golden's noise and timesteps."""

    def __init__(self, case, count):
        self.case, self.count = case, count

    def __iter__(self):
        for step in range(self.count):
            batch = make_batch("t1", self.case, noise_key=f"t1.noise.{step}", indices=[(137 * step + 29) % 1000])
            batch.draws = [Draw(0, step, step, 1.0, True)]
            yield batch


class Kept:
    """Reports that are kept instead of printed; `look` is called at each."""

    def __init__(self, look=lambda: None):
        self.found, self.looks, self.look = [], [], look

    def start(self):
        pass

    restart_clock = start

    def step(self, report, *, validates):
        assert not validates
        self.found.append(report)
        self.looks.append(self.look())


def run_loop(model, tensors, made_optimizer, feed, steps, reports, /, *, average=None, each_step=bool, **flags):
    """The trainer's own loop on a feed of the goldens; the state after it, also where it raised."""
    args = trainer_new.parse_args(["--dataset_path", "", "--warmup_steps", "0", "--gradient_clip_val", "0"])
    vars(args).update({"save_every_n_train_steps": 10**9, "max_steps": steps, **flags})
    state = TrainingState(tensors, tensors, made_optimizer, average=average)
    schedule = RateSchedule(args.optimizer, "linear", args.learning_rate, args.warmup_steps, args.max_steps)
    fabric = make_fabric(args, torch.device("cpu"))
    fabric.launch()
    module = fabric.setup_module(TrainedStep(model, build_schedule(3.0), tensors, ssl_coeff=args.ssl_coeff))

    def stop():
        each_step()
        return False

    try:
        run_steps(
            *(args, Plan([37], seed=0), schedule, fabric, module, state, feed, reports),
            validate=None,
            save=lambda: None,
            stop=stop,
        )
    except NotFinite as error:
        state.take_back(error.step)
        return state, error
    return state, None


@pytest.mark.parametrize("name_of_run", ["adamw", "prodigy", "prodigy_zeroB"])
def test_six_steps_of_the_loop(name_of_run):
    trajectory = golden("trajectory_t1.json")
    expected, flags = trajectory["runs"][name_of_run]["rows"], trajectory["runs"][name_of_run]["hparams"]
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    if name_of_run == "prodigy_zeroB":
        with torch.no_grad():
            for key, tensor in tensors.items():
                if key.endswith("lora_B.weight"):
                    tensor.zero_()
    name = name_of_run.split("_")[0]
    optimizer = build_optimizer(
        name,
        tensors.values(),
        learning_rate=flags["learning_rate"],
        betas=tuple(flags["betas"]),
        weight_decay=flags["weight_decay"],
    )

    def norms():
        return [
            sum(t.detach().square().sum() for key, t in tensors.items() if f".lora_{which}." in key).sqrt().item()
            for which in "AB"
        ]

    reports = Kept(norms)
    run_loop(
        *(model, tensors, optimizer, OneSong(case, 6), flags["max_steps"], reports),
        optimizer=name,
        learning_rate=flags["learning_rate"],
        warmup_steps=flags["warmup_steps"],
        gradient_clip_val=flags["clip"],
    )
    found = list(zip(reports.found, reports.looks, strict=True))
    assert len(found) == len(expected) == 6
    for (report, (norm_a, norm_b)), row in zip(found, expected, strict=True):
        assert report.step == row["step"] + 1
        assert report.values["learning_rate"] == pytest.approx(row["lr"], abs=1e-12)
        assert report.values["loss"] == pytest.approx(row["loss"], rel=1e-3)
        assert report.values["grad_norm"] == pytest.approx(row["grad_norm_before_clip"], rel=1e-3)
        assert norm_a == pytest.approx(row["param_norm_A"], rel=1e-3)
        assert norm_b == pytest.approx(row["param_norm_B"], rel=1e-3, abs=1e-9)
        if row["d"] is not None:
            assert report.values["prodigy_d"] - 1e-6 == pytest.approx(row["d"] - 1e-6, rel=2e-2, abs=1e-12)


class Song(OneSong):
    """The golden's song, with one step whose latents hold no number."""

    def __init__(self, case, count, bad_step):
        super().__init__(case, count)
        self.bad_step = bad_step

    def __iter__(self):
        for step, batch in enumerate(super().__iter__(), 1):
            batch.names = [f"歌 {step}"]
            if step == self.bad_step:
                batch.latents[0, 0, 0, 0] = float("nan")
            yield batch


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_no_number_stops_before_the_weights_change(what):
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}

    if what == "gradient":
        next(iter(tensors.values())).register_hook(lambda gradient: gradient * float("inf"))
    optimizer = build_optimizer("adamw", tensors.values(), learning_rate=1.0, betas=(0.9, 0.99), weight_decay=0.1)
    reports, feed = Kept(), Song(case, 5, bad_step=1 if what == "loss" else None)
    state, error = run_loop(model, tensors, optimizer, feed, 5, reports, learning_rate=1.0)
    assert "歌 1" in str(error)
    assert reports.found == [] and state.step == 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("behind", [False, True])
def test_steps_that_follow_a_bad_one_change_nothing(behind, monkeypatch):
    """`behind`: as on a card, whose numbers come when nobody waits for them any more."""
    if behind:
        monkeypatch.setattr(HostCopy, "is_there", lambda self: False)
    case = golden("train_t1.json")

    def train(name, steps, bad_step):
        model = make_model(case)
        tensors = adapter.adapter_tensors(model)
        optimizer = build_optimizer("adamw", tensors.values(), learning_rate=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
        reports, average = Kept(), AdapterAverage(tensors, 0.9)
        flags = {"learning_rate": 1e-2, "gradient_clip_val": 1.0, "average": average}
        state, error = run_loop(model, tensors, optimizer, Song(case, steps, bad_step), 12, reports, **flags)
        if bad_step:
            assert re.search(f"loss of step {bad_step} .* '歌 {bad_step}'", str(error))
        else:
            assert error is None
        assert [report.step for report in reports.found] == list(range(1, (bad_step or steps + 1)))
        assert state.step == len(reports.found)
        moments = {
            f"{place}/{name}": value
            for place, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        assert {float(value) for name, value in moments.items() if name.endswith("/step")} == {
            float(len(reports.found))
        }
        return {**tensors, **moments, **{f"ema/{k}": t for k, t in average.tensors.items()}}, average.updates

    stopped, updates = train("bad", 6, 3)
    expected, expected_updates = train("good", 2, None)
    assert updates == expected_updates == 2
    assert set(stopped) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(stopped[key], tensor), key


def test_numbers_are_not_waited_for_until_many_are_out(monkeypatch):
    monkeypatch.setattr(HostCopy, "is_there", lambda self: False)
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    optimizer = build_optimizer("adamw", tensors.values(), learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    reports, seen, steps = Kept(), [], MOST_STEPS_UNSEEN + 3
    run_loop(
        *(model, tensors, optimizer, OneSong(case, steps), 100, reports),
        learning_rate=1e-3,
        ssl_coeff=0.0,
        each_step=lambda: seen.append((len(seen) + 1, len(reports.found))),
    )
    assert seen[:MOST_STEPS_UNSEEN] == [(step, 0) for step in range(1, MOST_STEPS_UNSEEN + 1)]
    assert [reported for _, reported in seen[MOST_STEPS_UNSEEN:]] == [1, 2, 3]
    assert [report.step for report in reports.found] == list(range(1, MOST_STEPS_UNSEEN + 4))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(algorithm, monkeypatch):
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    reports, gradients = Kept(), {}
    clip = run.clip_gradients

    def watched(args, parameters, norm):
        parameters = list(parameters)
        gradients["before"] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        clip(args, parameters, norm)
        gradients["after"] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    monkeypatch.setattr(run, "clip_gradients", watched)
    optimizer = build_optimizer("adamw", tensors.values(), learning_rate=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    flags = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm, "learning_rate": 0.0}
    run_loop(model, tensors, optimizer, OneSong(case, 1), 1, reports, **flags)
    grad_norm = reports.found[0].values["grad_norm"]
    assert grad_norm > 0.01 and grad_norm == pytest.approx(gradients["before"].norm().item(), rel=1e-5)
    if algorithm == "norm":
        expected = gradients["before"] * (0.01 / gradients["before"].norm())
    else:
        expected = gradients["before"].clamp(-0.01, 0.01)
    torch.testing.assert_close(gradients["after"], expected, rtol=1e-3, atol=0)


def test_rate_after_exactly_one_step():
    """The step that follows one finished step has the rate of the schedule there, not of the one before or after."""
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    optimizer = build_optimizer("adamw", tensors.values(), learning_rate=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    reports = Kept(lambda: optimizer.param_groups[0]["lr"])
    run_loop(model, tensors, optimizer, OneSong(case, 4), 10, reports, learning_rate=1e-4, warmup_steps=2)
    assert [report.values["learning_rate"] for report in reports.found] == reports.looks == [0.0, 5e-5, 1e-4, 8.75e-5]
