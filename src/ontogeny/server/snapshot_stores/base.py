"""What a store of snapshots offers: files that are written whole or not at all and never change.

A file is named by its content, SHA-256 and number of bytes, with which every read compares it, and by a random number
of its write. A name is therefore used once: a deletion that a suspended process sends late never hits a later file of
the same content. Versions of equal content share a file through their records (`learning.snapshots`). Files of earlier
versions of ontogeny have other names, and the digest of the weights in the database alone checks them.
"""

import hashlib
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ontogeny.errors import StorageUnavailable

STORE_ID = "store-id"  # the name of the file with the identity of the store, which is no snapshot
ID = re.compile(r"[0-9a-f]{32}")
CONTENT_NAME = re.compile(r"([0-9a-f]{64}-(\d{1,15}))-[0-9a-f]{16}\.safetensors")


class SnapshotFile(NamedTuple):
    """A file of a store, with the time of its last write in seconds since 1970 by the clock of the store."""

    name: str
    num_bytes: int
    written_at: float


class UnusableSnapshot(Exception):
    """The file of a version cannot be read, or it does not hold the version.

    Args:
        reason: What is wrong with the file.
        is_lost: Whether the file will stay unusable, because it is absent or holds something else.
    """

    def __init__(self, reason: str, is_lost: bool) -> None:
        super().__init__(reason)
        self.is_lost = is_lost


class SnapshotExpired(StorageUnavailable):
    """A file may be deleted before its record can be seen; nothing was recorded."""


class SnapshotStore(ABC):
    """The files of one server, or of several that share a database.

    Every failure of a disk or a connection is a `StorageUnavailable`, except for a file that cannot be read.

    Attributes:
        label: The words with which messages name the store.
    """

    label: str

    def write(self, content: bytes) -> str:
        """Writes a file whole or not at all; returns its name once it is durable."""
        name = f"{content_key(content)}-{secrets.token_hex(8)}.safetensors"
        self.write_as(name, content)
        return name

    def read(self, name: str) -> bytes:
        """Reads a file and compares it with its name; raises `UnusableSnapshot` if it is absent or differs."""
        content = self.fetch(name)
        match = CONTENT_NAME.fullmatch(name)
        if match and content_key(content) != match[1]:
            raise UnusableSnapshot("its content does not have the digest in its name", True)
        return content

    def num_bytes(self, name: str) -> int:
        """The size of a file, 0 for an absent one; a name of its content says the size."""
        match = CONTENT_NAME.fullmatch(name)
        return int(match[2]) if match else self.stored_bytes(name) or 0

    def holds(self, name: str) -> bool:
        """Whether a file exists and has the size that its name says."""
        size = self.stored_bytes(name)
        return size is not None and size == self.num_bytes(name)

    def read_id(self) -> str | None:
        """Returns the identity of the store, however it is addressed; None if it has none yet."""
        try:
            text = self.fetch(STORE_ID).decode("ascii", "replace")
        except UnusableSnapshot as error:
            if not error.is_lost:
                raise StorageUnavailable(f"the identity of {self.label} is unknown: {error}") from None
            return None
        return text if ID.fullmatch(text) else None

    def require_id(self) -> str:
        """Returns the identity of the store, which gets one if it has none; one process calls this at a time."""
        id = self.read_id()
        if id is None:
            id = secrets.token_hex(16)
            self.write_as(STORE_ID, id.encode())
        return id

    @abstractmethod
    def write_as(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all under any name, for files of earlier versions."""

    @abstractmethod
    def fetch(self, name: str) -> bytes:
        """Reads a file without a comparison; raises `UnusableSnapshot` if it is absent."""

    @abstractmethod
    def stored_bytes(self, name: str) -> int | None:
        """The size of a file in the store, or None if it is absent."""

    @abstractmethod
    def list_files(self) -> Iterator[SnapshotFile]:
        """All snapshots, in any order; one that is written or deleted meanwhile may be listed or not."""

    @abstractmethod
    def delete(self, names: Collection[str]) -> None:
        """Deletes files; absent ones are no error."""

    @abstractmethod
    def check(self) -> None:
        """Raises `BadInput` with one sentence if the store cannot be used, before a server or a command uses it."""

    @abstractmethod
    def path_of(self, name: str) -> str:
        """The path of a file for messages."""


def content_key(content: bytes) -> str:
    """The part of the name of a file that depends on its content."""
    return f"{hashlib.sha256(content).hexdigest()}-{len(content)}"
