"""What a training will cost, measured: a few steps on the longest songs, with savings added until they fit.

Each attempt is a process of its own, so that one that runs out of memory leaves nothing behind, and a card is measured
as the training will find it. A training in several processes is measured in one. The result is printed and written to
`<log_dir>/<exp_name>/trial.json`:

    fits                whether the settings, with `savings`, can be trained
    savings             flags to add to the command, by name; empty when none are needed
    peak_memory_gb      of the whole process, memory_gb: what there is or may be used
    spilled             whether the driver had to borrow main memory
    seconds_per_step    on the longest songs; hours: for the whole run, at the mean length
    checkpoint_gb, disk_gb, free_disk_gb
    tried               every attempt with its flags and outcome
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.device import peak_process_bytes
from ace_lora.files import free_bytes, write_json
from ace_lora.training.checkpoints import checkpoint_bytes, lora_bytes, run_bytes
from ace_lora.training.flags import launcher_problem, max_frames, package_problems
from ace_lora.training.load import Loaded
from ace_lora.training.prepare import Prepared, make_plan, prepare
from ace_lora.training.resume import find_checkpoint

STEPS = 20
UNTIMED_STEPS = 3  # caches, allocators and kernels' choices settle
SPILL_SHARE = 0.985  # of a card's memory; beyond it Windows' driver borrows main memory and everything crawls
# From what costs little time to what costs much or touches the numbers. Each is added to those before it.
SAVINGS: tuple[dict[str, Any], ...] = (
    {"text_encoder": "cpu"},
    {"checkpointing": "all"},
    {"base_precision": "int8"},
    {"optimizer": "adamw8bit"},
    {"base_precision": "nf4"},
    {"offload": 0.5},
    {"offload": 1.0},
)
NUMBERS = ("base_precision", "optimizer")  # savings that change what is computed
FOUND = "ACE_LORA_SAVINGS"  # environment variable in which the first process hands the savings to those it starts


class Trial:
    """What the loop measures instead of saving, logging and validating: the time of each step."""

    def __init__(self, args: argparse.Namespace, prepared: Prepared):
        """`prepared` is the whole training; `self.prepared` the short one to be run."""
        self.prepared, self.mean_share = _longest_songs(args, prepared)
        self._seconds: list[float] = []
        self._last = time.perf_counter()

    def step_done(self) -> None:
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now

    def write(self, path: Path, loaded: Loaded) -> None:
        """Write the measurements."""
        device = self.prepared.device.torch_device
        timed = sorted(self._seconds[UNTIMED_STEPS:])
        result: dict[str, Any] = {
            "device": self.prepared.device.reason,
            "device_type": device.type,
            "seconds_per_step": timed[len(timed) // 2],
            "mean_share": self.mean_share,
            "parameters": sum(parameter.numel() for parameter in loaded.adapter.values()),
            "blocks": len(loaded.model.transformer_blocks),
        }
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            here = torch.cuda.memory_reserved(device)
            peak = torch.cuda.max_memory_reserved(device) + max(0, total - free - here)
            result |= {"peak_memory_gb": peak / 2**30, "memory_gb": total / 2**30}
            result["spilled"] = peak > SPILL_SHARE * total
        else:
            peak, total = peak_process_bytes()
            result |= {"peak_memory_gb": peak / 2**30, "memory_gb": total / 2**30, "spilled": peak > total}
        write_json(path, result)


def _longest_songs(args: argparse.Namespace, prepared: Prepared) -> tuple[Prepared, float]:
    """A training of STEPS steps on one batch of the longest songs; the mean length of a song as a share of theirs."""
    songs = prepared.songs
    longest = sorted(prepared.training_indices, key=lambda index: -songs[index].frames)[: args.batch_size]
    limit = max_frames(args) or math.inf
    lengths = [min(song.frames, limit) for song in prepared.training_songs]
    plan = make_plan(args, [songs[index] for index in longest], processes=1)
    short = dataclasses.replace(
        prepared,
        training_indices=longest,
        validation_indices=[],
        max_steps=STEPS,
        schedule=dataclasses.replace(prepared.schedule, max_steps=STEPS),
        plan=plan,
    )
    return short, sum(lengths) / len(lengths) / max(plan.frames)


def run_trial(args: argparse.Namespace) -> dict[str, Any]:
    """Make the trial, print and write its result; the savings that the training needs, by flag.

    Raises WrongInput for what is wrong with the flags, StepFailed when nothing fits.
    """
    savings = savings_of_resumed_run(args)
    checked = argparse.Namespace(**{**vars(args), **savings})
    if args.trial:
        checked.trial_attempt = "trial"  # an output folder that holds LoRAs is no obstacle to a trial
    prepared = prepare(checked)
    print(f"trial: {STEPS} steps on the longest of {len(prepared.training_indices)} songs", flush=True)
    tried: list[dict[str, Any]] = []
    # What touches the numbers cannot be added to a run that has begun.
    allowed = [extra for extra in SAVINGS if prepared.resumed is None or not set(extra) & set(NUMBERS)]
    for extra in ({}, *allowed):
        if extra and (tried[-1]["fits"] or not _is_new(args, savings, extra, tried)):
            continue
        wanting = package_problems(argparse.Namespace(**{**vars(args), **savings, **extra})) if extra else []
        if wanting:
            print(f"trial: not tried: {wanting[0]}", flush=True)
            continue
        savings = {**savings, **_resolved(extra, tried)}
        attempt = _attempt(args, savings)
        tried.append(attempt)
        flags = " ".join(f"--{name} {value}" for name, value in savings.items()) or "as given"
        print(f"trial: {flags}: {_described(attempt)}", flush=True)
        if attempt["fits"]:
            break
    last = tried[-1]
    result = _costs(args, prepared, last) | {"fits": last["fits"], "savings": savings, "tried": tried}
    path = result_path(args)
    write_json(path, result)
    print(f"trial: written to {path}")
    if not last["fits"]:
        raise StepFailed(
            "The training does not fit with any of the savings. Close programs that use the card, train on pieces with "
            "--max_seconds 120, or lower the rank in the LoRA configuration."
        )
    _print_costs(args, prepared, result)
    os.environ[FOUND] = json.dumps(savings)
    return savings


def savings_of_resumed_run(args: argparse.Namespace) -> dict[str, Any]:
    """The savings with which the run to go on from was trained, of those that touch the numbers.

    They came from its own trial, so the same command with --resume does not name them.
    """
    if not args.resume:
        return {}
    try:
        resumed = find_checkpoint(Path(args.output_dir), args.resume, [])
    except WrongInput:
        return {}  # `prepare` says it with all other problems
    trained_with = resumed.state.values["fit"] if resumed else {}
    kept = {}
    for name in NUMBERS:
        earlier = trained_with.get(f"--{name}")
        if {name: earlier} in SAVINGS and _is_new(args, {}, {name: earlier}, []):
            kept[name] = earlier
            print(f"trial: --{name} {earlier}, as the run was trained that goes on")
    return kept


def result_path(args: argparse.Namespace) -> Path:
    return Path(args.log_dir) / args.exp_name / "trial.json"


def savings_of_first_process() -> dict[str, Any]:
    """What the trial found that the first process made before it started this one. Raises WrongInput where it did not.

    Not read from the trial's file, which may be an earlier run's.
    """
    found = os.environ.get(FOUND)
    if found is None:
        raise WrongInput(launcher_problem("This process was not started by the one that made the trial."))
    return json.loads(found)


def _is_new(args: argparse.Namespace, savings: dict[str, Any], extra: dict[str, Any], tried: list) -> bool:
    """Whether the saving changes anything for this command on this machine."""
    ((name, value),) = extra.items()
    now = {**vars(args), **savings}
    # An attempt that ran out of memory says nothing of its device, but only a card does so.
    on_card = bool(tried) and tried[0].get("device_type", "cuda") == "cuda"
    if name == "text_encoder":
        return now[name] != "cpu" and on_card
    if name == "checkpointing":
        return now[name] != "all"
    if name == "base_precision":
        smaller = [saving[name] for saving in SAVINGS if name in saving]  # from the most memory to the least
        return now[name] not in smaller[smaller.index(value) :]
    if name == "optimizer":
        return now[name] == "adamw"
    return on_card


def _resolved(extra: dict[str, Any], tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the blocks as numbers of blocks."""
    blocks = next((attempt["blocks"] for attempt in tried if "blocks" in attempt), 24)
    return {name: math.ceil(value * blocks) if name == "offload" else value for name, value in extra.items()}


def _attempt(args: argparse.Namespace, savings: dict[str, Any]) -> dict[str, Any]:
    """Run one attempt in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "attempt.json"
        values = {**vars(args), **savings, "trial_attempt": str(file), "trial": False, "plan": "none", "resume": None}
        values |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}  # each process of several needs what one needs
        script = Path(__file__).parents[2] / "trainer_new.py"
        process = subprocess.run(
            [sys.executable, str(script), *command_line(values)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if file.is_file():
            attempt = json.loads(file.read_text(encoding="utf-8"))
            limit = args.memory_limit_gb or math.inf
            if args.devices * args.num_nodes > 1:
                attempt["peak_memory_gb"] += attempt["parameters"] * 4 / 2**30  # in which they sum up gradients
            if attempt["device_type"] == "cpu":
                attempt["peak_memory_gb"] *= args.devices  # they share the main memory
            share = SPILL_SHARE if attempt["device_type"] == "cuda" else 1
            attempt["spilled"] |= attempt["peak_memory_gb"] > share * attempt["memory_gb"]
            attempt["memory_gb"] = min(limit, attempt["memory_gb"])
            attempt["fits"] = not attempt["spilled"] and attempt["peak_memory_gb"] <= limit
        elif process.returncode == 2:
            raise WrongInput(
                [line.removeprefix("error: ") for line in process.stderr.splitlines() if "error: " in line]
            )
        elif process.returncode == 130:
            raise KeyboardInterrupt
        else:
            lines = process.stderr.strip().splitlines() or ["no message"]
            attempt = {"fits": False, "failure": lines[-1].removeprefix("error: "), "status": process.returncode}
            # A process that the system killed for its memory says nothing itself.
            if "memory" not in process.stderr.lower() and process.returncode not in (-9, 137):
                raise StepFailed(f"The trial failed for another reason than memory: {attempt['failure']}")
        return {"savings": savings, **attempt}


def command_line(values: dict[str, Any]) -> list[str]:
    """Arguments for trainer_new.py from its parsed flags."""
    argv = []
    for name, value in values.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            argv.append(f"--{name}={value}")
    return argv


def _costs(args: argparse.Namespace, prepared: Prepared, attempt: dict[str, Any]) -> dict[str, Any]:
    parameters = sum(math.prod(shape) for shape in prepared.shapes.values())
    optimizer = attempt["savings"].get("optimizer", args.optimizer)
    each = checkpoint_bytes(parameters, optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
    saves = math.ceil(prepared.max_steps / args.save_every_n_train_steps)
    lora = lora_bytes(parameters, comfyui=args.save_comfyui)
    costs: dict[str, Any] = {
        "checkpoint_gb": each / 1e9,
        "disk_gb": run_bytes(saves, each, lora, states=args.save_last, loras=args.keep_loras) / 1e9,
        "free_disk_gb": free_bytes(Path(args.output_dir)) / 1e9,
        "max_steps": prepared.max_steps,
    }
    for name in ("device", "peak_memory_gb", "memory_gb", "spilled", "seconds_per_step"):
        costs[name] = attempt.get(name)
    if "seconds_per_step" in attempt:
        # A step's work grows with the length of its songs; the longest were measured.
        seconds = attempt["seconds_per_step"] * attempt["mean_share"]
        costs["hours"] = seconds * prepared.max_steps / 3600
    return costs


def _described(attempt: dict[str, Any]) -> str:
    if "failure" in attempt:
        return f"does not fit ({attempt['failure']})"
    used = f"{attempt['peak_memory_gb']:.1f} of {attempt['memory_gb']:.1f} GB"
    if attempt["spilled"]:
        return f"does not fit: {used}, spilled into main memory, {attempt['seconds_per_step']:.2f} s per step"
    return f"{'fits' if attempt['fits'] else 'does not fit'}: {used}, {attempt['seconds_per_step']:.2f} s per step"


def _print_costs(args: argparse.Namespace, prepared: Prepared, result: dict[str, Any]) -> None:
    print(f"device: {result['device']}")
    print(f"memory: {result['peak_memory_gb']:.1f} of {result['memory_gb']:.1f} GB at the most, nothing spilled")
    print(f"time: {result['seconds_per_step']:.2f} s per step on the longest songs")
    print(f"whole run: {result['hours']:.1f} hours for {prepared.max_steps} steps")
    print(
        f"disk: {result['disk_gb']:.1f} GB for checkpoints ({result['checkpoint_gb']:.2f} GB each), "
        f"{result['free_disk_gb']:.1f} GB free"
    )
    if result["savings"]:
        flags = " ".join(f"--{name} {value}" for name, value in result["savings"].items())
        print(f"with these savings: {flags}")
