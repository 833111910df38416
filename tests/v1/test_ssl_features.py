"""MERT and mHuBERT features against the golden data, and loading of every form their files come in."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ace_lora.audio.decode import AudioError
from ace_lora.base_weights.loading import WrongWeights
from ace_lora.v1 import ssl_features
from ace_lora.v1.ssl_features import (
    MERT,
    MHUBERT,
    extract_features,
    load_mert,
    load_mhubert,
    make_hubert,
    standardised_chunks,
    stored_shapes,
)
from tests.golden_audio import assert_close, assert_digest, audio, golden_json, golden_tensors, weights

# mHuBERT's golden features hold white noise of 1.3e-5 against the same network in float64; ours 1.3e-6.
TOLERANCE = {"mert": 1e-5, "mhubert": 2e-5}
CPU = {"device": "cpu", "dtype": torch.float32}
BRANCHES = {"mert": (MERT, load_mert), "mhubert": (MHUBERT, load_mhubert)}
# What MERT's published configuration has beside the keys of HubertConfig.
FOREIGN_KEYS = {
    "architectures": ["MERTModel"],
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig"},
    "model_type": "mert_model",
    "attention_relax": 32.0,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "mask_channel_length": 10,
    "sample_rate": 24000,
    "torch_dtype": "float32",
    "transformers_version": "4.20.0.dev0",
}


def config_of(branch: str) -> dict:
    return golden_json("ssl")[f"{branch}_config"]


def tensors_of(branch: str) -> dict[str, torch.Tensor]:
    shapes = stored_shapes(make_hubert(config_of(branch)))
    return weights({**shapes, "masked_spec_embed": (config_of(branch)["hidden_size"],)})


def write_checkpoint(folder, branch, tensors=None, *, pickled=False):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config_of(branch), **FOREIGN_KEYS}), encoding="utf-8")
    tensors = tensors_of(branch) if tensors is None else tensors
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def golden_wave(case: str) -> torch.Tensor:
    return torch.from_numpy(audio(golden_json("ssl")["cases"][case]["input"]))


@pytest.fixture(scope="module", params=["mert", "mhubert"])
def loaded(request, tmp_path_factory):
    branch, load = BRANCHES[request.param]
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, branch, load(folder, **CPU)


@pytest.mark.parametrize("case", ["0", "1"])
def test_features_equal_the_golden(loaded, case):
    name, branch, model = loaded
    expected = golden_json("ssl")["cases"][case]
    features = extract_features(model, golden_wave(case), branch)
    assert list(features.shape) == expected[f"{name}_shape"] and features.dtype == torch.float32
    assert_close(features, golden_tensors("ssl")[f"{case}.{name}"], TOLERANCE[name])
    assert_digest(features, expected[f"{name}_digest"], f"{name}.{case}", TOLERANCE[name])


@pytest.mark.parametrize("case", ["0", "1"])
@pytest.mark.parametrize("name", ["mert", "mhubert"])
def test_standardised_chunks_equal_the_golden(name, case):
    expected = golden_json("ssl")["cases"][case]
    branch, _ = BRANCHES[name]
    chunks, samples = standardised_chunks(golden_wave(case), branch)
    assert samples == expected["input"]["samples"] // (48_000 // branch.rate)
    assert chunks.dtype == torch.float32
    digest = {**expected[f"{name}_chunks"]}
    # The mean is nothing but rounding.
    assert abs(digest.pop("mean")) < 1e-6 and abs(chunks.double().mean()) < 1e-7
    assert_digest(chunks, {**digest, "mean": float(chunks.double().mean())}, f"{name}_chunks.{case}", 1e-5)


@pytest.mark.parametrize("chunks_per_batch", [1, 3])
def test_the_batch_makes_no_difference(loaded, chunks_per_batch):
    _, branch, model = loaded
    wave = golden_wave("0").repeat(1, 2)
    whole = extract_features(model, wave, branch, chunks_per_batch=100)
    assert_close(extract_features(model, wave, branch, chunks_per_batch), whole, 1e-6)


@pytest.mark.parametrize("at_once", [(1, 2), (2, 3), (3, 2), (100, 100)])
def test_convolutions_and_layers_may_take_different_batches(loaded, monkeypatch, at_once):
    _, branch, model = loaded
    wave = golden_wave("0").repeat(1, 2)
    one_by_one = extract_features(model, wave, branch)
    monkeypatch.setattr(ssl_features, "_chunks_at_once", lambda *arguments: at_once)
    assert_close(extract_features(model, wave, branch), one_by_one, 1e-6)


def test_equals_transformers_own_forward_pass(loaded):
    _, branch, model = loaded
    chunks, samples = standardised_chunks(golden_wave("0").repeat(1, 2), branch)
    with torch.inference_mode():
        states = model(chunks).last_hidden_state
    last = -(-(samples - (len(chunks) - 1) * branch.chunk) // 320)
    expected = torch.cat([*states[:-1], states[-1][:last]])
    assert_close(extract_features(model, golden_wave("0").repeat(1, 2), branch), expected, 1e-6)


def test_features_that_are_not_finite_are_refused(loaded):
    _, branch, model = loaded
    chunks, samples = standardised_chunks(golden_wave("1"), branch)
    with pytest.raises(AudioError, match=f"'{branch.name}' returned values that are not finite"):
        ssl_features.begin_features(model, chunks * torch.nan, samples, branch)()


def test_features_beyond_the_range_of_fp16_are_computed_in_float32(tmp_path):
    tensors = tensors_of("mert")
    for name in ("feature_projection.projection.weight", "feature_projection.projection.bias"):
        tensors[name] = tensors[name] * 1e5
    folder = write_checkpoint(tmp_path, "mert", {name: tensor.clamp(-6e4, 6e4) for name, tensor in tensors.items()})
    exact = extract_features(load_mert(folder, **CPU), golden_wave("0"), MERT)
    model = load_mert(folder, device="cpu", dtype=torch.float16)
    assert_close(extract_features(model, golden_wave("0"), MERT), exact, 2e-2)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["mert", "mhubert"])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("old_norm", [False, True])
@pytest.mark.parametrize("prefix", ["", "hubert."])
def test_every_form_of_the_file_is_read(tmp_path, name, pickled, old_norm, prefix):
    branch, load = BRANCHES[name]
    tensors = tensors_of(name)
    if old_norm:
        for new, old in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            key = "encoder.pos_conv_embed.conv."
            tensors[key + old] = tensors.pop(key + new)
        del tensors["masked_spec_embed"]
    tensors = {prefix + key: tensor for key, tensor in tensors.items()}
    model = load(write_checkpoint(tmp_path, name, tensors, pickled=pickled), **CPU)
    assert not model.training and not any(p.is_meta or p.requires_grad for p in model.parameters())
    features = extract_features(model, golden_wave("1"), branch)
    assert_close(features, golden_tensors("ssl")[f"1.{name}"], TOLERANCE[name])


def test_safetensors_is_preferred(tmp_path):
    write_checkpoint(tmp_path, "mert")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    load_mert(tmp_path, **CPU)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_loading_is_strict_and_names_the_tensor(tmp_path, fault, pickled):
    tensors = tensors_of("mert")
    name = "encoder.layers.1.attention.q_proj.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = "encoder.layers.0.extra"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(2, 3)
    folder = write_checkpoint(tmp_path, "mert", tensors, pickled=pickled)
    with pytest.raises(WrongWeights, match=name.replace(".", r"\.")):
        load_mert(folder, **CPU)


@pytest.mark.parametrize("lost", ["weight_g", "weight_v"])
def test_half_of_an_old_weight_norm_is_named_as_the_file_would(tmp_path, lost):
    position = "encoder.pos_conv_embed.conv."
    tensors = tensors_of("mert")
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        tensors[position + old] = tensors.pop(f"{position}parametrizations.weight.{new}")
    del tensors[position + lost]
    with pytest.raises(WrongWeights, match=f"missing: {position}{lost}\\. Expected".replace("conv.", r"conv\.")):
        load_mert(write_checkpoint(tmp_path, "mert", tensors, pickled=True), **CPU)


def test_a_checkpoint_of_the_other_extractor_is_refused(tmp_path):
    """A MERT with layer norm in every convolution would load into nothing that this configuration describes."""
    tensors = tensors_of("mert")
    tensors["feature_extractor.conv_layers.1.layer_norm.weight"] = torch.ones(8)
    with pytest.raises(WrongWeights, match=r"unexpected: feature_extractor\.conv_layers\.1\.layer_norm\.weight"):
        load_mert(write_checkpoint(tmp_path, "mert", tensors), **CPU)


def test_a_damaged_or_harmful_pickle_is_refused(tmp_path):
    write_checkpoint(tmp_path, "mert", pickled=True)
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"cos\nsystem\n(S'echo harm'\ntR."):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(WrongWeights, match=r"pytorch_model\.bin' is not a readable weight file"):
            load_mert(tmp_path, **CPU)


def test_missing_weights_name_the_file(tmp_path):
    write_checkpoint(tmp_path, "mert")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"Neither this file nor model\.safetensors"):
        load_mert(tmp_path, **CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mert", "mhubert"])
def test_half_precision_is_for_the_network_only(tmp_path, name, dtype):
    branch, load = BRANCHES[name]
    model = load(write_checkpoint(tmp_path, name), device="cpu", dtype=dtype)
    features = extract_features(model, golden_wave("0"), branch)
    assert features.dtype == torch.float32
    assert_close(features, golden_tensors("ssl")[f"0.{name}"], 5e-2)


PUBLISHED = {
    "mert_v1_330m_as_hubert": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "do_stable_layer_norm": True,
        "mask_time_prob": 0.075,
    },
    "mhubert_147": {},
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_sizes_have_exactly_the_published_tensors(name):
    model = make_hubert(PUBLISHED[name])
    golden = {key: tuple(shape) for key, shape in golden_json("keys_fullsize")[name].items()}
    assert golden.pop("masked_spec_embed") == (model.config.hidden_size,)
    assert stored_shapes(model) == golden


def test_frames_of_a_whole_chunk_and_of_a_short_end():
    """374 and 1499 frames of a full chunk; of a rest of a samples ceil(a / 320)."""
    for branch, full in ((MERT, 374), (MHUBERT, 1499)):
        frames = branch.chunk
        for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
            frames = (frames - kernel) // stride + 1
        assert frames == full


def test_batches_on_a_gpu_follow_its_free_memory(monkeypatch):
    """`meta` stands for a device that is no CPU."""
    mert = make_hubert(PUBLISHED["mert_v1_330m_as_hubert"]).to(torch.bfloat16)
    mhubert = make_hubert(PUBLISHED["mhubert_147"]).to(torch.bfloat16)
    for free, expected in (
        (None, [(5, 32), (1, 10)]),
        (139e9, [(5, 32), (1, 10)]),
        (0.8e9, [(2, 16), (1, 5)]),
        (0, [(1, 1), (1, 1)]),
    ):
        monkeypatch.setattr(ssl_features, "free_device_bytes", lambda device, free=free: free and int(free))
        found = [ssl_features._chunks_at_once(model, branch) for model, branch in ((mert, MERT), (mhubert, MHUBERT))]
        assert found == expected
