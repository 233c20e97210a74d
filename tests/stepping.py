"""Helpers of the tests of races: threads that stop at every look at the database, and a learner that costs nothing."""

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import trees
from ontogeny.content.transformer import Norm, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm.adapters import AdaptedWeights
from ontogeny.server.databases.base import QueryResult, Statement
from ontogeny.server.learning.acceptance import Pause, do_not_pause
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.learning.snapshots import delete_unused
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.snapshot_stores.base import STORE_ID
from ontogeny.server.snapshot_stores.folder import FolderSnapshots
from ontogeny.server.store import Store
from ontogeny.types import Weights

BLOCKED_AFTER = 0.05  # seconds without reaching a checkpoint after which a thread counts as waiting for another one
MAX_TEXT = 10_000  # tokens of an update chunk, so that each text is one
THREADS: dict[int, "SteppedThread"] = {}  # by thread id


class ThreadKilled(BaseException):
    """Ends a stepped thread that the test has abandoned."""


class SteppedThread:
    """A thread that stops at every checkpoint until the test lets it go on.

    Args:
        work: What the thread does.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self.result = work, Future[Any]()
        self._is_killed = self._is_running = False
        self._permits, self._stops = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._stops.acquire()

    def advance(self) -> bool:
        """Lets the thread go on to the next checkpoint, or until it waits for a lock; returns whether it has ended."""
        if not self.result.done():
            if not self._is_running:
                self._permits.release()
            self._is_running = not self._stops.acquire(timeout=BLOCKED_AFTER)
        return self.result.done()

    def stop_here(self) -> None:
        """A checkpoint; called on this thread."""
        self._stops.release()
        self._permits.acquire()
        if self._is_killed:
            raise ThreadKilled

    def kill(self) -> None:
        """Makes the thread end at its checkpoint, or at the next one; `join` waits for the end."""
        self._is_killed = True
        self._permits.release()

    def join(self) -> None:
        """Waits for the end of the thread."""
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        THREADS[threading.get_ident()] = self
        try:
            self.stop_here()
            self.result.set_result(self._work())
        except BaseException as error:
            self.result.set_exception(error)
        finally:
            del THREADS[threading.get_ident()]
            self._stops.release()


def checkpoint() -> None:
    """Stops if the current thread is a `SteppedThread`."""
    if (thread := THREADS.get(threading.get_ident())) is not None:
        thread.stop_here()


class SteppedStore(Store):
    """A store that has a checkpoint before every transaction, and before every statement outside of one."""

    @contextmanager
    def transaction(
        self, scope: str | None = None, statements: Sequence[Statement] = ()
    ) -> Iterator[list[QueryResult]]:
        checkpoint()
        with super().transaction(scope, statements) as results:
            yield results

    @contextmanager
    def read_transaction(self) -> Iterator[None]:
        checkpoint()
        with super().read_transaction():
            yield

    def execute(self, query: str, *parameters: Any) -> Any:
        if not self.database.in_transaction:
            checkpoint()
        return super().execute(query, *parameters)

    def write_snapshot(self, content: bytes) -> str:
        checkpoint()
        file = super().write_snapshot(content)
        checkpoint()
        return file


def list_snapshot_paths(store: Store) -> list[Path]:
    """The files in the folder of the snapshots; a shared one first loses what waits for its deletion."""
    if store.is_shared:
        delete_unused(store, min_age=0.0)
    assert isinstance(store.snapshots, FolderSnapshots)
    return [path for path in store.snapshots.folder.iterdir() if path.name != STORE_ID]


def snapshot_path(store: Store, version: BranchVersion) -> Path:
    """The file of a version in the folder of the snapshots."""
    return Path(store.snapshots.path_of(str(version.snapshot)))


def fake_learner(
    on_learn: Callable[[str], None] = lambda text: None, *, rejects_weights: bool = False
) -> BranchLearner:
    """A learner of seven numbers, which rejects texts that begin with "short" or "strange".

    Args:
        on_learn: Called with each text before it is learned.
        rejects_weights: Whether one in four weights does not pass the acceptance test.
    """
    embedding, scale = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones(1, np.float32)
    trained = TransformerWeights(embedding, None, (), Norm(scale, None), None)

    def init() -> Weights:
        return Weights(trained, np.int32(0))

    def encode(text: str) -> np.ndarray:
        if text.startswith("strange"):
            raise BadInput("the tokenizer cannot encode this text")
        return np.frombuffer(text.encode()[: 1 if text.startswith("short") else None], np.uint8)

    def learn(weights: Weights, tokens: np.ndarray, chunks: range, pause: Pause = do_not_pause) -> Weights:
        checkpoint()
        text = tokens.tobytes().decode()
        on_learn(text)
        draw = np.random.default_rng(zlib.crc32(text.encode()))
        step = np.asarray(weights.scratch + 1, np.int32)
        content = jax.tree.map(
            lambda leaf: np.asarray(np.asarray(leaf) * np.float32(0.5) + draw.normal(size=leaf.shape), np.float32),
            weights.content,
        )
        pause()
        checkpoint()
        return Weights(content, step)

    def held_out_loss(weights: TransformerWeights, pause: Pause = do_not_pause) -> float:
        checkpoint()
        is_trained = trees.digest(weights) == trees.digest(trained)
        is_rejected = (
            rejects_weights and not is_trained and zlib.crc32(np.asarray(weights.embedding).tobytes()) % 4 == 0
        )
        return 99.0 if is_rejected else 2.0

    def score(weights: TransformerWeights, tokens: np.ndarray, pause: Pause = do_not_pause) -> float:
        checkpoint()
        return float(len(tokens) + np.asarray(weights.embedding).sum())

    return BranchLearner(
        trained,
        init,
        lambda content: content,
        AdaptedWeights,
        encode,
        MAX_TEXT,
        learn,
        score,
        len,
        held_out_loss,
        2.0,
        "fake",
    )
