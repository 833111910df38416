"""Run with: pytest tests/test_training.py

Losses, gradients and six optimizer steps are compared with the published trainer's (goldens, float32 on a CPU).
"""

import copy
import functools
import json

import pytest
import torch

from ace_lora import adapter
from ace_lora.batches import Batch, Draw, Plan, Prefetcher
from ace_lora.flow_matching import build_schedule
from ace_lora.metrics import silence_libraries
from ace_lora.optimizers import build_optimizer
from ace_lora.training import AdapterAverage, ConditionEncoder, LoraTraining, NotFinite, StepSettings, training_losses
from ace_lora.transformer import ACEStepTransformer, TransformerConfig
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

    def on_step(report):
        norms = [
            sum(t.detach().square().sum() for key, t in tensors.items() if f".lora_{which}." in key).sqrt().item()
            for which in "AB"
        ]
        found.append((report, norms))
        return False

    module = LoraTraining(
        model,
        build_schedule(3.0),
        tensors,
        optimizer,
        StepSettings(name, flags["learning_rate"], flags["warmup_steps"], flags["max_steps"], 1.0),
        plan=Plan([37], seed=0),
        batches=OneSong(case, 6),
        on_start=lambda: None,
        on_step=on_step,
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


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_no_number_stops_before_the_weights_change(what, tmp_path):
    case = golden("train_t1.json")
    model = make_model(case)
    tensors = adapter.adapter_tensors(model)
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}

    class Bad(OneSong):
        def __iter__(self):
            for batch in super().__iter__():
                batch.names = ["坏 song"]
                if what == "loss":
                    batch.latents[0, 0, 0, 0] = float("nan")
                yield batch

    if what == "gradient":
        next(iter(tensors.values())).register_hook(lambda gradient: gradient * float("inf"))
    module = LoraTraining(
        model,
        build_schedule(),
        tensors,
        build_optimizer("adamw", tensors.values(), learning_rate=1.0, betas=(0.9, 0.99), weight_decay=0.1),
        StepSettings("adamw", 1.0, 0, 5, 1.0),
        plan=Plan([37], seed=0),
        batches=Bad(case, 5),
        on_start=lambda: None,
        on_step=lambda report: False,
    )
    with pytest.raises(NotFinite, match="坏 song"):
        run_lightning(module, tmp_path, 5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


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
