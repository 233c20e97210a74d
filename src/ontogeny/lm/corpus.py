"""Texts as files of tokens: read in a stream, split into what is trained on and what is held out, mapped into memory.

No text is ever held whole: files larger than memory are read, tokenized and written piece by piece, and training maps
the tokens from the disk. Before each document stands the tokenizer's end token. Knows nothing of models.
"""

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import Tokenizer, in_pieces
from ontogeny.runs.files import read_json, write_json
from ontogeny.runs.formats import FORMATS, JSON_REPORT

FILE = "corpus.json"
PARTS = ("training", "held_out")
SPLITS = ("tail", "document")
READ = 1 << 20  # bytes at a time
LINE = 1 << 16  # how far the end of a line is looked for


class Passage(NamedTuple):
    """A stretch of a file, from one byte to another."""

    path: Path
    start: int
    stop: int


class Source(NamedTuple):
    """A file of text: what it is called, how long it is, what is in it."""

    path: Path
    bytes: int
    sha256: str


class Corpus(NamedTuple):
    """The tokens of a run; each document begins with the end token, which is not part of its text."""

    training: np.ndarray  # [N] uint16 or uint32, mapped
    held_out: np.ndarray  # [N']
    about: dict[str, Any]


def look_at(paths: Sequence[Path]) -> list[Source]:
    """Reads all files once: absent, empty, binary ones and those given twice raise `BadInput`."""
    if not paths:
        raise BadInput("name at least one file of text")
    found = []
    for path in paths:
        hashed, size, seen = hashlib.sha256(), 0, False
        try:
            if path.is_dir():
                raise BadInput(f"'{path}' is a folder; name the files in it")
            size = path.stat().st_size
        except OSError as error:
            raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
        for text in read(Passage(path, 0, size)):
            hashed.update(text.encode())
            seen = seen or not text.isspace()
        if not seen:
            raise BadInput(f"'{path}' is empty" if not size else f"'{path}' holds nothing but white space")
        found.append(Source(path, size, hashed.hexdigest()))
        if [source.sha256 for source in found].count(found[-1].sha256) > 1:
            raise BadInput(f"'{path}' holds the same text as another of the files")
    return found


def read(passage: Passage) -> Iterator[str]:
    """The text of a passage in pieces; what is not UTF-8, or holds the character NUL, raises `BadInput`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    left = passage.stop - passage.start
    try:
        with passage.path.open("rb") as file:
            file.seek(passage.start)
            while left:
                data = file.read(min(READ, left))
                if not data:
                    raise BadInput(f"'{passage.path}' has become shorter while it was read")
                left -= len(data)
                if b"\0" in data:
                    raise BadInput(f"'{passage.path}' is not text: it holds the byte 0")
                yield decoder.decode(data, final=not left)
    except OSError as error:
        raise BadInput(f"'{passage.path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"'{passage.path}' is not text in UTF-8") from None


def divide(sources: Sequence[Source], split: str, share: float, seed: int) -> dict[str, list[Passage]]:
    """What is trained on and what is held out, by the tail of each file or by whole files.

    By tail, the cut is at the end of a line where there is one near; by document, files are drawn by the seed until
    they hold the share of all bytes, and at least one is on either side.
    """
    if split not in SPLITS:
        raise BadInput(f"texts are split by {' or by '.join(SPLITS)}, not by '{split}'")
    if not 0 < share < 1:
        raise BadInput(f"the share that is held out lies between 0 and 1, not {share}")
    whole = [Passage(source.path, 0, source.bytes) for source in sources]
    if split == "tail":
        cuts = [_cut(passage, round(passage.stop * (1 - share))) for passage in whole]
        return {
            "training": [passage._replace(stop=cut) for passage, cut in zip(whole, cuts, strict=True)],
            "held_out": [passage._replace(start=cut) for passage, cut in zip(whole, cuts, strict=True)],
        }
    if len(whole) < 2:
        raise BadInput("a split by document needs at least two files; of one file the tail can be held out")
    order = np.random.default_rng(seed).permutation(len(whole))
    wanted, held = share * sum(passage.stop for passage in whole), set()
    for index in order[:-1]:
        if held and sum(whole[i].stop for i in held) >= wanted:
            break
        held.add(int(index))
    return {
        "training": [passage for i, passage in enumerate(whole) if i not in held],
        "held_out": [passage for i, passage in enumerate(whole) if i in held],
    }


def write(folder: Path, parts: dict[str, list[Passage]], tokenizer: Tokenizer, block: int) -> Corpus:
    """Tokenizes the passages into `folder`; a part of fewer tokens than one block of `block` raises `BadInput`."""
    kind = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    about: dict[str, Any] = {"format": FORMATS[JSON_REPORT], "dtype": np.dtype(kind).name, "tokens": {}, "bytes": {}}
    for part, passages in parts.items():
        tokens = length = 0
        with (folder / f"{part}.tokens").open("wb") as file:
            for passage in passages:
                if tokenizer.end is not None:
                    file.write(np.array([tokenizer.end], kind).tobytes())
                    tokens += 1
                for text in in_pieces(read(passage)):
                    found = tokenizer.encode(text)
                    file.write(found.astype(kind).tobytes())
                    tokens += len(found)
                    length += len(text.encode())
        if tokens < block + 1:
            which = "held-out" if part == "held_out" else "training"
            raise BadInput(
                f"the {which} text has {tokens} tokens, less than one block of {block} and the token after it: "
                "give more text, or a smaller --context"
            )
        about["tokens"][part], about["bytes"][part] = tokens, length
    write_json(folder / FILE, about)
    return load(folder)


def load(folder: Path) -> Corpus:
    """The corpus of a run, mapped into memory; absent or damaged raises `BadInput`."""
    about = read_json(folder / FILE)
    found = []
    for part in PARTS:
        path = folder / f"{part}.tokens"
        try:
            kind, tokens = np.dtype(about["dtype"]), about["tokens"][part]
            if path.stat().st_size != kind.itemsize * tokens:
                raise BadInput(f"'{path}' is damaged: it does not hold the {tokens:,} tokens of '{FILE}'")
            found.append(np.memmap(path, kind, "r"))
        except (KeyError, TypeError) as error:
            raise BadInput(f"'{folder / FILE}' is damaged: it lacks {error}") from None
        except OSError as error:
            raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    return Corpus(found[0], found[1], about)


def sample_batches(tokens: np.ndarray, seed: int, first: int, shape: tuple[int, int, int], block: int) -> np.ndarray:
    """The windows of steps `first`, `first` + 1, ...: [*shape, block + 1] int32, shape (steps, accumulated, batch).

    Each step's windows begin at places drawn by (seed, step) alone, so a run that goes on draws what it would have.
    """
    steps, *rest = shape
    starts = [
        np.random.Generator(np.random.Philox(key=[seed, step])).integers(0, len(tokens) - block, rest)
        for step in range(first, first + steps)
    ]
    return tokens[np.stack(starts)[..., None] + np.arange(block + 1)].astype(np.int32)


def spaced_windows(tokens: np.ndarray, block: int, most: int) -> np.ndarray:
    """Up to `most` windows that do not overlap but for their first token, evenly spread: [N, block + 1] int32."""
    count = (len(tokens) - 1) // block
    chosen = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
    return tokens[(chosen * block)[:, None] + np.arange(block + 1)].astype(np.int32)


def _cut(passage: Passage, near: int) -> int:
    """The end of a line at or soon after a byte, or else the next byte at which a character begins."""
    with passage.path.open("rb") as file:
        file.seek(near)
        data = file.read(min(LINE, passage.stop - near))
    line = data.find(b"\n") + 1
    if 0 < line < len(data):
        return near + line
    inside = next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
    return near + inside
