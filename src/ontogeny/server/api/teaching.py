"""The step from a request to the journal, and the response header that names the training example."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import Request

from ontogeny.server.api import context
from ontogeny.server.api.identification import identify
from ontogeny.server.deployment_kinds import LanguageDeployment
from ontogeny.server.keys import ApiKey
from ontogeny.server.learning.branches import BranchManager

EXAMPLE_HEADER = "x-ontogeny-example"


class ExampleHeader:
    """ASGI middleware: every response to a request that taught something, even an error, names the example in a header.

    It also records when the request was received.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Handles one connection of the ASGI protocol."""
        state = scope.setdefault("state", {})
        state["received_at"] = time.time()

        async def send_with_header(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and (number := state.get("example")) is not None:
                message["headers"] = [*message.get("headers", ()), (EXAMPLE_HEADER.encode(), str(number).encode())]
            await send(message)

        await self.app(scope, receive, send_with_header)


async def add_text(request: Request, branches: BranchManager, key: ApiKey, text: str) -> int | None:
    """Writes the text of a request to the journal; see `ExampleIntake.add_text` and `_write`."""
    request.state.branch = branches.name_branch(key.id)  # which follows the requests of the key
    return await _write(request, context.get_context(request).intake.add_text, branches, key.id, text)


async def add_prompt(request: Request, deployment: LanguageDeployment, key: ApiKey, prompt: str) -> int | None:
    """Writes the new part of a prompt to the journal; see `ExampleIntake.add_prompt` and `_write`.

    A frozen deployment and a blank prompt write nothing.
    """
    if deployment.branches is None or not prompt.strip():
        return None
    intake, tokenizer = context.get_context(request).intake, deployment.model.tokenizer
    return await _write(request, intake.add_prompt, deployment.branches, key.id, prompt, tokenizer)


async def _write(request: Request, write: Callable[..., int | None], *arguments: Any) -> int | None:
    """Calls a method of `ExampleIntake` on another thread; remembers the number of the example for `ExampleHeader`."""
    identity = await identify(request)
    number = await asyncio.to_thread(write, *arguments, identity)
    request.state.example = number
    return number
