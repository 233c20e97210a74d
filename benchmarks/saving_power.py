"""How many requests show that a model learns from its user? Measures real texts, then simulates keys with their spread.

    python benchmarks/saving_power.py --run runs/nano         # a run of `ontogeny lm train`
    python benchmarks/saving_power.py --scores scores.json    # simulates with the scores of an earlier call

The texts are the docstrings of Python's standard library, or --text, cut into requests of 200 to 2,000 bytes (the
logarithm of the size is uniform). A branch with the default settings learns them in order; each is scored before by the
frozen and by the live weights. The deviation of a request is its difference in bits per byte minus a moving average
over 21 requests. Simulated keys draw sizes and deviations of the same requests together, with replacement.

Without an effect, the conditional means vary around 0 in three ways, such that their average weighted by bytes is at
most 0 after each request (the hypothesis for which the intervals are valid): all 0; a wave; and an autoregressive
process. An alarm is a lower end above 0 after any of the requests. `miscoverage` is the share of keys for which any
interval misses the weighted average of the conditional means, which then vary without a constraint. Prints JSON lines.
"""

import argparse
import ast
import json
import math
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ontogeny.lm import model as models
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.server.config import ServerConfig
from ontogeny.server.learning import learner, listing
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.learning.listing import PageRequest
from ontogeny.server.learning.text_scores import LEVEL, TYPICAL_VARIANCE
from ontogeny.server.store import Store
from ontogeny.stats import RunningSums, always_valid_interval, clopper_pearson

OWNER = "author"
MIN_BYTES, MAX_BYTES = 200, 2000
WINDOW = 21  # requests of the moving average
SAVING = 0.02  # of the frozen bits
MAX_REQUESTS, LONGEST = 500, 8000  # requests of the aim, and of a simulated key with an effect

Means = Callable[[np.random.Generator, np.ndarray, float], np.ndarray]  # draw, sizes and amplitude -> conditional means


class Requests(NamedTuple):
    """Requests that a branch learned, in order: bytes, and bits under the frozen and the live weights."""

    num_bytes: np.ndarray
    frozen: np.ndarray
    live: np.ndarray


def print_record(name: str, value: float | None, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    empty = dict.fromkeys(("se", "peer", "peer_value", "ratio", "seconds"))
    print(json.dumps({"name": f"saving.{name}", "value": value, "unit": unit} | empty | fields | {"setting": setting}))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of `ontogeny lm train`")
    parser.add_argument("--scores", type=Path, default=Path("scores.json"), help="where scores are written or read")
    parser.add_argument("--text", type=Path, help="a text; by default the docstrings of the standard library")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.run is not None:
        text = "\n\n".join(docstrings()) if arguments.text is None else arguments.text.read_text(encoding="utf-8")
        draw = np.random.default_rng(arguments.seed)
        measured = measure(arguments.run, cut_requests(text, arguments.requests, draw))
        arguments.scores.write_text(json.dumps([part.tolist() for part in measured]))
    requests = Requests(*map(np.array, json.loads(arguments.scores.read_text())))
    setting = {"requests": len(requests.num_bytes), "scores": arguments.scores.name, "bytes": [MIN_BYTES, MAX_BYTES]}
    deviations = report_spread(requests, setting)
    simulate(requests, deviations, arguments.keys, arguments.seed, setting)


def docstrings() -> Iterator[str]:
    """The docstrings of the modules of the standard library, by file name."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def cut_requests(text: str, max_requests: int, draw: np.random.Generator) -> list[str]:
    """Cuts a text into requests of random sizes, as far as it suffices."""
    content = text.encode("ascii", errors="ignore")
    sizes = np.exp(draw.uniform(math.log(MIN_BYTES), math.log(MAX_BYTES), max_requests)).astype(int)
    ends = np.cumsum(sizes)
    return [content[end - size : end].decode() for size, end in zip(sizes, ends, strict=True) if end <= len(content)]


def measure(run: Path, requests: list[str]) -> Requests:
    """Lets a branch learn the requests with the default settings, and returns their scores."""
    branch_learner = learner.build(models.load(run), OnlineConfig())
    limits = BranchConfig(max_forgetting=ServerConfig().max_forgetting)
    with tempfile.TemporaryDirectory() as folder:
        branches = BranchManager(Store(Path(folder)), "reader", branch_learner, config=limits)
        for text in requests:
            branches.add_example(OWNER, OWNER, text)
        while branches.learn_next():
            pass
        scores, has_more = listing.list_scores(branches.store, f"reader/{OWNER}", PageRequest())
    assert not has_more
    parts = ([getattr(score, name) for score in scores] for name in ("num_bytes", "frozen_bits", "live_bits"))
    return Requests(*map(np.array, parts))


def report_spread(requests: Requests, setting: dict[str, Any]) -> np.ndarray:
    """Prints what the texts cost and saved; returns the deviations of the requests in bits per byte."""
    total = requests.num_bytes.sum()
    difference = (requests.frozen - requests.live) / requests.num_bytes
    print_record("frozen", requests.frozen.sum() / total, "bits per byte", setting)
    print_record("live", requests.live.sum() / total, "bits per byte", setting)
    measured = simulate_key(requests.num_bytes.astype(float), difference, np.zeros(len(difference)))
    first_alarm = measured.first_alarm if math.isfinite(measured.first_alarm) else None
    print_record("requests_measured", first_alarm, "requests until the interval of the texts excludes 0", setting)
    padded = np.pad(difference, WINDOW // 2, mode="reflect")
    deviations = difference - np.convolve(padded, np.ones(WINDOW) / WINDOW, "valid")
    deviations *= math.sqrt(WINDOW / (WINDOW - 1))
    deviations -= (deviations * requests.num_bytes).sum() / total
    print_record("deviation", float(deviations.std()), "bits per byte, standard deviation of a request", setting)
    for low, high in ((200, 450), (450, 950), (950, 2001)):
        part = deviations[(requests.num_bytes >= low) & (requests.num_bytes < high)]
        size = setting | {"bytes": [low, high]}
        print_record("deviation", float(part.std()), "bits per byte, standard deviation of a request", size)
    variance = 50 * float(np.mean((deviations * requests.num_bytes) ** 2))
    print_record(
        "variance", variance, "squared bits saved on fifty requests", setting, peer="used", peer_value=TYPICAL_VARIANCE
    )
    return deviations


def no_effect(draw: np.random.Generator, sizes: np.ndarray, amplitude: float) -> np.ndarray:
    """All conditional means are 0."""
    return np.zeros(len(sizes))


def wave(draw: np.random.Generator, sizes: np.ndarray, amplitude: float) -> np.ndarray:
    """A sine of random phase with a period of 80 requests."""
    return amplitude * np.sin(2 * np.pi * (np.arange(len(sizes)) / 80 + draw.uniform()))


def autoregression(draw: np.random.Generator, sizes: np.ndarray, amplitude: float) -> np.ndarray:
    """A stationary process with a correlation of 0.95 between neighbors."""
    means = np.empty(len(sizes))
    means[0] = draw.normal()
    for i in range(1, len(sizes)):
        means[i] = 0.95 * means[i - 1] + math.sqrt(1 - 0.95**2) * draw.normal()
    return amplitude * means


def constrain(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Lowers conditional means where their weighted average would exceed 0 otherwise."""
    total, constrained = 0.0, np.empty_like(means)
    for i, size in enumerate(sizes):
        constrained[i] = min(means[i], -total / size)
        total += size * constrained[i]
    return constrained


class SimulatedKey(NamedTuple):
    """What the intervals of one key showed.

    Attributes:
        first_alarm: The number of requests after which the lower end first exceeds 0, or infinity.
        is_covered: Whether every interval holds the weighted average of the conditional means.
    """

    first_alarm: float
    is_covered: bool


def simulate_key(
    sizes: np.ndarray, differences: np.ndarray, means: np.ndarray, *, stops_at_alarm: bool = False
) -> SimulatedKey:
    """Computes the interval after each request."""
    sums, first_alarm, is_covered = RunningSums(), math.inf, True
    averages = np.cumsum(sizes * means) / np.cumsum(sizes)
    for size, difference, average in zip(sizes.tolist(), differences.tolist(), averages.tolist(), strict=True):
        if stops_at_alarm and math.isfinite(first_alarm):
            break
        sums = sums.add(size, size * difference)
        interval = always_valid_interval(sums, TYPICAL_VARIANCE, level=LEVEL)
        if interval.low > 0 and math.isinf(first_alarm):
            first_alarm = sums.num_terms
        is_covered &= interval.low <= average <= interval.high
    return SimulatedKey(first_alarm, is_covered)


def simulate(requests: Requests, deviations: np.ndarray, num_keys: int, seed: int, setting: dict[str, Any]) -> None:
    """Prints the power, the rate of false alarms and the miscoverage."""
    draw = np.random.default_rng(seed)
    effect = SAVING * float(requests.frozen.sum() / requests.num_bytes.sum())
    amplitude = float(deviations.std())

    def run_keys(num_requests: int, make_means: Means, constrained: bool, shift: float = 0.0) -> list[SimulatedKey]:
        simulated: list[SimulatedKey] = []
        for _ in range(num_keys):
            chosen = draw.integers(len(deviations), size=num_requests)
            sizes = requests.num_bytes[chosen].astype(float)
            means = make_means(draw, sizes, amplitude)
            means = (constrain(means, sizes) if constrained else means) + shift
            simulated.append(simulate_key(sizes, means + deviations[chosen], means, stops_at_alarm=shift > 0))
        return simulated

    def report(name: str, count: int, aim: float, started_at: float, more: dict[str, Any]) -> None:
        interval = {"interval": clopper_pearson(count, num_keys)}
        seconds = round(time.perf_counter() - started_at, 1)
        print_record(
            name, count / num_keys, "share of keys", setting | more | interval | {"keys": num_keys},
            peer="aim", peer_value=aim, seconds=seconds,
        )  # fmt: skip

    started_at = time.perf_counter()
    alarms = np.array([key.first_alarm for key in run_keys(LONGEST, no_effect, False, effect)])
    more = {"saving": SAVING, "effect": effect, "simulated_requests": MAX_REQUESTS}
    report("power", int((alarms <= MAX_REQUESTS).sum()), 0.9, started_at, more)
    needed = float(np.quantile(alarms, 0.9, method="higher"))
    unit = "requests until 90 % of the keys have an alarm; null: more than were simulated"
    value = needed if math.isfinite(needed) else None
    print_record("requests_needed", value, unit, setting | more, peer="aim", peer_value=MAX_REQUESTS)
    for make_means in (no_effect, wave, autoregression):
        more = {"means": make_means.__name__, "simulated_requests": 4 * MAX_REQUESTS}
        started_at = time.perf_counter()
        without = run_keys(4 * MAX_REQUESTS, make_means, True)
        report("false_alarm", sum(math.isfinite(key.first_alarm) for key in without), 0.05, started_at, more)
        started_at = time.perf_counter()
        free = run_keys(4 * MAX_REQUESTS, make_means, False)
        report("miscoverage", sum(not key.is_covered for key in free), LEVEL, started_at, more)


if __name__ == "__main__":
    main()
