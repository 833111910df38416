"""Run with: pytest tests/training/test_step.py

Losses and gradients are compared with the published trainer's (goldens, float32 on a CPU).
"""

import contextlib
import copy
import functools
import json
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trainer_new
from ace_lora.device import HostCopy
from ace_lora.lora import layers as adapter
from ace_lora.model.recompute import set_checkpointing
from ace_lora.training.batches import Batch
from ace_lora.training.optimizers import build_optimizer
from ace_lora.training.plan import Draw
from ace_lora.training.run import clip_gradients
from ace_lora.training.state import AdapterAverage
from ace_lora.training.step import ConditionEncoder, StepNumbers, TrainedStep, share_of_step, training_losses
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
    args = trainer_new.parse_args(["--dataset_path", ""])
    step = TrainedStep(model, build_schedule(), tensors, ssl_coeff=1.0, autocast=torch.bfloat16)
    numbers = StepNumbers(optimizer, on_card=True, scaled=False)  # as with the fused optimizer of a card
    average = AdapterAverage(tensors, 0.9)
    monkeypatch.setattr(HostCopy, "is_there", lambda self: False)
    with Waits() as waits:
        batch = batch.to(torch.device("meta"))
        losses = step(batch)
        share_of_step(losses["loss"], batch, accumulate=1, processes=1).backward()
        numbers.gather(batch, losses)
        norm = numbers.guard(1, tensors.values())
        clip_gradients(args, tensors.values(), norm)
        average.update(tensors, numbers.held_back)
        numbers.step_done(1, 0, {})
        found = list(numbers.reports(wait=False))
    assert waits.found == []
    assert all(tensor.grad is not None for tensor in tensors.values())
    assert found == []
