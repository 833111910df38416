"""Samples while a training runs: songs rendered by the transformer that is being trained, after a save.

The transformer is the training's own, with the adapter in it; nothing of it and no random number of the training
changes. Text encoder and lyric branch read the texts once, in main memory. Decoder and vocoder come for each round and
go again, since the card is full with the training; where they find no room, they work in main memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ace_lora.comfyui.sampling import ComfyUISettings
from ace_lora.commands import StepFailed, WrongInput
from ace_lora.device import Device, free_device_memory, is_out_of_memory
from ace_lora.preview.plan import Plan, PlannedSong, file_name, read_plan, record_text
from ace_lora.preview.render import Networks, Rendering, decode, encode_texts, load_decoders, sample
from ace_lora.preview.save import write_audio
from ace_lora.preview.settings import make_settings
from ace_lora.v1.transformer import ACEStepTransformer, load_lyric_branch

SONGS_OF_ITS_OWN = 2  # of the training, where no plan is given
SECONDS = 30.0

# Called with the transformer in training, the number of its step, the folder for the samples, and what takes each of
# them for a log: (name, wave float32 [2, N], rate in Hz).
Sampler = Callable[[ACEStepTransformer, int, Path, Callable[[str, torch.Tensor, int], None]], None]


def sample_plan(plan_file: str, records: list[Path]) -> Plan:
    """What is rendered: the songs of a plan (its columns do not count), or the first songs of the training.

    Raises WrongInput when the plan or a record cannot be used.
    """
    if plan_file:
        return read_plan(Path(plan_file))
    if not records:
        raise WrongInput("There is no song to sample. Expected records of a training. Give songs in a plan.")
    songs = [PlannedSong(path.stem, record_text(path), SECONDS, 0) for path in records[:SONGS_OF_ITS_OWN]]
    return Plan("ace-step", {}, "wav", songs, [], None)


def make_sampler(plan: Plan, weights: dict[str, Path], device: Device, *, plain_weights: bool = True) -> Sampler:
    """A function that renders the songs of `plan` and writes them to FOLDER/step_STEP__SONG.wav.

    `plain_weights`: False where the transformer's weights are quantised or stay in main memory; guidance then goes
    without weakened queries, which exchanges weights. What goes wrong with a sample (numbers that are not finite,
    memory, a full disk) is said, and the training goes on.
    """
    settings = make_settings(plan.way, plan.settings)
    if not plain_weights and not isinstance(settings, ComfyUISettings):
        settings = dataclasses.replace(settings, erg_diffusion=False)
    in_main_memory = Networks(weights, Device(torch.device("cpu"), torch.float32, ""))
    encoded: list[Any] = []
    branches: list[ACEStepTransformer] = []

    def render(
        model: ACEStepTransformer, step: int, folder: Path, log: Callable[[str, torch.Tensor, int], None]
    ) -> None:
        if not encoded:
            encoded.extend(encode_texts([song.text for song in plan.songs], settings, in_main_memory))
        if model.lyric_encoder is None and not branches:
            branches.append(load_lyric_branch(weights["transformer"]))
        print(f"samples of step {step}: {len(plan.songs)} songs …")
        try:
            latents = [
                sample(
                    model,
                    encoded[number],
                    Rendering(number, song.seconds, song.seed),
                    settings,
                    lyric_branch=branches[0] if branches else None,
                )
                for number, song in enumerate(plan.songs)
            ]
            waves = _decoded(latents, settings, weights, device)
        except (StepFailed, RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = error if isinstance(error, StepFailed) else "the memory is full; shorter songs may fit."
            print(f"warning: no samples of step {step}: {reason} The training goes on.")
            return
        finally:
            free_device_memory(device.torch_device)
        for song, (wave, rate) in zip(plan.songs, waves, strict=True):
            name = file_name(song.name)
            path = folder / f"step_{step:06}__{name}.{plan.format}"
            try:
                write_audio(wave, rate, path)
            except (OSError, StepFailed) as error:
                print(f"warning: no sample '{path}': {error} The training goes on.")
                continue
            log(name, wave, rate)
            print(f"sample: {path}")

    return render


def _decoded(
    latents: list[torch.Tensor], settings: Any, weights: dict[str, Path], device: Device
) -> list[tuple[torch.Tensor, int]]:
    """Waves and rates, on the device where there is room, else in main memory."""
    free_device_memory(device.torch_device)
    try:
        decoders = load_decoders(weights, {"device": device.torch_device, "dtype": device.dtype})
        return [decode(song, decoders, settings) for song in latents]
    except RuntimeError as error:
        if device.torch_device.type == "cpu" or not is_out_of_memory(error):
            raise
    free_device_memory(device.torch_device)
    decoders = load_decoders(weights, {"device": torch.device("cpu"), "dtype": torch.float32})
    return [decode(song, decoders, settings) for song in latents]
