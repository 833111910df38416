"""LoRA files: one reader and one writer for every tool.

Whatever a file spells (see `keys`), its tensors are known inside as `<module path>.lora_A.weight` and `.lora_B.weight`.
Files that are written have these keys too and, for ComfyUI, `<module path>.alpha`; the trainer's hold bfloat16. The
header holds the configuration for diffusers.

This module imports torch only inside functions, so that `--help` of the scripts answers at once.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.files import UnusableFile, parse_json, replace_atomically, write_json
from ace_lora.lora.config import (
    CONFIG_NAME,
    MAX_RANK,
    TRAINING_CONFIG_NAME,
    lora_scale,
    needed_keys,
    peft_config_dict,
)
from ace_lora.lora.keys import Key, is_dora, is_v1_layer, read_key, spelling

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
COMFYUI_NAME = "pytorch_lora_weights_comfyui.safetensors"
PEFT_WEIGHTS_NAME = "adapter_model.safetensors"
STATE_TENSORS = "training_state.safetensors"  # beside them: the adapter in float32 with the moments of the optimizer
OWN_NAMES = (WEIGHTS_NAME, COMFYUI_NAME, PEFT_WEIGHTS_NAME, CONFIG_NAME, TRAINING_CONFIG_NAME)  # of a LoRA's folder
HEADER_CONFIG = "lora_adapter_metadata"  # diffusers' name

MAX_HEADER_BYTES = 20_000_000
MAX_KEYS = 20_000  # the largest LoRA of ACE-Step v1 has some 800
MAX_FILE_BYTES = 20_000_000_000
_SHOWN = 3  # layers that a message names


# --- Reading ---


@dataclass
class LoraFile:
    """What a LoRA file holds: A and B tensors by our key, alpha tensors by module path, the header's metadata."""

    path: Path
    tensors: dict[str, torch.Tensor]
    alphas: dict[str, torch.Tensor]
    other_keys: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    spelling: str = ""

    @property
    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A [r, in] and B [out, r] by module path."""
        ends = (".lora_A.weight", ".lora_B.weight")
        layers = [key.removesuffix(ends[0]) for key in self.tensors if key.endswith(ends[0])]
        return {layer: (self.tensors[layer + ends[0]], self.tensors[layer + ends[1]]) for layer in layers}

    @property
    def layer_ranks(self) -> dict[str, int]:
        """Rank by module path; one in every file that training writes, several after pruning by energy."""
        return {
            key.removesuffix(".lora_A.weight"): len(tensor)
            for key, tensor in self.tensors.items()
            if key.endswith(".lora_A.weight")
        }

    @property
    def ranks(self) -> set[int]:
        return set(self.layer_ranks.values())

    @property
    def dora(self) -> bool:
        """Whether it has DoRA's magnitudes, without which it plays differently."""
        return any(map(is_dora, self.other_keys))


def lora_path(name: str | Path) -> Path:
    """The file meant by `name`, which may be the folder of a checkpoint or of PEFT.

    Raises WrongInput for a folder that holds none.
    """
    path = Path(name)
    if not path.is_dir():
        return path
    for inside in (path / WEIGHTS_NAME, path / PEFT_WEIGHTS_NAME):
        if inside.is_file():
            return inside
    raise WrongInput(
        f"The folder '{path}' holds no {WEIGHTS_NAME}. Expected a folder like checkpoints/epoch=0-step=100_lora. "
        "Choose the folder or the file of a saved step."
    )


def read_lora_file(path: Path) -> LoraFile:
    """Read and check a safetensors LoRA of any origin, or the one in the folder `path`.

    Raises WrongInput when it is missing, damaged, no LoRA or not to be played: layers that lack a factor, factors that
    do not fit each other, numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    path = lora_path(path)
    try:
        metadata = _check_header(path)
    except OSError as error:
        raise WrongInput(f"'{path}' cannot be read: {error.strerror or error}. Choose another file.") from error
    lora = LoraFile(path, {}, {}, metadata=metadata)
    known: list[Key] = []
    sources: dict[str, str] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is no dict
                key = read_key(name)
                if key is None:
                    lora.other_keys.append(name)
                    continue
                known.append(key)
                ours = f"{key.layer}.{'alpha' if key.kind == 'alpha' else f'lora_{key.kind}.weight'}"
                if ours in sources:
                    raise WrongInput(
                        f"'{path}' holds two tensors for the same place, '{sources[ours]}' and '{name}': several "
                        "LoRAs in one file, or the same twice. Expected one. Choose a file that holds one LoRA."
                    )
                sources[ours] = name
                tensor = file.get_tensor(name)
                # Of 8 bits: nothing can be computed with it; bfloat16 holds every such value.
                tensor = tensor.bfloat16() if tensor.dtype.itemsize == 1 and tensor.is_floating_point() else tensor
                if key.kind == "alpha":
                    lora.alphas[key.layer] = tensor
                else:
                    lora.tensors[ours] = tensor
    except (SafetensorError, OSError) as error:
        raise WrongInput(_damaged(path, str(error))) from error
    if not lora.tensors:
        raise WrongInput(_no_lora(lora))
    lora.spelling = spelling([key for key in known if key.kind != "alpha"])
    problems = _layer_problems(lora)
    if problems:
        raise WrongInput(problems)
    return lora


def _check_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file whose header keeps to our limits: 8 bytes of length, then JSON."""
    if not path.exists():
        raise WrongInput(
            f"No LoRA file at '{path}'. Expected a .safetensors file such as "
            f"checkpoints/epoch=0-step=100_lora/{WEIGHTS_NAME}. Check the path."
        )
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise WrongInput(f"'{path}' is no regular file. Expected a .safetensors file. Choose another one.")
    if path.name == STATE_TENSORS:
        raise WrongInput(
            f"'{path}' is the state of a training, which goes on from it with trainer_new.py --resume. "
            f"The LoRA is the file beside it; choose '{path.with_name(WEIGHTS_NAME)}'."
        )
    if path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        raise WrongInput(
            f"'{path}' is of a kind that runs code when it is opened, and is not read. Expected a .safetensors file. "
            "Ask for the LoRA in that format."
        )
    if status.st_size > MAX_FILE_BYTES:
        raise WrongInput(_damaged(path, f"it has {status.st_size:,} bytes, a LoRA has at most {MAX_FILE_BYTES:,}"))
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, status.st_size - 8):
            raise WrongInput(_damaged(path, "it does not begin as such a file does"))
        text = file.read(length)
    try:
        header = parse_json(text, f"the header of '{path}'")
    except UnusableFile as error:
        raise WrongInput(_damaged(path, str(error))) from error
    if not isinstance(header, dict) or len(header) > MAX_KEYS:
        raise WrongInput(_damaged(path, f"its header is no list of at most {MAX_KEYS:,} tensors"))
    metadata = header.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WrongInput(_damaged(path, "the metadata of its header is not made of texts"))
    return metadata


def _damaged(path: Path, reason: str) -> str:
    return (
        f"'{path}' cannot be read as a safetensors file: {reason}. Expected a LoRA that a training saved. "
        "The file is damaged or of another kind; choose another one."
    )


def _no_lora(lora: LoraFile) -> str:
    found = ", ".join(lora.other_keys[:_SHOWN]) or "nothing"
    kinds = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", ".glora": "GLoRA", "lora_unet_": "kohya's underscores"}
    kind = next((name for part, name in kinds.items() if any(part in key for key in lora.other_keys)), "")
    hint = f", which looks like {kind} for other layers or of another kind" if kind else ""
    return (
        f"'{lora.path}' holds no LoRA: no key ends with '.lora_A.weight' (found: {found}{hint}). "
        f"Choose the {WEIGHTS_NAME} of a training."
    )


def _layer_problems(lora: LoraFile) -> list[str]:
    """What is wrong with the tensors by themselves, each kind once with the first layers that have it."""
    problems: list[str] = []

    def tell(layers: list[str], what: str, advice: str) -> None:
        if layers:
            shown = ", ".join(f"'{layer}'" for layer in layers[:_SHOWN]) + (", …" if len(layers) > _SHOWN else "")
            number = "the layer" if len(layers) == 1 else f"{len(layers)} layers:"
            problems.append(f"'{lora.path}': {what} in {number} {shown}. {advice}")

    names = dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in lora.tensors)
    pairs = {name: [lora.tensors.get(f"{name}.lora_{which}.weight") for which in "AB"] for name in names}
    whole = "The file is not whole, or was not made for playing; choose another file."
    for place, which in enumerate("AB"):
        lacking = [name for name, pair in pairs.items() if pair[place] is None]
        tell(lacking, f"lora_{which} is missing, the partner of lora_{'BA'[place]},", whole)
    misshapen, not_finite, no_numbers = [], [], []
    widths: dict[str, set[tuple[int, int]]] = {}
    for name, (a, b) in pairs.items():
        if a is None or b is None:
            continue
        if not (a.is_floating_point() and b.is_floating_point()):
            no_numbers.append(name)
        elif a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not 1 <= len(a) <= MAX_RANK or 0 in b.shape:
            misshapen.append(f"{name} (A {list(a.shape)}, B {list(b.shape)})")
        else:
            widths.setdefault(re.sub(r"\.[0-9]+(?=\.)", ".N", name), set()).add((a.shape[1], len(b)))
            if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
                not_finite.append(name)
    tell(no_numbers, "values that are no floating-point numbers", whole)
    tell(misshapen, f"lora_A and lora_B do not fit each other as [r, in] and [out, r], r up to {MAX_RANK},", whole)
    tell(
        not_finite,
        "values that are not finite",
        "The training that wrote it had failed by then; take an earlier checkpoint.",
    )
    # All blocks of v1 are alike; where that is not said, layers that differ in a number may differ in width.
    alike = ("transformer_blocks.N.", "lyric_encoder.encoders.N.")
    odd = [name for name, found in widths.items() if len(found) > 1 and name.startswith(alike)]
    tell(
        odd, "widths that differ from block to block", "It is pieced together from several models; choose another file."
    )
    bad = [name for name, alpha in lora.alphas.items() if alpha.numel() != 1 or not math.isfinite(float(alpha))]
    tell(bad, "an alpha that is no finite number", whole)
    return problems


def describe(lora: LoraFile) -> str:
    """What the file is and where it seems to come from, in one sentence without its end."""
    layers = lora.layer_ranks
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in lora.tensors.values()})
    ranks = sorted(lora.ranks)
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    of = "" if any(map(is_v1_layer, layers)) else ", none of them a layer of ACE-Step v1"
    where = lora.spelling
    if "base_model_fingerprint" in lora.metadata:
        steps = lora.metadata.get("steps", "")
        where = "trained by this program" + (f", {steps} steps" if steps.isdecimal() else "")
    elif "ss_network_module" in lora.metadata or "ss_base_model_version" in lora.metadata:
        where += ", trained by kohya's scripts"
    if not any(bool(tensor.any()) for key, tensor in lora.tensors.items() if key.endswith(".lora_B.weight")):
        where += "; all its lora_B are zero, so it changes nothing"
    if lora.other_keys:
        where += f"; {len(lora.other_keys)} other tensors are left out, such as '{lora.other_keys[0]}'"
    return f"'{lora.path}' is a LoRA of {len(layers)} layers{of}, {rank}, {' and '.join(kinds)}: {where}"


def dora_problems(lora: LoraFile) -> list[str]:
    """Why a LoRA cannot be played, changed in size or summed as a plain one."""
    if not lora.dora:
        return []
    return [
        f"'{lora.path}' was trained with DoRA (it holds magnitudes such as "
        f"'{next(filter(is_dora, lora.other_keys))}'), which players compute in different ways. Expected a plain LoRA. "
        "Choose another file, or train on from it without DoRA: trainer_new.py --last_lora_path."
    ]


# --- Writing ---


def save_lora(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    with_alpha: bool = False,
) -> None:
    """Write `tensors` (named as by `adapter_tensors`) in bfloat16, atomically.

    The header's metadata hold `format`, the adapter's configuration for diffusers (`lora_adapter_metadata`) and
    `metadata`. `with_alpha` adds what ComfyUI needs to play the file at strength 1.
    """
    import torch
    from safetensors.torch import save_file

    content = {key: tensor.detach().to("cpu", torch.bfloat16).contiguous() for key, tensor in tensors.items()}
    if with_alpha:
        scale = lora_scale(config["r"], config["lora_alpha"], config["use_rslora"])
        layers = [key.removesuffix(".lora_A.weight") for key in content if key.endswith(".lora_A.weight")]
        content = add_alpha(content, dict.fromkeys(layers, scale))
    header = {"format": "pt", HEADER_CONFIG: as_text(peft_config_dict(config)), **(metadata or {})}
    with replace_atomically(path) as temporary:
        save_file(content, temporary, metadata=header)
        _sort_metadata(temporary)


def save_lora_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a training beside its LoRA, as `--lora_config_path` takes it.

    Not as PEFT's `adapter_config.json`: with it the folder would look like one that PEFT can load.
    """
    write_json(Path(folder) / TRAINING_CONFIG_NAME, needed_keys(config))


def write_tensors(path: Path, content: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> None:
    """Write a safetensors file atomically and read it back. Raises StepFailed when it is not what was meant."""
    import torch
    from safetensors.torch import load, save

    if not all(bool(tensor.isfinite().all()) for tensor in content.values()):
        raise StepFailed(
            f"'{path}' was not written: with this strength its numbers are too large for their format. "
            "Check the alpha of the LoRA configuration, or the weights."
        )
    with replace_atomically(path) as temporary:
        # Not save_file: a full disk would be an error of its own kind.
        temporary.write_bytes(save(dict(content), dict(metadata) if metadata else None))
        if metadata:
            _sort_metadata(temporary)
        # From bytes: on Windows a mapped file cannot be renamed.
        written = load(temporary.read_bytes())
        if written.keys() != content.keys() or not all(torch.equal(written[key], content[key]) for key in content):
            raise StepFailed(
                f"What was written for '{path}' differs from what was meant. Check the disk; nothing was kept."
            )


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order, so that equal LoRAs are equal files; safetensors writes it in any order.

    The file is 8 bytes little-endian length, a JSON header of that length, the tensors.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def as_text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True)


def is_file_name(output: Path) -> bool:
    """Whether an output name means a file; any other means a folder."""
    return output.suffix.lower() == ".safetensors"


def output_problems(output: Path, inputs: Sequence[Path], *, overwrite: bool) -> list[str]:
    """Why nothing can be written to `output`, a file name or a folder, when the LoRAs `inputs` have been read."""
    if not output.exists():
        return []
    for source in inputs:
        resolved = source.resolve()
        if source.exists() and (output.samefile(source) or output.resolve() in resolved.parents):
            return [
                f"--output_name '{output}' is the input file itself, or its folder. Choose another name; the input is "
                "kept."
            ]
    if output.is_dir() == is_file_name(output):
        kind = "folder" if output.is_dir() else "file"
        return [f"--output_name '{output}' is the name of a {kind} that exists already. Choose another one."]
    if not overwrite:
        return [f"'{output}' exists already. Choose another --output_name, or add --overwrite to replace it."]
    if output.is_dir() and not any((output / name).exists() for name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME)):
        return [
            f"The folder '{output}' holds no LoRA, so --overwrite does not replace it. Choose another --output_name."
        ]
    if (output / STATE_TENSORS).exists():
        return [f"'{output}' is a checkpoint of a training, which is kept. Choose another --output_name."]
    return []


def add_alpha(tensors: Mapping[str, torch.Tensor], scales: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """`tensors` and, for each layer, a 0-dim `<module path>.alpha` in the dtype of its A, with which ComfyUI, that
    computes alpha / rank, arrives at the layer's scale."""
    import torch

    result = dict(tensors)
    for layer, scale in scales.items():
        a = tensors[f"{layer}.lora_A.weight"]
        result[f"{layer}.alpha"] = torch.tensor(len(a) * scale, dtype=a.dtype)
    return result
