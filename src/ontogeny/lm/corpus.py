"""Texts as files of tokens: read as a stream, split into training and held-out text, mapped into memory.

No text is ever held whole: files larger than memory are read, tokenized and written piece by piece, and training maps
the tokens from the disk. The tokenizer's end token stands before each document. Nothing here knows models.
"""

import codecs
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.report.formatting import pluralize
from ontogeny.runs.files import open_new_file, read_json, write_json

FILE = "corpus.json"
PARTS = ("training", "held_out")
SPLITS = ("tail", "document")
READ_SIZE = 1 << 20  # bytes read at a time
MAX_LINE_SEARCH = 1 << 16  # bytes within which the end of a line is searched


class Passage(NamedTuple):
    """The bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int


class TextFile(NamedTuple):
    """A file of text, its length in bytes and the SHA-256 of its content."""

    path: Path
    num_bytes: int
    sha256: str


class Corpus(NamedTuple):
    """The tokens of a run.

    Attributes:
        training: [N] uint16 or uint32, mapped into memory; an end token precedes each document.
        held_out: [N'], likewise.
        metadata: The type of the tokens, and the numbers of tokens and bytes of each part.
    """

    training: np.ndarray
    held_out: np.ndarray
    metadata: dict[str, Any]


def scan_files(paths: Sequence[Path]) -> list[TextFile]:
    """Read all files once and hash them.

    Raises:
        BadInput: A file is absent, empty, not text in UTF-8, or has the same content as another one.
    """
    if not paths:
        raise BadInput("name at least one file of text")
    files: list[TextFile] = []
    for path in paths:
        digest, size, has_text = hashlib.sha256(), 0, False
        try:
            if path.is_dir():
                raise BadInput(f"'{path}' is a folder; name the files in it")
            size = path.stat().st_size
        except OSError as error:
            raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
        for text in read_passage(Passage(path, 0, size)):
            digest.update(text.encode())
            has_text = has_text or not text.isspace()
        if not has_text:
            raise BadInput(f"'{path}' is empty" if not size else f"'{path}' contains nothing but white space")
        if digest.hexdigest() in [file.sha256 for file in files]:
            raise BadInput(f"'{path}' contains the same text as another of the files")
        files.append(TextFile(path, size, digest.hexdigest()))
    return files


def read_passage(passage: Passage) -> Iterator[str]:
    """Read the text of a passage in pieces.

    Raises:
        BadInput: The file cannot be read, is not UTF-8, or contains the character NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_remaining = passage.stop - passage.start
    try:
        with passage.path.open("rb") as file:
            file.seek(passage.start)
            while num_remaining:
                data = file.read(min(READ_SIZE, num_remaining))
                if not data:
                    raise BadInput(f"'{passage.path}' has become shorter while it was read")
                num_remaining -= len(data)
                if b"\0" in data:
                    raise BadInput(f"'{passage.path}' is not text: it contains the byte 0")
                yield decoder.decode(data, final=not num_remaining)
    except OSError as error:
        raise BadInput(f"'{passage.path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"'{passage.path}' is not text in UTF-8") from None


def split_files(files: Sequence[TextFile], split: str, held_out_fraction: float, seed: int) -> dict[str, list[Passage]]:
    """Divide files into training and held-out passages.

    Args:
        files: The files of a run.
        split: `tail` holds out the tail of each file, from the end of a line where there is one near; `document` holds
            out whole files, drawn by the seed, at least one, and leaves at least one.
        held_out_fraction: The share of the bytes, between 0 and 1.
        seed: Determines the files that are held out.

    Returns:
        The passages of each of `PARTS`.

    Raises:
        BadInput: An argument is out of its range, or a split by document has fewer than two files.
    """
    if split not in SPLITS:
        raise BadInput(f"texts are split by {' or by '.join(SPLITS)}, not by '{split}'")
    if not 0 < held_out_fraction < 1:
        raise BadInput(f"the held-out fraction must lie between 0 and 1, not {held_out_fraction}")
    passages = [Passage(file.path, 0, file.num_bytes) for file in files]
    if split == "tail":
        cuts = [_find_cut(passage, round(passage.stop * (1 - held_out_fraction))) for passage in passages]
        return {
            "training": [passage._replace(stop=cut) for passage, cut in zip(passages, cuts, strict=True)],
            "held_out": [passage._replace(start=cut) for passage, cut in zip(passages, cuts, strict=True)],
        }
    if len(passages) < 2:
        raise BadInput("a split by document needs at least two files; of one file the tail can be held out")
    order = np.random.default_rng(seed).permutation(len(passages))
    num_bytes, chosen = held_out_fraction * sum(passage.stop for passage in passages), set()
    for index in order[:-1]:
        if chosen and sum(passages[i].stop for i in chosen) >= num_bytes:
            break
        chosen.add(int(index))
    return {
        "training": [passage for i, passage in enumerate(passages) if i not in chosen],
        "held_out": [passage for i, passage in enumerate(passages) if i in chosen],
    }


def write_corpus(
    folder: Path, parts: Mapping[str, Sequence[Passage]], tokenizer: Tokenizer, context_length: int
) -> Corpus:
    """Tokenize passages into files of a folder.

    Args:
        folder: An existing folder.
        parts: The passages of each of `PARTS`.
        tokenizer: Encodes them.
        context_length: Each part must have more tokens than this.

    Raises:
        BadInput: A part has too few tokens.
    """
    dtype = np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)
    metadata: dict[str, Any] = {"dtype": dtype.name, "num_tokens": {}, "num_bytes": {}}
    for part, passages in parts.items():
        num_tokens, num_bytes = _write_part(folder / f"{part}.tokens", passages, tokenizer, dtype)
        if num_tokens < context_length + 1:
            name = "held-out" if part == "held_out" else "training"
            raise BadInput(
                f"the {name} text has {pluralize(num_tokens, 'token')}, fewer than a context of {context_length} and "
                "the token after it: give more text, or a smaller --context-length"
            )
        metadata["num_tokens"][part], metadata["num_bytes"][part] = num_tokens, num_bytes
    write_json(folder / FILE, metadata)
    return load_corpus(folder)


def tokenize_files(paths: Sequence[Path], tokenizer: Tokenizer, context_length: int) -> Corpus:
    """Tokenize files in memory; the last tenth of each is held out.

    Args:
        paths: Text in UTF-8.
        tokenizer: Encodes it.
        context_length: Each part must have more tokens than this.

    Raises:
        BadInput: A file cannot be read, or there is too little text.
    """
    parts = split_files(scan_files(paths), "tail", 0.1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        texts = write_corpus(Path(folder), parts, tokenizer, context_length)
        return texts._replace(training=np.array(texts.training), held_out=np.array(texts.held_out))


def load_corpus(folder: Path) -> Corpus:
    """Map the corpus of a run into memory.

    Raises:
        BadInput: It is absent or damaged.
    """
    metadata = read_json(folder / FILE)
    parts = []
    for part in PARTS:
        path = folder / f"{part}.tokens"
        try:
            dtype, num_tokens = np.dtype(metadata["dtype"]), metadata["num_tokens"][part]
            if path.stat().st_size != dtype.itemsize * num_tokens:
                raise BadInput(f"'{path}' is damaged: it does not hold the {num_tokens:,} tokens of '{FILE}'")
            parts.append(np.memmap(path, dtype, "r"))
        except (KeyError, TypeError) as error:
            raise BadInput(f"'{folder / FILE}' is damaged: it lacks {error}") from None
        except OSError as error:
            raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    return Corpus(parts[0], parts[1], metadata)


def sample_batches(
    tokens: np.ndarray, seed: int, first_step: int, shape: tuple[int, int, int], context_length: int
) -> Int32[np.ndarray, "S A B T"]:
    """Sample the windows of consecutive training steps.

    Args:
        tokens: [N], more than `context_length`.
        seed: At least 0. A step's windows depend on seed and step alone, so a resumed run draws the same ones.
        first_step: The number of the first step.
        shape: Steps, accumulated batches per step, windows per batch.
        context_length: Predicted tokens per window.

    Returns:
        Windows of `context_length` + 1 tokens.
    """
    num_steps, *rest = shape
    starts = [
        np.random.Generator(np.random.Philox(key=[seed, step])).integers(0, len(tokens) - context_length, rest)
        for step in range(first_step, first_step + num_steps)
    ]
    return tokens[np.stack(starts)[..., None] + np.arange(context_length + 1)].astype(np.int32)


def spaced_windows(tokens: np.ndarray, context_length: int, max_windows: int) -> Int32[np.ndarray, "N T"]:
    """Select evenly spaced windows that overlap in their first token at most.

    Args:
        tokens: A text of more than `context_length` tokens.
        context_length: Predicted tokens per window.
        max_windows: At least 1.

    Returns:
        At most `max_windows` windows of `context_length` + 1 tokens.
    """
    count = (len(tokens) - 1) // context_length
    window_indices = np.unique(np.linspace(0, count - 1, min(count, max_windows)).round().astype(np.int64))
    return tokens[(window_indices * context_length)[:, None] + np.arange(context_length + 1)].astype(np.int32)


def _write_part(path: Path, passages: Sequence[Passage], tokenizer: Tokenizer, dtype: np.dtype) -> tuple[int, int]:
    """Write the tokens of passages into a file; return the numbers of tokens and of bytes of text."""
    num_tokens = num_bytes = 0
    with open_new_file(path) as file:
        for passage in passages:
            if tokenizer.end is not None:
                file.write(np.array([tokenizer.end], dtype).tobytes())
                num_tokens += 1
            for text in tokenizer.split(read_passage(passage)):
                tokens = tokenizer.encode(text)
                file.write(tokens.astype(dtype).tobytes())
                num_tokens += len(tokens)
                num_bytes += len(text.encode())
    return num_tokens, num_bytes


def _find_cut(passage: Passage, near: int) -> int:
    """The end of a line at or soon after a byte, or else the next byte at which a character begins."""
    with passage.path.open("rb") as file:
        file.seek(near)
        data = file.read(min(MAX_LINE_SEARCH, passage.stop - near))
    line_end = data.find(b"\n") + 1
    if 0 < line_end < len(data):
        return near + line_end
    return near + next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
