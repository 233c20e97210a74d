"""Lives of a saved agent as a file of choices, so that an agent of ours is read as anybody's would be."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ontogeny.audit.base import map_lifetimes, prepare_subject, rollout_subject
from ontogeny.audit.suite import agent_subjects
from ontogeny.errors import BadInput
from ontogeny.stages.evaluate import task_keys
from ontogeny.stages.saved_agent import read_saved_agent


def of_run(folder: Path, *, num_lifetimes: int, seed: int) -> str:
    """Comma-separated text, a life for a subject. Raises `BadInput` where the run's environment is none of the two."""
    agent_as_saved = read_saved_agent(folder)
    subject = agent_subjects(agent_as_saved)[0]
    env = subject.train_env
    if env.spec.name not in ("two_step", "bandit"):
        raise BadInput(f"choices are read in the environments two_step and bandit, not in '{env.spec.name}'")
    prepared = prepare_subject(subject, env)

    def one(key):
        _, trajectory = rollout_subject(key, prepared)
        return trajectory.action, trajectory.observation, trajectory.outcome[:, 0]

    action, seen, paid = map_lifetimes(one, task_keys(seed, num_lifetimes))
    if env.spec.name == "bandit":
        return _text("subject,trial,choice,reward", _numbered(action, paid))
    # Two steps are a trial: the first choice, then the place it led to, the choice there and what that paid.
    columns = (action[:, ::2], seen[:, 1::2], action[:, 1::2], paid[:, 1::2])
    if agent_as_saved.spec.env.settings.get("second_choice", False):
        return _text("subject,trial,choice,state,choice2,reward", _numbered(*columns))
    return _text("subject,trial,choice,state,reward", _numbered(columns[0], columns[1], columns[3]))


def _numbered(*columns: np.ndarray) -> Iterator[tuple]:
    for trajectory in range(len(columns[0])):
        for trial in range(columns[0].shape[1]):
            yield (f"life {trajectory + 1}", trial + 1, *(column[trajectory, trial] for column in columns))


def _text(header: str, rows: Iterable[tuple]) -> str:
    lines = (",".join(f"{v:g}" if isinstance(v, np.floating) else str(v) for v in row) for row in rows)
    return "\n".join([header, *lines]) + "\n"
