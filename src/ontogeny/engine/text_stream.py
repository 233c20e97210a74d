"""Turn generated tokens into text as they arrive: whole characters only, and nothing that may begin a stop string."""

import codecs
from collections.abc import Sequence

from ontogeny.lm.tokenizer import Tokenizer


class TextStream:
    """The text of one answer; each call returns the part that later tokens cannot change.

    Attributes:
        stopped: Whether a stop string has occurred. The stop string and the text after it are not part of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # invalid bytes become U+FFFD
        self._pending = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, *tokens: int) -> str:
        """Append tokens and return the text that has become final."""
        return self._release(self._decoder.decode(b"".join(map(self._tokenizer.bytes_of, tokens))))

    def finish(self) -> str:
        """End the answer and return the rest of its text."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._pending
        self._pending = ""
        return text

    def _release(self, text: str) -> str:
        """Appends to the pending text; returns the part of it that no stop string can cut off any more."""
        if self.stopped:
            return ""
        text = self._pending + text
        cuts = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if cuts:
            self.stopped, self._pending = True, ""
            return text[: min(cuts)]
        num_pending = max((_count_overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - num_pending :]
        return text[: len(text) - num_pending]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Write one token as the API's log-probabilities name it: its text, or its bytes or number where it has no text."""
    data = tokenizer.bytes_of(token)
    try:
        return data.decode() or f"token:{token}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _count_overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
