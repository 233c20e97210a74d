"""Turn generated tokens into text as they arrive: whole characters only, and nothing that may begin a stop string."""

import codecs
from collections.abc import Sequence

from ontogeny.lm.tokenizer import Tokenizer


class TextStream:
    """The text of one answer; each call returns the part that later tokens cannot change.

    Attributes:
        stopped: Whether a stop string has occurred. The stop string and the text after it are not part of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        """Begin an answer.

        Args:
            tokenizer: The tokenizer of the model.
            stops: Strings that end the answer.
            min_tokens: Stop strings that the first so many tokens complete do not end the answer.
        """
        self._tokenizer = tokenizer
        self._num_unstoppable = min_tokens
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # invalid bytes become U+FFFD
        self._pending = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, *tokens: int) -> str:
        """Append tokens and return the text that has become final."""
        text = self._decoder.decode(b"".join(map(self._tokenizer.bytes_of, tokens)))
        self._num_unstoppable -= len(tokens)
        return text if self._num_unstoppable >= 0 else self._release(text)

    def finish(self) -> str:
        """End the answer and return the rest of its text."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._pending
        self._pending = ""
        return text

    def _release(self, text: str) -> str:
        """Appends to the pending text; returns the part of it that no stop string can cut off any more."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._pending + text
        cuts = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if cuts:
            self.stopped, self._pending = True, ""
            return text[: min(cuts)]
        num_pending = max((_count_overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - num_pending :]
        return text[: len(text) - num_pending]


class TokenOffsets:
    """The position in a text, in characters, at which each of its tokens begins.

    A token whose first byte continues a character has the position of that character. A token without bytes has the
    position of the next character.
    """

    def __init__(self, tokenizer: Tokenizer, start: int = 0, text: str = "") -> None:
        """Begin a text.

        Args:
            tokenizer: The tokenizer of the model.
            start: The position of the first character.
            text: The text if it was tokenized. A special token stands for its name there, otherwise for no character,
                and the space that tokenizers in the style of SentencePiece add to a text is no character of it.
        """
        self._tokenizer, self._text = tokenizer, text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_complete = start  # characters that no later byte changes

    def push(self, token: int) -> int:
        """Append a token and return its position."""
        data = self._without_added_space(self._tokenizer.bytes_of(token))
        if not data:
            offset = self._num_complete
            self._num_complete += self._length_of_name(token, offset)
            return offset
        self._num_complete += len(self._decoder.decode(data[:1]))
        # The first byte is the last one of an incomplete character, or else it has completed the last character.
        offset = self._num_complete - (not self._decoder.getstate()[0])
        self._num_complete += len(self._decoder.decode(data[1:]))
        return offset

    def _length_of_name(self, token: int, offset: int) -> int:
        """The characters that a token without bytes has in the text: those of its name, if it stands there."""
        name = self._tokenizer.source_of(token).decode()
        return len(name) if self._text.startswith(name, offset) else 0

    def _without_added_space(self, encoded: bytes) -> bytes:
        """The bytes of a token, without a space at their beginning that the text does not have there."""
        if not self._text or not encoded.startswith(b" "):
            return encoded
        word = encoded.decode(errors="ignore")  # the last character may be incomplete
        is_added = not self._text.startswith(word, self._num_complete)
        return encoded[1:] if is_added and self._text.startswith(word[1:], self._num_complete) else encoded


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
