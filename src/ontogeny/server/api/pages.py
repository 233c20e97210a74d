"""HTML pages, health checks and metrics."""

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse

from ontogeny.report.page import render
from ontogeny.server.api import context, errors
from ontogeny.server.api.context import Caller, ServerContext
from ontogeny.server.api.fair_route import FairRoute
from ontogeny.server.api.request_limits import server_stops

router = APIRouter(route_class=FairRoute)
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@router.get("/", include_in_schema=False)
def show_writing_page() -> HTMLResponse:
    """Returns the page on which an author continues a text with a model."""
    return _html("writing.html.j2")


@router.get("/docs", include_in_schema=False)
def show_routes_page(request: Request) -> HTMLResponse:
    """Returns a table of all routes."""
    routes = [
        (method.upper(), path, operation.get("description", ""))
        for path, methods in request.app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return _html("routes.html.j2", routes=routes)


@router.get("/health")
async def check_health() -> dict[str, str]:
    """Answers as long as the server process runs."""
    return {"status": "ok"}


@router.get("/ready", responses={503: errors.RESPONSES[503]})
async def check_readiness(request: Request) -> dict[str, str]:
    """Answers with status 200 if all deployments can answer requests and the process does not stop."""
    context.check_ready(request)
    server = context.get_context(request)
    if server.deployments.membership is not None and server.deployments.membership.is_leaving:
        raise server_stops()
    if (reason := _find_storage_failure(server)) is not None:
        raise errors.unavailable(reason, "storage_unavailable")
    for deployment in server.deployments.by_name.values():
        reason = deployment.failure or deployment.learning_failure
        if reason is not None:
            raise errors.unavailable(reason)
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse, responses=errors.RESPONSES)
def show_metrics(request: Request, key: Caller) -> PlainTextResponse:
    """Returns metrics for Prometheus; any key may read them."""
    return PlainTextResponse(context.get_context(request).meter.metrics(), media_type=PROMETHEUS)


def _find_storage_failure(server: ServerContext) -> str | None:
    """Why nothing can be stored, or None; also in the grace time, in which models that do not learn are answered."""
    membership, learns = server.deployments.membership, [d.learning for d in server.deployments.by_name.values()]
    if membership is not None and membership.number is None and any(learns):
        return "this process has no lease from the database at present"
    failed_at = server.deployments.store.database.failed_at
    if failed_at is None:
        return server.meter.failure
    is_in_grace_time = time.monotonic() - failed_at < server.deployments.config.key_grace_time
    return None if is_in_grace_time else "the database cannot be reached"


def _html(template: str, **variables: Any) -> HTMLResponse:
    """Renders a template with the headers that every page has."""
    headers = {"Content-Security-Policy": SECURITY_POLICY, "Cache-Control": "no-cache"}
    return HTMLResponse(render("ontogeny.server", template, **variables), headers=headers)
