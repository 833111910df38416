"""Render a song with the base model and, if wanted, a LoRA, to hear what a training has done.

Reads   the base weights (`--checkpoint_dir`), optionally a lyrics file and a LoRA
Writes  OUTPUT, a stereo WAV file of 32-bit floats at 48 kHz

    python -m ace_lora.preview --prompt "pop, female vocal, piano" --lyrics song_lyrics.txt --seconds 60 \\
        --lora checkpoints/epoch=0-step=2000_lora --output preview.wav

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

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import read_text, replace_atomically
from ace_lora.lora.file import LoraFile, UnknownStrength, describe, dora_problems, lora_scales, read_lora_file

if TYPE_CHECKING:
    import torch
    from torch import nn

PARTS = ("text_encoder", "lyric_vocabulary", "transformer", "dcae", "vocoder")
# One latent frame at least; the model was trained on songs up to the longest.
SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 360.0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    song = parser.add_argument_group("song")
    song.add_argument("--prompt", required=True, help="tags separated by commas")
    song.add_argument("--lyrics", default="", metavar="FILE", help="text file of the lyrics (default: no lyrics)")
    song.add_argument(
        "--lyric_language", default="", help="language code of the lyrics, for example zh (default: told from the text)"
    )
    song.add_argument("--seconds", type=float, default=30.0, help="length, up to 360 (default: 30)")
    song.add_argument("--seed", type=int, default=0, help="of the noise that the song starts from (default: 0)")
    song.add_argument("--output", required=True, metavar="WAV", help="file to write; must not exist yet")
    lora = parser.add_argument_group("LoRA")
    lora.add_argument("--lora", default="", metavar="FILE", help="LoRA file or *_lora folder (default: none)")
    lora.add_argument("--strength", type=float, default=1.0, help="1 is as trained, 0 the base model (default: 1)")
    lora.add_argument(
        "--lora_scale",
        type=float,
        default=None,
        help="scale of a LoRA file that states none: lora_alpha / sqrt(r) with rsLoRA, else lora_alpha / r",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, default=60, help="fewer are faster and coarser (default: 60)")
    sampling.add_argument("--guidance", type=float, default=15.0, help="1: none, in half the time (default: 15)")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--checkpoint_dir",
        default=None,
        help="folder of the base weights (default: the download cache ~/.cache/ace-step/checkpoints)",
    )
    machine.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: auto)")
    machine.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32 (default: auto)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    lyrics, lora = check(args)

    from ace_lora.audio.decode import AudioError
    from ace_lora.base_weights.find import ensure_base_weights
    from ace_lora.device import choose_device
    from ace_lora.lyrics.vocabulary import MissingLyricSupport

    device = choose_device(args.device, args.dtype)
    weights = ensure_base_weights(Path(args.checkpoint_dir) if args.checkpoint_dir else None, PARTS)
    print(f"device: {device.reason}")
    on = {"device": device.torch_device, "dtype": device.dtype}
    try:
        lyric_ids = tokenize(lyrics, args.lyric_language, weights)
        text_states = encode_prompt(args.prompt, weights["text_encoder"], on)
        latents = sample(args, lora, text_states, lyric_ids, weights["transformer"], on)
        wave = decode(latents, weights, on)
    except MissingLyricSupport as error:
        raise WrongInput(str(error)) from error
    except AudioError as error:
        raise StepFailed(str(error)) from error
    write_wave(wave, Path(args.output))
    print(f"wrote '{args.output}': {wave.shape[1] / 48_000:.1f} s")


def check(args: argparse.Namespace) -> tuple[str, LoraFile | None]:
    """The lyrics' text and the LoRA. Raises WrongInput with every problem that can be seen without a network."""
    problems = []
    lyrics = ""
    if args.lyrics:
        try:
            lyrics = read_text(Path(args.lyrics))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(
                f"--lyrics '{args.lyrics}' cannot be read: {getattr(error, 'strerror', None) or error}. "
                "Expected a text file in UTF-8. Correct the name, or save the file again as UTF-8."
            )
    numbers = (
        ("--seconds", SHORTEST_SECONDS <= args.seconds <= LONGEST_SECONDS, f"{SHORTEST_SECONDS} to 360"),
        ("--steps", args.steps >= 1, "1 or more"),
        ("--seed", 0 <= args.seed < 2**63, "0 or more, below 2^63"),
        ("--guidance", math.isfinite(args.guidance) and args.guidance >= 0, "0 or more"),
        ("--strength", math.isfinite(args.strength), "a number such as 1 or 0.5"),
        ("--lora_scale", args.lora_scale is None or math.isfinite(args.lora_scale), "a number such as 0.125"),
    )
    for flag, fits, expected in numbers:
        if not fits:
            value = getattr(args, flag.removeprefix("--"))
            problems.append(f"{flag} is {value}, expected {expected}. Change the number.")
    output = Path(args.output)
    if output.suffix.lower() != ".wav":
        problems.append(f"--output '{output}' does not end with .wav, the format that is written. Change the name.")
    elif output.exists():
        problems.append(f"--output '{output}' exists and would be overwritten. Choose another name or move it away.")
    lora = None
    if args.lora:
        try:
            lora = read_lora_file(Path(args.lora))
            problems += dora_problems(lora)
        except WrongInput as error:
            problems.extend(error.problems)
    if problems:
        raise WrongInput(problems)
    return lyrics, lora


# --- LoRA ---


def scales_to_play(lora: LoraFile, stated: float | None) -> tuple[dict[str, float], str]:
    """The scale s of each adapted module (W x + s B A x) and where it comes from; `stated` where the file is silent.

    Raises WrongInput when neither says it.
    """
    try:
        return lora_scales(lora)
    except UnknownStrength as error:
        if stated is None:
            raise WrongInput(
                f"'{lora.path}' does not say with which scale it was trained: no configuration in its header or beside "
                "it, no alpha values. Give it with --lora_scale (0.125 for rank 64, alpha 1 and rsLoRA)."
            ) from error
        return dict.fromkeys(lora.layer_ranks, stated), "--lora_scale"


def apply_lora(model: nn.Module, lora: LoraFile, strength: float, stated_scale: float | None = None) -> str:
    """Put the LoRA into `model` through PEFT, at any rank per layer; returns a sentence for the user.

    Raises WrongInput when a layer has no place in the model, or does not fit it.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    from ace_lora.lora.layers import ADAPTER, adapter_tensors, lora_mismatches

    scales, source = scales_to_play(lora, stated_scale)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    foreign = sorted(name for name in scales if name not in layers)
    if foreign:
        raise WrongInput(
            f"'{lora.path}' adapts {len(foreign)} layers that this base model does not have, for example "
            f"'{foreign[0]}'. Expected a LoRA of ACE-Step v1, trained on this base model. Choose another file."
        )
    ranks = lora.layer_ranks
    expected = {}
    for name, rank in ranks.items():
        expected[f"{name}.lora_A.weight"] = (rank, layers[name].in_features)
        expected[f"{name}.lora_B.weight"] = (layers[name].out_features, rank)
    problems = lora_mismatches(lora, expected)
    if problems:
        raise WrongInput(problems)
    inject_adapter_in_model(
        LoraConfig(target_modules=list(ranks), rank_pattern=ranks, r=1, init_lora_weights=False), model, ADAPTER
    )
    places = adapter_tensors(model)
    for key, parameter in places.items():
        parameter.data = lora.tensors[key].float().to(parameter.device)
        parameter.requires_grad_(False)
    for name, scale in scales.items():
        layer: Any = model.get_submodule(name)
        layer.scaling[ADAPTER] = scale * strength
    shown = ", ".join(sorted({f"{scale:.4g}" for scale in scales.values()})[:3])
    return f"{describe(lora)}; scale {shown} from {source}, strength {strength:g}"


# --- The stages ---


def tokenize(lyrics: str, language: str, weights: dict[str, Path]) -> list[int]:
    """Token ids of the lyrics, [0] without any; prints what the tokenizer has to say about them."""
    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.lyrics.vocabulary import load_vocabulary
    from ace_lora.v1.transformer import TransformerConfig

    rows = TransformerConfig.from_json(weights["transformer"] / "config.json").lyric_encoder_vocab_size
    tokens = LyricTokenizer(load_vocabulary(weights["lyric_vocabulary"], rows)).tokenize(lyrics, language or None)
    for warning in tokens.warnings:
        print(f"warning: {warning}")
    return tokens.ids


def encode_prompt(prompt: str, folder: Path, on: dict[str, Any]) -> torch.Tensor:
    """The text encoder's last hidden states [1, Lt, width]."""
    import torch

    from ace_lora.v1.text_encoder import load_text_encoder, load_text_tokenizer, tokenize_prompt

    ids = torch.tensor([tokenize_prompt(load_text_tokenizer(folder), prompt)], device=on["device"])
    encoder = load_text_encoder(folder, **on)
    with torch.inference_mode():
        return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def sample(
    args: argparse.Namespace,
    lora: LoraFile | None,
    text_states: torch.Tensor,
    lyric_ids: list[int],
    folder: Path,
    on: dict[str, Any],
) -> torch.Tensor:
    """Latents float32 [8, 16, T]."""
    from tqdm import tqdm

    from ace_lora.device import free_device_memory
    from ace_lora.v1.sampling import SamplingSettings, sample_latents
    from ace_lora.v1.transformer import load_transformer

    free_device_memory(on["device"])
    print("loading the transformer …")
    transformer = load_transformer(folder, **on)
    transformer.drop_ssl_heads()
    if lora is not None:
        print(apply_lora(transformer, without_ssl_heads(lora), args.strength, args.lora_scale))
    with tqdm(total=args.steps, desc="sampling") as bar:
        return sample_latents(
            transformer,
            text_states,
            lyric_ids,
            seconds=args.seconds,
            seed=args.seed,
            settings=SamplingSettings(steps=args.steps, guidance=args.guidance),
            on_step=lambda step: bar.update(step - bar.n),
        )


def without_ssl_heads(lora: LoraFile) -> LoraFile:
    """The LoRA without its tensors for the SSL heads, which only training uses."""
    from dataclasses import replace

    kept = {key: tensor for key, tensor in lora.tensors.items() if not key.startswith("projectors.")}
    return replace(lora, tensors=kept)


def decode(latents: torch.Tensor, weights: dict[str, Path], on: dict[str, Any]) -> torch.Tensor:
    """float32 [2, N] at 48 kHz on the CPU."""
    from ace_lora.audio.decode import SAMPLE_RATE, resample
    from ace_lora.device import free_device_memory
    from ace_lora.v1.dcae import decode_log_mel, load_latent_decoder
    from ace_lora.v1.mel import MEL_RATE
    from ace_lora.v1.vocoder import load_vocoder

    free_device_memory(on["device"])
    print("decoding …")
    log_mel = decode_log_mel(load_latent_decoder(weights["dcae"], **on), latents)
    wave = load_vocoder(weights["vocoder"], **on)(log_mel)
    return resample(wave.cpu(), MEL_RATE, SAMPLE_RATE)


def write_wave(wave: torch.Tensor, output: Path) -> None:
    """Write float32 [2, N] at 48 kHz, whole or not at all."""
    import soundfile

    from ace_lora.audio.decode import SAMPLE_RATE

    with replace_atomically(output) as temporary:
        soundfile.write(str(temporary), wave.T.numpy(), SAMPLE_RATE, format="WAV", subtype="FLOAT")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
