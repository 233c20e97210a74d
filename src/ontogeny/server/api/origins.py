"""Which pages of a browser may use the server, and the headers that restrict what browsers do with its responses.

A browser lets every page of the web send requests to loopback, and it tells the server the origin of the page. Programs
without a browser send no such headers and are not affected. The checks come before the key is read, because a server
without keys trusts every program of its machine:

- A request of a page of another origin is rejected, whatever its method; a link to a page of the server may be
  followed.
- A server on loopback answers only for the names of loopback, so that a page whose name resolves to loopback (DNS
  rebinding) does not count as a page of the server. Ports are not compared: such a page sends its own name as the host
  with any port, and a forwarded port differs from the server's.
"""

import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware

from ontogeny.printable import to_printable
from ontogeny.server.api.errors import ApiError
from ontogeny.server.api.routes import describe_route
from ontogeny.server.config import ServerConfig

Message = MutableMapping[str, Any]
Application = Callable[..., Awaitable[None]]
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
FOREIGN_SITES = ("cross-site", "same-site")  # of the header Sec-Fetch-Site; another port is the same site
PAGES = ("/", "/docs")
RESTRICTIONS = {  # headers of every response that does not set them itself
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
EXPOSED_HEADERS = ("*",)  # all, to programs in allowed pages
log = logging.getLogger("ontogeny.requests")


class OriginPolicy(NamedTuple):
    """The hosts for which a server answers and the origins whose pages may use it.

    Attributes:
        hosts: Names of hosts in lower case, or None if the server answers for every name.
        origins: Origins as browsers write them, in addition to the server's own.
    """

    hosts: frozenset[str] | None
    origins: frozenset[str]

    @classmethod
    def from_config(cls, config: ServerConfig) -> Self:
        """Returns the policy of a server with these settings."""
        own_name = urlsplit(config.process_url).hostname or config.host  # to which other processes send requests
        names = {_without_brackets(name.lower()) for name in (config.host, own_name, *config.allowed_hosts)}
        has_list = is_loopback(config.host) or bool(config.allowed_hosts)
        return cls(frozenset(names) if has_list else None, frozenset(map(_normalize, config.allowed_origins)))

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises `ApiError` if a request is for another host, or comes from a page that may not use the server."""
        for host in headers.getlist("host"):
            self._check_host(host)
        origins = [_normalize(origin) for origin in headers.getlist("origin")]
        if origins and self.origins.issuperset(origins):
            return
        site = headers.get("sec-fetch-site", "").lower()
        is_foreign = site in FOREIGN_SITES or any(not self._is_own(origin, headers) for origin in origins)
        if is_foreign and not _opens_page(method, path, headers):
            raise _foreign_origin(next(iter(origins), ""))

    def is_own_page(self, headers: Headers) -> bool:
        """Whether a request that passed `check` names the server's own origin."""
        origin = _normalize(headers.get("origin", ""))
        return bool(origin) and origin not in self.origins

    def _check_host(self, header: str) -> None:
        """Raises `ApiError` if the server does not answer for a host."""
        match = HOST.fullmatch(header)
        name = "" if match is None else _without_brackets(match["name"].lower())
        if self.hosts is None or name in self.hosts or (name and is_loopback(name)):
            return
        message = f"the server does not answer for the host {_quote(header)}; --allowed-hosts lists further host names"
        raise ApiError(421, message, code="unknown_host")

    @staticmethod
    def _is_own(origin: str, headers: Headers) -> bool:
        """Whether an origin is the server's own, at the address to which the request was sent."""
        host = headers.get("host", "").lower()
        schemes = "http", "https"  # a proxy may provide TLS
        return bool(host) and origin in [_normalize(f"{scheme}://{host}") for scheme in schemes]


class OriginGuard:
    """ASGI middleware that applies an `OriginPolicy`, and adds headers to every response.

    Args:
        app: The application behind it.
        config: The settings of the server.
    """

    def __init__(self, app: Application, config: ServerConfig) -> None:
        self.app, self._policy = app, OriginPolicy.from_config(config)
        self._shared_app: Application = app
        if self._policy.origins:
            # Keys are sent in the header Authorization, so that no cookie or other credential of a browser is needed.
            self._shared_app = CORSMiddleware(
                app,
                allow_origins=tuple(self._policy.origins),
                allow_methods=("*",),
                allow_headers=("*",),
                allow_private_network=True,
                expose_headers=EXPOSED_HEADERS,
            )

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Handles one connection of the ASGI protocol."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})  # before it is accepted: status 403
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_restricted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in RESTRICTIONS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._policy.check(scope["method"], scope["path"], headers)
        except ApiError as error:
            log.info("%s %d: %s", describe_route(scope), error.status_code, error.detail)
            error.headers = {"Connection": "close"}  # its body stays unread
            return await error.response(scope, receive, send_restricted)
        app = self.app if self._policy.is_own_page(headers) else self._shared_app
        await app(scope, receive, send_restricted)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(_without_brackets(host)).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _opens_page(method: str, path: str, headers: Headers) -> bool:
    """Whether a request follows a link to a page of the server in a window of its own."""
    is_navigation = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return is_navigation and method in ("GET", "HEAD") and path in PAGES and "origin" not in headers


def _normalize(origin: str) -> str:
    """Returns an origin as browsers write it: in lower case, without the port that its scheme implies."""
    origin = origin.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if origin.startswith(scheme):
            return origin.removesuffix(port)
    return origin


def _foreign_origin(origin: str) -> ApiError:
    """Creates the error of a request by a page of another origin."""
    page = f"a page of {_quote(origin)}" if origin else "a page of another origin"
    message = f"{page} may not use this server; --allowed-origins lists the origins whose pages may"
    return ApiError(403, message, code="foreign_origin")


def _without_brackets(host: str) -> str:
    """Returns an IPv6 address as Python writes it."""
    return host.removeprefix("[").removesuffix("]")


def _quote(header: str) -> str:
    """Returns the value of a header as printable text of limited length."""
    return f"'{to_printable(header, 100)}'"
