import pytest

from ace_lora.base_weights.parts import check_names, format_bytes


def test_unknown_part():
    with pytest.raises(ValueError, match="'decoder'"):
        check_names(["dcae", "decoder"])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (364_005, "364.0 kB"), (6_611_000_000, "6.6 GB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text
