"""Rate limits per key: one token bucket (leaky bucket as a meter) for requests and one for tokens per minute."""

import threading
import time

from ontogeny.server.keys import ApiKey


class TokenBucket:
    """A bucket that refills at a constant rate up to the allowance of one minute."""

    def __init__(self, per_minute: int, current_time: float) -> None:
        self.per_minute, self.level, self.updated_at = per_minute, float(per_minute), current_time

    def refill(self, current_time: float) -> None:
        """Adds the allowance of the time since the last refill; times are in seconds of `time.monotonic`."""
        self.level = min(self.per_minute, self.level + (current_time - self.updated_at) * self.per_minute / 60)
        self.updated_at = current_time

    def seconds_until(self, amount: float) -> float:
        """Seconds until `amount` is available; an amount above the capacity needs a full bucket."""
        return max(0.0, (min(amount, self.per_minute) - self.level) * 60 / self.per_minute)


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


class RateLimits:
    """The buckets of all keys. They live in memory: a restarted server begins with full buckets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str, int], TokenBucket] = {}

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
                    bucket.level -= amount
            return seconds

    def release_tokens(self, key: ApiKey, num_tokens: int) -> None:
        """Returns tokens that were acquired in advance and not used."""
        with self._lock:
            if (bucket := self._bucket(key, "tokens", key.tokens_per_minute)) is not None:
                bucket.level = min(bucket.per_minute, bucket.level + num_tokens)

    def release_request(self, key: ApiKey) -> None:
        """Returns a request that was acquired and is answered elsewhere."""
        with self._lock:
            if (bucket := self._bucket(key, "requests", key.requests_per_minute)) is not None:
                bucket.level = min(bucket.per_minute, bucket.level + 1)

    def _bucket(self, key: ApiKey, unit: str, per_minute: int | None) -> TokenBucket | None:
        """Returns the bucket of a key after its refill; None without a limit."""
        if per_minute is None:
            return None
        current_time = time.monotonic()
        bucket = self._buckets.setdefault((key.id, unit, per_minute), TokenBucket(per_minute, current_time))
        bucket.refill(current_time)
        return bucket
