"""An outside program is the environment of a served agent: Catch, a falling ball and a paddle that should catch it.

The agent was built for environments of 18 states and 3 actions, and learns this one while it is used:

    ontogeny train --agent model_based --env random_mdp:num_states=18,num_actions=3,horizon=2 --out runs/catcher
    ontogeny serve --alias catcher=runs/catcher --online
    python docs/agent_client.py
"""

import json
import os
import random
import urllib.request

SERVER = os.environ.get("ONTOGENY", "http://127.0.0.1:8000") + "/v1/agents/catcher/sessions"
KEY = os.environ.get("ONTOGENY_KEY", "")
COLUMNS, FALLS, EPISODES = 3, 2, 100


def post(path: str, body: dict) -> dict:
    """Sends a request to the server; returns the JSON content of the response."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(SERVER + path, json.dumps(body).encode(), headers)) as response:
        return json.loads(response.read())


class Catch:
    """The environment. An observation encodes the column of the ball, its height and the column of the paddle."""

    def reset(self) -> int:
        """Begins an episode; returns the first observation."""
        self.ball, self.fallen, self.paddle = draw.randrange(COLUMNS), 0, COLUMNS // 2
        return self._observation()

    def step(self, action: int) -> tuple[int, float, bool]:
        """Moves the paddle left (0), not at all (1) or right (2); returns observation, reward and whether it landed."""
        self.paddle = min(max(self.paddle + action - 1, 0), COLUMNS - 1)
        self.fallen += 1
        landed = self.fallen == FALLS
        return self._observation(), float(landed and self.paddle == self.ball), landed

    def _observation(self) -> int:
        return (self.ball * FALLS + self.fallen % FALLS) * COLUMNS + self.paddle


draw, env, caught = random.Random(0), Catch(), []
session = "/" + post("", {"seed": 0})["id"]
observation, first = env.reset(), True
while len(caught) < EPISODES:
    action = post(f"{session}/act", {"observation": observation, "first": first})["action"]
    observation, reward, first = env.step(action)
    if first:
        caught.append(reward)
        observation = env.reset()
    post(f"{session}/feedback", {"reward": reward, "terminated": first})
print(f"caught {sum(caught[:10]):.0f} of the first 10 balls and {sum(caught[-20:]):.0f} of the last 20")
