"""Run with: pytest tests/test_metrics.py"""

import csv
import re

import pytest

from ace_lora.training import metrics


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_there_at_once_and_unknown_values_are_empty(tmp_path):
    log = metrics.MetricsLog("csv", tmp_path, "实验", {"seed": 1})
    log.write({"step": 1, "epoch": 0, "loss": 0.5, "prodigy_d": None})
    (row,) = read(log.csv_path)
    assert row["step"] == "1" and row["loss"] == "0.5" and row["prodigy_d"] == row["val_loss"] == ""
    log.write({"step": 2, "epoch": 0, "loss": 0.25, "val_loss": 0.75})
    log.close()
    assert (log.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_of_one_second_have_their_own_folders(tmp_path):
    logs = [metrics.MetricsLog("csv", tmp_path, "x", {}) for _ in range(3)]
    assert len({log.folder for log in logs}) == 3
    for log in logs:
        log.close()
        assert not (log.folder / "loss.png").exists()  # nothing to draw


def test_tensorboard_holds_the_same_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = metrics.MetricsLog("tensorboard", tmp_path, "x", {})
    log.write({"step": 3, "epoch": 0, "loss": 0.5, "learning_rate": 1e-4, "val_loss": 0.25})
    log.close()
    events = EventAccumulator(str(log.folder)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/epoch", "train/loss", "train/learning_rate", "val/loss"}
    assert events.Scalars("val/loss")[0].value == 0.25 and events.Scalars("train/loss")[0].step == 3


def test_rows_of_the_earlier_run_up_to_the_resumed_step(tmp_path):
    earlier = metrics.MetricsLog("csv", tmp_path, "x", {})
    for step in (1, 2, 3, 4):
        earlier.write({"step": step, "loss": step / 10})
    path = earlier.csv_path
    path.write_text(path.read_text(encoding="utf-8") + "1", encoding="utf-8")  # was being written when killed
    log = metrics.MetricsLog("csv", tmp_path, "x", {}, earlier=path, first_step=2)
    log.write({"step": 3, "loss": 9.0})
    assert [(row["step"], row["loss"]) for row in read(log.csv_path)] == [("1", "0.1"), ("2", "0.2"), ("3", "9.0")]


def test_smoothed_loss_starts_unbiased_and_continues_exactly():
    one = metrics.SmoothedLoss()
    assert one.update(2.0) == pytest.approx(2.0)
    assert one.update(4.0) == pytest.approx((0.98 * 0.02 * 2 + 0.02 * 4) / (0.02 + 0.98 * 0.02))
    other = metrics.SmoothedLoss(one.total, one.weight)
    assert other.update(1.0) == one.update(1.0)


def test_step_line():
    lines = metrics.StepLines(2000)
    lines.step_done()
    line = lines.line(120, 0.12344, 1e-4)
    assert re.fullmatch(r"step 120/2000 \| loss 0\.1234 \| lr 1\.00e-04 \| [\d.]+ it/s \| left [\d:, days]+", line)


@pytest.mark.parametrize(("ends", "rate", "left"), [([14.0], "0.25", "0:00:36"), ([14.0, 20.0], "0.20", "0:00:45")])
def test_the_rate_counts_steps_not_their_ends(monkeypatch: pytest.MonkeyPatch, ends: list[float], rate: str, left: str):
    clock = iter([10.0, *ends])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    lines = metrics.StepLines(10)
    for _ in ends:
        lines.step_done()
    assert lines.line(1, 0.5, 1e-4) == f"step 1/10 | loss 0.5000 | lr 1.00e-04 | {rate} it/s | left {left}"
