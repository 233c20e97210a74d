"""Routes whose functions run on threads that serve keys in turn."""

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

from fastapi import Response
from fastapi.routing import APIRoute
from pydantic_core import to_json


class FairRoute(APIRoute):
    """A route that calls a function which is no coroutine on the default executor of the event loop.

    FastAPI would call it on threads of its own, in the order of arrival.

    Args:
        path: The path of the route.
        endpoint: The function that answers requests.
        **settings: The further arguments of `APIRoute`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _in_thread(endpoint), **settings)


def _in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function with the signature of a function, which it calls on another thread.

    An answer that is an object is encoded there too: a long list would hold up the event loop.
    """

    def answer(**arguments: Any) -> Any:
        content = endpoint(**arguments)
        if not isinstance(content, dict):
            return content
        return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")

    @functools.wraps(endpoint)
    async def call(**arguments: Any) -> Any:
        return await asyncio.to_thread(answer, **arguments)

    return call
