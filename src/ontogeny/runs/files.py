"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from ontogeny.errors import BadInput


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all, and return when it is on the disk; see `open_new_file`."""
    with open_new_file(path, mode) as file:
        file.write(data)


@contextlib.contextmanager
def open_new_file(path: Path, mode: int = 0o666) -> Generator[BinaryIO]:
    """A file to write piece by piece, which takes the place `path` when the block ends without an error.

    Args:
        path: The place of the file; a file that is there is replaced.
        mode: The permissions of the file, from which the umask of the process is taken.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb", opener=partial(os.open, mode=mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON whole or not at all; numbers that are not finite raise `ValueError`."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_sealed_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON with the key `sha256`, the digest of all other keys."""
    write_json(path, {**content, "sha256": json_digest(content)})


def json_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a file that is absent or holds anything else raises `BadInput`."""
    try:
        content: object = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(f"'{path}' is damaged: it holds no JSON object")
    return cast(dict[str, Any], content)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, where the operating system can open folders and write them to the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system cannot do so; every other error is a failure of the disk
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """A temporary folder to fill, which takes the place `folder` when the block ends without an error.

    Raises:
        BadInput: `folder` exists, or the folder cannot be written.
    """
    if folder.exists():
        raise BadInput(f"'{folder}' exists; not overwritten")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, folder)
    except OSError as error:
        raise BadInput(f"the folder '{folder}' cannot be created: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
