"""The batches of the steps to come, read ahead of the training."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ace_lora.commands import StepFailed
from ace_lora.training.batches import Batch, Failed, SampleReader, collate
from ace_lora.training.plan import Plan


def batch_stream(
    reader: SampleReader, plan: Plan, *, first: int, last: int, process: int = 0, num_workers: int = 0
) -> Iterator[Batch | Failed]:
    """The batches of steps `first` to `last` - 1, read by the thread that asks, or ahead of it by `num_workers` others.

    Threads and not processes: reading, checking and unpacking a record let go of Python's lock, tensors need not travel
    between processes, and there is one cache for all.
    """
    turns = itertools.chain.from_iterable(plan.draws(step, process) for step in range(first, last))
    if num_workers == 0:
        yield from (collate([reader[draw] for draw in draws]) for draws in turns)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="records")
    submitted = ([pool.submit(reader.__getitem__, draw) for draw in draws] for draws in turns)
    try:
        ahead = deque(itertools.islice(submitted, num_workers))
        while ahead:
            samples = [future.result() for future in ahead.popleft()]
            ahead.extend(itertools.islice(submitted, 1))
            yield collate(samples)
    finally:
        pool.shutdown(cancel_futures=True)


class Feed:
    """Runs `prepare` over a stream in a background thread, `ahead` batches before they are asked for.

    An exception of the thread is raised where the batch would have come. Iterating ends the thread; so does `close`.
    """

    def __init__(self, stream: Iterable[Batch | Failed], prepare: Callable[[Batch], Batch], ahead: int = 2):
        self._stream, self._prepare = stream, prepare
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
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
