"""What every route needs: the key of the caller, the requested deployment, and the limits of the key."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ontogeny.server.api import errors
from ontogeny.server.api.bodies import BodyParser
from ontogeny.server.deployment_kinds import AgentDeployment, Deployment, LanguageDeployment, ServedWeights
from ontogeny.server.deployments import Deployments
from ontogeny.server.fair_executor import FairExecutor
from ontogeny.server.keys import ApiKey
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.intake import ExampleIntake
from ontogeny.server.rate_limits import RateLimits, TokenReservation
from ontogeny.server.usage import UsageMeter

BEARER = HTTPBearer(auto_error=False, description="The text of an API key.")
STATE_FILE: dict[str, Any] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}
STATE_UPLOAD: dict[str, Any] = {"requestBody": {"required": True, **STATE_FILE}}  # for OpenAPI
STATE_DOWNLOAD: dict[int | str, dict[str, Any]] = {200: STATE_FILE | {"description": "The state as safetensors."}}


class ServerContext(NamedTuple):
    """The parts of a server that routes use."""

    deployments: Deployments
    rate_limits: RateLimits
    meter: UsageMeter
    intake: ExampleIntake
    long_calls: FairExecutor  # for calls that may take seconds
    bodies: BodyParser


def get_context(request: Request) -> ServerContext:
    """Returns the context of the server that received a request."""
    return request.app.state.context


async def get_caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
) -> ApiKey:
    """Returns the key of a request, which the middleware `Authentication` has checked."""
    return request.state.key


Caller = Annotated[ApiKey, Depends(get_caller)]


async def authenticate_admin(key: Caller) -> ApiKey:
    """Returns the key of a request; raises a 403 error if it is not an admin key."""
    if not key.is_admin:
        raise errors.forbidden("this route")
    return key


AdminCaller = Annotated[ApiKey, Depends(authenticate_admin)]


def get_deployment(request: Request, name: str | None) -> Deployment:
    """Returns the deployment of this name, or the only one if `name` is None.

    Raises:
        ApiError: There is no such deployment, or it cannot answer now.
    """
    by_name = get_context(request).deployments.by_name
    if name is None and len(by_name) == 1:
        name = next(iter(by_name))
    names = ", ".join(by_name)
    if name is None:
        raise errors.bad_request(f"the request must name a model; available: {names}", "model")
    if name not in by_name:
        raise errors.missing_resource(f"there is no model '{name}'; available: {names}", "model_not_found", "model")
    check_ready(request)
    deployment = by_name[name]
    if deployment.failure is not None:
        raise errors.unavailable(deployment.failure)
    return deployment


def check_ready(request: Request) -> None:
    """Raises a 503 error while the server starts or after it has failed."""
    deployments = get_context(request).deployments
    if deployments.error is not None:
        raise errors.unavailable(errors.INTERNAL_ERROR)
    if not deployments.ready.is_set():
        raise errors.unavailable(
            "the server is still starting; /ready answers 200 once it accepts requests", "not_ready"
        )


def get_language_model(request: Request, name: str | None) -> LanguageDeployment:
    """Returns a language model like `get_deployment`; an agent is a 400 error."""
    deployment = get_deployment(request, name)
    if not isinstance(deployment, LanguageDeployment):
        raise errors.bad_request(f"'{deployment.name}' is an agent; it has sessions, not completions", "model")
    return deployment


def get_agent(request: Request, name: str) -> AgentDeployment:
    """Returns an agent like `get_deployment`; a language model is a 400 error."""
    deployment = get_deployment(request, name)
    if not isinstance(deployment, AgentDeployment):
        raise errors.bad_request(f"'{deployment.name}' is a language model, not an agent", "name")
    return deployment


def apply_rate_limits(request: Request, key: ApiKey, num_tokens: int = 0) -> TokenReservation:
    """Counts a request against the limits of its key; raises a 429 error beyond them.

    Returns:
        The tokens, which are taken in advance; those that the request does not use must be returned.
    """
    rate_limits = get_context(request).rate_limits
    seconds = rate_limits.acquire(key, num_tokens)
    if seconds > 0:
        raise errors.too_many_requests("the key has used its allowance per minute; retry later", seconds)
    reservation = TokenReservation(rate_limits, key, num_tokens)
    request.state.refund = reservation.refund
    return reservation


async def request_weights(request: Request, deployment: LanguageDeployment, key: ApiKey) -> ServedWeights:
    """Returns the weights that answer a request; see `note_branch`."""
    if deployment.branches is not None:
        note_branch(request, deployment.branches, key)
    return await deployment.request_weights(key.id)


def note_branch(request: Request, branches: BranchManager, key: ApiKey) -> None:
    """Notes the branch that answers a request, and the lease of this process, without which no answer may begin.

    The forwarding of requests needs both: the branch may follow the requests of its key to another process.
    """
    request.state.branch = branches.name_branch(key.id)
    request.state.lease = branches.ownership.number or 0  # none at present


async def open_cleanup() -> AsyncIterator[AsyncExitStack]:
    """Yields a stack of cleanup that runs once the response is sent, or cannot be sent any more."""
    async with AsyncExitStack() as cleanup:
        yield cleanup


Cleanup = Annotated[AsyncExitStack, Depends(open_cleanup)]


async def limit_rate(request: Request, key: Caller) -> ApiKey:
    """Returns the key of a request after `apply_rate_limits`."""
    apply_rate_limits(request, key)
    return key


LimitedCaller = Annotated[ApiKey, Depends(limit_rate)]
