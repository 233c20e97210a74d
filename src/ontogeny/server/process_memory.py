"""The memory of a server process: returned to the operating system, and searched for garbage without long pauses.

The threads of a server allocate and free arrays and texts of changing sizes for as long as it runs. glibc returns a
page only if it is at the end of an arena, so free pages accumulate between used ones while the memory in use stays the
same. Other C libraries are left as they are.

Python's garbage collector stops all threads while it looks at every object. The modules and compiled programs of a
server are about a million objects, which takes 0.2 s and finds nothing, so they are excluded once the server has
started.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator

from ontogeny.server.background import LoggedErrors

M_ARENA_MAX, NUM_ARENAS = -8, 2  # the first is the parameter's number in glibc
TRIM_INTERVAL = 60.0  # seconds; one trim takes some 50 ms, without the interpreter's lock


def limit_memory_arenas() -> None:
    """Limits the number of arenas from which glibc allocates memory, before the threads of a server begin.

    By default glibc has eight arenas per processor, and what one arena has free is of no use to the others. An
    operator's MALLOC_ARENA_MAX takes precedence.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, NUM_ARENAS)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pauses garbage collection, which many new objects without garbage would start again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def exclude_from_collection() -> None:
    """Excludes all objects that exist now from garbage collection, after a last one if it is not paused."""
    if gc.isenabled():
        gc.collect()
    gc.freeze()


async def trim_memory_periodically(interval: float = TRIM_INTERVAL) -> None:
    """Returns free pages to the operating system again and again, until it is canceled.

    Args:
        interval: Seconds between two trims.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    errors = LoggedErrors("the return of free memory")
    while True:
        await asyncio.sleep(interval)
        with errors:
            await asyncio.to_thread(trim, 0)
