"""A development for tests: it fails, ends its process or takes time, as its settings say."""

import os
import signal
import time
from pathlib import Path

import jax.numpy as jnp

from ontogeny.errors import LearningDiverged
from ontogeny.types import Development


def build(agent, env, steering, *, mode="works", folder="", seconds=0.0, num_generations=3):
    """Builds the development.

    Args:
        mode: `works`, `diverges`, `breaks`, `crashes`, or `absent` (fails until `folder` has a file `present`).
        folder: Of the file `present`, and of a file `started`, which every generation writes.
        seconds: Of every generation.
    """

    def init(key):
        return {"genome": agent.genome(key), "generation": jnp.int32(0)}

    def step(state):
        if mode == "diverges" or (mode == "absent" and not Path(folder, "present").exists()):
            raise LearningDiverged("the learning diverged in a test")
        if mode == "breaks":
            raise ZeroDivisionError("a test divides by zero")
        if mode == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if folder:
            Path(folder, "started").touch()
        time.sleep(seconds)
        return state | {"generation": state["generation"] + 1}, {"fitness": jnp.zeros(1)}

    return Development(init, step, lambda state: state["genome"], num_generations, 1, 1)
