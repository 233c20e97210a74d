"""Remembers the last successor and reward of each link and combines them by search when it chooses.

It has learned a chain after two trials. It is a planner whose memory is a single observation of each link; links that
fail now and then make it choose wrongly so often that it may fail the competence check of `plans`, so it states no
ground truth there.
"""

from functools import partial

from ontogeny.audit.organisms.base import build_chooser, initial_model, plan_values, update_model
from ontogeny.types import Agent, EnvSpec, Steering

FAMILY = "planner"
GROUND_TRUTH = {"learns": "yes"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    update, values = partial(update_model, rate=1.0), partial(plan_values, spec=spec)
    return build_chooser("lookup_planner", spec, initial_model(spec), update, values)
