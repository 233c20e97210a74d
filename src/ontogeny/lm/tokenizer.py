"""Tokenizers: bytes, characters, byte-level BPE trained on the user's own text, and those of other models.

Byte-level BPE is that of GPT-2 (Radford et al. 2019; Sennrich et al. 2016), by the library `tokenizers`. Folders of
other models may also have BPE in the style of SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226): U+2581 stands
for a space, and characters outside the vocabulary are written by tokens of single bytes. The first three are
saved as one `tokenizer.json` in that library's format, which `transformers` reads too. Every tokenizer made here has
one more token, `<|endoftext|>`, which stands between documents and before the first one. Bytes and characters never
encode to it; BPE does where a text contains these letters, as GPT-2's own tokenizer does.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, SupportsInt, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer_settings import read_tokenizer_settings

END = "<|endoftext|>"
FILE = "tokenizer.json"
KINDS = ("bytes", "characters", "bpe")
NUM_BYTES = 256
MAX_VOCAB_SIZE = 1 << 20
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast")
PIECE_LENGTH = 1 << 20  # characters that are tokenized at a time
MAX_LENGTHS = 8  # times the length of a piece, where a text has no place at which it can be split
# Byte-level pre-tokenizers begin a word here whatever the context is: at a space between two words, and where the
# script has no spaces, at a line end or punctuation mark after a letter or digit. A space beside a bracket may belong
# to a special token.
WORD_START = re.compile(
    r"(?<=[^\s>\]]) (?=[^\s<\[])|(?<=[^\W_])(?=[\n.,;:!?\u3001\u3002\uff0c\uff1a\uff1b\uff01\uff1f])"
)
SPLIT_PROBE = ("Ab", " cd 1", "\n2", ",ef", ", g")  # one text in the pieces of `WORD_START`
SPACE = "▁"  # as tokenizers in the style of SentencePiece write it
BYTE_WORD = re.compile(r"<0x([0-9A-F]{2})>")


@runtime_checkable
class Tokenizer(Protocol):
    """Maps text to integers below `size` and back.

    Attributes:
        kind: One of `KINDS`.
        size: Number of tokens (the vocabulary size).
        end: The token that ends a document; None where there is none.
        start: The token that stands before a document, from which its first token is predicted: often `end`.
        end_name: The word in the vocabulary that is the end token.
        start_name: The word in the vocabulary that is the start token.
        prefix: The tokens with which the model expects every prompt to begin.
        end_tokens: The tokens that end an answer, `end` among them.
    """

    kind: str
    size: int
    end: int | None
    start: int | None
    end_name: str | None
    start_name: str | None
    prefix: tuple[int, ...]
    end_tokens: frozenset[int]

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text; text that the tokenizer cannot express raises `BadInput`."""
        ...

    def split(self, texts: Iterable[str]) -> Iterator[str]:
        """Split a text, given in parts, into pieces that encode to the tokens of the undivided text."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; none for the end token."""
        ...

    def source_of(self, token: int) -> bytes:
        """The UTF-8 bytes of text that encode to a token: `bytes_of`, and the name of a special token."""
        ...

    def as_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    kind = "bytes"
    size = NUM_BYTES + 1
    end: int | None = NUM_BYTES
    start: int | None = NUM_BYTES
    end_name: str | None = END
    start_name: str | None = END
    prefix: tuple[int, ...] = ()
    end_tokens = frozenset([NUM_BYTES])

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32)

    def split(self, texts: Iterable[str]) -> Iterator[str]:
        """Split a text into the pieces of `split_text`."""
        return split_text(texts)

    def bytes_of(self, token: int) -> bytes:
        """The byte of a token."""
        return bytes([token]) if token < NUM_BYTES else b""

    source_of = bytes_of  # no text encodes to the end token

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
        self.start: int | None = self.end
        self.end_name: str | None = END
        self.start_name: str | None = END
        self.prefix: tuple[int, ...] = ()
        self.end_tokens = frozenset([len(alphabet)])
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

    def split(self, texts: Iterable[str]) -> Iterator[str]:
        """Split a text into the pieces of `split_text`."""
        return split_text(texts)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token's character."""
        return self.alphabet[token : token + 1].encode()

    source_of = bytes_of  # no text encodes to the end token

    def as_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        library = _make_library_tokenizer(self.alphabet)
        library.decoder = decoders.Fuse()
        return library.to_str()


class SpecialTokens(NamedTuple):
    """The tokens with a meaning of their own in a folder of another model.

    Attributes:
        start: The name of the token that stands before a document; None where there is none.
        end: The name of the token that ends a document; where the vocabulary lacks it, the first of `end_tokens` does.
        end_tokens: Numbers of further tokens that end an answer.
    """

    start: str | None = None
    end: str | None = END
    end_tokens: tuple[int, ...] = ()


class BPETokenizer:
    """Byte-pair encoding: trained here, or read from the folder of another model."""

    kind = "bpe"

    def __init__(self, library: tokenizers.Tokenizer, special_tokens: SpecialTokens = SpecialTokens()) -> None:  # noqa: B008
        """Wrap a tokenizer of the library.

        Args:
            library: As the library `tokenizers` reads or trains it.
            special_tokens: Those of its model.

        Raises:
            BadInput: Its words cannot be converted to bytes.
        """
        self._library = library
        vocabulary, added = library.get_vocab(), library.get_added_tokens_decoder()
        self.size = max(vocabulary.values()) + 1
        ends = [token for token in special_tokens.end_tokens if token < self.size]
        end, start = (_find_token(library, name) for name in (special_tokens.end, special_tokens.start))
        self.end: int | None = next(iter(ends), None) if end is None else end
        self.start: int | None = self.end if start is None else start
        self.end_name = None if self.end is None else library.id_to_token(self.end)
        self.start_name = self.end_name if start is None else special_tokens.start
        self.prefix = _find_prefix(library)
        self.end_tokens = frozenset(ends if self.end is None else [*ends, self.end])
        self._is_splittable = _is_splittable(library)
        to_bytes = _byte_level_bytes if _is_byte_level(library) else _sentencepiece_bytes
        self._bytes = [b""] * self.size
        self._special_names = {token: word.content.encode() for token, word in added.items() if word.special}
        for word, token in vocabulary.items():
            if token in added:
                self._bytes[token] = b"" if added[token].special else word.encode()
            else:
                self._bytes[token] = to_bytes(word)

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Tokenize a text; a text with half a surrogate pair raises `BadInput`."""
        try:
            tokens = [self._library.encode(piece, add_special_tokens=False).ids for piece in self.split([text])]
        except (UnicodeEncodeError, TypeError):  # the library raises the latter
            raise BadInput("the text contains half a surrogate pair, which is not a character") from None
        return np.concatenate([np.asarray(piece, np.int32) for piece in [[], *tokens]])

    def split(self, texts: Iterable[str]) -> Iterator[str]:
        """Split a text into the pieces of `split_text`, or into one where the tokens of the pieces would differ."""
        return split_text(texts) if self._is_splittable else iter(["".join(texts)])

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; none for a number beyond the vocabulary, for which a model may have a logit."""
        return self._bytes[token] if token < self.size else b""

    def source_of(self, token: int) -> bytes:
        """The UTF-8 bytes of text that encode to a token: `bytes_of`, and the name of a special token."""
        return self._special_names.get(token) or self.bytes_of(token)

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


def begin_prompt(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """Put the tokens in front of a prompt with which its model expects a document to begin.

    Args:
        tokenizer: Of the model.
        tokens: The prompt, which may begin with these tokens already.

    Returns:
        The prompt; of an empty one the token that begins a document, or nothing where there is none.
    """
    prefix = list(tokenizer.prefix)
    if prefix and tokens[: len(prefix)] != prefix:
        return prefix + tokens
    return tokens or ([] if tokenizer.start is None else [tokenizer.start])


def read_tokenizer(folder: Path, special_tokens: SpecialTokens = SpecialTokens()) -> Tokenizer:  # noqa: B008
    """Read the tokenizer of a folder: `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`.

    Args:
        folder: Place of the files.
        special_tokens: Those of the model in the folder.

    Raises:
        BadInput: The files are absent or damaged.
    """
    path = folder / FILE
    if path.is_file():
        try:
            return parse_tokenizer(path.read_text(encoding="utf-8"), special_tokens, _read_added_tokens(folder))
        except (OSError, UnicodeDecodeError, BadInput) as error:
            raise BadInput(f"'{path}' is damaged: {error}") from None
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        note = " (tokenizer.model of SentencePiece is not read)" if (folder / "tokenizer.model").exists() else ""
        raise BadInput(f"'{folder}' has no tokenizer: neither {FILE} nor vocab.json with merges.txt{note}")
    name = _tokenizer_class(folder)
    if name not in GPT2_CLASSES:
        raise BadInput(f"'{folder}' lacks {FILE}; vocab.json and merges.txt are read as those of GPT-2, not of {name}")
    try:
        library = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception:  # the library raises no class of its own
        raise BadInput(f"'{vocabulary}' or '{merges}' is damaged: they hold no tokenizer") from None
    _set_byte_level(library)
    if library.token_to_id(END) is not None:
        library.add_special_tokens([END])
    _add_tokens(library, _read_added_tokens(folder))
    return BPETokenizer(library, special_tokens)


def parse_tokenizer(
    text: str,
    special_tokens: SpecialTokens = SpecialTokens(),  # noqa: B008
    added_tokens: Mapping[str, int] = MappingProxyType({}),
) -> Tokenizer:
    """Parse the content of a `tokenizer.json`; any BPE of the library is accepted.

    Args:
        text: The content.
        special_tokens: Those of the model.
        added_tokens: Words, by number, that a file beside it adds to the vocabulary.
    """
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
    _add_tokens(library, added_tokens)
    return BPETokenizer(library, special_tokens)


def split_text(texts: Iterable[str], length: int = PIECE_LENGTH) -> Iterator[str]:
    """Split a text into pieces that byte-level pre-tokenizers treat like the whole text.

    Args:
        texts: The text in parts of any length.
        length: Characters per piece, approximately.

    Yields:
        Pieces that begin where a word of the pre-tokenizer begins in any context. Where a text has no such place, a
        piece ends after `MAX_LENGTHS` times the length.
    """
    rest, start = "", length
    for text in texts:
        rest += text
        while len(rest) > 2 * length:
            match = WORD_START.search(rest, start)
            if match is None and len(rest) < MAX_LENGTHS * length:
                start = len(rest) - 1  # the last character may precede a word of the next part
                break
            cut = match.start() if match else MAX_LENGTHS * length
            yield rest[:cut]
            rest, start = rest[cut:], length
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


def _find_token(library: tokenizers.Tokenizer, name: str | None) -> int | None:
    """The number of a token; None where the vocabulary does not have it."""
    return None if name is None else library.token_to_id(name)


def _find_prefix(library: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer itself puts before a text."""
    plain = library.encode("a", add_special_tokens=False).ids
    complete = library.encode("a", add_special_tokens=True).ids
    starts = range(len(complete) - len(plain) + 1)
    return next((tuple(complete[:i]) for i in starts if complete[i : i + len(plain)] == plain), ())


def _is_byte_level(library: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer of the library writes bytes as GPT-2's does."""
    settings = json.loads(library.to_str())
    return any('"ByteLevel"' in json.dumps(settings.get(part)) for part in ("decoder", "pre_tokenizer"))


def _is_splittable(library: tokenizers.Tokenizer) -> bool:
    """Whether the pieces of `split_text` have the words that they have within the text."""
    normalizer, pre_tokenizer = library.normalizer, library.pre_tokenizer
    if pre_tokenizer is None:
        return False

    def words(text: str) -> list[str]:
        normalized = text if normalizer is None else normalizer.normalize_str(text)
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(normalized)]

    return words("".join(SPLIT_PROBE)) == [word for piece in SPLIT_PROBE for word in words(piece)]


def _byte_level_bytes(word: str) -> bytes:
    """The bytes of a word of a byte-level vocabulary."""
    try:
        return bytes(_byte_of_symbol()[symbol] for symbol in word)
    except KeyError:
        raise BadInput("its vocabulary is not byte-level, as its decoder says") from None


def _sentencepiece_bytes(word: str) -> bytes:
    """The bytes of a word of a vocabulary in the style of SentencePiece."""
    byte = BYTE_WORD.fullmatch(word)
    return bytes([int(byte[1], 16)]) if byte else word.replace(SPACE, " ").encode()


@lru_cache(maxsize=1)
def _byte_of_symbol() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def _tokenizer_class(folder: Path) -> str | None:
    """The name of the class in `transformers` that splits a text into words, where the folder says it."""
    return read_tokenizer_settings(folder).get("tokenizer_class")


def _read_added_tokens(folder: Path) -> dict[str, int]:
    """The words that `added_tokens.json` adds to the vocabulary, in folders of old versions of `transformers`."""
    path = folder / "added_tokens.json"
    if not path.is_file():
        return {}
    try:
        added = {str(word): int(token) for word, token in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        raise BadInput(f"'{path}' is damaged: it holds no added tokens") from None
    return dict(sorted(added.items(), key=itemgetter(1)))


def _add_tokens(library: tokenizers.Tokenizer, added_tokens: Mapping[str, int]) -> None:
    """Add words to a tokenizer of the library, in the order of their numbers; known words stay as they are."""
    for word, token in added_tokens.items():
        if library.token_to_id(word) is None:
            library.add_tokens([tokenizers.AddedToken(word, normalized=False)])
        if library.token_to_id(word) != token:
            raise BadInput(
                f"added_tokens.json gives '{word}' the number {token}, the tokenizer {library.token_to_id(word)}"
            )
