"""One valid request to each route of a server with an online language model and an online agent.

Each call leaves as many sessions behind as it found. The routes are those of the OpenAPI document, so a test that runs
them all fails for a new route without a call.
"""

import itertools
import json
import urllib.request
from collections.abc import Callable
from typing import Any

from serving import ServerProcess

MODEL, AGENT = "story", "mdp"
METHODS = {"get", "put", "post", "delete", "patch"}


class RouteCalls:
    """Calls of all routes with an admin key."""

    def __init__(self, server: ServerProcess, key: str, key_id: str) -> None:
        self.server, self.key, self.key_id = server, key, key_id
        self.numbers = itertools.count()
        text, agent = f"/v1/models/{MODEL}", f"/v1/agents/{AGENT}"
        self.calls: dict[str, Callable[[], Any]] = {
            "GET /health": lambda: self.request("GET", "/health"),
            "GET /ready": lambda: self.request("GET", "/ready"),
            "GET /metrics": lambda: self.request("GET", "/metrics"),
            "GET /v1/models": lambda: self.request("GET", "/v1/models"),
            "GET /v1/models/{model}": lambda: self.request("GET", text),
            "POST /v1/completions": self.complete,
            "POST /v1/chat/completions": self.chat,
            "POST /tokenize": lambda: self.request("POST", "/tokenize", {"prompt": "The agent", "model": MODEL}),
            "POST /detokenize": lambda: self.request("POST", "/detokenize", {"tokens": [65, 66], "model": MODEL}),
            "GET /tokenizer_info": lambda: self.request("GET", f"/tokenizer_info?model={MODEL}"),
            "GET /v1/models/{model}/branch": lambda: self.request("GET", f"{text}/branch"),
            "GET /v1/models/{model}/branch/versions": lambda: self.request("GET", f"{text}/branch/versions"),
            "GET /v1/models/{model}/branch/saving": lambda: self.request("GET", f"{text}/branch/saving"),
            "GET /v1/models/{model}/branch/state": lambda: self.request("GET", f"{text}/branch/state"),
            "PUT /v1/models/{model}/branch/state": lambda: self.restore(f"{text}/branch/state"),
            "POST /v1/models/{model}/branch/fork": self.fork_branch,
            "POST /v1/models/{model}/examples": self.add_example,
            "GET /v1/models/{model}/examples": lambda: self.request("GET", f"{text}/examples"),
            "DELETE /v1/models/{model}/examples/{number}": self.erase_example,
            "POST /v1/models/{model}/rollback": lambda: self.request("POST", f"{text}/rollback", {"version": 0}),
            "POST /v1/models/{model}/freeze": self.freeze,
            "POST /v1/models/{model}/unfreeze": lambda: self.request("POST", f"{text}/unfreeze", {}),
            "GET /v1/agents/{name}": lambda: self.request("GET", agent),
            "POST /v1/models/{model}/sessions/{id}/completions": self.continue_text,
            "POST /v1/agents/{name}/sessions/{id}/act": self.act,
            "POST /v1/agents/{name}/sessions/{id}/feedback": self.send_feedback,
        }
        for prefix, sessions in (
            ("/v1/models/{model}/sessions", f"{text}/sessions"),
            ("/v1/agents/{name}/sessions", f"{agent}/sessions"),
        ):
            self.calls |= self.session_calls(prefix, sessions)

    def missing_routes(self) -> set[str]:
        """The routes of the OpenAPI document without a call."""
        paths = self.request("GET", "/openapi.json")["paths"]
        routes = {f"{m.upper()} {path}" for path, operations in paths.items() for m in operations.keys() & METHODS}
        return routes ^ self.calls.keys()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request that must succeed."""
        status, content = self.server.request(method, path, body, self.key)
        assert status == 200, (method, path, status, content)
        return content

    def session_calls(self, prefix: str, sessions: str) -> dict[str, Callable[[], Any]]:
        """The calls of the routes that all sessions have."""

        def with_session(method: str, rest: str = "") -> Callable[[], Any]:
            def call() -> None:
                id = self.request("POST", sessions, {})["id"]
                content = self.request(method, f"{sessions}/{id}{rest}")
                if rest == "/fork":
                    self.request("DELETE", f"{sessions}/{content['id']}")
                if method != "DELETE":
                    self.request("DELETE", f"{sessions}/{id}")

            return call

        def restore() -> None:
            id = self.request("POST", sessions, {})["id"]
            self.restore(f"{sessions}/{id}/state")
            self.request("DELETE", f"{sessions}/{id}")

        return {
            f"POST {prefix}": with_session("DELETE"),
            f"GET {prefix}/{{id}}": with_session("GET"),
            f"DELETE {prefix}/{{id}}": with_session("DELETE"),
            f"GET {prefix}/{{id}}/state": with_session("GET", "/state"),
            f"PUT {prefix}/{{id}}/state": restore,
            f"POST {prefix}/{{id}}/fork": with_session("POST", "/fork"),
        }

    def text(self) -> str:
        """A text whose length differs from those of the calls before."""
        return "The agent " + "a" * (next(self.numbers) % 40)

    def restore(self, path: str) -> None:
        """Exports a state and restores it."""
        self.request("PUT", path, self.request("GET", path))

    def complete(self) -> None:
        """Completions, whole and as a stream, with another seed at each call."""
        body = {"model": MODEL, "prompt": self.text(), "max_tokens": 5, "seed": next(self.numbers), "learn": False}
        self.request("POST", "/v1/completions", body | {"n": 2, "logprobs": 2, "top_p": 0.9})
        data = json.dumps(body | {"stream": True}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.server.url}/v1/completions", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")

    def chat(self) -> None:
        """A chat completion that is learned from."""
        messages = [{"role": "user", "content": f"Hello {next(self.numbers)}"}]
        self.request("POST", "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 5})

    def add_example(self) -> int:
        """Adds an example that is short enough to be learned in one update."""
        text = f"The agent learns {next(self.numbers)}."
        return self.request("POST", f"/v1/models/{MODEL}/examples", {"text": text})["number"]

    def erase_example(self) -> None:
        """Adds an example and erases it, learned or not."""
        self.request("DELETE", f"/v1/models/{MODEL}/examples/{self.add_example()}")

    def fork_branch(self) -> None:
        """Forks the branch to its own key."""
        self.request("POST", f"/v1/models/{MODEL}/branch/fork", {"target_key": self.key_id})

    def freeze(self) -> None:
        """Stops learning and resumes it."""
        self.request("POST", f"/v1/models/{MODEL}/freeze", {})
        self.request("POST", f"/v1/models/{MODEL}/unfreeze", {})

    def continue_text(self) -> None:
        """Continues a text twice."""
        sessions = f"/v1/models/{MODEL}/sessions"
        id = self.request("POST", sessions, {})["id"]
        for prompt in (self.text(), " learns"):
            self.request("POST", f"{sessions}/{id}/completions", {"prompt": prompt, "max_tokens": 3})
        self.request("DELETE", f"{sessions}/{id}")

    def act(self) -> None:
        """A lifetime of two steps, in which the agent learns."""
        sessions = f"/v1/agents/{AGENT}/sessions"
        id = self.request("POST", sessions, {"seed": next(self.numbers)})["id"]
        self.request("POST", f"{sessions}/{id}/act", {"observation": 0})
        self.request("POST", f"{sessions}/{id}/act", {"observation": 0, "reward": 1.0})
        self.request("DELETE", f"{sessions}/{id}")

    def send_feedback(self) -> None:
        """A step whose consequences are sent ahead of the next observation."""
        sessions = f"/v1/agents/{AGENT}/sessions"
        id = self.request("POST", sessions, {})["id"]
        self.request("POST", f"{sessions}/{id}/act", {"observation": 0})
        self.request("POST", f"{sessions}/{id}/feedback", {"reward": 1.0})
        self.request("DELETE", f"{sessions}/{id}")
