"""The parts of the base weights: where they are published, how large they are, which files they consist of.

Standard library only; nothing here looks at a disk or a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ACE_STEP = "ACE-Step/ACE-Step-v1-3.5B"
# ACE-Step publishes the lyric vocabulary with its code, not with its weights. The second address serves the same commit
# where the first one is blocked; the checksum makes any address trustworthy. ACE_LYRIC_VOCAB_URL replaces both.
LYRIC_VOCABULARY = "vocab.json"
LYRIC_VOCABULARY_BYTES = 364_005
LYRIC_VOCABULARY_SHA256 = "c2a66ea48c478c0bb9acb5497144b926acdeaa37128faa799508d40f2b9cc558"
_VOCABULARY_COMMIT = "d612523f50e252c0e138e68ae75b06223f96e934"
LYRIC_VOCABULARY_URLS = (
    f"https://raw.githubusercontent.com/ace-step/ACE-Step/{_VOCABULARY_COMMIT}/acestep/models/lyrics_utils/vocab.json",
    f"https://cdn.jsdelivr.net/gh/ace-step/ACE-Step@{_VOCABULARY_COMMIT}/acestep/models/lyrics_utils/vocab.json",
)
LYRIC_VOCABULARY_URL_VARIABLE = "ACE_LYRIC_VOCAB_URL"

# The names that the loaders read, the preferred first.
DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors",)
TRANSFORMERS_WEIGHTS = ("model.safetensors",)
SSL_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True)
class PartSource:
    """One part of the base weights: `folder` inside the repository `repo` ("" is its top)."""

    repo: str
    folder: str
    approximate_bytes: int
    weights: tuple[str, ...]
    needs_tokenizer: bool = False

    @property
    def plain_folder(self) -> str:
        """Name of the part's folder in a folder laid out like the published one."""
        return self.folder or self.repo.rsplit("/", 1)[-1]

    @property
    def cache_folder(self) -> str:
        return "models--" + self.repo.replace("/", "--")


# Sizes from the parameter counts: the first three in bf16, the others in float32.
PARTS = {
    "transformer": PartSource(ACE_STEP, "ace_step_transformer", 6_611_000_000, DIFFUSERS_WEIGHTS),
    "dcae": PartSource(ACE_STEP, "music_dcae_f8c8", 312_000_000, DIFFUSERS_WEIGHTS),
    "vocoder": PartSource(ACE_STEP, "music_vocoder", 206_000_000, DIFFUSERS_WEIGHTS),
    "text_encoder": PartSource(ACE_STEP, "umt5-base", 1_145_000_000, TRANSFORMERS_WEIGHTS, needs_tokenizer=True),
    "mert": PartSource("m-a-p/MERT-v1-330M", "", 1_262_000_000, SSL_WEIGHTS),
    "mhubert": PartSource("utter-project/mHuBERT-147", "", 378_000_000, SSL_WEIGHTS),
}
ALL_PARTS = (*PARTS, "lyric_vocabulary")


def check_names(parts: Iterable[str]) -> None:
    for part in parts:
        if part not in ALL_PARTS:
            raise ValueError(f"no part of the base weights is called {part!r}; they are {', '.join(ALL_PARTS)}")


def format_bytes(count: float) -> str:
    """`6_611_000_000` gives `6.6 GB`, in the units in which disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
