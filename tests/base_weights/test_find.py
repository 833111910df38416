"""python -m pytest tests/test_base_weights.py

Downloads run for real, in processes of their own, against `hub_server.py` on 127.0.0.1.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from ace_lora.base_weights import find as base_weights
from ace_lora.base_weights.find import (
    ALL_PARTS,
    PARTS,
    BaseWeights,
    MissingPart,
    check_base_weights,
    find_base_weights,
    format_bytes,
    missing,
)
from ace_lora.commands import WrongInput
from ace_lora.tiny_base import build as tiny_base

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRANSFORMER = "ace_step_transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_base.make_tiny_base(folder)
    return folder


@pytest.fixture(autouse=True)
def no_caches_of_this_computer(tmp_path, monkeypatch):
    """The tests see neither the weights nor the settings that the computer they run on may have."""
    monkeypatch.setattr(base_weights, "DEFAULT_CHECKPOINT_DIR", tmp_path / "default cache")
    monkeypatch.setattr(base_weights, "LYRIC_VOCABULARY_IN_FORK", tmp_path / "fork" / "vocab.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub cache"))
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "ACE_LYRIC_VOCAB_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "my base"))


def as_cache(tiny: Path, root: Path, part: str, commit: str = COMMIT, main: bool = True) -> Path:
    """Put a part of the tiny base where a download cache would have it; returns its folder."""
    source = PARTS[part]
    cache = root / source.cache_folder
    target = cache / "snapshots" / commit / source.folder
    shutil.copytree(tiny / source.plain_folder, target, dirs_exist_ok=True)
    if main:
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit, encoding="utf-8")
    return target


def the_missing(folder: Path | None, part: str) -> MissingPart:
    found = BaseWeights(folder).find(part)
    assert isinstance(found, MissingPart), found
    return found


# --- Finding ----------------------------------------------------------------------------------------------------------


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
    assert check_base_weights(folder, ALL_PARTS) == []


def test_cache_layout_is_found_by_default_and_by_name(tiny, tmp_path):
    root = base_weights.DEFAULT_CHECKPOINT_DIR
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
    mert = as_cache(tiny, base_weights.DEFAULT_CHECKPOINT_DIR, "mert")
    mhubert = as_cache(tiny, base_weights.hub_cache(), "mhubert")
    assert find_base_weights(folder, ["mert", "mhubert"]) == {"mert": mert, "mhubert": mhubert}


def test_ace_step_in_the_hub_cache_serves_the_default_but_completes_no_named_folder(tiny, folder):
    in_hub = as_cache(tiny, base_weights.hub_cache(), "dcae")
    assert find_base_weights(None, ["dcae"]) == {"dcae": in_hub}
    shutil.rmtree(folder / "music_dcae_f8c8")
    assert the_missing(folder, "dcae").looked_in == (folder,)


def test_hub_cache_follows_the_environment(monkeypatch, tmp_path):
    assert base_weights.hub_cache() == tmp_path / "hub cache"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert base_weights.hub_cache() == tmp_path / "home" / "hub"
    monkeypatch.delenv("HF_HOME")
    assert base_weights.hub_cache() == Path("~/.cache/huggingface/hub").expanduser()


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


# --- Checks before anything is done -----------------------------------------------------------------------------------


def test_folder_that_is_not_there(tmp_path):
    (problem,) = check_base_weights(tmp_path / "typo", ["transformer"])
    assert f"--checkpoint_dir '{tmp_path / 'typo'}' is not there." in problem
    with pytest.raises(WrongInput):
        base_weights.ensure_base_weights(tmp_path / "typo", ["transformer"])
    assert not (tmp_path / "typo").exists()


def test_folder_of_something_else(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"music")
    (problem,) = check_base_weights(tmp_path, ["transformer", "dcae"])
    assert f"--checkpoint_dir '{tmp_path}' holds none of the base weights (transformer, dcae)." in problem


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    (problem,) = check_base_weights(tmp_path / "file", ["transformer"])
    assert "is a file" in problem


def test_disk_that_is_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=7_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (tmp_path / "empty").mkdir()
    assert check_base_weights(tmp_path / "empty", ["text_encoder"]) == []
    (problem,) = check_base_weights(tmp_path / "empty", ["transformer"])
    assert "has 7.0 GB free, and the missing base weights take 6.6 GB. Expected 7.1 GB." in problem
    # What an interrupted download has brought already is not needed again.
    blobs = tmp_path / "empty" / PARTS["transformer"].cache_folder / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "0123.part").open("wb") as file:
        file.truncate(200_000_000)
    assert check_base_weights(tmp_path / "empty", ["transformer"]) == []


def test_unknown_part(tmp_path):
    with pytest.raises(ValueError, match="'decoder'"):
        base_weights.ensure_base_weights(tmp_path, ["decoder"])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (364_005, "364.0 kB"), (6_611_000_000, "6.6 GB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


# --- Downloading ------------------------------------------------------------------------------------------------------


class Hub:
    """A hub with the tiny base in it, and the program that downloads from it."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.cache = folder / "我的 cache"

    def set_faults(self, **faults: object) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")

    def requests(self) -> list[str]:
        """`name range` of each request for a file since the last call, listings as `repo listed`.

        Other questions, which huggingface_hub asks of its own accord, are left out.
        """
        path = self.folder / "requests.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        path.unlink(missing_ok=True)
        return [
            line.split(" ")[0].removeprefix("/api/models/") + " listed"
            if line.startswith("/api/models/")
            else line.rsplit("/", 1)[-1]
            for line in lines
            if line.startswith("/api/models/") or not line.startswith("/api/")
        ]

    def start(self, *parts: str, **environment: str) -> subprocess.Popen:
        """Start the program with the cache as checkpoint folder and its home in the folder of the test."""
        self.cache.mkdir(exist_ok=True)
        own = {
            "HF_ENDPOINT": self.url,
            "HOME": str(self.folder / "home"),
            "USERPROFILE": str(self.folder / "home"),
            "HF_HUB_CACHE": str(self.folder / "hub cache"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONIOENCODING": "utf-8",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "ace_lora.base_weights", "--checkpoint_dir", str(self.cache), "--parts", *parts],
            cwd=ROOT,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def download(self, *parts: str, **environment: str) -> subprocess.CompletedProcess:
        """The same, to its end."""
        with self.start(*parts, **environment) as running:
            stdout, stderr = running.communicate(timeout=120)
        return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


@pytest.fixture
def hub(tiny, tmp_path):
    folder = tmp_path / "hub"
    for source in PARTS.values():
        shutil.copytree(tiny / source.plain_folder, folder / "repos" / source.repo / source.folder)
    (folder / "repos" / PARTS["mert"].repo / "README.md").write_text("not needed", encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hub_server.py")), str(folder)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert server.stdout is not None
        yield Hub(folder, int(server.stdout.readline()))
    finally:
        server.kill()
        server.communicate()


def snapshot(hub: Hub, part: str) -> Path:
    return hub.cache / PARTS[part].cache_folder / "snapshots" / COMMIT / PARTS[part].folder


def same_files(made: Path, tiny: Path) -> bool:
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    return files == {path.name: path.read_bytes() for path in tiny.iterdir()}


def test_complete_download(hub, tiny):
    result = hub.download(*PARTS)
    assert result.returncode == 0, result.stderr
    for part, source in PARTS.items():
        assert same_files(snapshot(hub, part), tiny / source.plain_folder), part
    assert (hub.cache / PARTS["mert"].cache_folder / "refs" / "main").read_text(encoding="utf-8") == COMMIT
    # One listing per repository, nothing that is not needed, nothing twice.
    requests = hub.requests()
    assert sorted(line for line in requests if line.endswith("listed")) == [
        f"{repo} listed" for repo in sorted({source.repo for source in PARTS.values()})
    ]
    assert len(requests) == 3 + 15
    assert "README.md -" not in requests
    # What the reader of the log sees.
    assert "Missing base weights: transformer (ACE-Step/ACE-Step-v1-3.5B/ace_step_transformer, about 6.6 GB)" in (
        result.stdout
    )
    size = format_bytes((tiny / TRANSFORMER).stat().st_size)
    assert f"download 2/15 | ACE-Step/ACE-Step-v1-3.5B/{TRANSFORMER} | {size} | done\n" in result.stdout
    assert "100%" in result.stderr
    # The second run opens no connection.
    assert hub.download(*PARTS).returncode == 0
    assert hub.requests() == []


def test_huggingface_hub_reads_the_downloaded_cache(hub):
    """ACE-Step's own scripts get their weights through huggingface_hub."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert hub.download("vocoder").returncode == 0
    folder = huggingface_hub.snapshot_download(
        PARTS["vocoder"].repo, cache_dir=hub.cache, allow_patterns="music_vocoder/*", local_files_only=True
    )
    assert Path(folder) / "music_vocoder" == snapshot(hub, "vocoder")


def test_connection_that_breaks_once_is_taken_up_again(hub, tiny):
    hub.set_faults(cut={"diffusion_pytorch_model.safetensors": 1_000_000})
    result = hub.download("transformer")
    assert result.returncode == 0, result.stderr
    assert same_files(snapshot(hub, "transformer"), tiny / "ace_step_transformer")
    assert hub.requests()[-1] == "diffusion_pytorch_model.safetensors bytes=1000000-"


def test_interrupted_download_goes_on_in_the_next_run(hub, tiny):
    """Here the program gives up; that a killed one leaves the same file is the next test."""
    hub.set_faults(status={"diffusion_pytorch_model.safetensors": 403})
    content = (tiny / TRANSFORMER).read_bytes()
    blobs = hub.cache / PARTS["transformer"].cache_folder / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(content).hexdigest()}.part").write_bytes(content[:2_000_000])
    result = hub.download("transformer")
    assert result.returncode == 1
    assert f"broke off after 2.0 MB of {format_bytes(len(content))}" in result.stderr
    assert "Run the same command again" in result.stderr
    assert "Traceback" not in result.stderr
    hub.requests()

    hub.set_faults()
    result = hub.download("transformer")
    assert result.returncode == 0, result.stderr
    assert f"going on after 2.0 MB of {format_bytes(len(content))}" in result.stdout
    assert hub.requests()[1:] == ["diffusion_pytorch_model.safetensors bytes=2000000-"]
    assert same_files(snapshot(hub, "transformer"), tiny / "ace_step_transformer")
    assert list(blobs.glob("*.part")) == []


def test_killed_download_goes_on_in_the_next_run(hub, tiny):
    # The server sends 2 MB and then nothing, so that the program is killed while it waits.
    hub.set_faults(stall={"diffusion_pytorch_model.safetensors": 2_000_000})
    blobs = hub.cache / PARTS["transformer"].cache_folder / "blobs"
    with hub.start("transformer") as running:
        deadline = time.monotonic() + 60
        while sum(path.stat().st_size for path in blobs.glob("*.part")) < 1_000_000:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.kill()
    hub.requests()

    hub.set_faults()
    result = hub.download("transformer")
    assert result.returncode == 0, result.stderr
    (_, request) = hub.requests()
    assert request.startswith("diffusion_pytorch_model.safetensors bytes=")
    assert same_files(snapshot(hub, "transformer"), tiny / "ace_step_transformer")


def test_server_without_ranges_starts_again(hub, tiny):
    hub.set_faults(cut={"diffusion_pytorch_model.safetensors": 1_000_000}, no_ranges=True)
    result = hub.download("transformer")
    assert result.returncode == 0, result.stderr
    assert same_files(snapshot(hub, "transformer"), tiny / "ace_step_transformer")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_content_is_never_accepted(hub, name):
    hub.set_faults(corrupt=[name])
    result = hub.download("mhubert")
    assert result.returncode == 1
    assert f"'{name}' of utter-project/mHuBERT-147 arrived with the wrong content: checksum " in result.stderr
    assert not (snapshot(hub, "mhubert") / name).exists()
    assert list((hub.cache / PARTS["mhubert"].cache_folder / "blobs").glob("*.part")) == []
    hub.set_faults()
    assert hub.download("mhubert").returncode == 0


def test_repository_that_is_not_there(hub):
    shutil.rmtree(hub.folder / "repos" / "m-a-p")
    result = hub.download("dcae", "mert")
    assert result.returncode == 2
    assert f"Cannot download m-a-p/MERT-v1-330M from {hub.url}: the server answered 404" in result.stderr
    assert "HF_ENDPOINT" in result.stderr
    assert not (hub.cache / PARTS["dcae"].cache_folder).exists()


def test_file_that_the_server_does_not_have(hub):
    hub.set_faults(status={"model.safetensors": 404})
    result = hub.download("mert")
    assert result.returncode == 1
    assert "the server answered 404" in result.stderr
    # A refusal is not asked for again and again.
    assert hub.requests().count("model.safetensors -") == 1


def test_folder_that_is_not_whole_on_the_server(hub):
    (hub.folder / "repos" / PARTS["mert"].repo / "model.safetensors").unlink()
    result = hub.download("mert")
    assert result.returncode == 1
    assert "The server has no whole 'MERT-v1-330M' of m-a-p/MERT-v1-330M" in result.stderr


def test_mirror_without_metadata(hub):
    hub.set_faults(bare=True)
    result = hub.download("mert")
    assert result.returncode == 1
    assert "does not say size and checksum" in result.stderr


def test_no_server(hub, tmp_path):
    result = hub.download("mert", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 2
    assert "Cannot download m-a-p/MERT-v1-330M from http://127.0.0.1:9: ConnectError" in result.stderr
    assert "error: Missing base weights: mert (m-a-p/MERT-v1-330M, about 1.3 GB). Looked in '" in result.stderr
    assert result.stdout == ""


def test_offline_opens_no_connection(hub):
    result = hub.download(*ALL_PARTS, HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert "HF_HUB_OFFLINE is set" in result.stderr
    for part, source in PARTS.items():
        assert f"error: Missing base weights: {part} ({source.repo}" in result.stderr
    assert "error: Missing base weights: lyric_vocabulary (" in result.stderr
    assert hub.requests() == []


def test_pytorch_weights_are_downloaded_where_there_are_no_others(hub):
    repo = hub.folder / "repos" / PARTS["mert"].repo
    (repo / "model.safetensors").rename(repo / "pytorch_model.bin")
    result = hub.download("mert")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in snapshot(hub, "mert").iterdir()) == ["config.json", "pytorch_model.bin"]


def test_damaged_file_in_the_cache_is_replaced(hub, tiny):
    part = as_cache(tiny, hub.cache, "vocoder")
    (part / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    result = hub.download("vocoder")
    assert result.returncode == 0, result.stderr
    assert "is empty" in result.stdout
    assert hub.requests()[1:] == ["diffusion_pytorch_model.safetensors -"]
    assert same_files(part, tiny / "music_vocoder")


def test_what_a_named_folder_lacks_is_downloaded_beside_it(hub, tiny):
    shutil.copytree(tiny / "music_vocoder", hub.cache / "music_vocoder")
    (hub.cache / "music_vocoder" / "config.json").write_bytes(b"")
    result = hub.download("vocoder")
    assert result.returncode == 0, result.stderr
    assert (hub.cache / "music_vocoder" / "config.json").read_bytes() == b""
    assert f"vocoder: '{snapshot(hub, 'vocoder')}'" in result.stdout


# --- The lyric vocabulary ---------------------------------------------------------------------------------------------


def test_lyric_vocabulary_with_another_checksum(hub):
    (hub.folder / "plain").mkdir()
    (hub.folder / "plain" / "vocab.json").write_text("{}", encoding="utf-8")
    url = f"{hub.url}/vocab.json"
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=url)
    assert result.returncode == 1
    assert (
        f"{url}: sha256 is {sha256(b'{}').hexdigest()}, expected {base_weights.LYRIC_VOCABULARY_SHA256}"
        in result.stderr
    )
    target = hub.folder / "home" / ".cache" / "ace-step" / "checkpoints" / "vocab.json"
    assert f"as '{target}', or set ACE_LYRIC_VOCAB_URL" in result.stderr
    assert not target.exists()


def test_lyric_vocabulary_that_is_not_there(hub):
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=f"{hub.url}/vocab.json")
    assert result.returncode == 1
    assert f"{hub.url}/vocab.json: the server answered 404" in result.stderr


def test_no_server_for_the_lyric_vocabulary_is_one_list_with_the_other_parts(hub):
    nowhere = "http://127.0.0.1:9"
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=f"{nowhere}/vocab.json")
    assert result.returncode == 2 and result.stdout == ""
    assert "error: Missing base weights: lyric_vocabulary (" in result.stderr
    assert f"{nowhere}/vocab.json: ConnectError" in result.stderr and "or set ACE_LYRIC_VOCAB_URL" in result.stderr

    result = hub.download("mert", "lyric_vocabulary", HF_ENDPOINT=nowhere, ACE_LYRIC_VOCAB_URL=f"{nowhere}/vocab.json")
    assert result.returncode == 2
    problems = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    beginnings = (
        "Missing base weights: mert",
        "Missing base weights: lyric_vocabulary",
        "Cannot download",
        "The lyric",
    )
    assert [problem.startswith(f"error: {start}") for problem, start in zip(problems, beginnings, strict=True)] == [
        True
    ] * 4


@pytest.mark.skipif("ACE_LYRIC_VOCAB" not in os.environ, reason="ACE_LYRIC_VOCAB does not name the real vocabulary")
def test_real_lyric_vocabulary(hub):
    (hub.folder / "plain").mkdir()
    shutil.copy(os.environ["ACE_LYRIC_VOCAB"], hub.folder / "plain" / "vocab.json")
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=f"{hub.url}/vocab.json")
    assert result.returncode == 0, result.stderr
    target = hub.folder / "home" / ".cache" / "ace-step" / "checkpoints" / "vocab.json"
    assert target.stat().st_size == base_weights.LYRIC_VOCABULARY_BYTES
    assert f"lyric_vocabulary: '{target}'" in result.stdout
