"""Features of two self-supervised models, which ACE-Step v1's training compares its own hidden states with.

MERT-v1-330M (Li et al. 2023) hears the music, mHuBERT-147 (Boito et al. 2024) the voice. Both are transformers'
`HubertModel`; MERT's published weights map onto it one to one, so no remote code is run.

Shape legend: L samples at 48 kHz, A samples at the model's rate, S samples of a chunk, F frames of a chunk,
n frames of a song (one per 320 samples).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ace_lora.audio.decode import SAMPLE_RATE, AudioError, resample
from ace_lora.base_weights.loading import WrongWeights, check_tensors, read_safetensors_strict
from ace_lora.base_weights.model_config import read_model_config
from ace_lora.device import HostCopy, free_device_bytes

if TYPE_CHECKING:
    from transformers import HubertModel

# Product of the strides of the convolutions: samples per frame.
_HOP = 320
# What the convolutions, and what the transformer layers, may take of a GPU's memory at once. In bf16, five chunks of
# MERT or one of mHuBERT through the convolutions, 32 and 10 through the layers.
_BATCH_BYTES = 400_000_000


@dataclass(frozen=True)
class Branch:
    """How one of the two models is fed."""

    name: str  # as in the training loss
    rate: int  # Hz
    chunk: int  # samples


MERT = Branch("mert", rate=24_000, chunk=120_000)
MHUBERT = Branch("m-hubert", rate=16_000, chunk=480_000)


def load_mert(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> HubertModel:
    """The model of a `MERT-v1-330M` folder."""
    return _load_hubert(folder, device, dtype)


def load_mhubert(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> HubertModel:
    """The model of a `mHuBERT-147` folder."""
    return _load_hubert(folder, device, dtype)


def extract_features(model: HubertModel, wave: Tensor, branch: Branch, chunks_per_batch: int | None = None) -> Tensor:
    """float32 [2, L] at 48 kHz to the model's last hidden states float32 [n, width] on the CPU.

    The waveform is prepared in float32 (on the model's device when that is CUDA), the network runs in the model's
    dtype, on `chunks_per_batch` chunks at once (None: as many as are good for the device); the result does not depend
    on how many.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        chunks, samples = standardised_chunks(wave.to(device) if device.type == "cuda" else wave, branch)
    return begin_features(model, chunks, samples, branch, chunks_per_batch)()


def begin_features(
    model: HubertModel, chunks: Tensor, samples: int, branch: Branch, chunks_per_batch: int | None = None
) -> Callable[[], Tensor]:
    """Set the model to work on what `standardised_chunks` returned; the function returned waits for the features.

    On CUDA nothing is waited for before that. The function raises AudioError for features that are not finite.
    """
    with torch.inference_mode():
        states = _last_hidden_states(model, chunks, samples, branch, chunks_per_batch)
        features, finite = HostCopy(states), HostCopy(states.isfinite().all())

    def wait() -> Tensor:
        result, fits = features.wait(), bool(finite.wait())
        if not fits and result.dtype != torch.float32:
            # Too large for fp16. In float32, from then on.
            with torch.inference_mode():
                result = _last_hidden_states(model.float(), chunks, samples, branch, chunks_per_batch).cpu()
            fits = bool(result.isfinite().all())
        if not fits:
            raise AudioError(
                f"The SSL model '{branch.name}' returned values that are not finite. Finite features were expected. "
                "Check its weight files; download them again if other songs fail too."
            )
        return result.float()

    return wait


def _last_hidden_states(
    model: HubertModel, chunks: Tensor, samples: int, branch: Branch, chunks_per_batch: int | None
) -> Tensor:
    """[count, S] to [n, width], on the model's device and in its dtype.

    Transformers' HubertModel takes one batch through everything. Its convolutions keep seven times as much per chunk
    as its transformer layers, so here they take fewer chunks at once.
    """
    parameter = next(model.parameters())
    convolved, transformed = (chunks_per_batch,) * 2 if chunks_per_batch else _chunks_at_once(model, branch)
    result: Tensor | None = None
    for start, batch in zip(range(0, len(chunks), transformed), chunks.split(transformed), strict=True):
        # No attention mask: the model was used without one, so the padding of the last chunk is part of the input.
        heard = torch.cat(
            [model.feature_extractor(part.to(parameter.device, parameter.dtype)) for part in batch.split(convolved)]
        )  # [chunks, channels, F]
        states = model.encoder(model.feature_projection(heard.transpose(1, 2))).last_hidden_state
        if result is None:
            result = states.new_empty(len(chunks), *states.shape[1:])
        result[start : start + len(batch)] = states
    assert result is not None
    last = samples - (len(chunks) - 1) * branch.chunk
    frames = result.shape[1]
    return result.flatten(0, 1)[: (len(chunks) - 1) * frames + min(frames, -(-last // _HOP))]


def _chunks_at_once(model: HubertModel, branch: Branch) -> tuple[int, int]:
    """Chunks that the convolutions and those that the transformer layers take at once.

    On a CPU one: its caches hold that much, so that it is faster than any batch, and memory is least. On a GPU, which
    small batches leave idle, as many as fit into a bound, or into a quarter of what is free where that is less.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "cpu":
        return 1, 1
    free = free_device_bytes(parameter.device)
    bound = _BATCH_BYTES if free is None else min(_BATCH_BYTES, free // 4)
    config, size = model.config, parameter.element_size()
    # The first convolution's output three times: as it is, after the norm, after the activation.
    of_convolutions = 3 * branch.chunk // config.conv_stride[0] * config.conv_dim[0] * size
    of_layers = branch.chunk // _HOP * (8 * config.hidden_size + 2 * config.intermediate_size) * size
    return max(1, bound // of_convolutions), max(1, bound // of_layers)


def standardised_chunks(wave: Tensor, branch: Branch) -> tuple[Tensor, int]:
    """float32 [2, L] at 48 kHz to (chunks [count, S], A): mono at the model's rate, mean 0, deviation 1 over the song.

    The last chunk is padded with zeros after the standardisation; A is the number of samples before the padding.
    """
    mono = (wave[0] + wave[1]) / 2
    samples = wave.shape[1] // (SAMPLE_RATE // branch.rate)
    # The resampler rounds the length up, the model's own front end down.
    mono = resample(mono[None].float(), SAMPLE_RATE, branch.rate)[0, :samples]
    # float64 sums, where the device has them: six minutes are nine million samples.
    exact = mono if mono.device.type == "mps" else mono.double()
    variance, mean = torch.var_mean(exact, correction=1)
    standard = ((exact - mean) / (variance + 1e-7).sqrt()).float()
    return nn.functional.pad(standard, (0, -samples % branch.chunk)).reshape(-1, branch.chunk), samples


# --- Loading ---

_POSITION = "encoder.pos_conv_embed.conv."
# The gain and direction of the weight-normed convolution, under their old and their new name.
_NORM_NAMES = (
    (_POSITION + "weight_g", _POSITION + "weight_v"),
    (_POSITION + "parametrizations.weight.original0", _POSITION + "parametrizations.weight.original1"),
)
# A learnt vector for masking in pretraining. Nothing uses it here; some files have it and some do not.
_MASK_EMBEDDING = "masked_spec_embed"
_PREFIX = "hubert."


def _load_hubert(folder: Path, device: torch.device | str, dtype: torch.dtype) -> HubertModel:
    model = make_hubert(read_model_config(folder))
    tensors = _read_tensors(Path(folder), stored_shapes(model))
    # Folded in float32, whatever the dtype that the network runs in; one gain per tap.
    gain, direction = (tensors.pop(name).float() for name in _NORM_NAMES[1])
    length = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
    tensors[_POSITION + "weight"] = gain * direction / length
    weights = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    if torch.device(device).type == "cpu" and dtype != torch.float32:
        weights[_POSITION + "weight"] = tensors[_POSITION + "weight"]
        weights[_POSITION + "bias"] = tensors[_POSITION + "bias"].float()
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


class _PositionalConv(nn.Conv1d):
    """A convolution that computes in the dtype of its weights and returns that of its input.

    oneDNN (in PyTorch 2.13, on CPUs with AMX) returns wrong values for narrow grouped convolutions in fp16 and bf16,
    so on a CPU this one keeps float32 weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def make_hubert(config: dict[str, Any]) -> HubertModel:
    """A HubertModel on the meta device, with a plain positional convolution and no mask embedding.

    Of `config` only the keys that describe a HubertModel are used; MERT's has more, for code of its own.
    """
    from transformers import HubertConfig, HubertModel

    ignored = {"model_type", "transformers_version", "_name_or_path", "architectures", "dtype", "output_attentions"}
    known = HubertConfig().to_dict().keys() - ignored
    settings = {key: value for key, value in config.items() if key in known}
    with torch.device("meta"):
        model = HubertModel(HubertConfig(**{**settings, "apply_spec_augment": False}))
        position = model.encoder.pos_conv_embed
        normed: Any = position.conv
        position.conv = _PositionalConv(
            normed.in_channels,
            normed.out_channels,
            normed.kernel_size,
            padding=normed.padding,
            groups=normed.groups,
        )
    if hasattr(model, _MASK_EMBEDDING):
        delattr(model, _MASK_EMBEDDING)
    return model


def stored_shapes(model: HubertModel) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a file as current transformers writes it, the mask embedding left out."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    direction = shapes.pop(_POSITION + "weight")
    gain_name, direction_name = _NORM_NAMES[1]
    return shapes | {gain_name: (1, 1, direction[2]), direction_name: direction}


def _read_tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors by their current names, from `model.safetensors` or else `pytorch_model.bin`."""
    path = folder / "model.safetensors"
    if path.is_file():
        names = _names_in_file(_safetensors_names(path), shapes)
        expected = {names[name]: shape for name, shape in shapes.items()}
        stored = read_safetensors_strict(path, expected, ignored=_is_mask_embedding)
    else:
        path = folder / "pytorch_model.bin"
        stored = {name: tensor for name, tensor in _read_pickle(path).items() if not _is_mask_embedding(name)}
        names = _names_in_file(set(stored), shapes)
        check_tensors(
            path,
            {name: tensor.shape for name, tensor in stored.items()},
            {names[name]: shape for name, shape in shapes.items()},
        )
    return {name: stored[names[name]] for name in shapes}


def _names_in_file(present: set[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Current name to the name that the file uses: files differ in a prefix and in how weight norm is written."""
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in present) else ""
    old, new = _NORM_NAMES
    renamed = dict(zip(new, old, strict=True)) if any(prefix + name in present for name in old) else {}
    return {name: prefix + renamed.get(name, name) for name in shapes}


def _is_mask_embedding(name: str) -> bool:
    return name.removeprefix(_PREFIX) == _MASK_EMBEDDING


def _safetensors_names(path: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError:
        return set()  # the strict reader says what is wrong with it


def _read_pickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(2, "Neither this file nor model.safetensors beside it exists", str(path))
    try:
        # weights_only: such a file could otherwise run any program.
        # Only archives can be mapped; the oldest format of such files is none.
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # Whatever a damaged archive makes torch raise: pickle, zip and runtime errors alike. The text goes on with
        # advice for programmers.
        reason = str(error).partition(". ")[0].partition("\n")[0]
        raise WrongWeights(
            f"'{path}' is not a readable weight file ({type(error).__name__}: {reason}). "
            "A PyTorch state dictionary was expected. It is probably cut short; delete it and download it again."
        ) from error
    return {name: value for name, value in stored.items() if isinstance(value, Tensor)}
