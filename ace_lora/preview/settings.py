"""How a song is sampled: flags, or the entry `settings` of a plan, to the settings of one of two ways of sampling.

Standard library only.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ace_lora.comfyui.sampling import ComfyUISettings
    from ace_lora.v1.sampling import SamplingSettings

WAYS = ("ace-step", "comfyui")
FORMATS = ("wav", "flac", "mp3")
# One latent frame at least; the model was trained on songs up to the longest.
SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 360.0
MOST_STEPS = 1000  # the table of noise levels has no more
LARGEST_SEED = {"ace-step": 2**63 - 1, "comfyui": 2**64 - 1}


class Setting(NamedTuple):
    ways: tuple[str, ...]  # the ways of sampling that know it
    kind: type | tuple[str, ...]  # int, float, bool or the values that there are
    fits: Callable[[Any], bool]
    expected: str
    help: str


def _at_least(smallest: float) -> Callable[[Any], bool]:
    return lambda value: value >= smallest


def _between(smallest: float, largest: float) -> Callable[[Any], bool]:
    return lambda value: smallest <= value <= largest


def _any(value: Any) -> bool:
    return True


_BOTH, _OWN, _COMFYUI = WAYS, WAYS[:1], WAYS[1:]
SETTINGS = {
    "steps": Setting(_BOTH, int, _between(1, MOST_STEPS), "1 to 1000", "fewer are faster and coarser (60; ComfyUI 50)"),
    "guidance": Setting(_BOTH, float, _at_least(0), "0 or more", "1: none, in half the time (15; ComfyUI 5)"),
    "shift": Setting(
        _BOTH, float, _between(0.01, 100), "0.01 to 100", "above 1: more steps while there is much noise (3; ComfyUI 5)"
    ),
    "sampler": Setting(
        _OWN, ("euler", "heun", "pingpong"), _any, "", "heun: finer, in twice the time; pingpong: new noise each step"
    ),
    "guidance_type": Setting(_OWN, ("apg", "cfg"), _any, "", "apg: only across the prediction; cfg: plain (apg)"),
    "interval": Setting(_OWN, float, _between(0, 1), "0 to 1", "the middle share of the steps that is guided (0.5)"),
    "decay": Setting(
        _OWN,
        float,
        _between(0, 1),
        "0 to 1",
        "1: guidance falls to --min_guidance within the interval (0: it does not)",
    ),
    "min_guidance": Setting(_OWN, float, _at_least(0), "0 or more", "where --decay ends (3)"),
    "omega": Setting(_OWN, float, _between(-1000, 1000), "-1000 to 1000", "contrast of a step; 0: none (10)"),
    "erg_diffusion": Setting(
        _OWN, bool, _any, "true or false", "guide away from a transformer that looks around less sharply (on)"
    ),
    "erg_lyrics": Setting(_OWN, bool, _any, "true or false", "also from the lyrics, read less sharply (off)"),
    "erg_tags": Setting(
        _OWN, bool, _any, "true or false", "also from the tags, read less sharply; needs --erg_lyrics (off)"
    ),
    "scheduler": Setting(
        _COMFYUI,
        ("simple", "normal", "sgm_uniform", "ddim_uniform", "beta"),
        _any,
        "",
        "row of noise levels, by ComfyUI's names (simple)",
    ),
    "tonemap": Setting(
        _COMFYUI,
        float,
        _at_least(0),
        "0 or more",
        "smaller: guidance limited more; 0: not at all, as without the node (1)",
    ),
    "lyrics_strength": Setting(_COMFYUI, float, _between(0, 10), "0 to 10", "weight of the lyrics (0.99)"),
}


def add_flags(group: Any) -> None:
    """One flag per setting; its value is None where it is not given."""
    group.add_argument(
        "--as",
        dest="way",
        choices=WAYS,
        default=WAYS[0],
        help="ace-step: as its own pipeline samples; comfyui: the song that ComfyUI makes of this seed, which may "
        "differ from an older ComfyUI (before October 2025 it left dropout on) and by rounding on another card",
    )
    for name, setting in SETTINGS.items():
        only = "" if len(setting.ways) == 2 else f"[{setting.ways[0]}] "
        options: dict[str, Any] = {"default": None, "help": only + setting.help}
        if setting.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(setting.kind, tuple):
            options["choices"] = setting.kind
        else:
            options["type"] = setting.kind
        group.add_argument(f"--{name}", **options)


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--checkpoint_dir",
        default=None,
        help="folder of the base weights (default: the download cache ~/.cache/ace-step/checkpoints)",
    )
    machine.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: auto)")
    machine.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32 (default: auto)")


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}


def setting_problems(way: str, given: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """What is wrong with settings by name; `prefix` stands before the name in the sentences."""
    problems = []
    for name, value in given.items():
        setting = SETTINGS.get(name)
        shown = f"{prefix}{name}"
        if setting is None:
            problems.append(f"{shown} is not known, expected one of {', '.join(SETTINGS)}. Remove it.")
        elif way not in setting.ways:
            problems.append(
                f"{shown} does not exist when a song is made as {way} makes it. Expected a setting of that way: "
                f"{', '.join(key for key, known in SETTINGS.items() if way in known.ways)}. Remove it."
            )
        elif isinstance(setting.kind, tuple):
            if value not in setting.kind:
                problems.append(f"{shown} is {value!r}, expected one of {', '.join(setting.kind)}. Change it.")
        elif not _is_of_kind(value, setting.kind) or not setting.fits(value):
            problems.append(f"{shown} is {value!r}, expected {setting.expected}. Change it.")
    if given.get("erg_tags") is True and not given.get("erg_lyrics"):
        problems.append(
            f"{prefix}erg_tags has no effect without {prefix}erg_lyrics, as published. Expected both or none. "
            f"Add {prefix}erg_lyrics, or remove {prefix}erg_tags."
        )
    return problems


def _is_of_kind(value: Any, kind: type | tuple[str, ...]) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int)
    return isinstance(value, (int, float)) and abs(value) < 1e30 and math.isfinite(value)


def make_settings(way: str, given: Mapping[str, Any]) -> SamplingSettings | ComfyUISettings:
    """Settings that have been checked by `setting_problems`; what is not given is as that way has it."""
    if way == "comfyui":
        from ace_lora.comfyui.sampling import ComfyUISettings

        values = dict(given)
        if values.get("tonemap") == 0:
            values["tonemap"] = None
        return ComfyUISettings(**values)
    from ace_lora.v1.sampling import SamplingSettings

    return SamplingSettings(**given)


def number_problems(way: str, seconds: Any, seed: Any, strength: Any, where: str = "--") -> list[str]:
    """What is wrong with the numbers of one song."""
    numbers = (
        (
            "seconds",
            seconds,
            _is_of_kind(seconds, float) and SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS,
            f"{SHORTEST_SECONDS} to {LONGEST_SECONDS:g}",
        ),
        (
            "seed",
            seed,
            _is_of_kind(seed, int) and 0 <= seed <= LARGEST_SEED[way],
            f"0 or more, below 2^{LARGEST_SEED[way].bit_length()}",
        ),
        ("strength", strength, _is_of_kind(strength, float), "a number such as 1 or 0.5"),
    )
    return [
        f"{where}{name} is {value!r}, expected {expected}. Change the number."
        for name, value, fits, expected in numbers
        if not fits
    ]
