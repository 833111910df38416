"""Where base weights are found, and what is said of those that are damaged."""

import shutil
from pathlib import Path

import pytest

from ace_lora.base_weights import find
from ace_lora.base_weights.find import BaseWeights, MissingPart, find_base_weights, missing
from ace_lora.base_weights.parts import ALL_PARTS, PARTS
from tests.tiny_cache import COMMIT, as_cache

TRANSFORMER = "ace_step_transformer/diffusion_pytorch_model.safetensors"


def the_missing(folder: Path | None, part: str) -> MissingPart:
    found = BaseWeights(folder).find(part)
    assert isinstance(found, MissingPart), found
    return found


def test_published_layout(folder):
    assert find_base_weights(folder, ALL_PARTS) == {
        "transformer": folder / "ace_step_transformer",
        "dcae": folder / "music_dcae_f8c8",
        "vocoder": folder / "music_vocoder",
        "text_encoder": folder / "umt5-base",
        "mert": folder / "MERT-v1-330M",
        "mhubert": folder / "mHuBERT-147",
        "lyric_vocabulary": folder / "vocab.json",
    }
    assert missing(folder, ALL_PARTS) == []


def test_cache_layout_is_found_by_default_and_by_name(tiny, tmp_path):
    root = find.DEFAULT_CHECKPOINT_DIR
    folders = {part: as_cache(tiny, root, part) for part in PARTS}
    assert find_base_weights(None, PARTS) == folders
    assert find_base_weights(root, PARTS) == folders
    # The repository's own folder, and a snapshot of it, can be named too.
    repository = root / PARTS["dcae"].cache_folder
    assert find_base_weights(repository, ["dcae"]) == {"dcae": folders["dcae"]}
    assert find_base_weights(repository / "snapshots" / COMMIT, ["dcae"]) == {"dcae": folders["dcae"]}


@pytest.mark.parametrize("name", ["ACE-Step-v1-3.5B", "ACE-Step/ACE-Step-v1-3.5B"])
def test_folder_of_repositories(tiny, tmp_path, name):
    shutil.copytree(tiny / "music_vocoder", tmp_path / name / "music_vocoder")
    assert find_base_weights(tmp_path, ["vocoder"]) == {"vocoder": tmp_path / name / "music_vocoder"}


def test_snapshot_of_main_is_taken_before_others(tiny, tmp_path):
    old, new = "a" * 40, "b" * 40
    as_cache(tiny, tmp_path, "vocoder", commit=new, main=False)
    wanted = as_cache(tiny, tmp_path, "vocoder", commit=old)
    assert find_base_weights(tmp_path, ["vocoder"]) == {"vocoder": wanted}


def test_incomplete_snapshot_gives_way_to_a_whole_one(tiny, tmp_path):
    wanted = as_cache(tiny, tmp_path, "vocoder", commit="a" * 40, main=False)
    broken = as_cache(tiny, tmp_path, "vocoder", commit="b" * 40)
    (broken / "config.json").unlink()
    assert find_base_weights(tmp_path, ["vocoder"]) == {"vocoder": wanted}


def test_ssl_models_come_from_the_caches_when_the_named_folder_has_none(tiny, folder):
    shutil.rmtree(folder / "MERT-v1-330M")
    shutil.rmtree(folder / "mHuBERT-147")
    assert [part.part for part in missing(folder, ALL_PARTS)] == ["mert", "mhubert"]
    mert = as_cache(tiny, find.DEFAULT_CHECKPOINT_DIR, "mert")
    mhubert = as_cache(tiny, find.hub_cache(), "mhubert")
    assert find_base_weights(folder, ["mert", "mhubert"]) == {"mert": mert, "mhubert": mhubert}


def test_ace_step_in_the_hub_cache_serves_the_default_but_completes_no_named_folder(tiny, folder):
    in_hub = as_cache(tiny, find.hub_cache(), "dcae")
    assert find_base_weights(None, ["dcae"]) == {"dcae": in_hub}
    shutil.rmtree(folder / "music_dcae_f8c8")
    assert the_missing(folder, "dcae").looked_in == (folder,)


def test_hub_cache_follows_the_environment(monkeypatch, tmp_path):
    assert find.hub_cache() == tmp_path / "hub cache"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert find.hub_cache() == tmp_path / "home" / "hub"
    monkeypatch.delenv("HF_HOME")
    assert find.hub_cache() == Path("~/.cache/huggingface/hub").expanduser()


@pytest.mark.parametrize(
    "place",
    ["named/vocab.json", "named/ace_step_transformer/vocab.json", "fork/vocab.json", "default cache/vocab.json"],
)
def test_places_of_the_lyric_vocabulary(tmp_path, place):
    (tmp_path / "named").mkdir()
    assert the_missing(tmp_path / "named", "lyric_vocabulary").size == 364_005
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("{}", encoding="utf-8")
    found = find_base_weights(tmp_path / "named", ["lyric_vocabulary"])
    assert found == {"lyric_vocabulary": tmp_path / place}


def test_empty_lyric_vocabulary_is_missing(folder):
    (folder / "vocab.json").write_text("", encoding="utf-8")
    assert the_missing(folder, "lyric_vocabulary").found_instead == (f"'{folder / 'vocab.json'}' is empty",)


# --- Damage -----------------------------------------------------------------------------------------------------------


def test_weight_file_cut_short(folder):
    path = folder / TRANSFORMER
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    fault = f"'{path}' is cut short: {len(whole) - 1} of {len(whole)} bytes"
    assert the_missing(folder, "transformer").found_instead == (fault,)
    assert "ACE-Step/ACE-Step-v1-3.5B/ace_step_transformer, about 6.6 GB" in str(the_missing(folder, "transformer"))


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "is empty"), (b"<html>404</html>" * 9, "is no safetensors file"), (b"abc", "is no")]
)
def test_weight_file_of_something_else(folder, content, fault):
    (folder / TRANSFORMER).write_bytes(content)
    assert fault in the_missing(folder, "transformer").found_instead[0]


@pytest.mark.parametrize(
    ("part", "name", "fault"),
    [
        ("dcae", "music_dcae_f8c8/config.json", "config.json' is not there"),
        ("mert", "MERT-v1-330M/model.safetensors", "has no model.safetensors or pytorch_model.bin"),
        ("text_encoder", "umt5-base/tokenizer.json", "has no tokenizer.json or spiece.model"),
    ],
)
def test_file_that_is_not_there(folder, part, name, fault):
    (folder / name).unlink()
    (found,) = the_missing(folder, part).found_instead
    assert fault in found


def test_config_that_is_no_json(folder):
    (folder / "music_vocoder" / "config.json").write_text("{", encoding="utf-8")
    assert "is no JSON file" in the_missing(folder, "vocoder").found_instead[0]


def test_shards_are_not_whole_weights(folder):
    """Nobody publishes these models in shards, and the loaders read none."""
    part = folder / "umt5-base"
    (part / "model.safetensors").rename(part / "model-00001-of-00002.safetensors")
    (part / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    assert the_missing(folder, "text_encoder").found_instead == (f"'{part}' has no model.safetensors",)


def test_pytorch_file(folder):
    torch = pytest.importorskip("torch")
    part = folder / "MERT-v1-330M"
    (part / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1000)}, part / "pytorch_model.bin")
    assert find_base_weights(folder, ["mert"]) == {"mert": part}
    content = (part / "pytorch_model.bin").read_bytes()
    (part / "pytorch_model.bin").write_bytes(content[:2000])
    assert the_missing(folder, "mert").found_instead == (f"'{part / 'pytorch_model.bin'}' is cut short",)


def test_link_that_leads_nowhere(tiny, tmp_path):
    part = as_cache(tiny, tmp_path, "vocoder")
    (part / "config.json").unlink()
    try:
        (part / "config.json").symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("this system lets no user make links")
    assert "links to a file that is gone" in the_missing(tmp_path, "vocoder").found_instead[0]


def test_unfinished_download_is_named(tmp_path):
    blobs = tmp_path / PARTS["mert"].cache_folder / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"x" * 1500)
    fault = f"'{blobs / '0123.incomplete'}' is an unfinished download of 1.5 kB"
    assert the_missing(tmp_path, "mert").found_instead == (fault,)
