"""Tokenizers: bytes, characters, and byte-level BPE trained on the user's own text.

Byte-level BPE as in GPT-2 (Radford et al. 2019; Sennrich et al. 2016), by the library `tokenizers`. All three are
saved as one `tokenizer.json` in that library's format, which `transformers` reads too. Every tokenizer that is made
here has one more token, `<|endoftext|>`, which stands between documents and before the first one. Bytes and characters
never encode to it; BPE does where a text holds these letters, as GPT-2's own tokenizer does.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ontogeny.errors import BadInput

END = "<|endoftext|>"
FILE = "tokenizer.json"
KINDS = ("bytes", "characters", "bpe")
PIECE = 1 << 20  # characters that are tokenized at a time
BETWEEN = re.compile(r"(?<=\S)\s(?=\S)")  # GPT-2's words begin at such a place whatever stands around it


@runtime_checkable
class Tokenizer(Protocol):
    """Text to whole numbers below `size` and back; `encode` raises `BadInput` for what it cannot express."""

    kind: str
    size: int  # V
    end: int | None  # the token between documents; None where there is none

    def encode(self, text: str) -> np.ndarray: ...  # [T] int32
    def bytes_of(self, token: int) -> bytes: ...  # of UTF-8; none for the end token
    def as_json(self) -> str: ...


class Bytes:
    """The 256 bytes of UTF-8."""

    kind = "bytes"
    size = 257
    end: int | None = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32)

    def bytes_of(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def as_json(self) -> str:
        letters = byte_letters()
        made = tokenizers.Tokenizer(models.BPE({letters[i]: i for i in range(256)} | {END: 256}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([END])
        return made.to_str()


class Characters:
    """The characters of the training text, in the order of Unicode; any other raises `BadInput`."""

    kind = "characters"

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.size = len(alphabet) + 1
        self.end: int | None = len(alphabet)
        self._codes = np.array([ord(letter) for letter in alphabet], np.uint32)

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        found = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        strange = self._codes[found] != codes
        if strange.any():
            at = int(np.argmax(strange))
            raise BadInput(
                f"the character {text[at]!r} at position {at:,} is not among the {len(self.alphabet)} that the model "
                "knows; a tokenizer of bytes or bpe knows all"
            )
        return found.astype(np.int32)

    def bytes_of(self, token: int) -> bytes:
        return self.alphabet[token : token + 1].encode()

    def as_json(self) -> str:
        made = tokenizers.Tokenizer(
            models.BPE({c: i for i, c in enumerate(self.alphabet)} | {END: len(self.alphabet)}, [])
        )
        made.decoder = decoders.Fuse()
        made.add_special_tokens([END])
        return made.to_str()


class BytePairs:
    """Byte-level BPE, trained here or come with a Hugging Face folder."""

    kind = "bpe"

    def __init__(self, made: tokenizers.Tokenizer) -> None:
        self._made = made
        vocabulary, added = made.get_vocab(), made.get_added_tokens_decoder()
        self.size = max(vocabulary.values()) + 1
        self.end: int | None = made.token_to_id(END)
        byte = {letter: value for value, letter in enumerate(byte_letters())}
        self._bytes = [b""] * self.size
        for word, token in vocabulary.items():
            if token in added:
                self._bytes[token] = b"" if added[token].special else word.encode()
            elif all(letter in byte for letter in word):
                self._bytes[token] = bytes(byte[letter] for letter in word)
            else:
                raise BadInput("its words are not written by bytes, as GPT-2's are")

    def encode(self, text: str) -> np.ndarray:
        try:
            pieces = [self._made.encode(piece, add_special_tokens=False).ids for piece in in_pieces([text])]
        except UnicodeEncodeError:
            raise BadInput("the text holds half a surrogate pair, which is no character") from None
        return np.concatenate([np.asarray(piece, np.int32) for piece in [[], *pieces]])

    def bytes_of(self, token: int) -> bytes:
        return self._bytes[token]

    def as_json(self) -> str:
        return self._made.to_str()


def make(kind: str, vocabulary: int, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of a kind; `texts` is the training text in pieces, which bytes do not look at."""
    if kind not in KINDS:
        raise BadInput(f"a tokenizer is one of {', '.join(KINDS)}, not '{kind}'")
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        alphabet: set[str] = set()
        for text in texts:
            alphabet |= set(text)
        return Characters("".join(sorted(alphabet)))
    if not 257 <= vocabulary <= 1 << 20:
        raise BadInput(f"a vocabulary of BPE has 257 to {1 << 20} tokens, not {vocabulary}")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return BytePairs(_plain_end(made))


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of tokens; bytes that make no character are shown as U+FFFD."""
    return b"".join(tokenizer.bytes_of(int(token)) for token in tokens).decode("utf-8", "replace")


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`."""
    path = folder / FILE
    if path.is_file():
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BadInput) as error:
            raise BadInput(f"'{path}' is damaged: {error}") from None
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise BadInput(f"'{folder}' has no tokenizer: neither {FILE} nor vocab.json with merges.txt")
    try:
        made = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception:  # the library raises nothing more special
        raise BadInput(f"'{vocabulary}' or '{merges}' is damaged: they are no tokenizer") from None
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return BytePairs(_plain_end(made))


def parse(text: str) -> Tokenizer:
    """The inverse of `as_json`; any other byte-level tokenizer of the library is taken as it is."""
    try:
        made = tokenizers.Tokenizer.from_str(text)
        model = json.loads(text)["model"]
        vocabulary, merges = model["vocab"], model.get("merges")
    except Exception:  # the library raises nothing more special
        raise BadInput("it is no tokenizer") from None
    if model.get("type") == "BPE" and not merges and END in vocabulary:
        letters = sorted((letter for letter in vocabulary if letter != END), key=vocabulary.__getitem__)
        if letters == [byte_letters()[i] for i in range(256)]:
            return Bytes()
        if json.loads(text).get("pre_tokenizer") is None:
            return Characters("".join(letters))
    return BytePairs(made)


def in_pieces(texts: Iterable[str], length: int = PIECE) -> Iterator[str]:
    """The same text in pieces of about `length` characters, cut where GPT-2's words begin in any case."""
    rest = ""
    for text in texts:
        rest += text
        while len(rest) > 2 * length:
            found = BETWEEN.search(rest, length, len(rest) - 1)
            cut = found.start() if found else 2 * length
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


@lru_cache(maxsize=1)
def byte_letters() -> tuple[str, ...]:
    """The character by which GPT-2's vocabulary writes each byte: printable ones themselves, others from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in shown else chr(next(others)) for byte in range(256))


def _plain_end(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """With `<|endoftext|>` as a special token, so that decoding leaves it out."""
    if made.token_to_id(END) is not None:
        made.add_special_tokens([END])
    return made
