"""Work for a request that ends when the client disconnects or the time limit has passed."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from ontogeny.server.api import errors

Result = TypeVar("Result")


async def wait_for_disconnect(request: Request) -> None:
    """Returns once the client has closed the connection; the body of the request must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def run_while_connected(request: Request, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
    """Awaits a coroutine and cancels it when the client disconnects or the time limit has passed.

    Args:
        request: The request that is answered.
        work: The coroutine. If it returns a result in spite of the cancellation, because it has changed something
            that cannot be undone, that result is returned.
        seconds: The time limit.

    Raises:
        ApiError: The client has disconnected, or the time limit has passed.
    """
    if await request.is_disconnected():
        work.close()
        raise errors.disconnected()
    task, watch = asyncio.ensure_future(work), asyncio.create_task(wait_for_disconnect(request))
    try:
        await asyncio.wait((task, watch), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if task.cancelled():
                if not watch.done():
                    raise errors.timed_out()
                watch.result()  # raises the error of an invalid body
                raise errors.disconnected()
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.wait((task, watch))
        if not watch.cancelled():
            watch.exception()  # marks it as retrieved
