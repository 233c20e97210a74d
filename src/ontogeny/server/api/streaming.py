"""From the engine's threads to a response: text as it is generated, for as long as the client is connected."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from fastapi import Request

from ontogeny.engine.engine import Engine, QueueFull, QueueReservation
from ontogeny.engine.requests import FinishOutput, GenerationRequest, ReceiverClosed, TokenOutput
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.engine.text_stream import TextStream
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.server.api import errors
from ontogeny.server.api.waiting import wait_for_disconnect


class OutputDelta(NamedTuple):
    """New output of one sequence of a request: text, a token, the log-probabilities of the prompt, or the end."""

    sequence: int  # index in the request
    text: str = ""
    token: TokenOutput | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    end_reason: str | None = None  # of the engine


class ClientDisconnected(Exception):
    """The client has closed the connection."""


class OutputStream(AsyncIterator[OutputDelta]):
    """Generates the sequences of a request; iterates over their outputs in the order in which they arise.

    Args:
        request: The request that is answered.
        engine: The engine of the model.
        tokenizer: The tokenizer of the model.
        sequences: One per choice of the response.
        stops: Strings that end a sequence.
        reservation: Places in the queue of the engine.

    Raises:
        ApiError: The engine has stopped. While iterating: generation has failed, or the server stops.
        ClientDisconnected: While iterating: the client has closed the connection.
    """

    def __init__(
        self,
        request: Request,
        engine: Engine,
        tokenizer: Tokenizer,
        sequences: Sequence[GenerationRequest],
        stops: Sequence[str],
        reservation: QueueReservation,
    ) -> None:
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[OutputDelta | None]()

        def put(output: OutputDelta) -> None:
            """Hands an output from a thread of the engine to the event loop."""
            try:
                loop.call_soon_threadsafe(self._queue.put_nowait, output)
            except RuntimeError:  # the event loop has closed
                raise ReceiverClosed from None

        texts = [TextStream(tokenizer, stops, _min_tokens(sequence)) for sequence in sequences]
        callbacks = [_output_callback(index, text, put) for index, text in enumerate(texts)]
        try:
            self._handles = engine.submit_all(sequences, callbacks, reservation)
        except QueueFull as error:
            raise errors.queue_full(error.retry_after) from None
        self._num_running = len(sequences)
        self._watch = asyncio.create_task(_watch_connection(request, self._queue))

    @property
    def has_started(self) -> bool:
        """Whether the engine has begun to process a prompt."""
        return any(handle.has_started for handle in self._handles)

    async def __anext__(self) -> OutputDelta:
        if not self._num_running:
            raise StopAsyncIteration
        output = await self._queue.get()
        if output is None:
            raise ClientDisconnected
        if output.end_reason == "failed":
            raise errors.generation_failed()
        if output.end_reason == "cancelled":  # by the server, which stops
            raise errors.unavailable("the server stopped before the answer was complete")
        self._num_running -= output.end_reason is not None
        return output

    def close(self) -> None:
        """Cancels the sequences that are not finished; may be called again."""
        self._watch.cancel()
        for handle in self._handles:
            handle.cancel()


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
            is_failed = output.finish_reason == "failed"
            put(OutputDelta(index, "" if is_failed else text.finish(), end_reason=output.finish_reason))
        else:
            put(OutputDelta(index, prompt_logprobs=output))
        return text.stopped

    return on_output


async def _watch_connection(request: Request, queue: asyncio.Queue[OutputDelta | None]) -> None:
    """Puts None into the queue once the client has closed the connection."""
    await wait_for_disconnect(request)
    queue.put_nowait(None)
