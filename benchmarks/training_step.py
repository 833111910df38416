"""Time and memory of one training step, side by side with the straightforward implementation of `reference_block.py`.

    python benchmarks/training_step.py --config mid --seconds 60
    python benchmarks/training_step.py --config mid --seconds 60 --base_precision bf16 int8 nf4 --offload 0 4
    python benchmarks/training_step.py --config full --seconds 240 --lyric_tokens 1024 --device cuda [--compile]
    python benchmarks/training_step.py --config full --seconds 240 --lyric_tokens 1024 --count

The first takes some minutes on a CPU; the third is the published model; the last needs no GPU and computes nothing: it
counts the kernels of a step and the bytes that they move. Weights are random. All variants run in alternation in one
process. Printed are medians, ratios to the yardstick (the straightforward block with every block recomputed, with the
lyric states given), the memory of the step without weights, TFLOP/s and their share of the machine's own
matrix-product peak, measured in the same run. Losses and gradients are compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    import torch

FRAMES_PER_SECOND = 44100 / 512 / 8
TEXT_TOKENS = 32
CONFIGS: dict[str, dict[str, Any]] = {
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
        "--base_precision", nargs="+", choices=["bf16", "int8", "nf4"], default=["bf16"], help="of the frozen weights"
    )
    parser.add_argument("--offload", type=int, nargs="+", default=[0], help="blocks streamed from main memory")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per variant; 0: only memory and agreement")
    parser.add_argument("--variants", nargs="*", help="only those whose name contains one of these texts")
    parser.add_argument("--compile", action="store_true", help="compile the lean variants' elementwise stretches")
    parser.add_argument("--count", action="store_true", help="count kernels and bytes instead of computing")
    parser.add_argument("--profile", help="print the operators of one step of the variant with this name")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Variant:
    name: str
    straightforward: bool = False
    recomputed: float = 0.0  # share of the blocks
    products: bool = False  # the feed-forward product of all other blocks is recomputed
    ssl: bool = True
    live_lyrics: bool = False  # the lyric branch runs in the step
    base: str = "bf16"
    offload: int = 0


VARIANTS = [
    Variant("reference, all recomputed", straightforward=True, recomputed=1.0),
    Variant("reference, none recomputed", straightforward=True),
    Variant("reference, all, no SSL", straightforward=True, recomputed=1.0, ssl=False),
    Variant("lean, all recomputed", recomputed=1.0),
    Variant("lean, half recomputed", recomputed=0.5),
    Variant("lean, products recomputed", products=True),
    Variant("lean, none recomputed"),
    Variant("lean, all, lyrics in step", recomputed=1.0, live_lyrics=True),
    Variant("lean, all, no SSL", recomputed=1.0, ssl=False),
]


def chosen_variants(args: argparse.Namespace) -> list[Variant]:
    """The variants of all asked-for ways to keep the weights; those beside bf16 on the device have no yardstick."""
    variants = []
    for base in args.base_precision:
        for offload in args.offload:
            own = f", {base}" * (base != "bf16") + f", {offload} offloaded" * (offload > 0)
            variants += [
                dataclasses.replace(variant, name=variant.name + own, base=base, offload=offload)
                for variant in VARIANTS
                if not (own and variant.straightforward)
            ]
    return [v for v in variants if not args.variants or any(text in v.name for text in args.variants)]


def main(args: argparse.Namespace) -> None:
    import torch

    from ace_lora.model.elementwise import compile_elementwise
    from ace_lora.v1.transformer import TransformerConfig

    device = torch.device(args.device)
    config = TransformerConfig.from_dict(CONFIGS[args.config] | ({"num_layers": args.layers} if args.layers else {}))
    depths = tuple(min(depth, config.num_layers - 1) for depth in config.ssl_encoder_depths)
    config = dataclasses.replace(config, ssl_encoder_depths=depths)
    variants = chosen_variants(args)
    print(
        f"{args.config}: {config.num_layers} layers x ({config.num_attention_heads} x {config.attention_head_dim}), "
        f"{args.seconds:g} s = {round(args.seconds * FRAMES_PER_SECOND)} frames, {args.lyric_tokens} lyric tokens, "
        f"{args.dtype}, {'counted' if args.count else device}, rank {args.rank}"
    )
    if args.count:
        count_kernels(args, config, [variant for variant in variants if not variant.straightforward])
        return
    if args.compile and (reason := compile_elementwise(device)):
        print(reason)
    step = Step(args, config, device)
    if args.profile:
        profile(next(v for v in variants if v.name == args.profile), step)
        return
    memory = compare(variants, step)
    if args.repeats:
        measure(args, variants, step, memory)


class Step:
    """Forward and backward of a variant on the same inputs and weights; called, it returns the loss."""

    def __init__(self, args: argparse.Namespace, config: Any, device: torch.device):
        import torch

        from ace_lora.v1.flow_matching import add_noise, build_schedule

        self.args, self.config, self.device = args, config, device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.dtype]
        self.models: dict[tuple[str, int], tuple[Any, list[torch.Tensor]]] = {}
        frames = round(args.seconds * FRAMES_PER_SECOND)
        torch.manual_seed(0)
        self.latents, self.noise = (torch.randn(1, 8, 16, frames, device=device) for _ in range(2))
        self.text = torch.randn(1, TEXT_TOKENS, config.text_embedding_dim, device=device)
        self.lyric_ids = torch.randint(1, config.lyric_encoder_vocab_size, (1, args.lyric_tokens), device=device)
        self.lyric_states = torch.randn(1, args.lyric_tokens, config.inner_dim, device=device).to(self.dtype)
        self.features = {
            "mert": [torch.randn(round(75 * args.seconds), 1024, device=device).to(self.dtype)],
            "m-hubert": [torch.randn(round(50 * args.seconds), 768, device=device).to(self.dtype)],
        }
        schedule = build_schedule()
        self.timestep, self.sigma = schedule.timesteps[300:301].to(device), schedule.sigmas[300:301].to(device)
        self.noised = add_noise(self.latents, self.noise, self.sigma)

    def model(self, variant: Variant) -> tuple[Any, list[torch.Tensor]]:
        """The model with weights kept as the variant wants, and its LoRA factors; the same random numbers for all."""
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        from ace_lora.model.offload import offload_blocks
        from ace_lora.model.quantise import quantise_layers
        from ace_lora.v1.transformer import ACEStepTransformer

        key = variant.base, variant.offload
        if key not in self.models:
            torch.manual_seed(1)
            previous = torch.get_default_dtype()
            torch.set_default_dtype(self.dtype)
            with self.device:
                model = ACEStepTransformer(self.config)
            torch.set_default_dtype(previous)
            if variant.base != "bf16":
                quantise_layers(model.large_parts(), variant.base, self.device)
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            lora = LoraConfig(r=self.args.rank, lora_alpha=1, use_rslora=True, target_modules=targets)
            inject_adapter_in_model(lora, model)
            factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
            for factor in factors:
                factor.data = (torch.randn(factor.shape) / factor.shape[1] ** 0.5).to(self.device)  # float32
            offload_blocks(model.transformer_blocks, variant.offload, self.device)
            self.models[key] = model, factors
        return self.models[key]

    def __call__(self, variant: Variant) -> torch.Tensor:
        import torch
        from reference_block import ReferenceTransformer

        from ace_lora.model.recompute import set_checkpointing
        from ace_lora.v1.flow_matching import denoising_loss
        from ace_lora.v1.transformer import ACEStepTransformer

        model, _ = self.model(variant)
        self.forget_gradients(variant)
        model.__class__ = ReferenceTransformer if variant.straightforward else ACEStepTransformer
        layers = self.config.num_layers
        blocks = model.transformer_blocks
        set_checkpointing(blocks, round(variant.recomputed * layers), layers if variant.products else 0)
        enabled = variant.straightforward and self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled):
            lyrics = self.lyric_states
            if variant.live_lyrics:
                with torch.no_grad():
                    # As long as it takes, but not what it gives: all variants shall agree.
                    lyrics = lyrics + 0 * model.encode_lyrics(self.lyric_ids)
            context = model.encode_context(self.text, None, lyrics, None)
            padding = "reference" if variant.straightforward else "exact"
            output = model(self.noised, self.timestep, context, None, variant.ssl, padding)
            loss = denoising_loss(output.velocity, self.noise, self.latents, self.sigma)
            if variant.ssl:
                loss = loss + sum(model.ssl_losses(output.ssl_taps, self.features).values()) / 2
        del output, context, lyrics
        loss.backward()
        return loss.detach()

    def forget_gradients(self, variant: Variant) -> None:
        for factor in self.model(variant)[1]:
            factor.grad = None

    def gradient(self, variant: Variant) -> torch.Tensor:
        import torch

        return torch.cat([factor.grad.flatten() for factor in self.model(variant)[1]])

    def synchronise(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def compare(variants: list[Variant], step: Step) -> dict[str, int]:
    """Print how far losses and gradients are from the first variant with the same losses; the bytes of each step."""
    first: dict[bool, torch.Tensor] = {}
    memory = {}
    for variant in variants:
        step(variant)  # makes the model
        step.forget_gradients(variant)
        memory[variant.name], loss = step_memory(step.device, lambda variant=variant: step(variant))
        gradient = step.gradient(variant)
        expected = first.setdefault(variant.ssl, gradient)
        apart = float((gradient - expected).norm() / expected.norm())
        print(
            f"{variant.name:46} loss {float(loss):.6f}, gradient apart {apart:.2e}, "
            f"{memory[variant.name] / 1e9:.3f} GB",
            flush=True,
        )
    return memory


def measure(args: argparse.Namespace, variants: list[Variant], step: Step, memory: dict[str, int]) -> None:
    """Time the variants in alternation and print the table."""
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(args.repeats):
        for variant in variants:
            step.synchronise()
            start = time.perf_counter()
            step(variant)
            step.synchronise()
            seconds[variant.name].append(time.perf_counter() - start)

    peak = matrix_peak(step.device, step.dtype)
    print(f"matrix-product peak here: {peak:.2f} TFLOP/s")
    yardstick = variants[0].name
    print(f"{'variant':46} {'s/step':>8} {'ratio':>6} {'GB':>7} {'ratio':>6} {'TFLOP/s':>8} {'of peak':>7}")
    for variant in variants:
        median = statistics.median(seconds[variant.name])
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(seconds[variant.name], seconds[yardstick], strict=True)
        )
        frames, context = step.latents.shape[3], 1 + TEXT_TOKENS + args.lyric_tokens
        work = step_tflop(step.config, frames, context, args.rank, variant)
        print(
            f"{variant.name:46} {median:8.3f} {ratio:6.2f} {memory[variant.name] / 1e9:7.3f} "
            f"{memory[variant.name] / memory[yardstick]:6.2f} {work / median:8.2f} {work / median / peak:7.0%}"
        )


def step_tflop(config: Any, frames: int, context: int, rank: int, variant: Variant) -> float:
    """Matrix products of one step in 10¹² floating-point operations (2 per multiply-add), from the shapes.

    Those of the lyric branch are left out, a hundredth of a step.
    """
    width, hidden = config.inner_dim, config.feed_forward_dim
    frozen = frames * (6 * width * width + 3 * hidden * width) + context * 2 * width * width
    attention = frames * 2 * width * (config.attention_head_dim + context)
    adapter = rank * 2 * width * (6 * frames + 2 * context)
    forward = frozen + attention + adapter
    # Keys and values of the cross-attention get no input gradient.
    backward = frozen - context * 2 * width * width + 2.5 * attention + 2 * adapter
    again = variant.recomputed * forward + (frames * 2 * hidden * width if variant.products else 0)
    per_step = config.num_layers * (forward + backward + again)
    if variant.ssl:
        per_step += sum(2 * frames * (6 * width * width + 2 * width * size) for size in config.ssl_latent_dims)
    return 2 * per_step / 1e12


def step_memory(device: torch.device, run: Callable) -> tuple[int, Any]:
    """Peak bytes that one step takes beyond what was there before, and its loss."""
    import torch

    if device.type == "cuda":
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


def profile(variant: Variant, step: Step) -> None:
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


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
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


# --- Counting ---

# Operations that only look at memory differently, or only reserve it.
NO_KERNEL = {
    *("view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias"),
    *("as_strided", "unflatten", "unsafe_view", "chunk", "split", "split_with_sizes", "unbind", "narrow"),
    *("empty", "empty_like", "new_empty", "empty_strided", "reshape_alias"),
}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "attention"}


def count_kernels(args: argparse.Namespace, config: Any, variants: list[Variant]) -> None:
    """Print kernels and bytes of a step in plain PyTorch on a GPU, from tensors that have shapes but no values.

    Every operation counts as one kernel that reads its inputs and writes its outputs once. Attention and the RMS norm,
    which PyTorch computes in one kernel there, are counted so.
    """
    import torch

    with without_autocast():
        step = Step(args, config, torch.device("meta"))
        print(f"{'variant':46} {'kernels':>8} {'of them products':>17} {'GB in products':>15} {'GB elsewhere':>13}")
        for variant in variants:
            step.model(variant)
            with counting() as counts:
                step(variant)
            kernels = sum(number for number, _ in counts.values())
            products = [counts.get(name, (0, 0)) for name in PRODUCTS]
            moved = sum(size for _, size in counts.values())
            inside = sum(size for _, size in products)
            print(
                f"{variant.name:46} {kernels:8} {sum(number for number, _ in products):17} {inside / 1e9:15.1f} "
                f"{(moved - inside) / 1e9:13.1f}"
            )


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Autocast does not know tensors without values, and the lean variants do not use it."""
    import torch

    from ace_lora.v1.transformer import ACEStepTransformer

    autocast, compute_dtype = torch.autocast, ACEStepTransformer.compute_dtype
    torch.autocast = lambda *args, **kwargs: contextlib.nullcontext()  # type: ignore[assignment,misc]
    ACEStepTransformer.compute_dtype = lambda self, device: self.dtype  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        ACEStepTransformer.compute_dtype = compute_dtype  # type: ignore[method-assign]


@contextlib.contextmanager
def counting() -> Iterator[dict[str, tuple[int, int]]]:
    """Calls and bytes by operation while it is open."""
    import torch
    import torch.nn.functional as F
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: dict[str, tuple[int, int]] = {}

    def add(name: str, tensors: list[Any]) -> None:
        number, size = counts.get(name, (0, 0))
        counts[name] = number + 1, size + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def tensors_of(value: Any) -> Iterator[Any]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from tensors_of(item)

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            result = function(*args, **kwargs)
            name = function._schema.name.split("::")[1].strip("_")
            if name not in NO_KERNEL:
                # An input that is written in place is read and written.
                add(name, [*{id(t): t for t in tensors_of(args)}.values(), *tensors_of(result)])
            return result

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            ctx.save_for_backward(q, k, v)
            add("attention", [q, k, v, q])
            return torch.empty_like(q)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
            q, k, v = ctx.saved_tensors
            add("attention", [gradient, q, k, v, q, q, k, v])
            return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    def rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
        add("rms_norm", [x, x])
        return torch.empty_like(x)

    attention, norm = F.scaled_dot_product_attention, F.rms_norm
    F.scaled_dot_product_attention = lambda q, k, v, attn_mask=None: Attention.apply(q, k, v)  # type: ignore[assignment]
    F.rms_norm = rms_norm  # type: ignore[assignment]
    try:
        with Counter():
            yield counts
    finally:
        F.scaled_dot_product_attention, F.rms_norm = attention, norm


if __name__ == "__main__":
    main(parse_args())
