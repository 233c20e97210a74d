"""The application: routes, errors in the form that clients expect, the page, and a process around them."""

import contextlib
import html
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ontogeny import __version__
from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.api import agents as agent_routes
from ontogeny.server.api import branches as line_routes
from ontogeny.server.api import completions as text_routes
from ontogeny.server.api import errors as faults
from ontogeny.server.api import text_sessions as session_routes
from ontogeny.server.api import tokenizer as token_routes
from ontogeny.server.api.context import LastPrompts, ServerContext, ready
from ontogeny.server.api.request_limits import RequestLimits
from ontogeny.server.deployments import Deployments
from ontogeny.server.rate_limits import RateLimits
from ontogeny.server.usage import UsageMeter

PAGE = Path(__file__).parent / "templates" / "page.html.j2"
ARRIVAL = 20.0  # seconds in which a request must have arrived
MOST_BYTES = 4 << 20
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def make(deployments: Deployments, *, time_limit: float, most_bytes: int = MOST_BYTES, arrival: float = ARRIVAL) -> Any:
    """The application of one server, which starts and stops what it serves."""
    meter = UsageMeter(deployments)

    @contextlib.asynccontextmanager
    async def trajectory(app: FastAPI) -> AsyncIterator[None]:
        deployments.start()
        meter.start()
        yield
        meter.stop()
        deployments.stop()

    app = FastAPI(
        title="ontogeny",
        version=__version__,
        description="Saved models, frozen or learning: the OpenAI API, agents, lines of learning.",
        docs_url=None,
        redoc_url=None,
        lifespan=trajectory,
    )
    app.state.service = ServerContext(deployments, deployments.store, RateLimits(), meter, time_limit)
    app.state.recent = LastPrompts()
    routers = (text_routes, token_routes, line_routes, session_routes, agent_routes)
    for router in (room.router for room in routers):
        app.include_router(router)
    _add_pages(app, meter)
    _add_errors(app)
    _document(app)
    return RequestLimits(app, most_bytes=most_bytes, arrival=arrival, departure=time_limit)


def _add_pages(app: FastAPI, meter: UsageMeter) -> None:
    page = PAGE.read_text(encoding="utf-8")
    safe = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    )

    @app.get("/", include_in_schema=False)
    def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": safe, "Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    def documentation() -> HTMLResponse:
        return HTMLResponse(_documentation(app.openapi()), headers={"Content-Security-Policy": safe})

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether there is a server at all."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: faults.DOCUMENTED[503]})
    def is_ready(request: Request) -> dict[str, str]:
        """Whether the models are warm and whole, so that requests will be answered."""
        ready(request)
        for made in request.app.state.service.deployments.by_name.values():
            if made.failure is not None:
                raise faults.unavailable(made.failure)
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(meter.text(), media_type=PROMETHEUS)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(faults.ApiError)
    async def fault(request: Request, error: faults.ApiError) -> JSONResponse:
        return error.response

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return JSONResponse(faults.body(error.status_code, str(error.detail)), error.status_code, headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return faults.ApiError(500, "the server failed; its log says how").response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        where, what = faults.told(error.errors())
        return JSONResponse(faults.body(400, f"{where or 'the request'}: {what}", None, where or None), 400)


def _document(app: FastAPI) -> None:
    """An OpenAPI document that says 400 where FastAPI by itself would say 422, and what an error looks like."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            document["components"]["schemas"]["Error"] = faults.SCHEMA
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    if path not in ("/health", "/ready", "/metrics"):
                        operation["security"] = [{"key": []}]
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _documentation(document: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('description', ''))}</td></tr>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>ontogeny: routes</title><style>body{font:16px/1.5 system-ui;margin:2rem auto;max-width:70rem;"
        "padding:0 1rem;color-scheme:light dark}td{padding:.3rem .8rem .3rem 0;vertical-align:top}</style>"
        f'<h1>Routes</h1><p>In full: <a href="openapi.json">openapi.json</a>.</p><table>{rows}</table></html>'
    )


def serve(
    deployments: Deployments,
    *,
    host: str,
    port: int,
    time_limit: float,
    most_bytes: int,
    log_level: str,
    listens: Callable[[], None],
) -> None:
    """Runs until it is told to stop; `listens` is called once the address is its own.

    An address that others reach is refused as long as there are no keys.
    """
    if not _is_loopback(host) and not any(key.revoked is None for key in keys.listed(deployments.store)):
        raise BadInput(
            f"whoever reaches '{host}' could use it, for there are no keys: make one with `ontogeny keys create`, "
            "or listen on 127.0.0.1"
        )
    _many_connections()
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    listening = _listen(host, port)
    listens()
    app = make(deployments, time_limit=time_limit, most_bytes=most_bytes)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=5,
        backlog=2048,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    if deployments.failed is not None:
        raise deployments.failed


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # Python repeats the address
        raise BadInput(f"'{host}' port {port} cannot be listened on: {why}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _many_connections() -> None:
    """As many files as the system lets this process have, since each connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
