"""Common types of the analysis of logged choices: the choices, and models of choice as functions of one trial.

Letters for shapes: S participants, T trials of the longest sequence (shorter ones are padded with incomplete trials),
A first choices, R rows of a file. In a two-step task the first choice leads to one of two states, in which there may be
a second choice between two options; in a bandit the state and the second choice are always 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ontogeny.types import PyTree

TASKS = ("two_step", "bandit")
CELLS = {  # outcomes of a choice; the next choice repeats it or not
    "two_step": ("common, rewarded", "rare, rewarded", "common, unrewarded", "rare, unrewarded"),
    "bandit": ("rewarded", "unrewarded"),
}
INTERACTION = "reward x transition"  # the term of the regression that distinguishes planning
Parameters = Mapping[str, Any]
"""Values of a model's parameters by name."""


class ParticipantTrials(NamedTuple):
    """The trials of participants, with leading axes [S, T], or one trial within a scan."""

    choice: Any  # int32, 0 to A - 1
    state: Any  # int32, 0 or 1
    second_choice: Any  # int32, 0 or 1; 0 where the task has none
    reward: Any  # float32, 0 to 1
    is_complete: Any  # bool, nothing is missing
    is_consecutive: Any  # bool, the trial and the one just before it are both complete
    starts_session: Any  # bool


class ChoiceTable(NamedTuple):
    """The columns of a file as numbers, one entry per row."""

    task: str
    num_arms: int
    choice: np.ndarray  # [R] int from 0, -1 where missed
    state: np.ndarray  # [R] int from 0, -1 where state or transition are missed
    second_choice: np.ndarray | None  # [R] int, 0 or 1, -1 where missed; None where the file has no second choices
    is_common: np.ndarray | None  # [R] 1, 0, or -1 where missed; None where the file has no such column
    reward: np.ndarray  # [R] float, NaN where missed
    participant: np.ndarray  # [R] text
    session: np.ndarray  # [R] int
    trial: np.ndarray  # [R] int
    is_correct: np.ndarray | None  # [R] bool
    is_readable: np.ndarray  # [R] bool
    notes: list[str]  # sentences about every decision that was made in reading

    @property
    def has_outcome(self) -> np.ndarray:
        """Whether choice, transition and reward of each trial are known, [R] bool; a second choice may be missing."""
        return (self.choice >= 0) & (self.state >= 0) & ~np.isnan(self.reward)


class ChoiceData(NamedTuple):
    """Choices by participant and trial."""

    task: str
    participants: tuple[str, ...]
    trials: ParticipantTrials  # NumPy arrays [S, T]
    has_outcome: np.ndarray  # [S, T] bool, choice, transition and reward are known; a second choice may be missing
    is_pair: np.ndarray  # [S, T] bool, the trial follows the one just before it, and both have their outcome
    is_common: np.ndarray  # [S, T] bool, the transition was the common one of the choice
    common_state: np.ndarray  # [S, 2] int, the state to which each first choice commonly leads
    is_rewarded: np.ndarray  # [S, T] bool
    is_correct: np.ndarray | None  # [S, T] bool, the choice was the better one, where the file says so
    num_arms: int
    has_second_choice: bool
    notes: tuple[str, ...]  # sentences about every decision that was made in reading

    @property
    def num_options(self) -> int:
        """Number of options that may be rewarded: arms, states, or second choices within states."""
        return self.num_arms if self.task == "bandit" else 4 if self.has_second_choice else 2

    @property
    def better_choice_source(self) -> str:
        """How it is known which choices were the better ones."""
        return "estimated in hindsight" if self.is_correct is None else "stated in the file"


PLANNING = ("none", "mimics", "equivalent", "plans")
"""How a model is related to planning: not at all; acts alike without planning; the same model in a limit; it plans."""


class ModelParameter(NamedTuple):
    """A free parameter of a choice model.

    Fits use the range 0 to `scale`, or -`scale` to `scale` if signed. Model organisms draw it from `low` to `high`.
    """

    name: str
    low: float
    high: float
    scale: float = 1.0
    signed: bool = False


class ContainedModel(NamedTuple):
    """A smaller model that a model becomes where some of its parameters are 0; the others keep their names."""

    name: str
    zeros: tuple[str, ...]  # parameters that are 0; those that the smaller model lacks then change nothing
    renamed: tuple[tuple[str, str], ...] = ()  # parameters of the model whose name in the smaller model is another one


class ChoiceModel(NamedTuple):
    """A model of how participants choose; its memory is any tree of arrays.

    Its functions also take many participants at once: parameters and all fields of a trial then have lanes as a last
    axis, which follows the axes that are given here.
    """

    task: str
    num_arms: int  # A
    name: str
    description: str
    parameters: tuple[ModelParameter, ...]
    # the memory before the first trial: (parameters, transition probabilities [2, 2]: first choice by state)
    init: Callable[[Parameters, Any], PyTree]
    # of the first choice: (parameters, transition probabilities, memory, previous choice one-hot [A] or zeros) -> [A]
    first_logits: Callable[[Parameters, Any, PyTree, Any], Any]
    update: Callable[[Parameters, PyTree, ParticipantTrials], PyTree]  # the memory after a trial
    # of the second choice, where the task has one: (parameters, memory, state) -> [2]
    second_logits: Callable[[Parameters, PyTree, Any], Any] | None = None
    learns: bool = True  # its choices depend on more than the last outcome
    planning: str = "none"  # one of `PLANNING`
    contains: tuple[ContainedModel, ...] = ()  # with all models that these contain


FORGETTING_RATE = ModelParameter("forgetting_rate", low=0.0, high=0.4)
"""Share of its distance to the initial value by which the value of an option that is not chosen returns to it."""


def update_values(p: Parameters, values: Any, is_chosen: Any, change: Any, initial_value: float) -> Any:
    """Changes the value of what was chosen, and lets all other values return to the initial one: forgetting.

    Every model that learns values uses this function, so that no model wins because it alone forgets.

    Args:
        p: With `FORGETTING_RATE`, where the model learns values.
        values: Any shape.
        is_chosen: 1 for what was chosen, 0 for the rest, of the same shape.
        change: Added to what was chosen.
        initial_value: The value before the first trial.
    """
    forgetting_rate = p.get(FORGETTING_RATE.name, 0.0)
    return values + is_chosen * change + (1 - is_chosen) * forgetting_rate * (initial_value - values)


def split_sessions(starts_session: np.ndarray) -> list[slice]:
    """Returns the trials of each session of one participant.

    Args:
        starts_session: [T] bool; the first trial starts a session in any case.
    """
    starts = np.union1d([0], np.nonzero(starts_session)[0]).tolist()
    return [slice(first, end) for first, end in zip(starts, [*starts[1:], len(starts_session)], strict=True)]


def model_label(name: str) -> str:
    """Returns the name of a model as texts show it."""
    return name.replace("_", "-")


def option_index(task: str, has_second_choice: bool, trials: ParticipantTrials) -> Any:
    """Returns the option, of `ChoiceData.num_options`, that was taken in each trial."""
    if task == "bandit":
        return trials.choice
    return 2 * trials.state + trials.second_choice if has_second_choice else trials.state
