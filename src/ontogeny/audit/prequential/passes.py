"""Passes of a predictor over token streams, each by a predictor that has not seen any stream before."""

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from ontogeny import plugins
from ontogeny.audit.prequential.base import BuildPredictor, RunPasses
from ontogeny.audit.prequential.loading import find_predictor
from ontogeny.errors import BadInput


def run_pass(name: str, tokens: np.ndarray, build: BuildPredictor | None = None) -> np.ndarray:
    """Runs one pass of a new predictor.

    Args:
        name: A name as `find_predictor` takes it; with `build`, the name that messages show.
        tokens: [T].
        build: Builds the predictor; by default it is found by its name.

    Returns:
        Log-probabilities [T, V].

    Raises:
        BadInput: The predictor does not exist, fails, or returns something else.
    """
    file = name.rpartition(":")[0]
    with plugins.explain_plugin_errors([file] if file.endswith(".py") else [], f"the predictor '{name}' failed"):
        predictor = (find_predictor(name) if build is None else build)()
        if not callable(predictor):
            raise BadInput(f"'{name}' must build a predictor, which is a function, not {type(predictor).__name__}")
        return validate_log_probs(predictor(tokens.copy()), len(tokens))


def passes_by_instance(name: str, build: BuildPredictor | None = None) -> RunPasses:
    """Returns a function that runs each pass with a new instance of the predictor in this process.

    It is fast, but the state of a module or of a cache outlives a pass.

    Args:
        name: As in `run_pass`.
        build: As in `run_pass`.
    """

    def run_passes(streams: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for tokens in streams:
            yield run_pass(name, tokens, build)

    return run_passes


def passes_by_process(name: str, build: BuildPredictor | None = None) -> RunPasses:
    """Returns a function that runs each pass in a new process; the processes share nothing but the disk.

    Args:
        name: As in `run_pass`.
        build: As in `run_pass`; it is pickled.
    """

    def run_passes(streams: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            for tokens in streams:
                try:
                    yield pool.submit(run_pass, name, tokens, build).result()
                except BrokenProcessPool:
                    raise BadInput(f"the process of the predictor '{name}' ended before its pass did") from None

    return run_passes


PASSES_BY_ISOLATION = {"process": passes_by_process, "instance": passes_by_instance}


def validate_log_probs(log_probs: object, num_tokens: int) -> np.ndarray:
    """Converts the answer of a predictor to an array.

    Args:
        log_probs: Array-like; valid are real numbers of shape [T, V] without NaN.
        num_tokens: T.

    Raises:
        BadInput: The answer has another shape or type, or contains NaN.
    """
    array = np.asarray(log_probs)
    if array.ndim != 2 or array.shape[0] != num_tokens:
        raise BadInput(f"a predictor must return [T, V] = [{num_tokens}, V] log-probabilities, not {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise BadInput(f"log-probabilities must be real numbers, not {array.dtype}")
    if np.isnan(array.astype(np.float64)).any():
        raise BadInput("the predictor returned NaN as a log-probability")
    return array
