"""Latent encoder and decoder against the golden data, and in pieces against diffusers' own forward pass."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import save_file

from ace_lora.base_weights.loading import WrongWeights
from ace_lora.commands import WrongInput
from ace_lora.v1 import dcae
from ace_lora.v1.dcae import (
    WEIGHTS_NAME,
    _at_latent_rate,
    decode_log_mel,
    decoder_forward,
    encode_latents,
    encoder_forward,
    load_latent_decoder,
    load_latent_encoder,
)
from ace_lora.v1.mel import log_mel, normalise
from tests.golden_audio import assert_close, assert_digest, audio, golden_json, golden_tensors, normal, weight, weights

CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("music_dcae_f8c8"), golden_json("dcae")["config"])


def write_checkpoint(folder, config, change=lambda tensors: None):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoencoderDC(**config).state_dict().items()}
    tensors = weights(shapes)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", **config}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", ["0", "1"])
def test_latents_equal_the_golden(folder, case):
    expected, stored = golden_json("dcae")["cases"][case], golden_tensors("dcae")
    wave = torch.from_numpy(audio(expected["input"]))
    # One case needs padding, the other ends exactly with a latent frame and gets none.
    assert _at_latent_rate(wave).shape[1] == expected["samples_44k_padded"]
    mel = normalise(log_mel(_at_latent_rate(wave)))
    assert_close(mel, stored[f"{case}.mel_norm"], 1e-5)
    assert_digest(mel, expected["mel_norm_digest"], f"mel_norm.{case}", 1e-5)
    latents = encode_latents(load_latent_encoder(folder, **CPU), wave)
    assert latents.dtype == torch.float32
    assert_close(latents[None], stored[f"{case}.latents"], 1e-5)
    assert_digest(latents[None], expected["latents_digest"], f"latents.{case}", 1e-5)


def test_decoded_log_mel_equals_the_golden(folder):
    expected = golden_json("dcae")["decode"]
    latents = torch.from_numpy(normal(expected["latents"]["name"], expected["latents"]["shape"]))
    mel = decode_log_mel(load_latent_decoder(folder, **CPU), latents[0])
    assert_close(mel, golden_tensors("dcae")["decode.mel"], 1e-5)
    assert_digest(mel, expected["mel_digest"], "decode.mel", 1e-5)


@pytest.mark.parametrize("frames_per_piece", [1, 3])
@pytest.mark.parametrize("multiscales", [[[], [], [5], [5]], [[], [3], [], [5, 3]]])
def test_pieces_equal_diffusers_in_one_pass(tmp_path, monkeypatch, frames_per_piece, multiscales):
    config = {**golden_json("dcae")["config"], "encoder_qkv_multiscales": multiscales}
    config["decoder_qkv_multiscales"] = multiscales
    block_types = ["EfficientViTBlock" if scales else "ResBlock" for scales in multiscales]
    config["encoder_block_types"] = config["decoder_block_types"] = block_types
    config["encoder_layers_per_block"] = config["decoder_layers_per_block"] = [2, 2, 3, 3]
    write_checkpoint(tmp_path, config)
    encoder, decoder = load_latent_encoder(tmp_path, **CPU), load_latent_decoder(tmp_path, **CPU)
    frames = 25
    mel = torch.from_numpy(normal("pieces", (1, 2, 128, 8 * frames)))
    latents = torch.from_numpy(normal("latents", (1, 4, 16, frames)))
    monkeypatch.setattr(dcae, "_FRAMES_PER_PIECE", frames_per_piece)
    with torch.inference_mode():
        assert_close(encoder_forward(encoder, mel), encoder(mel), 2e-6)
        assert_close(decoder_forward(decoder, latents), decoder(latents), 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_the_network_only(folder, dtype):
    wave = torch.from_numpy(audio(golden_json("dcae")["cases"]["0"]["input"]))
    latents = encode_latents(load_latent_encoder(folder, device="cpu", dtype=dtype), wave)
    assert latents.dtype == torch.float32
    assert_close(latents[None], golden_tensors("dcae")["0.latents"], 2e-2)
    expected = golden_json("dcae")["decode"]["latents"]
    decoder = load_latent_decoder(folder, device="cpu", dtype=dtype)
    mel = decode_log_mel(decoder, torch.from_numpy(normal(expected["name"], expected["shape"]))[0])
    assert mel.dtype == torch.float32
    assert_close(mel, golden_tensors("dcae")["decode.mel"], 2e-2)


def test_a_song_beyond_the_range_of_fp16_is_encoded_in_float32(tmp_path):
    def enlarge(tensors):
        tensors["encoder.conv_in.weight"] *= 6e4

    write_checkpoint(tmp_path, golden_json("dcae")["config"], enlarge)
    wave = torch.from_numpy(audio(golden_json("dcae")["cases"]["0"]["input"]))
    exact = encode_latents(load_latent_encoder(tmp_path, **CPU), wave)
    encoder = load_latent_encoder(tmp_path, device="cpu", dtype=torch.float16)
    assert_close(encode_latents(encoder, wave), exact, 2e-2)
    assert next(encoder.parameters()).dtype == torch.float32


@pytest.mark.parametrize("load", [load_latent_encoder, load_latent_decoder])
def test_one_half_is_loaded_and_the_other_need_not_be_there(tmp_path, load):
    half = load.__name__.removeprefix("load_latent_")
    other = {"encoder": "decoder", "decoder": "encoder"}[half]

    def drop_other(tensors):
        for name in [name for name in tensors if name.startswith(f"{other}.")]:
            del tensors[name]

    write_checkpoint(tmp_path, golden_json("dcae")["config"], drop_other)
    network = load(tmp_path, **CPU)
    assert not network.training and not any(p.requires_grad or p.is_meta for p in network.parameters())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_loading_is_strict_and_names_the_tensor(tmp_path, fault):
    name = "encoder.down_blocks.2.0.attn.to_q.weight"

    def change(tensors):
        if fault == "missing":
            del tensors[name]
        elif fault == "unexpected":
            tensors["encoder.extra.weight"] = torch.zeros(2)
        else:
            tensors[name] = weight(name, (3, 3))

    write_checkpoint(tmp_path, golden_json("dcae")["config"], change)
    quoted = "encoder.extra.weight" if fault == "unexpected" else name
    with pytest.raises(WrongWeights, match=quoted.replace(".", r"\.")):
        load_latent_encoder(tmp_path, **CPU)


def test_a_missing_or_damaged_configuration_is_wrong_input(tmp_path):
    with pytest.raises(WrongInput, match=r"config\.json' is missing"):
        load_latent_encoder(tmp_path, **CPU)
    for text in ("{", "[]", "\udcff".encode("utf-8", "surrogateescape")):
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(WrongInput, match=r"[Dd]ownload it again"):
            load_latent_encoder(tmp_path, **CPU)


def test_published_sizes_have_exactly_the_published_tensors():
    with torch.device("meta"):
        model = AutoencoderDC(**golden_json("fullsize")["dcae_config"])
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == golden_json("keys_fullsize")["music_dcae_f8c8"]
    assert len([name for name in shapes if name.startswith("encoder.")]) == 120


def test_published_sizes_equal_the_golden():
    case, stored = golden_json("fullsize"), golden_tensors("fullsize")
    given = case["decode_input"]
    # 624 MB that should not stay behind as pytest's own temporary folders do.
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(Path(name), case["dcae_config"])
        latents = encode_latents(load_latent_encoder(folder, **CPU), torch.from_numpy(audio(case["encode_input"])))
        decoder = load_latent_decoder(folder, **CPU)
        mel = decode_log_mel(decoder, torch.from_numpy(normal(given["name"], given["shape"]))[0])
        del decoder
    assert_close(latents[None], stored["latents"], 1e-5)
    assert_digest(latents[None], case["digest"]["latents"], "full.latents", 1e-5)
    raw = normalise(mel)[None]
    assert_close(raw, stored["decode.mel_raw"], 1e-5)
    assert_digest(raw, case["digest"]["decode.mel_raw"], "full.decode.mel_raw", 1e-5)
