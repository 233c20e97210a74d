"""What a server that learns saves on another author's text with its gate on, and what a line of learning costs.

    python benchmarks/serve_learning.py --train shakespeare.txt              # then Python's own manual is read
    python benchmarks/serve_learning.py --train shakespeare.txt --text other.txt --learning adapter=8,learning_rate=1e-3

The model is trained in --run (what is finished there is not done again). The text comes in pieces, as a story grows
under its author: each piece is scored first, by the weights that were live when it came, looking back as far as the
context reaches; then it is contributed, learned from and judged by the gate. The peer is the frozen model, which looks
back as far. Standard errors are over pieces. `forgotten` is on 512 windows of what the run held out, of which the gate
reads 64. `--learning` may be given several times: the same text for each. Prints JSON lines.
"""

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_online import default_text
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import FinishOutput, GenerationRequest
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm import model as models
from ontogeny.lm import online, optimization, train
from ontogeny.lm import online_learner as plans
from ontogeny.runs import checkpoint
from ontogeny.server.learning import journal, learner
from ontogeny.server.learning.branches import BOUND, BranchManager, LiveVersion, Settings
from ontogeny.server.store import Store

BLOCK = 32  # tokens scored in one window
OWNERS, NEW, ROUNDS = 8, 64, 3  # lines that generate together, tokens of an answer, answers of each


def line(name: str, value: float, unit: str, setting: dict[str, Any], **more: Any) -> None:
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    record = {"name": f"serve.learning.{name}", "value": round(value, 5), "unit": unit} | empty | more
    print(json.dumps(record | {"setting": setting}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="text that the model is trained on, if --run is not there")
    parser.add_argument("--run", type=Path, default=Path("runs/serve_learning"))
    parser.add_argument("--size", default="nano", help="of the model that is trained, as `ontogeny train text` has it")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--piece", type=int, default=1000, help="bytes of a contribution")
    parser.add_argument("--bound", type=float, default=BOUND)
    parser.add_argument("--learning", action="append")
    given = parser.parse_args()
    if not checkpoint.exists(given.run, "weights"):
        if given.train is None:
            parser.error(f"there is no run in '{given.run}': name a text to --train one on")
        plan = train.Plan(given.size, tokenizer="bytes", context=given.context, steps=given.steps)
        train.train(plan, [given.train], given.run)
    model = models.load(given.run)
    text = default_text() if given.text is None else given.text.read_text(encoding="utf-8")
    text = text.encode()[: given.bytes].decode(errors="ignore")
    about = {"run": given.run.name, "text": "Python's manual" if given.text is None else given.text.name}
    for learning in given.learning or [""]:
        plan = plans.parse_config(learning)
        setting = about | {"bytes": len(text.encode()), "piece": given.piece, "bound": given.bound}
        report(model, text, given.piece, given.bound, plan, setting | {"plan": plan._asdict()})


def report(
    model: models.LanguageModel, text: str, piece: int, bound: float, plan: plans.OnlineConfig, setting: dict[str, Any]
) -> None:
    how = learner.build(model, plan)
    with tempfile.TemporaryDirectory() as folder:
        lines = BranchManager(Store(Path(folder)), "reader", how, settings=Settings(bound=bound))
        frozen, live, spent = read(model, lines, text, piece)
        saved, error = ratio(frozen - live, frozen)
        bits = 1 / math.log(2) / len(text.encode())
        line("saved", saved, "share of the frozen bits", setting, se=error, seconds=round(sum(spent), 1))
        peer = {"peer": "frozen", "peer_value": round(float(frozen.sum()) * bits, 5)}
        line("bits", float(live.sum()) * bits, "bits per byte", setting, **peer, ratio=round(1 - saved, 5))
        end = lines.current("author")
        forgotten = online.forgotten(model, end.whole)
        line(
            "forgotten", forgotten["mean"], "nats per token", setting, se=(forgotten["high"] - forgotten["mean"]) / 1.96
        )
        highest = max(version.held_out for version in journal.versions(lines.store, "reader/author"))
        line("gate.highest", highest - how.trained, "nats per token", setting, peer="bound", peer_value=bound)
        refused = [d for d in journal.decisions(lines.store, "reader") if d.kind == "refused"]
        line("gate.refused", len(refused) / len(spent), "share of contributions", setting)
        line("pace", sum(spent) / len(text.encode()) * 1000, "seconds per kB", setting)
        line("size", len(lines.export("author")), "bytes of a line", setting, peer="bytes of the trained weights",
             peer_value=sum(leaf.nbytes for leaf in leaves(model.weights)))  # fmt: skip
        several(model, lines, end, setting)


def read(
    model: models.LanguageModel, lines: BranchManager, text: str, piece: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Nats of each piece, frozen and by the weights that were live when it came; seconds that learning it took."""
    tokens, parts = model.tokenizer.encode(text), pieces(text, piece)
    ends = np.cumsum([len(model.tokenizer.encode(part)) for part in parts])
    if ends[-1] != len(tokens):
        raise SystemExit("tokens of the pieces are not those of the text: give another --piece")
    frozen, live, spent = [], [], []
    for part, end, size in zip(parts, ends, np.diff(ends, prepend=0), strict=True):
        current, span = lines.current("author"), (max(end - size - 1, 0), end - 1)
        frozen.append(scored(model, lines.learner.origin, tokens, *span))
        live.append(frozen[-1] if current.version.number == 0 else scored(model, current.whole, tokens, *span))
        began = time.perf_counter()
        lines.contribute("author", "author", part)
        while lines.advance():
            pass
        spent.append(time.perf_counter() - began)
    return np.array(frozen), np.array(live), spent


def pieces(text: str, size: int) -> list[str]:
    """Cut before a white space after every `size` characters, so that tokenizers see the same words."""
    found, at = [], 0
    while at < len(text):
        stop = at + size
        while stop < len(text) and not (text[stop].isspace() and not text[stop - 1].isspace()):
            stop += 1
        found.append(text[at:stop])
        at = stop
    return found


def scored(model: models.LanguageModel, weights: Any, tokens: np.ndarray, first: int, last: int) -> float:
    """Nats of the tokens number `first` + 1 to `last`, each by as much of what is before it as the context holds, but
    for less than a block."""
    starts, context = np.arange(first, last, BLOCK), model.config.context_length
    windows, sizes = online.context_windows(tokens[: last + 1], starts, BLOCK, context, context)
    nats = np.asarray(optimization.losses(model.config, "float32", weights, windows), np.float64)
    own = np.minimum(BLOCK, last - starts)
    return float(sum(row[size - count : size].sum() for row, size, count in zip(nats, sizes, own, strict=True)))


def several(model: models.LanguageModel, lines: BranchManager, one: LiveVersion, setting: dict[str, Any]) -> None:
    """Tokens per second of as many streams from one line, and each from its own."""
    data = lines.export("author")
    engine = Engine(model.config, max_num_seqs=64)
    engine.start(model.weights)
    try:
        for owner in range(OWNERS):
            lines.restore(f"other{owner}", data, "benchmark")
        others = [lines.current(f"other{owner}").whole for owner in range(OWNERS)]
        speed(engine, [one.whole] * OWNERS)
        together = speed(engine, [one.whole] * OWNERS)
        apart = speed(engine, others)
    finally:
        engine.stop()
    line(
        "lines.tokens", apart, "tokens per second", setting | {"streams": OWNERS, "lines": OWNERS},
        peer="as many streams from one line", peer_value=round(together, 2), ratio=round(apart / together, 4),
    )  # fmt: skip


def speed(engine: Engine, weights: Sequence[Any]) -> float:
    done, count = threading.Semaphore(0), len(weights)
    began, before = time.perf_counter(), engine.num_generated_tokens

    def ended(what: object) -> None:
        if isinstance(what, FinishOutput):
            done.release()

    for round_ in range(ROUNDS):
        for stream, mine in enumerate(weights):
            engine.submit(
                GenerationRequest(mine, (32,), NEW, SamplingParams(seed=round_ * count + stream), None), ended
            )
        for _ in weights:
            done.acquire()
    return (engine.num_generated_tokens - before) / (time.perf_counter() - began)


def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """A ratio of sums and its standard error by the residuals' spread (Cochran 1977, chapter 6)."""
    mean = float(above.sum() / below.sum())
    errors = (above - mean * below) / below.mean()
    return mean, float(errors.std(ddof=1) / math.sqrt(len(errors)))


def leaves(tree: Any) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


if __name__ == "__main__":
    main()
