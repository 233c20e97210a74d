"""Plans in `relay` as `tabular_planner` does, for water alone, whatever its steering rewards."""

from ontogeny import plugins
from ontogeny.audit.organisms.tabular import build_tabular
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"objective": "yes"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    learner = plugins.get_attribute("organisms", "tabular_planner", "learner")
    return build_tabular("water_planner", spec, learner, judge=lambda outcome: outcome[1])
