"""Names of LoRA tensors: one spelling inside this program and in what it writes, the spellings of others when reading.

Ours is `<module path>.lora_A.weight` and `.lora_B.weight`, with the paths of ACE-Step v1's transformer
(`transformer_blocks.0.attn.to_q`). Others put the model's name in front, PEFT an adapter's name inside, kohya's scripts
write `lora_down` for A, `lora_up` for B and underscores for dots.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Every Linear layer of the transformer, N a number; what kohya's underscores can mean, and what a LoRA of v1 can adapt.
LINEAR_LAYERS = (
    *(
        f"transformer_blocks.N.{part}.{layer}"
        for part in ("attn", "cross_attn")
        for layer in ("to_q", "to_k", "to_v", "to_out.N")
    ),
    *(f"lyric_encoder.encoders.N.self_attn.linear_{layer}" for layer in ("q", "k", "v", "out", "pos")),
    *("lyric_encoder.encoders.N.feed_forward.w_1", "lyric_encoder.encoders.N.feed_forward.w_2"),
    *("lyric_encoder.embed.out.N", "lyric_proj", "genre_embedder", "speaker_embedder", "projectors.N.N"),
    *("timestep_embedder.linear_1", "timestep_embedder.linear_2", "t_block.N", "final_layer.linear"),
)
_ROOTS = {layer.split(".")[0] for layer in LINEAR_LAYERS}
# In front of layers that are not v1's, where the root does not tell where the prefix ends.
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "module.")
_UNDERSCORED = {
    layer: re.compile(
        r"(?:(?:lora|lycoris)_(?:[a-z0-9]+_)??)?" + layer.replace(".", "_").replace("N", "([0-9]{1,3})"), re.IGNORECASE
    )
    for layer in LINEAR_LAYERS
}
_FACTOR = re.compile(
    r"(?P<layer>.+?)[._]lora[._](?:linear_layer\.)?(?P<which>A|B|down|up)"
    r"(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"
)
_DORA = (".dora_scale", ".lora_magnitude_vector")
_LONGEST_KEY = 500


class Key(NamedTuple):
    """What a key of a file says: the layer's path as ours, A, B or alpha, and how it was spelt."""

    layer: str
    kind: str  # "A", "B", "alpha"
    prefix: str
    suffix: str  # "lora_A", "lora_down", "alpha"
    adapter: str  # PEFT's name of the adapter, "" where there is none


def read_key(key: str) -> Key | None:
    """None for a tensor that belongs to no plain LoRA, and for underscores that fit no layer, or more than one."""
    if len(key) > _LONGEST_KEY:
        return None
    if match := _FACTOR.fullmatch(key):
        layer, which, adapter = match["layer"], match["which"], match["adapter"] or ""
        kind = {"down": "A", "up": "B"}.get(which, which)
        suffix = "lora_down" if which in ("down", "up") else "lora_A"
    elif key.endswith(".alpha"):
        layer, kind, suffix, adapter = key.removesuffix(".alpha"), "alpha", "alpha", ""
    else:
        return None
    path, prefix = _module_path(layer)
    return Key(path, kind, prefix, suffix, adapter) if path else None


def is_dora(key: str) -> bool:
    """Whether the tensor is a magnitude of DoRA, without which its LoRA plays differently."""
    return any(part in key for part in _DORA)


def is_v1_layer(layer: str) -> bool:
    """Whether ACE-Step v1 has a Linear layer of that path, numbers aside."""
    return re.sub(r"(?<=\.)[0-9]+(?=\.|$)", "N", layer) in LINEAR_LAYERS


def _module_path(name: str) -> tuple[str, str]:
    """The path without what stands in front of it, and that; ("", …) where underscores cannot be told apart."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part in _ROOTS:
            return ".".join(parts[place:]), "".join(f"{part}." for part in parts[:place])
    last = parts[-1]
    fitting = [(layer, match) for layer, form in _UNDERSCORED.items() if (match := form.fullmatch(last))]
    if len(fitting) == 1:
        layer, match = fitting[0]
        numbers = iter(match.groups())
        return "".join(next(numbers) if part == "N" else part for part in re.split("(N)", layer)), "lora_unet_"
    if fitting or last.lower().startswith(("lora_", "lycoris_")):
        return "", "lora_unet_"
    path = name
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    return path, name.removesuffix(path)


def spelling(keys: list[Key]) -> str:
    """Whose way of writing the keys are, in words."""
    prefixes, suffixes = {key.prefix for key in keys}, {key.suffix for key in keys}
    if "lora_unet_" in prefixes:
        return "names of kohya's scripts (underscores)"
    names = {"diffusion_model.": "ComfyUI's names", "base_model.model.": "PEFT's names"}
    prefix = max(prefixes, key=len)
    if prefix:
        words = next((words for begin, words in names.items() if prefix.startswith(begin)), "")
        words = words or ("names of a diffusers pipeline" if prefix == "transformer." else "names of another program")
        words += f" ('{prefix}' in front)"
    elif any(key.adapter for key in keys):
        words = "PEFT's names"
    else:
        words = "names as ACE-Step's trainers, diffusers and this program write them"
    return words + (", lora_down and lora_up as kohya's scripts have them" if "lora_down" in suffixes else "")
