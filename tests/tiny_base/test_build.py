"""python -m pytest tests/test_tiny_base.py

The names and shapes of the tiny weights are those of the published ones because the same functions, given the published
configuration, give the published list. What the project's own loaders make of the folder is tested with them.
"""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from ace_lora.commands import WrongInput
from ace_lora.tiny_base import build as tiny_base

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]
FILES = [
    "MERT-v1-330M/config.json",
    "MERT-v1-330M/model.safetensors",
    "ace_step_transformer/config.json",
    "ace_step_transformer/diffusion_pytorch_model.safetensors",
    "mHuBERT-147/config.json",
    "mHuBERT-147/model.safetensors",
    "music_dcae_f8c8/config.json",
    "music_dcae_f8c8/diffusion_pytorch_model.safetensors",
    "music_vocoder/config.json",
    "music_vocoder/diffusion_pytorch_model.safetensors",
    "tiny_base.json",
    "umt5-base/config.json",
    "umt5-base/model.safetensors",
    "umt5-base/special_tokens_map.json",
    "umt5-base/tokenizer.json",
    "umt5-base/tokenizer_config.json",
    "vocab.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_base.make_tiny_base(folder)
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def relative_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in relative_files(folder)}


def as_lists(shapes: tiny_base.Shapes) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes.items()}


# --- Published sizes --------------------------------------------------------------------------------------------------


def test_transformer_shapes_at_the_published_size():
    published = read_json(GOLDEN / "transformer" / "transformer_params.json")
    shapes = tiny_base.transformer_shapes(published["config"])
    assert as_lists(shapes) == published["params"]
    assert len(shapes) == 874


def test_dcae_shapes_at_the_published_size():
    config = {
        **tiny_base.DCAE_CONFIG,
        "attention_head_dim": 32,
        "encoder_block_out_channels": [128, 256, 512, 1024],
        "decoder_block_out_channels": [128, 256, 512, 1024],
        "encoder_layers_per_block": [2, 2, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3],
    }
    assert as_lists(tiny_base.dcae_shapes(config)) == published_keys("music_dcae_f8c8")


def test_vocoder_shapes_at_the_published_size():
    config = {
        **tiny_base.VOCODER_CONFIG,
        "depths": [3, 3, 9, 3],
        "dims": [128, 256, 384, 512],
        "upsample_rates": [4, 4, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4, 4],
        "resblock_kernel_sizes": [3, 7, 11, 13],
        "resblock_dilation_sizes": [[1, 3, 5]] * 4,
        "num_mels": 512,
        "upsample_initial_channel": 1024,
    }
    assert as_lists(tiny_base.vocoder_shapes(config)) == published_keys("music_vocoder")


@pytest.mark.parametrize(
    ("key", "tiny", "sizes"),
    [
        ("mert_v1_330m_as_hubert", tiny_base.MERT_CONFIG, (1024, 4096, 24)),
        ("mhubert_147", tiny_base.MHUBERT_CONFIG, (768, 3072, 12)),
    ],
)
def test_ssl_shapes_at_the_published_size(key, tiny, sizes):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    config = {**tiny, **dict(zip(names, sizes, strict=True)), "conv_dim": [512] * 7}
    config |= {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    renamed = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    shapes = {}
    for name, shape in as_lists(tiny_base.hubert_shapes(config)).items():
        first, last = name.rsplit(".", 1) if "." in name else ("", name)
        shapes[f"{first}.{renamed[last]}" if last in renamed else name] = shape
    assert shapes == published_keys(key)


def published_keys(part: str) -> dict[str, list[int]]:
    return read_json(GOLDEN / "audio" / "keys_fullsize.json")[part]


# --- The folder -------------------------------------------------------------------------------------------------------


def test_files_and_size(folder):
    assert relative_files(folder) == FILES
    assert sum((folder / name).stat().st_size for name in FILES) < 9_000_000


def test_same_bytes_each_time(folder, tmp_path):
    tiny_base.make_tiny_base(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)


def test_own_folder_is_made_again_and_foreign_files_in_it_stay(tmp_path):
    folder = tmp_path / "tiny"
    tiny_base.make_tiny_base(folder)
    expected = digests(folder)
    (folder / "vocab.json").write_text("damaged", encoding="utf-8")
    (folder / "music_vocoder" / "config.json").unlink()
    (folder / "mine.txt").write_text("keep", encoding="utf-8")
    tiny_base.make_tiny_base(folder)
    assert (folder / "mine.txt").read_text(encoding="utf-8") == "keep"
    (folder / "mine.txt").unlink()
    assert digests(folder) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_empty_folder_is_filled(tmp_path):
    assert [path.relative_to(tmp_path).as_posix() for path in tiny_base.make_tiny_base(tmp_path)] == FILES


def test_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"music")
    with pytest.raises(WrongInput, match="is not empty and was not made by this program"):
        tiny_base.make_tiny_base(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["song.mp3"]


def test_name_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(WrongInput, match="is a file"):
        tiny_base.make_tiny_base(tmp_path / "file")


def test_command_line(folder, tmp_path):
    def run(target: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "ace_lora.tiny_base", str(target)]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=environment)

    result = run(tmp_path / "小 base")
    assert result.returncode == 0, result.stderr
    assert "17 files" in result.stdout
    assert digests(tmp_path / "小 base") == digests(folder)

    result = run(tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


# --- The libraries that read it ---------------------------------------------------------------------------------------


def test_diffusers_loads_the_autoencoder_and_keeps_the_latent_geometry(folder):
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderDC
    from safetensors.torch import load_file

    with torch.device("meta"):
        config = read_json(folder / "music_dcae_f8c8" / "config.json")
        model = AutoencoderDC(**{key: value for key, value in config.items() if not key.startswith("_")})
    model.load_state_dict(load_file(folder / "music_dcae_f8c8" / FILES[3].split("/")[1]), strict=True, assign=True)
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


# --- Tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def umt5_tokenizer(folder):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(folder / "umt5-base" / "tokenizer.json"))


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("", ["</s>"]),
        ("rock, drums", ["▁rock", ",", "▁drums", "</s>"]),
        ("pop,rock", ["▁pop", ",", "r", "o", "c", "k", "</s>"]),
        ("é", ["▁", "<0xC3>", "<0xA9>", "</s>"]),
    ],
)
def test_umt5_tokens(umt5_tokenizer, prompt, tokens):
    assert umt5_tokenizer.encode(prompt).tokens == tokens


def test_umt5_special_ids(umt5_tokenizer):
    assert [umt5_tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<unk>", ",")] == [0, 1, 2, 275]


def test_lyric_vocabulary(folder):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = tokenizers.Tokenizer.from_file(str(folder / "vocab.json"))
    rows = read_json(folder / "ace_step_transformer" / "config.json")["lyric_encoder_vocab_size"]
    assert vocabulary.get_vocab_size() == rows
    assert sorted(vocabulary.get_vocab().values()) == list(range(rows))
    fixed = ["[STOP]", "[UNK]", "[SPACE]", "[en]", "[de]", "[START]", "[fr]"]
    assert [vocabulary.token_to_id(token) for token in fixed] == [0, 1, 2, 259, 260, 261, 262]
    hello = ["[en]", "he", "l", "l", "o", "[SPACE]", "th", "er", "e", "!"]
    assert vocabulary.encode("[en]hello[SPACE]there!").tokens == hello
    assert vocabulary.encode("[en][pre-chorus]").tokens == ["[en]", "[pre-chorus]"]
    assert 1 not in vocabulary.encode("[zh-cn]wo3[SPACE]ai4[SPACE]ni3,[SPACE]lü4[SPACE]zhuang1?").ids
    # Each unknown character gives its own id 1, as in the published vocabulary.
    assert vocabulary.encode("[en]#€").ids == [259, 1, 1]
