"""What one step computes, and how its numbers get from the card to the host.

What a step costs beside the matrix products is kept out of it: the lyric branch is computed once per song where no
adapter touches it, the text encoder runs in the thread that reads ahead, the SSL heads run only when they count, and
the host does not wait for the card: it learns a step's losses a step or two later. That nothing but finite
numbers reaches the weights the card itself sees to (`StepNumbers`).

B songs of a batch, T latent frames, Lt text tokens, Ll lyric tokens, D width of the transformer.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ace_lora.commands import StepFailed
from ace_lora.device import HostCopy, send
from ace_lora.training.batches import Batch
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


class TrainedStep(nn.Module):
    """The losses of a batch, as a module whose parameters are those that are trained (for DDP, which averages them).

    The transformer is kept out of the module tree: everything in it would be moved to the card and synchronised, and
    parts of the base may have to stay in main memory. `autocast`: the number format to compute in, None for the
    model's own.
    """

    def __init__(
        self,
        model: Any,
        schedule: Schedule,
        trained: Mapping[str, nn.Parameter],
        *,
        ssl_coeff: float,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        self._base = (model,)  # in a tuple, which torch does not search for modules
        self.trained = nn.ParameterList(trained.values())
        self._schedule = schedule
        self._ssl_coeff = ssl_coeff
        self._autocast = autocast

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self._number_format(batch.latents.device.type):
            return training_losses(self._base[0], self._schedule, batch, ssl_coeff=self._ssl_coeff)

    def _number_format(self, device_type: str) -> contextlib.AbstractContextManager[None]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self._autocast, cache_enabled=False)


def share_of_step(loss: Tensor, batch: Batch, *, accumulate: int, processes: int) -> Tensor:
    """What to differentiate: every song of the step gets the same share, however songs and batches are divided.

    DDP divides the gradients by the number of processes. Multiplying with `accumulate` and dividing by it again rounds
    as earlier versions did, whose saved trainings go on to the same bits.
    """
    return loss * (batch.weight * accumulate * processes) / accumulate


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


# --- The numbers of a step ---


@dataclass
class StepReport:
    """What one optimizer step came to; `values` by the names of the metrics."""

    step: int  # optimizer steps done
    epoch: int
    values: dict[str, float | None]
    songs: list[str]


class NotFinite(StepFailed):
    """A loss or gradient of `step` that is no number, found before it reached the weights."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


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


class StepNumbers:
    """Losses and gradient norms on their way from the card to the host; only finite ones let a step count.

    With `on_card` the optimizer skips a step by the tensor `found_inf`, and the host looks at the numbers when they
    have arrived. Else the host waits for them before the step. `scaled`: fp16's loss scaler skips a step whose gradient
    overflows, now and then on purpose.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, on_card: bool, scaled: bool):
        self._optimizer: Any = optimizer
        self._on_card = on_card
        self._scaled = scaled
        self._gathered = _Gathered()
        self._copy: HostCopy | None = None
        self._unseen: deque[_Unseen] = deque()
        self._overflows = 0
        # float32 scalar, 1 from the first step on that must not reach the weights; None where the host sees to it.
        self.held_back: Tensor | None = None

    def gather(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Take in a micro-batch of the step under way."""
        self._gathered.names.append(batch.names)
        self._gathered.weights.append(batch.weight)
        self._gathered.losses.append({name: loss.detach() for name, loss in losses.items()})

    def guard(self, step: int, parameters: Iterable[nn.Parameter]) -> Tensor:
        """See to it that step number `step` changes nothing unless it is finite; the norm of the gradients.

        On the card: weights, moments and their counters stay as the last good step left them, whatever follows, until
        the host has learned of it. Elsewhere raises NotFinite.
        """
        losses = [torch.stack([loss.float() for loss in losses.values()]) for losses in self._gathered.losses]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        numbers = torch.cat([*losses, norm.float().view(1).to(losses[0].device)])
        self._copy = HostCopy(numbers)
        if self._on_card:
            bad = (~numbers.isfinite().all()).float()
            self.held_back = bad if self.held_back is None else torch.maximum(self.held_back, bad)
            self._optimizer.grad_scale, self._optimizer.found_inf = None, self.held_back
        else:
            self._check(step, self._gathered, self._copy.wait().tolist())
        return norm

    def step_done(self, step: int, epoch: int, values: dict[str, float | None]) -> None:
        """The step under way has been given to the card; `values` are what the host knows of it."""
        assert self._copy is not None
        gathered, self._gathered = self._gathered, _Gathered()
        self._unseen.append(_Unseen(step, epoch, gathered, self._copy, values))

    def reports(self, *, wait: bool) -> Iterator[StepReport]:
        """The steps whose numbers have arrived since the last call, in order; with `wait` all that are under way.

        Raises NotFinite for the first that is not finite; what came after it was held back with it.
        """
        while self._unseen and (wait or self._unseen[0].numbers.is_there() or len(self._unseen) > MOST_STEPS_UNSEEN):
            unseen = self._unseen.popleft()
            gathered, numbers = unseen.gathered, unseen.numbers.wait().tolist()
            if self._on_card:
                self._check(unseen.step, gathered, numbers)
            *losses, grad_norm = numbers
            names, total = list(gathered.losses[0]), sum(gathered.weights)
            values: dict[str, float | None] = {
                name: sum(
                    loss * weight for loss, weight in zip(losses[first :: len(names)], gathered.weights, strict=True)
                )
                / total
                for first, name in enumerate(names)
            }
            values |= {"grad_norm": grad_norm, **unseen.values}
            yield StepReport(unseen.step, unseen.epoch, values, gathered.songs)

    def _check(self, step: int, gathered: _Gathered, numbers: list[float]) -> None:
        """Raises NotFinite, naming the songs, for losses or a gradient that are no numbers."""
        *losses, grad_norm = numbers
        size = len(losses) // len(gathered.losses)
        bad = [
            song
            for number, songs in enumerate(gathered.names)
            for song in songs
            if not all(math.isfinite(loss) for loss in losses[number * size : (number + 1) * size])
        ]
        if bad:
            raise NotFinite(f"The loss of step {step} is not a finite number at {_quoted(bad)}.", step)
        self._overflows = self._overflows + 1 if not math.isfinite(grad_norm) else 0
        if self._overflows > (MAX_SKIPPED_STEPS if self._scaled else 0):
            raise NotFinite(f"The gradient of step {step} is not finite at {_quoted(gathered.songs)}.", step)


def _quoted(songs: list[str]) -> str:
    return "the song" + ("s " if len(songs) > 1 else " ") + ", ".join(f"'{song}'" for song in songs)
