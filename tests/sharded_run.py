"""A small run of evolution in eight shards, and the files by which two runs of it are compared."""

from pathlib import Path

NUM_GENERATIONS, NUM_SHARDS = 4, 8
SPEC = {
    "agent": "recurrent:hidden_size=4",
    "env": "bandit:num_arms=2,num_pulls=4",
    "development": "evolution:population_size=16,num_lifetimes=2,num_generations=4,shard_size=2",
    "seed": 3,
}
FILES = ("records.jsonl", "fitness.jsonl", "genome.safetensors")


def read_files(folder: Path) -> list[bytes]:
    """The bytes that must not depend on the driver or on interruptions."""
    return [(folder / name).read_bytes() for name in FILES]
