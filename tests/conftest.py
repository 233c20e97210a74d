"""Settings of all tests.

JAX has two host devices, so that sharded computations run sharded. Hypothesis sets no deadline for an example. Shapes
and dtypes of arguments and results are checked where functions annotate them (see `test_shapes.py`). All workers share
one cache of compiled programs, which is empty at the start of the session and is deleted at its end.
"""

import gc
import importlib.util
import os
import pickle
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Compilation takes most of the suite's time. All tests therefore run at optimization level 1, and modules that are not
# marked `computes` disable most passes of the compiler as well. `make test-slow` compiles with all optimizations.
FLAGS = "--xla_backend_optimization_level=1"
if metadata.version("jax").startswith("0.10."):  # later versions have no other emitters and reject the flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "XLA_FLAGS" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # places in the source take time to compile
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one process per core: more threads would only wait
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {FLAGS}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
TEMPORARY_CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    TEMPORARY_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ontogeny-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # small programs as well are compiled once

install_import_hook(
    [
        "ontogeny.agents",
        "ontogeny.audit.organisms",
        "ontogeny.content",
        "ontogeny.development",
        "ontogeny.environments",
        "ontogeny.rng",
        *(
            f"ontogeny.lm.{name}"
            for name in (
                "adapters",
                "byte_decisions",
                "corpus",
                "mixture",
                "online",
                "online_learner",
                "optimization",
                "tokenizer",
            )
        ),
        "ontogeny.lm.forgetting",
        "ontogeny.lm.prequential_predictor",
        "ontogeny.server.learning",
        "ontogeny.server.sessions.texts",
        "ontogeny.engine",
        *(f"ontogeny.kernels.{name}" for name in ("cache", "packing", "transformer")),
        *(f"ontogeny.studies.mesa.planning.{name}" for name in ("abilities", "extraction", "goals", "interventions")),
        *(f"ontogeny.studies.mesa.planning.{name}" for name in ("queries", "stream_agents", "training")),
    ],
    "beartype.beartype",
)

settings.register_profile("ontogeny", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ontogeny")

# These tests come first, and so one worker compiles the kernels of numba, which takes many seconds, while the other
# workers have tests that need none. The others find them in the cache folder of numba later.
USERS_OF_KERNELS = (
    "test_api.py", "test_engine.py", "test_hugging_face.py", "test_kernels.py", "test_lm.py", "test_mixture.py",
    "test_parity.py",
)  # fmt: skip
MAX_MAPPINGS = 20_000  # of memory, after which compiled programs are released
# Tracing allocates many small objects that stay alive, so frequent garbage collection frees little memory.
gc.set_threshold(50_000, 10, 10)


def pytest_addoption(parser):
    parser.addoption(
        "--postgres", action="store_true", help="keep the state of every server in PostgreSQL, which is started"
    )
    parser.addoption(
        "--packages", default="", metavar="NAME[,NAME...]",
        help="run only the tests that use optional packages, which must be installed; see the marks in pyproject.toml",
    )  # fmt: skip


def pytest_collection_modifyitems(config, items):
    """Skip tests whose packages are absent; with `--packages`, keep the tests of these packages and skip none."""
    chosen = {name for name in config.getoption("--packages").split(",") if name}
    deselected = []
    if config.getoption("--postgres"):
        deselected = [item for item in items if item.get_closest_marker("sqlite")]
    for item in items:
        needed = {name for mark in item.iter_markers("needs_package") for name in mark.args}
        used = needed.union(*(mark.args for mark in item.iter_markers("uses_package")))
        absent = sorted(name for name in needed | chosen if importlib.util.find_spec(name) is None)
        if chosen and not used & chosen:
            deselected.append(item)
        elif chosen and absent:
            raise pytest.UsageError(f"{item.nodeid} needs packages that are not installed: {', '.join(absent)}")
        elif absent:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(absent)}"))
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]
    items.sort(key=lambda item: item.path.name not in USERS_OF_KERNELS)


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of this worker."""
    from local_postgres import running_postgres

    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3():
    """An S3-compatible server of this worker."""
    from local_s3 import running_s3

    with running_s3() as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def chosen_database(request):
    """With `--postgres`, the state of every server is kept in PostgreSQL, in one schema for each state folder."""
    if not request.config.getoption("--postgres"):
        yield
        return
    from ontogeny.server import store

    server = request.getfixturevalue("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "default_address", server.address_for)
        yield


@pytest.fixture(autouse=True, scope="module")
def compiler_optimizations(request):
    """Sets the passes of the compiler once per module, so that results of its tests can be compared bitwise."""
    import jax

    from ontogeny.audit.base import COMPILER_OPTIONS

    before = jax.config.read("jax_disable_most_optimizations")
    computes = any(mark.name == "computes" for mark in request.node.iter_markers())
    is_quick = before and not computes
    jax.config.update("jax_disable_most_optimizations", is_quick)
    with pytest.MonkeyPatch.context() as patch:
        if is_quick:  # the audit sets a level of its own
            patch.setitem(COMPILER_OPTIONS, "xla_backend_optimization_level", 0)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def quick_compilation():
    """Disables most passes of the compiler in slow runs too, where they take longer than a module's programs save."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def reused_figures():
    """Draws figures of studies with equal arguments once: matplotlib takes nearly all the time of a page."""
    from ontogeny.studies import figures
    from ontogeny.studies.mesa import figures as mesa_figures
    from ontogeny.studies.mesa.planning import figures as planning_figures

    drawings = {}

    def draw_once(draw):
        def draw_or_reuse(*arguments, **options):
            key = pickle.dumps((draw.__module__, draw.__name__, arguments, options))
            if key not in drawings:
                drawings[key] = draw(*arguments, **options)
            return drawings[key]

        return draw_or_reuse

    with pytest.MonkeyPatch.context() as patch:
        for module in (figures, mesa_figures, planning_figures):
            for name in [*vars(module)]:
                if name.startswith("draw_"):
                    patch.setattr(module, name, draw_once(getattr(module, name)))
        yield


def pytest_unconfigure(config):
    if TEMPORARY_CACHE is not None:
        shutil.rmtree(TEMPORARY_CACHE, ignore_errors=True)


@pytest.fixture
def call_cli(monkeypatch, capsys, tmp_path):
    """Calls the command line in this process; returns its exit code, its output and its error output."""
    from ontogeny import cli

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))  # JAX's own settings stay as they are
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ontogeny", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module", autouse=True)
def released_programs():
    """Release compiled programs before they exhaust the mappings of memory that a process may hold (65,530)."""
    import jax

    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAX_MAPPINGS:
        jax.clear_caches()
        gc.collect()
