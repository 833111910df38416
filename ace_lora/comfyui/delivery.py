"""What ComfyUI makes of a LoRA file, by its published rules (spec: clients, section 1), before it is silent there.

ComfyUI walks over the layers that it knows and takes what is in the file under their names: bare, behind
`diffusion_model.`, or as `lora_unet_` with underscores. It adds strength · s · B A to the weight, s = alpha / rows of
A, 1 without an alpha. It does not read the header.

A [r, in] and B [out, r] of a layer; its norm is that of s B A.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.lora.config import layer_rank_alpha, lora_scale
from ace_lora.lora.file import LoraFile
from ace_lora.lora.scales import lora_scales, saved_config

if TYPE_CHECKING:
    import torch

DEAD = 1e-3  # a layer whose norm is less than this share of the median does nothing
SAME_STRENGTH = 0.02  # bf16 files are 0.9997 to 1.0004 of what was trained
_SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_down.weight": "A",
    ".lora_B.weight": "B",
    ".lora_up.weight": "B",
    ".alpha": "alpha",
}
# Trained by upstream's own configuration or for the SSL losses; ComfyUI takes them, and they change nothing.
_WITHOUT_EFFECT = ("projectors.", "speaker_embedder")
_KINDS = (("cross-attention", ".cross_attn."), ("attention", ".attn."), ("lyric encoder", "lyric_encoder."))


Pair = dict[str, "torch.Tensor"]  # A, B and alpha of a layer, as far as they are there


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    rank: int
    scale: float  # ComfyUI's s
    norm: float
    strength: float | None  # of what was trained, at ComfyUI's strength 1; None where it is not known


@dataclass
class Delivery:
    path: str
    layers: list[Layer] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)  # keys that ComfyUI passes over
    not_finite: list[str] = field(default_factory=list)  # layers
    misfits: list[str] = field(default_factory=list)  # sentences on shapes and missing partners
    dead: list[str] = field(default_factory=list)  # layers

    @property
    def names(self) -> set[str]:
        return {*(layer.name for layer in self.layers), *self.not_finite}

    @property
    def median(self) -> float:
        return statistics.median(layer.norm for layer in self.layers) if self.layers else 0.0

    @property
    def strengths(self) -> list[float]:
        return [layer.strength for layer in self.layers if layer.strength is not None]

    @property
    def strong_enough(self) -> bool:
        return all(abs(strength - 1) <= SAME_STRENGTH for strength in self.strengths)

    @property
    def good(self) -> bool:
        faults = self.unmapped or self.not_finite or self.misfits or self.dead
        return bool(self.layers) and not faults and self.strong_enough

    def sentence(self) -> str:
        """What a player of the file will hear."""
        count = len(self.layers)
        if self.good:
            if len(self.strengths) < count:
                return (
                    f"ComfyUI takes all {count} layers of this file, and all of them do something; with which strength "
                    "it was trained is not in the file, so that could not be compared."
                )
            return f"ComfyUI plays all {count} layers of this file, at strength 1 as they were trained."
        if not count:
            first = f" (the first key is '{self.unmapped[0]}')" if self.unmapped else ""
            return f"ComfyUI finds nothing in this file that it knows{first}: it would play the base model alone."
        faults = []
        if self.not_finite:
            faults.append(f"{len(self.not_finite)} layers hold values that are no numbers ('{self.not_finite[0]}')")
        if self.misfits:
            faults.append(self.misfits[0])
        if self.unmapped:
            faults.append(f"it passes over {len(self.unmapped)} keys ('{self.unmapped[0]}')")
        if self.dead:
            faults.append(f"{len(self.dead)} layers do nothing ('{self.dead[0]}')")
        if not self.strong_enough:
            low, high = min(self.strengths), max(self.strengths)
            shown = f"{low:.3g}" if high - low < 0.005 else f"{low:.3g} to {high:.3g}"
            faults.append(f"at ComfyUI's strength 1 it plays {shown} times as strong as it was trained")
        return f"ComfyUI takes {count} layers of this file, but {'; '.join(faults)}."

    def table(self) -> list[dict[str, Any]]:
        """One row per kind of layer."""
        rows = []
        for kind in dict.fromkeys(layer.kind for layer in self.layers):
            layers = [layer for layer in self.layers if layer.kind == kind]
            strengths = [layer.strength for layer in layers if layer.strength is not None]
            rows.append(
                {
                    "kind": kind,
                    "layers": len(layers),
                    "ranks": sorted({layer.rank for layer in layers}),
                    "scales": sorted({round(layer.scale, 6) for layer in layers}),
                    "strength": round(statistics.mean(strengths), 4) if strengths else None,
                    "weakest": min(layer.norm for layer in layers) / self.median if self.median else 0.0,
                    "strongest": max(layer.norm for layer in layers) / self.median if self.median else 0.0,
                    "dead": sum(layer.name in self.dead for layer in layers),
                }
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "good": self.good,
            "sentence": self.sentence(),
            "table": self.table(),
            **{name: value for name, value in asdict(self).items() if name != "path"},
        }


def published_layers(folder: Path | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that ComfyUI knows: of the published transformer, whose sizes it has built in.

    `folder`: of another transformer (a `config.json`), for tests.
    """
    import torch

    from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

    config = TransformerConfig() if folder is None else TransformerConfig.from_json(folder / "config.json")
    with torch.device("meta"):
        model = ACEStepTransformer(config)
    return {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.endswith(".weight")
    }


def check_delivery(path: Path, layers: Mapping[str, tuple[int, ...]], trained: LoraFile | None = None) -> Delivery:
    """What ComfyUI makes of a file, given the layers of `published_layers`.

    The strength of the training is told from `trained`, the checkpoint that the file was made of, else from what the
    file says of itself. Raises WrongInput when the file cannot be read, or `trained` does not say its scale.
    """
    tensors, metadata = _read(path)
    result = Delivery(str(path))
    forms = {
        written: name for name in layers for written in (name, f"diffusion_model.{name}", f"lora_unet_{_flat(name)}")
    }
    found: dict[str, Pair] = {}
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), "")
        name = forms.get(key.removesuffix(suffix)) if suffix else None
        if name is None:
            result.unmapped.append(key)
        else:
            found.setdefault(name, {})[_SUFFIXES[suffix]] = tensor
    for name in [name for name, parts in found.items() if "A" not in parts or "B" not in parts]:
        result.misfits.append(f"layer '{name}' has only one half of its pair, which ComfyUI passes over")
        del found[name]
    stated = {} if trained is not None else _stated_scales(path, found, metadata)
    reference = trained.factors if trained is not None else {}
    trained_scales = lora_scales(trained)[0] if trained is not None else {}
    for name, parts in found.items():
        a, b = parts["A"].double(), parts["B"].double()
        shape = layers[name]
        fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] and (b.shape[0], a.shape[1]) == tuple(shape[:2])
        if not fits or len(shape) != 2:
            result.misfits.append(
                f"layer '{name}' has the shapes {list(parts['B'].shape)} and {list(parts['A'].shape)}, which do not "
                f"fit {list(shape)}"
            )
            continue
        scale = float(parts["alpha"]) / a.shape[0] if "alpha" in parts else 1.0
        if not all(bool(tensor.isfinite().all()) for tensor in parts.values()):
            result.not_finite.append(name)
            continue
        norm = abs(scale) * float(_inner(a, b, a, b)) ** 0.5
        strength = None
        if name in reference:
            own_a, own_b = (factor.double() for factor in reference[name])
            own = trained_scales[name] * float(_inner(own_a, own_b, own_a, own_b))
            strength = scale * float(_inner(a, b, own_a, own_b)) / own if own else None
        elif stated.get(name):
            strength = scale / stated[name]
        result.layers.append(Layer(name, _kind(name), a.shape[0], scale, norm, strength))
    heard = [layer for layer in result.layers if not layer.name.startswith(_WITHOUT_EFFECT)]
    if heard:
        median = statistics.median(layer.norm for layer in heard)
        result.dead = [layer.name for layer in heard if layer.norm <= DEAD * median]
    missing = sorted(name for name in reference.keys() - result.names if not name.startswith(_WITHOUT_EFFECT))
    if missing:
        result.misfits.append(f"{len(missing)} layers of the training are not in it ('{missing[0]}')")
    return result


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of a file, whatever it is; ComfyUI reads any."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WrongInput(f"No LoRA file at '{path}'. Expected a .safetensors file. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WrongInput(
            f"'{path}' cannot be read as a safetensors file: {error}. Expected a LoRA. The file is damaged or of "
            "another kind; copy it again."
        ) from error


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _kind(name: str) -> str:
    if name.startswith(_WITHOUT_EFFECT):
        return "without effect"
    return next((kind for kind, part in _KINDS if part in name or name.startswith(part)), "other")


def _stated_scales(path: Path, pairs: Mapping[str, Pair], metadata: dict[str, str]) -> dict[str, float]:
    """The scale s of the training by layer, as the file's header or the configuration beside it says it; {} if none."""
    tensors = {f"{name}.lora_{side}.weight": pair[side] for name, pair in pairs.items() for side in "AB"}
    try:
        saved = saved_config(LoraFile(path, tensors, {}, metadata=metadata))
    except WrongInput:
        return {}
    if saved is None:
        return {}
    config = saved[0]
    return {name: lora_scale(*layer_rank_alpha(config, name), config["use_rslora"]) for name in pairs}


def _inner(a: torch.Tensor, b: torch.Tensor, other_a: torch.Tensor, other_b: torch.Tensor) -> torch.Tensor:
    """<B A, B' A'> over all elements, without making either product."""
    return ((b.T @ other_b) * (a @ other_a.T)).sum()
