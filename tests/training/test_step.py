"""Run with: pytest tests/test_training.py

Losses, gradients and six optimizer steps are compared with the published trainer's (goldens, float32 on a CPU).
"""

import contextlib
import copy
import functools
import json
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ace_lora.device import HostCopy
from ace_lora.lora import layers as adapter
from ace_lora.model.recompute import set_checkpointing
from ace_lora.training.batches import Batch, Draw, Plan, Prefetcher
from ace_lora.training.metrics import silence_libraries
from ace_lora.training.optimizers import build_optimizer
from ace_lora.training.step import (
    MOST_STEPS_UNSEEN,
    AdapterAverage,
    ConditionEncoder,
    LoraTraining,
    NotFinite,
    StepSettings,
    training_losses,
)
from ace_lora.v1.flow_matching import build_schedule
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig
from tests.golden_recipe import C1, C2, GOLDEN, check, fill, float_input, integer_input, prefix_mask


def golden(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def make_model(case):
    return copy.deepcopy(_filled_model(json.dumps(case["spec"])))


@functools.cache  # the lyric encoder has its published size: filling it takes seconds
def _filled_model(spec):
    spec = json.loads(spec)
    model = ACEStepTransformer(TransformerConfig.from_dict(C1 if spec["cfg"] == "C1" else C2))
    adapter.inject_adapter(model, spec["lora"])
    return fill(model).eval()


def make_batch(name, case, *, noise_key=None, indices=None):
    spec = case["spec"]
    items = len(spec["frames"])
    config = C1 if spec["cfg"] == "C1" else C2
    text, lyric = max(spec["text"]), max(1, *spec["lyric"])
    lyric_mask = prefix_mask(spec["lyric"], lyric)
    ids = integer_input(f"{name}.lyric_token_idx", (items, lyric), 1, config["lyric_encoder_vocab_size"])
    shape = (items, 8, 16, spec["T"])
    ssl_dims = config["ssl_latent_dims"]
    return Batch(
        draws=[Draw(0, 0, 0, 1 / items, True)] * items,
        names=["song"] * items,
        latents=float_input(f"{name}.hidden_states", shape),
        noise=float_input(noise_key or f"{name}.noise", shape),
        frame_mask=prefix_mask(spec["frames"], spec["T"]),
        timestep_indices=torch.tensor(indices or spec["tidx"]),
        text_ids=torch.zeros(items, text, dtype=torch.int64),
        text_mask=prefix_mask(spec["text"], text),
        lyric_ids=ids * lyric_mask.long(),
        lyric_mask=lyric_mask,
        ssl={
            "mert": [float_input(f"{name}.mert.{i}", (rows, ssl_dims[0])) for i, rows in enumerate(spec["mert"])],
            "m-hubert": [
                float_input(f"{name}.mhubert.{i}", (rows, ssl_dims[1])) for i, rows in enumerate(spec["mhubert"])
            ],
        },
        text_states=float_input(f"{name}.encoder_text_hidden_states", (items, text, config["text_embedding_dim"])),
        speaker_embeds=float_input(f"{name}.speaker_embeds", (items, config["speaker_embedding_dim"])),
    )


@pytest.mark.parametrize("name", ["t1", "t2", "t3"])
def test_losses_and_gradients_of_a_step(name):
    case = golden(f"train_{name}.json")
    model = make_model(case)
    losses = training_losses(
        model, build_schedule(3.0), make_batch(name, case), ssl_coeff=case["spec"]["ssl_coeff"], padding="reference"
    )
    for loss, expected in case["losses"].items():
        if case["spec"]["ssl_coeff"] > 0 or not loss.startswith("m"):  # heads do not run for nothing
            assert losses[loss].item() == pytest.approx(expected, rel=1e-5)
    losses["loss"].backward()
    tensors = adapter.adapter_tensors(model)
    assert set(tensors) == set(case["grads"])
    for key, expected in case["grads"].items():
        if expected["norm"] is None:
            assert tensors[key].grad is None
        else:
            tolerance = 1e-4 * case["total_grad_norm"]
            assert tensors[key].grad.norm().item() == pytest.approx(expected["norm"], rel=1e-4, abs=tolerance)
            assert check(tensors[key].grad, key) == pytest.approx(expected["check"], abs=3e-4 * expected["norm"] + 1e-7)


class OneSong:
    """Feeds the module the golden's noise and timesteps."""

    def __init__(self, case, count):
        self.case, self.count = case, count

    def __iter__(self):
        for step in range(self.count):
            batch = make_batch("t1", self.case, noise_key=f"t1.noise.{step}", indices=[(137 * step + 29) % 1000])
            batch.draws = [Draw(0, step, step, 1.0, True)]
            yield batch

    def __len__(self):
        return self.count


def run_lightning(module, tmp_path, steps, **options):
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins import Precision

    silence_libraries()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        plugins=[Precision()],
        max_epochs=-1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module)


@pytest.mark.parametrize("run", ["adamw", "prodigy", "prodigy_zeroB"])
def test_six_steps_through_lightning(run, tmp_path):
    trajectory = golden("trajectory_t1.json")
    expected, flags = trajectory["runs"][run]["rows"], trajectory["runs"][run]["hparams"]
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    if run == "prodigy_zeroB":
        with torch.no_grad():
            for key, tensor in tensors.items():
                if key.endswith("lora_B.weight"):
                    tensor.zero_()
    name = run.split("_")[0]
    optimizer = build_optimizer(
        name,
        tensors.values(),
        learning_rate=flags["learning_rate"],
        betas=tuple(flags["betas"]),
        weight_decay=flags["weight_decay"],
    )
    found = []

    def on_report(report):
        norms = [
            sum(t.detach().square().sum() for key, t in tensors.items() if f".lora_{which}." in key).sqrt().item()
            for which in "AB"
        ]
        found.append((report, norms))

    module = LoraTraining(
        model,
        build_schedule(3.0),
        tensors,
        optimizer,
        StepSettings(name, flags["learning_rate"], flags["warmup_steps"], flags["max_steps"], 1.0),
        plan=Plan([37], seed=0),
        batches=OneSong(case, 6),
        on_start=lambda: None,
        on_step=lambda step, epoch: False,
        on_report=on_report,
    )
    run_lightning(module, tmp_path, 6, gradient_clip_val=flags["clip"], gradient_clip_algorithm="norm")
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
    assert list(tmp_path.iterdir()) == []


def test_heads_are_not_run_when_they_do_not_count():
    case = golden("train_t1.json")
    model = make_model(case)
    model.projectors = None  # running them would fail
    losses = training_losses(model, build_schedule(), make_batch("t1", case), ssl_coeff=0.0)
    assert set(losses) == {"loss", "denoising_loss"}
    assert losses["loss"].item() == pytest.approx(case["losses"]["denoising_loss"], rel=1e-5)


def test_int8_features_give_the_loss_of_the_values_they_stand_for():
    case = golden("train_t1.json")
    model = make_model(case)
    batch = make_batch("t1", case)
    rows = {name: [(t * 20).round().clamp(-127, 127) for t in tensors] for name, tensors in batch.ssl.items()}
    batch.ssl = {name: [t * 0.37 for t in tensors] for name, tensors in rows.items()}
    expected = training_losses(model, build_schedule(), batch, ssl_coeff=1.0)["loss"]
    batch.ssl = {name: [t.to(torch.int8) for t in tensors] for name, tensors in rows.items()}
    assert training_losses(model, build_schedule(), batch, ssl_coeff=1.0)["loss"].item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_text_states_are_those_of_each_song_alone():
    calls = []

    def encode(ids, mask):
        calls.append(ids.tolist())
        return ids[..., None].float().expand(-1, -1, 3)

    batch = make_batch("t2", golden("train_t2.json"))
    batch.text_ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    batch.text_mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    conditions = ConditionEncoder(encode, {"song": torch.ones(4, 2)})
    conditions(batch)
    assert batch.text_states[..., 0].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.lyric_states.shape == (2, 4, 2)
    conditions(batch)
    assert calls == [[[5, 6, 7]], [[8, 9]]]  # the second time from the cache


def test_average_follows_the_adapter():
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = AdapterAverage({"a": parameter}, decay=0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update({"a": parameter})
    assert average.tensors["a"].tolist() == pytest.approx([1 - 2 / 11] * 2)
    for _ in range(60):
        average.update({"a": parameter})
    assert average.tensors["a"].tolist() == pytest.approx([1.0] * 2)


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
def test_no_number_stops_before_the_weights_change(what, tmp_path):
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}

    if what == "gradient":
        next(iter(tensors.values())).register_hook(lambda gradient: gradient * float("inf"))
    reports = []
    module = LoraTraining(
        model,
        build_schedule(),
        tensors,
        build_optimizer("adamw", tensors.values(), learning_rate=1.0, betas=(0.9, 0.99), weight_decay=0.1),
        StepSettings("adamw", 1.0, 0, 5, 1.0),
        plan=Plan([37], seed=0),
        batches=Song(case, 5, bad_step=1 if what == "loss" else None),
        on_start=lambda: None,
        on_step=lambda step, epoch: False,
        on_report=reports.append,
    )
    with pytest.raises(NotFinite, match="歌 1"):
        run_lightning(module, tmp_path, 5)
    assert reports == [] and module.steps_done == 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("behind", [False, True])
def test_steps_that_follow_a_bad_one_change_nothing(behind, tmp_path, monkeypatch):
    """`behind`: as on a card, whose numbers come when nobody waits for them any more."""
    if behind:
        monkeypatch.setattr(HostCopy, "is_there", lambda self: False)
    case = golden("train_t1.json")

    def train(name, steps, bad_step):
        model = make_model(case)
        tensors = adapter.adapter_tensors(model)
        optimizer = build_optimizer("adamw", tensors.values(), learning_rate=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
        reports = []
        module = LoraTraining(
            model,
            build_schedule(),
            tensors,
            optimizer,
            StepSettings("adamw", 1e-2, 0, 12, 1.0),
            plan=Plan([37], seed=0),
            batches=Song(case, steps, bad_step),
            on_start=lambda: None,
            on_step=lambda step, epoch: False,
            on_report=reports.append,
            average=AdapterAverage(tensors, 0.9),
        )
        if bad_step:
            with pytest.raises(NotFinite, match=f"loss of step {bad_step} .* '歌 {bad_step}'"):
                run_lightning(module, tmp_path, steps, gradient_clip_val=1.0)
        else:
            run_lightning(module, tmp_path, steps, gradient_clip_val=1.0)
        assert [report.step for report in reports] == list(range(1, (bad_step or steps + 1)))
        assert module.steps_done == len(reports)
        moments = {
            f"{place}/{name}": value
            for place, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        assert {float(value) for name, value in moments.items() if name.endswith("/step")} == {float(len(reports))}
        average = module.average
        return {**tensors, **moments, **{f"ema/{k}": t for k, t in average.tensors.items()}}, average.updates

    stopped, updates = train("bad", 6, 3)
    expected, expected_updates = train("good", 2, None)
    assert updates == expected_updates == 2
    assert set(stopped) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(stopped[key], tensor), key


def test_numbers_are_not_waited_for_until_many_are_out(tmp_path, monkeypatch):
    monkeypatch.setattr(HostCopy, "is_there", lambda self: False)
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    reports, seen = [], []
    module = LoraTraining(
        model,
        build_schedule(),
        tensors,
        build_optimizer("adamw", tensors.values(), learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0),
        StepSettings("adamw", 1e-3, 0, MOST_STEPS_UNSEEN + 3, 0.0),
        plan=Plan([37], seed=0),
        batches=OneSong(case, MOST_STEPS_UNSEEN + 3),
        on_start=lambda: None,
        on_step=lambda step, epoch: bool(seen.append((step, len(reports)))),
        on_report=reports.append,
    )
    run_lightning(module, tmp_path, MOST_STEPS_UNSEEN + 3)
    assert seen[:MOST_STEPS_UNSEEN] == [(step, 0) for step in range(1, MOST_STEPS_UNSEEN + 1)]
    assert [reported for _, reported in seen[MOST_STEPS_UNSEEN:]] == [1, 2, 3]
    assert [report.step for report in reports] == list(range(1, MOST_STEPS_UNSEEN + 4))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(algorithm, tmp_path):
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    found, gradients = [], {}

    class Watched(LoraTraining):
        def configure_gradient_clipping(self, *args, **kwargs):
            gradients["before"] = torch.cat([p.grad.flatten() for p in self.adapter if p.grad is not None])
            super().configure_gradient_clipping(*args, **kwargs)
            gradients["after"] = torch.cat([p.grad.flatten() for p in self.adapter if p.grad is not None])

    module = Watched(
        model,
        build_schedule(),
        tensors,
        build_optimizer("adamw", tensors.values(), learning_rate=0.0, betas=(0.9, 0.99), weight_decay=0.0),
        StepSettings("adamw", 0.0, 0, 1, 1.0),
        plan=Plan([37], seed=0),
        batches=OneSong(case, 1),
        on_start=lambda: None,
        on_step=lambda step, epoch: False,
        on_report=found.append,
    )
    run_lightning(module, tmp_path, 1, gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
    grad_norm = found[0].values["grad_norm"]
    assert grad_norm > 0.01 and grad_norm == pytest.approx(gradients["before"].norm().item(), rel=1e-5)
    if algorithm == "norm":
        expected = gradients["before"] * (0.01 / gradients["before"].norm())
    else:
        expected = gradients["before"].clamp(-0.01, 0.01)
    torch.testing.assert_close(gradients["after"], expected, rtol=1e-3, atol=0)


# --- The host does not wait for the card ---


class Waits(TorchDispatchMode):
    """Notes each operation for which a card would have to finish first, with the place that asked for it.

    Copies to the card wait unless they say `non_blocking`; copies from it, and looks at values, always do.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {value.device.type for value in args if isinstance(value, torch.Tensor)}
        name = str(function)
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        sent = "_to_copy" in name and target not in (None, *devices) and not kwargs.get("non_blocking")
        mixed = "copy_" in name and len(devices) > 1 and not (args[2:] and args[2])
        looked = "meta" in devices and any(
            part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
        )
        if sent or mixed or looked:
            lines = [
                f"{frame.name}:{frame.lineno}" for frame in traceback.extract_stack() if "ace_lora" in frame.filename
            ]
            self.found.append((name, lines[-3:]))
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", ["t1", "t2"])
def test_nothing_in_a_step_waits_for_the_card(name, monkeypatch):
    """On tensors without values, for which the host cannot wait: looking at one raises an error."""
    # Autocast does not know the device; the model does not use it here.
    monkeypatch.setattr(ACEStepTransformer, "compute_dtype", lambda self, device: self.dtype)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    case = golden(f"train_{name}.json")
    model = make_model(case).to("meta").bfloat16()
    set_checkpointing(model.transformer_blocks, 1, 1)
    tensors = adapter.adapter_tensors(model)
    batch = make_batch(name, case)
    batch.ssl = {branch: [rows.to(torch.int8) for rows in tensors] for branch, tensors in batch.ssl.items()}
    optimizer = build_optimizer("adamw", tensors.values(), learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    module = LoraTraining(
        model,
        build_schedule(),
        tensors,
        optimizer,
        StepSettings("adamw", 1e-3, 0, 5, 1.0),
        plan=Plan([37], seed=0),
        batches=[],
        on_start=lambda: None,
        on_step=lambda step, epoch: False,
        on_report=lambda report: None,
    )
    module.holds_back = True  # as with the fused optimizer of a card
    monkeypatch.setattr(HostCopy, "is_there", lambda self: False)
    with Waits() as waits:
        batch = batch.to(torch.device("meta"))
        module.on_train_batch_start(batch, 0)
        module.training_step(batch, 0).backward()
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer, 1.0, "norm")
        module.on_train_batch_end(None, batch, 0)
    assert waits.found == []
    assert all(tensor.grad is not None for tensor in tensors.values())
    assert module.steps_done == 1


def test_prefetcher_hands_over_errors_and_ends():
    def stream():
        yield 1
        raise ValueError("broken")

    batches = Prefetcher(stream(), lambda item: item, 2)
    iterator = iter(batches)
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="broken"):
        next(iterator)
    batches.close()
    assert list(Prefetcher(iter([1, 2, 3]), lambda item: item + 1, 3)) == [2, 3, 4]
    endless = Prefetcher(iter(lambda: 0, 1), lambda item: item, 10**9)
    next(iter(endless))
    endless.close()
