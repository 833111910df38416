"""Size, writing and reading time of a training record in the formats that could hold it, and how long training waits.

    python -m benchmarks.record_loading [--seconds 240] [--repeats 7] [--songs 12] [--step_ms 70]

Writes a made-up song of full-size shapes in each format to a temporary folder, then writes and reads the formats in
turn, so that a busy machine is busy for all of them, and prints medians. "Read" ends with tensors in main memory from a
file in the system's cache, features as they are stored (int8, bf16 or float32). Also prints how far the int8 rounding
turns a feature row.

Then feeds a training with records as trainer_new.py does, three epochs of `--songs` songs, whose steps do nothing but
take `--step_ms` each, and prints what the main thread had to give for a batch: its own time and how long it waited.

Needs h5py and hdf5plugin for the HDF5 line.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FRAMES_PER_SECOND = {"mert": (74.8, 1024), "mhubert": (49.97, 768)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="length of the song (s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements per format; the median is printed")
    parser.add_argument("--songs", type=int, default=12, help="songs of the training that is fed")
    parser.add_argument("--step_ms", type=float, default=70.0, help="length of its steps (ms)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    import torch

    from ace_lora.records.format import SECONDS_PER_LATENT_FRAME, Record
    from ace_lora.records.record import quantise_rows, read_record, restore_rows, write_record

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    record = Record(
        keys="song",
        target_latents=torch.randn(8, 16, round(args.seconds / SECONDS_PER_LATENT_FRAME), generator=generator),
        text_token_ids=torch.arange(64),
        lyric_token_ids=torch.arange(1024) % 6693,
        metadata={"prompt": "pop", "seconds": args.seconds},
    )
    for branch, (rate, width) in FRAMES_PER_SECOND.items():
        # The earlier scripts store float32 that was bf16 once; half of its bytes are zero and compress away.
        rows = torch.randn(round(args.seconds * rate), width, generator=generator).to(torch.bfloat16).float()
        setattr(record, branch, rows)

    with tempfile.TemporaryDirectory() as folder:
        formats: dict[str, tuple[Path, Callable, Callable]] = {
            "HDF5 float32, shuffle + zstd": (Path(folder, "a.hdf5"), write_hdf5, read_record),
            "safetensors bf16": (Path(folder, "b.safetensors"), write_bf16, read_bf16),
            "safetensors int8 rows, checked": (Path(folder, "c.safetensors"), write_record, read_record),
        }
        written: dict[str, list[float]] = {name: [] for name in formats}
        read: dict[str, list[float]] = {name: [] for name in formats}
        for _ in range(args.repeats):
            for name, (path, write, load) in formats.items():
                started = time.perf_counter()
                write(path, record)
                written[name].append(time.perf_counter() - started)
                started = time.perf_counter()
                load(path)
                read[name].append(time.perf_counter() - started)

        print(f"{args.seconds:g} s of audio, one thread, medians of {args.repeats}")
        print(f"{'format':32} {'MB':>6} {'MB/s of audio':>14} {'write ms':>9} {'read ms':>8}")
        for name, (path, _, _) in formats.items():
            size = path.stat().st_size / 1e6
            times = [1000 * statistics.median(measured[name]) for measured in (written, read)]
            print(f"{name:32} {size:6.1f} {size / args.seconds:14.3f} {times[0]:9.0f} {times[1]:8.1f}")

    for branch in FRAMES_PER_SECOND:
        rows = getattr(record, branch)
        turned = 1 - torch.cosine_similarity(rows.double(), restore_rows(*quantise_rows(rows)).double())
        print(f"int8 {branch}: 1 - cosine with the unrounded row: mean {turned.mean():.1e}, worst {turned.max():.1e}")

    feed(args, record)


def feed(args: argparse.Namespace, record) -> None:
    """Print the waits of a training's main thread, with and without keeping records in main memory."""
    import torch

    from ace_lora.records.cache import RecordCache
    from ace_lora.records.record import write_record
    from ace_lora.training.batches import SampleReader, SampleSettings
    from ace_lora.training.feed import Feed, batch_stream
    from ace_lora.training.plan import Plan
    from ace_lora.training.songs import scan_dataset

    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.songs):
            write_record(Path(folder, f"{number}.safetensors"), record)
        songs = scan_dataset(Path(folder), need_ssl=True)
        plan = Plan([song.frames for song in songs], seed=0)
        steps = 3 * args.songs

        def pin(batch):
            return batch.pin_memory() if torch.cuda.is_available() else batch

        print(f"\n{args.songs} songs, steps of {args.step_ms:g} ms: ms of the main thread per step")
        print(
            f"{'records':12} {'threads':>7} {'first wait':>10} {'own time':>9} {'median wait':>11} {'longest wait':>12}"
        )
        for kept in (False, True):
            for num_workers in (0, 2):
                reader = SampleReader(songs, SampleSettings(), cache=RecordCache(10**12 if kept else 0))
                stream = batch_stream(reader, plan, first=0, last=steps, num_workers=num_workers)
                batches = iter(Feed(stream, pin))
                waits, own = [], []
                for _ in range(steps):
                    started, worked = time.perf_counter(), time.thread_time()
                    next(batches)
                    waits.append(1000 * (time.perf_counter() - started))
                    own.append(1000 * (time.thread_time() - worked))
                    time.sleep(args.step_ms / 1000)
                first, *later = waits
                print(
                    f"{'kept' if kept else 'read anew':12} {num_workers:7} {first:10.1f} {statistics.median(own):9.2f} "
                    f"{statistics.median(later):11.2f} {max(later):8.2f}"
                )


def write_hdf5(path: Path, record) -> None:
    """The table of the earlier training scripts: chunked, byte shuffle, Zstandard level 3."""
    import h5py
    import hdf5plugin
    import numpy as np

    values = {
        "target_latents": record.target_latents.numpy(),
        "attention_mask": np.ones(record.target_latents.shape[2], np.float32),
        "text_token_ids": record.text_token_ids.numpy(),
        "text_attention_mask": np.ones(len(record.text_token_ids), np.float32),
        "speaker_embds": np.zeros(512, np.float32),
        "lyric_token_ids": record.lyric_token_ids.numpy(),
        "lyric_mask": np.ones(len(record.lyric_token_ids), np.float32),
        "mert_ssl_hidden_states": record.mert.numpy(),
        "mhubert_ssl_hidden_states": record.mhubert.numpy(),
    }
    with h5py.File(path, "w") as file:
        file.create_dataset("keys", data=record.keys, dtype=h5py.string_dtype("utf-8"))
        for name, array in values.items():
            file.create_dataset(name, data=array, chunks=True, shuffle=True, **hdf5plugin.Zstd())


def write_bf16(path: Path, record) -> None:
    import torch
    from safetensors.torch import save_file

    features = {branch: getattr(record, branch).to(torch.bfloat16) for branch in FRAMES_PER_SECOND}
    ids = {name: getattr(record, name) for name in ("text_token_ids", "lyric_token_ids")}
    save_file({"target_latents": record.target_latents, **ids, **features}, path)


def read_bf16(path: Path) -> dict:
    from safetensors.torch import load

    # From bytes: `load_file` maps the file, and the reading would fall into the first use.
    return load(path.read_bytes())


if __name__ == "__main__":
    main(parse_args())
