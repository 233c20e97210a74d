"""Rate limits per key: one token bucket (leaky bucket as a meter) for requests and one for tokens per minute."""

import threading
import time
from typing import Literal, NamedTuple

from ontogeny.server.keys import ApiKey

Unit = Literal["requests", "tokens"]


class TokenBucket:
    """A bucket that refills at a constant rate up to the allowance of one minute.

    Attributes:
        capacity: The allowance of one minute.
        level: What can be taken.
        updated_at: The time of the last refill, in seconds of `time.monotonic`.
    """

    def __init__(self, per_minute: int, current_time: float) -> None:
        self.capacity, self.level, self.updated_at = float(per_minute), float(per_minute), current_time

    def refill(self, current_time: float) -> None:
        """Adds the allowance of the time since the last refill."""
        self.level = min(self.capacity, self.level + (current_time - self.updated_at) * self.capacity / 60)
        self.updated_at = current_time

    def seconds_until(self, amount: float) -> float:
        """Seconds until `amount` is available; an amount above the capacity needs a full bucket."""
        return max(0.0, (min(amount, self.capacity) - self.level) * 60 / self.capacity)

    def take(self, amount: float) -> None:
        """Takes an amount, whether or not it is available."""
        self.level -= amount

    def give_back(self, amount: float) -> None:
        """Returns an amount that was taken."""
        self.level = min(self.capacity, self.level + amount)


class TokenReservation:
    """Tokens of one request, taken from the bucket of its key in advance; `close` returns those that were not used.

    Attributes:
        num_used: The tokens that the request has used.
    """

    def __init__(self, limits: "RateLimits", key: ApiKey, num_tokens: int) -> None:
        self._limits, self._key, self._num_reserved = limits, key, num_tokens
        self.num_used = 0

    def refund(self) -> None:
        """Returns everything, the request included, because another process answers and counts it."""
        self.num_used = 0
        self.close()
        self._limits.release_request(self._key)

    def close(self) -> None:
        """Returns the tokens that were not used; has no effect when it is called again."""
        num_returned, self._num_reserved = max(0, self._num_reserved - self.num_used), 0
        self._limits.release_tokens(self._key, num_returned)


class BucketName(NamedTuple):
    """The bucket of a key with a limit; another limit has another bucket, which is full at first."""

    key: str
    unit: Unit
    per_minute: int


class RateLimits:
    """The buckets of all keys. They live in memory: a restarted server begins with full buckets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[BucketName, TokenBucket] = {}

    def start(self) -> None:
        """Begins to exchange the levels with other processes, if there can be any."""

    def stop(self) -> None:
        """Ends the exchange."""

    def acquire(self, key: ApiKey, num_tokens: int) -> float:
        """Takes one request and `num_tokens` from the buckets of a key.

        Returns:
            0 if both were taken; otherwise nothing was taken, and the value is the number of seconds to wait.
        """
        with self._lock:
            amounts = {
                bucket: amount
                for bucket, amount in (
                    (self._bucket(key, "requests", key.requests_per_minute), 1),
                    (self._bucket(key, "tokens", key.tokens_per_minute), num_tokens),
                )
                if bucket is not None
            }
            seconds = max((bucket.seconds_until(amount) for bucket, amount in amounts.items()), default=0.0)
            if seconds <= 0:
                for bucket, amount in amounts.items():
                    bucket.take(amount)
            return seconds

    def release_tokens(self, key: ApiKey, num_tokens: int) -> None:
        """Returns tokens that were acquired in advance and not used."""
        with self._lock:
            if (bucket := self._bucket(key, "tokens", key.tokens_per_minute)) is not None:
                bucket.give_back(num_tokens)

    def release_request(self, key: ApiKey) -> None:
        """Returns a request that was acquired and is answered elsewhere."""
        with self._lock:
            if (bucket := self._bucket(key, "requests", key.requests_per_minute)) is not None:
                bucket.give_back(1)

    def _bucket(self, key: ApiKey, unit: Unit, per_minute: int | None) -> TokenBucket | None:
        """Returns the bucket of a key after its refill; None without a limit."""
        if per_minute is None:
            return None
        name, current_time = BucketName(key.id, unit, per_minute), time.monotonic()
        if (bucket := self._buckets.get(name)) is None:
            bucket = self._buckets[name] = self._create_bucket(name, current_time)
        bucket.refill(current_time)
        return bucket

    def _create_bucket(self, name: BucketName, current_time: float) -> TokenBucket:
        """Creates the bucket of a key that has none yet."""
        return TokenBucket(name.per_minute, current_time)
