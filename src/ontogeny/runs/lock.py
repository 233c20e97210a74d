"""One process at a time in a folder. Knows nothing of what is in it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ontogeny.errors import BadInput


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Holds a folder for this process, or raises `BadInput` that another one is `doing` something in it.

    A process that is killed lets go of it by itself. Where the system has no such locks, all go without.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another process is {doing} in '{folder}'") from None
        yield
    finally:
        os.close(descriptor)
