"""From the engine's threads to a response: text as it is generated, for as long as the client is connected."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple

from fastapi import Request

from ontogeny.engine.engine import Engine, QueueFull, RequestHandle
from ontogeny.engine.requests import FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.engine.text_stream import TextStream
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.server.api import errors


class OutputDelta(NamedTuple):
    """New output of one sequence of a request: text, a token, the log-probabilities of the prompt, or the end."""

    sequence: int  # index in the request
    text: str = ""
    token: TokenOutput | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    end_reason: str | None = None  # of the engine


class ClientDisconnected(Exception):
    """The client has closed the connection."""


async def stream_outputs(
    request: Request, engine: Engine, tokenizer: Tokenizer, sequences: Sequence[GenerationRequest], stops: Sequence[str]
) -> AsyncGenerator[OutputDelta]:
    """Generates sequences and yields their outputs in the order in which they arise.

    The sequences are cancelled when the generator is closed or the client disconnects.

    Args:
        request: The request that is answered.
        engine: The engine of the model.
        tokenizer: The tokenizer of the model.
        sequences: One per choice of the response.
        stops: Strings that end a sequence.

    Raises:
        ApiError: The queue is full, or the engine has failed.
        ClientDisconnected: The client has closed the connection.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[OutputDelta | None]()
    handles: list[RequestHandle] = []

    def put(output: OutputDelta) -> None:
        """Hands an output from a thread of the engine to the event loop."""
        loop.call_soon_threadsafe(queue.put_nowait, output)

    watch = asyncio.create_task(_wait_for_disconnect(request, queue))
    try:
        texts = [TextStream(tokenizer, stops, _min_tokens(sequence)) for sequence in sequences]
        callbacks = [_output_callback(index, text, put) for index, text in enumerate(texts)]
        try:
            handles = engine.submit_all(sequences, callbacks)
        except QueueFull as error:
            raise errors.queue_full(error.retry_after) from None
        num_running = len(sequences)
        while num_running:
            output = await queue.get()
            if output is None:
                raise ClientDisconnected
            if output.end_reason == "failed":
                raise errors.unavailable("the engine has failed")
            num_running -= output.end_reason is not None
            yield output
    finally:
        watch.cancel()
        for handle in handles:
            handle.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await watch


def _min_tokens(sequence: GenerationRequest) -> int:
    """The number of tokens before which a stop string does not end the answer."""
    return 0 if sequence.logit_adjustments is None else sequence.logit_adjustments.min_tokens


def _output_callback(
    index: int, text: TextStream, put: Callable[[OutputDelta], None]
) -> Callable[[TokenOutput | list[TokenLogprobs] | FinishOutput], bool]:
    """Converts the engine's outputs of one sequence; the callback returns true after a stop string."""

    def on_output(output: TokenOutput | list[TokenLogprobs] | FinishOutput) -> bool:
        """Converts one output; returns true after a stop string."""
        if isinstance(output, TokenOutput):
            put(OutputDelta(index, text.push(output.token), output))
        elif isinstance(output, FinishOutput):
            put(OutputDelta(index, text.finish(), end_reason=output.finish_reason))
        else:
            put(OutputDelta(index, prompt_logprobs=output))
        return text.stopped

    return on_output


async def _wait_for_disconnect(request: Request, queue: asyncio.Queue[OutputDelta | None]) -> None:
    """Puts None into the queue once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    queue.put_nowait(None)
