"""Authentication of requests, before any of their body is read or parsed.

Plain ASGI middleware. It answers a request without a valid key with status 401 and leaves the key of every other
request in `scope["state"]["key"]`, where `context.get_caller` finds it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi.security.utils import get_authorization_scheme_param

from ontogeny.server import keys
from ontogeny.server.api import assets, errors
from ontogeny.server.fair_executor import current_owner
from ontogeny.server.keys import LOCAL, ApiKey
from ontogeny.server.store import Store

PUBLIC_PATHS = frozenset({"/", "/docs", "/health", "/ready", "/openapi.json"}) | assets.PATHS  # need no key


class Authentication:
    """The middleware.

    The keys are read from the database for every request, so that a revoked key has no access from the next request
    on. One thread reads them, not that of the event loop, because a database can be slow.

    Args:
        app: The application behind it.
        store: The database with the keys.
    """

    def __init__(self, app: Any, store: Store) -> None:
        self._app, self._store = app, store
        self._thread = ThreadPoolExecutor(1, "authentication")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Handles one connection of the ASGI protocol; raises `ApiError` for a request without a valid key."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            scheme, text = get_authorization_scheme_param(header)
            text = text.strip() if scheme.lower() == "bearer" else ""
            loop = asyncio.get_running_loop()
            key = await loop.run_in_executor(self._thread, authenticate, self._store, text)
            scope["state"]["key"] = key
            current_owner.set(key.id)  # whose calls on other threads take turns with those of other keys
        await self._app(scope, receive, send)


def authenticate(store: Store, text: str) -> ApiKey:
    """Returns the key of a request; the local key as long as no key exists.

    Args:
        store: The database with the keys.
        text: The text of the key that the request has, or an empty text.

    Raises:
        ApiError: Status 401: the key is missing, wrong or revoked.
    """
    if not keys.has_keys(store):
        return LOCAL
    if not text:
        raise errors.unauthorized("the request has no key; send it as 'Authorization: Bearer KEY'")
    key = keys.authenticate(store, text)
    if key is None:
        raise errors.unauthorized("the key is wrong or was revoked")
    return key
