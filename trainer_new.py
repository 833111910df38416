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
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.commands import ENDS_WITH_INPUT, run_script
from ace_lora.processes import is_first_process, say

if TYPE_CHECKING:
    from ace_lora.preview.during_training import Sampler
    from ace_lora.training.output import RunOutput
    from ace_lora.training.prepare import Prepared

STARTED = time.time()  # a STOP file that comes while libraries are being imported is meant for this run
# Literals, because the window reads this file without running it.
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "prodigy_schedule_free")
BASE_PRECISIONS = ("bf16", "int8", "nf4")
LOGGERS = ("tensorboard", "wandb", "csv", "none")
SCHEDULES = ("linear", "cosine", "constant")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a LoRA of ACE-Step v1. A file named STOP in --output_dir ends the run after the step under "
        "way, with everything saved; --resume goes on from there."
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_path", required=True, help="folder of records made by preprocess_dataset_new.py")
    data.add_argument("--batch_size", type=int, default=1, help="songs per batch (default: 1)")
    data.add_argument(
        "--num_workers", type=int, default=0, help="more threads that read records; 0: one, enough for most (default)"
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
    model.add_argument(
        "--last_lora_path",
        default=None,
        help="LoRA file or folder that the training starts from; its rank, alpha and layers may be others than the "
        "configuration's",
    )
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
    steps.add_argument(
        "--lr_schedule",
        choices=SCHEDULES,
        default="linear",
        help="how the rate goes to zero after the warm-up; constant: it does not (default: linear, as published)",
    )
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
        "--sample_every",
        type=int,
        default=0,
        help="steps between samples, a multiple of --save_every_n_train_steps: songs sung by the LoRA as it is then, "
        "in the log folder and in TensorBoard; 0: none (default)",
    )
    saving.add_argument(
        "--sample_plan",
        default="",
        metavar="FILE",
        help="songs to sample, as python -m ace_lora.preview.compare has them (default: two songs of the training)",
    )
    saving.add_argument(
        "--save_last",
        type=int,
        default=5,
        help="checkpoints of this run to keep whole; of older ones only the LoRA stays, nothing to go on from; 0 or "
        "less: all (default: 5)",
    )
    saving.add_argument(
        "--keep_loras", type=int, default=0, help="LoRAs of this run to keep, 126 MB each as shipped; 0: all (default)"
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
    saving.add_argument(
        "--accept_changes",
        action="store_true",
        help="with --resume: go on although the number of steps, learning rate, batch size, songs or the like are "
        "others than before; the rate goes on from where it was, or from a new --learning_rate (default: refuse)",
    )

    saving.add_argument(
        "--go_on_unread",
        action="store_true",
        help="go on when the window or terminal that reads the output is closed (default: save and end)",
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
    machine.add_argument(
        "--base_precision",
        choices=BASE_PRECISIONS,
        default="bf16",
        help="of the frozen weights: bf16 (default; as --precision has it), int8 or nf4, which take 53 and 30 per cent",
    )
    machine.add_argument(
        "--checkpointing",
        default="auto",
        help="blocks computed again in the backward pass, to save memory: auto (as many as the free memory asks for, "
        "default), all, none, or a number",
    )
    machine.add_argument(
        "--offload", type=int, default=0, help="blocks kept in main memory and streamed to the card (default: 0)"
    )

    machine.add_argument(
        "--compile",
        action="store_true",
        help="compile the parts between the matrix products; faster on a card with Triton, and goes on without where "
        "that does not work (default: off)",
    )

    trial = parser.add_argument_group("trial")
    trial.add_argument(
        "--trial",
        action="store_true",
        help="run 20 steps on the longest songs and say what the training will cost; when it does not fit, find the "
        "mildest savings with which it does",
    )
    trial.add_argument(
        "--plan", choices=("none", "auto"), default="none", help="auto: make the trial, then train with what it found"
    )
    trial.add_argument(
        "--memory_limit_gb", type=float, default=0.0, help="memory that the trial may use; 0: all of the card (default)"
    )
    # How a trial calls itself for one attempt; its result goes to this file.
    trial.add_argument("--trial_attempt", default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from ace_lora.training.output import RunOutput

    with RunOutput() as output:
        run(args, output)


def run(args: argparse.Namespace, output: RunOutput) -> None:
    """The step itself; `output` is what it prints to."""
    from ace_lora.training.flags import flag_problems
    from ace_lora.training.lock import locked
    from ace_lora.training.metrics import silence_libraries
    from ace_lora.training.prepare import prepare
    from ace_lora.training.run import train
    from ace_lora.training.stop import StopRequest
    from ace_lora.training.trial import Trial, run_trial, savings_of_first_process

    silence_libraries()
    stop = StopRequest(Path(args.output_dir), output, go_on_unread=args.go_on_unread)
    if (args.trial or args.plan == "auto") and not args.trial_attempt:
        savings = run_trial(args) if is_first_process() else savings_of_first_process()
        if args.trial:
            return
        vars(args).update(savings)
    with contextlib.ExitStack() as stack:
        alone = is_first_process() and not args.trial_attempt
        if alone and stop.path.parent.is_dir():  # before a checkpoint to go on from is looked for in it
            stack.enter_context(locked(stop.path.parent))
            alone = False
            if not flag_problems(args) and (old_file := stop.look_for_old_file(STARTED)):
                say(old_file)
        prepared = prepare(args)
        say_settings(args, prepared)
        if alone:
            stack.enter_context(locked(stop.path.parent))
        sampler = prepare_samples(args, prepared) if args.sample_every and not args.trial_attempt else None
        if prepared.resumed and prepared.resumed.step >= prepared.max_steps:
            say(
                f"'{prepared.resumed.folder}' is at step {prepared.resumed.step} of {prepared.max_steps}: this "
                "training is finished. To go on, give a higher --max_steps, and --accept_changes."
            )
            return
        if args.trial_attempt:
            trial = Trial(args, prepared)
            train(args, trial.prepared, stop, output, trial)
        else:
            train(args, prepared, stop, output, sampler=sampler)


def prepare_samples(args: argparse.Namespace, prepared: Prepared) -> Sampler:
    """What makes the samples, with all that it needs on this computer. Raises WrongInput."""
    from ace_lora.base_weights.download import ensure_base_weights
    from ace_lora.preview.during_training import make_sampler, sample_plan
    from ace_lora.preview.render import PARTS

    plan = sample_plan(args.sample_plan, [song.path for song in prepared.training_songs])
    weights = ensure_base_weights(Path(args.checkpoint_dir) if args.checkpoint_dir else None, PARTS)
    plain = args.base_precision == "bf16" and not args.offload
    return make_sampler(plan, weights, prepared.device, plain_weights=plain)


def say_settings(args: argparse.Namespace, prepared: Prepared) -> None:
    """The resolved settings, and what was noticed about them."""
    songs = prepared.songs
    say("settings:")
    for name, value in vars(args).items():
        if name != "trial_attempt":
            say(f"  --{name} {value}")
    say(f"device: {prepared.device.reason}; precision: {prepared.precision}, LoRA float32")
    say(f"base weights: {prepared.weights['transformer']}")
    count = sum(math.prod(shape) for shape in prepared.shapes.values())
    config = prepared.lora_config
    say(
        f"LoRA: rank {config['r']}, alpha {config['lora_alpha']}, rsLoRA {config['use_rslora']}, "
        f"{len(prepared.shapes) // 2} layers, {count:,} parameters"
    )
    seconds = sum(song.seconds for song in prepared.training_songs)
    say(
        f"data: {len(prepared.training_indices)} songs, {seconds / 60:.1f} minutes, "
        f"{prepared.plan.batches_per_epoch} batches per epoch; {prepared.max_steps} steps"
    )
    if prepared.validation_indices:
        held_out = not set(prepared.validation_indices) & set(prepared.training_indices)
        names = ", ".join(f"'{songs[index].name}'" for index in prepared.validation_indices)
        say(f"validation every {args.val_every} steps: {'held-out' if held_out else 'training'} songs {names}")
    for note in prepared.notes:
        say(f"note: {note}")


if __name__ == "__main__":
    arguments = parse_args()
    if arguments.go_on_unread:  # also when the window is gone that started it
        os.environ.pop(ENDS_WITH_INPUT, None)
    raise SystemExit(run_script(main, arguments))
