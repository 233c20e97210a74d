"""Tokens per second and memory of a server on which several keys have taught an adapter each.

    python benchmarks/serve_adapters.py
    python benchmarks/serve_adapters.py --keys 16 --rounds 9 --learning ""     # as the size of the model decides

The model has 6 layers, width 384 and bytes as tokens, and is trained for a few steps. Each key teaches one text to a
server on this machine; then all keys send one request at once (128 tokens, temperature 0.8), and one key sends as many,
in turn. `value` is the median over rounds, `ratio` the median ratio to the requests of one key, `mbytes` the growth of
the server's resident memory from its start to the end. The script stops with an error if a token or a log-probability
of any answer depends on the other answers. To compare versions of the program, put the `src` folder of each on
PYTHONPATH. Prints a JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ontogeny import kernels
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.lm.config import TrainConfig
from ontogeny.lm.training import train
from ontogeny.stats import mean_interval

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import texts
from serving import ServerProcess, run_command, wait_until

MAX_TOKENS = 128
SHAPE = {"num_layers": 6, "num_heads": 6, "width": 384, "context_length": 256}
BODY = {"model": "story", "prompt": "The lighthouse keeper", "max_tokens": MAX_TOKENS, "seed": 7, "temperature": 0.8}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--learning", default="adapter_rank=8,learning_rate=3e-3,rehearsal_batch_size=1")
    arguments = parser.parse_args()
    configure_jax(None)
    with tempfile.TemporaryDirectory() as temporary:
        folder, state_dir = Path(temporary) / "run", Path(temporary) / "state"
        settings = {"size": "pico", "tokenizer": "bytes", "batch_size": 2, "num_steps": 20, **SHAPE}
        train(TrainConfig.model_validate(settings), texts.TRAINING, folder)
        keys = [create_key(state_dir, f"key{number}") for number in range(arguments.keys)]
        options = ("--alias", f"story={folder}", "--online", "--learning", arguments.learning, "--max-forgetting", "10")
        with ServerProcess(state_dir, *options) as server:
            before = resident_bytes(server.process.pid)
            teach(server, keys)
            speeds = measure_speeds(server, keys, arguments.rounds)
            growth = resident_bytes(server.process.pid) - before
    report(speeds, growth, arguments)


def create_key(state_dir: Path, name: str) -> str:
    """Creates an access key, and returns it."""
    return run_command("keys", "create", "--name", name, "--state-dir", str(state_dir)).stdout.split()[-1]


def teach(server: ServerProcess, keys: Sequence[str]) -> None:
    """Lets each key teach a text of its own, and waits until all have been learned."""
    text = texts.read_training()
    for number, key in enumerate(keys):
        status, content = server.post("/v1/models/story/examples", {"text": text[100 * number :][:300]}, key)
        assert status == 200, content
    for key in keys:
        wait_until(lambda key=key: server.get("/v1/models/story/branch", key)[1]["current_version"] > 0, 1200)


def ask(server: ServerProcess, key: str) -> dict[str, Any]:
    """The answer to a request, with its log-probabilities."""
    status, content = server.post("/v1/completions", BODY | {"logprobs": 1}, key, timeout=600)
    assert status == 200, content
    return content["choices"][0]


def ask_together(server: ServerProcess, keys: Sequence[str], expected: Sequence[dict[str, Any]]) -> float:
    """The tokens per second of one request of each key at once, whose answers are compared."""
    answers: list[dict[str, Any]] = [{}] * len(keys)

    def run(place: int) -> None:
        answers[place] = ask(server, keys[place])

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(keys))]
    started_at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started_at
    if answers != list(expected):
        raise SystemExit("an answer depends on the other answers")
    return len(keys) * MAX_TOKENS / seconds


def measure_speeds(server: ServerProcess, keys: Sequence[str], rounds: int) -> tuple[list[float], list[float]]:
    """The tokens per second of all keys, and of as many requests of one key, in turn; one round is left out."""
    separate = [ask(server, key) for key in keys]
    if len({json.dumps(answer) for answer in separate}) < len(keys):
        raise SystemExit("two keys have the same answer, so their adapters are not used")
    of_all, of_one = [], []
    for _ in range(rounds + 1):
        of_all.append(ask_together(server, keys, separate))
        of_one.append(ask_together(server, keys[:1] * len(keys), separate[:1] * len(keys)))
    return of_all[1:], of_one[1:]


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(speeds: tuple[list[float], list[float]], growth: int, arguments: argparse.Namespace) -> None:
    """Prints the record."""
    of_all, of_one = speeds
    record: dict[str, Any] = {"name": f"serve_adapters: {arguments.keys} keys, one request each"}
    record |= {"value": round(statistics.median(of_all), 1), "unit": "tokens/s"}
    record |= {"se": round(mean_interval(of_all).standard_error, 1) if len(of_all) > 1 else None}
    record |= {"peer": "as many requests of one key", "peer_value": round(statistics.median(of_one), 1)}
    record |= {"ratio": round(statistics.median(a / b for a, b in zip(of_all, of_one, strict=True)), 3)}
    record |= {"seconds": None, "mbytes": round(growth / 1e6, 1)}
    setting = SHAPE | {"learning": arguments.learning, "rounds": arguments.rounds, "max_tokens": MAX_TOKENS}
    setting |= {"cores": len(os.sched_getaffinity(0)), "path": kernels.describe_path()}
    print(json.dumps(record | {"setting": setting}), flush=True)


if __name__ == "__main__":
    main()
