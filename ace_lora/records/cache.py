"""Records that stay in main memory after their first turn, so that later epochs do not read the files again."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

import torch

from ace_lora.records.format import Record
from ace_lora.records.record import read_record


class RecordCache:
    """Reads records and keeps them while all of them together take at most `limit_bytes`; any thread may ask.

    What is kept is never exchanged for another record: every epoch wants every song once, in a new order, so whatever
    was dropped would be the next to be missed. The tensors are shared by all who ask and must not be changed.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self._kept: dict[tuple[Path, bool], Record] = {}
        self._lock = threading.Lock()
        self._reading: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def read(self, path: Path, *, ssl: bool = True) -> Record:
        """As `read_record`; without `ssl` the features may be there nevertheless. Raises RecordError and OSError."""
        with self._lock:
            one_at_a_time = self._reading[path]
        with one_at_a_time:  # of two threads that want the same song the second finds it here
            record = self._kept.get((path, True)) or self._kept.get((path, ssl))
            if record is None:
                record = read_record(path, ssl=ssl)
                self._keep(path, ssl, record)
        return record

    def _keep(self, path: Path, ssl: bool, record: Record) -> None:
        size = sum(value.nbytes for value in vars(record).values() if isinstance(value, torch.Tensor))
        with self._lock:
            if self.kept_bytes + size <= self.limit_bytes:
                self._kept[path, ssl] = record
                self.kept_bytes += size
