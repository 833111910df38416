"""From the folder of records to the batches of a training: which songs, in which order, with which random draws.

Shapes: B songs of a batch, T latent frames (10.77 per second), Lt text tokens, Ll lyric tokens, n feature rows.

Nothing here depends on a random state that has to be saved: the order of an epoch follows from (seed, epoch), and
everything drawn for a song (noise, timestep, tags, crop, dropout) from (seed, epoch, song). So step S of a run gets the
same batch however often the run was stopped, and a song gets the same draws in whatever batch, process or order.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ace_lora.commands import StepFailed, WrongInput
from ace_lora.device import send
from ace_lora.records.cache import RecordCache
from ace_lora.records.format import SECONDS_PER_LATENT_FRAME, SSL_BRANCHES, Record, RecordError, list_records
from ace_lora.records.record import read_record
from ace_lora.songs import split_tags
from ace_lora.training.tags import UMT5_COMMA_ID, augment_tags
from ace_lora.v1.flow_matching import sample_timestep_indices

POOL_BATCHES = 16  # songs are sorted by length within this many batches, drawn anew each epoch
SSL_NAMES = {"mert": "mert", "mhubert": "m-hubert"}  # record -> model


# --- The data set ---


@dataclass(frozen=True)
class TrainingSong:
    """What planning needs to know of a record; the record itself is read when its turn comes."""

    path: Path
    name: str
    frames: int
    lyric_tokens: int
    ssl: str  # "stored", "none" or "at_training"
    digest: str  # of latents and token ids; tells whether a resumed run has the same data
    metadata: dict[str, Any] = field(compare=False, repr=False)

    @property
    def seconds(self) -> float:
        return self.frames * SECONDS_PER_LATENT_FRAME

    @property
    def tags(self) -> list[str]:
        return split_tags(self.metadata.get("prompt", ""))


def scan_dataset(folder: Path, *, need_ssl: bool) -> list[TrainingSong]:
    """Every record of `folder`, read once without its SSL features, in the order of their names.

    Raises WrongInput naming a folder that is missing or has no record, and every record that is damaged or, with
    `need_ssl`, has no SSL features and no way to compute them.
    """
    folder = Path(folder)
    advice = "Run preprocess_dataset_new.py and give its --output_dir as --dataset_path."
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WrongInput(f"--dataset_path '{folder}' {what}. Expected the folder of records. {advice}")
    paths = list_records(folder)
    if not paths:
        raise WrongInput(f"--dataset_path '{folder}' holds no records (.safetensors or .hdf5). {advice}")
    songs, problems, without_ssl, without_audio = [], [], [], []
    for path in paths:
        try:
            record = read_record(path, ssl=False)
        except RecordError as error:
            problems.append(str(error))
            continue
        song = _training_song(path, record)
        songs.append(song)
        if need_ssl and song.ssl == "none":
            without_ssl.append(song.name)
        if need_ssl and song.ssl == "at_training" and not Path(song.metadata.get("audio", "")).is_file():
            without_audio.append(f"'{song.metadata.get('audio', '')}' of '{song.name}'")
    if without_ssl:
        problems.append(
            f"{len(without_ssl)} of {len(paths)} records have no MERT and mHuBERT features (first: "
            f"'{without_ssl[0]}'), which --ssl_coeff above 0 needs. Train with --ssl_coeff 0, or preprocess again with "
            "--ssl stored or --ssl at_training."
        )
    if without_audio:
        problems.append(
            "The MERT and mHuBERT features of this data set are computed when training starts, but the audio is gone: "
            + "; ".join(without_audio)
            + ". Put the files back, preprocess again, or train with --ssl_coeff 0."
        )
    if problems:
        raise WrongInput(problems)
    return songs


def _training_song(path: Path, record: Record) -> TrainingSong:
    digest = hashlib.sha256()
    for tensor in (record.target_latents, record.text_token_ids, record.lyric_token_ids):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return TrainingSong(
        path=path,
        name=path.stem,
        frames=record.target_latents.shape[2],
        lyric_tokens=len(record.lyric_token_ids),
        ssl=record.metadata.get("ssl", "stored"),
        digest=digest.hexdigest()[:16],
        metadata=record.metadata,
    )


# --- Order ---


def random_seed(*parts: object) -> int:
    """A seed for a torch generator from any parts; equal on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Draw:
    """One song's turn: its place in the data set, the epoch, and its share of the step's gradient."""

    song: int
    epoch: int
    step: int
    weight: float  # 1 / songs of the whole step, over all processes
    last_of_step: bool


class Plan:
    """Which songs each optimizer step sees.

    An epoch is a permutation of the songs, cut into batches of songs of similar length; its last batch may be smaller.
    A step takes `accumulate` batches for each of `processes`, and goes on into the next epoch where one ends.
    """

    def __init__(
        self, frames: Sequence[int], *, seed: int, batch_size: int = 1, accumulate: int = 1, processes: int = 1
    ):
        self.frames = list(frames)
        self.seed = seed
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.processes = processes
        self.batches_per_epoch = -(-len(self.frames) // batch_size)
        self._epoch = functools.lru_cache(maxsize=4)(self._batches_of_epoch)

    def _batches_of_epoch(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(random_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.frames), generator=generator).tolist()
        pool = self.batch_size * POOL_BATCHES
        batches = []
        for start in range(0, len(order), pool):
            chosen = order[start : start + pool]
            if self.batch_size > 1:
                chosen.sort(key=lambda song: self.frames[song])
            batches += [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
        if self.batch_size > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def steps_per_epochs(self, epochs: int) -> int:
        """Optimizer steps until every song had its turn `epochs` times."""
        return -(-epochs * self.batches_per_epoch // (self.accumulate * self.processes))

    def epoch_of(self, step: int) -> int:
        """Epoch, from 0, of the last batch of step `step` (from 0)."""
        return ((step + 1) * self.accumulate * self.processes - 1) // self.batches_per_epoch

    def batches(self, step: int) -> list[tuple[int, list[int]]]:
        """(epoch, songs) of all batches of a step: first the first batch of each process, then the second, …"""
        per_step = self.accumulate * self.processes
        places = range(step * per_step, (step + 1) * per_step)
        return [
            (
                place // self.batches_per_epoch,
                self._epoch(place // self.batches_per_epoch)[place % self.batches_per_epoch],
            )
            for place in places
        ]

    def draws(self, step: int, process: int = 0) -> list[list[Draw]]:
        """The `accumulate` batches of one process in a step."""
        batches = self.batches(step)
        songs = sum(len(chosen) for _, chosen in batches)
        mine = batches[process :: self.processes]
        return [
            [Draw(song, epoch, step, 1 / songs, number == len(mine) - 1) for song in chosen]
            for number, (epoch, chosen) in enumerate(mine)
        ]


# --- Samples and batches ---


@dataclass(frozen=True)
class SampleSettings:
    """What is done to a song when its turn comes."""

    seed: int = 0
    tag_dropout: float = 0.5
    lyrics_dropout: float = 0.0
    ssl: bool = True
    max_frames: int | None = None  # None: whole songs
    comma_id: int = UMT5_COMMA_ID
    lyric_vocabulary: Path | None = None  # needed where timed lyrics follow a crop
    embedding_rows: int | None = None


@dataclass
class Sample:
    """One song, drawn."""

    draw: Draw
    name: str
    latents: torch.Tensor  # float32 [8, 16, T]
    noise: torch.Tensor  # float32 [8, 16, T]
    timestep_index: int
    text_ids: torch.Tensor  # int64 [Lt]
    lyric_ids: torch.Tensor  # int64 [Ll]
    lyrics_dropped: bool
    ssl: dict[str, torch.Tensor]  # name in the model -> [n, width], int8 or float32


@dataclass
class Failed:
    """A song that could not be read; it travels in place of a sample, so that the steps before it are still done."""

    message: str


@dataclass
class Batch:
    """B songs, padded to the longest. Masks (1 for what counts) are None where nothing is padded."""

    draws: list[Draw]
    names: list[str]
    latents: torch.Tensor  # float32 [B, 8, 16, T]
    noise: torch.Tensor  # float32 [B, 8, 16, T]
    frame_mask: torch.Tensor | None  # float32 [B, T]
    timestep_indices: torch.Tensor  # int64 [B]
    text_ids: torch.Tensor  # int64 [B, Lt]
    text_mask: torch.Tensor | None  # float32 [B, Lt]
    lyric_ids: torch.Tensor  # int64 [B, Ll]
    lyric_mask: torch.Tensor | None  # float32 [B, Ll]
    ssl: dict[str, list[torch.Tensor]]  # name -> B tensors [n, width]
    text_states: torch.Tensor | None = None  # [B, Lt, text width], filled in by the text encoder
    lyric_states: torch.Tensor | None = None  # [B, Ll, D], filled in where the lyric branch is cached
    speaker_embeds: torch.Tensor | None = None  # [B, S]; None stands for the zeros that every record has

    @property
    def weight(self) -> float:
        """Share of the step's gradient that this batch's mean loss has, over all processes."""
        return sum(draw.weight for draw in self.draws)

    def to(self, device: torch.device) -> Batch:
        """A copy with its tensors on `device`; masks and indices stay, because the host decides by them."""

        def move(name: str, value: Any) -> Any:
            if name.endswith("_mask") or name == "timestep_indices":
                return value
            if isinstance(value, torch.Tensor):
                return send(value, device)
            if isinstance(value, dict):
                return {key: [move(key, tensor) for tensor in tensors] for key, tensors in value.items()}
            return value

        return replace(self, **{name: move(name, value) for name, value in vars(self).items()})

    def pin_memory(self) -> Batch:
        """The same tensors in page-locked memory, from which a card copies while it computes."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                setattr(self, name, value.pin_memory())
        self.ssl = {name: [tensor.pin_memory() for tensor in tensors] for name, tensors in self.ssl.items()}
        return self


class SongDataset:
    """Songs by `Draw`; several threads may ask at once.

    `features` holds SSL rows of songs (by place) whose records do not store them: name in the record -> [n, width].
    `cache` is where records are read; without one nothing is kept.
    """

    def __init__(
        self,
        songs: Sequence[TrainingSong],
        settings: SampleSettings,
        features: dict[int, dict[str, torch.Tensor]] | None = None,
        cache: RecordCache | None = None,
    ):
        self.songs = list(songs)
        self.settings = settings
        self.features = features or {}
        self.cache = cache or RecordCache(0)
        self._tokenizer: Any = None
        self._tokenizing = threading.Lock()

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, draw: Draw) -> Sample | Failed:
        song = self.songs[draw.song]
        try:
            return self.sample(draw)
        except (RecordError, OSError) as error:
            return Failed(f"The record of '{song.name}' could be read when training began, but not now: {error}")

    def sample(self, draw: Draw) -> Sample:
        """The song of `draw` with everything that is random in it. Raises RecordError and OSError."""
        song, settings = self.songs[draw.song], self.settings
        stored = settings.ssl and draw.song not in self.features
        record = self.cache.read(song.path, ssl=stored)
        generator = torch.Generator().manual_seed(random_seed(settings.seed, "song", draw.epoch, draw.song))
        first, frames = crop_place(song.frames, settings.max_frames, generator)
        text_ids = augment_tags(
            record.text_token_ids, dropout=settings.tag_dropout, comma_id=settings.comma_id, generator=generator
        )
        lyrics_dropped = (
            settings.lyrics_dropout > 0 and torch.rand((), generator=generator).item() < settings.lyrics_dropout
        )
        index = int(sample_timestep_indices(1, generator)[0])
        latents = record.target_latents[:, :, first : first + frames].contiguous()
        return Sample(
            draw=draw,
            name=song.name,
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            timestep_index=index,
            text_ids=text_ids,
            lyric_ids=self.lyric_ids(record, first, frames),
            lyrics_dropped=lyrics_dropped,
            ssl=self.ssl_rows(record, draw.song, first, frames) if settings.ssl else {},
        )

    def lyric_ids(self, record: Record, first: int, frames: int) -> torch.Tensor:
        """Lyric ids [Ll] of the frames: those of the whole song, unless it was cropped and its lyrics have times."""
        if frames == record.target_latents.shape[2] or not has_timed_lyrics(record.metadata):
            return record.lyric_token_ids
        from ace_lora.lyrics.timed import TimedLine, crop

        begin = first * SECONDS_PER_LATENT_FRAME
        end = (first + frames) * SECONDS_PER_LATENT_FRAME
        lines = [TimedLine(seconds, text) for seconds, text in record.metadata["timed_lines"]]
        with self._tokenizing:
            ids = self._lyric_tokenizer().tokenize(crop(lines, begin, end), record.metadata.get("lyric_language")).ids
        return torch.tensor(ids or [0], dtype=torch.int64)

    def _lyric_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from ace_lora.lyrics.tokenize import LyricTokenizer
            from ace_lora.lyrics.vocabulary import load_vocabulary

            assert self.settings.lyric_vocabulary is not None
            self._tokenizer = LyricTokenizer(
                load_vocabulary(self.settings.lyric_vocabulary, self.settings.embedding_rows)
            )
        return self._tokenizer

    def ssl_rows(self, record: Record, song: int, first: int, frames: int) -> dict[str, torch.Tensor]:
        """Feature rows of the frames, by the model's names. int8 rows lack their scale, which a cosine ignores."""
        total = record.target_latents.shape[2]
        kept = self.features.get(song)
        rows = {}
        for branch in SSL_BRANCHES:
            values = kept[branch] if kept else getattr(record, branch)
            if values is None:
                raise RecordError(self.songs[song].path, f"it has no {branch} features")
            begin, end = round(first * len(values) / total), round((first + frames) * len(values) / total)
            rows[SSL_NAMES[branch]] = values[begin : max(end, begin + 1)]
        return rows


def has_timed_lyrics(metadata: dict[str, Any]) -> bool:
    """Whether the lyrics of a record can be cropped with its audio."""
    return any(seconds is not None for seconds, _ in metadata.get("timed_lines") or [])


def crop_place(frames: int, max_frames: int | None, generator: torch.Generator) -> tuple[int, int]:
    """First frame and number of frames of a random crop."""
    if max_frames is None or frames <= max_frames:
        return 0, frames
    return int(torch.randint(frames - max_frames + 1, (), generator=generator)), max_frames


def collate(samples: Sequence[Sample | Failed]) -> Batch | Failed:
    """Samples as one batch, padded at the end with zeros."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Failed):
            return sample
        good.append(sample)
    latents, frame_mask = _pad([sample.latents for sample in good])
    noise, _ = _pad([sample.noise for sample in good])
    text_ids, text_mask = _pad([sample.text_ids for sample in good])
    lyric_ids, lyric_mask = _pad([sample.lyric_ids for sample in good])
    dropped = torch.tensor([sample.lyrics_dropped for sample in good])
    if dropped.any():
        if lyric_mask is None:
            lyric_mask = torch.ones(lyric_ids.shape)
        lyric_mask[dropped] = 0.0
        lyric_ids[dropped] = 0
    return Batch(
        draws=[sample.draw for sample in good],
        names=[sample.name for sample in good],
        latents=latents,
        noise=noise,
        frame_mask=frame_mask,
        timestep_indices=torch.tensor([sample.timestep_index for sample in good]),
        text_ids=text_ids,
        text_mask=text_mask,
        lyric_ids=lyric_ids,
        lyric_mask=lyric_mask,
        ssl={name: [sample.ssl[name] for sample in good] for name in good[0].ssl},
    )


def _pad(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Stacked tensors, zeros behind the shorter ones along the last axis, and the mask [B, longest] or None."""
    lengths = [tensor.shape[-1] for tensor in tensors]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.stack(tensors), None
    stacked = tensors[0].new_zeros((len(tensors), *tensors[0].shape[:-1], longest))
    mask = torch.zeros(len(tensors), longest)
    for item, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        stacked[item, ..., :length] = tensor
        mask[item, :length] = 1.0
    return stacked, mask


# --- Loading ---


def batch_stream(
    dataset: SongDataset, plan: Plan, *, first: int, last: int, process: int = 0, num_workers: int = 0
) -> Iterator[Batch | Failed]:
    """The batches of steps `first` to `last` - 1, read by the thread that asks, or ahead of it by `num_workers` others.

    Threads and not processes: reading, checking and unpacking a record let go of Python's lock, tensors need not travel
    between processes, and there is one cache for all.
    """
    turns = itertools.chain.from_iterable(plan.draws(step, process) for step in range(first, last))
    if num_workers == 0:
        yield from (collate([dataset[draw] for draw in draws]) for draws in turns)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="records")
    submitted = ([pool.submit(dataset.__getitem__, draw) for draw in draws] for draws in turns)
    try:
        ahead = deque(itertools.islice(submitted, num_workers))
        while ahead:
            samples = [future.result() for future in ahead.popleft()]
            ahead.extend(itertools.islice(submitted, 1))
            yield collate(samples)
    finally:
        pool.shutdown(cancel_futures=True)


class Prefetcher:
    """Runs `prepare` over a stream in a background thread, `ahead` batches before they are asked for.

    An exception of the thread is raised where the batch would have come. Iterating ends the thread; so does `close`.
    """

    def __init__(self, stream: Iterable[Batch | Failed], prepare: Any, length: int, ahead: int = 2):
        self._stream, self._prepare, self._length = stream, prepare, length
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            for batch in self._stream:
                if isinstance(batch, Failed):
                    raise StepFailed(batch.message)
                if not self._put(self._prepare(batch)):
                    return
        except BaseException as error:  # handed to the training, which cannot see this thread otherwise
            last = error
        finally:
            if isinstance(self._stream, Generator):
                self._stream.close()  # ends its threads
        self._put(last)

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def close(self) -> None:
        """End the thread; batches that nobody asked for are dropped."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
