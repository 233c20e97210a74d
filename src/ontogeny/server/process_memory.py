"""The memory of a server process: glibc keeps what is freed, and here it is returned to the operating system.

The threads of a server allocate and free arrays and texts of changing sizes for as long as it runs. glibc returns a
page only if it is at the end of an arena, so free pages accumulate between used ones while the memory in use stays the
same. Other C libraries are left as they are.
"""

import asyncio
import contextlib
import ctypes
import os

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


async def trim_memory_periodically(interval: float = TRIM_INTERVAL) -> None:
    """Returns free pages to the operating system again and again, until it is canceled.

    Args:
        interval: Seconds between two trims.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    while True:
        await asyncio.sleep(interval)
        await asyncio.to_thread(trim, 0)
