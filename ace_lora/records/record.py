"""Records read, checked and written, whichever of the formats of `records/format.py` they are in.

The module imports the standard library only; reading a whole record needs torch, an HDF5 one also h5py and hdf5plugin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.records import hdf5
from ace_lora.records.format import HDF5_SUFFIX, MOST_FRAMES, SSL_BRANCHES, Record, RecordError, metadata_problem
from ace_lora.records.tensor_file import check_checksums, read_header, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch


def read_record(path: Path, *, ssl: bool = True) -> Record:
    """Read a record of either format; `ssl=False` leaves the features unread.

    Raises RecordError for a file that is damaged, cut short or no record, and OSError when it cannot be opened.
    """
    path = Path(path)
    if path.suffix == HDF5_SUFFIX:
        return hdf5.read_record(path, ssl=ssl)
    tensors, metadata = read_tensors(
        path, skip=() if ssl else [name for b in SSL_BRANCHES for name in _branch_names(b)]
    )
    keys = metadata.pop("keys", None)
    problem = metadata_problem(metadata) or _misfit(tensors)
    if not isinstance(keys, str):
        problem = "it has no name of a song"
    if problem:
        raise RecordError(path, problem)
    return Record(keys=keys, metadata=metadata, **tensors)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a record, without reading its tensors (torch is not needed).

    For an HDF5 record, which has none, `seconds` and `ssl` are told from its tables. Checks what can be checked
    without reading everything: the file is whole by its size, and complete.

    Raises RecordError and OSError as `read_record` does.
    """
    path = Path(path)
    if path.suffix == HDF5_SUFFIX:
        return hdf5.read_metadata(path)
    names, metadata = read_header(path)
    missing = [name for name in ("target_latents", "text_token_ids", "lyric_token_ids") if name not in names]
    if missing:
        raise RecordError(path, f"it has no {missing[0]}")
    if problem := metadata_problem(metadata):
        raise RecordError(path, problem)
    metadata.pop("keys", None)
    return metadata


def needed_of_base(path: Path) -> dict[str, int]:
    """What a base model needs to have for the record: `text_tokens` and `lyric_tokens` in its vocabularies at least,
    `latent_channels`, and `mert` and `mhubert` as widths of features where they are stored, exactly. Only token ids are
    read.

    Raises RecordError and OSError as `read_record` does.
    """
    path = Path(path)
    if path.suffix == HDF5_SUFFIX:
        return hdf5.needed_of_base(path)
    shapes, _ = read_header(path)
    tensors, _ = read_tensors(path, skip=[name for name in shapes if not name.endswith("_token_ids")])
    ids = {"latent_channels": shapes["target_latents"][0]}
    ids |= {f"{kind}_tokens": int(tensors[f"{kind}_token_ids"].max()) + 1 for kind in ("text", "lyric")}
    return ids | {branch: shapes[branch][1] for branch in SSL_BRANCHES if branch in shapes}


def check_record(path: Path) -> dict[str, Any]:
    """The metadata of a record after every byte of it has been compared with the checksums; torch is not needed.

    Of an HDF5 record, which has no checksums, only what `read_metadata` checks is checked.
    Raises RecordError and OSError as `read_record` does.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if path.suffix != HDF5_SUFFIX:
        check_checksums(path)
    return metadata


def write_record(path: Path, record: Record) -> None:
    """Write `record` to `path` (`<keys>.safetensors`), whole or not at all; float32 features are rounded to int8 rows.

    Raises ValueError for shapes that do not fit together and for values that are not finite.
    """
    tensors = {
        "target_latents": record.target_latents,
        "text_token_ids": record.text_token_ids,
        "lyric_token_ids": record.lyric_token_ids,
    }
    for branch in SSL_BRANCHES:
        features, scale = getattr(record, branch), getattr(record, f"{branch}_scale")
        if features is None:
            continue
        if scale is None:
            features, scale = quantise_rows(features)
        tensors[branch], tensors[f"{branch}_scale"] = features, scale
    problem = _misfit(tensors)
    if problem:
        raise ValueError(f"The record of '{record.keys}' cannot be written: {problem}.")
    write_tensors(path, tensors, {"keys": record.keys, **record.metadata})


def quantise_rows(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round float features [n, width] to int8 [n, width] and the scale of each row, float32 [n].

    A row of zeros stays one. Raises ValueError for values that are not finite.
    """
    import torch

    features = features.detach().to(torch.float32)
    scale = features.abs().amax(dim=1) / 127  # [n]
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("The features hold values that are not finite.")
    divisor = scale.clamp_min(torch.finfo(torch.float32).tiny)
    return (features / divisor[:, None]).round_().to(torch.int8), scale


def restore_rows(features: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Features as float32 [n, width], from int8 rows and their scales [n] or from rows that hold the values (None)."""
    import torch

    values = features.to(torch.float32)
    return values if scale is None else values * scale[:, None]


def _branch_names(branch: str) -> tuple[str, str]:
    return branch, f"{branch}_scale"


def _misfit(tensors: dict[str, torch.Tensor]) -> str | None:
    """Why tensors are not those of a record, or None."""
    import torch

    expected = {"target_latents": (torch.float32, 3), "text_token_ids": (torch.int64, 1)}
    expected["lyric_token_ids"] = (torch.int64, 1)
    for branch in SSL_BRANCHES:
        present = [name in tensors for name in _branch_names(branch)]
        if any(present) and not all(present):
            return f"{branch} lacks its values or its scales"
        if all(present):
            expected |= {branch: (torch.int8, 2), f"{branch}_scale": (torch.float32, 1)}
            if len(tensors[branch]) != len(tensors[f"{branch}_scale"]):
                return f"{branch} has {len(tensors[branch])} rows but {len(tensors[f'{branch}_scale'])} scales"
    for name, (dtype, dimensions) in expected.items():
        if name not in tensors:
            return f"it has no {name}"
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != dimensions or tensor.numel() == 0:
            return f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} in {dimensions} dimensions"
        if not tensor.is_floating_point() and dimensions == 1 and int(tensor.min()) < 0:
            return f"{name} holds {int(tensor.min())}, which is no token"
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} holds values that are not finite"
    frames = tensors["target_latents"].shape[2]
    if frames > MOST_FRAMES:
        return f"target_latents has {frames} frames, at most {MOST_FRAMES} are possible"
    unknown = sorted(set(tensors) - set(expected))
    return f"it holds {unknown[0]}, which no record has" if unknown else None
