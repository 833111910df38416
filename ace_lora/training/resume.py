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

# Flags that have to stay as they were for a resumed run to equal one that was never stopped.
UNCHANGING_FLAGS = (
    *("batch_size", "accumulate_grad_batches", "max_seconds", "tag_dropout", "lyrics_dropout", "shift", "ssl_coeff"),
    *("optimizer", "learning_rate", "beta1", "beta2", "weight_decay", "warmup_steps"),
    *("gradient_clip_val", "gradient_clip_algorithm", "ema_decay", "seed", "base_precision"),
)


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


def unchanging(
    args: argparse.Namespace,
    *,
    songs: list[TrainingSong],
    lora_config: Mapping[str, Any],
    base_fingerprint: str,
    precision: str,
    processes: int,
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
        **{f"--{flag}": getattr(args, flag) for flag in UNCHANGING_FLAGS},
    }


def check_unchanged(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise WrongInput with every difference between the run that wrote `folder` and this one (both: `unchanging`)."""
    problems = []
    start_anew = "To train on from its weights with other settings, use --last_lora_path and another --output_dir."
    for name, value in now.items():
        earlier = before.get(name)
        if earlier == value:
            continue
        if name == "songs":
            earlier = earlier or {}
            changed = sorted(song for song in {*earlier, *value} if earlier.get(song) != value.get(song))
            problems.append(
                f"The data set is not that of '{folder}': {len(changed)} songs were added, removed or "
                f"changed (first: '{changed[0]}'). {start_anew}"
            )
        elif name == "base model":
            problems.append(
                f"The base model is not that of '{folder}'. Give the one it was trained on with --checkpoint_dir."
            )
        else:
            problems.append(
                f"{name} was {json.dumps(earlier)} in '{folder}' and is {json.dumps(value)} now. "
                f"Give the earlier value. {start_anew}"
            )
    if problems:
        raise WrongInput(problems)
