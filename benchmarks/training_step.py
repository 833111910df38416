"""Time and memory of one training step, side by side with the straightforward implementation of `reference_block.py`.

    python benchmarks/training_step.py --config mid --seconds 60

runs on the CPU in a few minutes; `--config full --seconds 240 --device cuda` is the published model. Weights are
random. All variants run in alternation in one process. Printed are medians, ratios to the yardstick (the
straightforward block with every block recomputed), the memory of the step without weights, TFLOP/s and their share of
the machine's own matrix-product peak, measured in the same run. Losses and gradients are compared first.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FRAMES_PER_SECOND = 44100 / 512 / 8
CONFIGS = {
    "tiny": {"num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 64, "ssl_encoder_depths": [2, 2]},
    "mid": {"num_layers": 8, "num_attention_heads": 12, "attention_head_dim": 64, "ssl_encoder_depths": [4, 4]},
    "full": {},
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="mid", help="size of the model")
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--seconds", type=float, default=60, help="length of the song")
    parser.add_argument("--lyric_tokens", type=int, default=256, help="length of the lyrics")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16", help="of weights and products")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA on all attention projections")
    parser.add_argument(
        "--base_precision", choices=["bf16", "int8", "nf4"], default="bf16", help="of the frozen weights"
    )
    parser.add_argument("--offload", type=int, default=0, help="blocks streamed from main memory")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per variant; 0: only memory and agreement")
    parser.add_argument("--variants", nargs="*", help="only those whose name contains one of these words")
    parser.add_argument("--no_ssl", action="store_true", help="without the self-supervised losses")
    parser.add_argument("--live_lyrics", action="store_true", help="encode the lyrics in every step")
    parser.add_argument("--compile", action="store_true", help="compile the lean variants' elementwise stretches")
    parser.add_argument("--profile", help="print the operators of one step of the variant with this name")
    return parser.parse_args(argv)


@dataclass
class Variant:
    name: str
    straightforward: bool
    recomputed: float  # share of the blocks
    products: bool = False  # the feed-forward product of all other blocks is recomputed


VARIANTS = [
    Variant("reference, all recomputed", True, 1.0),
    Variant("reference, none recomputed", True, 0.0),
    Variant("lean, all recomputed", False, 1.0),
    Variant("lean, half recomputed", False, 0.5),
    Variant("lean, products recomputed", False, 0.0, True),
    Variant("lean, none recomputed", False, 0.0),
]


def main(args: argparse.Namespace) -> None:
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from reference_block import ReferenceTransformer

    from ace_lora.elementwise import compile_elementwise
    from ace_lora.flow_matching import add_noise, build_schedule, denoising_loss
    from ace_lora.memory_saving import offload_blocks, quantise_base, set_checkpointing
    from ace_lora.transformer import ACEStepTransformer, TransformerConfig

    device = torch.device(args.device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.dtype]
    values = CONFIGS[args.config] | ({"num_layers": args.layers} if args.layers else {})
    config = TransformerConfig.from_dict(values)
    depths = tuple(min(depth, config.num_layers - 1) for depth in config.ssl_encoder_depths)
    config = dataclasses.replace(config, ssl_encoder_depths=depths)
    frames = round(args.seconds * FRAMES_PER_SECOND)

    if args.compile and (reason := compile_elementwise(device)):
        print(reason)
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with device:
        model = ACEStepTransformer(config)
    torch.set_default_dtype(previous)
    quantise_base(model, args.base_precision, device)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    inject_adapter_in_model(LoraConfig(r=args.rank, lora_alpha=1, use_rslora=True, target_modules=targets), model)
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for factor in factors:
        factor.data = (torch.randn(factor.shape) / factor.shape[1] ** 0.5).to(device)  # float32
    offload_blocks(model, args.offload, device)

    latents, noise = (torch.randn(1, 8, 16, frames, device=device) for _ in range(2))
    text = torch.randn(1, 32, config.text_embedding_dim, device=device)
    ids = torch.randint(1, config.lyric_encoder_vocab_size, (1, args.lyric_tokens), device=device)
    features = {
        "mert": [torch.randn(round(75 * args.seconds), 1024, device=device).to(dtype)],
        "m-hubert": [torch.randn(round(50 * args.seconds), 768, device=device).to(dtype)],
    }
    schedule = build_schedule()
    timestep, sigma = schedule.timesteps[300:301].to(device), schedule.sigmas[300:301].to(device)
    noised = add_noise(latents, noise, sigma)
    with torch.no_grad():
        cached = model.encode_lyrics(ids)

    def step(variant: Variant) -> torch.Tensor:
        for factor in factors:
            factor.grad = None
        model.__class__ = ReferenceTransformer if variant.straightforward else ACEStepTransformer
        blocks = round(variant.recomputed * config.num_layers)
        set_checkpointing(model, blocks, config.num_layers if variant.products else 0)
        with torch.autocast(device.type, dtype=dtype, enabled=variant.straightforward and dtype != torch.float32):
            with torch.no_grad():
                lyrics = model.encode_lyrics(ids) if args.live_lyrics else cached
            context = model.encode_context(text, None, lyrics, None)
            padding = "reference" if variant.straightforward else "exact"
            output = model(noised, timestep, context, None, not args.no_ssl, padding)
            loss = denoising_loss(output.velocity, noise, latents, sigma)
            if not args.no_ssl:
                loss = loss + sum(model.ssl_losses(output.ssl_taps, features).values()) / 2
        del output, context, lyrics
        loss.backward()
        return loss.detach()

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    variants = [v for v in VARIANTS if not args.variants or any(word in v.name for word in args.variants)]
    if args.base_precision != "bf16" or args.offload:
        variants = [v for v in variants if not v.straightforward]
    if args.profile:
        profile(next(v for v in VARIANTS if v.name == args.profile), step)
        return

    print(
        f"{args.config}: {config.num_layers} layers x ({config.num_attention_heads} x {config.attention_head_dim}), "
        f"{args.seconds:g} s = {frames} frames, {args.lyric_tokens} lyric tokens, {args.dtype}, {device}, "
        f"rank {args.rank}"
    )
    first: tuple[float, torch.Tensor] | None = None
    memory = {}
    for variant in variants:
        memory[variant.name], loss = step_memory(device, lambda variant=variant: step(variant))
        gradient = torch.cat([factor.grad.flatten() for factor in factors])
        if first is None:
            first = float(loss), gradient
        apart = float((gradient - first[1]).norm() / first[1].norm())
        print(
            f"{variant.name:30} loss {float(loss):.6f}, gradient apart {apart:.2e}, {memory[variant.name] / 1e9:.3f} GB"
        )
        del gradient
    if args.repeats == 0:
        return

    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(args.repeats):
        for variant in variants:
            synchronise()
            start = time.perf_counter()
            step(variant)
            synchronise()
            seconds[variant.name].append(time.perf_counter() - start)

    peak = matrix_peak(device, dtype)
    print(f"matrix-product peak here: {peak:.2f} TFLOP/s")
    yardstick = variants[0].name
    print(f"{'variant':30} {'s/step':>8} {'ratio':>6} {'GB':>7} {'ratio':>6} {'TFLOP/s':>8} {'of peak':>7}")
    for variant in variants:
        median = statistics.median(seconds[variant.name])
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(seconds[variant.name], seconds[yardstick], strict=True)
        )
        work = step_tflop(config, frames, 33 + args.lyric_tokens, args.rank, variant, not args.no_ssl)
        print(
            f"{variant.name:30} {median:8.3f} {ratio:6.2f} {memory[variant.name] / 1e9:7.3f} "
            f"{memory[variant.name] / memory[yardstick]:6.2f} {work / median:8.2f} {work / median / peak:7.0%}"
        )


def step_tflop(config: object, frames: int, context: int, rank: int, variant: Variant, ssl: bool) -> float:
    """Matrix products of one step in 10¹² floating-point operations (2 per multiply-add), from the shapes."""
    width, hidden = config.inner_dim, config.feed_forward_dim
    frozen = frames * (6 * width * width + 3 * hidden * width) + context * 2 * width * width
    attention = frames * 2 * width * (config.attention_head_dim + context)
    adapter = rank * 2 * width * (6 * frames + 2 * context)
    forward = frozen + attention + adapter
    # Keys and values of the cross-attention get no input gradient.
    backward = frozen - context * 2 * width * width + 2.5 * attention + 2 * adapter
    again = variant.recomputed * forward + (frames * 2 * hidden * width if variant.products else 0)
    per_step = config.num_layers * (forward + backward + again)
    if ssl:
        per_step += sum(2 * frames * (6 * width * width + 2 * width * size) for size in config.ssl_latent_dims)
    return 2 * per_step / 1e12


def step_memory(device: object, run: Callable) -> tuple[int, object]:
    """Peak bytes that one step takes beyond what was there before, and its loss."""
    import torch

    if device.type == "cuda":
        run()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loss = run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, loss
    # The profiler sees every allocation and release of the CPU allocator.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        loss = run()
    total = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak, loss


def profile(variant: Variant, step: Callable) -> None:
    import torch

    step(variant)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as record:
        step(variant)
    averages = record.key_averages(group_by_input_shape=True)
    print(
        averages.table(
            sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=40, max_shapes_column_width=70
        )
    )


def matrix_peak(device: object, dtype: object) -> float:
    """The best rate of a large matrix product on this machine, TFLOP/s."""
    import torch

    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


if __name__ == "__main__":
    main(parse_args())
