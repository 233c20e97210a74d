"""Routes of online learning: a key's branch and examples; an admin key may change any branch."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response

from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.api import context, errors, teaching
from ontogeny.server.api.bodies import BodyRoute
from ontogeny.server.api.context import AdminCaller, Caller, LimitedCaller
from ontogeny.server.api.errors import ApiError
from ontogeny.server.api.identification import identify
from ontogeny.server.api.protocol import MAX_INTEGER, ExampleRequest, ForkRequest, RollbackRequest
from ontogeny.server.api.waiting import run_while_connected
from ontogeny.server.fair_executor import wait_for_call
from ontogeny.server.keys import ApiKey
from ontogeny.server.learning import branch_changes, journal, listing, partial_steps, text_scores, versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.journal import LearningDecision
from ontogeny.server.learning.listing import PageRequest
from ontogeny.server.learning.text_scores import ScoredText
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.stats import RatioEstimate

router = APIRouter(route_class=BodyRoute, prefix="/v1/models/{model}", responses=errors.RESPONSES)
MAX_DECISIONS = 20  # in the description of a branch
Result = TypeVar("Result")


async def get_branches(request: Request, model: str) -> BranchManager:
    """Returns the branches of a model; a frozen model is a 409 error."""
    deployment = context.get_language_model(request, model)
    if deployment.branches is None:
        raise ApiError(409, f"'{deployment.name}' is frozen, so it does not learn", code="frozen")
    return deployment.branches


Branches = Annotated[BranchManager, Depends(get_branches)]


@router.get("/branch")
def show_branch(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """Returns the mode of a model, the current version of this key's branch, and the last decisions of the learner."""
    deployment = context.get_language_model(request, model)
    branches = deployment.branches
    description: dict[str, Any] = {"object": "branch", "model": deployment.name, "trained_digest": deployment.digest}
    description["is_admin"] = key.is_admin
    if branches is None:
        frozen = {"mode": "frozen", "learning": False, "current_version": 0, "weight_distance": 0.0, "decisions": []}
        return description | frozen
    branch = branches.open(key.id)
    current = versions.get_version(branches.store, branch.branch, branch.current_version)
    failure = branches.loop.failure(branch.branch)
    decisions = journal.list_recent_decisions(branches.store, branch.branch, MAX_DECISIONS)
    return description | {
        "mode": "online",
        "learning": not branch.frozen,
        "shared": branches.shared,
        "current_version": current.number,
        "version_description": versions.describe_version(branches.store, current),
        "failure": failure,
        "digest": current.digest,
        "weight_distance": current.weight_distance,
        "held_out_loss": current.held_out_loss,
        "trained_held_out_loss": branches.learner.trained_loss,
        "max_forgetting": branches.config.max_forgetting,
        "num_pending": journal.num_pending(branches.store, branch),
        "decisions": [_describe_decision(branches, decision) for decision in decisions],
    }


async def get_page(
    limit: Annotated[int, Query(ge=1, le=listing.MAX_PAGE_LENGTH)] = listing.MAX_PAGE_LENGTH,
    after: Annotated[int | None, Query(ge=0, lt=MAX_INTEGER, description="The number of the previous entry.")] = None,
    order: Literal["asc", "desc"] = "asc",
) -> PageRequest:
    """Returns the part of a list that a request asks for."""
    return PageRequest(limit, after, order == "desc")


Page = Annotated[PageRequest, Depends(get_page)]


@router.get("/branch/saving")
def show_saving(key: Caller, branches: Branches, page: Page) -> dict[str, Any]:
    """Says whether the model learns from this key: the bits per byte that learning saves, overall and after each text.

    Every text is scored under the frozen (trained) and the live weights before it is learned. `saving` is the mean
    difference in bits per byte, weighted by bytes, with an interval that is valid however often it is looked at.
    """
    store, branch = branches.store, branches.open(key.id).branch
    scores, has_more = listing.list_scores(store, branch, page)
    newest = text_scores.find_newest(store, branch)
    texts = 0 if newest is None else newest.num_texts
    totals: dict[str, Any] = {"num_texts": texts, "num_bytes": 0, "frozen_bits_per_byte": None}
    totals |= {"live_bits_per_byte": None, "saving": _describe_saving(newest), "verdict": "undetermined"}
    if newest is not None and texts:
        frozen = newest.total_frozen_bits / newest.total_bytes
        totals |= {"num_bytes": int(newest.total_bytes), "frozen_bits_per_byte": frozen}
        totals |= {"live_bits_per_byte": frozen - newest.saving.mean, "verdict": newest.verdict}
    data = [
        {
            "number": score.number,
            "example": score.example,
            "version": score.version,
            "num_bytes": score.num_bytes,
            "frozen_bits_per_byte": score.frozen_bits / score.num_bytes,
            "live_bits_per_byte": score.live_bits / score.num_bytes,
            "saving": _describe_saving(score),
            "created_at": score.created_at,
        }
        for score in scores
    ]
    return {"object": "saving", "model": branches.deployment} | totals | {"data": data, "has_more": has_more}


@router.get("/branch/versions")
def list_versions(key: Caller, branches: Branches, page: Page) -> dict[str, Any]:
    """Lists versions of this key's branch with their digests and examples, by number."""
    store = branches.store
    branch_versions, has_more = listing.list_versions_of_branch(store, branches.open(key.id).branch, page)
    data = [
        version._asdict()
        | {
            "version_description": versions.describe_version(store, version),
            "steps": [step._asdict() for step in partial_steps.steps_from_json(version.steps) or []] or None,
        }
        for version in branch_versions
    ]
    return {"object": "list", "data": data, "has_more": has_more}


@router.get("/branch/state", response_class=Response, responses=context.STATE_DOWNLOAD)
async def export_branch(request: Request, key: LimitedCaller, branches: Branches) -> Response:
    """Returns the current version of this key's branch as safetensors, with digest and version."""
    context.note_branch(request, branches, key)
    state = await _run(request, key, branches.export, key.id, before=partial(branches.request_current, key.id))
    return Response(state, media_type="application/octet-stream")


@router.put("/branch/state", openapi_extra=context.STATE_UPLOAD)
async def restore_branch(request: Request, key: LimitedCaller, branches: Branches) -> dict[str, Any]:
    """Makes an exported state the next version of this key's branch, if it passes the acceptance test."""
    if branches.shared and not key.is_admin:
        raise errors.forbidden("changing a shared branch")
    state = await request.body()
    try:
        identity = await _identify(request)
        return (await _run(request, key, branches.restore, key.id, state, key.id, identity))._asdict()
    except BadInput as error:
        raise errors.bad_request(str(error), code="state_rejected") from None


@router.post("/branch/fork")
async def fork_branch(request: Request, key: AdminCaller, branches: Branches, body: ForkRequest) -> dict[str, Any]:
    """Makes the current version of one key's branch the current version of another key's branch.

    The earlier versions of the target branch stay available for a rollback.
    """
    if branches.shared:
        raise errors.bad_request(f"'{branches.deployment}' has one shared branch, so it cannot be forked", "target_key")
    existing = await asyncio.to_thread(keys.list_keys, branches.store)
    if not any(k.id == body.target_key and k.revoked_at is None for k in existing):
        raise errors.missing_resource(f"there is no key '{body.target_key}'", param="target_key")
    owner_key = key.id if body.owner_key is None else body.owner_key
    await asyncio.to_thread(_find_branch, branches, owner_key)
    try:
        identity = await _identify(request)
        return (await _run(request, key, branches.fork, owner_key, body.target_key, key.id, identity))._asdict()
    except BadInput as error:
        raise errors.bad_request(str(error), "target_key") from None


@router.post("/examples")
async def add_example(request: Request, key: LimitedCaller, branches: Branches, body: ExampleRequest) -> dict[str, Any]:
    """Adds a text to learn from to this key's branch. The text is on disk when the response is sent."""
    number = await teaching.add_text(request, branches, key, body.text)
    if number is None:
        raise ApiError(409, f"'{branches.deployment}' is frozen at present", code="frozen")
    return {"object": "example", "number": number}


@router.get("/examples")
def list_examples(key: Caller, branches: Branches, page: Page) -> dict[str, Any]:
    """Lists examples that this key has added and that are not erased, by number, and what has become of each."""
    branch = branches.open(key.id).branch
    examples, has_more = listing.list_examples_of_key(branches.store, branch, key.id, page)
    return {"object": "list", "data": [example._asdict() for example in examples], "has_more": has_more}


@router.delete("/examples/{number}")
async def erase_example(
    request: Request, model: str, key: LimitedCaller, branches: Branches, number: int
) -> dict[str, Any]:
    """Erases an example and every version that was learned from it; the learner replays the later examples."""
    is_number = 0 < number < MAX_INTEGER
    example = await asyncio.to_thread(journal.find_example, branches.store, number) if is_number else None
    is_here = example is not None and example.branch.rpartition("/")[0] == branches.deployment
    if example is None or not is_here or example.erased_at is not None or (example.key != key.id and not key.is_admin):
        raise errors.missing_resource(f"there is no example {number}")
    try:
        await _run(request, key, context.get_language_model(request, model).erase_example, example, key.id)
    except BadInput as error:
        raise errors.missing_resource(str(error)) from None
    return {"object": "example", "number": number, "erased": True}


@router.post("/rollback")
async def roll_back(request: Request, key: AdminCaller, branches: Branches, body: RollbackRequest) -> dict[str, Any]:
    """Makes an earlier version of a branch current; 0 is the trained weights."""
    if body.owner_key:
        await asyncio.to_thread(_find_branch, branches, body.owner_key)
    owner_key, identity = body.owner_key or key.id, await _identify(request)
    try:
        return (await asyncio.to_thread(branches.rollback, owner_key, body.version, key.id, identity))._asdict()
    except BadInput as error:
        raise errors.bad_request(str(error), "version") from None


@router.post("/freeze")
def freeze(key: AdminCaller, branches: Branches) -> dict[str, Any]:
    """Stops learning in all branches of a model."""
    branch_changes.set_frozen(branches.store, branches.deployment, True, key.id)
    return {"model": branches.deployment, "learning": False}


@router.post("/unfreeze")
def unfreeze(key: AdminCaller, branches: Branches) -> dict[str, Any]:
    """Resumes learning in all branches of a model."""
    branch_changes.set_frozen(branches.store, branches.deployment, False, key.id)
    return {"model": branches.deployment, "learning": True}


def _describe_decision(branches: BranchManager, decision: LearningDecision) -> dict[str, Any]:
    """Returns a decision, with the words that say what its version was learned from."""
    if decision.version is None:
        return decision._asdict() | {"version_description": None}
    try:
        version = versions.get_version(branches.store, decision.branch, decision.version)
    except BadInput:  # a damaged page of the database has lost the version
        return decision._asdict() | {"version_description": "unknown"}
    return decision._asdict() | {"version_description": versions.describe_version(branches.store, version)}


def _describe_saving(score: ScoredText | None) -> dict[str, float | None]:
    """Returns the mean saving up to a text and its interval, whose ends are null as long as there are too few texts."""
    saving = RatioEstimate(math.nan, math.nan, math.nan) if score is None else score.saving
    numbers = {name: bound if math.isfinite(bound) else None for name, bound in saving._asdict().items()}
    return numbers | {"confidence": 1 - text_scores.LEVEL}


def _find_branch(branches: BranchManager, owner_key: str) -> journal.Branch:
    """Returns the branch of a key; an absent one is a 404 error."""
    with contextlib.suppress(BadInput):
        return journal.get_branch(branches.store, f"{branches.deployment}/{owner_key}")
    raise errors.missing_resource(f"'{branches.deployment}' has no branch of key '{owner_key}'", param="owner_key")


async def _identify(request: Request) -> RequestIdentity | None:
    """Returns the features by which a request is recognized that has an idempotency key; None for another one."""
    identity = await identify(request)
    return None if identity.idempotency_key is None else identity


async def _run(
    request: Request,
    key: ApiKey,
    function: Callable[..., Result],
    *arguments: Any,
    before: Callable[[], Awaitable[Any]] | None = None,
) -> Result:
    """Calls a function that may take seconds, on another thread, when it is the turn of the key.

    It is not called if the client disconnects, or the time limit passes, before its turn.

    Args:
        before: Awaited before; it loads what the function needs, without occupying a thread.
    """
    server = context.get_context(request)

    async def work() -> Result:
        if before is not None:
            await before()
        return await wait_for_call(server.long_calls.submit(key.id, function, *arguments))

    return await run_while_connected(request, work(), server.deployments.config.time_limit)
