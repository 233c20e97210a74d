"""State files of branches and sessions: safetensors whose metadata name the format, the kind and the digest."""

import json
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode_arrays
from safetensors.numpy import save as encode_arrays

from ontogeny import trees
from ontogeny.errors import BadInput
from ontogeny.runs.formats import BRANCH_STATE, FORMATS, SESSION_STATE, check_format, with_article
from ontogeny.types import PyTree

FORMAT_KINDS = {"branch": BRANCH_STATE, "agent session": SESSION_STATE, "text session": SESSION_STATE}
MAX_STEPS = 2**62  # of a session; SQLite cannot store larger numbers


def encode_state(kind: str, tree: PyTree, metadata: dict[str, str]) -> bytes:
    """Converts a tree to the content of a state file, which is the same for equal arguments.

    Args:
        kind: A key of `FORMAT_KINDS`.
        tree: The arrays to save.
        metadata: Further entries of the file's metadata.
    """
    header = {"format": str(FORMATS[FORMAT_KINDS[kind]]), "kind": kind, "digest": trees.digest(tree)}
    arrays = {name: np.require(array, requirements="C") for name, array in trees.to_arrays(tree).items()}
    return _sort_metadata(encode_arrays(arrays, metadata=header | metadata))


def _sort_metadata(content: bytes) -> bytes:
    """Orders the metadata of a file, which safetensors writes in random order, so that equal states are equal bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8 bytes
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[end:]))


def read_metadata(data: bytes, kind: str, path: str = "uploaded state") -> dict[str, str]:
    """Reads the metadata of a state file and checks its format and kind.

    Args:
        data: The content of the file.
        kind: The expected kind, a key of `FORMAT_KINDS`.
        path: The name of the file in error messages.

    Raises:
        BadInput: The data are not a state file of this kind and of the current format.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        raise BadInput("this is not a state file: it is not in safetensors format") from None
    if not isinstance(metadata, dict) or "format" not in metadata or "digest" not in metadata:
        raise BadInput(f"this is not the state of {with_article(kind)}")
    check_format(path, FORMAT_KINDS[kind], metadata["format"])
    if metadata.get("kind") != kind:
        raise BadInput(f"this is not the state of {with_article(kind)}")
    return metadata


def decode_state(data: bytes) -> dict[str, Any]:
    """Returns the named arrays of a state file; raises `BadInput` if they are damaged."""
    try:
        return decode_arrays(data)
    except (SafetensorError, ValueError) as error:
        raise BadInput(f"this state is damaged: {error}") from None


def check_digest(tree: PyTree, metadata: dict[str, str]) -> None:
    """Raises `BadInput` if a tree does not have the digest that its metadata state."""
    if trees.digest(tree) != metadata["digest"]:
        raise BadInput("this state is damaged: its digest differs from the one in its metadata")


def read_num_steps(metadata: dict[str, str]) -> int:
    """Returns the number of steps in the metadata of a session state; raises `BadInput` if it is not a count."""
    text = metadata.get("num_steps", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < MAX_STEPS):
        raise BadInput(f"this state is damaged: its number of steps is '{text[:40]}'")
    return int(text)
