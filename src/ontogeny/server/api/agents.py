"""Routes of agents: sessions in which an outside program is the environment."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from ontogeny.server.api import context, errors
from ontogeny.server.api.bodies import BodyRoute
from ontogeny.server.api.context import Caller
from ontogeny.server.api.protocol import FeedbackRequest, LifetimeRequest, ObservationRequest
from ontogeny.server.api.sessions import SessionCaller, add_session_routes
from ontogeny.server.sessions.agents import AgentSessions
from ontogeny.server.sessions.store import describe_session

router = APIRouter(route_class=BodyRoute, responses=errors.RESPONSES)
session_router = APIRouter(route_class=BodyRoute, prefix="/v1/agents/{name}/sessions", responses=errors.RESPONSES)


@router.get("/v1/agents/{name}")
def describe_agent(request: Request, name: str, key: Caller) -> dict[str, Any]:
    """Describes the observations, actions and outcome features of an agent."""
    deployment = context.get_agent(request, name)
    spec = deployment.sessions.agent.spec
    return {
        "object": "agent",
        "id": deployment.name,
        "mode": "online" if deployment.online else "frozen",
        "num_actions": spec.num_actions,
        "num_observations": spec.num_observations or None,
        "observation_shape": list(spec.observation_shape),
        "outcome_features": list(spec.outcome_features),
    }


async def get_agent_caller(request: Request, name: str, key: Caller) -> SessionCaller:
    """Returns the caller of the sessions of an agent."""
    return SessionCaller(request, key, context.get_agent(request, name))


AgentCaller = Annotated[SessionCaller, Depends(get_agent_caller)]


@session_router.post("")
async def create_session(sessions: AgentCaller, body: LifetimeRequest | None = None) -> dict[str, Any]:
    """Begins a lifetime of the agent."""
    return await sessions.create(AgentSessions.create, 0 if body is None else body.seed, await sessions.identify())


@session_router.post("/{id}/act")
async def act(sessions: AgentCaller, id: str, body: ObservationRequest) -> dict[str, Any]:
    """Returns the action of the agent on an observation. The step is on disk when the response is sent."""
    feedback = body.model_dump(include={"reward", "outcome", "terminated"}, exclude_none=True)
    with _reject_observation():
        observations = body.observation, body.first, body.final_observation
        action, session = await sessions.call(AgentSessions.act, id, *observations, feedback, await sessions.identify())
    return describe_session(session) | {"action": action}


@session_router.post("/{id}/feedback")
async def send_feedback(sessions: AgentCaller, id: str, body: FeedbackRequest) -> dict[str, Any]:
    """Stores the consequences of the last action; they are applied with the next observation."""
    feedback, identity = body.model_dump(exclude_none=True), await sessions.identify()
    with _reject_observation():
        return await sessions.describe(AgentSessions.add_feedback, id, feedback, identity)


@contextmanager
def _reject_observation() -> Iterator[None]:
    """Converts errors of numpy about an observation to a 400 error."""
    try:
        yield
    except (OverflowError, TypeError, ValueError) as error:
        message = f"the observation does not fit the environment of this agent: {error}"
        raise errors.bad_request(message, "observation") from None


async def _restore(sessions: SessionCaller, id: str, state: bytes) -> Any:
    """Replaces the state of a session, for `add_session_routes`."""
    return await sessions.call(AgentSessions.restore, id, state)


add_session_routes(session_router, get_agent_caller, _restore)
router.include_router(session_router)
