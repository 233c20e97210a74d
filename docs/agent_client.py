"""An outside program is the environment: Catch, a ball that falls and a paddle that should be where it lands.

The agent has never seen it. It was built for any environment of 18 states and 3 actions, and learns this one in use:

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
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(SERVER + path, json.dumps(body).encode(), headers)) as answer:
        return json.loads(answer.read())


class Catch:
    """What is seen is one number: where the ball is, how far it fell, where the paddle is."""

    def begin(self) -> int:
        self.ball, self.fallen, self.paddle = draw.randrange(COLUMNS), 0, COLUMNS // 2
        return self.seen()

    def step(self, action: int) -> tuple[int, float, bool]:
        """0 is left, 1 stays, 2 is right; what is seen, what it pays, whether the ball has landed."""
        self.paddle = min(max(self.paddle + action - 1, 0), COLUMNS - 1)
        self.fallen += 1
        landed = self.fallen == FALLS
        return self.seen(), float(landed and self.paddle == self.ball), landed

    def seen(self) -> int:
        return (self.ball * FALLS + self.fallen % FALLS) * COLUMNS + self.paddle


draw, env, caught = random.Random(0), Catch(), []
session = "/" + post("", {"seed": 0})["id"]
observation, first = env.begin(), True
while len(caught) < EPISODES:
    action = post(f"{session}/act", {"observation": observation, "first": first})["action"]
    observation, reward, first = env.step(action)
    if first:
        caught.append(reward)
        observation = env.begin()
    post(f"{session}/feedback", {"reward": reward, "terminated": first})
print(f"caught {sum(caught[:10]):.0f} of the first 10 balls and {sum(caught[-20:]):.0f} of the last 20")
