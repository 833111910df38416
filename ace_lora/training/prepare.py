"""What a training checks and decides before a model is loaded, so that every mistake is told at once."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ace_lora.base_weights.download import ensure_base_weights
from ace_lora.base_weights.find import find_base_weights, missing
from ace_lora.base_weights.model_config import read_model_config
from ace_lora.commands import WrongInput
from ace_lora.device import Device, choose_device, has_native_bf16
from ace_lora.files import free_bytes
from ace_lora.lora.config import read_lora_config
from ace_lora.lora.file import describe, read_lora_file
from ace_lora.lora.layers import adapter_shapes, lora_mismatches, target_layers
from ace_lora.processes import is_first_process
from ace_lora.records.fingerprints import weights_identity
from ace_lora.records.record import needed_of_base
from ace_lora.training.checkpoints import (
    checkpoint_bytes,
    checkpoints_size,
    find_loras,
    lora_bytes,
    run_bytes,
)
from ace_lora.training.flags import (
    PRECISIONS,
    flag_problems,
    max_frames,
    package_problems,
    wanted_precision,
)
from ace_lora.training.optimizers import RateSchedule, optimizer_warnings
from ace_lora.training.origins import remarks_on_origins
from ace_lora.training.plan import Plan
from ace_lora.training.resume import Resumed, check_changes, find_checkpoint, settings_of, trained_with
from ace_lora.training.songs import TrainingSong, has_timed_lyrics, scan_dataset
from ace_lora.training.validation import choose_songs
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig

Result = TypeVar("Result")


@dataclass(frozen=True)
class Prepared:
    """Everything that was found out before a model was loaded."""

    device: Device
    precision: str  # Lightning's name
    songs: list[TrainingSong]
    lora_config: dict[str, Any]
    shapes: dict[str, tuple[int, int]]  # of the LoRA tensors
    weights: dict[str, Path]  # folders of the base weights
    base_fingerprint: str
    max_steps: int
    plan: Plan
    training_indices: list[int]  # of the `songs` that are trained on
    validation_indices: list[int]
    schedule: RateSchedule
    trained_with: dict[str, Any]  # what a resumed run has in common with this one
    resumed: Resumed | None
    notes: list[str]

    @property
    def training_songs(self) -> list[TrainingSong]:
        return [self.songs[index] for index in self.training_indices]


def prepare(args: argparse.Namespace) -> Prepared:
    """Check everything that can be checked without loading a model; raises WrongInput with all problems."""
    problems = flag_problems(args) + package_problems(args)
    notes: list[str] = []

    def attempt(check: Callable[..., Result], *arguments: Any, **options: Any) -> Result | None:
        try:
            return check(*arguments, **options)
        except WrongInput as error:
            problems.extend(error.problems)
            return None

    chosen = attempt(choose_precision, args) if wanted_precision(args) in PRECISIONS else None
    output_dir = Path(args.output_dir)
    if is_first_process() and not args.trial_attempt:
        problems += output_problems(output_dir, args.resume)
        problems += folder_problems("log_dir", Path(args.log_dir)) if args.logger != "none" else []
    songs = attempt(scan_dataset, Path(args.dataset_path), need_ssl=args.ssl_coeff > 0)
    config = attempt(read_lora_config, Path(args.lora_config_path), notes=notes)
    checkpoint_dir = Path(args.checkpoint_dir) if args.checkpoint_dir else None
    found = find_base_weights(checkpoint_dir, ["transformer", "text_encoder"])
    shapes, base_problems = check_base(args, found, songs, config)
    problems += base_problems
    if args.last_lora_path and (last_lora := attempt(read_lora_file, Path(args.last_lora_path))):
        problems += lora_mismatches(last_lora, shapes) if shapes else []
        notes.append(f"{describe(last_lora)}.")
    resumed = attempt(find_checkpoint, output_dir, args.resume, notes) if args.resume else None
    problems += disk_problems(args, shapes, resumed) if shapes else []

    parts = needed_parts(args, songs or [])
    if problems:
        # Missing weights are listed with the rest, but nothing is downloaded for a run that cannot start.
        if absent := missing(checkpoint_dir, parts):
            problems.append("Base weights that are not there yet: " + "; ".join(map(str, absent)) + ".")
        raise WrongInput(problems)
    assert chosen is not None and songs is not None and config is not None
    device, precision, precision_notes = chosen
    weights = ensure_base_weights(checkpoint_dir, parts)
    if "transformer" not in found:
        shapes = adapter_shapes(target_layers(meta_transformer(weights["transformer"]), config), config["r"])

    training_indices, validation_indices = divide_songs(args, songs)
    training_songs = [songs[index] for index in training_indices]
    plan = make_plan(args, training_songs, processes=args.devices * args.num_nodes)
    max_steps = args.max_steps
    if args.epochs > 0:
        by_epochs = plan.steps_per_epochs(args.epochs)
        max_steps = by_epochs if max_steps == -1 else min(max_steps, by_epochs)
    base_fingerprint = weights_identity(weights["transformer"])
    now = trained_with(
        args,
        songs=training_songs,
        lora_config=config,
        base_fingerprint=base_fingerprint,
        precision=precision,
        processes=plan.processes,
        max_steps=max_steps,
    )
    changes = check_changes(resumed, now, accepted=args.accept_changes) if resumed else []
    return Prepared(
        device=device,
        precision=precision,
        songs=songs,
        lora_config=config,
        shapes=shapes,
        weights=weights,
        base_fingerprint=base_fingerprint,
        max_steps=max_steps,
        plan=plan,
        training_indices=training_indices,
        validation_indices=validation_indices,
        schedule=choose_schedule(args, max_steps, resumed),
        trained_with=now,
        resumed=resumed,
        notes=[
            *(*notes, *changes, *precision_notes, *settings_notes(args, max_steps, len(training_indices))),
            *(remarks_on_origins(songs) if is_first_process() and not args.trial_attempt else []),
        ],
    )


# --- Device ---


def choose_precision(args: argparse.Namespace) -> tuple[Device, str, list[str]]:
    """Device, Lightning's precision name and notes. Raises WrongInput when they do not fit together."""
    precision = wanted_precision(args)
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


# --- Folders ---


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


def disk_problems(args: argparse.Namespace, shapes: dict[str, tuple[int, int]], resumed: Resumed | None) -> list[str]:
    """Whether the checkpoints of the whole run will find room; `shapes` are those of the LoRA tensors."""
    output_dir = Path(args.output_dir)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    each = checkpoint_bytes(parameters, args.optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
    saves = -(-max(args.max_steps, args.save_every_n_train_steps) // max(1, args.save_every_n_train_steps))
    lora = lora_bytes(parameters, comfyui=args.save_comfyui)
    # One more than is kept, because the new one is written before the oldest goes.
    more = each if 0 < args.save_last < saves or 0 < args.keep_loras < saves else 0
    needed = more + run_bytes(saves, each, lora, states=args.save_last, loras=args.keep_loras)
    if resumed:  # what it has saved so far is on the disk already
        needed = max(each, needed - checkpoints_size(output_dir))
    free = free_bytes(output_dir)
    if needed <= free:
        return []
    return [
        f"The checkpoints need {needed / 1e9:.1f} GB in '{output_dir}' ({each / 1e9:.2f} GB each), but "
        f"{free / 1e9:.1f} GB are free. Free the disk, choose another --output_dir, or lower --save_last and "
        "--keep_loras."
    ]


# --- Base model and adapter ---


def check_base(
    args: argparse.Namespace,
    found: dict[str, Path],
    songs: list[TrainingSong] | None,
    config: dict[str, Any] | None,
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Shapes of the LoRA tensors in the base model (empty where it or the configuration is wrong), and problems.

    `found` are the base weights that are there; `songs` and `config` None where they could not be read.
    """
    if config is None:
        return {}, []
    try:
        base = meta_transformer(found.get("transformer"))
    except WrongInput as error:
        return {}, error.problems
    shapes: dict[str, tuple[int, int]] = {}
    problems = []
    try:
        shapes = adapter_shapes(target_layers(base, config), config["r"])
        if songs and "transformer" in found:
            problems += foreign_records(songs, base.config, found, need_ssl=args.ssl_coeff > 0)
    except WrongInput as error:
        problems += error.problems
    if args.offload > base.config.num_layers:
        problems.append(
            f"--offload is {args.offload}, but the base model has {base.config.num_layers} blocks. Use fewer."
        )
    return shapes, problems


def meta_transformer(folder: Path | None) -> ACEStepTransformer:
    """The transformer without weights, for names and shapes; the published one where it is not downloaded yet."""
    try:
        config = TransformerConfig.from_json(folder / "config.json") if folder else TransformerConfig()
        with torch.device("meta"):
            return ACEStepTransformer(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # sizes that do not go together, too
        raise WrongInput(f"The base weights in '{folder}' cannot be used: {error}") from error


def foreign_records(
    songs: list[TrainingSong], config: TransformerConfig, found: dict[str, Path], *, need_ssl: bool
) -> list[str]:
    """Records that were made with other base weights, whose tokens or features these do not know."""
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
        if needed["latent_channels"] != config.in_channels:
            reasons.append(f"latents of {needed['latent_channels']} channels, the base expects {config.in_channels}")
        if reasons:
            wrong.append(f"'{song.path.name}' ({'; '.join(reasons)})")
    if not wrong:
        return []
    return [
        f"{len(wrong)} of {len(songs)} records were made with other base weights than those in "
        f"'{found['transformer'].parent}': {', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}. "
        "Give the --checkpoint_dir that they were made with, or preprocess the songs again with this one."
    ]


def needed_parts(args: argparse.Namespace, songs: list[TrainingSong]) -> list[str]:
    """The parts of the base weights that this training loads."""
    parts = ["transformer", "text_encoder"]
    if args.ssl_coeff > 0 and any(song.ssl == "at_training" for song in songs):
        parts += ["mert", "mhubert"]
    if crops_lyrics(args, songs):
        parts.append("lyric_vocabulary")
    return parts


def crops_lyrics(args: argparse.Namespace, songs: list[TrainingSong]) -> bool:
    """Whether lyrics have to be tokenised while training, because pieces of songs with timed lyrics are trained."""
    limit = max_frames(args)
    return limit is not None and any(song.frames > limit and has_timed_lyrics(song.metadata) for song in songs)


# --- Songs and steps ---


def divide_songs(args: argparse.Namespace, songs: list[TrainingSong]) -> tuple[list[int], list[int]]:
    """Indices of the songs that are trained on, and of those that are validated on. Raises WrongInput for no song."""
    if args.val_every == 0:
        return list(range(len(songs))), []
    validation, held_out = choose_songs([song.name for song in songs], args.val_songs)
    training = [index for index in range(len(songs)) if not (held_out and index in validation)]
    if not training:
        raise WrongInput(
            f"--val_songs {args.val_songs} holds out all {len(songs)} songs. Hold out fewer, or use --val_songs 0."
        )
    return training, validation


def make_plan(args: argparse.Namespace, songs: list[TrainingSong], *, processes: int) -> Plan:
    """The order of the `songs` that are trained on, which are cropped as the flags say."""
    limit = max_frames(args)
    return Plan(
        [min(song.frames, limit or song.frames) for song in songs],
        seed=args.seed,
        batch_size=args.batch_size,
        accumulate=args.accumulate_grad_batches,
        processes=processes,
    )


def choose_schedule(args: argparse.Namespace, max_steps: int, resumed: Resumed | None) -> RateSchedule:
    """The learning rate of the steps to come; that of a run that goes on with other settings begins where it was."""
    asked = RateSchedule(args.optimizer, args.lr_schedule, args.learning_rate, args.warmup_steps, max_steps)
    if resumed is None:
        return asked
    before = settings_of(resumed)
    earlier = RateSchedule(
        before["--optimizer"],
        before["--lr_schedule"],
        before["--learning_rate"],
        before["--warmup_steps"],
        before.get("number of steps", max_steps),
        **resumed.state.values.get("schedule", {}),
    )
    return earlier.changed(asked, resumed.step)


def settings_notes(args: argparse.Namespace, max_steps: int, songs: int) -> list[str]:
    """Settings that are allowed but do not do what one may expect; `songs`: number of songs trained on."""
    notes = optimizer_warnings(
        args.optimizer,
        learning_rate=args.learning_rate,
        beta2=args.beta2,
        max_steps=max_steps,
        clip=args.gradient_clip_val,
    )
    if args.speaker_dropout > 0:
        notes.append("--speaker_dropout has no effect: ACE-Step v1's speaker vectors are all zero.")
    if args.batch_size > songs:
        notes.append(
            f"--batch_size {args.batch_size}, but there are {songs} songs: batches hold "
            "each song once. Use --accumulate_grad_batches for larger steps."
        )
    return notes
