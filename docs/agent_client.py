"""An outside program is the world: five arms, one of which pays best. First: ontogeny serve --alias bandit=RUN"""

import json
import os
import random
import urllib.request

SERVER = os.environ.get("ONTOGENY", "http://127.0.0.1:8000") + "/v1/agents/bandit/sessions"
KEY = os.environ.get("ONTOGENY_KEY", "")


def post(path: str, body: dict) -> dict:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(SERVER + path, json.dumps(body).encode(), headers)) as answer:
        return json.loads(answer.read())


chances, paid = [0.1, 0.3, 0.8, 0.2, 0.4], 0
session = "/" + post("", {"seed": 0})["id"]
action = post(f"{session}/act", {"observation": 0, "first": True})["action"]
for _ in range(100):
    reward = int(random.random() < chances[action])
    paid += reward
    post(f"{session}/feedback", {"reward": reward})
    action = post(f"{session}/act", {"observation": 0, "first": True})["action"]
print(f"100 pulls paid {paid}; chance would have paid 36, the best arm 80")
