"""Checkpoints of a training: the LoRA as people use it, and beside it all that going on from there takes.

    <output_dir>/epoch=E-step=S_lora/
        pytorch_lora_weights.safetensors    the LoRA, bfloat16
        pytorch_lora_weights_comfyui.safetensors    the same with alpha, where asked for
        lora_config.json                    the LoRA configuration of the training
        training_state.safetensors          adapter in float32, moments of the optimizer, averages
        training_state.json                 everything else, and a CRC-32 of each file

Of older checkpoints only the LoRA stays (`remove_old`). E is the epoch, from 0; S the number of optimizer steps done.
The folder is written under a temporary name and renamed, so it is complete or absent.
State files hold tensors and JSON only: reading one never runs code that it brought along.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.files import TEMPORARY, remove_own, replace_atomically, set_aside, write_json
from ace_lora.lora.config import CONFIG_NAME, TRAINING_CONFIG_NAME
from ace_lora.lora.file import COMFYUI_NAME, STATE_TENSORS, WEIGHTS_NAME, save_lora, save_lora_config

if TYPE_CHECKING:
    import torch

STATE_JSON = "training_state.json"
STATE_VERSION = 1
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)_lora")
# Name patterns of all that a checkpoint folder holds; one that holds anything else is not removed.
# CONFIG_NAME: in checkpoints of earlier versions.
OWN_FILES = (WEIGHTS_NAME, COMFYUI_NAME, TRAINING_CONFIG_NAME, CONFIG_NAME, STATE_TENSORS, STATE_JSON)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder by its name."""

    folder: Path
    epoch: int
    step: int


@dataclass
class SavedState:
    """The content of the two state files."""

    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def checkpoint_name(epoch: int, step: int) -> str:
    return f"epoch={epoch}-step={step}_lora"


def find_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Checkpoint folders of `output_dir` by their names, fewest steps first."""
    if not Path(output_dir).is_dir():
        return []
    found = []
    for folder in Path(output_dir).iterdir():
        match = _NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            found.append(Checkpoint(folder, int(match[1]), int(match[2])))
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.epoch))


def find_loras(output_dir: Path) -> list[Path]:
    """What a new training must not mix with: `*_lora` folders and safetensors files in `output_dir`."""
    if not Path(output_dir).is_dir():
        return []
    return sorted(
        path
        for path in Path(output_dir).iterdir()
        if not path.name.startswith(TEMPORARY)
        and ((path.is_dir() and path.name.endswith("_lora")) or path.suffix == ".safetensors")
    )


# --- Writing ---


def write_checkpoint(
    output_dir: Path,
    *,
    epoch: int,
    step: int,
    lora: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    state: SavedState,
    comfyui: bool = False,
) -> Path:
    """Write one checkpoint folder and return its path.

    A folder of the same run and step (a run that was resumed before it) is replaced; another one raises StepFailed.
    """
    from safetensors.torch import save_file

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / checkpoint_name(epoch, step)
    if target.exists() and run_id_of(target) != state.values["run_id"]:
        raise StepFailed(
            f"'{target}' appeared while this training ran and belongs to another one. Nothing was overwritten. "
            "Train into a folder of its own with --output_dir."
        )
    with replace_atomically(target, OWN_FILES) as temporary:
        save_lora(temporary / WEIGHTS_NAME, lora, config, metadata)
        if comfyui:
            save_lora(temporary / COMFYUI_NAME, lora, config, metadata, with_alpha=True)
        save_lora_config(temporary, config)
        # Copies, because optimizers share tables between tensors, which safetensors refuses.
        tensors = {key: tensor.detach().cpu().clone() for key, tensor in state.tensors.items()}
        with replace_atomically(temporary / STATE_TENSORS) as state_file:
            save_file(tensors, state_file)
        files = sorted(path.name for path in temporary.iterdir())
        checksums = {name: _crc32(temporary / name) for name in files}
        write_json(
            temporary / STATE_JSON,
            {"version": STATE_VERSION, "saved_at": time.time_ns(), "crc32": checksums, **state.values},
        )
    return target


def set_damaged_aside(output_dir: Path, epoch: int, step: int) -> Path | None:
    """Move what has the name of a checkpoint but no training state that can be read; where to, if there was any.

    A run that goes on from an earlier checkpoint, because that one is damaged, comes to its step again.
    """
    folder = Path(output_dir) / checkpoint_name(epoch, step)
    if not folder.exists() or run_id_of(folder) is not None:
        return None
    return set_aside([folder], "a checkpoint whose training state is damaged")


@dataclass(frozen=True)
class Removed:
    """An older checkpoint of which something was removed."""

    folder: Path
    what: str  # "state": the LoRA stays; "all"; "aside": all, but kept in `kept`, because it holds files of the user's
    kept: Path | None = None


def remove_old(output_dir: Path, run_id: str, newest: Path, *, states: int, loras: int) -> list[Removed]:
    """Of this run's checkpoints keep the `states` last written ones whole and of the `loras` last the LoRA.

    0 or less: all. The one just written, `newest`, always stays.
    """
    mine = [checkpoint.folder for checkpoint in find_checkpoints(output_dir) if run_id_of(checkpoint.folder) == run_id]
    newest_first = [newest, *sorted((folder for folder in mine if folder != newest), key=_saved_at, reverse=True)]
    gone = newest_first[loras:] if loras > 0 else []
    only_loras = [folder for folder in newest_first[states:] if folder not in gone] if states > 0 else []
    removed = [Removed(folder, "state") for folder in reversed(only_loras) if remove_state(folder)]
    for folder in reversed(gone):
        kept = remove_own(folder, OWN_FILES, "an old checkpoint that holds other files")
        removed.append(Removed(folder, "aside" if kept else "all", kept))
    return removed


def remove_state(folder: Path) -> bool:
    """Leave only the LoRA in a checkpoint folder, and what tells whose it is; whether there was more."""
    values = _read_values(folder)
    if not values.get("state_removed"):
        kept = {name: values[name] for name in ("version", "saved_at", "run_id", "step", "epoch")}
        # First, so that nothing goes on from a folder that has lost its tensors.
        write_json(folder / STATE_JSON, {**kept, "state_removed": True})
    there = (folder / STATE_TENSORS).exists()
    (folder / STATE_TENSORS).unlink(missing_ok=True)
    return there


def remove_leftovers(output_dir: Path) -> None:
    """Remove temporary folders that a killed training left in `output_dir`."""
    for folder in Path(output_dir).glob(f"{TEMPORARY}epoch=*_lora-*"):
        with contextlib.suppress(OSError):
            remove_own(folder, (*OWN_FILES, "epoch=*_lora"), "left by a training that was killed")


def lora_bytes(parameters: int, *, comfyui: bool) -> int:
    """How much disk the LoRA files of one checkpoint take, for an adapter of so many parameters."""
    return int(2 * parameters * (2 if comfyui else 1) * 1.01) + 500_000


def checkpoint_bytes(parameters: int, optimizer: str, *, ema: bool, comfyui: bool) -> int:
    """How much disk one whole checkpoint takes, for an adapter of so many parameters."""
    moments = {"adamw": 8.0, "adamw8bit": 2.1, "prodigy": 8 + 8 / 11, "prodigy_schedule_free": 8 + 8 / 11}[optimizer]
    lora_files = 2 * (2 if comfyui else 1)
    return int(parameters * (lora_files + 4 + moments + (4 if ema else 0)) * 1.01) + 1_000_000


def run_bytes(saves: int, each: int, lora: int, *, states: int, loras: int) -> int:
    """How much disk `saves` checkpoints of a run take in the end: `each` whole one, `lora` one that was reduced to it.

    `states` and `loras` as in `remove_old`.
    """
    kept = min(saves, loras) if loras > 0 else saves
    whole = min(kept, states) if states > 0 else kept
    return whole * each + (kept - whole) * lora


def checkpoints_size(output_dir: Path) -> int:
    """Bytes that the checkpoints in `output_dir` take now."""
    folders = (checkpoint.folder for checkpoint in find_checkpoints(output_dir))
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file())


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            value = zlib.crc32(block, value)
    return value


# --- Reading ---


def _read_values(folder: Path) -> dict[str, Any]:
    """The content of `training_state.json`, also of a checkpoint of which only the LoRA is left."""
    path = Path(folder) / STATE_JSON
    if not path.is_file():
        raise WrongInput(
            f"'{folder}' holds no training state ({STATE_JSON}), so a training cannot go on from it. "
            f"Expected a checkpoint of this trainer. To start from its weights alone, use --last_lora_path "
            f"'{Path(folder) / WEIGHTS_NAME}'."
        )
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it is no training state")
        if not values.get("state_removed") and not (values["crc32"] and isinstance(values["crc32"], dict)):
            raise ValueError("its table of checksums is empty")
        if not isinstance(values.get("fit", {}), dict) or not isinstance(values.get("settings", {}), dict):
            raise ValueError("its settings are no table")
        if isinstance(values["step"], bool) or not isinstance(values["step"], int) or values["step"] < 0:
            raise ValueError(f"its step is {str(values['step'])[:50]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WrongInput(
            f"'{path}' is damaged: {error}. Resume from an earlier checkpoint with --resume PATH."
        ) from error
    if values.get("version") != STATE_VERSION:
        raise WrongInput(
            f"'{path}' has version {values.get('version')}, this program writes {STATE_VERSION}. "
            "Resume with the version of the program that wrote it."
        )
    return values


def read_state_values(folder: Path) -> dict[str, Any]:
    """The content of `training_state.json`. Raises WrongInput when the folder has none that can be used."""
    values = _read_values(folder)
    if values.get("state_removed"):
        raise WrongInput(
            f"Of '{folder}' only the LoRA is left (--save_last), so a training cannot go on from it. Expected a newer "
            f"checkpoint. To start from its weights alone, use --last_lora_path '{Path(folder) / WEIGHTS_NAME}'."
        )
    return values


def read_state(folder: Path) -> SavedState:
    """Both state files, checked against their checksums. Raises WrongInput naming the file that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    values = read_state_values(folder)
    for name, expected in values["crc32"].items():
        if not (folder / name).is_file() or _crc32(folder / name) != expected:
            raise WrongInput(
                f"'{folder / name}' is damaged or missing. Resume from an earlier checkpoint with --resume PATH."
            )
    try:
        # Copies: Windows removes no file that is mapped into memory, and this one is removed in time.
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / STATE_TENSORS).items()}
    except (SafetensorError, OSError) as error:
        raise WrongInput(
            f"'{folder / STATE_TENSORS}' is damaged: {error}. Resume from an earlier checkpoint with --resume PATH."
        ) from error
    return SavedState(values, tensors)


def newest_state(output_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint with most steps in `output_dir` that is whole, and notes on those that are not."""
    notes = []
    for checkpoint in reversed(find_checkpoints(output_dir)):
        try:
            read_state(checkpoint.folder)
        except WrongInput as error:
            notes += error.problems
            continue
        return checkpoint, notes
    return None, notes


def run_id_of(folder: Path) -> str | None:
    """Which run wrote the folder, None where that cannot be told."""
    with contextlib.suppress(WrongInput, OSError):
        return _read_values(folder).get("run_id")
    return None


def _saved_at(folder: Path) -> int:
    return int(_read_values(folder)["saved_at"])


# --- Nested values with tensors in them, such as an optimizer's state ---


def pack(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """`value` in JSON types; its tensors go to `tensors` under names that begin with `name`."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        # Keys may be numbers, which JSON would turn into texts: a list of pairs keeps them.
        return {"dict": [[key, pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(item, tensors, f"{name}/{index}") for index, item in enumerate(value)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{name} is a {type(value).__name__}, which a training state cannot hold")


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The value that `pack` was given."""
    import torch

    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    if kind == "list":
        return [unpack(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    if kind == "dtype":
        return getattr(torch, content)
    return content
