"""Train a LoRA of ACE-Step v1 on the records of preprocess_dataset_new.py.

Reads `--dataset_path` (records), the LoRA configuration and the base weights. Writes checkpoints to `--output_dir`
(`epoch=E-step=S_lora/pytorch_lora_weights.safetensors`) and curves to `--log_dir`.

    python trainer_new.py --dataset_path Taudio/xxx_prep
    python trainer_new.py --dataset_path Taudio/xxx_prep --resume        # go on where a run was stopped
    python trainer_new.py --dataset_path Taudio/xxx_prep --trial         # what will it cost?

On a CPU, in seconds, with records made with the same base weights:

    python -m ace_lora.tiny_base tiny
    python trainer_new.py --checkpoint_dir tiny --dataset_path xxx_prep --max_steps 20 --precision 32-true

A file named STOP in `--output_dir`, Ctrl+C, SIGTERM and CTRL_BREAK end the run after the step under way, with
everything saved.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import EXIT_INTERRUPTED, StepFailed, WrongInput, run_script

if TYPE_CHECKING:
    import torch

    from ace_lora.batches import Plan, TrainingSong
    from ace_lora.checkpoints import SavedState
    from ace_lora.device import Device

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "prodigy_schedule_free")
LOGGERS = ("tensorboard", "wandb", "csv", "none")
# As Lightning names them; the short forms are Lightning's too.
PRECISIONS = {"bf16-mixed": "bf16", "16-mixed": "fp16", "32-true": "fp32"}
SHORT_PRECISIONS = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}
# What has to stay as it was for a resumed run to equal one that was never stopped.
FIT_FLAGS = (
    *("batch_size", "accumulate_grad_batches", "max_seconds", "tag_dropout", "lyrics_dropout", "shift", "ssl_coeff"),
    *("optimizer", "learning_rate", "beta1", "beta2", "weight_decay", "warmup_steps"),
    *("gradient_clip_val", "gradient_clip_algorithm", "ema_decay", "seed"),
)
TEXT_ENCODER_GPU_GB = 15  # cards with at least so much memory also hold the text encoder (0.6 GB)
LYRIC_CACHE_SHARE = 0.25  # of the free main memory, for the lyric states of all songs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a LoRA of ACE-Step v1. A file named STOP in --output_dir ends the run after the step under "
        "way, with everything saved; --resume goes on from there."
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_path", required=True, help="folder of records made by preprocess_dataset_new.py")
    data.add_argument("--batch_size", type=int, default=1, help="songs per batch (default: 1)")
    data.add_argument(
        "--num_workers", type=int, default=0, help="processes that read records; 0: a thread, enough for most (default)"
    )
    data.add_argument(
        "--max_seconds", type=float, default=0.0, help="train on random pieces of so many seconds; 0: whole songs"
    )
    data.add_argument(
        "--tag_dropout",
        type=float,
        default=0.5,
        help="probability of leaving out a tag; tags are shuffled (default: 0.5)",
    )
    data.add_argument(
        "--speaker_dropout",
        type=float,
        default=0.0,
        help="probability of leaving out the speaker vector, which is zero in ACE-Step v1 anyway (default: 0)",
    )
    data.add_argument(
        "--lyrics_dropout", type=float, default=0.0, help="probability of leaving out the lyrics (default: 0)"
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint_dir", default=None, help="folder of the base weights (default: ACE-Step's own cache)"
    )
    model.add_argument(
        "--lora_config_path",
        default="./config/lora_config_transformer_only.json",
        help="rank, alpha and layers of the LoRA (default: ./config/lora_config_transformer_only.json)",
    )
    model.add_argument("--last_lora_path", default=None, help="LoRA file whose weights the training starts from")
    model.add_argument(
        "--shift", type=float, default=3.0, help="shift of the noise schedule (default: 3, as published)"
    )
    model.add_argument(
        "--ssl_coeff", type=float, default=1.0, help="weight of the MERT and mHuBERT losses; 0: off (default: 1)"
    )

    steps = parser.add_argument_group("steps and optimizer")
    steps.add_argument(
        "--max_steps", type=int, default=2000, help="optimizer steps; -1: as many as --epochs gives (default: 2000)"
    )
    steps.add_argument(
        "--epochs", type=int, default=-1, help="turns of each song; -1: as many as --max_steps gives (default)"
    )
    steps.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: adamw")
    steps.add_argument("--learning_rate", type=float, default=1e-4, help="default: 1e-4; 1 for the prodigy optimizers")
    steps.add_argument("--beta1", type=float, default=0.9, help="average of the gradients (default: 0.9)")
    steps.add_argument("--beta2", type=float, default=0.99, help="average of their squares (default: 0.99)")
    steps.add_argument("--weight_decay", type=float, default=1e-2, help="default: 1e-2")
    steps.add_argument("--warmup_steps", type=int, default=10, help="steps of rising learning rate (default: 10)")
    steps.add_argument("--accumulate_grad_batches", type=int, default=1, help="batches per optimizer step (default: 1)")
    steps.add_argument(
        "--gradient_clip_val", type=float, default=1.0, help="largest gradient; 0: no limit (default: 1)"
    )
    steps.add_argument("--gradient_clip_algorithm", choices=("norm", "value"), default="norm", help="default: norm")
    steps.add_argument(
        "--ema_decay",
        type=float,
        default=0.0,
        help="save a moving average of the LoRA, 0.99 is usual; 0: off (default)",
    )
    steps.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")

    saving = parser.add_argument_group("saving and stopping")
    saving.add_argument("--output_dir", default="checkpoints", help="folder of the checkpoints (default: checkpoints)")
    saving.add_argument(
        "--save_every_n_train_steps",
        type=int,
        default=100,
        help="steps between checkpoints (default: 100); the last is saved too",
    )
    saving.add_argument(
        "--save_last", type=int, default=5, help="checkpoints of this run to keep; 0 or less: all (default: 5)"
    )
    saving.add_argument("--save_comfyui", action="store_true", help="also save a file that ComfyUI plays at strength 1")
    saving.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        default=None,
        metavar="CHECKPOINT",
        help="go on from a checkpoint folder; without a name: from the newest in --output_dir",
    )

    report = parser.add_argument_group("reports")
    report.add_argument(
        "--exp_name", default="ace_step_lora", help="name of the run in the logs (default: ace_step_lora)"
    )
    report.add_argument(
        "--logger", choices=LOGGERS, default="tensorboard", help="beside metrics.csv, which only `none` leaves out"
    )
    report.add_argument("--log_dir", default="logs", help="folder of the logs (default: logs)")
    report.add_argument(
        "--val_every", type=int, default=0, help="steps between measurements of the validation loss; 0: off (default)"
    )
    report.add_argument(
        "--val_songs",
        type=int,
        default=-1,
        help="songs held out for it; 0: measure on training songs; -1: every tenth of 20 songs and more (default)",
    )

    machine = parser.add_argument_group("machine and memory")
    machine.add_argument(
        "--precision",
        default="bf16-mixed",
        help="bf16-mixed (default), 16-mixed or 32-true; LoRA weights are always float32",
    )
    machine.add_argument("--device", default="auto", help="auto (default), cuda, cuda:N, mps or cpu")
    machine.add_argument(
        "--devices", type=int, default=1, help="cards (or processes on a CPU) of this machine (default: 1)"
    )
    machine.add_argument("--num_nodes", type=int, default=1, help="machines (default: 1)")
    machine.add_argument(
        "--strategy", default="auto", help="Lightning's strategy for several cards (default: auto, which is ddp)"
    )
    machine.add_argument(
        "--text_encoder",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where the prompt is encoded (default: auto)",
    )
    return parser.parse_args(argv)


# --- Checks before anything is loaded ---


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
    for flag in ("num_workers", "warmup_steps", "val_every", "seed"):
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
    need(args.val_songs >= -1, "val_songs", "-1 or more", "-1 chooses by itself.")
    need(
        SHORT_PRECISIONS.get(args.precision, args.precision) in PRECISIONS,
        "precision",
        "one of " + ", ".join(PRECISIONS),
        "LoRA weights are float32 in each of them; bf16-mixed is usual.",
    )
    bad_name = not args.exp_name.strip() or any(letter in '<>:"/\\|?*' for letter in args.exp_name)
    need(not bad_name, "exp_name", "a name that can be a folder's", 'Leave out < > : " / \\ | ? *.')
    if args.resume and args.last_lora_path:
        problems.append(
            "--resume and --last_lora_path are both given. --resume brings its own weights; leave one of them out."
        )
    return problems


def package_problems(args: argparse.Namespace) -> list[str]:
    """Packages that the flags ask for and that are not installed."""
    from ace_lora.optimizers import optimizer_problems

    problems = optimizer_problems(args.optimizer)
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
    kind = choose_device(args.device).torch_device
    if precision == "bf16-mixed" and not has_native_bf16(kind):
        if kind.type == "mps":
            raise WrongInput("--precision bf16-mixed needs macOS 14 on this device. Use --precision 32-true.")
        precision = "16-mixed"
        notes.append("This card has no bf16: --precision 16-mixed is used instead.")
    if precision == "16-mixed" and kind.type == "mps":
        raise WrongInput(
            "--precision 16-mixed cannot be used on Apple MPS, which has no loss scaling. Use bf16-mixed or 32-true."
        )
    device = choose_device(args.device, PRECISIONS[precision])
    if device.torch_device.type == "cpu" and device.dtype != torch.float32:
        notes.append("On a CPU, --precision 32-true is usually faster.")
    return device, precision, notes


def output_problems(output_dir: Path, resume: str | None) -> list[str]:
    """Why `output_dir` cannot be used for a new run."""
    from ace_lora.checkpoints import find_loras

    if output_dir.exists() and not output_dir.is_dir():
        return [f"--output_dir '{output_dir}' is a file. Choose the name of a folder."]
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

    from ace_lora.adapter import adapter_shapes, lora_mismatches, read_lora_config, read_lora_file, target_layers
    from ace_lora.base_weights import ensure_base_weights, find_base_weights
    from ace_lora.batches import scan_dataset
    from ace_lora.checkpoints import checkpoint_bytes, free_bytes
    from ace_lora.fingerprints import weights_identity

    chosen = attempt(choose_precision, args) if not any("--precision" in problem for problem in problems) else None
    output_dir = Path(args.output_dir)
    problems += output_problems(output_dir, args.resume) if is_first_process() else []
    songs = attempt(scan_dataset, Path(args.dataset_path), need_ssl=args.ssl_coeff > 0)
    config = attempt(read_lora_config, Path(args.lora_config_path))
    last_lora = attempt(read_lora_file, Path(args.last_lora_path)) if args.last_lora_path else None

    checkpoint_dir = Path(args.checkpoint_dir) if args.checkpoint_dir else None
    found = find_base_weights(checkpoint_dir, ["transformer"])
    shapes: dict[str, tuple[int, int]] = {}
    if config:
        base = attempt(meta_transformer, found.get("transformer"))
        layers = attempt(target_layers, base, config) if base else None
        if layers:
            shapes = adapter_shapes(layers, config["r"])
    if shapes and last_lora:
        problems += lora_mismatches(last_lora, shapes)
        if last_lora.alphas:
            notes.append(f"'{last_lora.path}' holds alpha values for ComfyUI, which training does not need.")

    resume_from, state = None, None
    if args.resume:
        result = attempt(find_state, args, notes)
        if result:
            resume_from, state = result
    if shapes:
        parameters = sum(math.prod(shape) for shape in shapes.values())
        each = checkpoint_bytes(parameters, args.optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
        saves = -(-max(args.max_steps, args.save_every_n_train_steps) // max(1, args.save_every_n_train_steps))
        # One more than is kept, because the new one is written before the oldest goes.
        needed = each * (min(saves, args.save_last) + 1 if args.save_last > 0 else saves)
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
        from ace_lora.base_weights import missing

        absent = missing(checkpoint_dir, parts)
        if absent:
            problems.append("Base weights that are not there yet: " + "; ".join(map(str, absent)) + ".")
        raise WrongInput(problems)
    weights = ensure_base_weights(checkpoint_dir, parts)
    if "transformer" not in found:
        shapes = adapter_shapes(target_layers(meta_transformer(weights["transformer"]), config), config["r"])

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
    from ace_lora.batches import Plan
    from ace_lora.optimizers import optimizer_warnings
    from ace_lora.validation import choose_songs

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


def crops_lyrics(args: argparse.Namespace, songs: list[TrainingSong]) -> bool:
    """Whether lyrics have to be tokenised while training, because pieces of songs with timed lyrics are trained."""
    from ace_lora.batches import has_timed_lyrics

    limit = max_frames(args)
    return limit is not None and any(song.frames > limit and has_timed_lyrics(song.metadata) for song in songs)


def max_frames(args: argparse.Namespace) -> int | None:
    """Latent frames of --max_seconds."""
    from ace_lora.records import SECONDS_PER_LATENT_FRAME

    return max(1, round(args.max_seconds / SECONDS_PER_LATENT_FRAME)) if args.max_seconds > 0 else None


def meta_transformer(folder: Path | None) -> Any:
    """The transformer without weights, for names and shapes; the published one where it is not downloaded yet."""
    import torch

    from ace_lora.transformer import ACEStepTransformer, TransformerConfig

    try:
        config = TransformerConfig.from_json(folder / "config.json") if folder else TransformerConfig()
    except (ValueError, TypeError) as error:
        raise WrongInput(f"The base weights in '{folder}' cannot be used: {error}") from error
    with torch.device("meta"):
        return ACEStepTransformer(config)


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
    from ace_lora.checkpoints import find_loras, newest_state, read_state, read_state_values, run_id_of

    output_dir = Path(args.output_dir)
    if args.resume == "auto":
        checkpoint, damaged = newest_state(output_dir)
        notes += [f"Passed over: {note}" for note in damaged]
        if checkpoint is None:
            loras = find_loras(output_dir)
            if loras:
                raise WrongInput(
                    f"--resume: '{output_dir}' holds LoRAs ('{loras[0].name}', …) but no training state to go on "
                    "from. Start a new training from such a file with --last_lora_path and another --output_dir."
                )
            notes.append(f"--resume: there is no checkpoint in '{output_dir}' yet, so training starts at step 0.")
            return None
        return checkpoint.folder, read_state(checkpoint.folder)
    folder = Path(args.resume)
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise WrongInput(
            f"--resume '{args.resume}' does not exist. Expected a folder such as checkpoints/epoch=0-step=100_lora. "
            "Give its path, or --resume alone for the newest checkpoint of --output_dir."
        )
    run_id = read_state_values(folder).get("run_id")
    foreign = [path for path in find_loras(output_dir) if run_id_of(path) != run_id]
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


# --- Processes ---


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes, when Lightning has started several."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def say(text: str) -> None:
    if is_first_process():
        print(text)


# --- Stopping ---


class StopRequest:
    """Whether someone wants the run to end: a file named STOP in the output folder, or a signal."""

    def __init__(self, output_dir: Path):
        from ace_lora.checkpoints import STOP_NAME

        self.path = output_dir / STOP_NAME
        self.signalled = False
        self._earlier: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.signalled or self.path.exists()

    def forget_file(self) -> bool:
        """Remove the STOP file; whether there was one."""
        there = self.path.exists()
        self.path.unlink(missing_ok=True)
        return there

    def install(self) -> None:
        """From now on the first signal asks to stop after the step; a second one interrupts at once."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                self._earlier[number] = signal.getsignal(number)
                signal.signal(number, self._on_signal)

    def remove(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _on_signal(self, number: int, frame: object) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        say("Stopping after this step, then saving. (Once more: stop at once, without saving.)")


# --- The run ---


def main(args: argparse.Namespace) -> None:
    stop = StopRequest(Path(args.output_dir))
    if is_first_process() and not flag_problems(args) and stop.forget_file():
        say(f"Removed '{stop.path}', which an earlier run had left.")
    prepared = prepare(args)
    say_settings(args, prepared)
    if prepared.state and prepared.state.values["step"] >= prepared.max_steps:
        say(
            f"'{prepared.resume_from}' is at step {prepared.state.values['step']} of {prepared.max_steps}: this "
            "training is finished. Give a higher --max_steps to go on."
        )
        return
    run = Run(args, prepared, stop)
    run.load()
    run.train()


def say_settings(args: argparse.Namespace, prepared: Prepared) -> None:
    """The resolved settings, and what was noticed about them."""
    songs = prepared.songs
    say("settings:")
    for name, value in vars(args).items():
        say(f"  --{name} {value}")
    say(f"device: {prepared.device.reason}; precision: {prepared.precision}, LoRA float32")
    say(f"base weights: {prepared.weights['transformer']}")
    count = sum(math.prod(shape) for shape in prepared.shapes.values())
    config = prepared.lora_config
    say(
        f"LoRA: rank {config['r']}, alpha {config['lora_alpha']}, rsLoRA {config['use_rslora']}, "
        f"{len(prepared.shapes) // 2} layers, {count:,} parameters"
    )
    seconds = sum(songs[place].seconds for place in prepared.training_places)
    say(
        f"data: {len(prepared.training_places)} songs, {seconds / 60:.1f} minutes, "
        f"{prepared.plan.batches_per_epoch} batches per epoch; {prepared.max_steps} steps"
    )
    if prepared.validation_places:
        held_out = not set(prepared.validation_places) & set(prepared.training_places)
        names = ", ".join(f"'{songs[place].name}'" for place in prepared.validation_places)
        say(f"validation every {args.val_every} steps: {'held-out' if held_out else 'training'} songs {names}")
    for note in prepared.notes:
        say(f"note: {note}")


class Run:
    """One training from loading to its last checkpoint."""

    def __init__(self, args: argparse.Namespace, prepared: Prepared, stop: StopRequest):
        self.args = args
        self.prepared = prepared
        self.stop = stop
        self.output_dir = Path(args.output_dir)
        values = prepared.state.values if prepared.state else {}
        self.first_step: int = values.get("step", 0)
        self.run_id: str = values.get("run_id") or uuid.uuid4().hex
        self.last_saved: Path | None = prepared.resume_from
        self.saved_step = self.first_step

    # Loading

    def load(self) -> None:
        """Load text encoder and transformer, put the adapter in, and cache what stays constant."""
        import torch
        from ace_lora.text_encoder import comma_id, load_text_tokenizer

        from ace_lora import adapter
        from ace_lora.batches import SampleSettings, SongDataset
        from ace_lora.device import set_tf32
        from ace_lora.flow_matching import build_schedule
        from ace_lora.strict_loading import WrongWeights
        from ace_lora.training import ConditionEncoder
        from ace_lora.transformer import load_transformer

        args, prepared = self.args, self.prepared
        self.device = prepared.device.torch_device
        if self.device.type == "cuda":
            set_tf32()
        all_songs = SongDataset(
            prepared.songs,
            SampleSettings(
                seed=args.seed,
                tag_dropout=args.tag_dropout,
                lyrics_dropout=args.lyrics_dropout,
                ssl=args.ssl_coeff > 0,
                max_frames=max_frames(args),
                comma_id=comma_id(load_text_tokenizer(prepared.weights["text_encoder"])),
                lyric_vocabulary=prepared.weights.get("lyric_vocabulary"),
                embedding_rows=meta_transformer(prepared.weights["transformer"]).config.lyric_encoder_vocab_size,
            ),
            self.compute_features(),
        )
        encode_text = self.load_text_encoder()

        say("loading the transformer …")
        try:
            self.model = load_transformer(
                prepared.weights["transformer"], dtype=prepared.device.dtype, device=self.device
            )
        except WrongWeights as error:
            raise StepFailed(str(error)) from error
        adapter.inject_adapter(self.model, prepared.lora_config, seed=args.seed)
        self.adapter = adapter.adapter_tensors(self.model)
        if prepared.state:
            with torch.no_grad():
                for key, parameter in self.adapter.items():
                    parameter.copy_(prepared.state.tensors[f"adapter/{key}"])
        elif args.last_lora_path:
            adapter.load_lora(self.model, Path(args.last_lora_path))
            say(f"starting from the weights of '{args.last_lora_path}'")
        if args.ssl_coeff == 0:
            # The heads do not run, so adapters in them stay as they are.
            for key, parameter in self.adapter.items():
                if key.startswith("projectors."):
                    parameter.requires_grad_(False)
        self.trained = {key: parameter for key, parameter in self.adapter.items() if parameter.requires_grad}
        self.model.eval()
        self.flow = build_schedule(args.shift)
        lyric_states = self.cache_lyrics()
        self.conditions = ConditionEncoder(encode_text, lyric_states)
        self.dataset = all_songs

    def load_text_encoder(self) -> Any:
        """A function from ids [1,Lt] to states [1,Lt,text width]."""
        import torch
        from ace_lora.text_encoder import load_text_encoder

        on_card = self.args.text_encoder == "gpu"
        if self.args.text_encoder == "auto" and self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory / 2**30
            on_card = memory >= TEXT_ENCODER_GPU_GB
        device = self.device if on_card else torch.device("cpu")
        dtype = self.prepared.device.dtype if device.type != "cpu" else torch.float32
        encoder = load_text_encoder(self.prepared.weights["text_encoder"], device=device, dtype=dtype)
        if device.type != self.device.type:
            say("text encoder: in main memory, ahead of the card")

        def encode(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            ids = ids.to(device)
            mask = torch.ones_like(ids) if mask is None else mask.to(device)
            return encoder(input_ids=ids, attention_mask=mask).last_hidden_state

        return encode

    def compute_features(self) -> dict[int, dict[str, torch.Tensor]]:
        """SSL features of the songs whose records leave them to the training."""
        places = [
            place
            for place, song in enumerate(self.prepared.songs)
            if self.args.ssl_coeff > 0 and song.ssl == "at_training"
        ]
        if not places:
            return {}
        from ace_lora.training_features import compute_features

        return compute_features(self.prepared.songs, places, self.prepared.weights, self.prepared.device)

    def cache_lyrics(self) -> dict[str, torch.Tensor] | None:
        """Lyric states [Ll,D] by song, and the lyric branch off the card; None where every step needs it."""
        import torch

        from ace_lora.records import read_record

        if any(key.startswith(("lyric_encoder.", "lyric_proj.")) for key in self.adapter):
            return None
        if crops_lyrics(self.args, self.prepared.songs):
            say("lyric branch: in every step, because pieces of songs with timed lyrics are trained")
            return None
        size = torch.empty((), dtype=self.prepared.device.dtype).element_size() * self.model.config.inner_dim
        needed = size * sum(song.lyric_tokens for song in self.prepared.songs)
        free = free_main_memory()
        if free is not None and needed > LYRIC_CACHE_SHARE * free:
            say(f"lyric branch: in every step, because {needed / 1e9:.1f} GB for its results are too much to keep")
            return None
        states = {}
        with torch.no_grad():
            for song in self.prepared.songs:
                ids = read_record(song.path, ssl=False).lyric_token_ids
                states[song.name] = self.model.encode_lyrics(ids[None].to(self.device))[0].cpu()
        for module in (self.model.lyric_encoder, self.model.lyric_embs, self.model.lyric_proj):
            module.to("meta")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return states

    # Training

    def train(self) -> None:
        import torch

        from ace_lora.batches import Prefetcher, SongDataset, batch_stream
        from ace_lora.checkpoints import remove_leftovers, unpack
        from ace_lora.metrics import MetricsLog, SmoothedLoss, StepLines, silence_lightning
        from ace_lora.optimizers import build_optimizer
        from ace_lora.training import AdapterAverage, LoraTraining, NotFinite, StepSettings
        from ace_lora.validation import Validation

        args, prepared = self.args, self.prepared
        silence_lightning()
        self.optimizer = build_optimizer(
            args.optimizer,
            self.trained.values(),
            learning_rate=args.learning_rate,
            betas=(args.beta1, args.beta2),
            weight_decay=args.weight_decay,
        )
        self.average = AdapterAverage(self.adapter, args.ema_decay) if args.ema_decay > 0 else None
        self.smooth = SmoothedLoss()
        self.scaler = torch.amp.GradScaler(self.device.type) if prepared.precision == "16-mixed" else None
        earlier_metrics = None
        if prepared.state:
            values, tensors = prepared.state.values, prepared.state.tensors
            self.optimizer.load_state_dict(unpack(values["optimizer"], tensors))
            if self.average:
                self.average.updates = values["ema_updates"]
                self.average.tensors = {key: tensors[f"ema/{key}"].to(self.device) for key in self.adapter}
            if self.scaler:
                self.scaler.load_state_dict(values["scaler"])
            self.smooth = SmoothedLoss(*values["loss_smooth"])
            earlier_metrics = Path(values["metrics"]) if values["metrics"] else None
            say(
                f"resuming at step {self.first_step}/{prepared.max_steps} (epoch {values['epoch']}, loss "
                f"{self.smooth.value:.4f}) from '{prepared.resume_from}'"
            )
        else:
            say(f"starting at step 0/{prepared.max_steps}")
        prepared.state = None  # its tensors are in the model and the optimizer now

        training_songs = SongDataset(
            [prepared.songs[place] for place in prepared.training_places],
            self.dataset.settings,
            {
                new: self.dataset.features[old]
                for new, old in enumerate(prepared.training_places)
                if old in self.dataset.features
            },
        )
        stream = batch_stream(
            training_songs,
            prepared.plan,
            first=self.first_step,
            last=prepared.max_steps,
            process=process_number(),
            num_workers=args.num_workers,
        )

        def ready(batch: Any) -> Any:
            batch = self.conditions(batch)
            return batch.pin_memory() if self.device.type == "cuda" else batch

        batches = Prefetcher(stream, ready, (prepared.max_steps - self.first_step) * args.accumulate_grad_batches)
        self.validation = None
        if prepared.validation_places and is_first_process():
            self.validation = Validation(self.dataset, prepared.validation_places, self.conditions)
        self.lines = StepLines(prepared.max_steps)
        self.module = LoraTraining(
            self.model,
            self.flow,
            self.trained,
            self.optimizer,
            StepSettings(
                optimizer=args.optimizer,
                learning_rate=args.learning_rate,
                warmup_steps=args.warmup_steps,
                max_steps=prepared.max_steps,
                ssl_coeff=args.ssl_coeff,
            ),
            plan=prepared.plan,
            batches=batches,
            on_start=self.on_start,
            on_step=self.on_step,
            first_step=self.first_step,
            average=self.average,
        )
        if is_first_process():
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.output_dir)
        settings = {**vars(args), "resolved_precision": prepared.precision, "resolved_max_steps": prepared.max_steps}
        self.metrics = MetricsLog(
            args.logger if is_first_process() else "none",
            Path(args.log_dir),
            args.exp_name,
            settings,
            earlier=earlier_metrics,
            first_step=self.first_step,
        )
        if self.metrics.csv_path:
            say(f"metrics: {self.metrics.csv_path}")
        self.epoch = 0
        self.outcome = "done"
        try:
            with readable_failures(self):
                self.make_lightning_trainer().fit(self.module)
        except NotFinite as error:
            raise StepFailed(self.after_not_finite(error)) from error
        finally:
            self.stop.remove()
            batches.close()
            self.metrics.close()
        self.say_outcome()

    def make_lightning_trainer(self) -> Any:
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins import MixedPrecision, Precision

        args = self.args
        kind = {"cuda": "gpu"}.get(self.device.type, self.device.type)
        devices: Any = args.devices
        if kind == "gpu" and args.devices == 1:
            devices = [self.device.index or 0]
        mixed = self.prepared.precision != "32-true"
        # Made here and not by Lightning, which would replace fp16 on a CPU by bf16 without a word.
        plugin = MixedPrecision(self.prepared.precision, self.device.type, self.scaler) if mixed else Precision()  # type: ignore[arg-type]
        strategy = args.strategy
        if strategy == "auto" and args.devices * args.num_nodes > 1:
            strategy = "ddp"
        return Trainer(
            accelerator=kind,
            devices=devices,
            num_nodes=args.num_nodes,
            strategy=strategy,
            plugins=[plugin],
            max_epochs=-1,
            max_steps=self.prepared.max_steps - self.first_step,
            accumulate_grad_batches=args.accumulate_grad_batches,
            gradient_clip_val=args.gradient_clip_val or None,
            gradient_clip_algorithm=args.gradient_clip_algorithm if args.gradient_clip_val else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=self.output_dir,
        )

    def on_start(self) -> None:
        """Called when Lightning begins; by then it has set its own handlers, which ours replace."""
        self.stop.install()
        if self.validation and self.first_step == 0:
            loss = self.validation_loss()
            say(f"validation loss {loss:.4f} at step 0")
            self.metrics.write({"step": 0, "epoch": 0, "val_loss": loss})
        self.lines.restart_clock()
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)

    def on_step(self, report: Any) -> bool:
        """Log, validate and save after a step; true when the run is to end."""
        from ace_lora.optimizers import PRODIGIES, d_warning

        args, prepared = self.args, self.prepared
        self.epoch = report.epoch
        loss = report.values["loss"]
        row: dict[str, float | None] = {
            "step": report.step,
            "epoch": report.epoch,
            **report.values,
            "loss_smooth": self.smooth.update(loss),
            "seconds_per_step": self.lines.step_done(),
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        say(self.lines.line(report.step, loss, report.values["learning_rate"]))
        due = report.step == prepared.max_steps or report.step % (args.val_every or prepared.max_steps) == 0
        if self.validation and due:
            row["val_loss"] = self.validation_loss()
            say(f"validation loss {row['val_loss']:.4f} at step {report.step}")
        self.metrics.write(row)
        if args.optimizer in PRODIGIES and report.step == min(prepared.max_steps, args.warmup_steps + 100):
            warning = d_warning(report.values["prodigy_d"], report.step)
            if warning:
                say(f"warning: {warning}")
        stopping = self.module.agree(self.stop.requested())
        last = report.step == prepared.max_steps
        if stopping and not last:
            self.outcome = "stopped"
        if stopping or last or report.step % args.save_every_n_train_steps == 0:
            self.save(report.step, report.epoch)
        self.lines.restart_clock()
        return stopping

    @contextlib.contextmanager
    def weights_to_keep(self) -> Iterator[None]:
        """The weights that a listener should get, in place of those being trained: averages, where there are any.

        What is trained comes back bit for bit, so that saving more or less often changes nothing.
        """
        import torch

        schedule_free = hasattr(self.optimizer, "eval") and hasattr(self.optimizer, "train")
        if not schedule_free and self.average is None:
            yield
            return
        training = {key: parameter.detach().clone() for key, parameter in self.adapter.items()}
        groups = [dict(group) for group in self.optimizer.param_groups]
        try:
            if schedule_free:
                self.optimizer.eval()  # type: ignore[attr-defined]
            if self.average:
                with torch.no_grad():
                    for key, parameter in self.adapter.items():
                        parameter.copy_(self.average.tensors[key])
            yield
        finally:
            for group, before in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({name: value for name, value in before.items() if name != "params"})
            with torch.no_grad():
                for key, parameter in self.adapter.items():
                    parameter.copy_(training[key])

    def validation_loss(self) -> float:
        from ace_lora.training import training_losses

        def loss(batch: Any) -> Any:
            batch = batch.to(self.device)
            return training_losses(self.model, self.flow, batch, ssl_coeff=0)["denoising_loss"]

        assert self.validation is not None
        with self.weights_to_keep():
            return self.validation.loss(loss)

    # Saving

    def save(self, step: int, epoch: int) -> None:
        """Write the checkpoint of this step and remove this run's oldest."""
        from ace_lora.checkpoints import (
            SavedState,
            checkpoint_bytes,
            free_bytes,
            pack,
            remove_old,
            write_checkpoint,
        )

        if not is_first_process():
            return
        args = self.args
        count = sum(parameter.numel() for parameter in self.adapter.values())
        needed = checkpoint_bytes(count, args.optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
        free = free_bytes(self.output_dir)
        if free < needed:
            raise StepFailed(
                f"The disk is full: a checkpoint in '{self.output_dir}' needs {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free. {self.where_to_go_on()} Free the disk, then add --resume."
            )
        # Copies: below, other weights stand in the adapter for a moment.
        tensors = {f"adapter/{key}": parameter.detach().cpu().clone() for key, parameter in self.adapter.items()}
        if self.average:
            tensors |= {f"ema/{key}": tensor for key, tensor in self.average.tensors.items()}
        values = {
            "run_id": self.run_id,
            "step": step,
            "epoch": epoch,
            "fit": self.prepared.fit,
            "settings": vars(args),
            "optimizer": pack(self.optimizer.state_dict(), tensors, "optimizer"),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "ema_updates": self.average.updates if self.average else 0,
            "loss_smooth": [self.smooth.total, self.smooth.weight],
            "metrics": str(self.metrics.csv_path.absolute()) if self.metrics.csv_path else None,
            "versions": software_versions(),
        }
        with self.weights_to_keep():
            folder = write_checkpoint(
                self.output_dir,
                epoch=epoch,
                step=step,
                lora=self.adapter,
                config=self.prepared.lora_config,
                metadata=self.lora_metadata(step, epoch),
                state=SavedState(values, tensors),
                comfyui=args.save_comfyui,
            )
        self.last_saved, self.saved_step = folder, step
        say(f"saved: {folder}")
        for removed in remove_old(self.output_dir, self.run_id, args.save_last, folder):
            say(f"removed: {removed} (--save_last {args.save_last})")
        if free_bytes(self.output_dir) < needed and step < self.prepared.max_steps:
            say(
                f"warning: {free_bytes(self.output_dir) / 1e9:.2f} GB are free, the next checkpoint needs "
                f"{needed / 1e9:.2f} GB. Free the disk before step {step + args.save_every_n_train_steps}."
            )

    def lora_metadata(self, step: int, epoch: int) -> dict[str, str]:
        """What the header of the LoRA file tells about its training; texts, as safetensors wants."""
        songs = [self.prepared.songs[place] for place in self.prepared.training_places]
        tags = Counter(tag for song in songs for tag in song.tags)
        config = self.prepared.lora_config
        return {
            "base_model": "ACE-Step v1 (" + self.prepared.weights["transformer"].name + ")",
            "base_model_fingerprint": self.prepared.base_fingerprint,
            "rank": str(config["r"]),
            "alpha": str(config["lora_alpha"]),
            "use_rslora": json.dumps(config["use_rslora"]),
            "steps": str(step),
            "epoch": str(epoch),
            "songs": str(len(songs)),
            "tags": json.dumps(dict(tags.most_common()), ensure_ascii=False),
            "optimizer": self.args.optimizer,
            "learning_rate": str(self.args.learning_rate),
            "ema_decay": str(self.args.ema_decay),
            "versions": json.dumps(software_versions()),
        }

    # Ends

    def where_to_go_on(self) -> str:
        if self.last_saved is None:
            return "No checkpoint has been saved yet."
        return f"The last good checkpoint is '{self.last_saved}' (step {self.saved_step})."

    def after_not_finite(self, error: Exception) -> str:
        """Save what the steps before the bad one came to, and say what can be done."""
        import torch

        step = self.module.steps_done
        good = all(bool(torch.isfinite(parameter).all()) for parameter in self.adapter.values())
        if good and step > self.saved_step:
            self.save(step, self.epoch)
        return (
            f"{error} Nothing of it reached the weights. {self.where_to_go_on()} Take the song out of the data set or "
            "preprocess it again; if it happens at many songs, lower --learning_rate."
        )

    def say_outcome(self) -> None:
        step = self.module.steps_done
        if self.outcome == "stopped":
            by_file = self.stop.forget_file() if is_first_process() else False
            say(f"stopped at step {step}/{self.prepared.max_steps}: {self.last_saved}. Add --resume to go on.")
            if not by_file or self.stop.signalled:
                raise SystemExit(EXIT_INTERRUPTED)
            return
        if is_first_process():
            self.stop.forget_file()
        say(f"done: {step} steps, {self.last_saved}")


# --- The machine ---


@contextlib.contextmanager
def readable_failures(run: Run) -> Iterator[None]:
    """Turn what Lightning and the card raise into what a user can act on."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise StepFailed(
            f"The card's memory is full ({peak_memory_gb(run.device):.1f} GB were in use). {run.where_to_go_on()} "
            "Close other programs, or save memory: --trial finds settings that fit."
        ) from error
    except SystemExit as error:
        # Lightning ends the process itself when it is interrupted, with a status that means failure.
        raise KeyboardInterrupt from error


def process_number() -> int:
    """This process among those that train together, from 0."""
    if os.environ.get("RANK"):
        return int(os.environ["RANK"])
    return int(os.environ.get("LOCAL_RANK") or 0)


def peak_memory_gb(device: torch.device) -> float | None:
    """Most memory of the card that tensors took so far, None on other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def free_main_memory() -> int | None:
    """Bytes of main memory that are free, None where that cannot be told."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def software_versions() -> dict[str, str]:
    """Versions of what the numbers of a training depend on."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "lightning", "peft", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
