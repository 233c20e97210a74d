"""The usage meter: usage per key, written to the database once a second, and metrics for Prometheus.

What cannot be written, for example to a full disk, is kept in memory and written later. The meter never sees prompts,
answers or the text of keys.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ontogeny.errors import StorageUnavailable
from ontogeny.server import keys
from ontogeny.server.background import BackgroundThread
from ontogeny.server.compilations import NUM_COMPILATIONS
from ontogeny.server.deployment_kinds import LanguageDeployment
from ontogeny.server.deployments import Deployments
from ontogeny.server.keys import ApiKey, UsageRecord
from ontogeny.server.learning import listing
from ontogeny.server.learning.listing import DecisionCount

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
LABELS = ["deployment"]
WRITE_INTERVAL = 1.0  # seconds
log = logging.getLogger(__name__)
GAUGES = {
    "num_requests_running": "Requests that are being prefilled or decoded",
    "num_requests_waiting": "Requests in the queue",
    "num_generated_tokens": "Tokens that the engine has generated, also for abandoned requests",
    "num_session_calls": "Calls of sessions that have begun, such as the steps of an agent",
    "num_session_calls_waiting": "Calls of sessions in the queue",
    "prefix_cache_bytes": "Size of the prefix cache",
    "num_examples_pending": "Training examples in the journal that have not been decided on",
    "num_decisions": "Decisions of the learner",
    "num_examples_learned": "Decisions to learn a training example, in whole or in part",
    "num_examples_learned_in_part": "Decisions to learn a part of a training example or of its step",
    "sum_of_learned_shares": "Sum of the shares of steps that were taken, over all learned training examples",
    "num_examples_rejected": "Decisions to reject a training example",
}


class UsageMeter:
    """Counts requests and tokens; `start` begins the thread that writes them to the database."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments, self._store = deployments, deployments.store
        self._lock = threading.Lock()
        self._amounts: dict[tuple[str, str, str], list[int]] = {}  # (API key, deployment, day) -> counts
        self._num_decisions: dict[str, DecisionCount] = {}  # by deployment
        self._failure: str | None = None  # of the last attempt to write
        self._outage: float | None = None  # `Database.failed_at` at that time
        self._thread = BackgroundThread("usage meter", self._write, delay=WRITE_INTERVAL)
        self.registry = CollectorRegistry()
        self.registry.register(NUM_COMPILATIONS)
        ProcessCollector(registry=self.registry)  # memory, file descriptors and processor time

        def counter(name: str, help: str) -> Counter:
            return Counter(f"ontogeny_{name}", help, LABELS, registry=self.registry)

        self._requests = counter("requests", "Finished requests that used tokens")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens")
        self._completion_tokens = counter("completion_tokens", "Generated tokens")
        self._time_to_first_token = Histogram(
            "ontogeny_time_to_first_token_seconds",
            "Time to the first generated token",
            LABELS,
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        description = "1 if the deployment can answer requests, 0 if it has failed"
        self._available = Gauge("ontogeny_deployment_available", description, LABELS, registry=self.registry)
        description = "1 if the database can be reached, 0 if calls fail until it answers again"
        self._reachable = Gauge("ontogeny_database_reachable", description, registry=self.registry)
        self._gauges = {
            name: Gauge(f"ontogeny_{name}", help, LABELS, registry=self.registry) for name, help in GAUGES.items()
        }

    def start(self) -> None:
        """Starts the writing thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the writing thread and writes the remaining usage, if that is possible."""
        self._thread.stop()
        self._thread.attempt()
        if self._failure is not None:
            log.error("the usage since the last write is lost: %s", self._failure)

    @property
    def failure(self) -> str | None:
        """The reason why usage is not written to the database, or None."""
        if self._thread.has_failed:
            return "the thread that writes the usage of keys has ended"
        return None if self._store.database.has_recovered(self._outage) else self._failure

    def count(self, key: ApiKey, deployment: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts one request of a key with its tokens."""
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        self._add({(key.id, deployment, day): (1, prompt_tokens, completion_tokens)})
        self._requests.labels(deployment).inc()
        self._prompt_tokens.labels(deployment).inc(prompt_tokens)
        self._completion_tokens.labels(deployment).inc(completion_tokens)

    def observe_first_token(self, deployment: str, seconds: float) -> None:
        """Records the time from the arrival of a request to its first token."""
        self._time_to_first_token.labels(deployment).observe(seconds)

    def metrics(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        for name, deployment in self._deployments.by_name.items():
            is_available = self._deployments.ready.is_set() and deployment.failure is None
            self._available.labels(name).set(is_available)
            self._gauges["num_session_calls"].labels(name).set(deployment.sessions.executor.num_started)
            self._gauges["num_session_calls_waiting"].labels(name).set(deployment.sessions.executor.num_waiting)
            if not isinstance(deployment, LanguageDeployment):
                continue
            self._gauges["num_generated_tokens"].labels(name).set(deployment.engine.num_generated_tokens)
            self._gauges["num_requests_running"].labels(name).set(deployment.engine.num_requests_running)
            self._gauges["num_requests_waiting"].labels(name).set(deployment.engine.num_requests_waiting)
            self._gauges["prefix_cache_bytes"].labels(name).set(deployment.engine.prefix_cache.num_bytes)
            if deployment.branches is not None:
                with contextlib.suppress(StorageUnavailable):  # the figures of the last call stay
                    self._read_decisions(name)
        self._reachable.set(self._store.database.failed_at is None)
        return generate_latest(self.registry)

    def _read_decisions(self, name: str) -> None:
        """Sets the metrics of a deployment that are in the database."""
        num_pending = listing.num_pending_of_deployment(self._store, name)
        self._gauges["num_examples_pending"].labels(name).set(num_pending)
        earlier = self._num_decisions.get(name, DecisionCount())
        self._num_decisions[name] = listing.continue_count(self._store, name, earlier)
        count = self._num_decisions[name]
        self._gauges["num_decisions"].labels(name).set(count.num_decisions)
        self._gauges["num_examples_learned"].labels(name).set(count.num_learned)
        self._gauges["num_examples_learned_in_part"].labels(name).set(count.num_learned_in_part)
        self._gauges["sum_of_learned_shares"].labels(name).set(count.sum_of_shares)
        self._gauges["num_examples_rejected"].labels(name).set(count.num_rejected)

    def _write(self) -> float:
        """Adds the usage since the last successful call to the database; returns the seconds until the next call."""
        with self._lock:
            amounts, self._amounts = self._amounts, {}
        try:
            if amounts:
                keys.add_usage(self._store, [UsageRecord(*usage_key, *counts) for usage_key, counts in amounts.items()])
            self._failure = self._outage = None
        except Exception as error:
            self._add(amounts)
            self._outage = self._store.database.failed_at
            if self._failure is None:
                log.error("the usage of keys cannot be written at present: %s", error)
            self._failure = "the usage of keys cannot be written to the disk at present"
            if not isinstance(error, StorageUnavailable):
                raise
        return WRITE_INTERVAL

    def _add(self, amounts: Mapping[tuple[str, str, str], Iterable[int]]) -> None:
        """Adds to the amounts that the next call of `_write` writes."""
        with self._lock:
            for usage_key, counts in amounts.items():
                present = self._amounts.get(usage_key, (0, 0, 0))
                self._amounts[usage_key] = [a + b for a, b in zip(present, counts, strict=True)]
