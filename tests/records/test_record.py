"""The record format: what is written comes back, both formats are read, and no damaged file is accepted."""

from pathlib import Path

import pytest
import torch

from ace_lora.records.format import Record, RecordError
from ace_lora.records.record import (
    check_record,
    needed_of_base,
    quantise_rows,
    read_metadata,
    read_record,
    restore_rows,
    write_record,
)
from ace_lora.records.tensor_file import write_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
TENSORS = ["target_latents", "text_token_ids", "lyric_token_ids", "mert", "mhubert"]


@pytest.fixture
def record() -> Record:
    generator = torch.Generator().manual_seed(5)
    return Record(
        keys="夜 曲",
        target_latents=torch.randn(8, 16, 33, generator=generator),
        text_token_ids=torch.tensor([105, 275, 1]),
        lyric_token_ids=torch.tensor([261, 259, 2]),
        mert=torch.randn(224, 1024, generator=generator),
        mhubert=torch.randn(149, 768, generator=generator),
        metadata={"prompt": "民谣, acoustic", "lyrics": "[verse]\n夜", "timed_lines": [[None, "[verse]"], [1.5, "夜"]]},
    )


def test_what_is_written_comes_back(record, tmp_path):
    path = tmp_path / "夜 曲.safetensors"
    write_record(path, record)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    back = read_record(path)
    assert back.keys == record.keys
    assert back.metadata == record.metadata == read_metadata(path)
    for name in ("target_latents", "text_token_ids", "lyric_token_ids"):
        assert torch.equal(getattr(back, name), getattr(record, name))
    for branch in ("mert", "mhubert"):
        stored, scale, values = getattr(back, branch), getattr(back, f"{branch}_scale"), getattr(record, branch)
        assert stored.dtype == torch.int8
        # Half a unit of the row's own scale is all that rounding may cost.
        assert bool(((restore_rows(stored, scale) - values).abs() <= 0.5001 * scale[:, None]).all())
        cosine = torch.cosine_similarity(stored.double(), values.double(), dim=1)
        assert 1 - float(cosine.min()) < 4e-4


def test_the_mean_cosine_error_of_int8_is_what_the_docstring_says():
    rows = torch.randn(2000, 1024, generator=torch.Generator().manual_seed(0))
    rows[:, 7] *= 12 / 3.3  # one loud dimension, as self-supervised models have them
    values, scale = quantise_rows(rows)
    error = 1 - torch.cosine_similarity(restore_rows(values, scale).double(), rows.double(), dim=1)
    peak_to_rms = rows.abs().amax(1) / rows.square().mean(1).sqrt()
    assert float(error.mean()) == pytest.approx(float((peak_to_rms**2 / 387_000).mean()), rel=0.1)


def test_rows_of_zeros_stay_zero_and_small_rows_keep_their_direction():
    rows = torch.tensor([[0.0, 0.0], [1e-30, -5e-31], [3.0, 3.0]])
    values, scale = quantise_rows(rows)
    assert values.tolist() == [[0, 0], [127, -64], [127, 127]]
    assert restore_rows(values, scale)[0].tolist() == [0.0, 0.0]


def test_writing_again_what_was_read_changes_nothing(record, tmp_path):
    write_record(tmp_path / "a.safetensors", record)
    first = read_record(tmp_path / "a.safetensors")
    write_record(tmp_path / "b.safetensors", first)
    second = read_record(tmp_path / "b.safetensors")
    for name in (*TENSORS, "mert_scale", "mhubert_scale"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.metadata == second.metadata


def test_features_are_optional(record, tmp_path):
    path = tmp_path / "song.safetensors"
    write_record(path, record)
    without = read_record(path, ssl=False)
    assert (without.mert, without.mhubert, without.mert_scale) == (None, None, None)
    assert torch.equal(without.target_latents, record.target_latents)
    record.mhubert = None
    write_record(path, record)
    assert read_record(path).mhubert is None and read_record(path).mert is not None


def test_what_a_base_model_needs_for_a_record(record, tmp_path):
    path = tmp_path / "song.safetensors"
    write_record(path, record)
    tokens = {
        "text_tokens": int(record.text_token_ids.max()) + 1,
        "lyric_tokens": int(record.lyric_token_ids.max()) + 1,
    }
    tokens["latent_channels"] = 8
    assert needed_of_base(path) == {**tokens, "mert": record.mert.shape[1], "mhubert": record.mhubert.shape[1]}
    record.mert = record.mhubert = None
    write_record(path, record)
    assert needed_of_base(path) == tokens
    golden = GOLDEN / "record_track_a.hdf5"
    old = read_record(golden)
    assert needed_of_base(golden) == {
        "latent_channels": 4,
        "text_tokens": int(old.text_token_ids.max()) + 1,
        "lyric_tokens": int(old.lyric_token_ids.max()) + 1,
        "mert": old.mert.shape[1],
        "mhubert": old.mhubert.shape[1],
    }


def test_size_is_below_the_limit(tmp_path):
    seconds = 60
    write_record(
        tmp_path / "song.safetensors",
        Record(
            "song",
            torch.zeros(8, 16, 646),
            torch.ones(256).long(),
            torch.ones(4096).long(),
            torch.zeros(4488, 1024),
            torch.zeros(2998, 768),
        ),
    )
    assert (tmp_path / "song.safetensors").stat().st_size < 0.2e6 * seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_latents": torch.full((8, 16, 3), torch.nan)}, "target_latents holds values that are not finite"),
        ({"target_latents": torch.zeros(8, 16, 0)}, "target_latents is torch.float32 [8, 16, 0]"),
        ({"target_latents": torch.zeros(8, 16, 3, dtype=torch.bfloat16)}, "target_latents is torch.bfloat16"),
        ({"text_token_ids": torch.zeros(3)}, "text_token_ids is torch.float32"),
        ({"lyric_token_ids": torch.zeros(0).long()}, "lyric_token_ids is torch.int64 [0]"),
        ({"mert": torch.full((2, 4), torch.inf)}, "not finite"),
        ({"mert": torch.zeros(2, 4).char(), "mert_scale": torch.ones(3)}, "mert has 2 rows but 3 scales"),
    ],
)
def test_a_record_that_training_could_not_use_is_not_written(record, tmp_path, change, message):
    for name, value in change.items():
        setattr(record, name, value)
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace(".", r"\.")):
        write_record(tmp_path / "song.safetensors", record)
    assert list(tmp_path.iterdir()) == []


FINGERPRINT = {
    "audio": {"size": 1, "mtime_ns": 1, "checked_ns": 1, "sha256": "x"},
    **{piece: {"version": 1, "weights": "x", "input": None} for piece in ("latents", "text", "lyrics")},
}
WHOLE = {"seconds": 3.0, "original_seconds": 3.0, "cropped": False, "prompt": "", "lyrics": "", "timed_lines": []}
WHOLE |= {"lyric_language": None, "audio": "a.wav"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 7}, "prompt is 7, not a text"),
        ({"lyrics": ["la"]}, "lyrics is .*, not a text"),
        ({"seconds": -1}, "seconds is -1, not a number of seconds"),
        ({"seconds": "3"}, "seconds is '3', not a number of seconds"),
        ({"original_seconds": 1e300}, r"original_seconds is 1e\+300"),
        ({"cropped": 1}, "cropped is 1, not true or false"),
        ({"timed_lines": [[None, "a"], ["1", "b"]]}, "timed_lines is not a list of times and lines"),
        ({"timed_lines": [[-1, "a"]]}, "timed_lines is not"),
        ({"timed_lines": "a"}, "timed_lines is not"),
        ({"lyric_language": 3}, "lyric_language is 3"),
        ({"audio": {}}, "audio is {}, not a text"),
        ({"fingerprint": FINGERPRINT}, "its metadata has no seconds"),
        ({**WHOLE, "fingerprint": []}, "its fingerprint is not a table of tables"),
        ({**WHOLE, "fingerprint": {**FINGERPRINT, "text": 1}}, "its fingerprint is not a table of tables"),
        ({**WHOLE, "fingerprint": {"audio": FINGERPRINT["audio"]}}, "its fingerprint has no latents"),
        ({**WHOLE, "fingerprint": {**FINGERPRINT, "audio": {"size": 1}}}, "lacks size or times"),
        ({**WHOLE, "fingerprint": {**FINGERPRINT, "audio": {**FINGERPRINT["audio"], "sha256": 1}}}, "the checksum"),
    ],
)
def test_metadata_of_another_kind_is_refused(record, tmp_path, change, message):
    path = tmp_path / "song.safetensors"
    record.metadata |= {**WHOLE, "fingerprint": FINGERPRINT}
    write_record(path, record)
    check_record(path)
    record.metadata = change
    write_record(path, record)
    for read in (read_record, read_metadata, check_record):
        with pytest.raises(RecordError, match=message):
            read(path)


def test_negative_ids_and_impossible_lengths_are_refused(record, tmp_path):
    tensors = {name: getattr(record, name) for name in ("target_latents", "text_token_ids", "lyric_token_ids")}
    path = tmp_path / "song.safetensors"
    for name, value, message in (
        ("lyric_token_ids", torch.tensor([261, -7]), "lyric_token_ids holds -7, which is no token"),
        ("target_latents", torch.zeros(1, 1, 100_001), "target_latents has 100001 frames, at most 100000"),
    ):
        write_tensors(path, tensors | {name: value}, {"keys": "song"})
        with pytest.raises(RecordError, match=message):
            read_record(path)
