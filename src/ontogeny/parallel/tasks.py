"""Deterministic units of work, which give the same answer in any process on machines of the same kind."""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ontogeny.errors import BadInput

TIMING = "timing"  # the key of an answer whose value may differ between two executions of one task
MAX_TEXT_LENGTH = 200  # of a request in a message
Setup = Mapping[str, Any]
OnAnswer = Callable[[int, Any], None]


class Task(NamedTuple):
    """One unit of work.

    Attributes:
        function: "package.module:function"; the function takes the setup that all tasks of a run share and the
            request, and its answer depends on nothing else. It keeps programs that it compiles for a setup, because a
            worker computes many tasks of one setup.
        request: JSON values and small NumPy arrays.
        repeatable: Whether the task may be computed twice at the same time, as where a worker does not respond; False
            for a task that writes files.
    """

    function: str
    request: Mapping[str, Any]
    repeatable: bool = True

    def __str__(self) -> str:
        text = json.dumps(self.request, default=lambda array: f"array of shape {np.shape(array)}")
        if len(text) > MAX_TEXT_LENGTH:
            text = f"{text[:MAX_TEXT_LENGTH]}..."
        return f"{self.function} of {text}"


class TaskFailure(NamedTuple):
    """What a driver returns in place of an answer where a task failed."""

    task: str
    message: str
    is_bad_input: bool = False  # whether the task raised `BadInput`, with this message
    details: str = ""  # the traceback


class TaskAnswer(NamedTuple):
    """What a worker returns."""

    answer: Any  # `TaskFailure` where the function raised an error
    worker: str  # process number and host name
    fingerprint: dict[str, str]  # what the bits of an answer depend on, besides setup and request
    seconds: float  # wall time in the worker
    attempt: int = 0  # earlier executions that their workers did not survive


class TaskFailed(RuntimeError):
    """A task raised an error other than `BadInput`, or ended its process; the message names the task."""


class UnequalAnswers(BadInput):
    """A task that was computed twice gave two answers."""


def find_function(path: str) -> Callable[[Setup, Mapping[str, Any]], Any]:
    """The function that "package.module:function" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def to_plain(tree: Any) -> Any:
    """A copy of JSON values and arrays of any library, with NumPy arrays only, which a worker reads without JAX."""
    if isinstance(tree, TaskFailure):
        return tree
    if isinstance(tree, Mapping):
        return {key: to_plain(entry) for key, entry in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_plain(entry) for entry in tree]
    return tree if tree is None or isinstance(tree, str | bytes | int | float) else np.asarray(tree)


def raise_first_failure(answers: Sequence[Any]) -> None:
    """Raises the error of the first task in task order that failed.

    Raises:
        BadInput: The task raised it, with the same message.
        TaskFailed: The task raised another error.
    """
    for answer in answers:
        if isinstance(answer, TaskFailure):
            if answer.is_bad_input:
                raise BadInput(answer.message)
            raise TaskFailed(f"the task {answer.task} failed: {answer.message}\n{answer.details}".rstrip())


def digest(tree: Any) -> str:
    """The SHA-256 digest of JSON values and arrays, by their bits; entries `timing` of mappings are left out."""
    sha = hashlib.sha256()
    _update_digest(sha, tree)
    return sha.hexdigest()


def _update_digest(sha: Any, tree: Any) -> None:
    """Adds a tree to a digest, with marks by which trees of other types or lengths differ."""
    if isinstance(tree, Mapping):
        entries = sorted((str(key), entry) for key, entry in tree.items() if key != TIMING)
        sha.update(b"{%d" % len(entries))
        for key, entry in entries:
            _update_digest(sha, key)
            _update_digest(sha, entry)
    elif isinstance(tree, list | tuple):
        sha.update(b"[%d" % len(tree))
        for entry in tree:
            _update_digest(sha, entry)
    elif tree is None or isinstance(tree, str | int | float):
        text = repr(tree).encode()
        sha.update(b"=%d" % len(text) + text)
    else:
        array = np.asarray(tree)
        sha.update(f"#{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
