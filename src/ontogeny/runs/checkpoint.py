"""Pytrees on disk: safetensors for the numbers, JSON for what they are. Never pickle, never half.

A saved tree is two files. The numbers are written first, the JSON file that names them is replaced last, in one step,
and is what counts: before it the old tree is there, after it the new one. So that this holds, a tree that is saved
again and again has numbers in files named by their digest; one that is saved once and for all need not.
Knows nothing of agents, runs or stages.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ontogeny import __version__, trees
from ontogeny.errors import BadInput
from ontogeny.types import PyTree

FORMAT = 1


def versions() -> dict[str, Any]:
    """What else must be equal for a run to end in the same bits."""
    return {
        "ontogeny": __version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax", "evosax")},
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
    }


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and has it on the disk before returning."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of ours; absent, damaged or of a later format raises `BadInput`."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(f"'{path}' is damaged: it holds no table of keys")
    if content.get("format") != FORMAT:
        raise BadInput(f"'{path}' has format {content.get('format')!r}, this version reads format {FORMAT}")
    return content


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder durable, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(folder: Path, name: str, tree: PyTree, about: Mapping[str, Any], *, once: bool = False) -> str:
    """Saves a tree as `name.json` and the safetensors file that it names; returns the tree's digest.

    `once` says that no other tree is ever saved under this name: its numbers are then in `name.safetensors`.
    Files of older trees, and what a killed run left behind, are removed after the new one counts.
    """
    digest = trees.digest(tree)
    arrays = {key: np.require(array, requirements="C") for key, array in trees.to_arrays(tree).items()}
    data = encode(arrays)
    file = f"{name}.safetensors" if once else f"{name}-{digest[:16]}.safetensors"
    write_bytes(folder / file, data)
    content = {
        "format": FORMAT,
        "file": file,
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "digest": digest,
        "numbers": trees.size(tree),
        "about": dict(about),
    }
    write_json(folder / f"{name}.json", content | {"sha256": _own_digest(content)})
    for other in [*folder.glob(f"{name}-*.safetensors"), *folder.glob(f".{name}*.tmp")]:
        if other.name != file:
            other.unlink(missing_ok=True)
    return digest


def exists(folder: Path, name: str) -> bool:
    """Whether a tree of that name was ever saved there; it may still be damaged."""
    return (folder / f"{name}.json").exists()


def about(folder: Path, name: str) -> dict[str, Any]:
    """What was said of a saved tree, and its `digest`, `numbers` (how many), `file`; the numbers are not read."""
    path = folder / f"{name}.json"
    content = read_json(path)
    if content.pop("sha256", None) != _own_digest(content):
        raise BadInput(f"'{path}' is damaged: its digest is not the one that it names")
    try:
        return content["about"] | {key: content[key] for key in ("file", "file_sha256", "digest", "numbers")}
    except KeyError as error:
        raise BadInput(f"'{path}' is damaged: it lacks the key {error}") from None


def load(folder: Path, name: str, template: PyTree) -> PyTree:
    """The saved tree, of the template's structure; absent, damaged or of other shapes raises `BadInput`."""
    content = about(folder, name)
    path = folder / content["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"'{path}', which '{name}.json' names, cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != content["file_sha256"]:
        raise BadInput(f"'{path}' is damaged: its digest is not the one in '{name}.json'")
    try:
        tree = trees.from_arrays(template, decode(data))
    except SafetensorError as error:
        raise BadInput(f"'{path}' is damaged: {error}") from None
    except BadInput as error:
        raise BadInput(f"'{path}' does not fit this agent: {error}") from None
    if trees.digest(tree) != content["digest"]:
        raise BadInput(f"'{path}' is damaged: the tree in it has not the digest in '{name}.json'")
    return tree


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
