"""Records, timings and checkpoints of a resumable loop.

A checkpoint counts on the records before it: they are on the disk before it is, and it holds their length and digest.
After a kill, `resume` cuts the records to those that the checkpoint counts on, so that the finished file has the same
bytes however often the run was killed.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.records import RECORDS_FILE, TIMING_FILE, encode_record
from ontogeny.types import PyTree

CHECKPOINT_NAME = "checkpoint"


class RunRecorder:
    """Writes into the folder of a claimed run.

    Use it as a context manager; call `resume` first, then in every step `append`, `append_timing` and `save`.
    """

    def __init__(self, folder: Path, interval: float) -> None:
        """Prepare a recorder; nothing is written yet.

        Args:
            folder: The folder of a run, claimed by this process.
            interval: Seconds between checkpoints, at least 0; 0 saves one at every call of `save`.
        """
        self._folder, self._interval = folder, interval
        self._records: BinaryIO | None = None
        self._timing: BinaryIO | None = None
        self._num_bytes, self._hash = 0, hashlib.sha256()
        self._last_save = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._records, self._timing):
            if file is not None:
                file.close()

    def resume(self, template: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Return the state and progress of the last checkpoint, and cut records and timings to it.

        Args:
            template: A state of the same structure, shapes and types.

        Returns:
            The state and the `progress` that were saved with it; None for a run without a checkpoint.

        Raises:
            BadInput: The checkpoint, or a record that was written before it, is damaged.
        """
        resumed, timing_bytes = None, 0
        if checkpoint.exists(self._folder, CHECKPOINT_NAME):
            metadata = checkpoint.read_metadata(self._folder, CHECKPOINT_NAME)
            state = checkpoint.load(self._folder, CHECKPOINT_NAME, template)
            self._num_bytes, timing_bytes = metadata["records_bytes"], metadata["timing_bytes"]
            self._hash = hashlib.sha256(
                _checked_prefix(self._folder / RECORDS_FILE, self._num_bytes, metadata["records_sha256"])
            )
            resumed = state, metadata["progress"]
        self._records = (self._folder / RECORDS_FILE).open("ab")
        self._records.truncate(self._num_bytes)
        self._timing = (self._folder / TIMING_FILE).open("ab")
        self._timing.truncate(min(timing_bytes, self._timing.tell()))
        self._last_save = time.perf_counter()
        return resumed

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records that the spec and seed of the run determine."""
        assert self._records is not None
        for record in records:
            line = encode_record(record)
            self._records.write(line)
            self._hash.update(line)
            self._num_bytes += len(line)

    def append_timing(self, timing: Mapping[str, Any]) -> None:
        """Append wall times, which nothing determines."""
        assert self._timing is not None
        self._timing.write(encode_record(timing))

    def flush(self) -> None:
        """Let other readers of the folder see all records."""
        for file in (self._records, self._timing):
            if file is not None:
                file.flush()

    def save(self, state: PyTree, progress: Mapping[str, Any], *, is_last: bool = False) -> None:
        """Save a checkpoint if the interval has passed since the last one, or if this step is the last."""
        assert self._records is not None and self._timing is not None
        if not is_last and time.perf_counter() - self._last_save < self._interval:
            return
        self.flush()
        for file in (self._records, self._timing):
            os.fsync(file.fileno())
        metadata = self._records_seal() | {"timing_bytes": self._timing.tell(), "progress": dict(progress)}
        checkpoint.save(self._folder, CHECKPOINT_NAME, state, metadata)
        self._last_save = time.perf_counter()

    def finish(self, name: str, tree: PyTree, metadata: Mapping[str, Any]) -> None:
        """Save the result of the run as the tree `name`, in place of an earlier one; then the run is finished."""
        is_first = not checkpoint.exists(self._folder, name)
        checkpoint.save(self._folder, name, tree, dict(metadata) | self._records_seal(), write_once=is_first)

    def _records_seal(self) -> dict[str, Any]:
        """Length and checksum of the records so far, by which a resumed run recognizes them."""
        return {"records_bytes": self._num_bytes, "records_sha256": self._hash.hexdigest()}


def _checked_prefix(path: Path, num_bytes: int, digest: str) -> bytes:
    """The records on which a checkpoint counts."""
    try:
        with path.open("rb") as file:
            data = file.read(num_bytes)
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    if len(data) < num_bytes or hashlib.sha256(data).hexdigest() != digest:
        raise BadInput(f"'{path}' is damaged: its first {num_bytes} bytes are not those that the checkpoint counts on")
    return data
