"""MERT and mHuBERT features of songs whose records leave them to the training (`--ssl at_training`).

They take 0.12 MB per second of audio in main memory, as int8 rows; a row's length does not matter to the loss, so its
scale is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ace_lora.audio.decode import AudioError, prepare_waveform, read_audio
from ace_lora.commands import StepFailed
from ace_lora.device import free_device_memory
from ace_lora.processes import say
from ace_lora.records.record import quantise_rows
from ace_lora.training.songs import TrainingSong
from ace_lora.v1.ssl_features import MERT, MHUBERT, extract_features, load_mert, load_mhubert

if TYPE_CHECKING:
    from ace_lora.device import Device


def compute_features(
    songs: Sequence[TrainingSong], indices: Sequence[int], weights: dict[str, Path], device: Device
) -> dict[int, dict[str, torch.Tensor]]:
    """int8 rows [n, width] of the songs at `indices`, by index and branch ("mert", "mhubert").

    One model at a time is in memory. Raises StepFailed naming every song whose audio cannot be read any more.
    """
    features: dict[int, dict[str, torch.Tensor]] = {index: {} for index in indices}
    failed: dict[str, str] = {}
    for name, branch, load in (("mert", MERT, load_mert), ("mhubert", MHUBERT, load_mhubert)):
        model = load(weights[name], device=device.torch_device, dtype=device.dtype)
        for number, index in enumerate(indices, 1):
            song = songs[index]
            if song.name in failed:
                continue
            try:
                wave, _ = prepare_waveform(read_audio(Path(song.metadata["audio"])))
                rows, _ = quantise_rows(extract_features(model, wave, branch))
            except (AudioError, OSError) as error:
                failed[song.name] = str(error)
                continue
            features[index][name] = rows
            say(f"features {name} {number}/{len(indices)} | {song.name}")
        del model
    free_device_memory(device.torch_device)
    if failed:
        raise StepFailed(
            "The MERT and mHuBERT features cannot be computed: "
            + " ".join(f"'{name}': {reason}" for name, reason in failed.items())
            + " Put the audio back, preprocess again with --ssl stored, or train with --ssl_coeff 0."
        )
    return features
