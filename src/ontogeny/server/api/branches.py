"""What a key may see and do about its line of learning, and an admin about any."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.api import errors as faults
from ontogeny.server.api import protocol
from ontogeny.server.api.context import admin, caller, language, service, take
from ontogeny.server.api.errors import ApiError
from ontogeny.server.deployments import LanguageDeployment
from ontogeny.server.keys import Key
from ontogeny.server.learning import journal
from ontogeny.server.learning.branches import BranchManager

router = APIRouter(prefix="/v1/models/{model}", responses=faults.DOCUMENTED)
Caller = Annotated[Key, Depends(caller)]
Admin = Annotated[Key, Depends(admin)]
SAFETENSORS = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
SHOWN = 20  # decisions
FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _lines(made: LanguageDeployment) -> BranchManager:
    if made.lines is None:
        raise ApiError(409, f"'{made.name}' is frozen: nothing is learned in it", code="frozen")
    return made.lines


@router.get("/line")
def line(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """Whether this key's line is frozen or learning, how far its weights have moved, the last decisions of the gate."""
    made = language(request, model)
    common = {"object": "line", "model": made.name, "trained": made.digest, "admin": key.admin}
    if made.lines is None:
        still = {"case": "frozen", "learning": False, "version": 0, "distance": 0.0, "decisions": []}
        return common | still
    found = made.lines.open(key.id)
    head = journal.version(made.lines.store, found.line, found.head)
    decided = [d for d in journal.decisions(made.lines.store, made.name) if d.line == found.line][-SHOWN:]
    return common | {
        "case": "online",
        "learning": not found.frozen,
        "shared": made.lines.shared,
        "version": head.number,
        "digest": head.digest,
        "distance": head.distance,
        "held_out": head.held_out,
        "held_out_trained": made.lines.learner.trained,
        "bound": made.lines.settings.bound,
        "pending": journal.pending(made.lines.store, found),
        "decisions": [d._asdict() for d in reversed(decided)],
    }


@router.get("/line/versions")
def versions(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """Every version of the weights: number, digest, what it learned from."""
    lines = _lines(language(request, model))
    found = journal.versions(lines.store, lines.open(key.id).line)
    return {"object": "list", "data": [v._asdict() for v in found]}


@router.get("/line/state", response_class=Response, responses={200: SAFETENSORS})
async def export(request: Request, model: str, key: Caller) -> Response:
    """This key's line as safetensors, with digest and version."""
    lines = _lines(language(request, model))
    take(request, key)
    return Response(await asyncio.to_thread(lines.export, key.id), media_type="application/octet-stream")


@router.put("/line/state", openapi_extra=FILE)
async def restore(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """Makes such a file this key's next version, if it belongs to these trained weights and passes the gate."""
    lines = _lines(language(request, model))
    take(request, key)
    if lines.shared and not key.admin:
        raise faults.forbidden("a line that is shared")
    data = await request.body()
    try:
        made = await asyncio.to_thread(lines.restore, key.id, data, key.id)
    except BadInput as error:
        raise faults.bad(str(error), code="state_refused") from None
    return made._asdict()


@router.post("/line/fork")
async def fork(request: Request, model: str, body: protocol.Fork, key: Admin) -> dict[str, Any]:
    """Another key's line goes on from where this one's is; what it had learned is still among its versions."""
    lines = _lines(language(request, model))
    if lines.shared:
        raise faults.bad(f"'{model}' has one line for all keys", "to")
    if not any(found.id == body.to and found.revoked is None for found in keys.listed(lines.store)):
        raise faults.absent(f"there is no key '{body.to}'", param="to")
    owner = key.id if body.owner is None else body.owner
    if all(found.owner != owner for found in journal.lines(lines.store, lines.deployment)):
        raise faults.absent(f"'{model}' has no line of '{owner}'", param="owner")
    take(request, key)
    try:
        return (await asyncio.to_thread(lines.fork, owner, body.to, key.id))._asdict()
    except BadInput as error:
        raise faults.bad(str(error), "to") from None


@router.post("/contributions")
async def contribute(request: Request, model: str, body: protocol.Given, key: Caller) -> dict[str, Any]:
    """Gives a text to be learned from; it is on the disk when this is answered."""
    lines = _lines(language(request, model))
    take(request, key)
    try:
        number = await asyncio.to_thread(lines.contribute, key.id, key.id, body.text)
    except journal.JournalFull:
        raise faults.too_many("so much waits to be learned that no more is taken", 10, "learner_busy") from None
    if number is None:
        raise ApiError(409, f"'{model}' is frozen for now", code="frozen")
    return {"object": "contribution", "number": number}


@router.get("/contributions")
def contributions(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """What this key has given that was not erased."""
    lines = _lines(language(request, model))
    found = journal.contributions(lines.store, lines.open(key.id).line)
    own = [c for c in found if c.key == key.id and c.erased is None]
    return {"object": "list", "data": [c._asdict() for c in own]}


@router.delete("/contributions/{number}")
async def erase(request: Request, model: str, number: int, key: Caller) -> dict[str, Any]:
    """Deletes a contribution, and learns the line again without it."""
    made = language(request, model)
    lines = _lines(made)
    take(request, key)
    found = journal.contribution(lines.store, number) if 0 < number < 2**63 else None
    here = found is not None and found.line.rpartition("/")[0] == lines.deployment and found.erased is None
    if found is None or not here or (found.key != key.id and not key.admin):
        raise faults.absent(f"there is no contribution {number}")
    try:
        await asyncio.to_thread(made.erase, found, key.id)
        request.app.state.recent.forget(found.key, made.name)
    except BadInput as error:
        raise faults.absent(str(error)) from None
    return {"object": "contribution", "number": number, "erased": True}


@router.post("/rollback")
def rollback(request: Request, model: str, body: protocol.GoBack, key: Admin) -> dict[str, Any]:
    """Makes an earlier version live; 0 is the trained weights."""
    lines = _lines(language(request, model))
    found = next(
        (n for n in journal.lines(lines.store, lines.deployment) if n.owner == body.owner), None
    ) if body.owner else lines.open(key.id)  # fmt: skip
    if found is None:
        raise faults.absent(f"'{model}' has no line of '{body.owner}'", param="owner")
    try:
        return journal.rollback(lines.store, found.line, body.version, key.id)._asdict()
    except BadInput as error:
        raise faults.bad(str(error), "version") from None


@router.post("/freeze")
def freeze(request: Request, model: str, key: Admin) -> dict[str, Any]:
    """Stops learning in all lines."""
    return _freeze(request, model, key, True)


@router.post("/thaw")
def thaw(request: Request, model: str, key: Admin) -> dict[str, Any]:
    """Lets all lines learn again."""
    return _freeze(request, model, key, False)


def _freeze(request: Request, model: str, key: Key, frozen: bool) -> dict[str, Any]:
    lines = _lines(language(request, model))
    journal.freeze(service(request).store, lines.deployment, frozen, key.id)
    return {"model": model, "learning": not frozen}
