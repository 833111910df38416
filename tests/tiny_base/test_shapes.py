"""Names and shapes of the tiny weights are those of the published ones, because the same functions, given the published
configuration, give the published list."""

import json
from pathlib import Path

import pytest

from ace_lora.tiny_base.configs import DCAE_CONFIG, MERT_CONFIG, MHUBERT_CONFIG, VOCODER_CONFIG
from ace_lora.tiny_base.shapes import Shapes, dcae_shapes, hubert_shapes, transformer_shapes, vocoder_shapes

GOLDEN = Path(__file__).parents[1] / "golden"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def as_lists(shapes: Shapes) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes.items()}


def test_transformer_shapes_at_the_published_size():
    published = read_json(GOLDEN / "transformer" / "transformer_params.json")
    shapes = transformer_shapes(published["config"])
    assert as_lists(shapes) == published["params"]
    assert len(shapes) == 874


def test_dcae_shapes_at_the_published_size():
    config = {
        **DCAE_CONFIG,
        "attention_head_dim": 32,
        "encoder_block_out_channels": [128, 256, 512, 1024],
        "decoder_block_out_channels": [128, 256, 512, 1024],
        "encoder_layers_per_block": [2, 2, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3],
    }
    assert as_lists(dcae_shapes(config)) == published_keys("music_dcae_f8c8")


def test_vocoder_shapes_at_the_published_size():
    config = {
        **VOCODER_CONFIG,
        "depths": [3, 3, 9, 3],
        "dims": [128, 256, 384, 512],
        "upsample_rates": [4, 4, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4, 4],
        "resblock_kernel_sizes": [3, 7, 11, 13],
        "resblock_dilation_sizes": [[1, 3, 5]] * 4,
        "num_mels": 512,
        "upsample_initial_channel": 1024,
    }
    assert as_lists(vocoder_shapes(config)) == published_keys("music_vocoder")


@pytest.mark.parametrize(
    ("key", "tiny", "sizes"),
    [
        ("mert_v1_330m_as_hubert", MERT_CONFIG, (1024, 4096, 24)),
        ("mhubert_147", MHUBERT_CONFIG, (768, 3072, 12)),
    ],
)
def test_ssl_shapes_at_the_published_size(key, tiny, sizes):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    config = {**tiny, **dict(zip(names, sizes, strict=True)), "conv_dim": [512] * 7}
    config |= {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    renamed = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    shapes = {}
    for name, shape in as_lists(hubert_shapes(config)).items():
        first, last = name.rsplit(".", 1) if "." in name else ("", name)
        shapes[f"{first}.{renamed[last]}" if last in renamed else name] = shape
    assert shapes == published_keys(key)


def published_keys(part: str) -> dict[str, list[int]]:
    return read_json(GOLDEN / "audio" / "keys_fullsize.json")[part]
