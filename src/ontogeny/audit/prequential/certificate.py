"""A certificate for online scores: is each score of a stream that of a first pass, from the tokens before it alone?

Prequential: each token is predicted, scored, and only then learned from (Dawid 1984, J R Stat Soc A 147:278). Any
predictor is tested as a black box, a function of tokens [T] that returns log-probabilities [T, V], row t the
distribution of token t given the tokens before it. Each pass is made by one that has seen nothing: a function without
required arguments is a factory and called first; by default each pass is a process of its own.

(a) causal: where token t changes, alone or with all after it, rows 0 ... t keep every bit. A leak at a share f of the
    positions slips through K of them with probability (1 - f)^K.
(b) normalised: each row sums to one.
(c) cut: the rows of a cut stream are those of the uncut one, bit for bit or up to rounding.
(d) first pass. `repeats`: two fresh passes over one stream agree bit for bit. `secret`: tokens drawn uniformly, met for
    the first time, cannot be foreseen: the product of p(token) V over them is a test martingale under any normalised
    first pass, so that a gain of log(1 / level) nats is reached with probability `level` at most (Ville 1939). Each
    secret comes `copies` times, so that who has been through the stream knows it well. `reported`: a number that was
    published for a stream is what a fresh first pass gives.

What a black box cannot show: a predictor that knows when it is tested, or was trained on the stream before.
"""

import importlib
import importlib.util
import inspect
import itertools
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from ontogeny import plugins
from ontogeny.audit.prequential.predictors.base import HONEST, Predictor
from ontogeny.errors import BadInput, require_at_least
from ontogeny.stats import clopper_pearson

LETTERS = {
    "causal": "(a)",
    "normalised": "(b)",
    "cut": "(c)",
    "repeats": "(d)",
    "secret": "(d)",
    "reported": "(d)",
}
NORMAL = 1e-4  # |log of a row's sum| that the rounding of 32-bit numbers explains
ROUNDING = 1e-4  # nats by which rows may differ where another length means another order of adding up
HEDGES = (0.0, 0.5, 0.9)  # shares of the uniform distribution mixed in: who is sometimes sure and wrong is tested too
SHORTEST = 16
Passes = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]  # streams -> rows, each from a fresh predictor


class Check(NamedTuple):
    name: str
    verdict: str  # "pass", "fail" or "undetermined"
    told: str
    measured: dict[str, float]


class Certificate(NamedTuple):
    checks: tuple[Check, ...]
    nats_per_token: float  # of the first pass over the stream
    tokens: int
    vocabulary: int
    passes: int

    @property
    def certified(self) -> bool:
        return all(check.verdict == "pass" for check in self.checks)


class Settings(NamedTuple):
    """How hard to look."""

    tokens: int = 256  # of a stream; more than a block by which the predictor learns
    positions: int = 24  # at which a token is changed
    cuts: int = 3
    secrets: int = 6  # streams of secrets
    copies: int = 4  # of the secret in each
    level: float = 0.001  # chance that an honest predictor is refused by its secrets
    rounding: float = ROUNDING


def audit(
    passes: Passes,
    *,
    settings: Settings | None = None,
    stream: np.ndarray | None = None,
    vocabulary: int | None = None,
    reported: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Certificate:
    """Tests one predictor. `stream` [T] in place of a drawn one; `reported`: nats per token of it, as it was printed.

    Raises `BadInput` for rows that are no log-probabilities [T, V], and for settings that test nothing.
    """
    if settings is None:
        settings = Settings()
    require_at_least(1, positions=settings.positions, cuts=settings.cuts, secrets=settings.secrets)
    require_at_least(2, copies=settings.copies)
    require_at_least(SHORTEST, tokens=settings.tokens)
    if reported is not None and stream is None:
        raise BadInput("a reported score belongs to a stream: give the stream as well")
    random = np.random.default_rng(seed)
    if stream is None:
        V = vocabulary or _vocabulary(passes)
        stream = _drawn(random, settings.tokens, V)
    elif len(stream) < SHORTEST:
        raise BadInput(f"a stream to be tested needs at least {SHORTEST} tokens, not {len(stream)}")
    T = len(stream)
    rows = next(passes([stream]))
    V = vocabulary or rows.shape[1]
    if rows.shape[1] < 2 or stream.max() >= rows.shape[1]:
        raise BadInput(f"the predictor knows {rows.shape[1]} tokens, too few for a stream with token {stream.max()}")
    positions, changed = _changes(random, stream, V, settings.positions)
    lengths = sorted({int(c) for c in random.integers(max(2, T // 8), T - 1, settings.cuts - 1)} | {T // 2})
    length = max(settings.tokens // settings.copies, 4)
    secrets = [random.integers(0, V, length).astype(np.int32) for _ in range(settings.secrets)]
    total = 2 + len(changed) + len(lengths) + len(secrets)
    done, worst_sum = 1, _sums(rows)

    def each(streams: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
        nonlocal done, worst_sum
        for found in passes(streams):
            done += 1
            worst_sum = max(worst_sum, _sums(found), key=abs)
            if on_progress is not None:
                on_progress(done, total, name)
            yield found

    repeats = _repeats(rows, next(each([stream], "repeats")), stream)
    causal = _causal(rows, zip(positions, each(changed, "causal"), strict=True))
    cut = _cut(rows, zip(lengths, each([stream[:c] for c in lengths], "cut"), strict=True), settings.rounding)
    secret = _secret(secrets, each([np.tile(s, settings.copies) for s in secrets], "secret"), settings.level)
    if repeats.verdict == "fail":
        unsure = "two passes over the same stream differ already"
        causal, cut = (
            causal._replace(verdict="undetermined", told=unsure),
            cut._replace(verdict="undetermined", told=unsure),
        )
    scored = -float(rows[np.arange(T), stream].astype(np.float64).mean())
    checks = [causal, _normalised(worst_sum), cut, repeats, secret]
    if reported is not None:
        checks.append(_reported(scored, reported, settings.rounding))
    return Certificate(tuple(checks), scored, T, int(rows.shape[1]), done)


def _causal(rows: np.ndarray, passes: Iterable[tuple[int, np.ndarray]]) -> Check:
    count = leaks = 0
    largest, told = 0.0, ""
    for t, found in passes:
        count += 1
        moved = np.nonzero((found[: t + 1] != rows[: t + 1]).any(axis=1))[0]
        if len(moved):
            leaks += 1
            size = _apart(found[: t + 1], rows[: t + 1])
            if size >= largest:
                largest = size
                told = f"a change of token {t} changes what was said of token {moved[0]}, by up to {size:.2g} nats"
    low, high = clopper_pearson(leaks, count)
    measured = {"positions": count, "leaking": leaks, "low": low, "high": high, "largest": largest}
    if leaks:
        return Check("causal", "fail", f"{told} ({leaks} of {count} positions)", measured)
    told = f"at {count} positions no bit before the change moved; a leak at more than {high:.0%} of them would show"
    return Check("causal", "pass", told, measured)


def _normalised(worst: float) -> Check:
    measured = {"largest log sum": worst}
    if abs(worst) <= NORMAL:
        return Check("normalised", "pass", f"every row sums to one, within {abs(worst):.1g}", measured)
    why = "scores better than they are" if worst > 0 else "lost probability"
    return Check("normalised", "fail", f"a row sums to e^{worst:+.2g}: {why}", measured)


def _cut(rows: np.ndarray, passes: Iterable[tuple[int, np.ndarray]], rounding: float) -> Check:
    largest, where, count = 0.0, 0, 0
    for length, found in passes:
        count += 1
        apart = _apart(found, rows[:length])
        if apart >= largest:
            largest, where = apart, length
    measured = {"cuts": count, "largest": largest}
    if largest > rounding:
        return Check("cut", "fail", f"cut after {where} tokens, scores before differ by {largest:.2g} nats", measured)
    how = "bit for bit" if largest == 0 else f"up to rounding, {largest:.1g} nats"
    return Check("cut", "pass", f"{count} cut streams have the scores of the uncut one, {how}", measured)


def _repeats(rows: np.ndarray, again: np.ndarray, stream: np.ndarray) -> Check:
    at = np.arange(len(stream)), stream
    with np.errstate(invalid="ignore"):
        gain = float(np.nan_to_num(again[at].astype(np.float64) - rows[at]).mean())
    measured = {"largest": _apart(again, rows), "gain": gain}
    if (again == rows).all():
        return Check("repeats", "pass", "a second fresh pass gives the same bits", measured)
    why = "it keeps what it saw" if gain > 0.01 else "what was reported cannot be checked; fix what is drawn by chance"
    told = f"a second fresh pass differs, by {gain:+.2g} nats per token in its favour: {why}"
    return Check("repeats", "fail", told, measured)


def _secret(secrets: Sequence[np.ndarray], passes: Iterable[np.ndarray], level: float) -> Check:
    gains = []
    for secret, found in zip(secrets, passes, strict=True):
        first = found[: len(secret)].astype(np.float64)
        sums = np.asarray(logsumexp(first, axis=1))
        told = first[np.arange(len(secret)), secret] - sums  # that a row sums to more is told by (b)
        gains.append(told + math.log(first.shape[1]))
    gain = np.concatenate(gains)  # [N] over the uniform distribution, nats
    with np.errstate(divide="ignore"):
        wealth = [np.cumsum(np.log((1 - hedge) * np.exp(gain) + hedge)) for hedge in HEDGES]
    evidence = float(np.max(np.asarray(logsumexp(np.stack(wealth), axis=0)))) - math.log(len(HEDGES))
    allowed = -math.log(level)
    shown = float(np.mean(gain))
    measured = {"tokens": len(gain), "gain": shown, "evidence": evidence, "allowed": allowed}
    told = f"{len(gain)} random tokens at first sight: gain {shown:+.2g} nats each, "
    told += f"evidence {evidence:.1f} of {allowed:.1f}"
    if evidence >= allowed:
        return Check("secret", "fail", f"it foresees what cannot be foreseen. {told}", measured)
    return Check("secret", "pass", told, measured)


def _reported(scored: float, text: str, rounding: float) -> Check:
    try:
        value = plugins.finite_float(float(text), "the reported score")
    except ValueError as error:
        raise BadInput(f"the reported score '{text}' is no number") from error
    mantissa = text.lower().partition("e")[0]
    last = 0.5 * 10.0 ** -len(mantissa.partition(".")[2]) if "e" not in text.lower() else 0.0
    measured = {"reported": value, "first pass": scored}
    apart = f"reported {text} nats per token, a fresh first pass has {scored:.6g}"
    if abs(value - scored) <= max(rounding, last):
        return Check("reported", "pass", apart, measured)
    return Check("reported", "fail", f"{apart}: {'better' if value < scored else 'not what'} a first pass is", measured)


def _changes(random: np.random.Generator, stream: np.ndarray, V: int, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Positions, one in each equal part and the ends among them, and streams that differ from there on: in one token
    alone and in all that follow, in turn."""
    T = len(stream)
    edges = np.linspace(0, T, count + 1).astype(int)
    inner = {int(random.integers(a, max(a + 1, b))) for a, b in itertools.pairwise(edges)}
    positions = sorted({0, T - 1} | set(random.permutation(sorted(inner))[: max(count - 2, 0)].tolist()))
    changed = []
    for i, t in enumerate(positions):
        end = T if i % 2 else t + 1
        other = stream.copy()
        other[t:end] = (stream[t:end] + random.integers(1, V, end - t)) % V
        changed.append(other)
    return positions, changed


def _drawn(random: np.random.Generator, T: int, V: int) -> np.ndarray:
    """A stream in which there is something to learn: a motif that comes again and again, one token in ten by chance."""
    motif = random.integers(0, V, 16)
    noise = random.random(T) < 0.1
    return np.where(noise, random.integers(0, V, T), np.resize(motif, T)).astype(np.int32)


def _vocabulary(passes: Passes) -> int:
    return next(passes([np.zeros(2, np.int32)])).shape[1]


def _sums(rows: np.ndarray) -> float:
    """The log of the row sum that is farthest from one."""
    sums = np.asarray(logsumexp(rows.astype(np.float64), axis=1))
    return float(sums[np.abs(sums).argmax()])


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference in nats; infinite where one calls impossible what the other does not."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float64) - other)
    return float(np.where(one == other, 0.0, apart).max())


# Where predictors come from. An adapter takes the name that a person gave and returns what makes a new predictor, or
# None where the name is none of its own; the first that knows the name is taken.


def _organism(name: str) -> Callable[[], Predictor] | None:
    """`predictor:NAME[:setting=value,...]`, whose truth is known."""
    kind, _, room = name.partition(":")
    if kind != "predictor":
        return None
    room, given = plugins.parse(room)
    return lambda: plugins.build("predictors", room, **given)


def _function(name: str) -> Callable[[], Any] | None:
    """`module:function` or `file.py:function`; what takes no argument is a factory (a class may be one)."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not place:
        return None
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise BadInput(f"there is no file '{place}'")
        spec = importlib.util.spec_from_file_location("ontogeny_outside_predictor", Path(place).resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with plugins.explain_plugin_errors([place], f"the file '{place}' cannot be loaded"):
            spec.loader.exec_module(module)
    else:
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise BadInput(f"the module '{place}' cannot be imported: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise BadInput(f"'{place}' has no function '{attribute}'")
    return found if _is_factory(found) else lambda: found


ADAPTERS: list[Callable[[str], Callable[[], Predictor] | None]] = [_organism, _function]


def made(name: str) -> Predictor:
    """A new predictor by name; `BadInput` where no adapter knows it."""
    for adapter in ADAPTERS:
        make = adapter(name)
        if make is not None:
            return make()
    raise BadInput(f"'{name}' names no predictor: give module:function, file.py:function or predictor:NAME")


def _is_factory(found: Callable) -> bool:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return not needed and not any(p.kind is p.VAR_POSITIONAL for p in parameters)


def one_pass(name: str, tokens: np.ndarray, make: Callable[[], Predictor] | None = None) -> np.ndarray:
    """The rows [T, V] that a new predictor gives for a stream; made by `make`, or found by its name."""
    place = name.rpartition(":")[0]
    with plugins.explain_plugin_errors([place] if place.endswith(".py") else [], f"the predictor '{name}' failed"):
        return checked_rows((made(name) if make is None else make())(tokens.copy()), len(tokens))


def by_new(make: Callable[[], Predictor]) -> Passes:
    """Every pass by a new instance in this process: quick, and blind to what a module or a cache keeps."""

    def passes(streams: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for tokens in streams:
            yield checked_rows(make()(tokens.copy()), len(tokens))

    return passes


def checked_rows(found: Any, T: int) -> np.ndarray:
    rows = np.asarray(found)
    if rows.ndim != 2 or rows.shape[0] != T:
        raise BadInput(f"a predictor must return [T, V] = [{T}, V] log-probabilities, not {list(rows.shape)}")
    if not np.issubdtype(rows.dtype, np.floating) and rows.dtype.name != "bfloat16":
        raise BadInput(f"log-probabilities are real numbers, not {rows.dtype}")
    if np.isnan(rows.astype(np.float64)).any():
        raise BadInput("a predictor returned NaN where a log-probability was asked for")
    return rows


def in_instances(name: str, make: Callable[[], Predictor] | None = None) -> Passes:
    """`by_new` for a predictor by its name."""

    def passes(streams: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for tokens in streams:
            yield one_pass(name, tokens, make)

    return passes


def in_processes(name: str, make: Callable[[], Predictor] | None = None) -> Passes:
    """Every pass in a new process, which nothing but the disk connects with the others; `make` goes there by pickle."""

    def passes(streams: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            for tokens in streams:
                try:
                    yield pool.submit(one_pass, name, tokens, make).result()
                except BrokenProcessPool:
                    raise BadInput(f"the process of the predictor '{name}' ended before its pass did") from None

    return passes


class Row(NamedTuple):
    """One predictor whose truth is known, in many audits."""

    predictor: str
    honest: bool
    audits: int
    certified: int
    said: dict[str, dict[str, int]]  # by check and verdict
    truth: dict[str, str]


def calibrate(audits: int, *, seed: int = 0, on_progress: Callable[[int, int, str], None] | None = None) -> list[Row]:
    """How often the certificate is right about every registered predictor, each pass by a new instance."""
    rows = []
    names = plugins.list_names("predictors")
    for number, name in enumerate(names):
        truth, make = (plugins.get_attribute("predictors", name, key) for key in ("TRUTH", "build"))
        certified, said = 0, {check: {"pass": 0, "fail": 0, "undetermined": 0} for check in HONEST}
        for i in range(audits):
            found = audit(by_new(make), seed=seed + i)
            certified += found.certified
            for check in found.checks:
                said[check.name][check.verdict] += 1
            if on_progress is not None:
                on_progress(number * audits + i + 1, len(names) * audits, name)
        rows.append(Row(name, truth == HONEST, audits, certified, said, truth))
    return rows


def failures(rows: Sequence[Row], most_false: float = 0.01, least_power: float = 0.95) -> list[str]:
    """Where the certificate is wrong more often than it may be, in all or in one check."""
    found = []
    for row in rows:
        share = row.certified / row.audits
        if row.honest and share < 1 - most_false:
            found.append(f"the honest {row.predictor} is refused in {1 - share:.1%} of audits")
        if not row.honest and share > 1 - least_power:
            found.append(f"the guilty {row.predictor} is certified in {share:.1%} of audits")
        for check, verdict in row.truth.items():
            right = row.said[check][verdict] / row.audits
            if right < (1 - most_false if verdict == "pass" else least_power):
                found.append(f"{check} says {verdict} of {row.predictor} in {right:.1%} of audits alone")
    return found
