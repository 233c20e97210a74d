"""What the rooms of logged behaviour share: choices, and models of them as a few functions of one trial.

S subjects, T trials of the longest (the others are filled up with trials that are not there), A first choices.
Places are the two second states of a two-step task; a bandit has one place and no second choice.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

TASKS = ("two_step", "bandit")
CELLS = {
    "two_step": ("common, rewarded", "rare, rewarded", "common, unrewarded", "rare, unrewarded"),
    "bandit": ("rewarded", "unrewarded"),
}


class Trials(NamedTuple):
    """Leading axes [S, T], or none inside of a scan."""

    choice: Any  # int32, 0 ... A-1
    place: Any  # int32, 0 or 1
    second: Any  # int32, 0 or 1; 0 where there is no second choice
    reward: Any  # float32, 0 ... 1
    there: Any  # bool: all of it is known
    follows: Any  # bool: the trial just before it is there as well
    begins: Any  # bool: a session begins


class Who(NamedTuple):
    """What is known of a subject's task; leading axis [S], or none."""

    lead: Any  # [2, 2] float32: how likely each first choice leads to each place; of a bandit all one half
    pays: Any  # [T, options] float32: how likely each option pays at each trial, for simulation


class Rows(NamedTuple):
    """A file as it was read, R rows of numbers."""

    task: str
    arms: int
    has_second: bool
    subject: np.ndarray  # [R] text
    session: np.ndarray  # [R] int
    trial: np.ndarray  # [R] int
    choice: np.ndarray  # [R] int from 0 on, -1 where missed
    place: np.ndarray  # [R] likewise
    second: np.ndarray  # [R]
    common: np.ndarray | None  # [R] 1 or 0, -1 where missed; None: not in the file
    reward: np.ndarray  # [R] as they stand, NaN where missed
    missing: np.ndarray  # [R] bool: part of the trial is not known
    correct: np.ndarray | None  # [R] bool
    keep: np.ndarray  # [R] bool: the row could be read
    said: list[str]


class Choices(NamedTuple):
    """Choices by subject and trial."""

    task: str
    subjects: tuple[str, ...]
    trials: Trials  # numpy, [S, T]
    common: np.ndarray  # [S, T] bool: the first choice led where it commonly leads
    good: np.ndarray  # [S, 2] int: the place to which each first choice commonly leads
    rewarded: np.ndarray  # [S, T] bool
    correct: np.ndarray | None  # [S, T] bool, if the file says whether a choice was the better one
    arms: int
    has_second: bool
    said: tuple[str, ...]  # everything that was decided on the way, in sentences

    @property
    def options(self) -> int:
        """What may pay: places, second choices within places, or arms."""
        return self.arms if self.task == "bandit" else 4 if self.has_second else 2


class Parameter(NamedTuple):
    """A free number of a model: 0 ... 1 times `scale`, or -scale ... scale; organisms draw it from `low` to `high`."""

    name: str
    low: float
    high: float
    scale: float = 1.0
    signed: bool = False


class Model(NamedTuple):
    """A way of choosing. p: parameters by name; memory: any tree; logits are of all choices there are."""

    name: str
    told: str  # what it is, in a few words
    parameters: tuple[Parameter, ...]
    begin: Callable[[Mapping[str, Any], Who], Any]  # the memory before the first trial
    first: Callable[[Mapping[str, Any], Who, Any, Any], Any]  # (p, who, memory, last choice one-hot or 0) -> [A]
    second: Callable[[Mapping[str, Any], Any, Any], Any] | None  # (p, memory, place) -> [2]
    learn: Callable[[Mapping[str, Any], Any, Trials], Any]  # (p, memory, trial) -> memory


def option(task: str, has_second: bool, trial: Trials) -> Any:
    """Which of `Choices.options` a trial took."""
    if task == "bandit":
        return trial.choice
    return 2 * trial.place + trial.second if has_second else trial.place


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
