"""The networks of preprocessing over all songs, while threads decode the next ones and make the networks' inputs.

Shape legend: L samples at 48 kHz, T latent frames, n feature rows.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ace_lora.audio.decode import SAMPLE_RATE, AudioError, WaveformInfo, prepare_waveform, read_audio
from ace_lora.audio.loudness import normalise_loudness
from ace_lora.commands import WrongInput
from ace_lora.device import Device, free_device_memory, free_main_memory
from ace_lora.preprocessing.work import STAGES, SongWork
from ace_lora.records.fingerprints import is_same_audio
from ace_lora.v1 import dcae, ssl_features

# Songs decoded while the network works. A GPU needs more than one decoder to stay busy; a song takes up to 0.5 GB of
# main memory while it is decoded, and a tenth of that afterwards.
DECODE_AHEAD_CPU, DECODE_AHEAD_GPU = 1, 4

_SSL = {"mert": ssl_features.MERT, "mhubert": ssl_features.MHUBERT}
_LOADERS = {"latents": dcae.load_latent_encoder, "mert": ssl_features.load_mert, "mhubert": ssl_features.load_mhubert}


def load_network(stage: str, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """The network of a stage. Raises WrongInput where the files in `folder` are not its weights."""
    return _LOADERS[stage](folder, device=device, dtype=dtype)


def network_input(stage: str, wave: torch.Tensor) -> tuple[Any, ...]:
    """What `begin_network` takes, from `wave` float32 [2, L] at 48 kHz and on its device."""
    if stage == "latents":
        return (dcae.encoder_input(wave),)
    return ssl_features.standardised_chunks(wave, _SSL[stage])


def begin_network(stage: str, network: Any, values: tuple[Any, ...]) -> Callable[[], torch.Tensor]:
    """Set a network to work; the function returned waits for its result, on the CPU.

    That is latents float32 [8, 16, T] or features float32 [n, width]; AudioError where they are not finite.
    """
    if stage == "latents":
        return dcae.begin_latents(network, *values)
    chunks, samples = values
    return ssl_features.begin_features(network, chunks, samples, _SSL[stage])


def check_networks(works: Iterable[SongWork], weights: dict[str, Path]) -> None:
    """Compare the names and shapes in all weight files with the networks, before the first of them runs for hours.

    Raises WrongInput with every file that does not fit.
    """
    needed = {stage for work in works for stage in work.stages}
    problems = []
    for stage, part in STAGES.items():
        if stage in needed:
            try:
                load_network(stage, weights[part], "meta", torch.float32)
            except WrongInput as error:
                problems += error.problems
    if problems:
        raise WrongInput(problems)


# --- Inputs ---


@dataclass(frozen=True)
class NetworkInput:
    """What a network reads of a song, and what is known of the song's length."""

    values: tuple[Any, ...]  # tensors, and for the SSL models the number of samples
    facts: dict[str, Any]  # seconds, original_seconds, cropped; for the record
    warning: str = ""


class InputMaker:
    """Decodes songs and makes the networks' inputs of them, in threads, while a network works on an earlier song.

    On an NVIDIA card the inputs are made there, on a stream of their own: no thread's copying makes the network wait.
    The inputs of a song's later networks are made with its first and wait in main memory as long as that has room
    (0.16 MB per second of audio), because decoding takes longer than a fast card needs for a network.
    """

    def __init__(self, device: torch.device, loudness: float | None = None):
        self.device = device
        self.loudness = loudness  # LUFS; None: each song's own
        on_card = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_card else None
        # A CPU is slower than any decoder, and its memory is what the networks need.
        self.room = (free_main_memory() or 0) // 3 if on_card else 0  # bytes
        self.waiting: dict[tuple[str, str], NetworkInput] = {}
        # One song at a time: on the card, only one waveform takes memory.
        self.lock = threading.Lock()

    def make(self, work: SongWork, stage: str) -> NetworkInput:
        """The input on the networks' device. Raises AudioError and OSError when the song cannot be read."""
        with self.lock:
            early = self.waiting.pop((work.song.keys, stage), None)
            if early:
                self.room += _size_of(early)
                return self._moved(early, self.device)
        wave, info = _decode(work)
        warning = info.warning
        if self.loudness is not None:
            wave, about_loudness = normalise_loudness(wave, SAMPLE_RATE, self.loudness)
            warning = f"{warning} {about_loudness}".strip()
        facts = {
            "seconds": wave.shape[1] / SAMPLE_RATE,
            "original_seconds": info.original_seconds,
            "cropped": info.cropped,
        }
        with self.lock, torch.inference_mode(), self._beside_the_network():
            if self.stream:
                wave = wave.to(self.device)
            made = NetworkInput(network_input(stage, wave), facts, warning)
            for later in work.stages[work.stages.index(stage) + 1 :]:
                if self.room > 0:
                    early = self._moved(NetworkInput(network_input(later, wave), facts), torch.device("cpu"))
                    self.waiting[work.song.keys, later] = early
                    self.room -= _size_of(early)
            if self.stream:
                self.stream.synchronize()
            return made

    def _beside_the_network(self) -> contextlib.AbstractContextManager:
        # Not `stream(None)` where no card is used: that would start CUDA all the same.
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def _moved(self, made: NetworkInput, device: torch.device) -> NetworkInput:
        with self._beside_the_network():
            values = tuple(value.to(device) if torch.is_tensor(value) else value for value in made.values)
            if self.stream:
                self.stream.synchronize()
        return replace(made, values=values)

    def ahead(self, works: Sequence[SongWork], stage: str) -> Iterator[tuple[SongWork, Future[NetworkInput]]]:
        """Yield the songs in order, each with its input, while threads make the next ones."""
        ahead = DECODE_AHEAD_CPU if self.device.type == "cpu" else DECODE_AHEAD_GPU
        pool = ThreadPoolExecutor(ahead, thread_name_prefix="decode")
        waiting: deque[tuple[SongWork, Future[NetworkInput]]] = deque()
        try:
            for work in works:
                waiting.append((work, pool.submit(self.make, work, stage)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _size_of(made: NetworkInput) -> int:
    return sum(value.numel() * value.element_size() for value in made.values if hasattr(value, "numel"))


def _decode(work: SongWork) -> tuple[torch.Tensor, WaveformInfo]:
    """The song at 48 kHz, float32 [2, L], and what was done to its length. Raises AudioError and OSError."""
    try:
        wave, info = prepare_waveform(read_audio(work.song.audio))
    except (AudioError, OSError):
        raise
    except Exception as error:  # a decoder's own; one odd file must not stop the others
        raise AudioError(
            f"it cannot be decoded ({type(error).__name__}: {error}). Convert it to .flac or .wav."
        ) from error
    if not is_same_audio(work.song.audio, work.fingerprint["audio"]):
        raise AudioError("the audio file changed while it was being read. Run the same command again.")
    return wave, info


# --- One network over all songs ---


@dataclass(frozen=True)
class NetworkResult:
    """What a network made of a song: latents float32 [8, 16, T] or features float32 [n, width], on the CPU."""

    values: torch.Tensor
    facts: dict[str, Any]  # those of the input; and audio_sha256, made_by: what it was made from


def compute_all(
    stage: str, network: Any, works: Sequence[SongWork], inputs: InputMaker, device: Device
) -> Iterator[tuple[SongWork, NetworkResult | None]]:
    """Yield each song with the network's result; None where that failed, with its outcome set.

    On an NVIDIA card the next song is set to work before a result is waited for, so that the card never runs dry.
    """
    ahead = 1 if device.torch_device.type == "cuda" else 0
    begun: deque[tuple[SongWork, Callable[[], torch.Tensor] | None, dict[str, Any]]] = deque()

    def collect() -> tuple[SongWork, NetworkResult | None]:
        work, wait, facts = begun.popleft()
        result = None
        with _failing_alone(work, stage, device):
            result = NetworkResult(wait(), facts) if wait else None
        return work, result

    for work, future in inputs.ahead(works, stage):
        wait, facts = None, {}
        with _failing_alone(work, stage, device):
            made = future.result()
            if made.warning and stage == work.stages[0]:
                print(f"warning: {work.name}: {made.warning}")
            wait = begin_network(stage, network, made.values)
            origin = {"audio_sha256": work.fingerprint["audio"]["sha256"], "made_by": work.fingerprint[stage]}
            facts = {**made.facts, **origin}
        begun.append((work, wait, facts))
        if len(begun) > ahead:
            yield collect()
    while begun:
        yield collect()


@contextlib.contextmanager
def _failing_alone(work: SongWork, stage: str, device: Device) -> Iterator[None]:
    """Make what goes wrong with one song its outcome; the others go on."""
    try:
        yield
    except (AudioError, OSError) as error:
        work.fail(error)
    except (RuntimeError, ValueError) as error:  # out of memory above all; the next song may be shorter
        free_device_memory(device.torch_device)
        work.fail(f"{stage} cannot be computed ({error}). Close other programs, or use --device cpu.")
