"""What people are told when pip fails; pip itself runs in `test_environment.py`."""

import pytest

from ace_lora.set_up.pip import TORCH_HELP, explain_pip_failure


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full."),
        (
            "WARNING: Retrying … NameResolutionError …\nERROR: No matching distribution found",
            "index cannot be reached. Connect to the network, then run the same command again. Where the index is slow",
        ),
        ("ERROR: Could not install … [WinError 5] Access is denied", "in use or may not be written"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED", "secure connection"),
        ("ERROR: something new\n\n", "The last words were: ERROR: something new"),
        ("", "it said nothing"),
    ],
)
def test_failures_of_pip_in_a_sentence(output, sentence):
    assert sentence in explain_pip_failure(output)


def test_what_helps_with_the_index_of_pytorch_is_another_thing():
    said = explain_pip_failure("ReadTimeoutError", TORCH_HELP)
    assert "which PIP_INDEX_URL does not change" in said and "--torch_index" in said
