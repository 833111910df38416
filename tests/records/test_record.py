"""The record format: what is written comes back, both formats are read, and no damaged file is accepted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import pytest
import torch
from safetensors.torch import save_file

from ace_lora.records.record import (
    NotARecord,
    Record,
    RecordError,
    check_record,
    list_records,
    needed_of_base,
    quantise_rows,
    read_metadata,
    read_record,
    read_tensors,
    restore_rows,
    write_record,
    write_tensors,
)

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
    assert needed_of_base(path) == {**tokens, "mert": record.mert.shape[1], "mhubert": record.mhubert.shape[1]}
    record.mert = record.mhubert = None
    write_record(path, record)
    assert needed_of_base(path) == tokens
    golden = GOLDEN / "record_track_a.hdf5"
    old = read_record(golden)
    assert needed_of_base(golden) == {
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


# --- Damage ---


@pytest.fixture
def small_file(tmp_path) -> Path:
    path = tmp_path / "song.safetensors"
    record = Record(
        "song",
        torch.ones(8, 16, 2),
        torch.tensor([1]),
        torch.tensor([0]),
        torch.ones(3, 4),
        torch.ones(2, 4),
        metadata={"prompt": "pop"},
    )
    write_record(path, record)
    return path


def test_a_file_cut_short_anywhere_is_refused_and_named(small_file):
    whole = small_file.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(150, len(whole), 37), len(whole) - 1]:
        small_file.write_bytes(whole[:length])
        for read in (read_record, read_metadata):
            with pytest.raises(RecordError, match=r"song\.safetensors"):
                read(small_file)
    small_file.write_bytes(whole + b"\0")
    with pytest.raises(RecordError, match="cut short or damaged"):
        read_record(small_file)


def test_every_changed_byte_of_the_tensors_is_noticed(small_file):
    whole = small_file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        small_file.write_bytes(damaged)
        for read in (read_record, check_record):
            with pytest.raises(RecordError, match="damaged"):
                read(small_file)
    small_file.write_bytes(whole)
    assert check_record(small_file) == read_metadata(small_file) == {"prompt": "pop"}


def test_a_changed_header_never_ends_in_another_error(small_file):
    whole = small_file.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for position in range(length):
        damaged = bytearray(whole)
        damaged[position] ^= 0x05
        small_file.write_bytes(damaged)
        try:
            record = read_record(small_file)
        except RecordError:
            continue
        # White space that fills up the header may change; nothing else.
        assert record.keys == "song" and record.metadata == {"prompt": "pop"}
        assert torch.equal(record.target_latents, torch.ones(8, 16, 2))


def test_other_safetensors_files_are_no_records(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(NotARecord, match=r"not a training record.*Move the file"):
        read_record(path)
    write_tensors(path, {"weight": torch.ones(2)}, {"keys": "song"})
    with pytest.raises(RecordError, match="no target_latents"):
        read_record(path)
    with pytest.raises(RecordError, match="no target_latents"):
        read_metadata(path)


def test_a_record_of_another_version_says_so(small_file):
    small_file.write_bytes(small_file.read_bytes().replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(RecordError, match="its format version is 9, this program's is 1"):
        read_record(small_file)


def test_a_missing_file_is_no_damage(tmp_path):
    for name in ("gone.safetensors", "gone.hdf5"):
        with pytest.raises(FileNotFoundError):
            read_record(tmp_path / name)


def test_tensors_with_metadata(tmp_path):
    path = tmp_path / "part.safetensors"
    write_tensors(path, {"b": torch.arange(3), "a": torch.zeros(2, 2)}, {"made": [1, None, "ü"]})
    tensors, metadata = read_tensors(path)
    assert tensors["b"].tolist() == [0, 1, 2] and tensors["a"].shape == (2, 2)
    assert metadata == {"made": [1, None, "ü"]}
    assert set(read_tensors(path, skip=["a"])[0]) == {"b"}


# --- HDF5 ---


@pytest.mark.parametrize("stem", ["track_a", "track_b"])
def test_golden_hdf5_records(stem):
    path = GOLDEN / f"record_{stem}.hdf5"
    facts = json.loads((GOLDEN / "record.json").read_text(encoding="utf-8"))["songs"][stem]["fields"]
    record = read_record(path)
    assert record.keys == facts["keys"]["value"] == stem
    assert record.text_token_ids.tolist() == facts["text_token_ids"]["values"]
    assert record.lyric_token_ids.tolist() == facts["lyric_token_ids"]["values"]
    for name, field in [
        ("target_latents", "target_latents"),
        ("mert", "mert_ssl_hidden_states"),
        ("mhubert", "mhubert_ssl_hidden_states"),
    ]:
        tensor, digest = getattr(record, name), facts[field]["digest"]
        assert tensor.dtype == torch.float32 and list(tensor.shape) == digest["shape"]
        assert tensor.flatten()[:8].tolist() == digest["first8"] and tensor.flatten()[-8:].tolist() == digest["last8"]
        assert float(tensor.double().norm()) == pytest.approx(digest["l2"], rel=1e-12)
    assert record.metadata == read_metadata(path)
    assert record.metadata["ssl"] == "stored"
    frames = facts["target_latents"]["shape"][2]
    assert record.metadata["seconds"] == pytest.approx(frames * 4096 / 44100)
    assert read_record(path, ssl=False).mert is None


def test_an_hdf5_file_cut_short_is_refused_and_named(tmp_path):
    whole = (GOLDEN / "record_track_a.hdf5").read_bytes()
    path = tmp_path / "track_a.hdf5"
    for length in [0, 1, 100, 2048, *range(5000, len(whole), 9001), len(whole) - 1]:
        path.write_bytes(whole[:length])
        for read in (read_record, read_metadata):
            with pytest.raises(RecordError, match=r"track_a\.hdf5"):
                read(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mert_ssl_hidden_states", None, "no mert_ssl_hidden_states"),
        ("extra", [1.0], "holds extra"),
        ("target_latents", torch.ones(4, 16, 79).double().numpy(), "target_latents is float64"),
        ("attention_mask", torch.ones(78).numpy(), "attention_mask has 78 elements, not 79"),
        ("lyric_mask", torch.zeros(9).numpy(), "lyric_mask is not 1 throughout"),
        ("speaker_embds", torch.ones(512).numpy(), "speaker_embds is not 0 throughout"),
        (
            "target_latents",
            torch.full((4, 16, 79), torch.nan).numpy(),
            "target_latents holds values that are not finite",
        ),
    ],
)
def test_hdf5_files_that_are_not_exactly_the_table_are_refused(tmp_path, name, value, message):
    path = tmp_path / "song.hdf5"
    path.write_bytes((GOLDEN / "record_track_a.hdf5").read_bytes())
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        if value is not None:
            file.create_dataset(name, data=value, chunks=True, shuffle=True, **hdf5plugin.Zstd())
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_an_hdf5_record_can_be_kept_in_our_format(tmp_path):
    old = read_record(GOLDEN / "record_track_a.hdf5")
    write_record(tmp_path / "track_a.safetensors", old)
    new = read_record(tmp_path / "track_a.safetensors")
    assert torch.equal(new.target_latents, old.target_latents)
    assert float(torch.cosine_similarity(new.mert.float(), old.mert).min()) > 1 - 4e-4


# --- Folders ---


def test_the_records_of_a_folder(tmp_path):
    for name in (
        "b.safetensors",
        "a.hdf5",
        "A2.safetensors",
        ".tmp-x.safetensors",
        "notes.txt",
        "b.hdf5",
        "夜.safetensors",
    ):
        (tmp_path / name).touch()
    (tmp_path / "folder.hdf5").mkdir()
    assert [path.name for path in list_records(tmp_path)] == [
        "A2.safetensors",
        "a.hdf5",
        "b.safetensors",
        "夜.safetensors",
    ]


def test_the_header_is_read_without_torch(small_file):
    code = (
        "import sys; from ace_lora.records.record import read_metadata; read_metadata(sys.argv[1]);"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_file)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.strip() == "False False"
