"""Snapshots as files of a folder, of one server or on a file system that several servers share."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.runs.files import write_bytes
from ontogeny.server.snapshot_stores.base import STORE_ID, SnapshotFile, SnapshotStore, UnusableSnapshot

OWNER_FILE, OWNER_FOLDER = 0o600, 0o700  # permissions


class FolderSnapshots(SnapshotStore):
    """The snapshots in a folder; what is written can be read by its owner alone.

    Args:
        folder: The folder, which need not exist to be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.label = folder, f"the folder '{folder}'"

    def create(self) -> None:
        """Creates the folder, and takes the permissions of others away from files of an earlier version."""
        self.folder.mkdir(mode=OWNER_FOLDER, exist_ok=True)
        for path in (self.folder, *self.folder.iterdir()):
            with contextlib.suppress(OSError):  # the files of somebody else, or a file that is gone
                if (mode := path.stat().st_mode) & 0o077:
                    path.chmod(mode & OWNER_FOLDER)

    def write_as(self, name: str, content: bytes) -> None:
        """Writes a file; see `SnapshotStore`."""
        try:
            write_bytes(self.folder / name, content, OWNER_FILE)
        except OSError as error:
            raise StorageUnavailable(f"'{self.folder / name}' cannot be written: {error.strerror}") from None

    def fetch(self, name: str) -> bytes:
        """Reads a file; see `SnapshotStore`."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            is_absent = isinstance(error, FileNotFoundError)
            raise UnusableSnapshot(f"it cannot be read: {error.strerror}", is_absent) from None

    def stored_bytes(self, name: str) -> int | None:
        """The size of a file; see `SnapshotStore`."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageUnavailable(f"'{self.folder / name}' cannot be read: {error.strerror}") from None

    def list_files(self) -> Iterator[SnapshotFile]:
        """All snapshots, and what a crash has left of a write; see `SnapshotStore`."""
        if not self.folder.is_dir():
            return
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    file = None if entry.name == STORE_ID else _describe_file(entry)
                    if file is not None:
                        yield file
        except OSError as error:
            raise StorageUnavailable(f"{self.label} cannot be read: {error.strerror}") from None

    def delete(self, names: Collection[str]) -> None:
        """Deletes files; see `SnapshotStore`."""
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise StorageUnavailable(f"'{self.folder / name}' cannot be deleted: {error.strerror}") from None

    def check(self) -> None:
        """Checks that the folder can be written; see `SnapshotStore`."""
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise BadInput(f"{self.label} cannot be written")

    def path_of(self, name: str) -> str:
        """The path of a file."""
        return str(self.folder / name)


def _describe_file(entry: os.DirEntry[str]) -> SnapshotFile | None:
    """A file of the folder, or None if it has been deleted meanwhile."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return SnapshotFile(entry.name, status.st_size, status.st_mtime)
