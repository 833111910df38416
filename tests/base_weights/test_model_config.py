"""The `config.json` beside a weight file."""

from __future__ import annotations

import pytest

from ace_lora.base_weights.model_config import read_model_config
from ace_lora.commands import WrongInput


def test_a_good_one_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"num_layers": 3}', encoding="utf-8-sig")
    assert read_model_config(tmp_path) == {"num_layers": 3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"num_layers": ', "cannot be read"),
        ("[1]", "holds list, a JSON object was expected"),
    ],
)
def test_a_bad_one_is_named(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(WrongInput) as raised:
        read_model_config(tmp_path)
    assert sentence in str(raised.value)
    assert str(tmp_path / "config.json") in str(raised.value)
