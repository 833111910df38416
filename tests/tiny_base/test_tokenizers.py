"""The tiny tokenizers, read by the library that will read them."""

import json
from pathlib import Path

import pytest

from ace_lora.tiny_base.make import make_tiny_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_tiny_base(folder)
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


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
