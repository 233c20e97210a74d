"""How much a key may ask in a minute: one bucket of requests and one of tokens each, which fill up steadily."""

import threading
import time
from collections.abc import Callable

from ontogeny.server.keys import Key


class TokenBucket:
    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute, self.level, self.since = per_minute, float(per_minute), now

    def fill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.since) * self.per_minute / 60)
        self.since = now

    def wait(self, amount: float) -> float:
        """Seconds until so much can be taken; one that is larger than the bucket takes a full one."""
        return max(0.0, (min(amount, self.per_minute) - self.level) * 60 / self.per_minute)


class RateLimits:
    """In memory: a server that starts anew begins with full buckets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._buckets: dict[tuple[str, str, int], TokenBucket] = {}

    def take(self, key: Key, tokens: int) -> float:
        """Takes one request and so many tokens, and returns 0; or takes nothing and returns the seconds to wait."""
        with self._lock:
            asked = [(bucket, amount) for what, amount in (("requests", 1), ("tokens", tokens)) if
                     (bucket := self._bucket(key, what)) is not None]  # fmt: skip
            wait = max((bucket.wait(amount) for bucket, amount in asked), default=0.0)
            if wait <= 0:
                for bucket, amount in asked:
                    bucket.level -= amount
            return wait

    def give_back(self, key: Key, tokens: int) -> None:
        """Tokens that were taken in advance and not used."""
        with self._lock:
            if (bucket := self._bucket(key, "tokens")) is not None:
                bucket.level = min(bucket.per_minute, bucket.level + tokens)

    def _bucket(self, key: Key, what: str) -> TokenBucket | None:
        per_minute = key.requests_per_minute if what == "requests" else key.tokens_per_minute
        if per_minute is None:
            return None
        now = self._clock()
        found = self._buckets.setdefault((key.id, what, per_minute), TokenBucket(per_minute, now))
        found.fill(now)
        return found
