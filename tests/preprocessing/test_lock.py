"""Who may make records at the same time."""

import pytest
import torch
from filelock import FileLock

from ace_lora.records.tensor_file import write_tensors


@pytest.mark.parametrize(
    ("running", "starting"), [("1/1", "1/1"), ("1/1", "1/2"), ("2/2", "1/1"), ("2/2", "2/2"), ("1/3", "2/2")]
)
def test_a_second_run_on_the_same_songs_is_refused(two_songs, running, starting):
    partial = two_songs.folder / "prep.partial"
    partial.mkdir()
    with FileLock(partial / f".lock-{running.replace('/', '-of-')}"):
        status, _, errors = two_songs.preprocess("--ssl", "none", "--shard", starting)
        assert status == 2 and "Another run of this step" in errors and "is making records" in errors
        assert ("--shard " + running in errors) == (running != "1/1")
        assert not two_songs.prep.exists()
    # A lock file that a killed run left holds nobody off.
    assert (partial / f".lock-{running.replace('/', '-of-')}").exists()
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    assert set(two_songs.records()) == {"b", "夜曲"} and two_songs.others() == set()


def test_shares_of_one_division_run_at_the_same_time(two_songs):
    partial = two_songs.folder / "prep.partial"
    partial.mkdir()
    piece, unfinished, lock = "夜曲.latents.safetensors", ".tmp-夜曲.safetensors", ".lock-2-of-2"
    write_tensors(partial / piece, {"target_latents": torch.ones(1)}, {})
    (partial / unfinished).touch()
    with FileLock(partial / lock):
        # What the other share is at work on stays.
        assert two_songs.preprocess("--ssl", "none", "--shard", "1/2")[0] == 0
        assert {path.name for path in partial.iterdir()} == {piece, unfinished, lock}
        # So it does when a run on the whole dataset finds every record made.
        (two_songs.songs / "夜曲_prompt.txt").unlink()
        (two_songs.songs / "夜曲.flac").rename(two_songs.folder / "away.flac")
        two_songs.convert()
        assert two_songs.preprocess("--ssl", "none")[1].splitlines()[-1] == "done 0, skipped 1, failed 0"
        assert {path.name for path in partial.iterdir()} == {piece, unfinished, lock}
    assert two_songs.preprocess("--ssl", "none")[0] == 0
    assert not partial.exists()
