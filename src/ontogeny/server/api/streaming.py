"""Between the engine's thread and a request: text as it grows, for as long as somebody is there to read it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from fastapi import Request

from ontogeny.engine.engine import Engine, QueueFull, RequestHandle
from ontogeny.engine.requests import FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.engine.text_stream import TextStream
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.server.api import errors as faults


class OutputDelta(NamedTuple):
    """What has become of one of the questions: text, tokens, the prompt's scores, or the end."""

    which: int
    text: str = ""
    token: TokenOutput | None = None
    prompt: list[TokenLogprobs] | None = None
    reason: str | None = None


class ClientDisconnected(Exception):
    """Nobody is there any more to be answered."""


async def pieces(
    request: Request, engine: Engine, tokenizer: Tokenizer, questions: Sequence[GenerationRequest], stops: Sequence[str]
) -> AsyncGenerator[OutputDelta]:
    """Pieces of all answers as they come. Whoever stops listening, or hangs up, sets their rows free."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[OutputDelta | None]()
    tickets: list[RequestHandle] = []

    def teller(index: int):
        growing = TextStream(tokenizer, stops)

        def told(what: TokenOutput | list[TokenLogprobs] | FinishOutput) -> bool | None:
            if isinstance(what, TokenOutput):
                piece = OutputDelta(index, growing.push(what.token), what)
            elif isinstance(what, FinishOutput):
                piece = OutputDelta(index, growing.finish(), reason=what.finish_reason)
            else:
                piece = OutputDelta(index, prompt=what)
            loop.call_soon_threadsafe(queue.put_nowait, piece)
            return growing.stopped

        return told

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(None)

    watching = asyncio.create_task(watch())
    try:
        try:
            tickets = engine.submit_all(questions, [teller(index) for index in range(len(questions))])
        except QueueFull as busy:
            raise faults.too_many("the server is busy; try again", busy.retry_after, "queue_full") from None
        left = len(questions)
        while left:
            piece = await queue.get()
            if piece is None:
                raise ClientDisconnected
            if piece.reason == "failed":
                raise faults.unavailable("the engine has failed")
            left -= piece.reason is not None
            yield piece
    finally:
        watching.cancel()
        for ticket in tickets:
            ticket.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await watching
