"""The vocoder of ACE-Step v1 (ADaMoSHiFiGAN V1): log mel to a waveform at 44.1 kHz.

A ConvNeXt backbone (Liu et al. 2022) and a HiFi-GAN head (Kong et al. 2020) with SiLU. Written from the published
tensor names; weight norm is folded into plain weights when loading.

Shape legend: B batch, F mel frames, C channels, N samples at 44.1 kHz (512 per frame in the published sizes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from ace_lora.base_weights.loading import read_safetensors_strict
from ace_lora.base_weights.model_config import read_model_config
from ace_lora.commands import WrongInput

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
# Copies of the mel window and filter bank that the published file carries; `ace_lora.v1.mel` computes them.
_MEL_BUFFERS = "mel_transform."


@dataclass(frozen=True)
class VocoderConfig:
    """The keys of `music_vocoder/config.json` that shape the network, with the published values."""

    input_channels: int = 128
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (128, 256, 384, 512)
    kernel_sizes: tuple[int, ...] = (7,)
    num_mels: int = 512
    upsample_initial_channel: int = 1024
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11, 13)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 4
    pre_conv_kernel_size: int = 13
    post_conv_kernel_size: int = 13
    use_template: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> VocoderConfig:
        """Read `config.json`; raises WrongInput for the variants that ACE-Step v1 does not use."""
        values = read_model_config(folder)
        known = {field.name for field in fields(cls)}
        config = cls(**{key: _as_tuple(value) for key, value in values.items() if key in known})
        if config.use_template or len(config.kernel_sizes) != 1:
            raise WrongInput(
                f"'{Path(folder) / 'config.json'}' describes another vocoder (use_template {config.use_template}, "
                f"kernel_sizes {list(config.kernel_sizes)}). Expected use_template false and one kernel size. "
                "Use the music_vocoder folder of ACE-Step v1."
            )
        return config

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.upsample_rates)

    @property
    def reach(self) -> int:
        """Mel frames on each side that one output sample depends on, rounded up; 92 in the published sizes."""
        frames = (sum(self.depths) + 1) * (self.kernel_sizes[0] // 2) + self.pre_conv_kernel_size // 2
        rate = 1
        samples = 0.0
        for upsample_rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            rate *= upsample_rate
            samples += kernel / rate
            widest = max(
                (size // 2) * (sum(dilations) + len(dilations))
                for size, dilations in zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True)
            )
            samples += widest / rate
        return frames + math.ceil(samples + self.post_conv_kernel_size / rate)


class Vocoder(nn.Module):
    """Waveforms from log mel; see `forward`."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        self.backbone = _Backbone(config)
        self.head = _Head(config)

    def forward(self, log_mel: Tensor, frames_per_piece: int = 1024) -> Tensor:
        """Log mel [B, 128, F] (not normalised) to float32 [B, N] at 44.1 kHz, within [-1, 1], on the same device.

        Each item is one channel; stereo is a batch of two. Items and pieces of time are computed one after another;
        each piece sees all frames that it depends on, so the result is that of one pass whatever the piece.
        """
        parameter = next(self.parameters())
        frames, hop = log_mel.shape[2], self.config.samples_per_frame
        result = torch.empty(log_mel.shape[0], frames * hop, device=parameter.device)
        for item, wave in zip(log_mel, result, strict=True):
            for start in range(0, frames, frames_per_piece):
                stop = min(start + frames_per_piece, frames)
                low, high = max(0, start - self.config.reach), min(frames, stop + self.config.reach)
                piece = self.head(self.backbone(item[None, :, low:high].to(parameter)))[0, 0]
                wave[start * hop : stop * hop] = piece[(start - low) * hop : (stop - low) * hop]
        return result


def load_vocoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Vocoder:
    """The vocoder of a `music_vocoder` folder."""
    config = VocoderConfig.from_folder(folder)
    with torch.device("meta"):
        vocoder = Vocoder(config)
    expected = stored_shapes(vocoder)
    # Folded in float32, whatever the dtype that the network runs in.
    tensors = read_safetensors_strict(
        Path(folder) / WEIGHTS_NAME,
        expected,
        ignored=lambda name: name.startswith(_MEL_BUFFERS),
        dtype=torch.float32,
    )
    folded = {}
    for name in list(tensors):
        if name.endswith(".weight_g"):
            direction = tensors.pop(name.removesuffix("_g") + "_v")
            axes = tuple(range(1, direction.ndim))
            length = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
            folded[name.removesuffix("_g")] = tensors.pop(name) * direction / length
    weights = {name: tensor.to(device, dtype) for name, tensor in (tensors | folded).items()}
    vocoder.load_state_dict(weights, strict=True, assign=True)
    return vocoder.eval().requires_grad_(False)


def stored_shapes(vocoder: Vocoder) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the file: in the head every convolution is a direction and a gain.

    The gain is per first axis, which for the transposed convolutions is the input channel.
    """
    shapes = {}
    for name, tensor in vocoder.state_dict().items():
        if name.startswith("head.") and name.endswith(".weight"):
            shapes[f"{name}_g"] = (tensor.shape[0], *(1,) * (tensor.ndim - 1))
            shapes[f"{name}_v"] = tuple(tensor.shape)
        else:
            shapes[name] = tuple(tensor.shape)
    return shapes


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


# --- Backbone ---


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each frame: [B, C, F] to [B, C, F]."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x.transpose(1, 2), self.weight.shape, self.weight, self.bias, eps=1e-6).transpose(1, 2)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))
        self.dwconv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = _ChannelNorm(channels)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.dwconv(x)).transpose(1, 2)  # [B, F, C]
        h = self.pwconv2(gelu(self.pwconv1(h)))
        return x + (self.gamma * h).transpose(1, 2)


class _Backbone(nn.Module):
    """[B, 128, F] to [B, dims[-1], F]."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        dims, kernel = config.dims, config.kernel_sizes[0]
        # The stem repeats the edge frames; every later convolution pads with zeros.
        stem = nn.Conv1d(config.input_channels, dims[0], kernel, padding=kernel // 2, padding_mode="replicate")
        layers = [nn.Sequential(stem, _ChannelNorm(dims[0]))]
        for narrow, wide in pairwise(dims):
            layers.append(nn.Sequential(_ChannelNorm(narrow), nn.Conv1d(narrow, wide, 1)))
        self.channel_layers = nn.ModuleList(layers)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_ConvNeXtBlock(channels, kernel) for _ in range(depth)))
            for channels, depth in zip(dims, config.depths, strict=True)
        )
        self.norm = _ChannelNorm(dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        for channel_layer, stage in zip(self.channel_layers, self.stages, strict=True):
            x = stage(channel_layer(x))
        return self.norm(x)


# --- Head ---


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            # In place where a tensor is needed no more: this is most of the vocoder's time on a CPU.
            x = second(silu(first(silu(x)), inplace=True)).add_(x)
        return x


class _Head(nn.Module):
    """[B, num_mels, F] to waveforms [B, 1, N]."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(
            config.num_mels, channels, config.pre_conv_kernel_size, padding=config.pre_conv_kernel_size // 2
        )
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            self.ups.append(
                nn.ConvTranspose1d(channels, channels // 2, kernel, stride=rate, padding=(kernel - rate) // 2)
            )
            channels //= 2
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(_ResBlock(channels, size, dilations))
        self.conv_post = nn.Conv1d(channels, 1, config.post_conv_kernel_size, padding=config.post_conv_kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        # Resblocks lie in one list, stage after stage.
        per_stage = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            x = up(silu(x))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            total = blocks[0](x)
            for block in blocks[1:]:
                total += block(x)
            x = total.div_(per_stage)
        return torch.tanh(self.conv_post(silu(x)))
