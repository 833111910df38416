"""Where the published weights lie on this computer, and whether they are whole. Standard library only.

`--checkpoint_dir DIR` may be
- a folder laid out like the published one, `DIR/ace_step_transformer`, `DIR/music_dcae_f8c8`, …, `DIR/vocab.json`,
- or a download cache, `DIR/models--ACE-Step--ACE-Step-v1-3.5B/snapshots/<commit>/ace_step_transformer`, ….
Without it, the cache that ACE-Step itself uses. MERT and mHuBERT are also looked for in the cache of huggingface_hub.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ace_lora.base_weights.parts import (
    ACE_STEP,
    LYRIC_VOCABULARY,
    LYRIC_VOCABULARY_BYTES,
    PARTS,
    TOKENIZERS,
    PartSource,
    check_names,
    format_bytes,
)
from ace_lora.files import UnusableFile, parse_json, read_json, read_text

DEFAULT_CHECKPOINT_DIR = Path("~/.cache/ace-step/checkpoints").expanduser()
# Copied into an ACE-Step folder, the scripts find that folder's own file.
LYRIC_VOCABULARY_IN_FORK = Path(__file__).parents[2] / "acestep" / "models" / "lyrics_utils" / LYRIC_VOCABULARY


@dataclass(frozen=True)
class MissingPart:
    """A part that cannot be used from the disk."""

    part: str
    size: int  # bytes, approximate unless it is the lyric vocabulary
    looked_in: tuple[Path, ...]
    found_instead: tuple[str, ...]  # why each candidate that is there cannot be used

    def __str__(self) -> str:
        source = PARTS.get(self.part)
        where = "/".join(filter(None, (source.repo, source.folder))) if source else "ACE-Step's vocab.json"
        damaged = f"; {'; '.join(self.found_instead)}" if self.found_instead else ""
        return f"{self.part} ({where}, about {format_bytes(self.size)}{damaged})"


class BaseWeights:
    """Looks up the parts below one `--checkpoint_dir` (None is the default cache)."""

    def __init__(self, checkpoint_dir: Path | None):
        self.named = checkpoint_dir is not None
        self.folder = Path(checkpoint_dir).expanduser() if checkpoint_dir is not None else DEFAULT_CHECKPOINT_DIR

    def find(self, part: str) -> Path | MissingPart:
        """The part's folder (the file, for the lyric vocabulary), or what is wrong with what was found."""
        check_names([part])
        if part == "lyric_vocabulary":
            return self._find_lyric_vocabulary()
        source = PARTS[part]
        roots = self._roots(source)
        faults: list[str] = []
        for root in roots:
            for candidate in folders_of_part(root, source):
                wrong = faults_of_folder(candidate, source)
                if not wrong:
                    return candidate
                faults += wrong
            faults += _unfinished_downloads(root / source.cache_folder)
        return MissingPart(part, source.approximate_bytes, tuple(roots), tuple(faults))

    def _roots(self, source: PartSource) -> list[Path]:
        roots = [self.folder]
        if source.repo != ACE_STEP:
            # The published folder has no room for these two: they come from repositories of their own.
            roots.append(DEFAULT_CHECKPOINT_DIR)
        if source.repo != ACE_STEP or not self.named:
            # A named folder is not completed from elsewhere: parts of two different base models would be mixed.
            roots.append(hub_cache())
        return list(dict.fromkeys(roots))

    def _find_lyric_vocabulary(self) -> Path | MissingPart:
        ace_step = PARTS["transformer"]
        looked = [
            self.folder / LYRIC_VOCABULARY,
            self.folder / ace_step.folder / LYRIC_VOCABULARY,
            *(snapshot / LYRIC_VOCABULARY for snapshot in _snapshots(self.folder / ace_step.cache_folder)),
            LYRIC_VOCABULARY_IN_FORK,
            DEFAULT_CHECKPOINT_DIR / LYRIC_VOCABULARY,
        ]
        for path in looked:
            if path.is_file() and path.stat().st_size > 0:
                return path
        empty = tuple(f"'{path}' is empty" for path in dict.fromkeys(looked) if path.is_file())
        return MissingPart("lyric_vocabulary", LYRIC_VOCABULARY_BYTES, tuple(dict.fromkeys(looked)), empty)


def find_base_weights(checkpoint_dir: Path | None, parts: Iterable[str]) -> dict[str, Path]:
    """Those of `parts` that are on the disk and whole, by name."""
    weights = BaseWeights(checkpoint_dir)
    found = {part: weights.find(part) for part in parts}
    return {part: path for part, path in found.items() if isinstance(path, Path)}


def missing(checkpoint_dir: Path | None, parts: Iterable[str]) -> list[MissingPart]:
    """Those of `parts` that are not on the disk, or not whole."""
    weights = BaseWeights(checkpoint_dir)
    found = [weights.find(part) for part in parts]
    return [part for part in found if isinstance(part, MissingPart)]


def hub_cache() -> Path:
    """The cache of huggingface_hub: HF_HUB_CACHE, else HF_HOME, else ~/.cache/huggingface/hub."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def folders_of_part(root: Path, source: PartSource) -> list[Path]:
    """Folders that exist below `root` and should be the part, the likeliest first."""
    repo_name = source.repo.rsplit("/", 1)[-1]
    caches = [root / source.cache_folder, *([root] if root.name == source.cache_folder else [])]
    folders = [
        root / source.plain_folder,
        # `DIR` holds one folder per repository, as `huggingface-cli download --local-dir` is often used.
        root / repo_name / source.folder,
        root / source.repo / source.folder,
        *(snapshot / source.folder for cache in caches for snapshot in _snapshots(cache)),
    ]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _snapshots(cache_folder: Path) -> list[Path]:
    """Snapshots of one repository in a cache: the one that `main` points to first, then the newest."""
    snapshots = cache_folder / "snapshots"
    if not snapshots.is_dir():
        return []
    main = cache_folder / "refs" / "main"
    try:
        commit = read_text(main, 100)
    except (OSError, ValueError):
        commit = ""
    found = [path for path in snapshots.iterdir() if path.is_dir()]
    return sorted(found, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)


def faults_of_folder(folder: Path, source: PartSource) -> list[str]:
    """Why `folder` is not the whole part: files that are missing, empty or cut short. Empty when it is whole.

    Reads headers only; a damaged byte inside a tensor is not noticed.
    """
    faults = faults_of_file(folder / "config.json")
    weights = next((folder / name for name in source.weights if _exists(folder / name)), None)
    faults += faults_of_file(weights) if weights else [f"'{folder}' has no {' or '.join(source.weights)}"]
    if source.needs_tokenizer:
        tokenizer = next((folder / name for name in TOKENIZERS if _exists(folder / name)), None)
        faults += faults_of_file(tokenizer) if tokenizer else [f"'{folder}' has no {' or '.join(TOKENIZERS)}"]
    return faults


def faults_of_file(path: Path) -> list[str]:
    """Why `path` is not a whole file of its kind; reads headers only. Empty when it is whole."""
    if not path.is_file():
        # A cache on a moved or cleaned disk has links that lead nowhere.
        return [f"'{path}' links to a file that is gone" if path.is_symlink() else f"'{path}' is not there"]
    size = path.stat().st_size
    if size == 0:
        return [f"'{path}' is empty"]
    if path.suffix == ".safetensors":
        expected = _safetensors_size(path)
        if expected is None:
            return [f"'{path}' is no safetensors file"]
        if size != expected:
            return [f"'{path}' is cut short: {size} of {expected} bytes"]
    if path.suffix == ".bin" and _is_cut_short_zip(path):
        return [f"'{path}' is cut short"]
    if path.suffix == ".json" and not _is_json_object(path):
        return [f"'{path}' is no JSON file"]
    return []


def _exists(path: Path) -> bool:
    return path.is_file() or path.is_symlink()


def _safetensors_size(path: Path) -> int | None:
    """Bytes that the file must have by its own header."""
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        # safetensors itself refuses headers above 100 MB.
        if len(start) < 8 or header_bytes > 100_000_000:
            return None
        try:
            header = parse_json(file.read(header_bytes), f"the header of '{path}'")
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return None
    return 8 + header_bytes + max(ends, default=0)


def _is_cut_short_zip(path: Path) -> bool:
    """PyTorch's files are zip archives, whose directory is at the end; its oldest format is none and passes."""
    with path.open("rb") as file:
        return file.read(2) == b"PK" and not zipfile.is_zipfile(file)


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(read_json(path), dict)
    except UnusableFile:
        return False


def _unfinished_downloads(cache_folder: Path) -> list[str]:
    blobs = cache_folder / "blobs"
    unfinished = [*blobs.glob("*.part"), *blobs.glob("*.incomplete")] if blobs.is_dir() else []
    return [f"'{path}' is an unfinished download of {format_bytes(path.stat().st_size)}" for path in unfinished]


def missing_sentences(absent: list[MissingPart]) -> list[str]:
    """What is missing and where it was looked for, for people."""
    return [f"Missing base weights: {part}. Looked in {_listed(part.looked_in)}." for part in absent]


def holds_any_part(folder: Path) -> bool:
    """Whether `folder` has anything of the base weights in it, whole or not."""
    if (folder / LYRIC_VOCABULARY).is_file():
        return True
    caches = {source.cache_folder for source in PARTS.values()}
    return (
        folder.name in caches
        or any((folder / cache).is_dir() for cache in caches)
        or any(folders_of_part(folder, source) for source in PARTS.values())
    )


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)
