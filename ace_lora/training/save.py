"""Writing a checkpoint while the training runs, and what its LoRA file tells about itself."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ace_lora.commands import StepFailed
from ace_lora.files import free_bytes
from ace_lora.processes import say
from ace_lora.records.fingerprints import software_versions
from ace_lora.training.checkpoints import (
    checkpoint_bytes,
    remove_old,
    set_damaged_aside,
    write_checkpoint,
)
from ace_lora.training.prepare import Prepared
from ace_lora.training.state import TrainingState


def save(args: argparse.Namespace, prepared: Prepared, state: TrainingState, metrics: Path | None) -> None:
    """Write the checkpoint of this step and remove this run's oldest. Raises StepFailed when that cannot be done."""
    output_dir = Path(args.output_dir)
    count = sum(parameter.numel() for parameter in state.adapter.values())
    needed = checkpoint_bytes(count, args.optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
    free = free_bytes(output_dir)
    if free < needed:
        raise StepFailed(
            f"The disk is full: a checkpoint in '{output_dir}' needs {needed / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free. {state.where_to_go_on()} Free the disk, then add --resume."
        )
    saved = state.to_save()
    versions = software_versions(("torch", "lightning", "peft", "transformers"))
    saved.values |= {
        "fit": prepared.trained_with,
        "schedule": {"begins": prepared.schedule.begins, "begins_at": prepared.schedule.begins_at},
        "settings": vars(args),
        "metrics": str(metrics.absolute()) if metrics else None,
        "versions": versions,
    }
    aside = set_damaged_aside(output_dir, state.epoch, state.step)
    if aside:
        say(f"set aside: {aside}, which has no training state that can be read")
    try:
        with state.weights_to_keep():
            folder = write_checkpoint(
                output_dir,
                epoch=state.epoch,
                step=state.step,
                lora=state.adapter,
                config=prepared.lora_config,
                metadata=lora_metadata(args, prepared, state, versions),
                state=saved,
                comfyui=args.save_comfyui,
            )
    except (OSError, SafetensorError) as error:
        # Quotas and limits of file sizes are not seen in the free space.
        raise StepFailed(
            f"The checkpoint of step {state.step} cannot be written to '{output_dir}': {error}. "
            f"{state.where_to_go_on()} Free the disk or mend what is wrong with it, then add --resume."
        ) from error
    state.last_saved, state.saved_step = folder, state.step
    say(f"saved: {folder}")
    for old in remove_old(output_dir, state.run_id, folder, states=args.save_last, loras=args.keep_loras):
        if old.what == "state":
            say(f"only the LoRA is left: {old.folder} (--save_last {args.save_last})")
        elif old.what == "all":
            say(f"removed: {old.folder} (--keep_loras {args.keep_loras})")
        else:
            say(f"set aside: {old.folder} (--keep_loras {args.keep_loras}) to {old.kept}: it holds files of yours")
    free = free_bytes(output_dir)
    if free < needed and state.step < prepared.max_steps:
        say(
            f"warning: {free / 1e9:.2f} GB are free, the next checkpoint needs {needed / 1e9:.2f} GB. "
            f"Free the disk before step {state.step + args.save_every_n_train_steps}."
        )


def lora_metadata(
    args: argparse.Namespace, prepared: Prepared, state: TrainingState, versions: dict[str, str]
) -> dict[str, str]:
    """What the header of the LoRA file tells about its training; texts, as safetensors wants."""
    songs = prepared.training_songs
    tags = Counter(tag for song in songs for tag in song.tags)
    config: dict[str, Any] = prepared.lora_config
    return {
        "base_model": "ACE-Step v1 (" + prepared.weights["transformer"].name + ")",
        "base_model_fingerprint": prepared.base_fingerprint,
        "rank": str(config["r"]),
        "alpha": str(config["lora_alpha"]),
        "use_rslora": json.dumps(config["use_rslora"]),
        "steps": str(state.step),
        "epoch": str(state.epoch),
        "songs": str(len(songs)),
        "tags": json.dumps(dict(tags.most_common()), ensure_ascii=False),
        "optimizer": args.optimizer,
        "learning_rate": str(args.learning_rate),
        "ema_decay": str(args.ema_decay),
        "versions": json.dumps(versions),
    }
