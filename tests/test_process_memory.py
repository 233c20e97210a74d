"""The server returns memory that it no longer uses to the operating system."""

import ctypes
import subprocess
import sys

from ontogeny.server.databases.base import MAX_CONNECTIONS
from ontogeny.server.databases.sqlite import CACHE_SIZE
from ontogeny.server.store import Store

# Many small blocks are freed between blocks that stay, which glibc alone would keep.
FRAGMENTED = """
import asyncio, contextlib, os
from ontogeny.server.process_memory import limit_memory_arenas, trim_memory_periodically

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

async def main():
    blocks = [bytes(16_000) for _ in range(8_000)]
    kept = blocks[::100]
    del blocks[:]
    before = resident()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(trim_memory_periodically(0.01), 0.5)
    print(before - resident())

limit_memory_arenas()
asyncio.run(main())
"""


def test_a_server_returns_free_memory_between_used_memory_to_the_operating_system():
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc
        released = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True).stdout
        assert float(released) > 80  # MB of the 120 that are free


EXCLUDED = """
import gc
from ontogeny.server import process_memory

with process_memory.collection_paused():
    assert not gc.isenabled()
    modules = [[number] for number in range(100_000)]  # containers, which the collector looks at
    process_memory.exclude_from_collection()
assert gc.isenabled()
cycle = []
cycle.append(cycle)
del cycle
programs = [[number] for number in range(100_000)]
process_memory.exclude_from_collection()
print(len(gc.get_objects()), gc.get_freeze_count())
"""


def test_the_objects_of_a_start_are_excluded_from_garbage_collection():
    done = subprocess.run([sys.executable, "-c", EXCLUDED], capture_output=True, text=True)
    num_watched, num_excluded = map(int, done.stdout.split())
    assert num_watched < 1000 < 200_000 < num_excluded


def test_a_connection_to_the_database_keeps_few_of_its_pages(tmp_path):
    # The default of SQLite, 2 MB in each of eight connections, is growth of the process as the database grows.
    store = Store(tmp_path)
    assert store.select_value("PRAGMA cache_size") == -CACHE_SIZE
    assert MAX_CONNECTIONS * CACHE_SIZE <= 2048  # KiB
