"""What a training reports: one line per step, metrics.csv, TensorBoard or Weights & Biases, and loss.png at the end.

<log_dir>/<exp_name>/<date and time>/
    metrics.csv      one row per step, written at once; empty where a value is unknown
    settings.json    the settings of the run
    loss.png         curves of training and validation loss, at the end
    events.out.…     TensorBoard
"""

from __future__ import annotations

import csv
import datetime
import io
import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ace_lora.files import replace_atomically, stamp, write_json
from ace_lora.processes import say
from ace_lora.training.step import StepReport

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "loss_smooth",
    "denoising_loss",
    "mert_loss",
    "m-hubert_loss",
    "learning_rate",
    "grad_norm",
    "seconds_per_step",
    "peak_memory_gb",
    "prodigy_d",
    "val_loss",
)
SMOOTHING = 0.98  # of the training loss: an average over about the last 50 steps
RATE_STEPS = 20  # steps over which the printed speed is averaged


class SmoothedLoss:
    """Exponential average that starts unbiased; its two numbers are part of the training state."""

    def __init__(self, total: float = 0.0, weight: float = 0.0):
        self.total, self.weight = total, weight

    def update(self, loss: float) -> float:
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        return self.value

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else float("nan")


class MetricsLog:
    """Writes the rows of one run. `kind` is a value of --logger; "none" writes no files at all."""

    def __init__(
        self,
        kind: str,
        log_dir: Path,
        exp_name: str,
        settings: Mapping[str, Any],
        *,
        earlier: Path | None = None,
        first_step: int = 0,
    ):
        self.folder: Path | None = None
        self.loggers: list[Any] = []
        self._file: io.TextIOWrapper | None = None
        if kind == "none":
            return
        self.folder = _new_folder(Path(log_dir) / exp_name)
        write_json(self.folder / "settings.json", dict(settings))
        self._file = (self.folder / "metrics.csv").open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="")
        self._writer.writeheader()
        for row in _rows_up_to(earlier, first_step):
            self._writer.writerow(row)
        self._file.flush()
        if kind == "tensorboard":
            self.loggers = [_TensorBoard(self.folder, settings)]
        elif kind == "wandb":
            self.loggers = [_WeightsAndBiases(self.folder, exp_name, settings)]

    @property
    def csv_path(self) -> Path | None:
        return self.folder / "metrics.csv" if self.folder else None

    def write(self, row: Mapping[str, float | None]) -> None:
        """One step's values by column; None stays empty."""
        known = {name: value for name, value in row.items() if value is not None}
        if self._file is not None:
            self._writer.writerow({name: _text(value) for name, value in known.items()})
            self._file.flush()
        step = int(known["step"])
        scalars = {f"train/{name}": float(value) for name, value in known.items() if name not in ("step", "val_loss")}
        if "val_loss" in known:
            scalars["val/loss"] = float(known["val_loss"])
        for logger in self.loggers:
            logger.write(scalars, step)

    def audio_of(self, step: int) -> Callable[[str, Any, int], None]:
        """What takes the sounds of a step: name, wave float32 [2, N], rate in Hz."""

        def write(name: str, wave: Any, rate: int) -> None:
            for logger in self.loggers:
                logger.audio(f"samples/{name}", wave, rate, step)

        return write

    def close(self) -> None:
        """Close the files and draw the curve of what was logged."""
        for logger in self.loggers:
            logger.close()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.folder is not None and (self.folder / "metrics.csv").is_file():
            draw_losses(self.folder / "metrics.csv", self.folder / "loss.png")


def _new_folder(parent: Path) -> Path:
    """A folder named by date and time; two runs that start in the same second get different ones."""
    name = stamp()
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        folder = parent / f"{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(parent / name)


def _rows_up_to(path: Path | None, last_step: int) -> list[dict[str, str]]:
    """Rows of the curve of the run that is resumed, so that the new curve begins where the run began."""
    if path is None or not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = row.get("step") or ""
            # A row that was being written when the program was killed is left out.
            if step.isdigit() and int(step) <= last_step and None not in row and None not in row.values():
                rows.append({name: row[name] for name in COLUMNS if name in row})
    return rows


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


class _TensorBoard:
    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("settings", "\n".join(f"    {name} = {value}" for name, value in settings.items()))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def audio(self, name: str, wave: Any, rate: int, step: int) -> None:
        # TensorBoard keeps one channel of 16 bits.
        self._writer.add_audio(name, wave.mean(dim=0, keepdim=True).clamp(-1, 1), step, sample_rate=rate)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, exp_name: str, settings: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(project=exp_name, name=folder.name, dir=str(folder), config=dict(settings))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def audio(self, name: str, wave: Any, rate: int, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Audio(wave.T.numpy(), sample_rate=rate)}, step=step)

    def close(self) -> None:
        self._run.finish()


def draw_losses(metrics: Path, image: Path) -> None:
    """Draw training and validation loss of a metrics.csv over the steps; nothing when it has no rows."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # no window, whatever the machine has
    import matplotlib
    from matplotlib.figure import Figure

    columns: dict[str, list[tuple[int, float]]] = {"loss": [], "loss_smooth": [], "val_loss": []}
    with metrics.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, points in columns.items():
                if row.get(name):
                    points.append((int(row["step"]), float(row[name])))
    if not columns["loss"]:
        return
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(10, 5))
        axes = figure.add_axes((0.08, 0.12, 0.89, 0.84))  # an automatic layout takes as long as the drawing
        curves: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("loss", "training loss of each step", {"color": "0.8", "linewidth": 0.8}),
            ("loss_smooth", "training loss, smoothed", {"color": "tab:blue", "linewidth": 2}),
            ("val_loss", "validation loss", {"color": "tab:orange", "linewidth": 2, "marker": "o", "markersize": 4}),
        )
        for name, label, style in curves:
            if columns[name]:
                axes.plot(*zip(*columns[name], strict=True), label=label, **style)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        axes.legend()
        with replace_atomically(image) as temporary:
            figure.savefig(temporary, dpi=120)


class StepLines:
    """The printed line per step: `step 120/2000 | loss 0.1234 | lr 1.00e-04 | 0.31 it/s | left 1:23:45`."""

    def __init__(self, max_steps: int):
        self.max_steps = max_steps
        self._ends = deque([time.perf_counter()], maxlen=RATE_STEPS + 1)

    def restart_clock(self) -> None:
        """Leave out what lies between two steps: loading before the first, saving and validation later."""
        now = time.perf_counter()
        shift = now - self._ends[-1]
        self._ends = deque([end + shift for end in self._ends], maxlen=RATE_STEPS + 1)

    def step_done(self) -> float:
        """Seconds of the step that has just ended."""
        self._ends.append(time.perf_counter())
        return self._ends[-1] - self._ends[-2]

    def line(self, step: int, loss: float, learning_rate: float) -> str:
        seconds = (self._ends[-1] - self._ends[0]) / max(1, len(self._ends) - 1)
        left = datetime.timedelta(seconds=round(seconds * (self.max_steps - step)))
        rate = 1 / seconds if seconds > 0 else 0.0
        return (
            f"step {step}/{self.max_steps} | loss {loss:.4f} | lr {learning_rate:.2e} | {rate:.2f} it/s | left {left}"
        )


class Reports:
    """What is printed and logged of the steps, in their order, as soon as their numbers are known."""

    def __init__(self, metrics: MetricsLog, smooth: SmoothedLoss, max_steps: int, device: torch.device):
        self.metrics = metrics
        self._smooth = smooth
        self._lines = StepLines(max_steps)
        self._device = device
        self._row: dict[str, float | None] = {}

    def start(self) -> None:
        """Called when the first step begins: what was before it is no part of its time and memory."""
        self.restart_clock()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def restart_clock(self) -> None:
        self._lines.restart_clock()

    def step(self, report: StepReport, *, validates: bool) -> None:
        """Print and log a step; where it `validates`, `validation` completes its row."""
        loss, rate = report.values["loss"], report.values["learning_rate"]
        assert loss is not None and rate is not None
        on_card = self._device.type == "cuda"
        self._row = {
            "step": report.step,
            "epoch": report.epoch,
            **report.values,
            "loss_smooth": self._smooth.update(loss),
            "seconds_per_step": self._lines.step_done(),
            "peak_memory_gb": torch.cuda.max_memory_allocated(self._device) / 2**30 if on_card else None,
        }
        say(self._lines.line(report.step, loss, rate))
        if not validates:
            self.metrics.write(self._row)

    def validation(self, step: int, loss: float) -> None:
        """Print and log the validation loss, which completes the last row; step 0 has a row of its own."""
        say(f"validation loss {loss:.4f} at step {step}")
        row = self._row if step else {"step": 0, "epoch": 0}
        self.metrics.write({**row, "val_loss": loss})
        self.restart_clock()


def silence_libraries() -> None:
    """Keep tips and device tables of Lightning out of the user's log."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", module=r"torch\.jit.*")
