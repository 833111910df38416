"""What a training checks and decides before a model is loaded, so that every mistake is told at once."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput
from ace_lora.processes import is_first_process, outside_launcher

if TYPE_CHECKING:
    from ace_lora.device import Device
    from ace_lora.training.batches import Plan, TrainingSong
    from ace_lora.training.checkpoints import SavedState

# As Lightning names them; the short forms are Lightning's too.
PRECISIONS = {"bf16-mixed": "bf16", "16-mixed": "fp16", "32-true": "fp32"}
SHORT_PRECISIONS = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}
MOST_WORKERS = 32  # threads; each holds a batch, and no disk is faster with more
# Those of Lightning's with which every process holds the whole adapter.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
# What has to stay as it was for a resumed run to equal one that was never stopped.
FIT_FLAGS = (
    *("batch_size", "accumulate_grad_batches", "max_seconds", "tag_dropout", "lyrics_dropout", "shift", "ssl_coeff"),
    *("optimizer", "learning_rate", "beta1", "beta2", "weight_decay", "warmup_steps"),
    *("gradient_clip_val", "gradient_clip_algorithm", "ema_decay", "seed", "base_precision"),
)


def flag_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags by themselves."""
    problems = []

    def need(good: bool, flag: str, expected: str, advice: str) -> None:
        if not good:
            problems.append(f"--{flag} is {getattr(args, flag)!r}, expected {expected}. {advice}")

    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"--{name} is {value}, expected a finite number. Correct it.")
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
    need(args.offload >= 0, "offload", "0 or more", "0 keeps all blocks on the card.")
    need(args.memory_limit_gb >= 0, "memory_limit_gb", "0 or more", "0 sets no limit.")
    need(args.val_songs >= -1, "val_songs", "-1 or more", "-1 chooses by itself.")
    need(
        SHORT_PRECISIONS.get(args.precision, args.precision) in PRECISIONS,
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
    from ace_lora.training.optimizers import optimizer_problems

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


def choose_precision(args: argparse.Namespace) -> tuple[Device, str, list[str]]:
    """Device, Lightning's precision name and notes. Raises WrongInput when they do not fit together."""
    import torch

    from ace_lora.device import choose_device, has_native_bf16

    precision = SHORT_PRECISIONS.get(args.precision, args.precision)
    notes = []
    requested = args.device
    kind = choose_device(requested).torch_device
    if args.devices > 1 and kind.type != "cpu":
        if kind.type != "cuda" or kind.index or torch.cuda.device_count() < args.devices:
            raise WrongInput(
                f"--devices is {args.devices}, but PyTorch sees {torch.cuda.device_count()} NVIDIA cards for --device "
                f"{args.device}. Use --devices 1, or as many as there are with --device auto."
            )
        requested = f"cuda:{os.environ.get('LOCAL_RANK') or 0}"
    if precision == "bf16-mixed" and not has_native_bf16(kind):
        if kind.type == "mps":
            raise WrongInput("--precision bf16-mixed needs macOS 14 on this device. Use --precision 32-true.")
        precision = "16-mixed"
        notes.append("This card has no bf16: --precision 16-mixed is used instead.")
    if precision == "16-mixed" and kind.type == "mps":
        raise WrongInput(
            "--precision 16-mixed cannot be used on Apple MPS, which has no loss scaling. Use bf16-mixed or 32-true."
        )
    device = choose_device(requested, PRECISIONS[precision])
    if device.torch_device.type == "cpu" and device.dtype != torch.float32:
        notes.append("On a CPU, --precision 32-true is usually faster.")
    return device, precision, notes


def folder_problems(flag: str, folder: Path) -> list[str]:
    """Why nothing can be written to `folder`, which is made when it is needed."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        what = "is a file" if existing == folder.absolute() else f"lies below a file ('{existing}')"
        return [f"--{flag} '{folder}' {what}, expected a folder. Choose the name of a folder."]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"--{flag} '{folder}' cannot be written to. Choose a folder of yours, or change its permissions."]
    return []


def output_problems(output_dir: Path, resume: str | None) -> list[str]:
    """Why `output_dir` cannot be used for a new run."""
    from ace_lora.training.checkpoints import find_loras

    problems = folder_problems("output_dir", output_dir)
    if problems:
        return problems
    loras = find_loras(output_dir)
    if loras and resume is None:
        return [
            f"--output_dir '{output_dir}' already holds LoRAs ({len(loras)}, first: '{loras[0].name}'), and a new "
            "training must not mix with them. Go on with that training: add --resume. Or keep it and train "
            "elsewhere: choose another --output_dir, or move the folder away."
        ]
    return []


@dataclass
class Prepared:
    """Everything that was found out before a model was loaded."""

    device: Device
    precision: str
    songs: list[TrainingSong]
    lora_config: dict[str, Any]
    shapes: dict[str, tuple[int, int]]  # of the LoRA tensors
    weights: dict[str, Path]  # folders of the base weights
    base_fingerprint: str
    max_steps: int
    plan: Plan
    training_places: list[int]  # places in `songs` that are trained on
    validation_places: list[int]
    fit: dict[str, Any]  # what a resumed run must have in common with this one
    resume_from: Path | None = None
    state: SavedState | None = None
    notes: list[str] = field(default_factory=list)


def prepare(args: argparse.Namespace) -> Prepared:
    """Check everything that can be checked without loading a model; raises WrongInput with all problems."""
    problems = flag_problems(args) + package_problems(args)
    notes: list[str] = []

    def attempt(check: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return check(*arguments, **options)
        except WrongInput as error:
            problems.extend(error.problems)
            return None

    from ace_lora.base_weights.download import ensure_base_weights
    from ace_lora.base_weights.find import find_base_weights
    from ace_lora.lora.config import read_lora_config
    from ace_lora.lora.file import read_lora_file
    from ace_lora.lora.layers import adapter_shapes, lora_mismatches, target_layers
    from ace_lora.records.fingerprints import weights_identity
    from ace_lora.training.batches import scan_dataset
    from ace_lora.training.checkpoints import checkpoint_bytes, find_checkpoints, free_bytes

    chosen = attempt(choose_precision, args) if not any("--precision" in problem for problem in problems) else None
    output_dir = Path(args.output_dir)
    if is_first_process() and not args.trial_attempt:
        problems += output_problems(output_dir, args.resume)
        problems += folder_problems("log_dir", Path(args.log_dir)) if args.logger != "none" else []
    songs = attempt(scan_dataset, Path(args.dataset_path), need_ssl=args.ssl_coeff > 0)
    config = attempt(read_lora_config, Path(args.lora_config_path))
    last_lora = attempt(read_lora_file, last_lora_file(args)) if args.last_lora_path else None

    checkpoint_dir = Path(args.checkpoint_dir) if args.checkpoint_dir else None
    found = find_base_weights(checkpoint_dir, ["transformer", "text_encoder"])
    shapes: dict[str, tuple[int, int]] = {}
    if config:
        base = attempt(meta_transformer, found.get("transformer"))
        layers = attempt(target_layers, base, config) if base else None
        if base and args.offload > base.config.num_layers:
            problems.append(
                f"--offload is {args.offload}, but the base model has {base.config.num_layers} blocks. Use fewer."
            )
        if layers:
            shapes = adapter_shapes(layers, config["r"])
        if base and songs and "transformer" in found:
            problems += attempt(base_misfits, songs, base.config, found, need_ssl=args.ssl_coeff > 0) or []
    if shapes and last_lora:
        problems += lora_mismatches(last_lora, shapes)
        if last_lora.alphas:
            notes.append(f"'{last_lora.path}' holds alpha values for ComfyUI, which training does not need.")

    resume_from, state = None, None
    if args.resume:
        found_state = attempt(find_state, args, notes)
        if found_state:
            resume_from, state = found_state
    if shapes:
        parameters = sum(math.prod(shape) for shape in shapes.values())
        each = checkpoint_bytes(parameters, args.optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
        saves = -(-max(args.max_steps, args.save_every_n_train_steps) // max(1, args.save_every_n_train_steps))
        # One more than is kept, because the new one is written before the oldest goes.
        needed = each * (min(saves, args.save_last) + 1 if args.save_last > 0 else saves)
        if resume_from:  # what it has saved so far is on the disk already
            needed = max(each, needed - each * len(find_checkpoints(output_dir)))
        free = free_bytes(output_dir)
        if needed > free:
            problems.append(
                f"The checkpoints need {needed / 1e9:.1f} GB in '{output_dir}' ({each / 1e9:.2f} GB each), but "
                f"{free / 1e9:.1f} GB are free. Free the disk, choose another --output_dir, or lower --save_last."
            )

    parts = ["transformer", "text_encoder"]
    if songs and args.ssl_coeff > 0 and any(song.ssl == "at_training" for song in songs):
        parts += ["mert", "mhubert"]
    if songs and crops_lyrics(args, songs):
        parts.append("lyric_vocabulary")
    if problems:
        # Missing weights are listed with the rest, but nothing is downloaded for a run that cannot start.
        from ace_lora.base_weights.find import missing

        absent = missing(checkpoint_dir, parts)
        if absent:
            problems.append("Base weights that are not there yet: " + "; ".join(map(str, absent)) + ".")
        raise WrongInput(problems)
    weights = ensure_base_weights(checkpoint_dir, parts)
    if "transformer" not in found:
        shapes = adapter_shapes(target_layers(meta_transformer(weights["transformer"]), config), config["r"])

    assert chosen is not None
    device, precision, precision_notes = chosen
    return finish_preparation(
        args,
        Prepared(
            device=device,
            precision=precision,
            songs=songs,
            lora_config=config,
            shapes=shapes,
            weights=weights,
            base_fingerprint=weights_identity(weights["transformer"]),
            max_steps=args.max_steps,
            plan=None,  # type: ignore[arg-type]
            training_places=[],
            validation_places=[],
            fit={},
            resume_from=resume_from,
            state=state,
            notes=notes + precision_notes,
        ),
    )


def finish_preparation(args: argparse.Namespace, prepared: Prepared) -> Prepared:
    """Divide the songs, make the plan and see whether a state fits to it all."""
    from ace_lora.training.batches import Plan
    from ace_lora.training.optimizers import optimizer_warnings
    from ace_lora.training.validation import choose_songs

    songs = prepared.songs
    held_out: set[int] = set()
    if args.val_every > 0:
        prepared.validation_places, are_held_out = choose_songs([song.name for song in songs], args.val_songs)
        held_out = set(prepared.validation_places) if are_held_out else set()
    prepared.training_places = [place for place in range(len(songs)) if place not in held_out]
    if not prepared.training_places:
        raise WrongInput(
            f"--val_songs {args.val_songs} holds out all {len(songs)} songs. Hold out fewer, or use --val_songs 0."
        )
    limit = max_frames(args)
    prepared.plan = Plan(
        [min(songs[place].frames, limit or songs[place].frames) for place in prepared.training_places],
        seed=args.seed,
        batch_size=args.batch_size,
        accumulate=args.accumulate_grad_batches,
        processes=args.devices * args.num_nodes,
    )
    if args.epochs > 0:
        by_epochs = prepared.plan.steps_per_epochs(args.epochs)
        prepared.max_steps = by_epochs if args.max_steps == -1 else min(args.max_steps, by_epochs)
    prepared.fit = fit_of(args, prepared)
    if prepared.state:
        check_fit(prepared)
    prepared.notes += optimizer_warnings(
        args.optimizer,
        learning_rate=args.learning_rate,
        beta2=args.beta2,
        max_steps=prepared.max_steps,
        clip=args.gradient_clip_val,
    )
    if args.speaker_dropout > 0:
        prepared.notes.append("--speaker_dropout has no effect: ACE-Step v1's speaker vectors are all zero.")
    if args.batch_size > len(prepared.training_places):
        prepared.notes.append(
            f"--batch_size {args.batch_size}, but there are {len(prepared.training_places)} songs: batches hold "
            "each song once. Use --accumulate_grad_batches for larger steps."
        )
    return prepared


def last_lora_file(args: argparse.Namespace) -> Path:
    """The file meant by --last_lora_path, which may be the folder of a checkpoint."""
    from ace_lora.lora.file import WEIGHTS_NAME

    path = Path(args.last_lora_path)
    return path / WEIGHTS_NAME if path.is_dir() else path


def crops_lyrics(args: argparse.Namespace, songs: list[TrainingSong]) -> bool:
    """Whether lyrics have to be tokenised while training, because pieces of songs with timed lyrics are trained."""
    from ace_lora.training.batches import has_timed_lyrics

    limit = max_frames(args)
    return limit is not None and any(song.frames > limit and has_timed_lyrics(song.metadata) for song in songs)


def max_frames(args: argparse.Namespace) -> int | None:
    """Latent frames of --max_seconds."""
    from ace_lora.records.format import SECONDS_PER_LATENT_FRAME

    return max(1, round(args.max_seconds / SECONDS_PER_LATENT_FRAME)) if args.max_seconds > 0 else None


def meta_transformer(folder: Path | None) -> Any:
    """The transformer without weights, for names and shapes; the published one where it is not downloaded yet."""
    import torch

    from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

    try:
        config = TransformerConfig.from_json(folder / "config.json") if folder else TransformerConfig()
    except (ValueError, TypeError) as error:
        raise WrongInput(f"The base weights in '{folder}' cannot be used: {error}") from error
    with torch.device("meta"):
        return ACEStepTransformer(config)


def base_misfits(songs: list[TrainingSong], config: Any, found: dict[str, Path], *, need_ssl: bool) -> list[str]:
    """Records that were made with other base weights, whose tokens or features these do not know."""
    from ace_lora.base_weights.model_config import read_model_config
    from ace_lora.records.record import needed_of_base

    widths = dict(zip(("mert", "mhubert"), config.ssl_latent_dims, strict=False)) if need_ssl else {}
    vocabularies = {"lyric_tokens": config.lyric_encoder_vocab_size}
    if "text_encoder" in found:
        vocabularies["text_tokens"] = read_model_config(found["text_encoder"]).get("vocab_size", math.inf)
    wrong = []
    for song in songs:
        needed = needed_of_base(song.path)
        reasons = [
            f"{name.replace('_', ' ')} up to {needed[name] - 1}, the base has {size}"
            for name, size in vocabularies.items()
            if needed[name] > size
        ]
        reasons += [
            f"{name} features of width {needed[name]}, the base expects {width}"
            for name, width in widths.items()
            if needed.get(name, width) != width
        ]
        if reasons:
            wrong.append(f"'{song.path.name}' ({'; '.join(reasons)})")
    if not wrong:
        return []
    return [
        f"{len(wrong)} of {len(songs)} records were made with other base weights than those in "
        f"'{found['transformer'].parent}': {', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}. "
        "Give the --checkpoint_dir that they were made with, or preprocess the songs again with this one."
    ]


def fit_of(args: argparse.Namespace, prepared: Prepared) -> dict[str, Any]:
    """What has to be equal for a run to go on as if it had never been stopped, by the words of the messages."""
    songs = prepared.songs
    return {
        "base model": prepared.base_fingerprint,
        "LoRA configuration": {
            **prepared.lora_config,
            "target_modules": sorted(prepared.lora_config["target_modules"]),
        },
        "songs": {songs[place].name: songs[place].digest for place in prepared.training_places},
        "--precision": prepared.precision,
        "processes": prepared.plan.processes,
        **{f"--{flag}": getattr(args, flag) for flag in FIT_FLAGS},
    }


def find_state(args: argparse.Namespace, notes: list[str]) -> tuple[Path, SavedState] | None:
    """The checkpoint to go on from; None when --resume names none and there is none."""
    from ace_lora.training.checkpoints import (
        STATE_JSON,
        find_loras,
        newest_state,
        read_state,
        read_state_values,
        run_id_of,
    )

    output_dir = Path(args.output_dir)
    if args.resume == "auto":
        checkpoint, damaged = newest_state(output_dir)
        passed_over = [f"Passed over: {note}" for note in damaged]
        notes += passed_over
        if checkpoint is None:
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
        return checkpoint.folder, read_state(checkpoint.folder)
    folder = Path(args.resume)
    if folder.is_file() and (folder.parent / STATE_JSON).is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise WrongInput(
            f"--resume '{args.resume}' {'belongs to no checkpoint' if folder.exists() else 'does not exist'}. "
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
    return folder, read_state(folder)


def check_fit(prepared: Prepared) -> None:
    """Raise WrongInput with every difference between the state and this run."""
    assert prepared.state is not None
    before = prepared.state.values["fit"]
    problems = []
    start_anew = "To train on from its weights with other settings, use --last_lora_path and another --output_dir."
    for name, now in prepared.fit.items():
        then = before.get(name)
        if then == now:
            continue
        if name == "songs":
            changed = sorted(song for song in {*then, *now} if then.get(song) != now.get(song))
            problems.append(
                f"The data set is not that of '{prepared.resume_from}': {len(changed)} songs were added, removed or "
                f"changed (first: '{changed[0]}'). {start_anew}"
            )
        elif name == "base model":
            problems.append(
                f"The base model is not that of '{prepared.resume_from}'. Give the one it was trained on with "
                "--checkpoint_dir."
            )
        else:
            problems.append(
                f"{name} was {json.dumps(then)} in '{prepared.resume_from}' and is {json.dumps(now)} now. "
                f"Give the earlier value. {start_anew}"
            )
    if problems:
        raise WrongInput(problems)
