"""The latent encoder and decoder of ACE-Step v1: a deep compression autoencoder (DCAE) over log-mel spectrograms.

Shape legend: L samples at 48 kHz, T latent frames of 4096 samples at 44.1 kHz (10.77 Hz), H mel height, W mel width
(time), G attention groups, d their width.

The network is diffusers' `AutoencoderDC` (DC-AE, Chen et al. 2024); only the half that is needed is made. It looks at
a whole song at once: its linear attention sums over all times, so encoding in parts is not equal. Yet the sums
themselves can be formed in parts, and everything between them is local. So both are computed in pieces of time here,
with equal results up to rounding. Measured at the published sizes in float32 on a CPU, beside the weights: 34 MB per
second of song in one pass, 5 MB per second and 0.4 GB in pieces.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ace_lora.audio.decode import SAMPLE_RATE, AudioError, resample
from ace_lora.base_weights.loading import read_safetensors_strict
from ace_lora.base_weights.model_config import read_model_config
from ace_lora.device import HostCopy
from ace_lora.records.format import LATENT_SAMPLE_RATE, SAMPLES_PER_LATENT_FRAME
from ace_lora.v1.mel import denormalise, log_mel, normalise

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
# Shift and scale that give latents a mean near 0 and a deviation near 1. The `scaling_factor` of the configuration is
# not applied by ACE-Step.
LATENT_SHIFT, LATENT_SCALE = -1.9091, 0.1786

# Rows of the latents: 128 mel bins, halved three times. At any depth a latent frame is H / 16 columns.
_LATENT_ROWS = 16
# Latent frames worked on at once: no activation of the published sizes then has more than 34 million values.
_FRAMES_PER_PIECE = 128


def load_latent_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The encoder half of `music_dcae_f8c8`; the tensors of the decoder are not read."""
    return _load_half(folder, "encoder", device, dtype)


def load_latent_decoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The decoder half of `music_dcae_f8c8`; the tensors of the encoder are not read."""
    return _load_half(folder, "decoder", device, dtype)


def encode_latents(encoder: nn.Module, wave: Tensor) -> Tensor:
    """float32 [2, L] at 48 kHz to latents float32 [8, 16, T] on the CPU, T = ceil(ceil(147 L / 160) / 4096).

    Resampling and mel in float32 (on the encoder's device when that is CUDA), the network in the encoder's dtype.
    """
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        values = encoder_input(wave.to(device) if device.type == "cuda" else wave)
    return begin_latents(encoder, values)()


def encoder_input(wave: Tensor) -> Tensor:
    """[2, L] at 48 kHz to the normalised log mel float32 [2, 128, 8T], on the same device."""
    return normalise(log_mel(_at_latent_rate(wave.float())))


def begin_latents(encoder: nn.Module, values: Tensor) -> Callable[[], Tensor]:
    """Set the encoder to work on what `encoder_input` returned; the function returned waits for the latents.

    On CUDA nothing is waited for before that. The function raises AudioError for latents that are not finite.
    """
    result = _begin_in_range(encoder, encoder_forward, values[None])
    return lambda: (result()[0] - LATENT_SHIFT) * LATENT_SCALE


def decode_log_mel(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Latents [8, 16, T] to log mel float32 [2, 128, 8T], on the decoder's device."""
    encoded = latents[None].float() / LATENT_SCALE + LATENT_SHIFT
    mel = denormalise(_begin_in_range(decoder, decoder_forward, encoded)()[0])
    return mel.to(next(decoder.parameters()).device)


def _at_latent_rate(wave: Tensor) -> Tensor:
    """[2, L] at 48 kHz to [2, 4096 T] at 44.1 kHz: zeros fill the last latent frame, none are added to a full one."""
    wave = resample(wave, SAMPLE_RATE, LATENT_SAMPLE_RATE)
    return nn.functional.pad(wave, (0, -wave.shape[1] % SAMPLES_PER_LATENT_FRAME))


def _begin_in_range(
    network: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor], values: Tensor
) -> Callable[[], Tensor]:
    """The network's result, computed in its dtype; when that is too narrow (fp16) in float32, from then on.

    The function returned waits for it and returns it as float32 on the CPU.
    """
    parameter = next(network.parameters())
    with torch.inference_mode():
        computed = forward(network, values.to(parameter.device, parameter.dtype))
        copied, finite = HostCopy(computed), HostCopy(computed.isfinite().all())

    def wait() -> Tensor:
        result, fits = copied.wait(), bool(finite.wait())
        if not fits and result.dtype != torch.float32:
            with torch.inference_mode():
                result = forward(network.float(), values.to(parameter.device, torch.float32)).cpu()
            fits = bool(result.isfinite().all())
        if not fits:
            raise AudioError(
                "The mel autoencoder returned values that are not finite. Finite latents were expected. "
                "Check the weight files of music_dcae_f8c8; download them again if other songs fail too."
            )
        return result.float()

    return wait


def _load_half(folder: Path, half: str, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderDC

    config = read_model_config(folder)
    known = inspect.signature(AutoencoderDC.__init__).parameters
    with torch.device("meta"):
        model = AutoencoderDC(**{key: value for key, value in config.items() if key in known})
    other = "decoder." if half == "encoder" else "encoder."
    network = getattr(model, half)
    expected = {f"{half}.{name}": tensor.shape for name, tensor in network.state_dict().items()}
    tensors = read_safetensors_strict(
        Path(folder) / WEIGHTS_NAME,
        expected,
        ignored=lambda name: name.startswith(other),
        dtype=dtype,
        device=device,
    )
    stripped = {name.removeprefix(f"{half}."): tensor for name, tensor in tensors.items()}
    network.load_state_dict(stripped, strict=True, assign=True)
    return network.eval().requires_grad_(False)


# --- The network in pieces of time ---


def encoder_forward(encoder: Any, values: Tensor) -> Tensor:
    """What diffusers' encoder returns for [1, 2, H, W]: [1, 8, H/8, W/8]."""

    def head(x: Tensor) -> Tensor:
        shortcut = x.unflatten(1, (-1, encoder.out_shortcut_average_group_size)).mean(dim=2)
        return encoder.conv_out(x) + shortcut

    blocks = [block for stage in encoder.down_blocks for block in stage]
    return _forward([encoder.conv_in, *blocks], head if encoder.out_shortcut else encoder.conv_out, values)


def decoder_forward(decoder: Any, values: Tensor) -> Tensor:
    """What diffusers' decoder returns for [1, 8, h, w]: [1, 2, 8h, 8w]."""

    def entry(x: Tensor) -> Tensor:
        shortcut = x.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        return decoder.conv_in(x) + shortcut

    def head(x: Tensor) -> Tensor:
        x = decoder.norm_out(x.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(x))

    blocks = [block for stage in reversed(decoder.up_blocks) for block in stage]
    return _forward([entry if decoder.in_shortcut else decoder.conv_in, *blocks], head, values)


Layer = Callable[[Tensor], Tensor]


def _forward(layers: Sequence[Layer], head: Layer, x: Tensor) -> Tensor:
    """Apply `layers` and `head`: what is local together, piece after piece, the attentions between on the whole."""
    from diffusers.models.autoencoders.autoencoder_dc import EfficientViTBlock

    local: list[Layer] = []
    for layer in layers:
        if isinstance(layer, EfficientViTBlock):
            x = _attention(layer.attn, _apply_local(local, x))
            local = [layer.conv_out]
        else:
            local.append(layer)
    return _apply_local([*local, head], x)


def _reach_and_scale(layer: Layer) -> tuple[int, Fraction]:
    """Columns that a layer looks to each side, and output columns per input column."""
    from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, ResBlock

    if isinstance(layer, ResBlock):
        return 2, Fraction(1)
    if isinstance(layer, DCDownBlock2d):
        return 1, Fraction(1, 2)
    if isinstance(layer, DCUpBlock2d):
        return 1, Fraction(2)
    # Every other layer of this network is, or holds, one convolution of width 3.
    return 1, Fraction(1)


def _apply_local(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Apply layers that look a few columns to each side only: [1, C, H, W] to [1, C', H', W']."""
    reach, scale = Fraction(0), Fraction(1)
    for layer in layers:
        own_reach, own_scale = _reach_and_scale(layer)
        reach += own_reach / scale
        scale *= own_scale
    result: Tensor | None = None
    for low, high, start, stop in _pieces(x, int(reach) + 1, scale.denominator):
        piece = x[..., low:high]
        for layer in layers:
            piece = layer(piece)
        if result is None:
            result = piece.new_empty(*piece.shape[:-1], int(x.shape[-1] * scale))
        first = int((start - low) * scale)
        length = int((stop - start) * scale)
        result[..., int(start * scale) : int(start * scale) + length] = piece[..., first : first + length]
    assert result is not None
    return result


def _pieces(x: Tensor, reach: int, multiple: int) -> Iterator[tuple[int, int, int, int]]:
    """(low, high, start, stop): columns to read and, within them, columns to keep; starts are multiples."""
    width = x.shape[-1]
    step = _FRAMES_PER_PIECE * x.shape[-2] // _LATENT_ROWS
    reach = -(-reach // multiple) * multiple
    for start in range(0, width, step):
        stop = min(start + step, width)
        # Cut at the true ends and never padded: there the layers pad with zeros as they would in one pass.
        yield max(0, start - reach), min(width, stop + reach), start, stop


def _attention(attention: Any, x: Tensor) -> Tensor:
    """diffusers' `SanaMultiscaleLinearAttention` on [1, C, H, W], with its sums over all positions formed in pieces.

    relu(q) (relu(k)^T [v, 1]) needs all positions only for the bracket, which is [d, d + 1] per group.
    """
    head = attention.attention_head_dim
    reach = max((block.proj_in.kernel_size[0] // 2 for block in attention.to_qkv_multiscale), default=0)
    queries = []
    sums: Tensor | float = 0.0
    for low, high, start, stop in _pieces(x, reach, 1):
        piece = x[..., low:high].movedim(1, -1)
        qkv = torch.cat([attention.to_q(piece), attention.to_k(piece), attention.to_v(piece)], dim=3).movedim(-1, 1)
        scales = torch.cat([qkv, *(block(qkv) for block in attention.to_qkv_multiscale)], dim=1)
        scales = scales[..., start - low : stop - low].reshape(-1, 3 * head, x.shape[-2] * (stop - start))
        query, key, value = scales.chunk(3, dim=1)  # each [G, d, n]
        # A copy, because the view would keep key and value alive.
        queries.append(attention.nonlinearity(query).clone())
        ones_below = nn.functional.pad(value.float(), (0, 0, 0, 1), value=1.0)  # [G, d+1, n]
        sums = sums + ones_below @ attention.nonlinearity(key.float()).transpose(1, 2)  # [G, d+1, d]

    result = torch.empty_like(x)
    for (_, _, start, stop), query in zip(_pieces(x, 0, 1), queries, strict=True):
        piece = sums @ query.float()  # [G, d+1, n]
        piece = piece[:, :-1] / (piece[:, -1:] + attention.eps)
        piece = piece.to(x.dtype).reshape(1, -1, x.shape[-2], stop - start)
        piece = attention.to_out(piece.movedim(1, -1))
        if attention.norm_type == "rms_norm":
            piece = attention.norm_out(piece).movedim(-1, 1)
        else:
            piece = attention.norm_out(piece.movedim(-1, 1))
        result[..., start:stop] = piece + x[..., start:stop]
    return result
