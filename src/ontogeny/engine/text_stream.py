"""Tokens as they come, turned into text that can be shown: whole characters, and nothing that a stop string may begin.

Knows nothing of engines.
"""

import codecs
from collections.abc import Sequence

from ontogeny.lm.tokenizer import Tokenizer


class TextStream:
    """The text of an answer; `push` says what may be shown of it now."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # bytes that make no character are U+FFFD
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """More text that can be shown; `stopped` is true from where a stop string is whole, which is not shown."""
        return self._shown(self._decoder.decode(self._tokenizer.bytes_of(token)))

    def finish(self) -> str:
        """What was held back, once nothing more will come."""
        text = self._shown(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _shown(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """One token as log-probabilities name it: its text, or, where it is none of its own, its bytes or number."""
    data = tokenizer.bytes_of(token)
    try:
        return data.decode() or f"token:{token}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
