"""The bits that online learning on a server saves on a new text, its forgetting, and the cost of a branch.

    python benchmarks/serve_learning.py --train shakespeare.txt              # the new text is Python's manual
    python benchmarks/serve_learning.py --train shakespeare.txt --text other.txt --learning adapter_rank=8

The model is trained in --run, unless that run is finished. The text arrives in pieces, in order. Each piece is first
scored by the current weights with a full context window; then the branch learns it, and the acceptance test accepts or
rejects the update. The peer is the frozen model with the same context. Standard errors are over pieces. `forgetting` is
measured on 512 windows of the run's held-out text; the acceptance test uses 64 of them. `--learning` may be repeated;
each value is measured on the same text. Prints JSON lines.
"""

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_online import default_text
from ontogeny import kernels
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import FinishOutput, GenerationRequest
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm import model as models
from ontogeny.lm import online, optimization
from ontogeny.lm.adapters import AdaptedWeights
from ontogeny.lm.forgetting import measure_forgetting
from ontogeny.lm.online_learner import parse_config
from ontogeny.lm.training import train
from ontogeny.runs import checkpoint
from ontogeny.server.config import ServerConfig
from ontogeny.server.learning import journal, learner, versions
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.store import Store
from ontogeny.stats import Z95, critical_value, ratio_of_sums

CHUNK_SIZE = 32  # tokens scored in one window
NUM_BRANCHES, MAX_TOKENS, NUM_ROUNDS = 8, 64, 3  # branches that generate together, tokens and number of their answers
OWNER = "author"


class PieceScores(NamedTuple):
    """Nats of each piece by the frozen and the current weights, and the seconds that learning it took."""

    frozen: np.ndarray
    online: np.ndarray
    seconds: list[float]


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    record = {"name": f"serve.learning.{name}", "value": round(value, 5), "unit": unit} | empty | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="text that the model is trained on if --run is absent")
    parser.add_argument("--run", type=Path, default=Path("runs/serve_learning"))
    parser.add_argument("--size", default="nano", help="size of the model, as in `ontogeny lm train`")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--piece", type=int, default=1000, help="bytes of a training example")
    parser.add_argument("--max-forgetting", type=float, default=ServerConfig().max_forgetting)
    parser.add_argument("--learning", action="append")
    arguments = parser.parse_args()
    if not checkpoint.exists(arguments.run, "weights"):
        if arguments.train is None:
            parser.error(f"there is no run in '{arguments.run}': name a text to train on with --train")
        config = {"size": arguments.size, "tokenizer": "bytes"}
        config |= {"context_length": arguments.context, "num_steps": arguments.steps}
        train(config, [arguments.train], arguments.run)
    text = default_text() if arguments.text is None else arguments.text.read_text(encoding="utf-8")
    text = text.encode()[: arguments.bytes].decode(errors="ignore")
    setting = {
        "run": arguments.run.name,
        "text": "Python's manual" if arguments.text is None else arguments.text.name,
        "bytes": len(text.encode()),
        "piece": arguments.piece,
        "max_forgetting": arguments.max_forgetting,
    }
    for learning in arguments.learning or [""]:
        measure_learning(models.load(arguments.run), text, learning, setting)


def measure_learning(model: models.LanguageModel, text: str, learning: str, setting: dict[str, Any]) -> None:
    """Learns a text with one configuration and prints its records."""
    config = parse_config(learning)
    setting = setting | {"online_config": config.model_dump()}
    branch_learner = learner.build(model, config, applies_adapters=kernels.is_active())
    max_forgetting = setting["max_forgetting"]
    with tempfile.TemporaryDirectory() as folder:
        limits = BranchConfig(max_forgetting=max_forgetting)
        branches = BranchManager(Store(Path(folder)), "reader", branch_learner, config=limits)
        scores = learn_pieces(model, branches, text, setting["piece"])
        saving = ratio_of_sums(scores.frozen - scores.online, scores.frozen)
        bits = 1 / math.log(2) / len(text.encode())
        seconds = sum(scores.seconds)
        error = (saving.high - saving.mean) / critical_value(Z95, len(scores.seconds) - 1)
        print_record("saved", saving.mean, "share of the frozen bits", setting, se=error, seconds=round(seconds, 1))
        peer = {"peer": "frozen", "peer_value": round(float(scores.frozen.sum()) * bits, 5)}
        online_bits = float(scores.online.sum()) * bits
        print_record("bits", online_bits, "bits per byte", setting, **peer, ratio=round(1 - saving.mean, 5))
        forgetting = measure_forgetting(model, branches.current(OWNER).full_weights)
        interval = {"interval": [forgetting.low, forgetting.high]}  # over windows, by Student's t
        print_record("forgetting", forgetting.mean, "nats per token", setting | interval)
        branch_versions = versions.list_versions(branches.store, f"reader/{OWNER}")
        increase = max(version.held_out_loss for version in branch_versions) - branch_learner.trained_loss
        peer = {"peer": "limit", "peer_value": max_forgetting}
        print_record("acceptance.max_loss_increase", increase, "nats per token", setting, **peer)
        rejected = [d for d in journal.list_decisions(branches.store, "reader") if d.kind == "rejected"]
        print_record("acceptance.rejected", len(rejected) / len(scores.seconds), "share of examples", setting)
        print_record("pace", seconds / len(text.encode()) * 1000, "seconds per kB", setting)
        num_bytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(model.weights))
        peer = {"peer": "bytes of the trained weights", "peer_value": num_bytes}
        print_record("size", len(branches.export(OWNER)), "bytes of a branch", setting, **peer)
        measure_generation(model, branches, setting)


def learn_pieces(model: models.LanguageModel, branches: BranchManager, text: str, piece: int) -> PieceScores:
    """Scores each piece of a text by the frozen and the current weights, then learns it."""
    tokens, parts = model.tokenizer.encode(text), split_text(text, piece)
    ends = np.cumsum([len(model.tokenizer.encode(part)) for part in parts])
    if ends[-1] != len(tokens):
        raise SystemExit("the pieces have other tokens than the text as a whole: choose another --piece")
    frozen, current_nats, seconds = [], [], []
    for part, end, size in zip(parts, ends, np.diff(ends, prepend=0), strict=True):
        current, span = branches.current(OWNER), (max(end - size - 1, 0), end - 1)
        frozen.append(score(model, branches.learner.trained_weights, tokens, *span))
        is_trained = current.version.number == 0
        current_nats.append(frozen[-1] if is_trained else score(model, current.full_weights, tokens, *span))
        started_at = time.perf_counter()
        branches.add_example(OWNER, OWNER, part)
        while branches.learn_next():
            pass
        seconds.append(time.perf_counter() - started_at)
    return PieceScores(np.array(frozen), np.array(current_nats), seconds)


def split_text(text: str, size: int) -> list[str]:
    """Splits a text before white space after every `size` characters, so that tokenizers see the same words."""
    parts, start = [], 0
    while start < len(text):
        stop = start + size
        while stop < len(text) and not (text[stop].isspace() and not text[stop - 1].isspace()):
            stop += 1
        parts.append(text[start:stop])
        start = stop
    return parts


def score(model: models.LanguageModel, weights: Any, tokens: np.ndarray, first: int, last: int) -> float:
    """Returns the nats of the tokens `first` + 1 to `last`, each with nearly a full context window before it."""
    starts, context = np.arange(first, last, CHUNK_SIZE), model.config.context_length
    windows, sizes = online.context_windows(tokens[: last + 1], starts, CHUNK_SIZE, context, context)
    nats = np.asarray(optimization.window_losses(model.config, "float32", weights, windows), np.float64)
    counts = np.minimum(CHUNK_SIZE, last - starts)
    return float(sum(part[size - count : size].sum() for part, size, count in zip(nats, sizes, counts, strict=True)))


def measure_generation(model: models.LanguageModel, branches: BranchManager, setting: dict[str, Any]) -> None:
    """Prints the tokens per second of streams with one branch each, beside as many streams of one branch."""
    state, engine = branches.export(OWNER), Engine(model.config, max_num_seqs=64)
    engine.start(model.weights)
    try:
        owners = [f"owner{number}" for number in range(NUM_BRANCHES)]
        for owner in owners:
            branches.restore(owner, state, "benchmark")
        separate = [branches.current(owner).served for owner in owners]
        shared = [branches.current(OWNER).served] * NUM_BRANCHES
        measure_throughput(engine, shared)  # warm-up
        shared_throughput, throughput = measure_throughput(engine, shared), measure_throughput(engine, separate)
    finally:
        engine.stop()
    print_record(
        "branches.tokens",
        throughput,
        "tokens per second",
        setting | {"streams": NUM_BRANCHES, "branches": NUM_BRANCHES},
        peer="as many streams from one branch",
        peer_value=round(shared_throughput, 2),
        ratio=round(throughput / shared_throughput, 4),
    )


def measure_throughput(engine: Engine, weights: Sequence[AdaptedWeights]) -> float:
    """Returns the tokens per second of one stream per element of `weights`."""
    finished, started_at, num_before = threading.Semaphore(0), time.perf_counter(), engine.num_generated_tokens

    def on_output(output: object) -> None:
        if isinstance(output, FinishOutput):
            finished.release()

    for number in range(NUM_ROUNDS):
        for stream, stream_weights in enumerate(weights):
            sampling = SamplingParams(seed=number * len(weights) + stream)
            request = GenerationRequest(stream_weights.weights, (32,), MAX_TOKENS, sampling)
            engine.submit(request._replace(adapter=stream_weights.adapter), on_output)
        for _ in weights:
            if not finished.acquire(timeout=600):
                raise SystemExit("the engine did not finish a request within 600 s")
    return (engine.num_generated_tokens - num_before) / (time.perf_counter() - started_at)


if __name__ == "__main__":
    main()
