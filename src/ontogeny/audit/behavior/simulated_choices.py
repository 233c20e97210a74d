"""Choices of a saved agent as CSV text, so that an agent is analyzed exactly as participants are."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jax import Array

from ontogeny.audit.base import map_lifetimes, prepare_subject, rollout_subject
from ontogeny.audit.behavior.base import TASKS
from ontogeny.audit.suite import agent_subjects
from ontogeny.errors import BadInput
from ontogeny.stages.evaluate import task_keys
from ontogeny.stages.saved_agent import read_saved_agent
from ontogeny.types import Key


def simulate_choices(folder: Path, *, num_lifetimes: int, seed: int) -> str:
    """Runs lifetimes of a saved agent and writes one CSV row per trial.

    Args:
        folder: A finished run whose training environment is `two_step` or `bandit`.
        num_lifetimes: Number of lifetimes, each of which is one participant.
        seed: Determines all randomness.

    Raises:
        BadInput: The run cannot be read, or its environment is another one.
    """
    saved_agent = read_saved_agent(folder)
    subject = agent_subjects(saved_agent)[0]
    env = subject.train_env
    if env.spec.name not in TASKS:
        raise BadInput(f"choices are analyzed in the environments two_step and bandit, not in '{env.spec.name}'")
    prepared = prepare_subject(subject, env)

    def run_lifetime(key: Key) -> tuple[Array, Array, Array]:
        _, trajectory = rollout_subject(key, prepared)
        return trajectory.action, trajectory.observation, trajectory.outcome[:, 0]

    action, observation, reward = map_lifetimes(run_lifetime, task_keys(seed, num_lifetimes))
    if env.spec.name == "bandit":
        return _to_csv("subject,trial,choice,reward", _number_trials(action, reward))
    # Two steps make a trial: the first choice, then the state it leads to, the second choice, and its reward.
    columns = (action[:, ::2], observation[:, 1::2], action[:, 1::2], reward[:, 1::2])
    if saved_agent.spec.env.settings.get("has_second_choice", False):
        return _to_csv("subject,trial,choice,state,choice2,reward", _number_trials(*columns))
    return _to_csv("subject,trial,choice,state,reward", _number_trials(columns[0], columns[1], columns[3]))


def _number_trials(*columns: np.ndarray) -> Iterator[tuple[object, ...]]:
    """Rows of a file from columns [lifetimes, trials]."""
    for lifetime, trial in np.ndindex(columns[0].shape[:2]):
        yield (f"lifetime {lifetime + 1}", trial + 1, *(column[lifetime, trial] for column in columns))


def _to_csv(header: str, rows: Iterable[tuple[object, ...]]) -> str:
    """The text of a file with a header and rows."""
    lines = (",".join(f"{v:g}" if isinstance(v, np.floating) else str(v) for v in row) for row in rows)
    return "\n".join([header, *lines]) + "\n"
