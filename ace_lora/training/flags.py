"""The flags of a training: what they may be, and what is wrong with them by themselves. Needs no PyTorch."""

from __future__ import annotations

import argparse
import importlib.util
import math

from ace_lora.processes import outside_launcher
from ace_lora.records.format import SECONDS_PER_LATENT_FRAME
from ace_lora.training.optimizers import optimizer_problems

# As Lightning names them; the short forms are Lightning's too.
PRECISIONS = {"bf16-mixed": "bf16", "16-mixed": "fp16", "32-true": "fp32"}
SHORT_PRECISIONS = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}
MOST_WORKERS = 32  # threads; each holds a batch, and no disk is faster with more
# Those of Lightning's with which every process holds the whole adapter.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


def flag_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags by themselves."""
    problems = []

    def need(good: bool, flag: str, expected: str, advice: str) -> None:
        if not good:
            problems.append(f"--{flag} is {getattr(args, flag)!r}, expected {expected}. {advice}")

    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"--{name} is {value}, expected a finite number. Correct it.")
    every = args.save_every_n_train_steps
    need(
        args.sample_every >= 0 and (every < 1 or args.sample_every % every == 0),
        "sample_every",
        f"0 or a multiple of --save_every_n_train_steps {every}",
        "Samples are made after a save.",
    )
    need(
        not args.sample_every or args.logger != "none",
        "sample_every",
        "0 where --logger is none",
        "Samples go to the log folder; use --logger csv.",
    )
    for flag in ("batch_size", "accumulate_grad_batches", "save_every_n_train_steps", "devices", "num_nodes"):
        need(getattr(args, flag) >= 1, flag, "1 or more", "Use 1 if in doubt, 100 for saving.")
    need(
        0 <= args.num_workers <= MOST_WORKERS,
        "num_workers",
        f"0 to {MOST_WORKERS}",
        "Each is a thread that reads records; 0 is enough for most.",
    )
    for flag in ("warmup_steps", "val_every", "seed"):
        need(getattr(args, flag) >= 0, flag, "0 or more", "Use the default if in doubt.")
    for flag in ("tag_dropout", "speaker_dropout", "lyrics_dropout"):
        need(0 <= getattr(args, flag) <= 1, flag, "a probability from 0 to 1", "0 turns it off.")
    for flag in ("beta1", "beta2"):
        need(0 <= getattr(args, flag) < 1, flag, "a number from 0 to below 1", "The defaults are 0.9 and 0.99.")
    for flag in ("ssl_coeff", "weight_decay", "gradient_clip_val"):
        need(getattr(args, flag) >= 0, flag, "0 or more", "0 turns it off.")
    need(0 <= args.ema_decay < 1, "ema_decay", "a number from 0 to below 1", "0 turns it off, 0.99 is usual.")
    need(args.learning_rate > 0, "learning_rate", "a number above 0", "1e-4 is usual.")
    need(args.shift > 0, "shift", "a number above 0", "The published value is 3.")
    need(args.max_seconds == 0 or args.max_seconds >= 1, "max_seconds", "1 or more, or 0", "0 trains on whole songs.")
    need(args.max_steps >= 1 or args.max_steps == -1, "max_steps", "1 or more, or -1", "2000 is usual.")
    need(args.epochs >= 1 or args.epochs == -1, "epochs", "1 or more, or -1", "-1 leaves the length to --max_steps.")
    if args.max_steps == -1 and args.epochs == -1:
        problems.append("--max_steps and --epochs are both -1: the run would never end. Give one of them a number.")
    need(
        args.checkpointing in ("auto", "all", "none") or args.checkpointing.isdecimal(),
        "checkpointing",
        "auto, all, none or a number of blocks",
        "auto is usual.",
    )
    need(args.strategy in STRATEGIES, "strategy", "one of " + ", ".join(STRATEGIES), "auto is usual.")
    need(args.keep_loras >= 0, "keep_loras", "0 or more", "0 keeps all.")
    if args.accept_changes and not args.resume:
        problems.append("--accept_changes is of use with --resume only. Add --resume, or leave it out.")
    need(args.offload >= 0, "offload", "0 or more", "0 keeps all blocks on the card.")
    need(args.memory_limit_gb >= 0, "memory_limit_gb", "0 or more", "0 sets no limit.")
    need(args.val_songs >= -1, "val_songs", "-1 or more", "-1 chooses by itself.")
    need(
        wanted_precision(args) in PRECISIONS,
        "precision",
        "one of " + ", ".join(PRECISIONS),
        "LoRA weights are float32 in each of them; bf16-mixed is usual.",
    )
    if args.plan == "auto" and args.num_nodes > 1:
        problems.append(launcher_problem(f"--num_nodes is {args.num_nodes}."))
    elif args.plan == "auto" and (launcher := outside_launcher()):
        problems.append(launcher_problem(f"{launcher} has started several processes at once."))
    # Windows drops dots and spaces at the end of a name; ".." would lead out of the log folder.
    bad_name = not args.exp_name.strip(" .") or args.exp_name[-1] in " ."
    bad_name |= any(letter in '<>:"/\\|?*' for letter in args.exp_name)
    need(
        not bad_name, "exp_name", "a name that can be a folder's", 'Leave out < > : " / \\ | ? * and a dot at the end.'
    )
    if args.resume and args.last_lora_path:
        problems.append(
            "--resume and --last_lora_path are both given. --resume brings its own weights; leave one of them out."
        )
    return problems


def launcher_problem(reason: str) -> str:
    return (
        f"--plan auto makes its trial before it starts the other processes. {reason} Run --trial once, then give the "
        "flags that it found to all, without --plan."
    )


def package_problems(args: argparse.Namespace) -> list[str]:
    """Packages that the flags ask for and that are not installed."""
    problems = optimizer_problems(args.optimizer)
    if args.base_precision != "bf16" and importlib.util.find_spec("bitsandbytes") is None:
        problems.append(
            f"--base_precision {args.base_precision} needs the package 'bitsandbytes', which is not installed. "
            "Install it with: python start.py install small_cards - or choose --base_precision bf16."
        )
    needed = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(args.logger)
    if needed and importlib.util.find_spec(needed) is None:
        problems.append(
            f"--logger {args.logger} needs the package '{needed}', which is not installed. "
            f"Install it with: pip install {needed} - or choose --logger csv."
        )
    return problems


def wanted_precision(args: argparse.Namespace) -> str:
    """--precision by its long name, known or not."""
    return SHORT_PRECISIONS.get(args.precision, args.precision)


def max_frames(args: argparse.Namespace) -> int | None:
    """Latent frames of --max_seconds; None for whole songs."""
    return max(1, round(args.max_seconds / SECONDS_PER_LATENT_FRAME)) if args.max_seconds > 0 else None
