"""Pytrees on disk: safetensors for the arrays, JSON for their description. Never pickle, never half written.

A saved tree is two files. The arrays are written first; the JSON file that names them is replaced last, in one step,
and decides: before it the old tree is there, after it the new one. To this end the arrays of a tree that is saved again
and again lie in files named by their digest; a tree that is saved once needs no digest in its file name. In the folder
of a run the JSON file also names the digest of `spec.json`, so that no tree is read with the spec of another run.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ontogeny import trees
from ontogeny.errors import BadInput
from ontogeny.runs.files import json_digest, read_json, write_bytes, write_sealed_json
from ontogeny.runs.formats import CHECKPOINT, FORMATS, SPEC_FILE, check_format, first_object
from ontogeny.runs.stored_arrays import StoredPart, list_parts
from ontogeny.types import PyTree

SUMMARY_KEYS = ("file", "file_sha256", "digest", "num_parameters")
SPEC_DIGEST = "spec_sha256"  # absent where the tree was saved before trees named the digest of their spec


def save(folder: Path, name: str, tree: PyTree, metadata: Mapping[str, Any], *, write_once: bool = False) -> str:
    """Save a tree as `name.json` and the safetensors file that it names.

    Files of older trees, and files that a killed process left behind, are removed once the new tree counts.

    Args:
        metadata: Plain JSON values that `read_metadata` returns.
        write_once: Whether no other tree is ever saved under this name; its arrays are then in `name.safetensors`.

    Returns:
        The digest of the tree.
    """
    digest = trees.digest(tree)
    arrays = {key: np.require(array, requirements="C") for key, array in trees.to_arrays(tree).items()}
    data = encode(arrays)
    file = f"{name}.safetensors" if write_once else f"{name}-{digest[:16]}.safetensors"
    write_bytes(folder / file, data)
    content = {
        "format": FORMATS[CHECKPOINT],
        "file": file,
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "digest": digest,
        "num_parameters": trees.num_elements(tree),
        SPEC_DIGEST: first_object(folder / SPEC_FILE).get("sha256"),
        "metadata": dict(metadata),
    }
    write_sealed_json(folder / f"{name}.json", content)
    older = folder / f"{name}.safetensors"
    for path in [*folder.glob(f"{name}-*.safetensors"), *folder.glob(f".{name}*.tmp"), older]:
        if path.name != file:
            path.unlink(missing_ok=True)
    return digest


def exists(folder: Path, name: str) -> bool:
    """Whether a tree of that name was ever saved in a folder; it may be damaged."""
    return (folder / f"{name}.json").exists()


def read_metadata(folder: Path, name: str) -> dict[str, Any]:
    """The metadata of a saved tree with its `digest`, `num_parameters`, `file` and `file_sha256`; reads no arrays.

    Raises:
        BadInput: The JSON file is absent, damaged or of another format.
    """
    path = folder / f"{name}.json"
    content = read_json(path)
    check_format(path, CHECKPOINT, content.get("format"))
    if content.pop("sha256", None) != json_digest(content):
        raise BadInput(f"'{path}' is damaged: its digest is not the one that it names")
    try:
        return (
            content["metadata"] | {key: content[key] for key in SUMMARY_KEYS} | {SPEC_DIGEST: content.get(SPEC_DIGEST)}
        )
    except KeyError as error:
        raise BadInput(f"'{path}' is damaged: it lacks the key {error}") from None


def load(folder: Path, name: str, template: PyTree) -> PyTree:
    """A saved tree.

    Args:
        template: A tree of the same structure, shapes and types.

    Raises:
        BadInput: The tree is absent or damaged, or fits neither the template nor the `spec.json` beside it.
    """
    content, path = _find_file(folder, name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, name, error) from None
    if hashlib.sha256(data).hexdigest() != content["file_sha256"]:
        raise BadInput(f"'{path}' is damaged: its digest is not the one in '{name}.json'")
    try:
        tree = trees.from_arrays(template, decode(data))
    except SafetensorError as error:
        raise BadInput(f"'{path}' is damaged: {error}") from None
    except BadInput as error:
        raise BadInput(f"'{path}' does not fit this agent: {error}") from None
    if trees.digest(tree) != content["digest"]:
        raise BadInput(f"'{path}' is damaged: the tree in it does not have the digest in '{name}.json'")
    return tree


def find_arrays(folder: Path, name: str) -> dict[str, StoredPart]:
    """The arrays of a saved tree by their paths, which are read when they are needed; see `load` for errors."""
    content, path = _find_file(folder, name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, name, error) from None
    if digest != content["file_sha256"]:
        raise BadInput(f"'{path}' is damaged: its digest is not the one in '{name}.json'")
    return list_parts(path)


def _find_file(folder: Path, name: str) -> tuple[dict[str, Any], Path]:
    """The metadata of a saved tree, and the file of its arrays."""
    content = read_metadata(folder, name)
    if content[SPEC_DIGEST] not in (None, first_object(folder / SPEC_FILE).get("sha256")):
        raise BadInput(f"'{folder / SPEC_FILE}' is not the one of the run that saved '{name}'")
    return content, folder / content["file"]


def _unreadable(path: Path, name: str, error: OSError) -> BadInput:
    """The error that the file of the arrays cannot be read."""
    return BadInput(f"'{path}', which '{name}.json' names, cannot be read: {error.strerror}")
