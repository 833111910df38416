"""The log text of ace_gui.py: bytes to lines, progress, known errors, the trainer's figures. Needs no display."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import ace_gui
from ace_gui import Curve, LogText, Progress, explain_exit, parse_progress, recognise_errors


def lines_of(*chunks: bytes, final: bool = True) -> tuple[list[str], str]:
    text = LogText()
    for chunk in chunks:
        text.feed(chunk)
    if final:
        text.feed(b"", final=True)
    _, lines, current = text.take(10**6)
    return lines, current


def test_lines_and_an_unfinished_last_one():
    assert lines_of(b"one\ntwo\nthr", final=False) == (["one", "two"], "thr")
    assert lines_of(b"one\ntwo\nthr") == (["one", "two", "thr"], "")


def test_carriage_return_overwrites_its_line():
    assert lines_of(b"\r 10%|#", b"\r 50%|##", b"\r100%|###\ndone\n") == (["100%|###", "done"], "")
    assert lines_of(b"\r 10%|#\r 50%|##", final=False) == ([], " 50%|##")


def test_carriage_return_at_the_end_of_a_chunk_waits_for_what_follows():
    assert lines_of(b"windows line\r", b"\nnext\r\n") == (["windows line", "next"], "")
    assert lines_of(b"abc\r", b"xyz\n") == (["xyz"], "")


def test_a_character_split_between_chunks_stays_whole():
    data = "夜空中最亮的星\n".encode()
    for cut in range(1, len(data)):
        assert lines_of(data[:cut], data[cut:]) == (["夜空中最亮的星"], "")


def test_invalid_bytes_are_replaced_and_nothing_else_is_lost():
    assert lines_of(b"a\xff\xfeb\nnext\n") == (["a\ufffd\ufffdb", "next"], "")


def test_escape_sequences_are_dropped_also_when_split():
    assert lines_of(b"\x1b[31mred\x1b[0m\n") == (["red"], "")
    assert lines_of(b"\x1b[3", b"1mred\x1b[0m\n") == (["red"], "")
    assert lines_of(b"\x1b]0;title\x07plain\n") == (["plain"], "")


def test_two_bars_of_tqdm_share_one_line():
    lines, current = lines_of(*[b"\r%d%%|a|\n\r%d%%|b|\x1b[A" % (n, n) for n in range(200)], final=False)
    assert lines == [] and current.endswith("b|")


def test_a_flood_keeps_the_last_lines_and_counts_the_others():
    text = LogText(keep=100)
    text.feed(b"".join(b"line %d\n" % n for n in range(1000)))
    skipped, lines, _ = text.take(10**6)
    assert (skipped, len(lines), lines[0], lines[-1]) == (900, 100, "line 900", "line 999")
    assert text.total == 1000
    assert text.take(10)[0] == 0


def test_a_line_without_end_does_not_fill_memory():
    text = LogText()
    for _ in range(300):
        text.feed(b"x" * 10_000)
    assert len(text.take(1)[2]) == 100_000


def test_an_error_in_lines_that_the_pane_never_shows_is_still_recognised():
    text = LogText(keep=10)
    text.feed(b"torch.OutOfMemoryError: CUDA out of memory.\n" + b"later\n" * 500)
    assert text.errors == [("err.cuda_memory", {})]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "step 120/2000 | loss 0.1234 | lr 1.00e-04 | 0.31 it/s | left 1:23:45",
            Progress(120, 2000, "step", rate=0.31, left=5025.0, loss=0.1234, learning_rate=1e-4),
        ),
        ("song 3/20 | 夜.mp3 | done", Progress(3, 20, "song", label="夜.mp3")),
        ("song 3/20 | a.mp3 | failed: silent", Progress(3, 20, "song", label="a.mp3", failed=True)),
        (
            "captions:  45%|████▌     | 9/20 [00:10<00:12,  1.10s/it]",
            Progress(9, 20, "bar", label="captions", rate=1 / 1.1, left=12.0),
        ),
        (
            "Epoch 0:  12%|█▏| 12/100 [00:03<00:22,  4.00it/s, v_num=0, train/loss=0.5]",
            Progress(12, 100, "bar", label="Epoch 0", rate=4.0, left=22.0, loss=0.5),
        ),
        (
            "model.safetensors:  5%|▌ | 1.5G/30.0G [00:10<03:00, 150MB/s]",
            Progress(int(1.5e9), int(30e9), "bar", "model.safetensors", left=180.0),
        ),
        ("nothing of the kind", None),
        ("0%|          | 0/0 [00:00<?, ?it/s]", None),
    ],
)  # fmt: skip
def test_progress_lines(line: str, expected: Progress | None):
    assert parse_progress(line) == expected


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "err.cuda_memory"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: not enough memory", "err.memory"),
        ("OSError: [WinError 1455] The paging file is too small for this operation to complete.", "err.paging"),
        ("ModuleNotFoundError: No module named 'peft'", "err.package"),
        ("ModuleNotFoundError: No module named 'triton'", "err.triton"),
        ("ValueError: bf16 is not supported on this device", "err.bf16"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: …", "err.offline"),
        ("OSError: [Errno 28] No space left on device", "err.space"),
        ("OSError: [Errno 36] File name too long: 'x'", "err.path"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040)", "err.driver"),
        ("AssertionError: Torch not compiled with CUDA enabled", "err.cpu_torch"),
        ("RuntimeError: No CUDA GPUs are available", "err.no_card"),
        ("CUDA error: no kernel image is available for execution on the device", "err.kernel"),
        ("PyTorch is checking whether allow_tf32 … mix of the legacy and new APIs to set the TF32", "err.tf32"),
        ("PermissionError: [Errno 13] Permission denied: 'C:\\\\Program Files'", "err.permission"),
        ("PermissionError: [WinError 32] The process cannot access the file", "err.in_use"),
        ("requests.exceptions.SSLError: CERTIFICATE_VERIFY_FAILED", "err.certificate"),
        ("HTTPSConnectionPool: Max retries exceeded with url", "err.network"),
        ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "err.weights"),
        ("error: The loss is non-finite at step 12", "err.nan"),
        ("soundfile.LibsndfileError: Error opening 'a.mp3': Format not recognised.", "err.audio"),
        ("RuntimeError: DataLoader worker (pid 12) exited unexpectedly", "err.workers"),
        ("ImportError: DLL load failed while importing _C: the module could not be found", "err.dll"),
        ("trainer_new.py: error: unrecognized arguments: --foo", "err.flags"),
        ("wandb.errors.UsageError: api key not configured (no-tty)", "err.wandb"),
    ],
)
def test_known_errors_are_recognised(line: str, key: str):
    assert recognise_errors(f"before\n{line}\nafter")[0][0] == key


def test_every_known_error_is_explained_in_both_languages():
    for key, literals in ace_gui.KNOWN_ERRORS:
        assert all(literal == literal.lower() for literal in literals), key
        for language in ace_gui.LANGUAGES:
            assert ace_gui.say(language, key, {"name": "x"})
    assert len(ace_gui.KNOWN_ERRORS) >= 20


def test_a_missing_package_is_named():
    assert recognise_errors("ModuleNotFoundError: No module named 'peft.tuners'") == [
        ("err.package", {"name": "peft.tuners"})
    ]


def test_exit_status_explains_when_no_line_does():
    assert explain_exit(-9, []) == [("err.killed", {})]
    assert explain_exit(3221225477, []) == [("err.crash", {})]
    assert explain_exit(2, []) == [("err.input", {})]
    assert explain_exit(1, []) == [("err.unknown", {})]
    both = [("err.network", {}), ("err.cuda_memory", {}), ("err.audio", {})]
    assert explain_exit(1, both) == [("err.cuda_memory", {}), ("err.network", {})]


@pytest.mark.parametrize(
    ("line", "look"),
    [
        ("error: no songs", "bad"), ("Traceback (most recent call last):", "bad"), ("UserWarning: slow", "warn"),
        ("done 18, skipped 1, failed 0", ""), ("done 18, skipped 1, failed 2", "bad"), ("$ python x.py", "head"),
        ("song 1/2 | terrors.mp3 | done", ""),
    ],
)  # fmt: skip
def test_colours_of_lines(line: str, look: str):
    assert ace_gui.line_look(line) == look


HEADER = (
    "step,epoch,loss,loss_smooth,denoising_loss,mert_loss,m-hubert_loss,learning_rate,grad_norm,seconds_per_step,"
    "peak_memory_gb,prodigy_d,val_loss\n"
)


def test_curve_reads_a_file_as_it_grows(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    curve = Curve(path)
    assert not curve.poll()
    path.write_text(HEADER + "1,0,0.5,0.5,0.4,,,1e-05,,,,,\n2,0,0.4,", encoding="utf-8")
    assert curve.poll()
    assert (curve.steps, curve.loss, curve.rate) == ([1], [0.5], [1e-5])
    with path.open("a", encoding="utf-8") as file:
        file.write("0.45,0.3,,,1e-05,,,,,0.9\n")
    assert curve.poll() and not curve.poll()
    assert (curve.steps, curve.loss, curve.smooth, curve.validation) == ([1, 2], [0.5, 0.4], [0.5, 0.45], [(2, 0.9)])


def test_curve_starts_again_when_the_file_was_written_anew(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "".join(f"{n},0,0.5,,,,,,,,,,\n" for n in range(1, 50)), encoding="utf-8")
    curve = Curve(path)
    curve.poll()
    path.write_text(HEADER + "1,0,0.25,,,,,,,,,,\n", encoding="utf-8")
    curve.poll()
    assert (curve.steps, curve.loss) == ([1], [0.25])


def test_a_resumed_run_replaces_the_steps_that_it_repeats():
    curve = Curve()
    for step in (1, 2, 3, 4, 3, 4, 5):
        curve.add(step, step / 10)
    assert curve.steps == [1, 2, 3, 4, 5] and len(curve.loss) == len(curve.smooth) == len(curve.rate) == 5


def test_a_spoilt_row_is_passed_over(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(HEADER.encode() + b"1,0,0.5,,,,,,,,,,\n\xff\xfe,,\n3,0,nan,,,,,,,,,,\n4,0,0.3,,,,,,,,,,\n")
    curve = Curve(path)
    curve.poll()
    assert curve.steps == [1, 4]


def test_thinning_keeps_the_extremes_and_bounds_the_number():
    steps = list(range(100_000))
    values = [0.5] * 100_000
    values[31_415], values[77_777] = 9.0, -9.0
    points = ace_gui.thin_out(steps, values, 300)
    assert len(points) <= 600
    assert (31_415.0, 9.0) in points and (77_777.0, -9.0) in points


def test_axis_ticks_are_round_and_inside():
    assert ace_gui.nice_ticks(0, 1) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ace_gui.nice_ticks(0, 2000) == [0.0, 500.0, 1000.0, 1500.0, 2000.0]
    ticks = ace_gui.nice_ticks(0.0123, 0.0187)
    assert 2 <= len(ticks) <= 8 and all(0.0123 <= tick <= 0.0187 for tick in ticks)
    assert ace_gui.nice_ticks(3, 3) == [3]


def test_metrics_are_found_in_the_run_folders(tmp_path: Path):
    assert ace_gui.find_metrics(tmp_path / "nowhere") is None
    run = tmp_path / "ace_step_lora" / "2026-01-01_00-00-00"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step\n")
    assert ace_gui.find_metrics(tmp_path) == run / "metrics.csv"


def test_the_window_does_not_wait_while_a_chunk_is_searched_for_errors(monkeypatch: pytest.MonkeyPatch):
    searching, go_on = threading.Event(), threading.Event()

    def search(_text: str) -> list:
        searching.set()
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(ace_gui, "recognise_errors", search)
    text = LogText()
    reader = threading.Thread(target=text.feed, args=(b"one\ntwo\n",))
    reader.start()
    assert searching.wait(30)
    assert text.take(10) == (0, [], "")  # would hang here
    go_on.set()
    reader.join()
    assert text.take(10) == (0, ["one", "two"], "")
