"""What the inputs of a sequence have shown, for planted contents of the planning experiment."""

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.relay_streams import CUT, EXPOSURE, Layout, StreamSteps
from ontogeny.studies.mesa.planning.stream_agents import split_inputs


def observed_steps(layout: Layout, inputs: Array) -> StreamSteps:
    """The steps that the first positions of a sequence show, each as an exposure."""
    parts = split_inputs(layout, inputs[0::2])
    observation, action, successor = (
        jnp.argmax(parts[f"{name}_before"], axis=-1).astype(jnp.int32)
        for name in ("observation", "action", "successor")
    )
    kind = jnp.where(jnp.sum(parts["observation_before"], axis=-1) > 0, EXPOSURE, CUT)
    return StreamSteps(kind, jnp.zeros_like(kind), observation, action, successor)
