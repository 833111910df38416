"""Time and memory of each stage of preprocessing, and the share of it that the networks take.

    python -m benchmarks.preprocessing --config full --seconds 30
    python -m benchmarks.preprocessing --config full --seconds 60 --stages mert --all_chunks

Decodes a made-up song, and runs each network (random weights) in a process of its own, as preprocessing loads one at a
time. Prints ms per second of audio (medians), seconds of audio per second, the network's share of its stage, and the
stage's peak memory. `--all_chunks` puts all chunks of the song into one batch, as earlier scripts do.

The mHuBERT network works on 30 s at once: shorter songs cost as much as 30 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("decode", "latents", "mert", "mhubert", "write")

# Published sizes; `tiny` takes those of ace_lora.tiny_base.
HUBERT_BASE = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "feat_extract_norm": "group",
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
MERT_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MHUBERT_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
DCAE_SIZES = {
    "attention_head_dim": 32,
    "encoder_block_out_channels": [128, 256, 512, 1024],
    "decoder_block_out_channels": [128, 256, 512, 1024],
    "encoder_layers_per_block": [2, 2, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("tiny", "full"), default="tiny", help="sizes of the networks")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the song (s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per stage; the median is printed")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to measure")
    parser.add_argument("--all_chunks", action="store_true", help="all SSL chunks in one batch, for comparison")
    parser.add_argument("--in_this_process", action="store_true", help="print one stage's figures as JSON")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.in_this_process:
        print(json.dumps(measure(args.stages[0], args)))
        return
    print(f"{args.config} networks, {args.seconds:g} s of audio, medians of {args.repeats}")
    print(f"{'stage':8} {'ms per s':>9} {'audio s per s':>14} {'network share':>14} {'peak memory GB':>15}")
    total = network = 0.0
    for stage in args.stages:
        command = [sys.executable, "-m", "benchmarks.preprocessing", "--in_this_process", "--stages", stage]
        command += ["--config", args.config, "--seconds", str(args.seconds), "--repeats", str(args.repeats)]
        command += ["--device", args.device, *(["--all_chunks"] if args.all_chunks else [])]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        total += figures["total"]
        network += figures["network"]
        share = f"{figures['network'] / figures['total']:14.1%}" if figures["network"] else f"{'':14}"
        peak = f"{figures['peak_gb']:15.2f}" if figures["peak_gb"] else f"{'not measured':>15}"
        per_second = 1000 * figures["total"] / args.seconds
        print(f"{stage:8} {per_second:9.2f} {args.seconds / figures['total']:14.1f} {share} {peak}")
    print(f"networks: {network / total:.1%} of the time")


def measure(stage: str, args: argparse.Namespace) -> dict[str, float | None]:
    """Median seconds of a stage on the song, those within its network, and the peak memory of this process."""
    import torch

    from ace_lora.device import choose_device

    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        run, front_end = prepare(stage, args, device, Path(folder))
        run()
        totals, fronts = [], []
        for _ in range(args.repeats):
            totals.append(timed(run, device))
            if front_end:
                fronts.append(timed(front_end, device))
    total = statistics.median(totals)
    network = total - statistics.median(fronts) if fronts else 0.0
    if device.torch_device.type == "cuda" and fronts:
        return {"total": total, "network": network, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"total": total, "network": network, "peak_gb": peak_memory_gb()}


def timed(function: Any, device: Any) -> float:
    import torch

    started = time.perf_counter()
    function()
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory_gb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def prepare(stage: str, args: argparse.Namespace, device: Any, folder: Path) -> tuple[Any, Any]:
    """A function that does the stage once, and one that does what comes before its network (None: there is none)."""
    import torch

    from ace_lora import dcae, ssl_features
    from ace_lora.audio import prepare_waveform, read_audio
    from ace_lora.mel import log_mel, normalise
    from ace_lora.records import SECONDS_PER_LATENT_FRAME, Record, write_record

    generator = torch.Generator().manual_seed(0)
    wave = torch.rand(2, int(48000 * args.seconds), generator=generator) - 0.5
    if stage == "decode":
        import soundfile

        soundfile.write(folder / "song.mp3", wave.T[: int(44100 * args.seconds)].numpy(), 44100)
        return lambda: prepare_waveform(read_audio(folder / "song.mp3")), None
    if stage == "write":
        record = Record(
            "song",
            torch.randn(8, 16, round(args.seconds / SECONDS_PER_LATENT_FRAME), generator=generator),
            torch.ones(50, dtype=torch.int64),
            torch.ones(1000, dtype=torch.int64),
            torch.randn(round(args.seconds * 74.8), 1024, generator=generator),
            torch.randn(round(args.seconds * 49.97), 768, generator=generator),
        )
        return lambda: write_record(folder / "song.safetensors", record), None

    if args.config == "full":
        network = full_network(stage).to(device.torch_device, device.dtype).eval().requires_grad_(False)
    else:
        network = tiny_network(stage, device, folder)
    on_device = wave.to(device.torch_device) if device.torch_device.type == "cuda" else wave
    if stage == "latents":
        return (
            lambda: dcae.encode_latents(network, wave),
            lambda: normalise(log_mel(dcae._at_latent_rate(on_device))),
        )
    branch = {"mert": ssl_features.MERT, "mhubert": ssl_features.MHUBERT}[stage]
    chunks = 10**6 if args.all_chunks else None
    return (
        lambda: ssl_features.extract_features(network, wave, branch, chunks),
        lambda: ssl_features.standardised_chunks(on_device, branch),
    )


def full_network(stage: str) -> Any:
    if stage == "latents":
        from diffusers import AutoencoderDC

        from ace_lora.tiny_base import DCAE_CONFIG

        config = {key: value for key, value in {**DCAE_CONFIG, **DCAE_SIZES}.items() if not key.startswith("_")}
        return AutoencoderDC(**config).encoder
    from transformers import HubertConfig, HubertModel

    if stage == "mert":
        return HubertModel(HubertConfig(**HUBERT_BASE, **MERT_SIZES, do_stable_layer_norm=True))
    return HubertModel(HubertConfig(**HUBERT_BASE, **MHUBERT_SIZES))


def tiny_network(stage: str, device: Any, folder: Path) -> Any:
    from ace_lora import dcae, ssl_features
    from ace_lora.tiny_base import make_tiny_base

    make_tiny_base(folder / "tiny")
    load, name = {
        "latents": (dcae.load_latent_encoder, "music_dcae_f8c8"),
        "mert": (ssl_features.load_mert, "MERT-v1-330M"),
        "mhubert": (ssl_features.load_mhubert, "mHuBERT-147"),
    }[stage]
    return load(folder / "tiny" / name, device=device.torch_device, dtype=device.dtype)


if __name__ == "__main__":
    main(parse_args())
