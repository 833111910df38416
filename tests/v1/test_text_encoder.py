"""python -m pytest tests/test_text_encoder.py"""

import json
import shutil
from pathlib import Path

import pytest

from ace_lora.commands import WrongInput
from ace_lora.tiny_base.make import make_tiny_base

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from ace_lora.base_weights.loading import WrongWeights  # noqa: E402
from ace_lora.v1.text_encoder import (  # noqa: E402
    comma_id,
    exceeds_limit,
    load_text_encoder,
    load_text_tokenizer,
    tokenize_prompt,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder / "umt5-base"


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "umt5-base"))


def states(folder: Path, ids: list[int], **options) -> torch.Tensor:
    encoder = load_text_encoder(folder, **{"device": "cpu", "dtype": torch.float32, **options})
    with torch.no_grad():
        tokens = torch.tensor([ids])
        return encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


# --- Tokenizer --------------------------------------------------------------------------------------------------------


def test_prompt_ids(tiny):
    tokenizer = load_text_tokenizer(tiny)
    assert tokenize_prompt(tokenizer, "") == [1]
    ids = tokenize_prompt(tokenizer, "rock, drums, 中文")
    assert ids[-1] == 1
    assert ids.count(275) == 2
    assert 2 not in ids
    assert comma_id(tokenizer) == 275


def test_prompt_is_cut_at_256_ids_with_its_end_token(tiny):
    tokenizer = load_text_tokenizer(tiny)
    ids = tokenize_prompt(tokenizer, "rock, " * 300)
    assert len(ids) == 256
    assert ids[-1] == 1
    assert exceeds_limit(tokenizer, "rock, " * 300) and not exceeds_limit(tokenizer, "rock, drums")


def test_same_ids_through_transformers(tiny):
    from transformers import AutoTokenizer

    ours, theirs = load_text_tokenizer(tiny), AutoTokenizer.from_pretrained(tiny, local_files_only=True)
    for prompt in ("", "rock, drums", "Café, R&B", "中文, " * 200):
        assert tokenize_prompt(ours, prompt) == theirs(prompt, truncation=True, max_length=256)["input_ids"]


def edit_tokenizer(folder: Path, change) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_settings_in_the_file_do_not_pad_or_cut(folder):
    def pad_and_cut(content):
        content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
        }  # fmt: skip

    expected = tokenize_prompt(load_text_tokenizer(folder), "rock, drums, vocal")
    edit_tokenizer(folder, pad_and_cut)
    assert tokenize_prompt(load_text_tokenizer(folder), "rock, drums, vocal") == expected


def test_another_comma_id_is_used_and_said(folder):
    def swap(content):
        vocabulary = content["model"]["vocab"]
        vocabulary[275], vocabulary[276] = vocabulary[276], vocabulary[275]

    edit_tokenizer(folder, swap)
    with pytest.warns(UserWarning, match="The comma is token 276, not 275"):
        assert comma_id(load_text_tokenizer(folder)) == 276


def test_tokenizer_without_comma(folder):
    def remove(content):
        content["model"]["vocab"][275] = ["¤", -9.0]

    edit_tokenizer(folder, remove)
    with pytest.raises(WrongInput, match="no token for the comma"):
        comma_id(load_text_tokenizer(folder))


def test_tokenizer_without_end_token(folder):
    def remove(content):
        content["post_processor"] = None

    edit_tokenizer(folder, remove)
    with pytest.raises(WrongInput, match=r"gives \[\] for an empty prompt, expected \['</s>'\]"):
        load_text_tokenizer(folder)


@pytest.mark.parametrize("content", [None, "", "{}", "[1"])
def test_damaged_tokenizer(folder, content):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(WrongInput, match=r"The text tokenizer in '.*' cannot be read"):
        load_text_tokenizer(folder)


# --- Encoder ----------------------------------------------------------------------------------------------------------


def test_same_states_as_transformers_own_loading(tiny):
    from transformers import UMT5EncoderModel

    ids = tokenize_prompt(load_text_tokenizer(tiny), "rock, drums")
    theirs = UMT5EncoderModel.from_pretrained(tiny, local_files_only=True).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).last_hidden_state
    found = states(tiny, ids)
    assert found.shape == (1, len(ids), 32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("names", [["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]])
def test_embedding_under_its_other_name(tiny, folder, names):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors.pop("shared.weight")
    save_file({**tensors, **{name: embedding.clone() for name in names}}, path, metadata={"format": "pt"})
    assert torch.equal(states(folder, [300, 275, 1]), states(tiny, [300, 275, 1]))


def test_nothing_is_trained(tiny):
    encoder = load_text_encoder(tiny, device="cpu", dtype=torch.float32)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_is_near_float32(tiny, dtype, tolerance):
    exact, rounded = states(tiny, [300, 275, 310, 1]), states(tiny, [300, 275, 310, 1], dtype=dtype)
    assert ((rounded.float() - exact).norm() / exact.norm()).item() < tolerance


def test_float16_keeps_the_layer_that_overflows_in_float32(tiny):
    encoder = load_text_encoder(tiny, device="cpu", dtype=torch.float16)
    kept = {name for name, parameter in encoder.named_parameters() if parameter.dtype is torch.float32}
    assert kept == {f"encoder.block.{index}.layer.1.DenseReluDense.wo.weight" for index in range(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("encoder.final_layer_norm.weight"), "missing: encoder.final_layer_norm.weight"),
        (lambda tensors: tensors.pop("shared.weight"), "missing: shared.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda tensors: tensors.update({"encoder.final_layer_norm.weight": torch.zeros(3)}),
            r"encoder.final_layer_norm.weight is \[3\], expected \[32\]",
        ),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WrongWeights, match=message):
        load_text_encoder(folder, device="cpu", dtype=torch.float32)


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WrongWeights, match="is not a readable safetensors file"):
        load_text_encoder(folder, device="cpu", dtype=torch.float32)
