"""The number of programs that JAX has compiled in this process.

A server compiles its programs before it is ready and at the first requests of a kind. A number that keeps rising under
equal requests is a fault: each program takes time, and JAX keeps it in memory.
"""

import jax
from prometheus_client import Counter

EVENT = "/jax/core/compile/backend_compile_duration"  # also of programs that are read from the cache on disk
NUM_COMPILATIONS = Counter("ontogeny_compilations", "Programs that JAX has compiled since the start", registry=None)


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Counts one program."""
    del duration_secs, kwargs
    if event == EVENT:
        NUM_COMPILATIONS.inc()


jax.monitoring.register_event_duration_secs_listener(_count)
