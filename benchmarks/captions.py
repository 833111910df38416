"""What captioning costs beside the model: reading the song, measuring it, and constraining an answer to its schema.

    python benchmarks/captions.py --audio SONG.mp3 [--repeats 5]

The stages take turns; printed are medians in milliseconds and their share of real time. The last line is one token of a
constrained answer: the time that the grammar adds to each token of the model (a vocabulary of 152,064 tokens, as
Qwen2.5 has).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

QWEN_VOCABULARY = 152064


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="a song")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per stage (default: 5)")
    return parser.parse_args(argv)


def grammar_step() -> Callable[[], object]:
    """A function that computes the mask of allowed tokens at the start of a caption."""
    import llguidance
    import numpy as np

    from ace_lora.captions.caption import caption_schema

    # Bytes padded to the size of the real vocabulary, over which every mask goes.
    tokenizer = llguidance.LLTokenizer("byte", n_vocab=QWEN_VOCABULARY)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(caption_schema(tags=True, lyrics=True)))
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    if matcher.is_error():
        raise AssertionError(matcher.get_error())
    return lambda: np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")


def main(args: argparse.Namespace) -> None:
    import torch

    from ace_lora.audio.analysis import measure
    from ace_lora.audio.decode import read_audio, resample

    wave = read_audio(args.audio)
    samples = torch.from_numpy(wave.samples)
    stages: dict[str, Callable[[], object]] = {
        "read": lambda: read_audio(args.audio),
        "to 16 kHz mono": lambda: resample(samples, wave.rate, 16000).mean(0),
        "measure the signal": lambda: measure(wave.samples, wave.rate),
        "one token's grammar": grammar_step(),
    }
    for stage in stages.values():
        stage()
    milliseconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(args.repeats):
        for name, stage in stages.items():
            started = time.perf_counter()
            stage()
            milliseconds[name].append(1000 * (time.perf_counter() - started))
    seconds = samples.shape[-1] / wave.rate
    print(f"{seconds:.0f} s of audio; median of {args.repeats}{'':6}{'ms':>10}{'of real time':>14}")
    for name, measured in milliseconds.items():
        median = statistics.median(measured)
        share = "" if "token" in name else f"{median / 10 / seconds:13.2f}%"
        print(f"{name:34}{median:10.3f}{share}")


if __name__ == "__main__":
    main(parse_args())
