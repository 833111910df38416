"""What the libraries and the project's own loaders make of the tiny weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.v1.mel_filters import mel_filter_bank


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# --- The libraries that read it ---------------------------------------------------------------------------------------


def test_diffusers_loads_the_autoencoder_and_keeps_the_latent_geometry(folder):
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderDC
    from safetensors.torch import load_file

    with torch.device("meta"):
        config = read_json(folder / "music_dcae_f8c8" / "config.json")
        model = AutoencoderDC(**{key: value for key, value in config.items() if not key.startswith("_")})
    model.load_state_dict(
        load_file(folder / "music_dcae_f8c8" / "diffusion_pytorch_model.safetensors"), strict=True, assign=True
    )
    frames = 5
    with torch.no_grad():
        latents = model.encoder(torch.zeros(1, 2, 128, 8 * frames))
        mel = model.decoder(latents)
    assert latents.shape == (1, 8, 16, frames)
    assert mel.shape == (1, 2, 128, 8 * frames)
    assert mel.isfinite().all()


def test_transformers_loads_the_text_encoder(folder):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "umt5-base", local_files_only=True)
    model, loading = UMT5EncoderModel.from_pretrained(
        folder / "umt5-base", local_files_only=True, output_loading_info=True
    )
    assert not any(loading.values()), loading
    ids = tokenizer("rock, drums, 中文")["input_ids"]
    assert ids[-1] == 1
    assert ids.count(275) == 2
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state
    assert states.shape == (1, len(ids), 32)
    assert states.isfinite().all()


@pytest.mark.parametrize("part", ["MERT-v1-330M", "mHuBERT-147"])
def test_transformers_loads_the_ssl_models(folder, part):
    torch = pytest.importorskip("torch")
    from transformers import HubertConfig, HubertModel

    config = read_json(folder / part / "config.json")
    known = {key: value for key, value in config.items() if hasattr(HubertConfig(), key) and key != "model_type"}
    model, loading = HubertModel.from_pretrained(
        folder / part, config=HubertConfig(**known), local_files_only=True, output_loading_info=True
    )
    assert not any(loading.values()), loading
    samples = {"MERT-v1-330M": 120000, "mHuBERT-147": 480000}[part] // 10
    with torch.no_grad():
        features = model.eval()(torch.zeros(1, samples)).last_hidden_state
    assert features.shape == (1, (samples - 80) // 320, config["hidden_size"])
    assert features.isfinite().all()


# --- The project's own loaders ----------------------------------------------------------------------------------------


def test_transformer_loads_strictly_and_starts_as_a_weak_denoiser(folder):
    torch = pytest.importorskip("torch")
    from ace_lora.v1.flow_matching import add_noise, build_schedule, denoising_loss
    from ace_lora.v1.transformer import load_transformer

    model = load_transformer(folder / "ace_step_transformer", dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 8, 16, 40, generator=generator)
    latents *= 0.3
    schedule = build_schedule(3.0)
    lyrics = model.encode_lyrics(torch.tensor([[261, 259, 5, 2]]))
    context = model.encode_context(torch.randn(1, 6, 32, generator=generator), None, lyrics, None, None)
    losses, trivial = [], []
    for index in (50, 350, 650, 950):
        sigma, time = schedule.sigmas[index].view(1), schedule.timesteps[index].view(1)
        with torch.no_grad():
            output = model(add_noise(latents, noise, sigma), time, context, ssl_taps=True)
        assert [tap.shape for tap in output.ssl_taps] == [(1, 40, 128)] * 2
        losses.append(denoising_loss(output.velocity, noise, latents, sigma).item())
        trivial.append(denoising_loss(torch.zeros_like(noise), noise, latents, sigma).item())
    assert sum(losses) < 0.7 * sum(trivial)


def test_audio_models_load_strictly(folder):
    torch = pytest.importorskip("torch")
    from ace_lora.v1.dcae import load_latent_decoder, load_latent_encoder
    from ace_lora.v1.ssl_features import load_mert, load_mhubert
    from ace_lora.v1.vocoder import load_vocoder

    options = {"device": "cpu", "dtype": torch.float32}
    for load, part in [
        (load_latent_encoder, "music_dcae_f8c8"),
        (load_latent_decoder, "music_dcae_f8c8"),
        (load_vocoder, "music_vocoder"),
        (load_mert, "MERT-v1-330M"),
        (load_mhubert, "mHuBERT-147"),
    ]:
        model = load(folder / part, **options)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values()), part


def test_mel_filters_of_the_vocoder_are_those_that_the_encoder_uses(folder):
    safetensors = pytest.importorskip("safetensors.numpy")
    stored = safetensors.load_file(folder / "music_vocoder" / "diffusion_pytorch_model.safetensors")
    assert np.array_equal(stored["mel_transform.mel_scale.fb"], mel_filter_bank().astype(np.float32))
