"""Continuous batching: requests join and leave tiles of rows while they run; one thread does all the model's work.

A tile is a few rows that share weights and one program. Each turn of the loop lets waiting requests into free rows,
reads chunks of prompts, and adds one token to every row that has been read. Nothing is compiled after `warm_up`.
Bits: see `programs`. Knows tokens and weights; nothing of text's transport, of keys and of learning.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import Cache, Config, Transformer
from ontogeny.errors import BadInput
from ontogeny.server import programs
from ontogeny.server.choices import Scored, Taste, choose, score
from ontogeny.server.programs import Shape

CHUNKS = 2  # that only go on with a prompt, read between two tokens of those that are under way
LAST_CHUNKS = 2  # that end a prompt; with more, those who came together end together, and come together again
PATIENCE = 5.0  # seconds after which one that waits for a tile is let in before all others


class Busy(Exception):
    """The queue is full; `seconds` is a guess at when it is not."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the queue is full")
        self.seconds = seconds


class Question(NamedTuple):
    """All that an answer depends on, and when to give up."""

    weights: Transformer
    prompt: tuple[int, ...]  # at least one token
    most: int  # tokens to generate
    taste: Taste
    end: int | None  # the token that ends an answer
    alternatives: int | None = None  # how many likely tokens to tell; None: no log-probabilities at all
    echo: bool = False  # log-probabilities of the prompt too
    deadline: float = float("inf")  # of time.monotonic


class Token(NamedTuple):
    """One more token of an answer."""

    token: int
    scored: Scored | None


class End(NamedTuple):
    """Why there are no more: stop (the end token, which is not part of the answer), length, time, cancelled, failed."""

    reason: str


Told = Callable[[Token | list[Scored] | End], bool | None]  # the prompt's scores first, tokens, one End; True: enough


class _Row:
    """A request on its way; belongs to the engine's thread."""

    def __init__(self, question: Question, told: Told, capacity: int) -> None:
        self.question, self.told = question, told
        self.since = time.monotonic()
        self.cancelled = False
        self.seen = list(question.prompt)
        self.made = 0
        self.length = 0  # tokens in the cache
        room = 0 if question.echo else min(question.most, capacity // 2)
        self.waiting = self.seen[-(capacity - room) :] if not question.echo else self.seen  # tokens to read in chunks
        self.scores: list[Scored] = []
        self.last: np.ndarray | None = None  # logits of what comes next

    def slide(self, capacity: int) -> None:
        """The row is full: it goes on from the second half of what it can hold, read anew."""
        self.waiting, self.length = self.seen[-(capacity // 2) :], 0


class _Tile:
    def __init__(self, cache: Cache, rows: int) -> None:
        self.cache = cache
        self.weights: Transformer | None = None
        self.rows: list[_Row | None] = [None] * rows

    @property
    def empty(self) -> bool:
        return not any(self.rows)


class Ticket:
    """What whoever asked holds; `cancel` lets go of the row."""

    def __init__(self, engine: "Engine", row: _Row) -> None:
        self._engine, self._row = engine, row

    def cancel(self) -> None:
        self._row.cancelled = True
        self._engine.wake()


class Engine:
    """A thread that answers questions to one model, whatever its weights."""

    def __init__(
        self, config: Config, *, rows: int = 64, queue: int = 256, shape: Shape | None = None, compute: Any = np.float32
    ) -> None:
        self.config = config
        self.shape = shape or programs.shape_for(config)
        self._most_tiles = max(1, rows // self.shape.rows)
        self._queue, self._compute = queue, compute
        self._tiles: list[_Tile] = []
        self._waiting: deque[_Row] = deque()
        self._lock = threading.Condition()
        self._stopping = False
        self.failed: BaseException | None = None
        self.tokens = 0  # generated so far
        self.turns = 0
        self._pace = 0.1  # seconds that a request takes, smoothed
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def most(self) -> int:
        """Tokens that one row can hold."""
        return self.shape.capacity

    def start(self, weights: Transformer) -> None:
        """Compiles everything, checks the machine, then begins to answer."""
        programs.check_rows(self.config, self.shape, weights)
        self._tiles.append(self._new_tile())
        self._thread.start()

    def ask(self, question: Question, told: Told) -> Ticket:
        """Queues a question; `told` is called on the engine's thread and must not wait. Raises `Busy`."""
        if not question.prompt:
            raise BadInput("a prompt needs at least one token")
        if question.echo and len(question.prompt) > self.most:
            raise BadInput(f"{len(question.prompt)} tokens to score are more than the model's context of {self.most}")
        row = _Row(question, told, self.most)
        with self._lock:
            if self._stopping or self.failed is not None:
                raise Busy(5.0)
            if len(self._waiting) >= self._queue:
                raise Busy(self._pace * len(self._waiting) / (self._most_tiles * self.shape.rows))
            self._waiting.append(row)
            self._lock.notify()
        return Ticket(self, row)

    def wake(self) -> None:
        with self._lock:
            self._lock.notify()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def under_way(self) -> int:
        return sum(row is not None for tile in self._tiles for row in tile.rows)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def _new_tile(self) -> _Tile:
        return _Tile(programs.empty_tile(self.config, self.shape, self._compute), self.shape.rows)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # the engine is the process's heart: what stops it is told to everybody
            self.failed = error
            raise
        finally:
            reason = "failed" if self.failed is not None else "cancelled"
            with self._lock:
                left = [*self._waiting, *(row for tile in self._tiles for row in tile.rows if row is not None)]
                self._waiting.clear()
            for row in left:
                _tell(row, End(reason))

    def _turn(self) -> bool:
        with self._lock:
            self._drop_waiting()
            while not (self._stopping or self._waiting or self.under_way):
                self._lock.wait()
                self._drop_waiting()
            if self._stopping:
                return False
            self._let_in()
        now = time.monotonic()
        for tile in self._tiles:
            for row in filter(None, tile.rows):
                if row.cancelled or row.question.deadline <= now:
                    self._leave(tile, row, "cancelled" if row.cancelled else "time")
        self._read_prompts()
        self._generate()
        self.turns += 1
        return True

    def _drop_waiting(self) -> None:
        now = time.monotonic()
        gone = [row for row in self._waiting if row.cancelled or row.question.deadline <= now]
        for row in gone:
            self._waiting.remove(row)
            _tell(row, End("cancelled" if row.cancelled else "time"))

    def _let_in(self) -> None:
        """First come, first served; one whose weights find no tile is passed by, but not for ever."""
        now = time.monotonic()
        for row in list(self._waiting):
            tile = self._tile_for(row.question.weights)
            if tile is None:
                if now - row.since > PATIENCE:
                    return
                continue
            tile.weights = row.question.weights
            tile.rows[tile.rows.index(None)] = row
            self._waiting.remove(row)

    def _tile_for(self, weights: Transformer) -> _Tile | None:
        for tile in self._tiles:
            if tile.weights is weights and not tile.empty and None in tile.rows:
                return tile
        for tile in self._tiles:
            if tile.empty:
                return tile
        if len(self._tiles) < self._most_tiles:
            self._tiles.append(self._new_tile())
            return self._tiles[-1]
        return None

    def _read_prompts(self) -> None:
        """One chunk of some rows, of those who came first.

        Some that end a prompt and some that only go on with a long one, so that neither waits for the other, and what
        is under way waits for neither.
        """
        unread = [
            (row.since, tile, at, row)
            for tile in self._tiles
            for at, row in enumerate(tile.rows)
            if row and row.waiting
        ]
        unread.sort(key=lambda found: found[0])
        K = self.shape.chunk
        ends = [found for found in unread if len(found[3].waiting) <= K][:LAST_CHUNKS]
        goes_on = [found for found in unread if len(found[3].waiting) > K][:CHUNKS]
        under_way = []
        for _, tile, at, row in (*ends, *goes_on):
            assert tile.weights is not None
            chunk, row.waiting = row.waiting[:K], row.waiting[K:]
            tokens = np.zeros(K, np.int32)
            tokens[: len(chunk)] = chunk
            scoring = row.question.echo and not row.made
            place = np.int32(at), np.int32(row.length)
            tile.cache, logits = programs.read(
                self.config, tile.weights, tile.cache, *place, tokens, np.int32(len(chunk)), scoring
            )
            row.length += len(chunk)
            under_way.append((tile, row, chunk, scoring, logits))
        for tile, row, chunk, scoring, logits in under_way:
            if scoring:
                self._score_prompt(row, chunk, np.asarray(logits))
            if not row.waiting:
                row.last = np.asarray(logits)[len(chunk) - 1] if scoring else np.asarray(logits)
                if scoring:
                    _tell(row, row.scores)
                self._choose(tile, row)

    def _score_prompt(self, row: _Row, chunk: Sequence[int], logits: np.ndarray) -> None:
        prompt, done = row.question.prompt, row.length
        if not row.scores:
            row.scores.append(Scored(prompt[0], None, ()))
        for i in range(len(chunk)):
            at = done - len(chunk) + i + 1  # of the token that these logits are about
            if at < len(prompt):
                row.scores.append(score(logits[i], prompt[at], row.question.alternatives or 0))

    def _generate(self) -> None:
        R, under_way = self.shape.rows, []
        for tile in self._tiles:
            ready = [row is not None and not row.waiting for row in tile.rows]
            for at, row in enumerate(tile.rows):
                if ready[at] and row is not None and row.length == self.most:
                    row.slide(self.most)
                    ready[at] = False
            if not any(ready):
                continue
            assert tile.weights is not None
            tokens, length = np.zeros(R, np.int32), np.zeros(R, np.int32)
            for at, row in enumerate(tile.rows):
                if row is not None:
                    tokens[at], length[at] = row.seen[-1], row.length
            tile.cache, logits = programs.go_on(
                self.config, tile.weights, tile.cache, length, tokens, np.asarray(ready, np.int32)
            )
            under_way.append((tile, ready, logits))
        for tile, ready, logits in under_way:
            found = np.asarray(logits)
            for at, row in enumerate(list(tile.rows)):
                if ready[at] and row is not None:
                    row.length += 1
                    row.last = found[at]
                    self._choose(tile, row)

    def _choose(self, tile: _Tile, row: _Row) -> None:
        """One more token from the logits at hand, or the end."""
        question = row.question
        if row.made >= question.most:
            return self._leave(tile, row, "length")
        assert row.last is not None
        token = choose(row.last, question.taste, row.made)
        scored = None if question.alternatives is None else score(row.last, token, question.alternatives)
        row.made += 1
        self.tokens += 1
        ends = token == question.end
        # One that is scored by clients who count on a token after the prompt gets it, the end token too.
        enough = None if ends and not question.echo else _tell(row, Token(token, scored))
        row.seen.append(token)
        if ends or enough:
            self._leave(tile, row, "stop")
        elif row.made >= question.most:
            self._leave(tile, row, "length")

    def _leave(self, tile: _Tile, row: _Row, reason: str) -> None:
        tile.rows[tile.rows.index(row)] = None
        self._pace += 0.1 * (time.monotonic() - row.since - self._pace)
        _tell(row, End(reason))


def _tell(row: _Row, what: Token | list[Scored] | End) -> bool | None:
    """Whoever asked may have gone, with the loop that it lived in: nothing of theirs may stop the others' engine."""
    try:
        return row.told(what)
    except RuntimeError:  # a closed event loop
        row.cancelled = True
    except Exception:
        logging.getLogger(__name__).exception("an answer could not be told")
        row.cancelled = True
    return None


def same_machine() -> dict[str, Any]:
    """What bits are promised on: the same question has the same bits where these are the same."""
    import jaxlib.version

    return {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__, "platform": jax.default_backend()}
