"""What stands before the application: how large a request may be, how long it may take to arrive, who is slow to read.

Plain ASGI. Logs one line per request without its content and without its key.
"""

import asyncio
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from ontogeny.server.api.errors import ApiError

log = logging.getLogger("ontogeny.requests")
TOO_LARGE = "the request is larger than {} bytes"


class RequestLimits:
    def __init__(self, app: Any, *, most_bytes: int, arrival: float, departure: float) -> None:
        self.app, self.most = app, most_bytes
        self.arrival, self.departure = arrival, departure  # seconds

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.monotonic(), 0
        until = started + self.arrival
        left, whole = self.most, False
        declared = dict(scope["headers"]).get(b"content-length", b"0")

        async def limited() -> MutableMapping[str, Any]:
            nonlocal left, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                whole = True
                raise ApiError(408, f"the request did not arrive within {self.arrival:g} s", code="timeout") from None
            left -= len(message.get("body", b""))
            if left < 0:
                whole = True
                raise ApiError(413, TOO_LARGE.format(self.most), code="request_too_large")
            whole = whole or not message.get("more_body", False)
            return message

        async def timed(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not whole and status >= 400:  # what was not read would be taken for the next request
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await asyncio.wait_for(send(message), self.departure)

        try:
            if declared.isdigit() and int(declared) > self.most:
                raise ApiError(413, TOO_LARGE.format(self.most), code="request_too_large")
            await self.app(scope, limited, timed)
        except ApiError as fault:
            if not status:
                await fault.response(scope, receive, timed)
        except TimeoutError:
            log.info("a client was too slow to read its answer")
            raise asyncio.CancelledError from None
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            if not status:
                await ApiError(500, "the server failed; its log says how").response(scope, receive, timed)
        finally:
            seconds = time.monotonic() - started
            log.info("%s %s %s %.3f s", scope["method"], scope["path"], status or "-", seconds)
