"""The HDF5 records of earlier scripts: what they hold is read, and no damaged one is accepted."""

import json
from pathlib import Path

import h5py
import hdf5plugin
import pytest
import torch

from ace_lora.records.format import RecordError
from ace_lora.records.record import (
    read_metadata,
    read_record,
    write_record,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
TENSORS = ["target_latents", "text_token_ids", "lyric_token_ids", "mert", "mhubert"]


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
        ("mhubert_ssl_hidden_states", torch.ones(0, 768).numpy(), r"mhubert_ssl_hidden_states is float32 \[0, 768\]"),
        ("lyric_token_ids", torch.ones(0, dtype=torch.int64).numpy(), r"lyric_token_ids is int64 \[0\], not"),
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
            stored = {"chunks": True, "shuffle": True, **hdf5plugin.Zstd()} if len(value) else {}
            file.create_dataset(name, data=value, **stored)
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_an_hdf5_record_can_be_kept_in_our_format(tmp_path):
    old = read_record(GOLDEN / "record_track_a.hdf5")
    write_record(tmp_path / "track_a.safetensors", old)
    new = read_record(tmp_path / "track_a.safetensors")
    assert torch.equal(new.target_latents, old.target_latents)
    assert float(torch.cosine_similarity(new.mert.float(), old.mert).min()) > 1 - 4e-4


def changed_copy(path: Path) -> h5py.File:
    path.write_bytes((GOLDEN / "record_track_a.hdf5").read_bytes())
    return h5py.File(path, "r+")


def test_hdf5_files_of_strangers_are_refused_unread(tmp_path):
    path = tmp_path / "song.hdf5"
    huge = {"shape": (8, 16, 10**11), "dtype": "float32", "chunks": (8, 16, 64), "fillvalue": 0.0}
    with changed_copy(path) as file:
        del file["target_latents"]
        file.create_dataset("target_latents", **huge)
    assert path.stat().st_size < 1e6
    with pytest.raises(RecordError, match="more than 1000000 of anything is not possible"):
        read_record(path)

    with changed_copy(path) as file:
        ids = file["lyric_token_ids"][()]
        ids[1] = -3
        file["lyric_token_ids"][...] = ids
    with pytest.raises(RecordError, match="lyric_token_ids holds -3, which is no token"):
        read_record(path)

    with changed_copy(path) as file:
        del file["text_token_ids"]
        file["text_token_ids"] = h5py.ExternalLink(str(GOLDEN / "record_track_b.hdf5"), "text_token_ids")
    with pytest.raises(RecordError, match="text_token_ids is no table of this file"):
        read_record(path)

    with changed_copy(path) as file:
        del file["lyric_mask"]
        file.create_group("lyric_mask")
    with pytest.raises(RecordError, match="lyric_mask is no table of this file"):
        read_record(path)

    for keys in (b"\xff\xfe", 7, [b"a", b"b"]):
        with changed_copy(path) as file:
            del file["keys"]
            file["keys"] = keys
        with pytest.raises(RecordError, match="keys is not"):
            read_record(path)
