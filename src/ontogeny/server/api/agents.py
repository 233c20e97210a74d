"""Routes of agents: sessions in which an outside program is the environment."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from ontogeny.server.api import errors
from ontogeny.server.api.context import (
    STATE_DOWNLOAD,
    STATE_UPLOAD,
    Caller,
    apply_rate_limits,
    get_agent,
    label_state_errors,
    wait_for_session,
)
from ontogeny.server.api.protocol import FeedbackRequest, LifetimeRequest, ObservationRequest
from ontogeny.server.keys import ApiKey
from ontogeny.server.sessions.agents import AgentSessions

router = APIRouter(prefix="/v1/agents/{name}", responses=errors.RESPONSES)


async def _call(request: Request, name: str, key: ApiKey, method: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a method of `AgentSessions` on the thread of the agent."""
    agent = get_agent(request, name)
    apply_rate_limits(request, key)
    try:
        return await wait_for_session(request, agent.sessions.submit(method, key.id, *arguments))
    except (OverflowError, TypeError, ValueError) as error:
        message = f"the observation does not fit the environment of this agent: {error}"
        raise errors.bad_request(message, "observation") from None


@router.get("")
def describe_agent(request: Request, name: str, key: Caller) -> dict[str, Any]:
    """Describes the observations, actions and outcome features of an agent."""
    agent = get_agent(request, name)
    spec = agent.sessions.agent.spec
    return {
        "object": "agent",
        "id": agent.name,
        "mode": "online" if agent.online else "frozen",
        "num_actions": spec.num_actions,
        "num_observations": spec.num_observations or None,
        "observation_shape": list(spec.observation_shape),
        "outcome_features": list(spec.outcome_features),
    }


@router.post("/sessions")
async def create_session(
    request: Request, name: str, key: Caller, body: LifetimeRequest | None = None
) -> dict[str, Any]:
    """Begins a lifetime of the agent."""
    seed = 0 if body is None else body.seed
    return (await _call(request, name, key, AgentSessions.create, seed)).info


@router.get("/sessions/{id}")
async def show_session(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """Returns the number of steps of a session and the digest of its weights."""
    return (await _call(request, name, key, AgentSessions.get, id)).info


@router.delete("/sessions/{id}")
async def delete_session(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """Deletes a session."""
    await _call(request, name, key, AgentSessions.delete, id)
    return {"id": id, "deleted": True}


@router.post("/sessions/{id}/act")
async def act(request: Request, name: str, id: str, body: ObservationRequest, key: Caller) -> dict[str, Any]:
    """Returns the action of the agent on an observation. The step is on disk when the response is sent."""
    feedback = body.model_dump(include={"reward", "outcome", "terminated"}, exclude_none=True)
    arguments = (id, body.observation, body.first, feedback)
    action, session = await _call(request, name, key, AgentSessions.act, *arguments)
    return session.info | {"action": action}


@router.post("/sessions/{id}/feedback")
async def send_feedback(request: Request, name: str, id: str, body: FeedbackRequest, key: Caller) -> dict[str, Any]:
    """Stores the consequences of the last action; they are applied with the next observation."""
    feedback = body.model_dump(exclude_none=True)
    return (await _call(request, name, key, AgentSessions.add_feedback, id, feedback)).info


@router.get("/sessions/{id}/state", response_class=Response, responses=STATE_DOWNLOAD)
async def export_session(request: Request, name: str, id: str, key: Caller) -> Response:
    """Returns the activations and weights of a session as safetensors, with their digests."""
    state = await _call(request, name, key, AgentSessions.export, id)
    return Response(state, media_type="application/octet-stream")


@router.put("/sessions/{id}/state", openapi_extra=STATE_UPLOAD)
async def restore_session(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """Replaces the state of a session by an exported one of the same agent."""
    state = await request.body()
    with label_state_errors():
        return (await _call(request, name, key, AgentSessions.restore, id, state)).info


@router.post("/sessions/{id}/fork")
async def fork_session(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """Creates a second session that continues from the state of this one."""
    return (await _call(request, name, key, AgentSessions.fork, id)).info
