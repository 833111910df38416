"""The checks of the vocabulary file; the published one only where ACE_LYRIC_VOCAB names it."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from ace_lora.base_weights.parts import LYRIC_VOCABULARY_URLS
from ace_lora.commands import WrongInput
from ace_lora.lyrics.vocabulary import PUBLISHED_SIZE, MissingLyricSupport, load_vocabulary

published = pytest.mark.skipif(
    not os.environ.get("ACE_LYRIC_VOCAB"),
    reason="set ACE_LYRIC_VOCAB to the published lyric vocabulary (vocab.json) to run this test",
)


def write_vocabulary(path, tokens=("[STOP]", "[UNK]", "[SPACE]", "[START]", "a", "b")):
    entries = {token: number for number, token in enumerate(tokens)}
    vocabulary = Tokenizer(models.BPE(vocab=entries, merges=[], unk_token="[UNK]", fuse_unk=False))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    vocabulary.add_tokens([AddedToken(token, normalized=False, special=True) for token in tokens if token[0] == "["])
    vocabulary.save(str(path))
    return path


def problem(path, rows):
    with pytest.raises(WrongInput) as caught:
        load_vocabulary(path, rows)
    (text,) = caught.value.problems
    return text


def test_a_vocabulary_of_a_tiny_model(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.json")
    assert load_vocabulary(path, 6).encode("[START]ab").ids == [3, 4, 5]
    assert load_vocabulary(path, None).get_vocab_size() == 6


def test_a_vocabulary_that_does_not_fit_the_model(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.json")
    assert problem(path, 7) == (
        f"The lyric vocabulary '{path}' has 6 entries, but the lyric embedding of the model has 7 rows. "
        "Use the vocabulary that belongs to this model."
    )


def test_another_file_in_place_of_the_published_one(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.json")
    text = problem(path, PUBLISHED_SIZE)
    assert f"'{path}' is not the published file: its sha256 is " in text
    assert text.endswith(f"Download it again: {LYRIC_VOCABULARY_URLS[0]}")


def test_a_vocabulary_without_the_tokens_of_the_training_code(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.json", ("[UNK]", "[STOP]", "[SPACE]", "[START]"))
    assert "has no usable [STOP], [UNK]. Expected" in problem(path, 4)
    path = write_vocabulary(tmp_path / "vocab.json", ("[STOP]", "[UNK]", "[SPACE]"))
    assert "has no usable [START]. Expected" in problem(path, 3)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": "1.0"}', b"\xff\xfe", b"<html>404</html>"])
def test_a_file_of_another_kind(tmp_path, content):
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    text = problem(path, None)
    assert text.startswith(f"The lyric vocabulary '{path}' is damaged or of another kind: ")
    assert text.endswith(f"Download it again: {LYRIC_VOCABULARY_URLS[0]}")


def test_a_missing_file(tmp_path):
    assert problem(tmp_path / "vocab.json", None).startswith(f"Cannot read the lyric vocabulary '{tmp_path}")
    assert problem(tmp_path, None).startswith(f"Cannot read the lyric vocabulary '{tmp_path}")


def test_the_exception_for_missing_packages_is_found_here_too():
    assert issubclass(MissingLyricSupport, Exception)


@published
def test_the_published_vocabulary(tmp_path):
    path = Path(os.environ["ACE_LYRIC_VOCAB"])
    for rows in (None, PUBLISHED_SIZE, 7000):
        assert load_vocabulary(path, rows).get_vocab_size(with_added_tokens=True) == PUBLISHED_SIZE
    assert "has 6000 rows, but the vocabulary" in problem(path, 6000)

    changed = tmp_path / "vocab.json"
    changed.write_bytes(path.read_bytes() + b"\n")
    for rows in (None, PUBLISHED_SIZE, 100):
        assert "is not the published file: its sha256 is " in problem(changed, rows)
    cut = json.loads(path.read_text(encoding="utf-8"))
    cut["added_tokens"].pop()
    changed.write_text(json.dumps(cut), encoding="utf-8")
    assert "is not the published file" in problem(changed, PUBLISHED_SIZE)
