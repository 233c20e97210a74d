"""Tokenizers: bytes, characters, and byte-level BPE trained on the user's own text.

Byte-level BPE is that of GPT-2 (Radford et al. 2019; Sennrich et al. 2016), by the library `tokenizers`. All three are
saved as one `tokenizer.json` in that library's format, which `transformers` reads too. Every tokenizer made here has
one more token, `<|endoftext|>`, which stands between documents and before the first one. Bytes and characters never
encode to it; BPE does where a text contains these letters, as GPT-2's own tokenizer does.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol, SupportsInt, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from ontogeny.errors import BadInput

END = "<|endoftext|>"
FILE = "tokenizer.json"
KINDS = ("bytes", "characters", "bpe")
NUM_BYTES = 256
MAX_VOCAB_SIZE = 1 << 20
PIECE_LENGTH = 1 << 20  # characters that are tokenized at a time
WORD_START = re.compile(r"(?<=\S)\s(?=\S)")  # GPT-2's pre-tokenizer begins a word here whatever the context is


@runtime_checkable
class Tokenizer(Protocol):
    """Maps text to integers below `size` and back.

    Attributes:
        kind: One of `KINDS`.
        size: Number of tokens (the vocabulary size).
        end: The token between documents; None where there is none.
    """

    kind: str
    size: int
    end: int | None

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text; text that the tokenizer cannot express raises `BadInput`."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; none for the end token."""
        ...

    def as_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    kind = "bytes"
    size = NUM_BYTES + 1
    end: int | None = NUM_BYTES

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32)

    def bytes_of(self, token: int) -> bytes:
        """The byte of a token."""
        return bytes([token]) if token < NUM_BYTES else b""

    def as_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        library = _make_library_tokenizer(byte_symbols())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        return library.to_str()


class CharacterTokenizer:
    """The characters of the training text, in the order of Unicode."""

    kind = "characters"

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.size = len(alphabet) + 1
        self.end: int | None = len(alphabet)
        self._codes = np.array([ord(character) for character in alphabet], np.uint32)

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text; a character outside the alphabet raises `BadInput`."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        tokens = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        is_unknown = self._codes[tokens] != codes
        if is_unknown.any():
            index = int(np.argmax(is_unknown))
            raise BadInput(
                f"the character {text[index]!r} at position {index:,} is not among the {len(self.alphabet)} characters "
                "of the tokenizer; a tokenizer of bytes or bpe encodes every text"
            )
        return tokens.astype(np.int32)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token's character."""
        return self.alphabet[token : token + 1].encode()

    def as_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        library = _make_library_tokenizer(self.alphabet)
        library.decoder = decoders.Fuse()
        return library.to_str()


class BPETokenizer:
    """Byte-level BPE, trained here or read from a Hugging Face folder."""

    kind = "bpe"

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        vocabulary, added = library.get_vocab(), library.get_added_tokens_decoder()
        self.size = max(vocabulary.values()) + 1
        self.end: int | None = library.token_to_id(END)
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self._bytes = [b""] * self.size
        for word, token in vocabulary.items():
            if token in added:
                self._bytes[token] = b"" if added[token].special else word.encode()
            elif all(symbol in byte_of for symbol in word):
                self._bytes[token] = bytes(byte_of[symbol] for symbol in word)
            else:
                raise BadInput("its vocabulary is not byte-level, as GPT-2's is")

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text; a text with half a surrogate pair raises `BadInput`."""
        try:
            pieces = [self._library.encode(piece, add_special_tokens=False).ids for piece in split_text([text])]
        except UnicodeEncodeError:
            raise BadInput("the text contains half a surrogate pair, which is not a character") from None
        return np.concatenate([np.asarray(piece, np.int32) for piece in [[], *pieces]])

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token."""
        return self._bytes[token]

    def as_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        return self._library.to_str()


def train_tokenizer(kind: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Make a tokenizer for a text.

    Args:
        kind: One of `KINDS`.
        vocab_size: Number of tokens of BPE, 257 to 2^20; the other kinds ignore it.
        texts: The training text in pieces, which a tokenizer of bytes does not read.

    Raises:
        BadInput: There is no such kind, or the vocabulary size is out of its range.
    """
    if kind not in KINDS:
        raise BadInput(f"a tokenizer is one of {', '.join(KINDS)}, not '{kind}'")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "characters":
        alphabet: set[str] = set()
        for text in texts:
            alphabet |= set(text)
        return CharacterTokenizer("".join(sorted(alphabet)))
    if not NUM_BYTES < vocab_size <= MAX_VOCAB_SIZE:
        raise BadInput(f"a vocabulary of BPE has {NUM_BYTES + 1} to {MAX_VOCAB_SIZE} tokens, not {vocab_size}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = tokenizers.Tokenizer(models.BPE())
    _set_byte_level(library)
    library.train_from_iterator(texts, trainer)
    return BPETokenizer(library)


def decode(tokenizer: Tokenizer, tokens: Iterable[SupportsInt]) -> str:
    """Convert tokens to text; bytes that are not valid UTF-8 become U+FFFD."""
    return b"".join(tokenizer.bytes_of(int(token)) for token in tokens).decode("utf-8", "replace")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder: `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`.

    Raises:
        BadInput: The files are absent or damaged.
    """
    path = folder / FILE
    if path.is_file():
        try:
            return parse_tokenizer(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BadInput) as error:
            raise BadInput(f"'{path}' is damaged: {error}") from None
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise BadInput(f"'{folder}' has no tokenizer: neither {FILE} nor vocab.json with merges.txt")
    try:
        library = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception:  # the library raises no class of its own
        raise BadInput(f"'{vocabulary}' or '{merges}' is damaged: they hold no tokenizer") from None
    _set_byte_level(library)
    if library.token_to_id(END) is not None:
        library.add_special_tokens([END])
    return BPETokenizer(library)


def parse_tokenizer(text: str) -> Tokenizer:
    """Parse the content of a `tokenizer.json`; any byte-level tokenizer of the library is accepted."""
    try:
        library = tokenizers.Tokenizer.from_str(text)
        model = json.loads(text)["model"]
        vocabulary, merges = model["vocab"], model.get("merges")
    except Exception:  # the library raises no class of its own
        raise BadInput("it holds no tokenizer") from None
    if model.get("type") == "BPE" and not merges and END in vocabulary:
        symbols = sorted((symbol for symbol in vocabulary if symbol != END), key=vocabulary.__getitem__)
        if symbols == list(byte_symbols()):
            return ByteTokenizer()
        if json.loads(text).get("pre_tokenizer") is None:
            return CharacterTokenizer("".join(symbols))
    return BPETokenizer(library)


def split_text(texts: Iterable[str], length: int = PIECE_LENGTH) -> Iterator[str]:
    """Split a text into pieces that GPT-2's pre-tokenizer treats like the whole text.

    Args:
        texts: The text in parts of any length.
        length: Characters per piece, approximately.

    Yields:
        Pieces that begin where a word of the pre-tokenizer begins in any context.
    """
    rest = ""
    for text in texts:
        rest += text
        while len(rest) > 2 * length:
            match = WORD_START.search(rest, length, len(rest) - 1)
            cut = match.start() if match else 2 * length
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


@lru_cache(maxsize=1)
def byte_symbols() -> tuple[str, ...]:
    """The character by which GPT-2's vocabulary writes each byte: itself if printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    substitutes = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return tuple(chr(byte) if byte in printable else chr(next(substitutes)) for byte in range(NUM_BYTES))


def _make_library_tokenizer(symbols: Iterable[str]) -> tokenizers.Tokenizer:
    """A tokenizer of the library for single symbols and the end token."""
    vocabulary = {symbol: token for token, symbol in enumerate(symbols)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary | {END: len(vocabulary)}, []))
    library.add_special_tokens([END])
    return library


def _set_byte_level(library: tokenizers.Tokenizer) -> None:
    """Give a tokenizer of the library GPT-2's pre-tokenizer and decoder."""
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
