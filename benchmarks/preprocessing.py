"""Time and memory of preprocessing, beside the reference's way of doing it.

    python -m benchmarks.preprocessing --config full --seconds 30           each stage, a quarter of an hour on 2 cores
    python -m benchmarks.preprocessing --config full --seconds 30 --whole   the script itself, on several songs
    python -m benchmarks.preprocessing --config full --seconds 240 --peak   its peak of memory, on one song

The reference's way is what the published scripts do: every network is loaded at once (both halves of the autoencoder,
vocoder, text encoder, MERT, mHuBERT, and the transformer, which this step never uses), the encoder takes the song in
one pass, the SSL models take all chunks of a song in one batch.

Stages: ours and the reference's way run in alternation in one process per network, with equal random weights. Printed
are medians, the share of ours that is spent in the network, and how far the two results are apart.
`--whole` runs preprocess_dataset_new.py on made-up MP3 files with lyrics and prints the share of its time that the
networks take: on a CPU the time inside them, on CUDA the time in which the card works (from its own trace).
`--peak` runs both ways in processes of their own and prints the peak of main memory, or of the card's on CUDA. With
the transformer and the published sizes the reference's way takes 20 GB for 240 s in float32; `--without_transformer`
measures only the rest, which is the stricter comparison.

The mHuBERT network works on 30 s at once: shorter songs cost as much as 30 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NETWORKS = {"latents": "music_dcae_f8c8", "mert": "MERT-v1-330M", "mhubert": "mHuBERT-147"}
STAGES = ("decode", *NETWORKS, "write")

# What differs from the configurations of ace_lora.tiny_base.configs: `full` are the published sizes.
HUBERT_BASE = {
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "feat_extract_norm": "group",
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}


def hubert_sizes(width: int, layers: int, convolutions: int, stable: bool) -> dict[str, Any]:
    return HUBERT_BASE | {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "conv_dim": [convolutions] * 7,
        "do_stable_layer_norm": stable,
    }


def dcae_sizes(widths: list[int]) -> dict[str, Any]:
    return {
        "attention_head_dim": 32,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": [2, 2, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3],
    }


SIZES = {
    "tiny": {},
    "mid": {
        "latents": dcae_sizes([32, 64, 128, 256]),
        "mert": hubert_sizes(384, 8, 128, stable=True),
        "mhubert": hubert_sizes(256, 6, 128, stable=False),
    },
    "full": {
        "latents": dcae_sizes([128, 256, 512, 1024]),
        "mert": hubert_sizes(1024, 24, 512, stable=True),
        "mhubert": hubert_sizes(768, 12, 512, stable=False),
    },
}
UMT5_BASE = {"vocab_size": 256_384, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=SIZES, default="mid", help="sizes of the networks (default: mid)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a song (default: 30)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per stage, of which the median is printed")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to measure")
    parser.add_argument("--songs", type=int, default=4, help="songs of --whole (default: 4)")
    parser.add_argument("--whole", action="store_true", help="measure a whole run of preprocess_dataset_new.py")
    parser.add_argument("--peak", action="store_true", help="measure the peak of memory against the reference's way")
    parser.add_argument("--without_transformer", action="store_true", help="leave it out of the reference's way")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.child:
        kind, folder, *rest = args.child
        children: dict[str, Callable[..., dict[str, Any]]] = {
            "stage": measure_stage,
            "run": measure_run,
            "reference": measure_reference,
        }
        print(json.dumps(children[kind](args, Path(folder), *rest)))
        return
    with tempfile.TemporaryDirectory(prefix="preprocessing_") as name:
        folder = Path(name)
        make_base(folder / "base", args.config)
        if args.peak:
            print_peak(args, folder)
        elif args.whole:
            print_whole(args, folder)
        else:
            print_stages(args, folder)


def in_child(args: argparse.Namespace, kind: str, *rest: object) -> dict[str, Any]:
    """Figures of a process of its own, so that each has its own peak of memory."""
    command = [sys.executable, "-m", "benchmarks.preprocessing", *sys.argv[1:], "--child", kind, *map(str, rest)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])


# --- Each stage ---


def print_stages(args: argparse.Namespace, folder: Path) -> None:
    print(f"{args.config} networks, {args.seconds:g} s of audio, medians of {args.repeats}")
    titles = ("ms per s", "audio s per s", "network share", "of reference", "difference")
    print(f"{'stage':8}" + "".join(f"{title:>15}" for title in titles))
    total = network = 0.0
    for stage in args.stages:
        figures = in_child(args, "stage", folder, stage)
        ours, front = figures["ours"], figures["front"]
        total += ours
        columns = [f"{1000 * ours / args.seconds:.2f}", f"{args.seconds / ours:.2f}"]
        if stage in NETWORKS:
            network += ours - front
            columns += [f"{1 - front / ours:.1%}", f"{ours / figures['reference']:.2f}", f"{figures['difference']:.1e}"]
        print(f"{stage:8}" + "".join(f"{column:>15}" for column in columns), flush=True)
    print(f"all      {args.seconds / total:.2f} s of audio per second, networks {network / total:.1%} of the time")


def measure_stage(args: argparse.Namespace, folder: Path, stage: str) -> dict[str, float]:
    """Median seconds of our way, of what comes before its network, and of the reference's; and how far they differ."""
    import torch

    from ace_lora.device import choose_device

    device = choose_device(args.device)
    ways = network_ways(stage, args, device, folder / "base") if stage in NETWORKS else file_ways(stage, args, folder)
    results = {name: way() for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            times[name].append(timed(way, device))
    figures = {"front": 0.0} | {name: statistics.median(values) for name, values in times.items()}
    if "reference" in results:
        ours, reference = results["ours"].double(), results["reference"].double()
        assert ours.shape == reference.shape
        figures["difference"] = float(torch.linalg.vector_norm(ours - reference) / torch.linalg.vector_norm(reference))
    return figures


def timed(function: Callable[[], Any], device: Any) -> float:
    import torch

    started = time.perf_counter()
    function()
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize(device.torch_device)
    return time.perf_counter() - started


def file_ways(stage: str, args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Any]]:
    import torch

    from ace_lora.audio.decode import prepare_waveform, read_audio
    from ace_lora.records.format import SECONDS_PER_LATENT_FRAME, Record
    from ace_lora.records.record import write_record

    if stage == "decode":
        write_song(folder / "song.mp3", args.seconds)
        return {"ours": lambda: prepare_waveform(read_audio(folder / "song.mp3"))}
    generator = torch.Generator().manual_seed(0)
    record = Record(
        "song",
        torch.randn(8, 16, round(args.seconds / SECONDS_PER_LATENT_FRAME), generator=generator),
        torch.ones(50, dtype=torch.int64),
        torch.ones(1000, dtype=torch.int64),
        torch.randn(round(args.seconds * 74.8), 1024, generator=generator),
        torch.randn(round(args.seconds * 49.97), 768, generator=generator),
    )
    return {"ours": lambda: write_record(folder / "song.safetensors", record)}


def network_ways(stage: str, args: argparse.Namespace, device: Any, base: Path) -> dict[str, Callable[[], Any]]:
    import torch

    from ace_lora.preprocessing import networks

    network = networks.load_network(stage, base / NETWORKS[stage], device.torch_device, device.dtype)
    wave = torch.rand(2, int(48000 * args.seconds), generator=torch.Generator().manual_seed(0)) - 0.5
    wave = wave.to(device.torch_device) if device.torch_device.type == "cuda" else wave

    def front() -> tuple[Any, ...]:
        with torch.inference_mode():
            return networks.network_input(stage, wave)

    return {
        "ours": lambda: networks.begin_network(stage, network, front())(),
        "front": front,
        "reference": lambda: reference_result(stage, network, front()),
    }


def reference_result(stage: str, network: Any, values: tuple[Any, ...]) -> Any:
    """The library's own forward pass on all of the song at once."""
    import torch

    from ace_lora.v1 import dcae

    parameter = next(network.parameters())
    with torch.inference_mode():
        given = values[0].to(parameter.device, parameter.dtype)
        if stage == "latents":
            return ((network(given[None])[0].float() - dcae.LATENT_SHIFT) * dcae.LATENT_SCALE).cpu()
        states = network(given).last_hidden_state.float().cpu()
    chunk = given.shape[1]
    last = -(-(values[1] - (len(given) - 1) * chunk) // 320)
    return torch.cat([*states[:-1], states[-1][:last]])


# --- The script as a whole ---


def print_whole(args: argparse.Namespace, folder: Path) -> None:
    make_project(folder, args.songs, args.seconds)
    figures = in_child(args, "run", folder)
    audio, started = args.songs * args.seconds, figures["wall"] - figures["loading"]
    print(f"{args.config} networks, {args.songs} songs of {args.seconds:g} s, {figures['device']}")
    print(f"whole run       {figures['wall']:8.1f} s, {audio / figures['wall']:.2f} s of audio per second")
    print(f"loading         {figures['loading']:8.1f} s: imports, weights and what is checked before the first song")
    print(f"networks        {figures['networks']:8.1f} s, {figures['networks'] / started:.1%} of the rest")
    print(f"peak of memory  {figures['peak_gb']:8.2f} GB")


def make_project(folder: Path, songs: int, seconds: float) -> None:
    import convert2hf_dataset_new as convert

    for number in range(songs):
        write_song(folder / "歌" / f"夜曲 {number}.mp3", seconds, seed=number)
    arguments = ["--data_dir", str(folder / "歌"), "--output_name", str(folder / "filenames")]
    with contextlib.redirect_stdout(None):
        convert.main(convert.parse_args(arguments))


def measure_run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run step 5 in this process, on songs that have no records yet, and look at it from outside."""
    import preprocess_dataset_new as preprocess
    from ace_lora.device import choose_device
    from ace_lora.preprocessing import networks

    arguments = ["--input_name", str(folder / "filenames"), "--output_dir", str(folder / "prep")]
    arguments += ["--checkpoint_dir", str(folder / "base"), "--device", args.device]
    device = choose_device(args.device)
    clock = Clock()
    clock.watch(networks, "load_network", "loading")
    clock.watch(preprocess, "run_networks", "after_checks")
    clock.watch(networks, "begin_network", "networks")
    started = time.perf_counter()
    with working_time(device) as busy:
        preprocess.main(preprocess.parse_args(arguments))
    wall = time.perf_counter() - started
    loading = clock.seconds["loading"] + (clock.first["after_checks"] - started)
    # The networks' files are also loaded once on the meta device, for checking, before `after_checks`.
    loading -= sum(seconds for start, seconds in clock.calls["loading"] if start < clock.first["after_checks"])
    working = busy["seconds"] if device.torch_device.type == "cuda" else clock.seconds["networks"]
    peak = peak_gb(device)
    return {"wall": wall, "loading": loading, "networks": working, "peak_gb": peak, "device": device.reason}


class Clock:
    """Seconds spent in functions of a module that are replaced by timed ones."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[float, float]]] = {}

    def watch(self, module: Any, function: str, name: str) -> None:
        original, calls = getattr(module, function), self.calls.setdefault(name, [])

        def timed_call(*given: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*given)
            finally:
                calls.append((start, time.perf_counter() - start))

        setattr(module, function, timed_call)

    @property
    def seconds(self) -> dict[str, float]:
        return {name: sum(seconds for _, seconds in calls) for name, calls in self.calls.items()}

    @property
    def first(self) -> dict[str, float]:
        return {name: calls[0][0] for name, calls in self.calls.items() if calls}


@contextlib.contextmanager
def working_time(device: Any) -> Iterator[dict[str, float]]:
    """Fills in the seconds in which the card had any kernel running; nothing on other devices."""
    import torch

    busy: dict[str, float] = {}
    if device.torch_device.type != "cuda":
        yield busy
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        yield busy
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    total, reached = 0.0, float("-inf")
    for start, end in spans:  # kernels of two streams overlap
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    busy["seconds"] = total / 1e6


# --- Memory ---


def print_peak(args: argparse.Namespace, folder: Path) -> None:
    print(f"{args.config} networks, one song of {args.seconds:g} s, peak of memory in GB")
    make_project(folder, 1, args.seconds)
    ours = in_child(args, "run", folder)["peak_gb"]
    print(f"{'ours':38} {ours:6.2f}", flush=True)
    for transformer in (False, True):
        if transformer and args.without_transformer:
            continue
        figures = in_child(args, "reference", folder, int(transformer))
        name = f"reference's way {'with' if transformer else 'without'} transformer"
        print(f"{name:38} {figures['peak_gb']:6.2f}   ours is {ours / figures['peak_gb']:.2f} of it", flush=True)
        weights = ", ".join(f"{part} {gb:.2f}" for part, gb in figures["weights_gb"].items())
        print(f"{'':38} of which weights: {weights}", flush=True)


def measure_reference(args: argparse.Namespace, folder: Path, transformer: str) -> dict[str, Any]:
    """Peak of memory with every network loaded, on one song."""
    import torch

    from ace_lora.audio.decode import prepare_waveform, read_audio
    from ace_lora.device import choose_device
    from ace_lora.preprocessing import networks

    device = choose_device(args.device)
    base = folder / "base"
    idle = idle_networks(args.config, bool(int(transformer)))
    loaded = {
        name: torch.nn.Module.to(make(), device.torch_device, torch.bfloat16 if name == "transformer" else device.dtype)
        for name, make in idle.items()
    }
    for stage, part in NETWORKS.items():
        loaded[stage] = networks.load_network(stage, base / part, device.torch_device, device.dtype)
        for parameter in loaded[stage].parameters():
            parameter.data = parameter.data.clone()  # in memory, not the pages of a file that any process may drop
    write_song(folder / "song.mp3", args.seconds)
    wave, _ = prepare_waveform(read_audio(folder / "song.mp3"))
    wave = wave.to(device.torch_device) if device.torch_device.type == "cuda" else wave
    for stage in NETWORKS:
        with torch.inference_mode():
            values = networks.network_input(stage, wave)
        reference_result(stage, loaded[stage], values)
    weights = {
        name: sum(parameter.numel() * parameter.element_size() for parameter in network.parameters()) / 1e9
        for name, network in loaded.items()
    }
    return {"peak_gb": peak_gb(device), "weights_gb": weights}


def idle_networks(config: str, transformer: bool) -> dict[str, Callable[[], Any]]:
    """What the reference's pipeline loads and this step never runs. Random numbers are not needed, only real memory."""
    import torch
    from diffusers import AutoencoderDC
    from transformers import UMT5Config, UMT5EncoderModel

    from ace_lora.base_weights.parts import PARTS
    from ace_lora.tiny_base.configs import TRANSFORMER_CONFIG, UMT5_CONFIG
    from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig
    from ace_lora.v1.vocoder import Vocoder, VocoderConfig

    def filled(make: Callable[[], Any]) -> Callable[[], Any]:
        def build() -> Any:
            with torch.device("meta"):
                network = make()
            # bf16 from the start where the result is: the float32 copy would be the peak.
            network = network.to(torch.bfloat16) if isinstance(network, ACEStepTransformer) else network
            network = network.to_empty(device="cpu").requires_grad_(False)
            if isinstance(network, UMT5EncoderModel):
                network.tie_weights()  # which `to_empty` undoes
            for parameter in network.parameters():
                parameter.fill_(0.01)
            return network

        return build

    def published_transformer() -> Any:
        network = ACEStepTransformer(TransformerConfig())
        # Our class leaves out projections that nothing uses; the reference's has them.
        rest = PARTS["transformer"].approximate_bytes // 2 - sum(each.numel() for each in network.parameters())
        network.register_parameter("unused", torch.nn.Parameter(torch.empty(rest)))
        return network

    known = {key: value for key, value in dcae_config(config).items() if not key.startswith("_")}
    full = config == "full"
    umt5 = UMT5_BASE if full else {key: UMT5_CONFIG[key] for key in UMT5_BASE if key != "vocab_size"}
    autoencoder: Any = AutoencoderDC  # its type does not name its two halves
    networks: dict[str, Callable[[], Any]] = {
        "decoder": filled(lambda: autoencoder(**known).decoder),
        "text_encoder": filled(lambda: UMT5EncoderModel(UMT5Config(**umt5, feed_forward_proj="gated-gelu"))),
    }
    if full:
        networks["vocoder"] = filled(lambda: Vocoder(VocoderConfig()))
    if transformer:
        tiny = TransformerConfig.from_dict(TRANSFORMER_CONFIG)
        networks["transformer"] = filled(published_transformer if full else lambda: ACEStepTransformer(tiny))
    return networks


def peak_gb(device: Any) -> float:
    import torch

    from ace_lora.device import peak_process_bytes

    if device.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device) / 1e9
    return peak_process_bytes()[0] / 1e9


# --- Songs and networks ---


def write_song(path: Path, seconds: float, seed: int = 0) -> None:
    import numpy as np
    import soundfile

    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal((int(44100 * seconds), 2)) * 0.1
    soundfile.write(path, noise.astype(np.float32), 44100)
    (path.parent / f"{path.stem}_prompt.txt").write_text("民谣, guitar, slow", encoding="utf-8")
    lyrics = "[verse]\n" + "The river carries all the light away\n河水带走了所有的光\n" * 20
    (path.parent / f"{path.stem}_lyrics.txt").write_text(lyrics, encoding="utf-8")


def dcae_config(config: str) -> dict[str, Any]:
    from ace_lora.tiny_base.configs import DCAE_CONFIG

    return {**DCAE_CONFIG, **SIZES[config].get("latents", {})}


def make_base(folder: Path, config: str) -> None:
    """A checkpoint folder with random weights of the given sizes, laid out like the published one."""
    import torch
    from diffusers import AutoencoderDC
    from safetensors.torch import save_file
    from transformers import HubertConfig, HubertModel

    from ace_lora.files import write_json
    from ace_lora.tiny_base.configs import MERT_CONFIG, MHUBERT_CONFIG
    from ace_lora.tiny_base.make import make_tiny_base

    make_tiny_base(folder)
    torch.manual_seed(0)
    hubert = {"mert": MERT_CONFIG, "mhubert": MHUBERT_CONFIG}
    for stage, sizes in SIZES[config].items():
        part = folder / NETWORKS[stage]
        if stage == "latents":
            settings = dcae_config(config)
            network: Any = AutoencoderDC(**{key: value for key, value in settings.items() if not key.startswith("_")})
            name = "diffusion_pytorch_model.safetensors"
        else:
            settings = {**hubert[stage], **sizes}
            network = HubertModel(HubertConfig(**settings))
            name = "model.safetensors"
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, part / name)
        write_json(part / "config.json", settings)


if __name__ == "__main__":
    main(parse_args())
