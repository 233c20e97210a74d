"""An agent's lives in use: an outside program is the environment, the server remembers.

A session is one life. Its state is on the disk when a step is acknowledged, so that a life goes on after any crash. In
a frozen deployment the weights of a life stay those of its birth; online it learns from each step. Steps are taken one
at a time, by one thread.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ontogeny import trees
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.server.learning.branches import read_about
from ontogeny.server.sessions.store import SessionStore, steps_of
from ontogeny.server.store import Store
from ontogeny.stages.session import AgentState, load_session

FORMAT = "1"


class Session(NamedTuple):
    id: str
    steps: int
    living: AgentState
    feedback: dict[str, Any] | None  # what the last action led to, if it was said already
    weights: str  # digest

    @property
    def about(self) -> dict[str, Any]:
        return {"id": self.id, "object": "session", "steps": self.steps, "weights": self.weights}


class Sessions:
    def __init__(self, name: str, folder: Path, store: Store, *, online: bool) -> None:
        self.name, self.online = name, online
        self._shelf = SessionStore(store, name)
        self.loop = load_session(folder, online=online)
        self.digest = self._born_digest()
        self._thread = ThreadPoolExecutor(1, f"agent {name}")

    def stop(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def submit(self, work: Any, *arguments: Any) -> Any:
        """A future of what `work` returns, on the thread of this agent."""
        return self._thread.submit(work, *arguments)

    def warm_up(self) -> None:
        """Compiles what a step needs, with observations that mean nothing."""
        spec = self.loop.spec
        seen = 0 if spec.num_observations else np.zeros(spec.observation_shape, np.float32)
        _, living = self.loop.act(self.loop.init(0), seen)
        self.loop.act(living, seen, outcome=dict.fromkeys(spec.outcome_features, 0.0))

    def unchanged(self) -> bool:
        return self._born_digest() == self.digest

    def create(self, key: str, seed: int) -> Session:
        living = self.loop.init(seed)
        return self._insert(key, living, 0, None)

    def get(self, key: str, id: str) -> Session:
        steps, data = self._shelf.read(key, id)
        living, about = self._read(data)
        return Session(id, steps, living, json.loads(about["feedback"]), about["weights"])

    def drop(self, key: str, id: str) -> None:
        self._shelf.drop(key, id)

    def feedback(self, key: str, id: str, said: dict[str, Any]) -> Session:
        """Keeps what the last action led to, until the next observation comes."""
        session = self.get(key, id)
        if int(session.living.action) < 0:
            raise BadInput("there is no action yet that could have led to anything")
        if session.feedback is not None:
            raise BadInput("what the last action led to was said already")
        self.loop.check_outcome(said.get("reward"), said.get("outcome"))
        return self._write(key, session._replace(feedback=said))

    def act(self, key: str, id: str, observation: Any, first: bool, said: dict[str, Any]) -> tuple[int, Session]:
        """Takes in what the last action led to, said now or before, and acts on an observation."""
        session = self.get(key, id)
        if said and session.feedback is not None:
            raise BadInput("what the last action led to was said already")
        known = {k: v for k, v in (said or session.feedback or {}).items() if v is not None}
        action, living = self.loop.act(session.living, observation, first=first, **known)
        after = session._replace(steps=session.steps + 1, living=living, feedback=None)
        if not self.online and trees.digest(living.state.weights) != session.weights:
            raise ContractViolation("the weights changed while frozen")
        return action, self._write(key, after)

    def export(self, key: str, id: str) -> bytes:
        return self._encoded(self.get(key, id))

    def restore(self, key: str, id: str, data: bytes) -> Session:
        """Makes a session what another one was, whose weights it has; online the weights may be any of this agent's."""
        session = self.get(key, id)
        living, about = self._read(data)
        if about.get("agent") != self.digest:
            raise BadInput(f"this state belongs to agent {str(about.get('agent'))[:16]}, here is {self.digest[:16]}")
        if not self.online and about["weights"] != session.weights:
            raise BadInput(
                f"this state belongs to weights {about['weights'][:16]}, this frozen session has {session.weights[:16]}"
            )
        feedback, steps = json.loads(about["feedback"]), steps_of(about)
        return self._write(key, Session(id, steps, living, feedback, about["weights"]))

    def fork(self, key: str, id: str) -> Session:
        """A new session that goes on from where this one is."""
        session = self.get(key, id)
        return self._insert(key, session.living, session.steps, session.feedback)

    def _insert(self, key: str, living: AgentState, steps: int, feedback: dict[str, Any] | None) -> Session:
        made = Session("", steps, living, feedback, trees.digest(living.state.weights))
        return made._replace(id=self._shelf.insert(key, steps, self._encoded(made)))

    def _write(self, key: str, session: Session) -> Session:
        session = session._replace(weights=trees.digest(session.living.state.weights))
        self._shelf.write(key, session.id, session.steps, self._encoded(session))
        return session

    def _encoded(self, session: Session) -> bytes:
        about = {
            "format": FORMAT,
            "agent": self.digest,
            "weights": session.weights,
            "steps": str(session.steps),
            "feedback": json.dumps(session.feedback),
            "digest": trees.digest(session.living),
        }
        arrays = {k: np.require(a, requirements="C") for k, a in trees.to_arrays(session.living).items()}
        return encode(arrays, metadata=about)

    def _read(self, data: bytes) -> tuple[AgentState, Mapping[str, str]]:
        about = read_about(data)
        missing = {"agent", "weights", "steps", "feedback", "digest"} - set(about)
        if about.get("format") != FORMAT or missing:
            raise BadInput("this is no state of a session")
        try:
            living = trees.from_arrays(self.loop.init(0), decode(data))
            feedback = json.loads(about["feedback"])
        except (SafetensorError, ValueError) as error:
            raise BadInput(f"this state does not fit this agent or is damaged: {error}") from None
        whole = trees.digest(living) == about["digest"] and trees.digest(living.state.weights) == about["weights"]
        if not whole or not isinstance(feedback, dict | None):
            raise BadInput("this state is damaged: its digest is not the one that it names")
        return living, about

    def _born_digest(self) -> str:
        """Of what every life of this agent begins with."""
        return trees.digest((self.loop.saved.genome, self.loop.saved.state))
