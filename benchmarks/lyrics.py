"""Time of lyric tokenisation: the first song, later songs, and a song seen before.

    python benchmarks/lyrics.py --vocabulary vocab.json [--lyrics FILE] [--repeats 7]

The vocabulary is the published `vocab.json`. Without `--lyrics`, a song of English, Chinese and Korean lines is used.
"New song" forgets every guessed language beforehand, "again" keeps them; both take turns. Printed are medians, their
ratio and the time per token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

VERSE = """[verse]
Morning light upon the wire, every note a little fire
我站在窗边 看着远方的灯火 12 盏
밤하늘에 별이 빛나고 바람이 불어와
I got 99 problems & the night is young
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="the published lyric vocabulary")
    parser.add_argument("--lyrics", type=Path, help="a lyrics file (default: a song of three languages)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements; the median is printed (default: 7)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    from ace_lora.lyrics import language_id
    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.lyrics.vocabulary import load_vocabulary

    tokenizer = LyricTokenizer(load_vocabulary(args.vocabulary, embedding_rows=None))
    lyrics = args.lyrics.read_text(encoding="utf-8-sig") if args.lyrics else VERSE * 6
    tokens = tokenizer.tokenize(lyrics).ids
    print(f"first song, libraries and vocabulary loaded: {time.perf_counter() - started:.2f} s, {len(tokens)} tokens")

    milliseconds: dict[str, list[float]] = {"new song": [], "again": []}
    for _ in range(args.repeats):
        for name, measured in milliseconds.items():
            if name == "new song":
                language_id.identify.cache_clear()
            started = time.perf_counter()
            if tokenizer.tokenize(lyrics).ids != tokens:
                raise AssertionError("The same lyrics gave other ids.")
            measured.append(1000 * (time.perf_counter() - started))
    again = statistics.median(milliseconds["again"])
    print(f"{'median of ' + str(args.repeats):16}{'ms':>8}{'ratio':>8}{'µs per token':>14}")
    for name, measured in milliseconds.items():
        median = statistics.median(measured)
        print(f"{name:16}{median:8.2f}{median / again:8.1f}{1000 * median / len(tokens):14.1f}")


if __name__ == "__main__":
    main(parse_args())
