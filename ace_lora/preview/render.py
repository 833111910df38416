"""Songs rendered one after another by networks that are loaded once each.

The text encoder reads all prompts and goes. The transformer stays for all renderings, LoRAs are exchanged in it.
Decoder and vocoder are loaded once too; where they do not fit on the card beside it, the two sides take turns.

Shapes: T latent frames of 4096 samples at 44.1 kHz, N samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ace_lora.audio.decode import SAMPLE_RATE, AudioError, resample
from ace_lora.comfyui import sampling as comfyui
from ace_lora.comfyui.lyrics import token_ids, write_lyrics
from ace_lora.commands import StepFailed, WrongInput
from ace_lora.device import Device, free_device_memory, is_out_of_memory
from ace_lora.lyrics.tokenize import LyricTokenizer
from ace_lora.lyrics.vocabulary import MissingLyricSupport, load_vocabulary
from ace_lora.preview.adapters import adapted, check_loras
from ace_lora.preview.plan import SongText
from ace_lora.records.format import LATENT_SAMPLE_RATE
from ace_lora.v1 import sampling as ace_step
from ace_lora.v1.dcae import decode_log_mel, load_latent_decoder
from ace_lora.v1.guidance import text_queries, weakened_queries
from ace_lora.v1.text_encoder import load_text_encoder, load_text_tokenizer, tokenize_prompt
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig, load_transformer
from ace_lora.v1.vocoder import load_vocoder

if TYPE_CHECKING:
    from ace_lora.lora.file import LoraFile

PARTS = ("text_encoder", "lyric_vocabulary", "transformer", "dcae", "vocoder")
Settings = ace_step.SamplingSettings | comfyui.ComfyUISettings


@dataclass(frozen=True)
class Rendering:
    """One song by one model."""

    text: int  # index of its SongText
    seconds: float
    seed: int
    lora: LoraFile | None = field(default=None, compare=False)
    strength: float = 1.0
    lora_scale: float | None = None  # of a LoRA file that states none


@dataclass(frozen=True)
class Encoded:
    """What the transformer is given of one SongText."""

    text_states: torch.Tensor  # [1, Lt, width]
    weakened_text_states: torch.Tensor | None  # the same, for `erg_tags`
    lyric_ids: list[int]


@dataclass(frozen=True)
class Networks:
    """Where the parts run. `together`: transformer and decoder are on the device at once, else they take turns."""

    weights: dict[str, Path]
    device: Device
    together: bool = True


def is_comfyui(settings: Settings) -> bool:
    return isinstance(settings, comfyui.ComfyUISettings)


def render(
    texts: list[SongText],
    renderings: Iterable[Rendering],
    settings: Settings,
    networks: Networks,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, torch.Tensor, int]]:
    """Yield (index, wave float32 [2, N] on the CPU, rate in Hz) of each; renderings of one LoRA should be neighbours.

    Raises WrongInput for texts and LoRAs that cannot be used, StepFailed for a network that does not return numbers.
    """
    renderings = list(renderings)
    loras = {id(job.lora): (job.lora, job.lora_scale) for job in renderings if job.lora is not None}
    check_loras(networks.weights["transformer"], loras.values())
    on: dict[str, Any] = {"device": networks.device.torch_device, "dtype": _dtype(settings, networks.device)}
    encoded = encode_texts(texts, settings, networks)
    free_device_memory(on["device"])
    print("loading the transformer …")
    transformer: ACEStepTransformer | None = load_transformer(networks.weights["transformer"], **on)
    assert transformer is not None
    transformer.drop_ssl_heads()
    decoders: nn.ModuleList | None = None
    to_decode = {**on, "dtype": networks.device.dtype}
    for first, last in _runs_of_one_lora(renderings):
        assert transformer is not None
        job = renderings[first]
        waiting: list[tuple[int, torch.Tensor]] = []
        with adapted(transformer, job.lora, job.strength, job.lora_scale, merge=is_comfyui(settings)) as sentence:
            if job.lora is not None:
                print(sentence)
            for index in range(first, last):
                latents = sample(transformer, encoded[renderings[index].text], renderings[index], settings, on_step)
                if networks.together:
                    decoders = decoders or load_decoders(networks.weights, to_decode)
                    yield index, *decode(latents, decoders, settings)
                else:
                    # A few hundred kilobytes each: decoded together, when the transformer has made room.
                    waiting.append((index, latents))
        if networks.together:
            continue
        is_last = last == len(renderings)
        if is_last:
            transformer = None
        else:
            transformer.to("cpu")
        free_device_memory(on["device"])
        print("decoding …")
        decoders = decoders or load_decoders(networks.weights, to_decode)
        decoders.to(on["device"])
        for index, latents in waiting:
            yield index, *decode(latents, decoders, settings)
        if transformer is not None:
            decoders.to("cpu")
            free_device_memory(on["device"])
            transformer.to(on["device"])


def _runs_of_one_lora(renderings: list[Rendering]) -> Iterator[tuple[int, int]]:
    """First index and the index behind the last of neighbours with the same LoRA at the same strength."""
    start = 0
    for index in range(1, len(renderings) + 1):
        if index == len(renderings) or _lora_key(renderings[index]) != _lora_key(renderings[start]):
            if start < len(renderings):
                yield start, index
            start = index


def _lora_key(rendering: Rendering) -> tuple[int, float, float | None]:
    return id(rendering.lora), rendering.strength, rendering.lora_scale


def _dtype(settings: Settings, device: Device) -> torch.dtype:
    """Of the transformer: ComfyUI runs it in bf16 or float32, never in float16."""
    return torch.float32 if is_comfyui(settings) and device.dtype is torch.float16 else device.dtype


@contextlib.contextmanager
def memory_failures_told() -> Iterator[None]:
    """Turn running out of memory into what a user can act on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StepFailed(
            "The memory is full. Expected room for the transformer and one song. Close other programs, render shorter "
            "songs, or use --device cpu; what was written stays."
        ) from error


# --- Texts ---


def encode_texts(texts: list[SongText], settings: Settings, networks: Networks) -> list[Encoded]:
    """Every text for the transformer; prints what the lyric tokenizer has to say."""
    lyric_ids = _lyric_ids(texts, settings, networks.weights)
    folder, device = networks.weights["text_encoder"], networks.device
    tokenizer = load_text_tokenizer(folder)
    dtype = device.dtype
    if is_comfyui(settings):
        # ComfyUI cuts no prompt, keeps float16 weights and computes in float32.
        tokenizer.no_truncation()
        dtype = torch.float32
    encoder = load_text_encoder(folder, device=device.torch_device, dtype=dtype)
    if is_comfyui(settings):
        for parameter in encoder.parameters():
            parameter.data = parameter.data.half().float()
    with_weakened = isinstance(settings, ace_step.SamplingSettings) and settings.erg_tags
    result = []
    for text, lyrics in zip(texts, lyric_ids, strict=True):
        prompt_ids = list(text.text_ids) if text.text_ids else tokenize_prompt(tokenizer, text.prompt)
        ids = torch.tensor([prompt_ids], device=device.torch_device)

        def states(ids: torch.Tensor = ids) -> torch.Tensor:
            with torch.inference_mode():
                return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

        plain, weakened = states(), None
        if with_weakened:
            with weakened_queries(text_queries(encoder)):
                weakened = states()
        result.append(Encoded(plain, weakened, lyrics))
    return result


def _lyric_ids(texts: list[SongText], settings: Settings, weights: dict[str, Path]) -> list[list[int]]:
    """Token ids of the lyrics: for ComfyUI those of the text that a workflow file of ours holds."""
    rows = TransformerConfig.from_json(weights["transformer"] / "config.json").lyric_encoder_vocab_size
    vocabulary = load_vocabulary(weights["lyric_vocabulary"], rows)
    result = []
    for text in texts:
        if text.lyric_ids:
            ids = list(text.lyric_ids)
        else:
            try:
                tokens = LyricTokenizer(vocabulary).tokenize(text.lyrics, text.language or None)
            except MissingLyricSupport as error:
                raise WrongInput(str(error)) from error
            for warning in tokens.warnings:
                print(f"warning: {warning}")
            ids = tokens.ids
        result.append(token_ids(write_lyrics(ids, vocabulary), vocabulary) if is_comfyui(settings) else ids)
    return result


# --- Latents and waves ---


def sample(
    transformer: ACEStepTransformer,
    text: Encoded,
    rendering: Rendering,
    settings: Settings,
    on_step: Callable[[], None] = lambda: None,
    *,
    lyric_branch: ACEStepTransformer | None = None,
) -> torch.Tensor:
    """Latents float32 [8, 16, T] on the CPU."""
    given: dict[str, Any] = {
        "seconds": rendering.seconds,
        "seed": rendering.seed,
        "settings": settings,
        "lyric_branch": lyric_branch,
        "on_step": lambda step: on_step(),
    }
    if is_comfyui(settings):
        latents = comfyui.sample_latents(transformer, text.text_states, text.lyric_ids, **given)
    else:
        given["weakened_text_states"] = text.weakened_text_states
        latents = ace_step.sample_latents(transformer, text.text_states, text.lyric_ids, **given)
    if not bool(latents.isfinite().all()):
        raise StepFailed(
            "The transformer returned values that are not finite. Expected numbers. Try --dtype fp32, a lower "
            "--guidance or a lower --strength; if the base model alone does so too, check its weight files."
        )
    return latents


def load_decoders(weights: dict[str, Path], on: dict[str, Any]) -> nn.ModuleList:
    """The latent decoder and the vocoder."""
    return nn.ModuleList([load_latent_decoder(weights["dcae"], **on), load_vocoder(weights["vocoder"], **on)])


def decode(latents: torch.Tensor, decoders: nn.ModuleList, settings: Settings) -> tuple[torch.Tensor, int]:
    """Latents [8, 16, T] to a wave float32 [2, N] on the CPU and its rate: ComfyUI's 44.1 kHz, else 48 kHz."""
    decoder, vocoder = decoders
    try:
        with torch.inference_mode():
            wave = vocoder(decode_log_mel(decoder, latents)).cpu()
    except AudioError as error:
        raise StepFailed(str(error)) from error
    if is_comfyui(settings):
        return comfyui.limit_loudness(wave), LATENT_SAMPLE_RATE
    return resample(wave, LATENT_SAMPLE_RATE, SAMPLE_RATE), SAMPLE_RATE
