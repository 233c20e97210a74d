"""Sessions of agents: an outside program is the environment, and the server keeps the state of the agent.

A session is one lifetime of the agent. One thread takes the steps of all sessions of a deployment. In a frozen
deployment the weights of a session stay the initial ones; in an online deployment they learn from each step.
"""

import json
from typing import Any, NamedTuple

import numpy as np

from ontogeny import trees
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.sessions.store import SessionManager
from ontogeny.server.states import check_digest, decode_state, encode_state, read_metadata, read_num_steps
from ontogeny.server.store import Store
from ontogeny.stages.session import AgentSession, AgentState

STATE = "agent session"


class AgentSessionRecord(NamedTuple):
    """One lifetime of an agent on the server."""

    id: str
    num_steps: int
    state: AgentState
    feedback: dict[str, Any] | None  # for the last action, if it was sent ahead of the observation
    weights_digest: str
    revision: int = 0  # of the record that was read


class AgentSessions(SessionManager[AgentSessionRecord]):
    """The sessions of one agent.

    Args:
        name: The name of the deployment.
        agent: The agent; if it is online, the weights of each session learn.
        store: The database.
        max_waiting: Calls of one key that may wait.
    """

    def __init__(self, name: str, agent: AgentSession, store: Store, *, max_waiting: float = float("inf")) -> None:
        super().__init__(name, store, max_waiting=max_waiting)
        self.agent = agent
        self.digest = self._initial_digest()

    def warm_up(self) -> None:
        """Compiles a step, with meaningless observations."""
        spec = self.agent.spec
        observation = 0 if spec.num_observations else np.zeros(spec.observation_shape, np.float32)
        _, state = self.agent.act(self.agent.init(0), observation)
        self.agent.act(state, observation, outcome=dict.fromkeys(spec.outcome_features, 0.0))

    def is_unchanged(self) -> bool:
        """Whether the genome and initial weights still have the digest that they had at the start."""
        return self._initial_digest() == self.digest

    def create(self, key: str, seed: int, request: RequestIdentity | None = None) -> AgentSessionRecord:
        """Begins a lifetime with the given seed, once for an idempotency key."""
        return self._insert(key, self._session("", 0, self.agent.init(seed), None), request)

    def add_feedback(
        self, key: str, id: str, feedback: dict[str, Any], request: RequestIdentity | None = None
    ) -> AgentSessionRecord:
        """Stores the feedback for the last action until the next observation comes."""
        session = self.get(key, id)
        if self._find_answer(key, id, request) is not None:
            return session
        if int(session.state.action) < 0:
            raise BadInput("feedback needs an action, but this session has not acted yet")
        if session.feedback is not None:
            raise BadInput("the feedback for the last action was already sent")
        self.agent.check_outcome(feedback.get("reward"), feedback.get("outcome"))
        return self._write(key, session._replace(feedback=feedback), request)

    def act(
        self,
        key: str,
        id: str,
        observation: Any,
        first: bool,
        final_observation: Any,
        feedback: dict[str, Any],
        request: RequestIdentity | None = None,
    ) -> tuple[int, AgentSessionRecord]:
        """Applies the feedback for the last action, sent now or before, and acts on an observation.

        Args:
            key: The id of the key that owns the session.
            id: The session.
            observation: A whole number, or an array of numbers, as in the agent's environment.
            first: Whether the observation begins a new episode.
            final_observation: In that case, the observation that ended the last episode; None where it is unknown.
            feedback: `reward`, `outcome` and `terminated` after the last action; empty if sent before.
            request: If it repeats the last one of the session, the agent takes no step.

        Returns:
            The action and the new session.
        """
        session = self.get(key, id)
        if (answer := self._find_answer(key, id, request)) is not None:
            return answer["action"], session
        if feedback and session.feedback is not None:
            raise BadInput("the feedback for the last action was already sent")
        last_feedback = {k: v for k, v in (feedback or session.feedback or {}).items() if v is not None}
        action, state = self.agent.act(
            session.state, observation, first=first, final_observation=final_observation, **last_feedback
        )
        after = self._session(id, session.num_steps + 1, state, None)._replace(revision=session.revision)
        if not self.agent.online and after.weights_digest != session.weights_digest:
            raise ContractViolation("the weights changed in a frozen deployment")
        return action, self._write(key, after, request, {"action": action})

    def restore(self, key: str, id: str, data: bytes) -> AgentSessionRecord:
        """Replaces the state of a session by an exported one of the same agent and, if frozen, the same weights."""
        session, restored = self.get(key, id), self._decode(id, data)
        if not self.agent.online and restored.weights_digest != session.weights_digest:
            raise BadInput(
                f"this state belongs to weights {restored.weights_digest[:16]}, but this frozen session has weights "
                f"{session.weights_digest[:16]}"
            )
        self._check_feedback(restored.feedback)
        return self._write(key, restored._replace(revision=session.revision))

    def _check_feedback(self, feedback: dict[str, Any] | None) -> None:
        """Raises `BadInput` if no request could have sent this feedback, which a state file contains."""
        if feedback is None:
            return
        is_known = feedback.keys() <= {"reward", "outcome", "terminated"}
        if not is_known or not isinstance(feedback.get("terminated"), bool | None):
            raise BadInput("this state is damaged: its feedback has unknown fields or values")
        self.agent.check_outcome(feedback.get("reward"), feedback.get("outcome"))

    def _session(
        self, id: str, num_steps: int, state: AgentState, feedback: dict[str, Any] | None
    ) -> AgentSessionRecord:
        """Creates a record with the digest of the weights in the state."""
        return AgentSessionRecord(id, num_steps, state, feedback, trees.digest(state.state.weights))

    def _encode(self, session: AgentSessionRecord) -> bytes:
        """The exported bytes of a session."""
        return encode_state(
            STATE,
            session.state,
            {
                "agent": self.digest,
                "weights_digest": session.weights_digest,
                "num_steps": str(session.num_steps),
                "feedback": json.dumps(session.feedback),
            },
        )

    def _decode(self, id: str, data: bytes) -> AgentSessionRecord:
        """The session `id` from exported bytes; raises `BadInput` if they do not fit this agent."""
        metadata = read_metadata(data, STATE)
        if metadata.get("agent") != self.digest:
            raise BadInput(
                f"this state belongs to agent {str(metadata.get('agent'))[:16]}, but this is agent {self.digest[:16]}"
            )
        try:
            state = trees.from_arrays(self.agent.state_types, decode_state(data))
            feedback = json.loads(metadata["feedback"])
        except (LookupError, ValueError, TypeError, RecursionError) as error:
            raise BadInput(f"this state does not fit this agent or is damaged: {error}") from None
        check_digest(state, metadata)
        session = self._session(id, read_num_steps(metadata), state, feedback)
        if session.weights_digest != metadata.get("weights_digest") or not isinstance(feedback, dict | None):
            raise BadInput("this state is damaged: its weights or feedback differ from its metadata")
        return session

    def _initial_digest(self) -> str:
        """The digest of the genome and initial weights."""
        return trees.digest((self.agent.saved_agent.genome, self.agent.saved_agent.state))
