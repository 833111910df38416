"""Which files of a folder are records."""

from pathlib import Path

from ace_lora.records.format import list_records

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
TENSORS = ["target_latents", "text_token_ids", "lyric_token_ids", "mert", "mhubert"]


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
