"""Finding the keys of requests in the database, and answering without it for a time while it cannot be reached.

Every request has its key read after it has arrived, so that a revoked key has no access from the next request on. One
thread reads the keys of all requests that wait, in one statement, so that a slow database delays a request by two
answers at most, however many requests there are.

A database that several processes share lies behind a network. There, a key that was read as valid less than
`FRESH_TIME` ago is accepted if its new reading takes longer than `SHORT_WAIT`; and a key that was read as valid within
the grace time is accepted if the database fails or does not answer within `LONG_WAIT`. A key that was revoked anywhere
is therefore refused everywhere after `FRESH_TIME`, unless the database does not answer.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ontogeny.errors import StorageUnavailable
from ontogeny.server import keys
from ontogeny.server.keys import LOCAL, ApiKey
from ontogeny.server.processes.membership import CLOCK
from ontogeny.server.store import Store

FRESH_TIME = 1.0  # seconds
SHORT_WAIT = 0.1  # seconds
LONG_WAIT = 1.0  # seconds
MAX_READING_TIME = 5.0  # seconds, unless the database counts as unreachable before
MAX_BATCH = 100  # keys that one statement reads


class ConfirmedKey(NamedTuple):
    """A key that the database contained and that was not revoked at a time of `CLOCK`."""

    key: ApiKey
    confirmed_at: float


class KeyLookup:
    """The keys of a server's requests.

    Args:
        store: The database.
        grace_time: Seconds for which a key is accepted after its last reading while a shared database does not answer.
    """

    def __init__(self, store: Store, grace_time: float) -> None:
        self._store, self._grace_time = store, grace_time
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[ApiKey | StorageUnavailable | None]] = {}  # by text, while none reads them
        self._confirmed: OrderedDict[bytes, ConfirmedKey] = OrderedDict()  # by hash, from the oldest on
        self._thread = ThreadPoolExecutor(1, "authentication")

    async def find(self, text: str) -> ApiKey | None:
        """Returns the valid key of this text, or None; the local key as long as no key exists.

        Args:
            text: The text of a key, or an empty text.

        Raises:
            StorageUnavailable: The database cannot be read, and this process has not read the key recently.
        """
        reading = asyncio.wrap_future(self._submit(text))
        if not self._store.database.is_shared:
            return _read_answer(await reading)
        begun_at = time.monotonic()
        if self._find_confirmed(text, FRESH_TIME - SHORT_WAIT) is not None:
            await asyncio.wait((reading,), timeout=SHORT_WAIT)
            if not reading.done() and (key := self._find_confirmed(text, FRESH_TIME)) is not None:
                return key
        if self._find_confirmed(text, self._grace_time) is None:
            return _read_answer(await reading)
        await asyncio.wait((reading,), timeout=max(0.0, begun_at + LONG_WAIT - time.monotonic()))
        answer = reading.result() if reading.done() else StorageUnavailable("the database has not answered in time")
        if isinstance(answer, StorageUnavailable) and (key := self._find_confirmed(text, self._grace_time)) is not None:
            return key
        return _read_answer(answer)

    def _submit(self, text: str) -> Future[ApiKey | StorageUnavailable | None]:
        """Requests that a key is read from now on, together with those that wait already."""
        with self._lock:
            if (reading := self._waiting.get(text)) is None:
                reading = self._waiting[text] = Future()
                reading.set_running_or_notify_cancel()  # so that no request cancels it for others
                self._thread.submit(self._read_waiting)
        return reading

    def _read_waiting(self) -> None:
        """Reads the keys that wait; does nothing if an earlier call has read them."""
        with self._lock:
            texts = list(self._waiting)[:MAX_BATCH]
            readings = {text: self._waiting.pop(text) for text in texts}
        if not texts:
            return
        begun_at = time.clock_gettime(CLOCK)
        try:
            with self._store.database.reserved_connection(MAX_READING_TIME):
                has_keys, valid = keys.find_valid(self._store, texts)
        except StorageUnavailable as error:
            for reading in readings.values():
                reading.set_result(error)
            return
        except BaseException as error:
            for reading in readings.values():
                reading.set_exception(error)
            return
        answers = {text: valid.get(text) if has_keys else LOCAL for text in texts}
        if self._store.database.is_shared:
            self._note(answers, begun_at)
        for text, reading in readings.items():
            reading.set_result(answers[text])

    def _note(self, answers: dict[str, ApiKey | None], begun_at: float) -> None:
        """Remembers the valid keys, and forgets those that are not valid or were not used for the grace time."""
        with self._lock:
            for text, key in answers.items():
                self._confirmed.pop(keys.hash_text(text), None)
                if key is not None:
                    self._confirmed[keys.hash_text(text)] = ConfirmedKey(key, begun_at)
            oldest = begun_at - max(self._grace_time, FRESH_TIME)
            while self._confirmed and next(iter(self._confirmed.values())).confirmed_at < oldest:
                self._confirmed.popitem(last=False)

    def _find_confirmed(self, text: str, max_age: float) -> ApiKey | None:
        """Returns the key of this text if it was valid at most `max_age` seconds ago."""
        with self._lock:
            confirmed = self._confirmed.get(keys.hash_text(text))
        is_recent = confirmed is not None and time.clock_gettime(CLOCK) - confirmed.confirmed_at <= max_age
        return confirmed.key if confirmed is not None and is_recent else None


def _read_answer(answer: ApiKey | StorageUnavailable | None) -> ApiKey | None:
    """Returns the key of an answer, or raises its error."""
    if isinstance(answer, StorageUnavailable):
        raise answer
    return answer
