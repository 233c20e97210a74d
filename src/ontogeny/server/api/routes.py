"""What the router of Starlette leaves out: HEAD, paths that end with a slash, and the name of a route for the log."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from ontogeny.printable import hide_keys, to_printable

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
MAX_PATH_LENGTH = 200  # characters of an unknown path in the log
PATH_CHARACTERS = "/{}*[]@:$&'()+,;="  # which need no escape


class LenientRouting:
    """ASGI middleware: every GET route answers HEAD, and a slash at the end of a path makes no difference.

    A redirect to the path without the slash would lead to the host that the client names.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Handles one connection of the ASGI protocol; the server leaves out the content of a response to HEAD."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        changed = {
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "path": scope["path"].rstrip("/") or "/",
        }
        if all(scope[name] == value for name, value in changed.items()):
            return await self.app(scope, receive, send)
        routed = scope | changed
        try:
            await self.app(routed, receive, send)
        finally:
            scope["route"] = routed.get("route")


def describe_route(scope: Mapping[str, Any]) -> str:
    """Returns method and route of a request for the log.

    Path parameters are left out; an unknown path is escaped and cut, and nothing in it has the form of an API key.
    """
    method = scope["method"] if scope["method"] in METHODS else "(unknown method)"
    template = getattr(scope.get("route"), "path", None)
    if template is not None:
        return f"{method} {template}"
    path = hide_keys(scope["path"])
    return f"{method} {to_printable(quote(path, safe=PATH_CHARACTERS, errors='replace'), MAX_PATH_LENGTH)}"
