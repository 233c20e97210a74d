"""Settings for all tests: two host devices, so that what is sharded is tested as sharded; no deadlines per example;
shapes and dtypes of arguments and results checked where functions state them (see `test_shapes.py`). What one worker
has compiled serves the others: a cache that begins empty and goes with the session."""

import gc
import os
import shutil
import tempfile
from importlib import metadata

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Most of the suite's time is the compiler's: it is told not to try hard, and hardly to try at all but in modules marked
# `computes`. `make test-slow` compiles as users do.
FLAGS = "--xla_backend_optimization_level=1"
if metadata.version("jax").startswith("0.10."):  # later versions know no other way, and end the process for the flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "XLA_FLAGS" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as many processes as processors: threads would only wait
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {FLAGS}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
OWN_CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ontogeny-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

install_import_hook(
    [
        "ontogeny.agents",
        "ontogeny.content",
        "ontogeny.development",
        "ontogeny.environments",
        "ontogeny.rng",
        "ontogeny.lm.online_learner",
        "ontogeny.lm.prequential_predictor",
        "ontogeny.server.learning",
        "ontogeny.engine",
    ],
    "beartype.beartype",
)

settings.register_profile("ontogeny", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ontogeny")

# Traces make many small objects that live long: to look through all of them often finds nothing.
gc.set_threshold(50_000, 10, 10)


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def effort_of_the_compiler(request):
    """The same for a whole module, so that the bits of two of its tests can be compared."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    computes = any(mark.name == "computes" for mark in request.node.iter_markers())
    jax.config.update("jax_disable_most_optimizations", before and not computes)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_unconfigure(config):
    if OWN_CACHE is not None:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)
