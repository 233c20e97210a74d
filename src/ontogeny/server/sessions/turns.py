"""The order of the calls of each session: one after another, as they arrive."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from weakref import WeakValueDictionary

from ontogeny.engine.engine import QueueFull
from ontogeny.server.fair_executor import RETRY_AFTER


class SessionTurns:
    """Lets the calls of one session run one after another. All calls belong to one event loop.

    Args:
        max_calls: Calls of one key that may wait or run, here and elsewhere (`count_elsewhere`).

    Attributes:
        count_elsewhere: Returns how many calls of a key wait or run in other processes, without blocking.
    """

    def __init__(self, max_calls: float) -> None:
        self._max_calls = max_calls
        self._num_calls: Counter[str] = Counter()
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.count_elsewhere: Callable[[str], int] = lambda key: 0

    def count_waiting(self) -> dict[str, int]:
        """Returns how many calls of each key wait or run; may be called on any thread."""
        return dict(self._num_calls)

    @contextlib.asynccontextmanager
    async def take(self, key: str, id: str) -> AsyncIterator[None]:
        """Waits until the earlier calls of a session have ended; the turn lasts until the context is left.

        Args:
            key: The id of the key that calls.
            id: The session.

        Raises:
            QueueFull: `max_calls` calls of this key wait or run.
        """
        if self._num_calls[key] + self.count_elsewhere(key) >= self._max_calls:
            raise QueueFull(RETRY_AFTER)
        self._num_calls[key] += 1
        try:
            lock = self._locks.get((key, id)) or self._locks.setdefault((key, id), asyncio.Lock())
            async with lock:
                yield
        finally:
            self._num_calls[key] -= 1
            if not self._num_calls[key]:
                del self._num_calls[key]
