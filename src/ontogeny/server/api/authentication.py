"""Authentication of requests, before any of their body is read or parsed.

Plain ASGI middleware. It answers a request without a valid key with status 401 and leaves the key of every other
request in `scope["state"]["key"]`, where `context.get_caller` finds it.
"""

from typing import Any

from fastapi.security.utils import get_authorization_scheme_param

from ontogeny.server.api import assets, errors
from ontogeny.server.fair_executor import current_owner
from ontogeny.server.key_lookup import KeyLookup

PUBLIC_PATHS = frozenset({"/", "/docs", "/health", "/ready", "/openapi.json"}) | assets.PATHS  # need no key


class Authentication:
    """The middleware.

    Args:
        app: The application behind it.
        lookup: The keys.
    """

    def __init__(self, app: Any, lookup: KeyLookup) -> None:
        self._app, self._lookup = app, lookup

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Handles one connection of the ASGI protocol.

        Raises:
            ApiError: Status 401: the key is missing, wrong or revoked.
            StorageUnavailable: The key cannot be read from the database at present.
        """
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            scheme, text = get_authorization_scheme_param(header)
            text = text.strip() if scheme.lower() == "bearer" else ""
            key = await self._lookup.find(text)
            if key is None and not text:
                raise errors.unauthorized("the request has no key; send it as 'Authorization: Bearer KEY'")
            if key is None:
                raise errors.unauthorized("the key is wrong or was revoked")
            scope["state"]["key"] = key
            current_owner.set(key.id)  # whose calls on other threads take turns with those of other keys
        await self._app(scope, receive, send)
