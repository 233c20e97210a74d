"""Constrained decoding: answers that are JSON values of a schema, by the grammars of the library llguidance."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np
from jaxtyping import Bool
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from ontogeny.engine.sampling import ConstraintFailure
from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import Tokenizer

# No white space between the parts of a value: a small model could otherwise continue with it for ever.
COMPILE_OPTIONS: Any = {"whitespace_flexible": False}
MAX_TOKENIZERS = 8  # whose tables are kept


class JsonConstraint:
    """The tokens that may come next in one answer, so that the answer is a JSON value of a schema.

    An object belongs to one answer: it follows the tokens of the answer.
    """

    def __init__(self, matcher: llguidance.LLMatcher, num_tokens: int, end_token: int) -> None:
        self._matcher, self._num_tokens, self._end_token = matcher, num_tokens, end_token
        self._num_consumed = 0

    def copy(self) -> "JsonConstraint":
        """Create the constraint of another answer, which has no token yet."""
        matcher = self._matcher.deep_copy()
        matcher.reset()
        return JsonConstraint(matcher, self._num_tokens, self._end_token)

    def find_allowed_tokens(self, generated: Sequence[int]) -> Bool[np.ndarray, "_"]:
        """Find which tokens of the tokenizer may come next.

        Args:
            generated: The tokens of the answer so far; each call has those of the call before, and possibly more.

        Raises:
            ConstraintFailure: The schema is too complex for the library at this point of the answer.
        """
        self._matcher.consume_tokens(list(generated[self._num_consumed :]))
        self._num_consumed = len(generated)
        allowed = np.zeros(self._num_tokens, bool)
        if not self._matcher.is_stopped():
            bitmask = allocate_token_bitmask(1, self._num_tokens)
            fill_next_token_bitmask(self._matcher, bitmask)
            allowed = np.unpackbits(bitmask.view(np.uint8), bitorder="little")[: self._num_tokens].astype(bool)
        if self._matcher.is_error():
            raise ConstraintFailure(self._matcher.get_error())
        if not allowed.any():  # the value is complete
            allowed[self._end_token] = True
        return allowed


def compile_json_schema(schema: Mapping[str, Any], tokenizer: Tokenizer) -> JsonConstraint:
    """Compile a JSON schema.

    Args:
        schema: The schema, without references to other documents.
        tokenizer: The tokenizer of the model.

    Raises:
        BadInput: The schema is invalid or too complex, or the tokenizer cannot write JSON or has no end token.
    """
    if tokenizer.end is None:
        raise BadInput("the model's tokenizer has no token that ends an answer")
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPILE_OPTIONS)
    except (ValueError, RecursionError):
        raise BadInput("the schema is nested too deeply") from None
    matcher = llguidance.LLMatcher(_library_tokenizer(tokenizer), grammar, log_level=0)
    constraint = JsonConstraint(matcher, tokenizer.size, tokenizer.end)
    try:
        constraint.find_allowed_tokens(())
    except ConstraintFailure as failure:
        sentence = str(failure).split("\n")[0].strip().rstrip(".:")
        raise BadInput(f"the schema cannot be used: {sentence}") from None
    return constraint


class _TokenizerTable:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ends = tokenizer.end_tokens  # some folders do not mark them as special, and then they have bytes
        words = [b"" if token in ends else tokenizer.bytes_of(token) for token in range(tokenizer.size)]
        self.eos_token_id, self.bos_token_id, self._encode = tokenizer.end, None, tokenizer.encode
        self.special_token_ids = [token for token, text in enumerate(words) if not text]
        self.tokens = [text or f"<|{token}|>".encode() for token, text in enumerate(words)]
        self._bytes_of = tokenizer.bytes_of
        self._token_of = {text: token for token, text in reversed(list(enumerate(words))) if text}
        self._max_length = max(map(len, words))

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokenize a text into tokens of exactly its bytes.

        A tokenizer may add a space before a text or normalize it, and then the longest words are used.
        """
        encoded = text.encode() if isinstance(text, str) else text
        tokens = self._encode(encoded.decode(errors="replace")).tolist()
        return tokens if b"".join(map(self._bytes_of, tokens)) == encoded else self._longest_words(encoded)

    def _longest_words(self, encoded: bytes) -> list[int]:
        """The tokens of bytes, each the longest word that they begin with."""
        tokens: list[int] = []
        while encoded:
            lengths = range(min(len(encoded), self._max_length), 0, -1)
            length = next((n for n in lengths if encoded[:n] in self._token_of), 1)
            tokens += [self._token_of[encoded[:length]]] if encoded[:length] in self._token_of else []
            encoded = encoded[length:]
        return tokens


@lru_cache(MAX_TOKENIZERS)
def _library_tokenizer(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """The tables of the library for a tokenizer."""
    table = _TokenizerTable(tokenizer)
    missing = {bytes([byte]) for byte in range(ord(" "), ord("~") + 1)} - set(table.tokens)
    if missing:
        character = min(missing).decode()
        raise BadInput(f"the model's tokenizer cannot write JSON: it has no token for the character {character!r}")
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(table), n_vocab=tokenizer.size)
