"""One training: load, then step after step, with what happens between them; and how it ends."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import Precision
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn

from ace_lora.commands import EXIT_INTERRUPTED, StepFailed
from ace_lora.device import is_out_of_memory
from ace_lora.processes import is_first_process, process_number, say
from ace_lora.training.batches import Batch, SampleReader
from ace_lora.training.checkpoints import remove_leftovers
from ace_lora.training.feed import Feed, batch_stream
from ace_lora.training.load import Loaded, load
from ace_lora.training.metrics import MetricsLog, Reports
from ace_lora.training.optimizers import RateSchedule, d_warning, prodigy_d, skips_on_card
from ace_lora.training.output import LOG_NAME, RunOutput
from ace_lora.training.plan import Plan
from ace_lora.training.prepare import Prepared
from ace_lora.training.save import save
from ace_lora.training.state import TrainingState, begin, last_good_checkpoint
from ace_lora.training.step import NotFinite, StepNumbers, StepReport, TrainedStep, share_of_step, training_losses
from ace_lora.training.stop import StopRequest
from ace_lora.training.trial import Trial
from ace_lora.training.validation import Validation

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}


# --- The loop ---


def run_steps(
    args: argparse.Namespace,
    plan: Plan,
    schedule: RateSchedule,
    fabric: Fabric,
    module: Callable[[Batch], dict[str, Tensor]],
    state: TrainingState,
    feed: Iterable[Batch],
    reports: Reports,
    *,
    validate: Callable[[], float] | None,
    save: Callable[[], None],
    stop: Callable[[], bool],
    trial: Trial | None = None,
) -> bool:
    """Take the steps of `feed`, the first of which is number `state.step` + 1; whether they ended before `max_steps`.

    `module` is a TrainedStep that `fabric` has set up. `validate` gives the validation loss (None: there is none),
    `save` writes a checkpoint, `stop` tells whether someone wants the training to end. A `trial` is measured only.
    Raises NotFinite; the weights are then those of the last good step.
    """
    optimizer, scaler, max_steps = state.optimizer, state.scaler, schedule.max_steps
    # With several processes another one may have found what is not finite; then this one must not step either.
    numbers = StepNumbers(optimizer, on_card=plan.processes == 1 and skips_on_card(optimizer), scaled=bool(scaler))

    def validates_after(step: int) -> bool:
        return validate is not None and (step == max_steps or step % (args.val_every or max_steps) == 0)

    def report(*, wait: bool) -> None:
        for done in numbers.reports(wait=wait):
            reports.step(done, validates=validates_after(done.step))
            warn_of_small_d(args, done, max_steps)

    if validate and state.step == 0:
        reports.validation(0, validate())
    reports.start()
    for batch in feed:
        batch = batch.to(fabric.device)
        with fabric.no_backward_sync(module, enabled=not batch.last_of_step):  # type: ignore[arg-type]
            losses = module(batch)
            loss = share_of_step(losses["loss"], batch, accumulate=plan.accumulate, processes=plan.processes)
            fabric.backward(scaler.scale(loss) if scaler else loss)
        numbers.gather(batch, losses)
        if not batch.last_of_step:
            continue

        if scaler:
            scaler.unscale_(optimizer)
        norm = numbers.guard(state.step + 1, state.trained.values())
        clip_gradients(args, state.trained.values(), norm)
        rate = schedule.rate(state.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
        if state.average:
            state.average.update(state.trained, numbers.held_back)
        state.epoch = plan.epoch_of(state.step)
        state.step += 1
        numbers.step_done(state.step, state.epoch, {"learning_rate": rate, "prodigy_d": prodigy_d(optimizer)})

        if trial:
            list(numbers.reports(wait=True))
            trial.step_done()
            continue
        validates = validates_after(state.step)
        report(wait=validates)
        if validate and validates:
            reports.validation(state.step, validate())
        stopping = any_process(fabric, plan, stop())
        if stopping or state.step == max_steps or state.step % args.save_every_n_train_steps == 0:
            report(wait=True)
            save()
            reports.restart_clock()
        if stopping:
            return state.step < max_steps
    report(wait=True)
    return False


def clip_gradients(args: argparse.Namespace, parameters: Iterable[nn.Parameter], norm: Tensor) -> None:
    """Limit the gradients, whose norm is `norm`, as the flags say."""
    if args.gradient_clip_val == 0:
        return
    if args.gradient_clip_algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, args.gradient_clip_val)
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, args.gradient_clip_val, norm)


def any_process(fabric: Fabric, plan: Plan, wanted: bool) -> bool:
    """Whether any of the processes wants it; all of them have to ask."""
    if plan.processes == 1:
        return wanted
    total: Any = fabric.all_reduce(torch.tensor(int(wanted), device=fabric.device), reduce_op="sum")
    return bool(total > 0)


def warn_of_small_d(args: argparse.Namespace, report: StepReport, max_steps: int) -> None:
    """Say once that Prodigy has found no step size."""
    d = report.values["prodigy_d"]
    looks = report.step == min(max_steps, args.warmup_steps + 100)
    if d is not None and looks and (warning := d_warning(d, report.step)):
        say(f"warning: {warning}")


# --- Around the loop ---


def train(
    args: argparse.Namespace,
    prepared: Prepared,
    stop: StopRequest,
    output: RunOutput,
    trial: Trial | None = None,
    sampler: Callable[..., None] | None = None,
) -> None:
    """One training from loading to its last checkpoint; a `trial` saves and logs nothing but its measurements.

    What is printed is kept in the log folder by `output`. `sampler` (of ace_lora.preview.during_training) is called
    after every save at a multiple of --sample_every.
    """
    device = prepared.device.torch_device
    resumed = prepared.resumed
    saved = (resumed.folder, resumed.step) if resumed else (None, 0)
    with memory_failures_told(lambda: last_good_checkpoint(*saved)):
        loaded = load(args, prepared)
    state = begin(args, prepared, loaded)
    feed = make_feed(args, prepared, loaded, state.step)
    first = is_first_process()
    if first and not trial:
        remove_leftovers(Path(args.output_dir))
    metrics = MetricsLog(
        args.logger if first and not trial else "none",
        Path(args.log_dir),
        args.exp_name,
        {**vars(args), "resolved_precision": prepared.precision, "resolved_max_steps": prepared.max_steps},
        earlier=state.earlier_metrics,
        first_step=state.step,
    )
    if metrics.folder:
        output.keep(metrics.folder / LOG_NAME)
        say(f"metrics: {metrics.csv_path}")

    def save_here() -> None:
        if first:
            save(args, prepared, state, metrics.csv_path)
            if sampler and metrics.folder and state.step % args.sample_every == 0 and not stop.requested():
                with state.weights_to_keep():
                    sampler(loaded.model, state.step, metrics.folder / "samples", metrics.audio_of(state.step))

    fabric = make_fabric(args, device)
    step = TrainedStep(
        loaded.model, loaded.flow, loaded.trained, ssl_coeff=args.ssl_coeff, autocast=AUTOCAST[prepared.precision]
    )
    try:
        with memory_failures_told(state.where_to_go_on), ending_children(fabric):
            fabric.launch()
            module = fabric.setup_module(step)
            if not trial:
                stop.install()
            stopped = run_steps(
                args,
                prepared.plan,
                prepared.schedule,
                fabric,
                module,
                state,
                feed,
                Reports(metrics, state.smooth, prepared.max_steps, device),
                validate=make_validation(prepared, loaded, state) if first and prepared.validation_indices else None,
                save=save_here,
                stop=stop.requested,
                trial=trial,
            )
    except NotFinite as error:
        state.take_back(error.step)
        # What the steps before the bad one came to is kept.
        if state.is_finite() and state.step > state.saved_step:
            save_here()
        raise StepFailed(
            f"{error} Nothing of it reached the weights. {state.where_to_go_on()} Take the song out of the data set or "
            "preprocess it again; if it happens at many songs, lower --learning_rate."
        ) from error
    finally:
        stop.remove()
        feed.close()
        metrics.close()
    if trial:
        trial.write(Path(args.trial_attempt), loaded)
        return
    if first:
        stop.forget_file()
    if not stopped:
        say(f"done: {state.step} steps, {state.last_saved}")
        return
    why = " because nobody reads its output any more (--go_on_unread goes on)" if stop.unread() else ""
    say(f"stopped at step {state.step}/{prepared.max_steps}{why}: {state.last_saved}. Add --resume to go on.")
    if stop.signalled or stop.unread():
        raise SystemExit(EXIT_INTERRUPTED)


def make_feed(args: argparse.Namespace, prepared: Prepared, loaded: Loaded, first_step: int) -> Feed:
    """The batches of the steps to come, read ahead."""
    features = loaded.reader.features
    reader = SampleReader(
        prepared.training_songs,
        loaded.reader.settings,
        {new: features[old] for new, old in enumerate(prepared.training_indices) if old in features},
        loaded.reader.cache,
    )
    stream = batch_stream(
        reader,
        prepared.plan,
        first=first_step,
        last=prepared.max_steps,
        process=process_number(),
        num_workers=args.num_workers,
    )

    def ready(batch: Batch) -> Batch:
        batch = loaded.conditions(batch)
        return batch.pin_memory() if prepared.device.torch_device.type == "cuda" else batch

    return Feed(stream, ready)


def make_fabric(args: argparse.Namespace, device: torch.device) -> Fabric:
    """What starts the other processes and averages their gradients. Number formats are the step's own matter."""
    kind = {"cuda": "gpu"}.get(device.type, device.type)
    devices: Any = [device.index or 0] if kind == "gpu" and args.devices == 1 else args.devices
    strategy: Any = "auto"
    if args.strategy != "auto" or args.devices * args.num_nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=args.strategy == "ddp_find_unused_parameters_true")
    return Fabric(accelerator=kind, devices=devices, num_nodes=args.num_nodes, strategy=strategy, plugins=[Precision()])


def make_validation(prepared: Prepared, loaded: Loaded, state: TrainingState) -> Callable[[], float]:
    """A function that gives the validation loss of the weights that would be saved now."""
    validation = Validation(loaded.reader, prepared.validation_indices, loaded.conditions)

    def loss(batch: Batch) -> Tensor:
        batch = batch.to(prepared.device.torch_device)
        return training_losses(loaded.model, loaded.flow, batch, ssl_coeff=0)["denoising_loss"]

    def validate() -> float:
        with state.weights_to_keep():
            return validation.loss(loss)

    return validate


@contextlib.contextmanager
def ending_children(fabric: Fabric) -> Iterator[None]:
    """When the training fails here, the processes that were started for it end too, which would wait for this one."""
    try:
        yield
    except BaseException:
        for child in getattr(fabric.strategy.launcher, "procs", ()):
            child.kill()
        raise


@contextlib.contextmanager
def memory_failures_told(where_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory into what a user can act on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        on_card = isinstance(error, torch.OutOfMemoryError) or "MPS" in str(error)
        where = "card's memory" if on_card else "main memory"
        raise StepFailed(
            f"The {where} is full. "
            f"{where_to_go_on()} Close other programs, or save memory: the same command with --trial finds "
            "settings that fit."
        ) from error
