"""From which checkpoint a training goes on, and whether what it was trained with is still the same."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_lora.commands import WrongInput
from ace_lora.training.checkpoints import (
    STATE_JSON,
    SavedState,
    find_loras,
    newest_state,
    read_state,
    read_state_values,
    run_id_of,
)
from ace_lora.training.songs import TrainingSong

# What a resumed run must have in common with the one before, beside base model and LoRA configuration: the moments
# would not fit, or the numbers are of another kind.
FIXED_FLAGS = ("optimizer", "ema_decay", "base_precision")
# What may be another with --accept_changes; a run that was never stopped would then have gone another way.
CHANGEABLE_FLAGS = (
    *("batch_size", "accumulate_grad_batches", "max_seconds", "tag_dropout", "lyrics_dropout", "shift", "ssl_coeff"),
    *("learning_rate", "lr_schedule", "beta1", "beta2", "weight_decay", "warmup_steps"),
    *("gradient_clip_val", "gradient_clip_algorithm", "seed"),
)
FIXED = ("base model", "LoRA configuration", "--precision", *(f"--{flag}" for flag in FIXED_FLAGS))
NEW_FLAGS = {"--lr_schedule": "linear"}  # what states of earlier versions were trained with, which do not tell it


@dataclass
class Resumed:
    """A checkpoint to go on from."""

    folder: Path
    state: SavedState

    @property
    def step(self) -> int:
        return self.state.values["step"]


def find_checkpoint(output_dir: Path, resume: str, notes: list[str]) -> Resumed | None:
    """The checkpoint meant by --resume ("auto": the newest that is whole); None where there is none yet.

    `notes` gets what was passed over. Raises WrongInput for a checkpoint that cannot be gone on from.
    """
    if resume == "auto":
        checkpoint, damaged = newest_state(output_dir)
        passed_over = [f"Passed over: {note}" for note in damaged]
        notes += passed_over
        if checkpoint:
            return Resumed(checkpoint.folder, read_state(checkpoint.folder))
        loras = find_loras(output_dir)
        if loras:
            raise WrongInput(
                [
                    f"--resume: '{output_dir}' holds LoRAs ('{loras[0].name}', …) but no training state to go on "
                    "from. Start a new training from such a file with --last_lora_path and another --output_dir.",
                    *passed_over,
                ]
            )
        notes.append(f"--resume: there is no checkpoint in '{output_dir}' yet, so training starts at step 0.")
        return None
    folder = Path(resume)
    if folder.is_file() and (folder.parent / STATE_JSON).is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise WrongInput(
            f"--resume '{resume}' {'belongs to no checkpoint' if folder.exists() else 'does not exist'}. "
            "Expected a folder such as checkpoints/epoch=0-step=100_lora. "
            "Give its path, or --resume alone for the newest checkpoint of --output_dir."
        )
    run_id = read_state_values(folder).get("run_id")
    foreign = [path for path in find_loras(output_dir) if path.is_dir() and run_id_of(path) != run_id]
    if foreign:
        raise WrongInput(
            f"--output_dir '{output_dir}' holds LoRAs of another training ('{foreign[0].name}') than --resume "
            f"'{folder}'. Choose the --output_dir of that training, or a new one."
        )
    return Resumed(folder, read_state(folder))


def trained_with(
    args: argparse.Namespace,
    *,
    songs: list[TrainingSong],
    lora_config: Mapping[str, Any],
    base_fingerprint: str,
    precision: str,
    processes: int,
    max_steps: int,
) -> dict[str, Any]:
    """What has to be equal for a run to go on as if it had never been stopped, by the words of the messages.

    `songs` are those that are trained on.
    """
    return {
        "base model": base_fingerprint,
        "LoRA configuration": {**lora_config, "target_modules": sorted(lora_config["target_modules"])},
        "songs": {song.name: song.digest for song in songs},
        "--precision": precision,
        "processes": processes,
        "number of steps": max_steps,
        **{f"--{flag}": getattr(args, flag) for flag in (*FIXED_FLAGS, *CHANGEABLE_FLAGS)},
    }


def settings_of(resumed: Resumed) -> dict[str, Any]:
    """What the run that wrote the checkpoint was trained with (`trained_with`), also where an earlier version did."""
    values = resumed.state.values
    before = {**NEW_FLAGS, **values["fit"]}
    if "number of steps" not in before:
        settings = values.get("settings", {})
        if settings.get("epochs", -1) == -1 and settings.get("max_steps", -1) > 0:
            before["number of steps"] = settings["max_steps"]
    return before


def check_changes(resumed: Resumed, now: Mapping[str, Any], *, accepted: bool) -> list[str]:
    """What is another than in the run that is gone on with, in words, where that was `accepted`.

    Raises WrongInput for what cannot change, and for all that has changed and was not accepted.
    """
    before = settings_of(resumed)
    names = [name for name, value in now.items() if name in before and before[name] != value]
    changes = {name: _described(name, before[name], now[name], resumed.folder) for name in names}
    fixed = set(FIXED)
    if 0 in (before["--ssl_coeff"], now["--ssl_coeff"]):
        fixed.add("--ssl_coeff")  # whether it is 0 decides which tensors have moments
    problems = []
    for name in names:
        if name == "base model":
            problems.append(f"{changes[name]} Give the one it was trained on with --checkpoint_dir.")
        elif name in fixed:
            problems.append(
                f"{changes[name]} Give the earlier value. To train on from its weights with other settings, use "
                "--last_lora_path and another --output_dir."
            )
    acceptable = [name for name in names if name not in fixed]
    if not accepted:
        problems += [
            f"{changes[name]} Give the earlier value, or add --accept_changes to go on from its weights and the "
            "optimizer's moments with this one."
            for name in acceptable
        ]
    if problems:
        raise WrongInput(problems)
    return [changes[name] for name in acceptable]


def _described(name: str, before: Any, now: Any, folder: Path) -> str:
    """One change as a sentence."""
    if name == "base model":
        return f"The base model is not that of '{folder}'."
    if name == "songs":
        changed = sorted(song for song in {*before, *now} if before.get(song) != now.get(song))
        added, gone = (sum(song not in other for song in ours) for ours, other in ((now, before), (before, now)))
        return (
            f"The data set is not that of '{folder}': {len(changed)} songs were added, removed or changed "
            f"({added} added, {gone} removed, {len(changed) - added - gone} changed; first: '{changed[0]}')."
        )
    return f"{name} was {json.dumps(before)} in '{folder}' and is {json.dumps(now)} now."
