"""Agents: sessions in which an outside program is the environment."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from ontogeny.server.api import errors as faults
from ontogeny.server.api import protocol
from ontogeny.server.api.branches import FILE, SAFETENSORS
from ontogeny.server.api.context import agent, bringing_state, caller, done, take
from ontogeny.server.keys import Key
from ontogeny.server.sessions.agents import Sessions

router = APIRouter(prefix="/v1/agents/{name}", responses=faults.DOCUMENTED)
Caller = Annotated[Key, Depends(caller)]


async def _do(request: Request, name: str, key: Key, what: Callable[..., Any], *arguments: Any) -> Any:
    """Runs one of `Sessions`' methods on the agent's thread, and turns what goes wrong into answers."""
    made = agent(request, name)
    take(request, key)
    work = made.sessions.submit(what, made.sessions, key.id, *arguments)
    try:
        return await done(request, work)
    except (OverflowError, TypeError, ValueError) as error:
        raise faults.bad(
            f"the observation is not what this agent's environment shows: {error}", "observation"
        ) from None


@router.get("")
def about(request: Request, name: str, key: Caller) -> dict[str, Any]:
    """What the agent sees, does, and calls facts."""
    made = agent(request, name)
    spec = made.sessions.loop.spec
    return {
        "object": "agent",
        "id": made.name,
        "case": "online" if made.online else "frozen",
        "actions": spec.num_actions,
        "observations": spec.num_observations or None,
        "observation_shape": list(spec.observation_shape),
        "outcome_features": list(spec.outcome_features),
    }


@router.post("/sessions")
async def create(request: Request, name: str, key: Caller, body: protocol.Birth | None = None) -> dict[str, Any]:
    """A life begins."""
    made = await _do(request, name, key, Sessions.create, 0 if body is None else body.seed)
    return made.about


@router.get("/sessions/{id}")
async def show(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """How many steps a life has had, and the digest of its weights."""
    return (await _do(request, name, key, Sessions.get, id)).about


@router.delete("/sessions/{id}")
async def drop(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """Forgets a life."""
    await _do(request, name, key, Sessions.drop, id)
    return {"id": id, "deleted": True}


@router.post("/sessions/{id}/act")
async def act(request: Request, name: str, id: str, body: protocol.Seen, key: Caller) -> dict[str, Any]:
    """What the agent does on an observation. The step is on the disk when this is answered."""
    said = body.model_dump(include={"reward", "outcome", "terminated"}, exclude_none=True)
    action, session = await _do(request, name, key, Sessions.act, id, body.observation, body.first, said)
    return session.about | {"action": action}


@router.post("/sessions/{id}/feedback")
async def feedback(request: Request, name: str, id: str, body: protocol.Feedback, key: Caller) -> dict[str, Any]:
    """What the last action led to; it is taken in with the next observation."""
    said = body.model_dump(exclude_none=True)
    return (await _do(request, name, key, Sessions.feedback, id, said)).about


@router.get("/sessions/{id}/state", response_class=Response, responses={200: SAFETENSORS})
async def export(request: Request, name: str, id: str, key: Caller) -> Response:
    """A life as safetensors: activations and weights, with their digests."""
    data = await _do(request, name, key, Sessions.export, id)
    return Response(data, media_type="application/octet-stream")


@router.put("/sessions/{id}/state", openapi_extra=FILE)
async def restore(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """Makes this life what such a file says, if it belongs to these weights."""
    data = await request.body()
    with bringing_state():
        return (await _do(request, name, key, Sessions.restore, id, data)).about


@router.post("/sessions/{id}/fork")
async def fork(request: Request, name: str, id: str, key: Caller) -> dict[str, Any]:
    """A second life that goes on from where this one is."""
    return (await _do(request, name, key, Sessions.fork, id)).about
