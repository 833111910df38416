"""Render a song with the base model and, if wanted, a LoRA, to hear what a training has done.

Reads   the base weights (`--checkpoint_dir`), optionally a lyrics file, a training record and a LoRA
Writes  OUTPUT, a stereo file by its ending: .wav (32-bit floats), .flac or .mp3; 48 kHz, as ComfyUI 44.1 kHz

    python -m ace_lora.preview --prompt "pop, female vocal, piano" --lyrics song_lyrics.txt --seconds 60 \\
        --lora checkpoints/epoch=0-step=2000_lora --output preview.wav
    python -m ace_lora.preview --record Taudio/x_prep/song.safetensors --lora out.safetensors --as comfyui \\
        --seconds 120 --output as_in_comfyui.flac

Without a GPU, on a base model that fits a test (made by `python -m ace_lora.tiny_base tiny`; it plays noise):

    python -m ace_lora.preview --checkpoint_dir tiny --prompt rock --seconds 3 --steps 4 --output noise.wav

The same seed gives the same noise on every machine, so `--strength 0` and `--strength 1` can be compared. Networks are
loaded one after another: the text encoder, the transformer, the decoder, the vocoder.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import WrongInput, refuse_old_flags, run_script
from ace_lora.files import UnusableFile, free_bytes, read_text
from ace_lora.preview.adapters import read_lora
from ace_lora.preview.plan import SongText, record_text
from ace_lora.preview.save import BYTES_PER_SECOND, write_audio
from ace_lora.preview.settings import (
    FORMATS,
    add_flags,
    add_machine_flags,
    given_settings,
    make_settings,
    number_problems,
    setting_problems,
)

if TYPE_CHECKING:
    from ace_lora.lora.file import LoraFile


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    song = parser.add_argument_group("song")
    what = song.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="tags separated by commas")
    what.add_argument("--record", metavar="FILE", help="tags and lyrics of a song of the training, from its record")
    song.add_argument("--lyrics", default="", metavar="FILE", help="text file of the lyrics (default: no lyrics)")
    song.add_argument(
        "--lyric_language", default="", help="language code of the lyrics, for example zh (default: told from the text)"
    )
    song.add_argument("--seconds", type=float, default=30.0, help="length, up to 360 (default: 30)")
    song.add_argument("--seed", type=int, default=0, help="of the noise that the song starts from (default: 0)")
    song.add_argument("--output", required=True, metavar="FILE", help=".wav, .flac or .mp3; must not exist yet")
    lora = parser.add_argument_group("LoRA")
    lora.add_argument("--lora", default="", metavar="FILE", help="LoRA file or *_lora folder (default: none)")
    lora.add_argument("--strength", type=float, default=1.0, help="1 is as trained, 0 the base model (default: 1)")
    lora.add_argument(
        "--lora_scale",
        type=float,
        default=None,
        help="scale of a LoRA file that states none: lora_alpha / sqrt(r) with rsLoRA, else lora_alpha / r",
    )
    add_flags(parser.add_argument_group("sampling (defaults in brackets)"))
    add_machine_flags(parser)
    refuse_old_flags(
        parser,
        {
            **dict.fromkeys(("--lora_path", "--lora_name_or_path"), "--lora"),
            **{"--lora_weight": "--strength", "--checkpoint_path": "--checkpoint_dir"},
            **{"--audio_duration": "--seconds", "--infer_step": "--steps", "--guidance_scale": "--guidance"},
            **{"--manual_seeds": "--seed", "--output_path": "--output"},
        },
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    text, lora = check(args)

    from tqdm import tqdm

    from ace_lora.base_weights.download import ensure_base_weights
    from ace_lora.device import choose_device
    from ace_lora.preview.render import PARTS, Networks, Rendering, memory_failures_told, render

    device = choose_device(args.device, args.dtype)
    weights = ensure_base_weights(Path(args.checkpoint_dir) if args.checkpoint_dir else None, PARTS)
    print(f"device: {device.reason}")
    settings: Any = make_settings(args.way, given_settings(args))
    song = Rendering(0, args.seconds, args.seed, lora, args.strength, args.lora_scale)
    if args.way == "comfyui":
        print("note: a ComfyUI from before October 2025 makes another song of the same seed (it left dropout on)")
    with memory_failures_told(), tqdm(total=settings.steps, desc="sampling") as bar:
        for _, wave, rate in render(
            [text], [song], settings, Networks(weights, device, together=False), lambda: bar.update()
        ):
            write_audio(wave, rate, Path(args.output), bits=16 if args.way == "comfyui" else 24)
            print(f"wrote '{args.output}': {wave.shape[1] / rate:.1f} s")


def check(args: argparse.Namespace) -> tuple[SongText, LoraFile | None]:
    """What is sung, and the LoRA. Raises WrongInput with every problem that can be seen without a network."""
    problems = setting_problems(args.way, given_settings(args))
    problems += number_problems(args.way, args.seconds, args.seed, args.strength)
    if args.lora_scale is not None and not math.isfinite(args.lora_scale):
        problems.append(f"--lora_scale is {args.lora_scale}, expected a number such as 0.125. Change the number.")
    problems += output_problems(Path(args.output), args.seconds)
    text = None
    try:
        text = read_song_text(args)
    except WrongInput as error:
        problems += error.problems
    lora = None
    if args.lora:
        try:
            lora = read_lora(Path(args.lora))
        except WrongInput as error:
            problems += error.problems
    if problems or text is None:
        raise WrongInput(problems)
    return text, lora


def read_song_text(args: argparse.Namespace) -> SongText:
    """Raises WrongInput when a file cannot be used."""
    lyrics = ""
    if args.lyrics:
        try:
            lyrics = read_text(Path(args.lyrics))
        except (OSError, UnicodeDecodeError, UnusableFile) as error:
            raise WrongInput(
                f"--lyrics '{args.lyrics}' cannot be read: {getattr(error, 'strerror', None) or error}. "
                "Expected a text file in UTF-8. Correct the name, or save the file again as UTF-8."
            ) from error
    if args.record is None:
        return SongText(args.prompt, lyrics, args.lyric_language)
    if args.lyrics:
        raise WrongInput(
            f"--record '{args.record}' brings the lyrics of its song, and --lyrics '{args.lyrics}' others. "
            "Expected one of them. Remove --lyrics, or give tags with --prompt."
        )
    return record_text(Path(args.record))


def output_problems(output: Path, seconds: float) -> list[str]:
    """Why a file cannot be written there."""
    kind = output.suffix[1:].lower()
    if kind not in FORMATS:
        return [
            f"--output '{output}' does not end with .wav, .flac or .mp3, the formats that are written. Change the name."
        ]
    if output.exists():
        return [f"--output '{output}' exists and would be overwritten. Choose another name or move it away."]
    needed = int(max(0.0, min(seconds, 1e6)) * BYTES_PER_SECOND[kind]) if math.isfinite(seconds) else 0
    free = free_bytes(output.parent)
    if free < needed:
        return [
            f"--output '{output}' needs {needed:,} bytes and the disk has {free:,} left. Expected room for the file. "
            "Free the disk or choose another one."
        ]
    return []


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
