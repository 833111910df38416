"""Optimizers for the adapter, the learning rate's course, and the warnings that go with both."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput

if TYPE_CHECKING:
    import torch

# name, of those that trainer_new.py offers: (package that it needs beside torch, what pip calls it)
OPTIMIZERS = {
    "adamw": None,
    "adamw8bit": ("bitsandbytes", "bitsandbytes"),
    "prodigy": ("prodigyopt", "prodigyopt"),
    "prodigy_schedule_free": ("prodigyplus", "prodigy-plus-schedule-free"),
}
PRODIGIES = ("prodigy", "prodigy_schedule_free")
PRODIGY_D0 = 1e-6


def optimizer_problems(name: str) -> list[str]:
    """What is missing to use the optimizer; empty when nothing is."""
    package = OPTIMIZERS[name]
    if package and importlib.util.find_spec(package[0]) is None:
        return [
            f"--optimizer {name} needs the package '{package[1]}', which is not installed. "
            f"Install it with: pip install {package[1]} - or choose --optimizer adamw."
        ]
    return []


def optimizer_warnings(name: str, *, learning_rate: float, beta2: float, max_steps: int, clip: float) -> list[str]:
    """Settings that are allowed but known to train badly."""
    warnings = []
    if 1 - beta2 < 1 / max_steps:
        warnings.append(
            f"1 - beta2 is {1 - beta2:.2g}, below 1 / max_steps = {1 / max_steps:.2g}: the average of the squared "
            f"gradients does not settle within this run. Use a lower --beta2 (0.99 suits 100 steps and more)."
        )
    if name in PRODIGIES and learning_rate != 1.0:
        warnings.append(
            f"--optimizer {name} finds the learning rate itself and expects --learning_rate 1, not {learning_rate:g}, "
            "which is taken as a factor."
        )
    if name not in PRODIGIES and learning_rate >= 0.01:
        warnings.append(f"--learning_rate {learning_rate:g} is very high for {name}; 1e-4 is usual.")
    if name == "prodigy_schedule_free" and clip > 0:
        warnings.append(
            "prodigy_schedule_free scales its steps itself; gradient clipping disturbs its estimate of the step size. "
            "--gradient_clip_val 0 turns it off."
        )
    return warnings


def d_warning(d: float, step: int) -> str | None:
    """What to say when Prodigy's estimate has not left its start after `step` steps."""
    if d > PRODIGY_D0:
        return None
    return (
        f"Prodigy's d is still {d:.1e} after {step} steps: it has found no step size and the LoRA hardly trains. "
        "d should rise within the first hundred steps. Check --learning_rate 1 and a smaller --warmup_steps, "
        "or use --optimizer adamw."
    )


def build_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    loss_scaling: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer `name` (a key of OPTIMIZERS) over float32 parameters; moments are float32 (8 bit: adamw8bit).

    `loss_scaling`: a GradScaler will be used with it, which must unscale the gradients before they are measured.
    """
    parameters = list(parameters)
    if name == "adamw":
        from torch.optim import AdamW

        # One kernel for everything, which can skip a step by itself; with a scaler it would also unscale by itself.
        fused = not loss_scaling and all(parameter.device.type in ("cuda", "cpu") for parameter in parameters)
        return AdamW(
            parameters, lr=learning_rate, betas=betas, eps=1e-8, weight_decay=weight_decay, fused=fused or None
        )
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=learning_rate, betas=betas, eps=1e-8, weight_decay=weight_decay)
    # Both packages print their choices when they are made; the trainer prints its own settings.
    with contextlib.redirect_stdout(io.StringIO()):
        if name == "prodigy":
            from prodigyopt import Prodigy

            return Prodigy(
                parameters,
                lr=learning_rate,
                betas=betas,
                weight_decay=weight_decay,
                use_bias_correction=True,
                safeguard_warmup=True,
                slice_p=11,
            )
        if name == "prodigy_schedule_free":
            from prodigyplus import ProdigyPlusScheduleFree

            return ProdigyPlusScheduleFree(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
    raise WrongInput(f"No optimizer '{name}'. Expected one of: {', '.join(OPTIMIZERS)}.")


def skips_on_card(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer skips a step by the tensor `found_inf`, without the host looking at it."""
    return all(group.get("fused") for group in optimizer.param_groups)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict with the number formats that it was saved with.

    PyTorch casts what it loads to the parameter's dtype, but some optimizers keep parts of their state in bfloat16.
    """
    import torch

    # How a step is computed is this machine's choice, not a part of the state.
    groups = [
        {**group, **{name: now[name] for name in ("fused", "foreach") if name in now}}
        for group, now in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        state = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and state[name].dtype != value.dtype:
                state[name] = value.to(state[name].device)


def prodigy_d(optimizer: torch.optim.Optimizer) -> float | None:
    """Prodigy's estimate of the step size, None for other optimizers."""
    d = optimizer.param_groups[0].get("d")
    return None if d is None else float(d)


@dataclass(frozen=True)
class RateSchedule:
    """The learning rate of each step: a linear warm-up to `peak`, then down over the steps that are left.

    The first step of a warm-up has rate 0, as in the published trainer: it only fills the moments. `kind` is
    "linear", as in the published trainer, "cosine" or "constant". A schedule-free optimizer keeps its rate after its
    warm-up.
    A run that was resumed with other settings goes from `begins_at`, its rate at step `begins` (without a warm-up).
    """

    optimizer: str
    kind: str
    peak: float
    warmup_steps: int
    max_steps: int
    begins: int = 0
    begins_at: float | None = None

    def rate(self, step: int) -> float:
        """Of the step that follows `step` finished ones."""
        if self.begins_at is not None:
            start = self.begins_at
            end = min(start, self.peak * final_multiplier(self.optimizer))
            return start * self._left((step - self.begins) / max(1, self.max_steps - self.begins), end / start)
        if step < self.warmup_steps:
            return self.peak * (step / max(1, self.warmup_steps))
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        return self.peak * self._left(progress, final_multiplier(self.optimizer))

    def _left(self, progress: float, final: float) -> float:
        """The share of the rate that is left after `progress`, from 0 to 1, of the way down to `final`."""
        if self.kind == "constant" or self.optimizer == "prodigy_schedule_free":
            return 1.0
        left = max(0.0, 1.0 - progress)
        if self.kind == "cosine":
            left = (1.0 - math.cos(math.pi * left)) / 2
        return left * (1.0 - final) + final

    def changed(self, now: RateSchedule, step: int) -> RateSchedule:
        """This schedule as it goes on after `step` finished steps with the settings of `now`.

        The rate never jumps unasked: it goes on from that of the last step, or from `now.peak` where that is another.
        """
        mine = (self.optimizer, self.kind, self.peak, self.warmup_steps, self.max_steps)
        if mine == (now.optimizer, now.kind, now.peak, now.warmup_steps, now.max_steps):
            return self
        if self.begins_at is None and step <= min(self.warmup_steps, now.warmup_steps):
            return now  # still on its way up
        start = now.peak if now.peak != self.peak else self.rate(step - 1)
        return replace(now, begins=step, begins_at=start) if start > 0 else now


def final_multiplier(optimizer: str) -> float:
    """Where the learning rate ends, as a share of its highest value."""
    return 0.1 if optimizer == "prodigy" else 0.0
