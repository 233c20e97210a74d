"""Environments of Gymnasium, as a user writes them: the same game with spaces of many kinds.

A signal from 0 to 3 is shown; the action that equals it pays 1. Three misses end an episode.
"""

import random

import gymnasium
import numpy as np
from gymnasium import spaces

NUM_SIGNALS = 4
OBSERVATIONS = {
    "discrete": spaces.Discrete(NUM_SIGNALS, start=5),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "dict": spaces.Dict({"signal": spaces.Discrete(NUM_SIGNALS), "light": spaces.Box(0.0, 1.0, (2,), np.float32)}),
    "tuple": spaces.Tuple((spaces.Discrete(NUM_SIGNALS, start=1), spaces.MultiBinary(2))),
    "multi_discrete": spaces.MultiDiscrete([2, 2]),
    "scalar": spaces.Box(0.0, 3.0, (), np.float32),
    "text": spaces.Text(4),
}
ACTIONS = {
    "discrete": spaces.Discrete(NUM_SIGNALS, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 2]),
    "multi_binary": spaces.MultiBinary(2),
    "continuous": spaces.Box(-1.0, 1.0, (1,), np.float32),
    "many": spaces.MultiDiscrete([64, 64]),
}


class Signals(gymnasium.Env):
    """The game."""

    def __init__(self, observations: str = "discrete", actions: str = "discrete", pay: float = 1.0, fault: str = ""):
        self.observations, self.actions, self.pay, self.fault = observations, actions, pay, fault
        self.observation_space, self.action_space = OBSERVATIONS[observations], ACTIONS[actions]
        self.brightness, self.num_steps = 1.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.misses = 0
        return self._show(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.num_steps += 1
        if self.fault == "error" or (self.fault == "late error" and self.num_steps > 25):
            raise RuntimeError("the lamp is broken")
        choice = int(action) + 1 if self.actions == "discrete" else 2 * int(action[0]) + int(action[1])
        hit = choice == self.signal
        self.misses += not hit
        info = {"hit": float(hit), "shown": np.float64(self.signal), "brightness": self.brightness, "name": "signals"}
        info["is_success"] = bool(hit)
        return self._show(), self.pay * hit, self.misses == 3, False, info

    def _show(self):
        draw = random.randrange(NUM_SIGNALS) if self.fault == "global chance" else self.np_random.integers(NUM_SIGNALS)
        self.signal = int(draw)
        if self.fault == "shared":
            Signals.counter = (getattr(Signals, "counter", 0) + 1) % NUM_SIGNALS
            self.signal = Signals.counter
        if self.observations == "discrete":
            return 9 if self.fault == "outside" else self.signal + 5
        if self.observations == "image":
            image = np.zeros((4, 4, 3), np.uint8)
            image[self.signal] = 255
            return image
        if self.observations == "dict":
            light = np.array(
                [self.signal == 0, self.brightness > 1], np.float64 if self.fault == "type" else np.float32
            )
            return {"signal": self.signal, "light": light}
        if self.observations == "tuple":
            return (self.signal + 1, np.array([0, 1], np.int8))
        if self.observations == "scalar":
            return np.array(self.signal, np.float32)
        return np.array(divmod(self.signal, 2))


gymnasium.register("Signals-v0", Signals, max_episode_steps=5)
gymnasium.register("EndlessSignals-v0", Signals)
gymnasium.register("FailingSignals-v0", Signals, max_episode_steps=10, kwargs={"fault": "late error"})
