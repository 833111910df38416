"""Log-mel spectrogram of ACE-Step v1: what the latent encoder reads and the vocoder turns back into sound.

Shape legend: C channels, N samples at 44.1 kHz, F mel frames of 512 samples, 128 mel bins (low first).
"""

from __future__ import annotations

import torch

from ace_lora.v1.mel_filters import N_FFT, N_MELS, mel_filter_bank

HOP = 512
# The encoder reads (log mel - lowest) / (highest - lowest), mapped to [-1, 1]; it is not clamped.
LOWEST_LOG_MEL, HIGHEST_LOG_MEL = -11.0, 3.0

# Frames transformed at once: the spectrum of a whole song would take a gigabyte.
_FRAMES_PER_BLOCK = 2048


def log_mel(wave: torch.Tensor) -> torch.Tensor:
    """Natural log of the mel magnitudes: float32 [C, N] at 44.1 kHz to [C, 128, F], on the same device.

    F = N // 512; N is at least 1024. Frames are centred by reflecting 768 samples at both ends, not by `center=True`.
    """
    edge = (N_FFT - HOP) // 2
    padded = torch.nn.functional.pad(wave.float(), (edge, edge), mode="reflect")
    frames = (padded.shape[1] - N_FFT) // HOP + 1
    window = torch.hann_window(N_FFT, periodic=True, dtype=torch.float64).float().to(wave.device)
    # On a GPU the product is in float64, for which no TF32 setting applies; it is little work there.
    dtype = torch.float64 if wave.device.type == "cuda" else torch.float32
    bank = torch.from_numpy(mel_filter_bank()).float().T.to(wave.device, dtype)  # [128, 1025]
    result = torch.empty(wave.shape[0], N_MELS, frames, device=wave.device)
    for start in range(0, frames, _FRAMES_PER_BLOCK):
        stop = min(start + _FRAMES_PER_BLOCK, frames)
        piece = padded[:, start * HOP : (stop - 1) * HOP + N_FFT]
        spectrum = torch.stft(piece, N_FFT, HOP, window=window, center=False, return_complex=True)
        # The epsilon is inside the root: silence has magnitude 1e-3.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-6).sqrt()  # [C, 1025, frames]
        result[:, :, start:stop] = (bank @ magnitude.to(dtype)).float()
    return result.clamp_min(1e-5).log()


def normalise(log_mel_values: torch.Tensor) -> torch.Tensor:
    """Log mel to what the encoder was trained on, about -1 to 1."""
    return (log_mel_values - LOWEST_LOG_MEL) / (HIGHEST_LOG_MEL - LOWEST_LOG_MEL) * 2 - 1


def denormalise(values: torch.Tensor) -> torch.Tensor:
    """What the decoder returns to log mel; the inverse of `normalise`."""
    return (values * 0.5 + 0.5) * (HIGHEST_LOG_MEL - LOWEST_LOG_MEL) + LOWEST_LOG_MEL
