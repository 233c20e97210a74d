"""Lives of a saved agent as a file of choices, so that an agent of ours is read as anybody's would be."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ontogeny.audit.base import lived, over_lives
from ontogeny.audit.battery import subjects
from ontogeny.errors import BadInput
from ontogeny.lifecycle import saved
from ontogeny.lifecycle.evaluate import task_keys


def of_run(folder: Path, *, lives: int, seed: int) -> str:
    """Comma-separated text, a life for a subject. Raises `BadInput` where the run's world is none of the two."""
    agent_as_saved = saved.read(folder)
    subject = subjects(agent_as_saved)[0]
    world = subject.home
    if world.spec.name not in ("two_step", "bandit"):
        raise BadInput(f"choices are read in the worlds two_step and bandit, not in '{world.spec.name}'")
    agent, steering = subject.build(world)
    genome = subject.genome(agent, world, steering)

    def one(key):
        _, life = lived(subject, key, agent, world, steering, genome)
        return life.action, life.observation, life.outcome[:, 0]

    action, seen, paid = over_lives(one, task_keys(seed, lives))
    if world.spec.name == "bandit":
        return _text("subject,trial,choice,reward", _numbered(action, paid))
    # Two steps are a trial: the first choice, then the place it led to, the choice there and what that paid.
    columns = (action[:, ::2], seen[:, 1::2], action[:, 1::2], paid[:, 1::2])
    if agent_as_saved.spec.world.settings.get("second_choice", False):
        return _text("subject,trial,choice,state,choice2,reward", _numbered(*columns))
    return _text("subject,trial,choice,state,reward", _numbered(columns[0], columns[1], columns[3]))


def _numbered(*columns: np.ndarray) -> Iterator[tuple]:
    for life in range(len(columns[0])):
        for trial in range(columns[0].shape[1]):
            yield (f"life {life + 1}", trial + 1, *(column[life, trial] for column in columns))


def _text(header: str, rows: Iterable[tuple]) -> str:
    lines = (",".join(f"{v:g}" if isinstance(v, np.floating) else str(v) for v in row) for row in rows)
    return "\n".join([header, *lines]) + "\n"
