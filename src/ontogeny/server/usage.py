"""Counts: usage per key, written down once a second, and figures for Prometheus. No prompts, no keys."""

import threading
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ontogeny.server import keys
from ontogeny.server.deployments import Deployments, LanguageDeployment
from ontogeny.server.keys import Key, UsageRecord
from ontogeny.server.learning import journal

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class UsageMeter:
    def __init__(self, deployments: Deployments) -> None:
        self._deployments, self._store = deployments, deployments.store
        self._lock = threading.Lock()
        self._used: dict[tuple[str, str, str], list[int]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self.registry = CollectorRegistry()
        named = ["deployment"]

        def counter(name: str, what: str, labels: list[str]) -> Counter:
            return Counter(f"ontogeny_{name}", what, labels, registry=self.registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"ontogeny_{name}", what, named, registry=self.registry)

        self._requests = counter("requests", "Requests that used tokens", named)
        self._prompt = counter("prompt_tokens", "Tokens of prompts", named)
        self._completion = counter("completion_tokens", "Tokens generated", named)
        self._first = Histogram(
            "ontogeny_first_token_seconds", "Until the first token", named, buckets=SECONDS, registry=self.registry
        )
        self._under_way = gauge("rows_under_way", "Answers under way")
        self._queued = gauge("queued", "Requests that wait for a row")
        self._pending = gauge("contributions_pending", "Contributions that were journalled and not yet decided on")
        self._decided = gauge("decisions", "Decisions about learning")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._write()

    def count(self, key: Key, deployment: str, prompt: int, completion: int) -> None:
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        with self._lock:
            found = self._used.setdefault((key.id, deployment, day), [0, 0, 0])
            for i, amount in enumerate((1, prompt, completion)):
                found[i] += amount
        self._requests.labels(deployment).inc()
        self._prompt.labels(deployment).inc(prompt)
        self._completion.labels(deployment).inc(completion)

    def first_token(self, deployment: str, seconds: float) -> None:
        self._first.labels(deployment).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' own format."""
        for name, deployment in self._deployments.by_name.items():
            if isinstance(deployment, LanguageDeployment):
                self._under_way.labels(name).set(deployment.engine.num_requests_running)
                self._queued.labels(name).set(deployment.engine.num_requests_waiting)
                if deployment.lines is not None:
                    waiting = sum(journal.pending(self._store, line) for line in journal.lines(self._store, name))
                    self._pending.labels(name).set(waiting)
                    self._decided.labels(name).set(journal.count_decisions(self._store, name))
        return generate_latest(self.registry)

    def _run(self) -> None:
        while not self._stopping.wait(1.0):
            self._write()

    def _write(self) -> None:
        with self._lock:
            used, self._used = self._used, {}
        if used:
            keys.add_usage(self._store, [UsageRecord(*name, *amounts) for name, amounts in used.items()])
