"""Seconds to write, read, list and delete snapshots in a folder and in an S3-compatible server over loopback HTTP.

The server is moto, which keeps objects in memory and is written in Python: it bounds the cost of the client and of the
protocol, not the speed of a provider. The peer of a store is plain access without names of the content: a file that is
written with fsync and read, or boto3. Prints JSON lines.

    python benchmarks/snapshot_stores.py [--num-bytes 1000000] [--repeats 20]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from local_s3 import running_s3
from ontogeny.server.snapshot_stores.base import SnapshotStore
from ontogeny.server.snapshot_stores.folder import FolderSnapshots
from ontogeny.server.snapshot_stores.objects import ObjectSnapshots

NUM_LISTED = 2000  # objects


def measure(call: Callable[[int], object], repeats: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for i in range(repeats):
        start = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - start)
    return seconds


def report(name: str, seconds: list[float], setting: str, peer: tuple[str, list[float]] | None = None) -> None:
    """Prints the median as a JSON line."""
    value = statistics.median(seconds)
    record = {
        "name": name, "value": value, "unit": "s", "se": statistics.stdev(seconds) / len(seconds) ** 0.5,
        "peer": None, "peer_value": None, "ratio": None, "seconds": sum(seconds), "setting": setting,
    }  # fmt: skip
    if peer is not None:
        peer_value = statistics.median(peer[1])
        record |= {"peer": peer[0], "peer_value": peer_value, "ratio": value / peer_value}
    print(json.dumps(record), flush=True)


def measure_store(
    name: str,
    store: SnapshotStore,
    contents: list[bytes],
    peer: str,
    write: Callable[[int], object],
    read: Callable[[int], object],
) -> None:
    """Measures a store beside its peer."""
    setting = f"{len(contents[0]):,} bytes, {len(contents)} files"
    names: list[str] = []
    store.write(b"warm-up")
    report(f"write, {name}", measure(lambda i: names.append(store.write(contents[i])), len(contents)), setting,
           (peer, measure(write, len(contents))))  # fmt: skip
    report(f"read, {name}", measure(lambda i: store.read(names[i]), len(contents)), setting,
           (peer, measure(read, len(contents))))  # fmt: skip
    small = [store.write(b"%d" % i) for i in range(NUM_LISTED)]
    report(f"list, {name}", measure(lambda _: list(store.list_files()), 5), f"{NUM_LISTED:,} files")
    parts = [small[start : start + 400] for start in range(0, NUM_LISTED, 400)]
    report(f"delete, {name}", measure(lambda i: store.delete(parts[i]), len(parts)), "400 files in one call")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-bytes", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    contents = [os.urandom(options.num_bytes) for _ in range(options.repeats)]
    with tempfile.TemporaryDirectory() as folder:
        store = FolderSnapshots(Path(folder) / "snapshots")
        store.create()
        files = [Path(folder) / f"{i}" for i in range(len(contents))]

        def write_file(i: int) -> None:
            with files[i].open("wb") as file:
                file.write(contents[i])
                os.fsync(file.fileno())

        measure_store("folder", store, contents, "a file with fsync", write_file, lambda i: files[i].read_bytes())
    with running_s3() as server:
        os.environ.update(server.environment)
        import boto3

        client = boto3.client("s3", endpoint_url=server.url, region_name="us-east-1")
        measure_store(
            "S3", ObjectSnapshots("s3://snapshots/benchmark"), contents, "boto3",
            lambda i: client.put_object(Bucket="snapshots", Key=f"peer/{i}", Body=contents[i]),
            lambda i: client.get_object(Bucket="snapshots", Key=f"peer/{i}")["Body"].read(),
        )  # fmt: skip


if __name__ == "__main__":
    main()
