"""Lines of learning that survive: one thread applies what was journalled, in order, behind a gate.

What is contributed is on the disk before it is acknowledged. An update is a function of a version's weights and one
contribution; it goes live in one commit, together with the position in the journal, so that nothing is lost and
nothing is applied twice. Snapshots are written first and named in the database afterwards; versions in between are
learned again from there, to the same bits, which their digests prove.
The gate: weights go live only if the held-out text costs no more than `bound` nats per token above what the trained
weights pay. What it refuses is recorded with the reason, and its weights and moments are dropped.
"""

import json
import logging
import math
import threading
import time
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.runs.files import write_bytes
from ontogeny.server.learning import journal
from ontogeny.server.learning.journal import Branch, BranchVersion
from ontogeny.server.learning.learner import Learner
from ontogeny.server.store import Store
from ontogeny.types import Weights

BOUND = 0.05  # nats per token
LOOK = 0.05  # seconds between two looks at the journal
FORMAT = "1"
log = logging.getLogger(__name__)


class LiveVersion(NamedTuple):
    """A version in memory. Equal versions of a line are the same object as long as they are held."""

    version: BranchVersion
    weights: Weights  # what was learned: all weights, or an adapter
    whole: TransformerWeights  # the weights that answer


class Settings(NamedTuple):
    bound: float = BOUND
    every: int = 16  # accepted contributions between two snapshots of a line
    kept: int = 4  # snapshots of a line that are kept
    held: int = 8  # lines in memory
    share: float = 1.0  # of the time that the learner works; it rests for the others


class BranchManager:
    """All lines of one deployment."""

    def __init__(
        self,
        store: Store,
        deployment: str,
        learner: Learner,
        *,
        shared: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.store, self.deployment, self.learner = store, deployment, learner
        self.shared, self.settings = shared, settings or Settings()
        self.base = trees.digest(learner.origin)
        self._length = math.sqrt(_squares(learner.origin, jax.tree.map(np.zeros_like, learner.origin)))
        self._held: OrderedDict[tuple[str, int], LiveVersion] = OrderedDict()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"learner of {deployment}", daemon=True)
        self.busy = False  # set from outside: others wait for answers, so the learner keeps to its share
        self.failed: BaseException | None = None
        self._since = time.monotonic()  # when the learner's piece of work began
        self.open(journal.SHARED)

    def open(self, owner: str) -> Branch:
        """The line that an owner's requests are answered from and contribute to."""
        owner = journal.SHARED if self.shared else owner
        return journal.open_line(
            self.store, self.deployment, owner, self.base, self.learner.digest, self.learner.trained
        )

    def start(self) -> None:
        """Compiles what learning needs, rebuilds what a crash took, then learns on."""
        self.learner.learn(self.learner.birth(), "warm", lambda: None)
        for line in journal.lines(self.store, self.deployment)[-self.settings.held :]:
            self.live(line)
        self._thread.start()

    def stop(self) -> None:
        """Lets the update at hand come to its end and snapshots what is live."""
        self._stopping.set()
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()
        for live in list(self._held.values()):
            line = journal.line(self.store, live.version.line)
            if live.version.number == line.head and live.version.snapshot is None and live.version.parent is not None:
                self._snapshot(live)

    def current(self, owner: str) -> LiveVersion:
        """What answers an owner's request now."""
        return self.live(self.open(owner))

    def contribute(self, owner: str, key: str, text: str) -> int | None:
        """Journals a contribution; its number once it is on the disk. None while the line is frozen."""
        number = journal.contribute(self.store, self.open(owner).line, key, text)
        self._work.set()
        return number

    def erase(self, number: int, who: str) -> None:
        """Deletes a contribution and all that was learned from it; see `journal.erase`."""
        journal.erase(self.store, number, who)
        with self._lock:
            for key, live in list(self._held.items()):
                if live.version.number and journal.version(self.store, *key).gone:
                    del self._held[key]
        self._work.set()

    def wait(self, seconds: float = 60.0) -> None:
        """Returns when nothing is left to be learned; for tests and commands."""
        until = time.monotonic() + seconds
        while any(not n.frozen and journal.pending(self.store, n) for n in journal.lines(self.store, self.deployment)):
            if self.failed is not None:
                raise self.failed
            if time.monotonic() > until:
                raise TimeoutError(f"'{self.deployment}' was not done with learning in {seconds} seconds")
            time.sleep(0.01)

    def live(self, line: Branch) -> LiveVersion:
        """A line's head in memory: held, from its snapshot, or learned again from the nearest one."""
        with self._lock:
            found = self._held.get((line.line, line.head))
            if found is None:
                found = self._rebuild(line)
                self._hold(found)
            self._held.move_to_end((line.line, line.head))
            return found

    def export(self, owner: str) -> bytes:
        """The owner's line as safetensors: weights, scratch, and which version they are."""
        return self._encoded(self.current(owner))

    def restore(self, owner: str, data: bytes, who: str) -> BranchVersion:
        """Makes what `export` gave the owner's version, if it belongs to these trained weights and passes the gate."""
        about = read_about(data)
        if "base" not in about:
            raise BadInput("this is no state of a line")
        if about["base"] != self.base:
            raise BadInput(f"this state belongs to weights {str(about.get('base'))[:16]}, here are {self.base[:16]}")
        if about.get("learner") != self.learner.digest:
            raise BadInput("this state was learned with other settings, texts or versions")
        weights = _decoded(data, self.learner.birth())
        if about.get("digest") != trees.digest(weights):
            raise BadInput("this state is damaged: its digest is not the one that it names")
        whole = self.learner.model(weights.content)
        held_out = self.learner.held_out(whole, lambda: None)
        if (reason := self._refusal(held_out)) is not None:
            raise BadInput(f"this state does not pass the gate: {reason}")
        digest, distance = about["digest"], self._distance(whole)
        line = self.open(owner)
        file = self._file(line.line, digest)
        write_bytes(self.store.snapshots / file, data)
        try:
            made = journal.restored(self.store, line, digest, held_out, distance, file, who)
            if made is None:
                raise BadInput("the line was moved meanwhile; try again")
        finally:
            journal.drop_unnamed(self.store, [file])  # what was refused leaves nothing behind
        return made

    def fork(self, owner: str, to: str, who: str) -> BranchVersion:
        """Another owner's line goes on from where this one's is."""
        return self.restore(to, self.export(owner), who)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if not self.advance():
                    self._work.wait(LOOK * 10)
                    self._work.clear()
        except BaseException as error:
            self.failed = error
            raise

    def advance(self) -> bool:
        """One contribution of every line that has any; whether there was one."""
        worked = False
        for line in journal.lines(self.store, self.deployment):
            if self._stopping.is_set():
                return True
            if not line.frozen and (found := journal.next_contribution(self.store, line)) is not None:
                self._since = time.monotonic()
                self._learn(line, found.number, found.text or "")
                self._between()
                worked = True
        return worked

    def _between(self) -> None:
        """Rests after a piece of work, while others wait for answers, so that it takes no more than its share."""
        if self.busy and self.settings.share < 1:
            self._stopping.wait((time.monotonic() - self._since) * (1 / self.settings.share - 1))
        self._since = time.monotonic()

    def _learn(self, line: Branch, number: int, text: str) -> None:
        before = self.live(line)
        try:
            after = self.learner.learn(before.weights, text, self._between)
        except BadInput as error:  # what the tokenizer cannot express
            journal.refused(self.store, line, number, None, str(error))
            return
        if after is before.weights:
            journal.refused(self.store, line, number, before.version.held_out, "nothing was there to learn from")
            return
        whole = self.learner.model(after.content)
        held_out = self.learner.held_out(whole, self._between)
        if (reason := self._refusal(held_out)) is not None:
            journal.refused(self.store, line, number, held_out if math.isfinite(held_out) else None, reason)
            return
        digest = trees.digest(after)
        self._between()
        distance = self._distance(whole)
        reason = f"{held_out - self.learner.trained:+.4f} nats on held-out text, bound {self.settings.bound}"
        made = journal.learned(self.store, line, number, digest, held_out, distance, reason)
        if made is None:
            return  # somebody moved the head; the contribution is still undecided, or no longer there
        with self._lock:
            self._held.pop((line.line, line.head), None)
            live = LiveVersion(made, after, whole)
            self._hold(live)
            if made.number % self.settings.every == 0:
                self._snapshot(live)

    def _refusal(self, held_out: float) -> str | None:
        worse = held_out - self.learner.trained
        if not math.isfinite(held_out):
            return "the weights are not finite"
        if worse > self.settings.bound:
            return f"held-out text would cost {worse:.4f} nats per token more, the bound is {self.settings.bound}"
        return None

    def _rebuild(self, line: Branch) -> LiveVersion:
        first, *rest = journal.chain(self.store, line.line, line.head)
        weights = self.learner.birth() if first.snapshot is None else self._load(first)
        for version in rest:
            assert version.contribution is not None
            found = journal.contribution(self.store, version.contribution)
            assert found is not None and found.text is not None
            weights = self.learner.learn(weights, found.text, lambda: None)
        last = rest[-1] if rest else first
        if last.parent is not None and trees.digest(weights) != last.digest:
            raise ContractViolation(
                f"version {last.number} of '{line.line}' was learned again to other bits than {last.digest[:16]}"
            )
        as_trained = last.parent is None and last.snapshot is None
        return LiveVersion(last, weights, self.learner.origin if as_trained else self.learner.model(weights.content))

    def _hold(self, live: LiveVersion) -> None:
        """Keeps a version in memory; the one used longest ago goes, with a snapshot if it is a head."""
        self._held[live.version.line, live.version.number] = live
        while len(self._held) > self.settings.held:
            _, old = self._held.popitem(last=False)
            head = journal.line(self.store, old.version.line).head
            if old.version.number == head and old.version.snapshot is None and old.version.parent is not None:
                self._snapshot(old)

    def _snapshot(self, live: LiveVersion) -> None:
        """On the disk before the database says so; then those that are too many are dropped, oldest first."""
        version = live.version
        file = self._file(version.line, version.digest)
        write_bytes(self.store.snapshots / file, self._encoded(live))
        journal.snapshot(self.store, version.line, version.number, file)
        if (version.line, version.number) in self._held:
            self._held[version.line, version.number] = live._replace(version=version._replace(snapshot=file))
        kept = [v for v in journal.versions(self.store, version.line) if v.snapshot is not None]
        head = journal.line(self.store, version.line).head
        for old in kept[: -self.settings.kept]:
            if old.number != head and old.parent is not None:
                journal.snapshot(self.store, old.line, old.number, None)
                journal.drop_unnamed(self.store, [str(old.snapshot)])

    def _load(self, version: BranchVersion) -> Weights:
        path = self.store.snapshots / str(version.snapshot)
        try:
            weights = _decoded(path.read_bytes(), self.learner.birth())
        except (OSError, BadInput) as error:
            raise BadInput(f"the snapshot '{path}' cannot be used: {error}") from None
        if trees.digest(weights) != version.digest:
            raise BadInput(f"the snapshot '{path}' is damaged: it does not hold version {version.number}")
        return weights

    def _encoded(self, live: LiveVersion) -> bytes:
        about = {
            "format": FORMAT,
            "deployment": self.deployment,
            "base": self.base,
            "learner": self.learner.digest,
            "version": str(live.version.number),
            "digest": live.version.digest if live.version.parent is not None else trees.digest(live.weights),
        }
        arrays = {k: np.require(a, requirements="C") for k, a in trees.to_arrays(live.weights).items()}
        return encode(arrays, metadata=about)

    def _file(self, line: str, digest: str) -> str:
        return f"{line.replace('/', '-')}-{digest[:16]}.safetensors"

    def _distance(self, whole: TransformerWeights) -> float:
        return math.sqrt(_squares(whole, self.learner.origin)) / self._length


def read_about(data: bytes) -> dict[str, Any]:
    """What a safetensors file says of itself."""
    try:
        size = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        return found if isinstance(found, dict) else {}
    except (ValueError, AttributeError, RecursionError):
        raise BadInput("this is no state: it is not in the form of safetensors") from None


def _decoded(data: bytes, template: Weights) -> Weights:
    if read_about(data).get("format") != FORMAT:
        raise BadInput("this is no state of a line")
    try:
        return trees.from_arrays(template, decode(data))
    except SafetensorError as error:
        raise BadInput(f"this state is damaged: {error}") from None


def _squares(one: TransformerWeights, other: TransformerWeights) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(float(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).sum()) for a, b in pairs)
