"""The training step and the LightningModule around it.

What a step costs beside the matrix products is kept out of it: the lyric branch is computed once per song where no
adapter touches it, the text encoder runs in the thread that reads ahead, the SSL heads run only when they count, and
the host does not wait for the card: it learns a step's losses a step or two later. That nothing but finite
numbers reaches the weights the card itself sees to (`LoraTraining.hold_back`).

B songs of a batch, T latent frames, Lt text tokens, Ll lyric tokens, D width of the transformer.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ace_lora.commands import StepFailed
from ace_lora.device import HostCopy, send
from ace_lora.training.batches import Batch, Plan, Prefetcher
from ace_lora.training.optimizers import learning_rate_multiplier, prodigy_d, skips_on_device
from ace_lora.v1.flow_matching import Padding, Schedule, add_noise, denoising_loss

MOST_STEPS_UNSEEN = 8  # steps that the card may be behind before the host waits for the oldest
MAX_SKIPPED_STEPS = 20  # fp16: steps in a row that the loss scaler may skip before the training counts as broken
TEXT_CACHE_ENTRIES = 512  # about 50 kB each in the published size


# --- One step ---


def training_losses(
    model: Any, schedule: Schedule, batch: Batch, *, ssl_coeff: float, padding: Padding = "exact"
) -> dict[str, Tensor]:
    """The losses of a batch whose text and lyric states are filled in: "denoising_loss", "mert_loss",
    "m-hubert_loss" (where `ssl_coeff` is above 0 and the batch has targets) and their weighted sum "loss".

    `padding`: "exact" gives every song the loss that it has alone, "reference" is what the published trainer computes
    for a padded batch (spec: trainer, section 3).
    """
    device = batch.latents.device
    sigma = send(schedule.sigmas[batch.timestep_indices], device)
    timestep = send(schedule.timesteps[batch.timestep_indices], device)
    noisy = add_noise(batch.latents, batch.noise, sigma)
    lyric_states = batch.lyric_states
    if lyric_states is None:
        lyric_states = model.encode_lyrics(batch.lyric_ids, batch.lyric_mask)
    context = model.encode_context(
        batch.text_states, batch.text_mask, lyric_states, batch.lyric_mask, batch.speaker_embeds
    )
    with_ssl = ssl_coeff > 0 and bool(batch.ssl)
    output = model(noisy, timestep, context, batch.frame_mask, ssl_taps=with_ssl, padding=padding)
    denoising = denoising_loss(output.velocity, batch.noise, batch.latents, sigma, batch.frame_mask, padding)
    losses = {"denoising_loss": denoising, "loss": denoising}
    if with_ssl:
        targets = {
            # int8 rows lack their scale, which a cosine does not see; bfloat16 holds them exactly.
            name: [rows.to(model.dtype if model.dtype != torch.float16 else torch.float32) for rows in tensors]
            if tensors[0].dtype == torch.int8
            else tensors
            for name, tensors in batch.ssl.items()
        }
        mask = batch.frame_mask if padding == "exact" else None
        heads = model.ssl_losses(output.ssl_taps, targets, mask)
        losses |= {f"{name}_loss": loss for name, loss in heads.items()}
        losses["loss"] = denoising + ssl_coeff * torch.stack(list(heads.values())).mean()
    return losses


class ConditionEncoder:
    """Fills in the text states, and the lyric states where they are cached; runs in the thread that reads ahead.

    `encode_text` takes ids [B,Lt] and mask [B,Lt] or None and returns [B,Lt,text width]; `lyric_states` holds
    [Ll,D] by a song's name, None when the lyric branch is computed in the step.
    """

    def __init__(
        self,
        encode_text: Callable[[Tensor, Tensor | None], Tensor],
        lyric_states: Mapping[str, Tensor] | None = None,
    ):
        self._encode_text = encode_text
        self._lyric_states = lyric_states
        self._cache: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._lock = threading.Lock()  # validation asks from another thread than training

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        with self._lock:
            states = [self._text(batch, item) for item in range(len(batch.names))]
        batch.text_states = nn.utils.rnn.pad_sequence(states, batch_first=True)
        if self._lyric_states is not None:
            chosen = [self._lyric_states[name] for name in batch.names]
            batch.lyric_states = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        return batch

    def _text(self, batch: Batch, item: int) -> Tensor:
        # One song at a time, so that its states do not depend on what it shares a batch with.
        length = batch.text_ids.shape[1] if batch.text_mask is None else int(batch.text_mask[item].sum())
        ids = batch.text_ids[item, :length]
        key = tuple(ids.tolist())
        if key not in self._cache:
            self._cache[key] = self._encode_text(ids[None], None)[0]
            if len(self._cache) > TEXT_CACHE_ENTRIES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


# --- Averages of the adapter ---


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


# --- The module ---


@dataclass
class StepReport:
    """What one optimizer step came to; `values` by the names of the metrics."""

    step: int  # optimizer steps done
    epoch: int
    values: dict[str, float | None]
    songs: list[str]


class NotFinite(StepFailed):
    """A loss or gradient that is no number, found before it reached the weights."""


@dataclass(frozen=True)
class StepSettings:
    """The flags that the step itself needs."""

    optimizer: str
    learning_rate: float
    warmup_steps: int
    max_steps: int
    ssl_coeff: float


@dataclass
class _Gathered:
    """The micro-batches of the step under way."""

    names: list[list[str]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    losses: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def songs(self) -> list[str]:
        return [song for group in self.names for song in group]


@dataclass
class _Unseen:
    """A step that has been given to the card and whose numbers the host has not looked at."""

    step: int  # optimizer steps done after it
    epoch: int
    gathered: _Gathered
    numbers: HostCopy
    values: dict[str, float | None]  # what the host knew already


class LoraTraining(LightningModule):
    """Trains the adapter that is already in `model`.

    The transformer is kept out of the module tree: Lightning moves everything in it to the card, and parts of the base
    may have to stay in main memory. `on_start` is called before the first step, `on_step` (steps done, epoch) after
    each; when it returns true, training ends. `on_report` gets the numbers of each step, in order, as soon as they are
    known: after `settle` those of all steps.
    """

    def __init__(
        self,
        model: Any,
        schedule: Schedule,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: StepSettings,
        *,
        plan: Plan,
        batches: Prefetcher,
        on_start: Callable[[], None],
        on_step: Callable[[int, int], bool],
        on_report: Callable[[StepReport], None],
        first_step: int = 0,
        average: AdapterAverage | None = None,
    ):
        super().__init__()
        self._base = (model,)  # in a tuple, which torch does not search for modules
        self.adapter = nn.ParameterList(parameters.values())
        self.named_adapter = dict(parameters)
        self.flow = schedule
        self.optimizer = optimizer
        self.settings = settings
        self.plan = plan
        self.batches = batches
        self.on_start = on_start
        self.on_step = on_step
        self.on_report = on_report
        self.steps_done = first_step
        self.average = average
        # Another process may have found what is not finite; then this one must not step either.
        self.holds_back = plan.processes == 1 and skips_on_device(optimizer)
        self._held_back: Tensor | None = None  # float32 scalar, 1 from the first step that must not reach the weights
        self._gathered = _Gathered()
        self._numbers = HostCopy(torch.zeros(()))
        self._grad_norm = torch.zeros(())
        self._unseen: deque[_Unseen] = deque()
        self._overflows = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def train_dataloader(self) -> Iterable[Batch]:
        return self.batches

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_train_start(self) -> None:
        self.on_start()

    def agree(self, wanted: bool) -> bool:
        """Whether any of the processes wants it; all of them have to ask."""
        if self.plan.processes == 1:
            return wanted
        return self.trainer.strategy.reduce_boolean_decision(wanted, all=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        multiplier = learning_rate_multiplier(
            self.steps_done,
            optimizer=self.settings.optimizer,
            warmup_steps=self.settings.warmup_steps,
            max_steps=self.settings.max_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * multiplier

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = training_losses(self._base[0], self.flow, batch, ssl_coeff=self.settings.ssl_coeff)
        self._gathered.names.append(batch.names)
        self._gathered.weights.append(batch.weight)
        self._gathered.losses.append({name: loss.detach() for name, loss in losses.items()})
        # Lightning divides by the number of accumulated batches and DDP by the number of processes. Multiplied with
        # both, every song of the step has the same share, however songs and batches are divided.
        return losses["loss"] * (batch.weight * self.plan.accumulate * self.plan.processes)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        losses = [torch.stack([loss.float() for loss in losses.values()]) for losses in self._gathered.losses]
        gradients = [parameter.grad for parameter in self.adapter if parameter.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        numbers = torch.cat([*losses, self._grad_norm.float().view(1).to(losses[0].device)])
        self._numbers = HostCopy(numbers)
        if self.holds_back:
            self.hold_back(numbers)
        else:
            self.check(self.steps_done + 1, self._gathered, self._numbers.wait().tolist())

    def hold_back(self, numbers: Tensor) -> None:
        """Have the optimizer skip this step, and all that follow, when not all `numbers` are finite.

        The card decides, by the flag that is there for the scaling of losses. Weights, moments and their counters stay
        as the last good step left them until the host has learned of it.
        """
        bad = (~numbers.isfinite().all()).float()
        self._held_back = bad if self._held_back is None else torch.maximum(self._held_back, bad)
        optimizer: Any = self.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, self._held_back

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's own would compute the norm a second time, and refuses optimizers that can skip steps."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.adapter, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(self.adapter, gradient_clip_val, self._grad_norm)

    def check(self, step: int, gathered: _Gathered, numbers: list[float]) -> None:
        """Raises NotFinite, naming the songs, for losses or a gradient that are no numbers."""
        *losses, grad_norm = numbers
        size = len(losses) // len(gathered.losses)
        bad = [
            song
            for place, songs in enumerate(gathered.names)
            for song in songs
            if not all(math.isfinite(loss) for loss in losses[place * size : (place + 1) * size])
        ]
        if bad:
            raise NotFinite(f"The loss of step {step} is not a finite number at {_quoted(bad)}.")
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        self._overflows = self._overflows + 1 if not math.isfinite(grad_norm) else 0
        # fp16's loss scaler overflows now and then on purpose and skips such a step.
        if self._overflows > (MAX_SKIPPED_STEPS if scaled else 0):
            raise NotFinite(f"The gradient of step {step} is not finite at {_quoted(gathered.songs)}.")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not batch.draws[-1].last_of_step:
            return
        if self.average is not None:
            self.average.update(self.named_adapter, self._held_back)
        epoch = self.plan.epoch_of(self.steps_done)
        self.steps_done += 1
        known = {"learning_rate": self.optimizer.param_groups[0]["lr"], "prodigy_d": prodigy_d(self.optimizer)}
        gathered, self._gathered = self._gathered, _Gathered()
        self._unseen.append(_Unseen(self.steps_done, epoch, gathered, self._numbers, known))
        while self._unseen and (self._unseen[0].numbers.is_there() or len(self._unseen) > MOST_STEPS_UNSEEN):
            self._see()
        if self.on_step(self.steps_done, epoch):
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Wait for the numbers of all steps and report them. Raises NotFinite for the first that is not finite."""
        while self._unseen:
            self._see()

    def _see(self) -> None:
        """Look at the oldest step's numbers, and report them."""
        unseen = self._unseen.popleft()
        gathered, numbers = unseen.gathered, unseen.numbers.wait().tolist()
        if self.holds_back:
            try:
                self.check(unseen.step, gathered, numbers)
            except NotFinite:
                # What came after it was held back with it.
                if self.average is not None:
                    self.average.updates -= self.steps_done - (unseen.step - 1)
                self.steps_done = unseen.step - 1
                self._unseen.clear()
                raise
        *losses, grad_norm = numbers
        names, total = list(gathered.losses[0]), sum(gathered.weights)
        values: dict[str, float | None] = {
            name: sum(loss * weight for loss, weight in zip(losses[place :: len(names)], gathered.weights, strict=True))
            / total
            for place, name in enumerate(names)
        }
        self.on_report(
            StepReport(unseen.step, unseen.epoch, {**values, "grad_norm": grad_norm, **unseen.values}, gathered.songs)
        )


def _quoted(songs: list[str]) -> str:
    return "the song" + ("s " if len(songs) > 1 else " ") + ", ".join(f"'{song}'" for song in songs)
