"""The diffusion transformer of ACE-Step v1, written for training LoRA on frozen weights.

Parameter names are those of the published weights. Base weights are frozen from the start; PEFT may replace linear
layers by its LoRA layers. Inside, everything is computed in one dtype, the model's own or that of an active autocast,
and autocast itself is switched off: `ace_lora.model.lean_autograd` says where float32 is needed.

B batch, T latent frames (44100 / 512 / 8 per second), L context tokens = 1 speaker + Lt text + Ll lyric,
D = heads · head width, F feed-forward width, S width of self-supervised features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_lora.base_weights.loading import load_safetensors_strict, read_safetensors_strict
from ace_lora.device import send
from ace_lora.files import UnusableFile, read_json
from ace_lora.model import lean_autograd as lean
from ace_lora.v1.flow_matching import Padding
from ace_lora.v1.lyric_encoder import LyricEncoder
from ace_lora.v1.ssl_loss import ssl_loss

LATENT_CHANNELS = 8  # of the patch embedder, whatever in_channels says
PATCH_HIDDEN = 2048
PATCH_GROUPS = 32
PATCH_NORM_EPS = 1e-6
RMS_EPS = 1e-6
LINEAR_ATTENTION_EPS = 1e-15
TIMESTEP_WIDTH = 256
# Present in the published file, used by no forward pass: a fifth of the model.
UNUSED_PROJECTIONS = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


# Of the numbers of a configuration; far above every published one.
LARGEST_SIZE, MOST_LAYERS = 1_000_000, 256


@dataclass(frozen=True)
class TransformerConfig:
    """The keys of the published config.json that matter; defaults are the published values.

    The `lyric_encoder_*` keys after the vocabulary size are ours: the published encoder has a fixed size.
    """

    in_channels: int = 8
    out_channels: int = 8
    num_layers: int = 24
    num_attention_heads: int = 20
    attention_head_dim: int = 128
    mlp_ratio: float = 2.5
    patch_size: tuple[int, int] = (16, 1)
    max_position: int = 32768
    rope_theta: float = 1e6
    speaker_embedding_dim: int = 512
    text_embedding_dim: int = 768
    ssl_encoder_depths: tuple[int, ...] = (8, 8)
    ssl_names: tuple[str, ...] = ("mert", "m-hubert")
    ssl_latent_dims: tuple[int, ...] = (1024, 768)
    lyric_encoder_vocab_size: int = 6693
    lyric_hidden_size: int = 1024
    lyric_encoder_layers: int = 6
    lyric_encoder_heads: int = 16
    lyric_encoder_feed_forward: int = 4096

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def feed_forward_dim(self) -> int:
        return int(self.inner_dim * self.mlp_ratio)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TransformerConfig:
        """Unknown keys are ignored: diffusers writes its class name and version, and sizes without influence.

        Raises ValueError naming every value that no model could have.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        taken = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in defaults}
        wrong = [
            f"{name} is {str(value)[:50]!r}" for name, value in taken.items() if not _fits(name, value, defaults[name])
        ]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}. Expected numbers of the published kind.")
        return cls(**taken)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, path: Path) -> TransformerConfig:
        """Raises ValueError, with the path, when the file is no JSON object or holds what no model could have."""
        try:
            values = read_json(path)
        except UnusableFile as error:
            raise ValueError(f"{error} Download it again.") from error
        if not isinstance(values, dict):
            raise ValueError(f"'{path}' does not hold a JSON object. Download it again.")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"'{path}': {error} Download it again.") from error


def _fits(name: str, value: object, published: object) -> bool:
    """Whether a value of a configuration is of the kind of the published one, and of a size that a model could have."""
    if isinstance(published, tuple):
        return isinstance(value, tuple) and bool(value) and all(_fits(name, item, published[0]) for item in value)
    if isinstance(published, str):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(published, float):
        return 0 < value < 1e12
    least = 0 if "depths" in name else 1  # of the blocks: features may come from before the first
    largest = MOST_LAYERS if "layers" in name or "depths" in name else LARGEST_SIZE
    return isinstance(value, int) and least <= value <= largest


@dataclass(frozen=True)
class Context:
    """What the cross-attention looks at."""

    states: Tensor  # [B,L,D]
    mask: Tensor | None  # [B,L] bool, None when nothing is padded
    positions: Tensor | None  # [B,L] int64 position of each token without padding, None: its index


@dataclass(frozen=True)
class TransformerOutput:
    velocity: Tensor  # [B,8,16,T], noise − latents as predicted
    ssl_taps: list[Tensor]  # one [B,T,D] per self-supervised head


class ACEStepTransformer(nn.Module):
    lyric_embs: Any
    lyric_encoder: Any
    lyric_proj: Any
    projectors: Any

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.inner_dim
        self.proj_in = PatchEmbedding(config.patch_size[0], width)
        self.timestep_embedder = TimestepEmbedding(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.speaker_embedder = nn.Linear(config.speaker_embedding_dim, width)
        self.genre_embedder = nn.Linear(config.text_embedding_dim, width)
        self.lyric_embs = nn.Embedding(config.lyric_encoder_vocab_size, config.lyric_hidden_size)
        self.lyric_encoder = LyricEncoder(
            config.lyric_hidden_size,
            config.lyric_encoder_layers,
            config.lyric_encoder_heads,
            config.lyric_encoder_feed_forward,
        )
        self.lyric_proj = nn.Linear(config.lyric_hidden_size, width)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.projectors = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Linear(2 * width, 2 * width),
                nn.SiLU(),
                nn.Linear(2 * width, size),
            )
            for size in config.ssl_latent_dims
        )
        self.final_layer = FinalLayer(width, config.patch_size[0] * config.out_channels)
        self.requires_grad_(False)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that is computed in where no autocast is active."""
        return self.final_layer.scale_shift_table.dtype

    def large_parts(self) -> list[nn.Module]:
        """What holds nearly all weights and nothing but linear layers of a kind that may be stored quantised."""
        parts = (self.transformer_blocks, self.projectors, self.lyric_encoder)
        return [part for part in parts if part is not None]

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else self.dtype

    def drop_lyric_branch(self) -> None:
        """Free the lyric encoder (0.19 GB of the published model) once every song's lyric states are computed."""
        self.lyric_embs = self.lyric_encoder = self.lyric_proj = None

    def drop_ssl_heads(self) -> None:
        """Free the self-supervised heads (0.18 GB of the published model) when their loss is not used."""
        self.projectors = None

    def encode_lyrics(self, lyric_token_ids: Tensor, lyric_mask: Tensor | None = None) -> Tensor:
        """Ids [B,Ll] int64, mask [B,Ll] (0 on padding) to [B,Ll,D]; constant unless an adapter touches this branch."""
        dtype = self.compute_dtype(lyric_token_ids.device)
        with torch.autocast(lyric_token_ids.device.type, enabled=False):
            embedded = self.lyric_embs(lyric_token_ids).to(dtype)
            return lean.linear(self.lyric_proj, self.lyric_encoder(embedded, _mask_if_needed(lyric_mask)))

    def encode_context(
        self,
        text_states: Tensor,
        text_mask: Tensor | None,
        lyric_states: Tensor,
        lyric_mask: Tensor | None,
        speaker_embeds: Tensor | None = None,
    ) -> Context:
        """Text states [B,Lt,text], lyric states [B,Ll,D] of `encode_lyrics`, speaker vectors [B,S] (None: zeros).

        Masks are [B,…], 1 on tokens and 0 on padding at the end. Give None, or a mask on the CPU, where nothing is
        padded: then no mask is made at all, and nothing waits for the GPU to look.
        """
        batch, device = text_states.shape[0], text_states.device
        dtype = self.compute_dtype(device)
        with torch.autocast(device.type, enabled=False):
            if speaker_embeds is None:
                speaker_embeds = text_states.new_zeros(batch, self.config.speaker_embedding_dim)
            speaker = lean.linear(self.speaker_embedder, speaker_embeds.to(dtype))[:, None]
            text = lean.linear(self.genre_embedder, text_states.to(dtype))
        states = torch.cat([speaker, text, lyric_states.to(dtype)], 1)  # [B,L,D]
        text_mask, lyric_mask = _mask_if_needed(text_mask), _mask_if_needed(lyric_mask)
        if text_mask is None and lyric_mask is None:
            return Context(states, None, None)

        mask_device = next(mask.device for mask in (text_mask, lyric_mask) if mask is not None)
        speaker_mask = torch.ones(batch, 1, dtype=torch.bool, device=mask_device)
        text_mask, lyric_mask = (
            torch.ones(part.shape[:2], dtype=torch.bool, device=mask_device) if mask is None else mask.to(mask_device)
            for mask, part in ((text_mask, text), (lyric_mask, lyric_states))
        )
        mask = torch.cat([speaker_mask, text_mask, lyric_mask], 1)  # [B,L]
        # Lyrics follow directly behind the item's own text, as they would without padding.
        text_lengths = text_mask.sum(1, keepdim=True)
        positions = torch.cat(
            [
                torch.arange(1 + text.shape[1], device=mask_device).expand(batch, -1),
                1 + text_lengths + torch.arange(lyric_states.shape[1], device=mask_device),
            ],
            1,
        )
        return Context(states, mask, send(positions, device))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Context,
        frame_mask: Tensor | None = None,
        ssl_taps: bool = False,
        padding: Padding = "exact",
    ) -> TransformerOutput:
        """Latents [B,8,16,T], timestep [B] float32 in (0, 1000], frame mask [B,T] (1 song, 0 padding; None: none).

        `padding="exact"` makes every item of a padded batch what it is alone: group norm, depthwise convolution and
        lyric positions follow the masks. "reference" is the published behaviour, where padding leaks.
        """
        device = latents.device
        dtype = self.compute_dtype(device)
        frame_mask = _mask_if_needed(frame_mask)
        exact = padding == "exact"
        with torch.autocast(device.type, enabled=False):
            if frame_mask is not None:
                frame_mask = send(frame_mask, device)
            content_mask = frame_mask if exact else None
            with torch.no_grad():
                embedded_timestep = self.timestep_embedder(timestep, dtype)  # [B,D]
                modulation = lean.linear(self.t_block[1], F.silu(embedded_timestep)).unflatten(1, (6, -1))  # [B,6,D]
                x = self.proj_in(latents.to(dtype), content_mask)  # [B,T,D]
            inputs = self._block_inputs(x, context, frame_mask, content_mask, modulation, exact)
            taps = []
            for index, block in enumerate(self.transformer_blocks):
                if block.recomputed and torch.is_grad_enabled():
                    x = checkpoint(block, x, inputs, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = block(x, inputs)
                if ssl_taps:
                    taps += [x for depth in self.config.ssl_encoder_depths if depth == index]
            y = self.final_layer(x, embedded_timestep)  # [B,T,16*8]
        # The channel is fastest here, whereas the patch embedding has the latent row fastest.
        velocity = y.unflatten(2, (self.config.patch_size[0], -1)).permute(0, 3, 2, 1)
        return TransformerOutput(velocity, taps)

    def _block_inputs(
        self,
        x: Tensor,
        context: Context,
        frame_mask: Tensor | None,
        content_mask: Tensor | None,
        modulation: Tensor,
        exact: bool,
    ) -> BlockInputs:
        device, dtype = x.device, x.dtype
        states, key_mask = context.states.to(dtype), context.mask
        positions = context.positions if exact else None
        if positions is None:
            positions = torch.arange(states.shape[1], device=device)[None]
        if key_mask is not None and len(states) == 1 and key_mask.device.type == "cpu":
            # One item: leave masked keys out instead of masking them.
            kept = send(key_mask[0].nonzero()[:, 0], device)
            states, positions, key_mask = states[:, kept], positions[:, kept], None
        if key_mask is not None:
            key_mask = send(key_mask, device)[:, None, None]  # [B,1,1,L]
        head_width, theta = self.config.attention_head_dim, self.config.rope_theta
        frames = torch.arange(x.shape[1], device=device)[None]
        return BlockInputs(
            context=states,
            key_mask=key_mask,
            frame_mask=frame_mask,
            content_mask=content_mask,
            modulation=modulation,
            frame_rotation=lean.rotation_table(frames, head_width, theta, dtype),
            context_rotation=lean.rotation_table(positions, head_width, theta, dtype),
        )

    def ssl_losses(
        self, taps: Sequence[Tensor], targets: Mapping[str, Sequence[Tensor]], frame_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of each self-supervised head that `targets` names ("mert", "m-hubert"); one [n,S] feature per item.

        Heads are paired with targets by name. `frame_mask` [B,T] restricts every item to its own frames.
        """
        frame_mask = _mask_if_needed(frame_mask)
        frames = None if frame_mask is None else frame_mask.sum(1).tolist()
        heads = {
            name: (tap, head) for name, tap, head in zip(self.config.ssl_names, taps, self.projectors, strict=True)
        }
        losses = {}
        for name, features in targets.items():
            tap, head = heads[name]
            with torch.autocast(tap.device.type, enabled=False):
                hidden = F.silu(lean.linear(head[0], tap))
                hidden = F.silu(lean.linear(head[2], hidden))
                losses[name] = ssl_loss(lean.linear(head[4], hidden), features, frames)
        return losses


@dataclass(frozen=True)
class BlockInputs:
    """What every block sees besides the residual stream; nothing of it gets a gradient but the context."""

    context: Tensor  # [B,L,D]
    key_mask: Tensor | None  # [B,1,1,L] bool
    frame_mask: Tensor | None  # [B,T] bool: frames that attention sees
    content_mask: Tensor | None  # [B,T] bool: frames that the convolution sees
    modulation: Tensor  # [B,6,D]
    frame_rotation: tuple[Tensor, Tensor]  # [1,T,1,d]
    context_rotation: tuple[Tensor, Tensor]  # [1 or B,L,1,d]


class TransformerBlock(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.inner_dim
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        self.attn = SelfAttention(width, config.num_attention_heads)
        self.cross_attn = CrossAttention(width, config.num_attention_heads)
        self.ff = GatedConvolution(width, config.feed_forward_dim)
        # Set by ace_lora.model.recompute: the whole block, or only its largest product, is computed again for the
        # backward pass.
        self.recomputed = False
        self.feed_forward_recomputed = False

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x [B,T,D]"""
        modulation = self.scale_shift_table.to(x.dtype) + inputs.modulation
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.chunk(6, dim=1)  # [B,1,D] each
        x = self.attn(x, shift_a, 1 + scale_a, gate_a, inputs.frame_rotation, inputs.frame_mask)
        x = self.cross_attn(x, inputs)
        return self.ff(x, shift_f, 1 + scale_f, gate_f, inputs.content_mask, not self.feed_forward_recomputed)


class SelfAttention(nn.Module):
    """x + gate · ReLU linear attention of the modulated norm of x (spec: transformer, 8.2)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        gate: Tensor,
        rotation: tuple[Tensor, Tensor],
        frame_mask: Tensor | None,
    ) -> Tensor:
        q, k, v = lean.modulated_projections([self.to_q, self.to_k, self.to_v], x, shift, scale, RMS_EPS)
        return lean.linear_attention(
            self.to_out[0], q, k, v, rotation, frame_mask, gate, x, self.heads, LINEAR_ATTENTION_EPS
        )


class CrossAttention(nn.Module):
    """x + softmax attention of the raw residual stream to the context (spec: transformer, 8.3)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        q, k, v = (
            lean.linear(layer, source).unflatten(2, (self.heads, -1))
            for layer, source in ((self.to_q, x), (self.to_k, inputs.context), (self.to_v, inputs.context))
        )  # [B,T,H,d], [B,L,H,d] twice
        q = lean.rotate(q, *inputs.frame_rotation)
        k = lean.rotate(k, *inputs.context_rotation)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=inputs.key_mask
        )
        attended = attended.transpose(1, 2).flatten(2)  # [B,T,D]
        if inputs.frame_mask is not None:
            attended = attended * inputs.frame_mask[:, :, None]
        return x + lean.linear(self.to_out[0], attended)


class GatedConvolution(nn.Module):
    """x + gate · feed-forward with a depthwise convolution over time (spec: transformer, 8.4)."""

    inverted_conv: Any
    depth_conv: Any
    point_conv: Any

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inverted_conv = nn.Module()
        self.inverted_conv.conv = lean.PointwiseConvolution(width, 2 * hidden)
        self.depth_conv = nn.Module()
        self.depth_conv.conv = nn.Conv1d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.point_conv = nn.Module()
        self.point_conv.conv = lean.PointwiseConvolution(hidden, width, bias=False)

    def forward(
        self,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        gate: Tensor,
        content_mask: Tensor | None,
        keeps_product: bool,
    ) -> Tensor:
        layers = (self.inverted_conv.conv, self.depth_conv.conv, self.point_conv.conv)
        return lean.feed_forward(layers, x, shift, scale, gate, content_mask, RMS_EPS, keeps_product)


class PatchEmbedding(nn.Module):
    """All rows of one latent frame to one token, with a group norm over the whole item (spec: transformer, 7)."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.early_conv_layers = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, PATCH_HIDDEN, (rows, 1), stride=(rows, 1)),
            nn.GroupNorm(PATCH_GROUPS, PATCH_HIDDEN, eps=PATCH_NORM_EPS),
            nn.Conv2d(PATCH_HIDDEN, width, 1),
        )

    def forward(self, latents: Tensor, mask: Tensor | None) -> Tensor:
        """[B,8,16,T] → [B,T,D]; `mask` [B,T] keeps padded frames out of the group statistics."""
        layers: Any = self.early_conv_layers
        patch, norm, expand = layers
        patches = latents.flatten(1, 2).transpose(1, 2)  # [B,T,8*16], the latent row fastest
        hidden = F.linear(patches, lean.frozen_weight(patch, latents.dtype), lean.frozen_bias(patch, latents.dtype))
        groups = hidden.float().unflatten(2, (norm.num_groups, -1))  # [B,T,32,64]
        if mask is None:
            variance, mean = torch.var_mean(groups, (1, 3), correction=0, keepdim=True)
        else:
            weights = mask.float()[:, :, None, None] / (mask.sum(1)[:, None, None, None] * groups.shape[3])
            mean = (groups * weights).sum((1, 3), keepdim=True)
            variance = ((groups - mean).square() * weights).sum((1, 3), keepdim=True)
        normed = ((groups - mean) * (variance + norm.eps).rsqrt()).flatten(2)
        normed = torch.addcmul(norm.bias.float(), normed, norm.weight.float()).to(latents.dtype)
        return F.linear(normed, lean.frozen_weight(expand, latents.dtype), lean.frozen_bias(expand, latents.dtype))


class TimestepEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_WIDTH, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] → [B,D]; the timestep is taken in float32 (spec: transformer, 4 and 12)."""
        half = TIMESTEP_WIDTH // 2
        frequencies = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10000.0) / half))
        angles = timestep.float()[:, None] * frequencies
        sinusoid = torch.cat([angles.cos(), angles.sin()], 1).to(dtype)
        return lean.linear(self.linear_2, F.silu(lean.linear(self.linear_1, sinusoid)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / math.sqrt(width))
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, embedded_timestep: Tensor) -> Tensor:
        """[B,T,D] and [B,D] → [B,T,16·8]"""
        modulation = self.scale_shift_table.to(x.dtype) + embedded_timestep[:, None]
        shift, scale = modulation.chunk(2, dim=1)  # [B,1,D]
        (y,) = lean.modulated_projections([self.linear], x, shift, 1 + scale, RMS_EPS)
        return y


def is_unused(name: str) -> bool:
    """Whether a tensor of the published file takes part in no forward pass."""
    parts = name.split(".")
    return (
        len(parts) == 5
        and parts[0] == "transformer_blocks"
        and parts[2] == "cross_attn"
        and parts[3] in UNUSED_PROJECTIONS
    )


def load_transformer(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> ACEStepTransformer:
    """The transformer of a checkpoint folder (`config.json`, `diffusion_pytorch_model.safetensors`), frozen.

    `dtype` None keeps the file's. The weights are mapped, not read: on the CPU in the file's own dtype the model takes
    no memory of its own, on a GPU each tensor is copied once. Unused projections are not read.
    Raises WrongWeights naming the tensors at fault, ValueError for a damaged configuration, FileNotFoundError.
    """
    folder = Path(folder)
    config = TransformerConfig.from_json(folder / "config.json")
    with torch.device("meta"):
        model = ACEStepTransformer(config)
    load_safetensors_strict(
        model, folder / "diffusion_pytorch_model.safetensors", ignored=is_unused, dtype=dtype, device=device
    )
    return model.requires_grad_(False).eval()


LYRIC_BRANCH = ("lyric_embs.", "lyric_encoder.", "lyric_proj.")


def load_lyric_branch(folder: Path) -> ACEStepTransformer:
    """The parts that `encode_lyrics` needs, in float32 on the CPU; nothing else of the result can be used.

    For a transformer that has given its own back (`drop_lyric_branch`). Raises as `load_transformer`.
    """
    folder = Path(folder)
    with torch.device("meta"):
        model = ACEStepTransformer(TransformerConfig.from_json(folder / "config.json"))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(LYRIC_BRANCH)}
    tensors = read_safetensors_strict(
        folder / "diffusion_pytorch_model.safetensors",
        expected,
        ignored=lambda name: not name.startswith(LYRIC_BRANCH),
        dtype=torch.float32,
    )
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _mask_if_needed(mask: Tensor | None) -> Tensor | None:
    """Boolean mask; None where nothing is masked, which is looked up only on the CPU, where looking costs nothing."""
    if mask is None:
        return None
    mask = mask > 0
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask
