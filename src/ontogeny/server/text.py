"""Tokens as they come, turned into text that can be shown: whole characters, and nothing that a stop string may begin.

Knows nothing of engines.
"""

from collections.abc import Sequence

from ontogeny.language.tokenizer import Tokenizer

BROKEN = "\ufffd"  # what a tokenizer shows for bytes that make no character, or not yet
LONGEST = 4  # bytes of a character


class Growing:
    """The text of an answer; `push` says what may be shown of it now."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._unread: list[int] = []  # tokens whose text is not settled
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """More text that can be shown; `stopped` is true from where a stop string is whole, which is not shown."""
        self._unread.append(token)
        text = self._tokenizer.decode(self._unread)
        if text.endswith(BROKEN) and len(self._unread) < LONGEST:
            return ""
        self._unread.clear()
        return self._shown(text)

    def finish(self) -> str:
        """What was held back, once nothing more will come."""
        text = self._held if self.stopped else self._shown(self._tokenizer.decode(self._unread)) + self._held
        self._unread.clear()
        self._held = ""
        return "" if self.stopped else text

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


def shown(tokenizer: Tokenizer, token: int) -> str:
    """One token as log-probabilities name it: its text, or `token:ID` where it has none of its own."""
    text = tokenizer.decode([token])
    return f"token:{token}" if not text or BROKEN in text else text
