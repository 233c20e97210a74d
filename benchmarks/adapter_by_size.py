"""All weights or an adapter: saving, forgetting, bytes per key and seconds of online learning, over sizes of models.

    python benchmarks/adapter_by_size.py runs/pico runs/nano runs/micro > adapter_by_size.jsonl

For each run of `ontogeny lm train` and each of the two ways, the learning rate is chosen on the beginning of Python's
manual: the one that saves most behind the acceptance test with its default limit. The choice is then evaluated on
docstrings of the standard library. Requests have 1,000 bytes. Prints JSON lines; the peer of an adapter is the copy of
all weights.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_online import default_text
from ontogeny import trees
from ontogeny.lm import model as models
from ontogeny.lm.forgetting import measure_forgetting
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.server.config import ServerConfig
from ontogeny.server.learning import journal, learner, listing
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.learning.listing import PageRequest
from ontogeny.server.store import Store
from ontogeny.stats import ratio_of_sums
from saving_power import docstrings

OWNER = "author"
REQUEST_BYTES = 1000
CANDIDATES = {
    "all weights": [{"learning_rate": rate} for rate in (1e-4, 3e-4)],
    "adapter": [{"adapter_rank": 8, "learning_rate": rate} for rate in (1e-3, 3e-3)],
}


class Measurement(NamedTuple):
    """What learning a text saved and cost; intervals are over requests and over windows."""

    saving: tuple[float, float, float]  # share of the frozen bits
    forgetting: tuple[float, float, float]  # nats per token
    share: float  # mean over the requests of the share of the step that was learned
    branch_bytes: int
    seconds: float


def main() -> None:
    """Chooses and evaluates settings for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--choice-bytes", type=int, default=4000)
    parser.add_argument("--bytes", type=int, default=8000)
    arguments = parser.parse_args()
    chosen_on, evaluated_on = default_text(), "\n\n".join(docstrings())
    for run in arguments.runs:
        model, copy = models.load(run), None
        for way, candidates in CANDIDATES.items():
            measured = [measure(model, OnlineConfig(**c), cut(chosen_on, arguments.choice_bytes)) for c in candidates]
            for candidate, measurement in zip(candidates, measured, strict=True):
                print_records("choice.", model, way, candidate, arguments.choice_bytes, measurement, None)
            best = candidates[int(np.argmax([measurement.saving[0] for measurement in measured]))]
            measurement = measure(model, OnlineConfig(**best), cut(evaluated_on, arguments.bytes))
            print_records("", model, way, best, arguments.bytes, measurement, copy)
            copy = measurement


def cut(text: str, num_bytes: int) -> list[str]:
    """Cuts the beginning of a text into requests."""
    content = text.encode("ascii", errors="ignore")[:num_bytes].decode()
    return [content[start : start + REQUEST_BYTES] for start in range(0, len(content), REQUEST_BYTES)]


def measure(model: models.LanguageModel, config: OnlineConfig, requests: list[str]) -> Measurement:
    """Lets a branch learn the requests."""
    branch_learner = learner.build(model, config)
    with tempfile.TemporaryDirectory() as folder:
        limits = BranchConfig(max_forgetting=ServerConfig().max_forgetting)
        branches = BranchManager(Store(Path(folder)), "reader", branch_learner, config=limits)
        branch_learner.learn(branch_learner.init(), branch_learner.encode(requests[0][:64]), range(1), lambda: None)
        for text in requests:
            branches.add_example(OWNER, OWNER, text)
        started_at = time.perf_counter()
        while branches.learn_next():
            pass
        seconds = time.perf_counter() - started_at
        scores, _ = listing.list_scores(branches.store, f"reader/{OWNER}", PageRequest())
        frozen = np.array([score.frozen_bits for score in scores])
        saving = ratio_of_sums(frozen - np.array([score.live_bits for score in scores]), frozen)
        forgetting = measure_forgetting(model, branches.current(OWNER).full_weights)
        shares = [decision.share or 0.0 for decision in journal.list_decisions(branches.store, "reader")]
        return Measurement(saving, forgetting, float(np.mean(shares)), len(branches.export(OWNER)), seconds)


def print_records(
    stage: str,
    model: models.LanguageModel,
    way: str,
    settings: dict[str, Any],
    num_bytes: int,
    measurement: Measurement,
    copy: Measurement | None,
) -> None:
    """Prints the records of one measurement; `copy` is that of all weights."""
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(model.weights))
    setting = {"parameters": num_parameters, "way": way, "learning": settings, "bytes": num_bytes}
    setting["weight_bytes"] = trees.num_bytes(model.weights)
    numbers = {
        "saved": (measurement.saving[0], "share of the frozen bits", measurement.saving[1:]),
        "forgetting": (measurement.forgetting[0], "nats per token", measurement.forgetting[1:]),
        "share": (measurement.share, "mean share of the step that was learned", None),
        "branch_bytes": (measurement.branch_bytes, "bytes of a branch", None),
        "pace": (measurement.seconds / num_bytes * 1000, "seconds per kB", None),
    }
    values = [] if copy is None else [copy.saving[0], copy.forgetting[0], copy.share, copy.branch_bytes]
    values += [] if copy is None else [copy.seconds / num_bytes * 1000]
    for i, (name, (value, unit, ends)) in enumerate(numbers.items()):
        peer = values[i] if values else None
        ratio = value / peer if peer and math.isfinite(value) else None
        record = {"name": f"adapter_by_size.{stage}{name}", "value": value, "unit": unit, "se": None}
        record |= {"peer": "all weights" if values else None, "peer_value": peer, "ratio": ratio}
        record |= {"seconds": round(measurement.seconds, 1), "setting": setting | ({"interval": ends} if ends else {})}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
