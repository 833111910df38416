"""Everything of a training that changes from step to step: begun, gone on with from a checkpoint, and saved."""

from __future__ import annotations

import argparse
import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ace_lora.processes import say
from ace_lora.training.checkpoints import SavedState, pack, unpack
from ace_lora.training.load import Loaded
from ace_lora.training.metrics import SmoothedLoss
from ace_lora.training.optimizers import build_optimizer, restore_optimizer
from ace_lora.training.prepare import Prepared


class AdapterAverage:
    """Exponential moving average of the adapter (EMA). Its memory grows from nothing to `decay` at the beginning."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.decay = decay
        self.updates = 0
        self.tensors = {key: parameter.detach().clone() for key, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], skipped: Tensor | None = None) -> None:
        """Take the parameters in; not where the scalar `skipped` is 1."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        if skipped is None:
            torch._foreach_lerp_(list(self.tensors.values()), [p.detach() for p in parameters.values()], weight)
            return
        wanted = weight * (1 - skipped)
        for average, parameter in zip(self.tensors.values(), parameters.values(), strict=True):
            average.lerp_(parameter.detach(), wanted)


@dataclass
class TrainingState:
    """What a step changes, and where it was saved last."""

    adapter: Mapping[str, nn.Parameter]
    trained: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: AdapterAverage | None = None
    scaler: torch.amp.GradScaler | None = None  # of fp16
    step: int = 0  # optimizer steps done
    epoch: int = 0
    smooth: SmoothedLoss = field(default_factory=SmoothedLoss)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    earlier_metrics: Path | None = None  # metrics.csv of the run that is gone on with
    last_saved: Path | None = None
    saved_step: int = 0

    def take_back(self, step: int) -> None:
        """Count only the steps before number `step`, which was held back with all that followed."""
        if self.average is not None:
            self.average.updates -= self.step - (step - 1)
        self.step = step - 1

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.adapter.values())

    @contextlib.contextmanager
    def weights_to_keep(self) -> Iterator[None]:
        """The weights that a listener should get, in place of those being trained: averages, where there are any.

        What is trained comes back bit for bit, so that saving more or less often changes nothing.
        """
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
                    for key, parameter in self.trained.items():
                        parameter.copy_(self.average.tensors[key])
            yield
        finally:
            for group, before in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({name: value for name, value in before.items() if name != "params"})
            with torch.no_grad():
                for key, parameter in self.adapter.items():
                    parameter.copy_(training[key])

    def to_save(self) -> SavedState:
        """Copies of all of it, in the types of a training state; other weights may stand in the adapter meanwhile."""
        tensors = {f"adapter/{key}": parameter.detach().cpu().clone() for key, parameter in self.adapter.items()}
        if self.average:
            tensors |= {f"ema/{key}": tensor for key, tensor in self.average.tensors.items()}
        values = {
            "run_id": self.run_id,
            "step": self.step,
            "epoch": self.epoch,
            "optimizer": pack(self.optimizer.state_dict(), tensors, "optimizer"),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "ema_updates": self.average.updates if self.average else 0,
            "loss_smooth": [self.smooth.total, self.smooth.weight],
        }
        return SavedState(values, tensors)

    def where_to_go_on(self) -> str:
        return last_good_checkpoint(self.last_saved, self.saved_step)


def last_good_checkpoint(folder: Path | None, step: int) -> str:
    """A sentence for a run that ends badly."""
    if folder is None:
        return "No checkpoint has been saved yet."
    return f"The last good checkpoint is '{folder}' (step {step})."


def begin(args: argparse.Namespace, prepared: Prepared, loaded: Loaded) -> TrainingState:
    """The state before the first step: new, or as the resumed run had left it."""
    device = prepared.device.torch_device
    fp16 = prepared.precision == "16-mixed"
    state = TrainingState(
        loaded.adapter,
        loaded.trained,
        build_optimizer(
            args.optimizer,
            loaded.trained.values(),
            learning_rate=args.learning_rate,
            betas=(args.beta1, args.beta2),
            weight_decay=args.weight_decay,
            loss_scaling=fp16,
        ),
        average=AdapterAverage(loaded.trained, args.ema_decay) if args.ema_decay > 0 else None,
        scaler=torch.amp.GradScaler(device.type) if fp16 else None,
    )
    if prepared.resumed is None:
        say(f"starting at step 0/{prepared.max_steps}")
        return state
    values, tensors = prepared.resumed.state.values, prepared.resumed.state.tensors
    asked = [{name: group[name] for name in ("betas", "weight_decay")} for group in state.optimizer.param_groups]
    restore_optimizer(state.optimizer, unpack(values["optimizer"], tensors))
    for group, now in zip(state.optimizer.param_groups, asked, strict=True):
        group.update(now)  # which may be others than before (--accept_changes)
    if state.average:
        state.average.updates = values["ema_updates"]
        state.average.tensors = {key: tensors[f"ema/{key}"].to(device) for key in loaded.trained}
    if state.scaler:
        state.scaler.load_state_dict(values["scaler"])
    state.smooth = SmoothedLoss(*values["loss_smooth"])
    state.step = state.saved_step = values["step"]
    state.epoch = values["epoch"]
    state.run_id = values.get("run_id") or state.run_id
    state.earlier_metrics = Path(values["metrics"]) if values["metrics"] else None
    state.last_saved = prepared.resumed.folder
    say(
        f"resuming at step {state.step}/{prepared.max_steps} (epoch {state.epoch}, loss {state.smooth.value:.4f}) "
        f"from '{prepared.resumed.folder}'"
    )
    tensors.clear()  # they are in the model and the optimizer now
    return state
