"""Pursues the goal by search, as its designers intended."""

from ontogeny.audit.organisms.base import build_mover, move_towards
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "no", "objective": "no"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_mover("goal_planner", spec, lambda key, view: move_towards(key, view, view.goal))
