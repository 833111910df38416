"""Downloads run for real, in processes of their own, against `tests/hub_server.py` on 127.0.0.1."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from ace_lora.base_weights.download import check_base_weights, ensure_base_weights
from ace_lora.base_weights.parts import (
    ALL_PARTS,
    LYRIC_VOCABULARY_BYTES,
    LYRIC_VOCABULARY_SHA256,
    PARTS,
    format_bytes,
)
from ace_lora.commands import WrongInput
from tests.tiny_cache import COMMIT, as_cache

ROOT = Path(__file__).parents[2]
TRANSFORMER = "ace_step_transformer/diffusion_pytorch_model.safetensors"

# --- Checks before anything is done -----------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_whole_folder(folder):
    assert check_base_weights(folder, ALL_PARTS) == []


def test_folder_that_is_not_there(tmp_path):
    (problem,) = check_base_weights(tmp_path / "typo", ["transformer"])
    assert f"--checkpoint_dir '{tmp_path / 'typo'}' is not there." in problem
    with pytest.raises(WrongInput):
        ensure_base_weights(tmp_path / "typo", ["transformer"])
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
        ensure_base_weights(tmp_path, ["decoder"])


# --- Downloading ------------------------------------------------------------------------------------------------------


NOWHERE = "http://127.0.0.1:9"
# `python -m ace_lora.base_weights` with another address for the official hub, and less patience.
PROGRAM = """
import sys
from ace_lora.base_weights import __main__ as program, download, hub
hub.OFFICIAL_HUB = download.OFFICIAL_HUB = sys.argv.pop(1)
download.STEADY_SECONDS = hub.LISTING_SECONDS = hub.OFFICIAL_SECONDS = float(sys.argv.pop(1))
download.RETRY_WAITS_SECONDS = (0.1, 0.1, 0.1)
raise SystemExit(program.run_script(program.main, program.parse_args()))
"""


class Hub:
    """A mirror with the tiny base in it, and the program that downloads from it.

    The mirror is taken for the official hub itself, unless `official` names another one.
    """

    def __init__(self, folder: Path, port: int):
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.cache = folder / "我的 cache"
        self.official = self.url
        self.patience = 20.0

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
            "HF_TOKEN": "",
            "PYTHONIOENCODING": "utf-8",
        }
        return subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, self.official, str(self.patience)),
                *("--checkpoint_dir", str(self.cache), "--parts", *parts),
            ],
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


@contextlib.contextmanager
def running_hub(folder: Path, tiny: Path) -> Iterator[Hub]:
    for source in PARTS.values():
        shutil.copytree(tiny / source.plain_folder, folder / "repos" / source.repo / source.folder)
    (folder / "repos" / PARTS["mert"].repo / "README.md").write_text("not needed", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tests" / "hub_server.py"), str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert server.stdout is not None
        yield Hub(folder, int(server.stdout.readline()))
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def hub(tiny, tmp_path):
    with running_hub(tmp_path / "hub", tiny) as made:
        yield made


@pytest.fixture
def mirror(hub, tiny, tmp_path):
    """A mirror beside the hub, which is now the official one."""
    with running_hub(tmp_path / "mirror", tiny) as made:
        made.official = hub.url
        yield made


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
    assert "Cannot download m-a-p/MERT-v1-330M from http://127.0.0.1:9: ConnectionRefusedError" in result.stderr
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


# --- Mirrors ----------------------------------------------------------------------------------------------------------


def test_checksums_of_the_official_hub_are_preferred_to_those_of_a_mirror(mirror, hub, tiny):
    assert mirror.download("vocoder").returncode == 0
    assert same_files(snapshot(mirror, "vocoder"), tiny / "music_vocoder")
    assert hub.requests() == [f"ACE-Step/ACE-Step-v1-3.5B/revision/{COMMIT} listed"]
    # A mirror that states the right checksum of a wrong file.
    mirror.set_faults(forge=["model.safetensors"])
    result = mirror.download("mert")
    assert result.returncode == 1
    assert "'model.safetensors' of m-a-p/MERT-v1-330M arrived with the wrong content" in result.stderr
    assert "vouches" not in result.stdout
    assert not (snapshot(mirror, "mert") / "model.safetensors").exists()


def test_a_file_for_which_only_the_mirror_vouches_is_named(mirror):
    mirror.official = NOWHERE
    result = mirror.download("vocoder")
    assert result.returncode == 0, result.stderr
    assert (
        f"Only {mirror.url} vouches for ACE-Step/ACE-Step-v1-3.5B: {NOWHERE} could not be asked (Connec"
        in result.stdout
    )


def test_a_commit_that_was_never_published_is_refused(mirror):
    mirror.set_faults(commit="f" * 40)
    result = mirror.download("vocoder")
    assert result.returncode == 1
    assert (
        f"offers ACE-Step/ACE-Step-v1-3.5B at the commit {'f' * 40}, which {mirror.official} does not" in result.stderr
    )
    assert not (mirror.cache / PARTS["vocoder"].cache_folder).exists()


def test_the_token_never_goes_over_an_unencrypted_connection(hub):
    result = hub.download("vocoder", HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert f"HF_TOKEN is not sent to {hub.url}: it would be readable on its way." in result.stdout
    assert not (hub.folder / "tokens.txt").exists()


# --- Hostile servers --------------------------------------------------------------------------------------------------


def largest_file(folder: Path) -> int:
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)


def test_more_than_the_stated_size_is_never_written(hub, tiny):
    hub.set_faults(more={"model.safetensors": 50_000_000})
    result = hub.download("mert")
    assert result.returncode == 1
    size = (tiny / "MERT-v1-330M" / "model.safetensors").stat().st_size
    assert "the reply is longer than " in result.stderr and "Traceback" not in result.stderr
    assert largest_file(hub.cache) <= size


@pytest.mark.parametrize(("claim", "sentence"), [(10**13, "The server states 10000.0 GB"), (-1, "size and checksum")])
def test_a_size_that_cannot_be_is_refused(hub, claim, sentence):
    hub.set_faults(claim={"model.safetensors": claim})
    result = hub.download("mert")
    assert result.returncode == 1 and sentence in result.stderr
    assert not (hub.cache / PARTS["mert"].cache_folder).exists()


@pytest.mark.parametrize(
    ("faults", "status", "sentence"),
    [
        ({"drip": ["m-a-p/MERT-v1-330M"]}, 2, "the reply did not end in time"),
        ({"endless": ["m-a-p/MERT-v1-330M"]}, 2, "the reply is longer than 4,000,000 bytes"),
        ({"drip": ["model.safetensors"]}, 1, "the reply did not end in time"),
        ({"stall": {"model.safetensors": 1000}}, 1, "after 4.0 kB of"),
        ({"redirect": {"model.safetensors": "model.safetensors"}}, 1, "more than 5 redirects"),
        ({"redirect": {"model.safetensors": "file:///etc/hostname"}}, 1, "is no http or https address"),
    ],
)
def test_a_server_that_never_comes_to_an_end(hub, faults, status, sentence):
    hub.set_faults(**faults)
    hub.patience = 2.0
    started = time.monotonic()
    result = hub.download("mert")
    assert result.returncode == status and sentence in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and time.monotonic() - started < 60
    assert largest_file(hub.cache) < 100_000


# --- The lyric vocabulary ---------------------------------------------------------------------------------------------


def test_lyric_vocabulary_with_another_checksum(hub):
    (hub.folder / "plain").mkdir()
    (hub.folder / "plain" / "vocab.json").write_text("{}", encoding="utf-8")
    url = f"{hub.url}/vocab.json"
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=url)
    assert result.returncode == 1
    assert f"{url}: sha256 is {sha256(b'{}').hexdigest()}, expected {LYRIC_VOCABULARY_SHA256}" in result.stderr
    target = hub.folder / "home" / ".cache" / "ace-step" / "checkpoints" / "vocab.json"
    assert f"as '{target}', or set ACE_LYRIC_VOCAB_URL" in result.stderr
    assert not target.exists()


def test_lyric_vocabulary_that_is_too_long_is_not_read_to_its_end(hub):
    (hub.folder / "plain").mkdir()
    (hub.folder / "plain" / "vocab.json").write_bytes(bytes(LYRIC_VOCABULARY_BYTES + 1))
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=f"{hub.url}/vocab.json")
    assert result.returncode == 1
    assert f"{hub.url}/vocab.json: HTTPException: the reply is longer than 364,005 bytes" in result.stderr


def test_lyric_vocabulary_that_is_not_there(hub):
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=f"{hub.url}/vocab.json")
    assert result.returncode == 1
    assert f"{hub.url}/vocab.json: the server answered 404" in result.stderr


def test_no_server_for_the_lyric_vocabulary_is_one_list_with_the_other_parts(hub):
    nowhere = "http://127.0.0.1:9"
    result = hub.download("lyric_vocabulary", ACE_LYRIC_VOCAB_URL=f"{nowhere}/vocab.json")
    assert result.returncode == 2 and result.stdout == ""
    assert "error: Missing base weights: lyric_vocabulary (" in result.stderr
    assert (
        f"{nowhere}/vocab.json: ConnectionRefusedError" in result.stderr
        and "or set ACE_LYRIC_VOCAB_URL" in result.stderr
    )

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
    assert target.stat().st_size == LYRIC_VOCABULARY_BYTES
    assert f"lyric_vocabulary: '{target}'" in result.stdout
