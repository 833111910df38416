"""The vocoder against the golden data, in pieces against one pass, and the way from latents to 48 kHz."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import save_file

from ace_lora.audio.decode import resample
from ace_lora.base_weights.loading import WrongWeights
from ace_lora.commands import WrongInput
from ace_lora.v1.dcae import decode_log_mel, load_latent_decoder
from ace_lora.v1.vocoder import WEIGHTS_NAME, Vocoder, VocoderConfig, load_vocoder, stored_shapes
from tests.golden_audio import assert_close, assert_digest, golden_json, golden_tensors, normal, weights

CPU = {"device": "cpu", "dtype": torch.float32}


def write_checkpoint(folder, config, change=lambda tensors: None):
    (folder / "config.json").write_text(json.dumps({"_class_name": "ADaMoSHiFiGANV1", **config}), encoding="utf-8")
    with torch.device("meta"):
        shapes = stored_shapes(Vocoder(VocoderConfig.from_folder(folder)))
    tensors = weights(shapes)
    # The published file carries them; they must not be in the way.
    tensors["mel_transform.mel_scale.fb"] = torch.zeros(1025, 128)
    tensors["mel_transform.spectrogram.window"] = torch.zeros(2048)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    return folder


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("music_vocoder"), golden_json("vocoder")["config"])
    return load_vocoder(folder, **CPU)


def golden_mel():
    given = golden_json("vocoder")["input"]
    return torch.from_numpy(normal(given["name"], given["shape"]))


def test_waveform_equals_the_golden(vocoder):
    case, stored = golden_json("vocoder"), golden_tensors("vocoder")
    wave = vocoder(golden_mel())
    assert wave.dtype == torch.float32
    assert_close(wave[:, None], stored["wav"], 1e-5)
    assert_digest(wave[:, None], case["digest"]["wav"], "voc.wav", 1e-5)


def test_backbone_and_head_equal_the_golden(vocoder):
    case, stored = golden_json("vocoder"), golden_tensors("vocoder")
    features = vocoder.backbone(golden_mel())
    assert_close(features, stored["backbone"], 1e-5)
    assert_digest(features, case["digest"]["backbone"], "voc.backbone", 1e-5)
    before_tanh = torch.atanh(vocoder.head(features).double())
    assert_close(before_tanh, stored["pre_tanh"], 1e-5)
    assert_digest(before_tanh, case["digest"]["pre_tanh"], "voc.pre_tanh", 1e-5)


def test_tiny_vocoder_has_exactly_the_golden_tensors(vocoder):
    shapes = {name: list(shape) for name, shape in stored_shapes(vocoder).items()}
    golden = {name: shape for name, shape in golden_json("vocoder")["keys"].items() if "mel_transform" not in name}
    assert shapes == golden


@pytest.mark.parametrize("frames_per_piece", [40, 100])
def test_pieces_equal_one_pass(vocoder, frames_per_piece):
    mel = torch.from_numpy(normal("long mel", (1, 128, 130)))
    whole = vocoder(mel, frames_per_piece=10_000)
    torch.testing.assert_close(vocoder(mel, frames_per_piece), whole, rtol=0, atol=1e-6)


def test_the_reach_is_enough_and_not_far_too_much(vocoder):
    """A change of one frame is seen as far as `reach`, and not farther."""
    mel = torch.from_numpy(normal("reach", (1, 128, 121)))
    changed = mel.clone()
    changed[..., 60] += 5
    with torch.inference_mode():
        difference = (vocoder(mel) - vocoder(changed)).abs().reshape(-1, vocoder.config.samples_per_frame).amax(1)
    seen = torch.nonzero(difference).flatten()
    reach = vocoder.config.reach
    assert 60 - reach <= seen.min() and seen.max() <= 60 + reach
    assert reach <= 1.5 * (seen.max() - 60)
    assert VocoderConfig().reach <= 96


def test_published_sizes_have_exactly_the_published_tensors():
    with torch.device("meta"):
        shapes = {name: list(shape) for name, shape in stored_shapes(Vocoder(VocoderConfig())).items()}
    golden = golden_json("keys_fullsize")["music_vocoder"]
    assert shapes == {name: shape for name, shape in golden.items() if not name.startswith("mel_transform.")}
    assert len(golden) == 713


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_returns_float32(tmp_path, dtype):
    folder = write_checkpoint(tmp_path, golden_json("vocoder")["config"])
    wave = load_vocoder(folder, device="cpu", dtype=dtype)(golden_mel())
    assert wave.dtype == torch.float32
    assert_close(wave[:, None], golden_tensors("vocoder")["wav"], 3e-2)


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        (lambda tensors: tensors.pop("head.ups.1.weight_g"), "missing: head.ups.1.weight_g"),
        (lambda tensors: tensors.update(noise_convs=torch.zeros(1)), "unexpected: noise_convs"),
        (lambda tensors: tensors.update({"head.conv_pre.bias": torch.zeros(5)}), r"head.conv_pre.bias is \[5\]"),
    ],
)
def test_loading_is_strict_and_names_the_tensor(tmp_path, change, quoted):
    folder = write_checkpoint(tmp_path, golden_json("vocoder")["config"], change)
    with pytest.raises(WrongWeights, match=quoted):
        load_vocoder(folder, **CPU)


@pytest.mark.parametrize("other", [{"use_template": True}, {"kernel_sizes": [3, 7]}])
def test_another_kind_of_vocoder_is_refused(tmp_path, other):
    (tmp_path / "config.json").write_text(json.dumps({**golden_json("vocoder")["config"], **other}), encoding="utf-8")
    with pytest.raises(WrongInput, match="describes another vocoder"):
        load_vocoder(tmp_path, **CPU)


def test_configuration_without_keys_is_the_published_one(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert VocoderConfig.from_folder(tmp_path) == VocoderConfig()
    assert replace(VocoderConfig(), depths=(1,)) != VocoderConfig()


def test_latents_to_48_khz_equal_the_golden(tmp_path, vocoder):
    expected, stored = golden_json("dcae"), golden_tensors("dcae")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoencoderDC(**expected["config"]).state_dict().items()}
    save_file(weights(shapes), tmp_path / WEIGHTS_NAME)
    (tmp_path / "config.json").write_text(json.dumps(expected["config"]), encoding="utf-8")
    given = expected["decode"]["latents"]
    latents = torch.from_numpy(normal(given["name"], given["shape"]))
    wave = vocoder(decode_log_mel(load_latent_decoder(tmp_path, **CPU), latents[0]))
    assert_close(wave, stored["decode.wav44"], 1e-5)
    assert_digest(wave, expected["decode"]["wav44_digest"], "decode.wav44", 1e-5)
    wave = resample(wave, 44_100, 48_000)
    assert_close(wave, stored["decode.wav48"], 1e-5)
    assert_digest(wave, expected["decode"]["wav48_digest"], "decode.wav48", 1e-5)


def test_published_sizes_equal_the_golden():
    case, stored = golden_json("fullsize"), golden_tensors("fullsize")
    mel = stored["decode.mel_raw"][0] * 7 - 4
    # 412 MB that should not stay behind as pytest's own temporary folders do.
    with tempfile.TemporaryDirectory() as name:
        wave = load_vocoder(write_checkpoint(Path(name), {}), **CPU)(mel)
    assert_close(wave, stored["decode.wav44"], 1e-5)
    assert_digest(wave, case["digest"]["decode.wav44"], "full.decode.wav44", 1e-5)
