"""Passes of a predictor over token streams, each by a new instance, and what the predictor prints meanwhile."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from ontogeny import plugins
from ontogeny.audit.prequential.base import BuildPredictor, RunPasses
from ontogeny.audit.prequential.loading import find_predictor, source_files
from ontogeny.errors import BadInput

STDOUT, STDERR = 1, 2  # the numbers of the two output files of a process


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
    files = source_files(name) if build is None else []
    with plugins.explain_plugin_errors(files, f"the predictor '{name}', given tokens up to {tokens.max()}, failed"):
        predictor = (find_predictor(name) if build is None else build)()
        if not callable(predictor):
            raise BadInput(f"'{name}' must build a predictor, which is a function, not {type(predictor).__name__}")
        return validate_log_probs(predictor(tokens.copy()), len(tokens))


def passes_by_instance(name: str, build: BuildPredictor | None = None, *, log_path: Path | None = None) -> RunPasses:
    """Returns a function that runs each pass with a new instance of the predictor in this process.

    It is fast, but the state of a module or of a cache outlives a pass.

    Args:
        name: As in `run_pass`.
        build: As in `run_pass`.
        log_path: File to which the standard output of the predictor is appended; by default it is not redirected.
    """

    def run_passes(streams: Iterable[np.ndarray], *, separate: bool = False) -> Iterator[np.ndarray]:
        del separate  # there is only one process
        for tokens in streams:
            with contextlib.nullcontext() if log_path is None else _standard_output_to(log_path):
                log_probs = run_pass(name, tokens, build)
            yield log_probs

    return run_passes


def passes_by_process(name: str, build: BuildPredictor | None = None, *, log_path: Path | None = None) -> RunPasses:
    """Returns a function that runs its passes in a new process; processes share nothing but the disk.

    Args:
        name: As in `run_pass`.
        build: As in `run_pass`; it is pickled.
        log_path: File to which all output of the predictor is appended; by default it is not redirected.
    """

    def run_passes(streams: Iterable[np.ndarray], *, separate: bool = False) -> Iterator[np.ndarray]:
        context = multiprocessing.get_context("spawn")
        arguments = {"initializer": _redirect_process, "initargs": (log_path,)} if log_path is not None else {}
        tasks = 1 if separate else None
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=tasks, **arguments) as pool:
            for tokens in streams:
                try:
                    yield pool.submit(_run_and_flush, name, tokens, build).result()
                except BrokenProcessPool:
                    last_line = "" if log_path is None else read_last_line(log_path)
                    reason = f"; the last line that it printed: {last_line}" if last_line else ""
                    raise BadInput(f"the process of the predictor '{name}' ended before its pass did{reason}") from None

    return run_passes


PASSES_BY_ISOLATION = {"process": passes_by_process, "instance": passes_by_instance}


def validate_log_probs(log_probs: object, num_tokens: int) -> np.ndarray:
    """Converts the answer of a predictor to an array.

    Args:
        log_probs: Array-like; valid are real numbers of shape [T, V] without NaN and positive infinity. Negative
            infinity is the log-probability of what is impossible.
        num_tokens: T.

    Raises:
        BadInput: The answer has another shape or type, or contains NaN or positive infinity.
    """
    array = np.asarray(log_probs)
    if array.ndim != 2 or array.shape[0] != num_tokens:
        raise BadInput(f"a predictor must return [T, V] = [{num_tokens}, V] log-probabilities, not {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise BadInput(f"log-probabilities must be real numbers, not {array.dtype}")
    values = array.astype(np.float64) if array.dtype.name == "bfloat16" else array
    for is_wrong, noun in ((np.isnan(values), "NaN"), (np.isposinf(values), "+inf")):
        if is_wrong.any():
            raise BadInput(_explain_non_finite(int(is_wrong.any(axis=1).argmax()), noun))
    return array


def read_last_line(path: Path, max_chars: int = 200) -> str:
    """Returns the end of the last line of a file that is not blank; empty where there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip()[-max_chars:] for line in reversed(lines) if line.strip()), "")


def _explain_non_finite(token: int, noun: str) -> str:
    """The sentence about a row with a number that is no log-probability."""
    message = f"the predictor returned {noun} among the log-probabilities of token {token}"
    if token:
        message += f", while the rows before it are valid: if it learns, it has diverged after {token} tokens, and a "
        return message + "smaller learning rate helps"
    return message + ", the first one: this is a fault of the predictor, and not of what it learns"


@contextlib.contextmanager
def _standard_output_to(path: Path) -> Iterator[None]:
    """A context in which standard output, also that of libraries in C, is appended to a file."""
    sys.stdout.flush()
    original = os.dup(STDOUT)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        os.dup2(file.fileno(), STDOUT)
        try:
            yield
        finally:
            os.dup2(original, STDOUT)
            os.close(original)


def _redirect_process(path: Path) -> None:
    """Appends everything that this process prints to a file."""
    with path.open("a", encoding="utf-8") as file:
        for descriptor in (STDOUT, STDERR):
            os.dup2(file.fileno(), descriptor)


def _run_and_flush(name: str, tokens: np.ndarray, build: BuildPredictor | None) -> np.ndarray:
    """Runs one pass in this process and writes what it has printed."""
    try:
        return run_pass(name, tokens, build)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
