"""Recent prompts of each key, so that a text that grows from prompt to prompt is learned without repetition.

Only digests are kept, in memory: they tell whether an earlier prompt is the beginning of a new one.
"""

import hashlib
import re
import unicodedata
from collections import OrderedDict
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import WORD_START, Tokenizer

MAX_PROMPTS = 32  # of one key and deployment
MAX_OWNERS = 4096  # pairs of a key and a deployment
MAX_PIECE = 1024  # characters before and after a boundary that are tokenized to find the nearest token
MAX_WORD = 64  # characters; a longer word may be divided
DIGEST_BYTES = 16
LETTERS = re.compile(r"[\w'’]")
REPLACEMENT = "\ufffd"  # for the first bytes of a character whose other bytes are in tokens to come


class LearnedPrompt(NamedTuple):
    """A prompt that is in the journal, as one example or as several that continue each other."""

    num_characters: int
    digest: bytes
    first_example: int
    last_example: int


class RecentPrompts:
    """The last prompts of each key and deployment that are in the journal. The owner of the object locks it."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[tuple[str, str], list[LearnedPrompt]] = OrderedDict()

    def find_beginning(self, key: str, deployment: str, prompt: str) -> LearnedPrompt | None:
        """Returns the longest recent prompt with which this prompt begins, or None."""
        longest, hasher, num_hashed = None, hashlib.blake2b(digest_size=DIGEST_BYTES), 0
        for recent in sorted(self._prompts.get((key, deployment), ())):
            if recent.num_characters > len(prompt):
                break
            hasher.update(prompt[num_hashed : recent.num_characters].encode())
            num_hashed = recent.num_characters
            if hasher.digest() == recent.digest:
                longest = recent
        return longest

    def add(self, key: str, deployment: str, prompt: str, first_example: int, last_example: int) -> None:
        """Adds a prompt, unless it is there already.

        Of one key and deployment, the last `MAX_PROMPTS` prompts are kept; of all pairs, those used last.

        Args:
            key: The id of the key that sent the prompt.
            deployment: The name of the deployment.
            prompt: All of its text.
            first_example: The first example that holds a part of the text.
            last_example: The last one; examples between them may hold parts too.
        """
        prompt = prompt.rstrip(REPLACEMENT)
        self.add_learned(key, deployment, LearnedPrompt(len(prompt), _digest(prompt), first_example, last_example))

    def list_prompts(self, key: str, deployment: str) -> list[LearnedPrompt]:
        """Returns the recent prompts of a key, the oldest first."""
        return list(self._prompts.get((key, deployment), ()))

    def list_keys(self, deployment: str) -> list[str]:
        """Returns the keys that have sent prompts to a deployment."""
        return [key for key, name in self._prompts if name == deployment]

    def add_learned(self, key: str, deployment: str, prompt: LearnedPrompt) -> None:
        """Adds a prompt of which only the digest is known; see `add`."""
        owner, recent_prompts = (key, deployment), self._prompts.get((key, deployment), [])
        if all(recent.digest != prompt.digest for recent in recent_prompts):
            self._prompts[owner] = [*recent_prompts, prompt][-MAX_PROMPTS:]
        self._prompts.move_to_end(owner)
        while len(self._prompts) > MAX_OWNERS:
            self._prompts.popitem(last=False)

    def forget(self, key: str, deployment: str, example: int) -> None:
        """Removes the prompts whose text an erased example may hold, so that it counts as new if it is sent again."""
        owner = key, deployment
        if owner in self._prompts:
            recent_prompts = self._prompts[owner]
            self._prompts[owner] = [p for p in recent_prompts if not p.first_example <= example <= p.last_example]


def find_new_part(prompt: str, num_known: int, tokenizer: Tokenizer) -> str:
    """Returns the part of a prompt after its known beginning.

    It begins with a token of the prompt. A token, word or character that the known beginning divides is part of it.

    Args:
        prompt: The whole prompt.
        num_known: Characters of its known beginning.
        tokenizer: The tokenizer of the model.
    """
    if not prompt[num_known:].rstrip(REPLACEMENT):
        return ""
    before = [match.start() for match in WORD_START.finditer(prompt, max(0, num_known - MAX_PIECE), num_known)]
    after = WORD_START.search(prompt, num_known + 1, num_known + MAX_PIECE)
    start = before[-1] if before else max(0, num_known - MAX_PIECE)
    piece = prompt[start : after.start() if after else num_known + MAX_PIECE]
    starts = [start + index for index in _token_starts(piece, tokenizer) if start + index <= num_known]
    undivided = [index for index in starts[::-1] if num_known - index <= MAX_WORD and not _divides_word(prompt, index)]
    return prompt[next(iter([*undivided, *starts[::-1], start])) :]


def _digest(prompt: str) -> bytes:
    """The digest of a prompt."""
    return hashlib.blake2b(prompt.encode(), digest_size=DIGEST_BYTES).digest()


def _token_starts(text: str, tokenizer: Tokenizer) -> list[int]:
    """The indices of the characters with which a token begins."""
    try:
        tokens = tokenizer.encode(text)
    except BadInput:
        return []
    byte_starts, num_bytes = set[int](), 0
    for token in tokens:
        byte_starts.add(num_bytes)
        num_bytes += len(tokenizer.bytes_of(int(token)))
    starts, num_bytes = [], 0
    for index, character in enumerate(text):
        if num_bytes in byte_starts:
            starts.append(index)
        num_bytes += len(character.encode())
    return starts


def _divides_word(text: str, index: int) -> bool:
    """Whether a word, or a character of several code points, continues at this index."""
    if not 0 < index < len(text):
        return False
    last, first = text[index - 1], text[index]
    is_attached = unicodedata.category(first)[0] == "M" or first == "\u200d" or "\U0001f3fb" <= first <= "\U0001f3ff"
    is_letter = LETTERS.match(last) is not None or unicodedata.category(last)[0] == "M"
    return is_attached or last == "\u200d" or (is_letter and LETTERS.match(first) is not None)
