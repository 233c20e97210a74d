"""Reads the arrays of a Hugging Face folder: one safetensors file, or several with an index.

Arrays are read one at a time, so that loading a model needs little more memory than the model.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ontogeny.errors import BadInput

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # constants that old versions stored


class ArrayFiles:
    """The arrays of a folder, by name without the prefix of the model's class."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """Open the files.

        Args:
            folder: Place of the safetensors files.
            prefix: What names of arrays may begin with, such as `model.`.

        Raises:
            BadInput: A file is absent or damaged, or the folder is ambiguous.
        """
        self.folder = folder
        self._places: dict[str, tuple[Any, str]] = {}  # the open file and the name in it
        for path, listed in _find_files(folder).items():
            file = _open(path)
            names = set(file.keys())
            for name in sorted(listed - names):
                raise BadInput(f"'{path}' lacks the array '{name}', which '{folder / INDEX}' places there")
            for name in sorted(names):
                short = name.removeprefix(prefix)
                if short in self._places:
                    raise BadInput(f"the files in '{folder}' hold the array '{short}' twice")
                self._places[short] = file, name
        self._unread = {name for name in self._places if not name.endswith(BUFFERS)}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read an array in the type of the file.

        Args:
            name: Without the prefix.
            shape: The shape that it must have.

        Raises:
            BadInput: There is no such array, or it has another shape, integers, or numbers that are not finite.
        """
        if name not in self._places:
            raise BadInput(f"the weights in '{self.folder}' lack the array '{name}', which its config asks for")
        self._unread.discard(name)
        file, full_name = self._places[name]
        view = file.get_slice(full_name)
        if view.get_dtype() not in FLOAT_TYPES:
            raise BadInput(
                f"the array '{name}' in '{self.folder}' has numbers of the type {view.get_dtype()}; quantized weights "
                "cannot be read"
            )
        if tuple(view.get_shape()) != shape:
            raise BadInput(
                f"the array '{name}' in '{self.folder}' is {list(view.get_shape())}, its config says {list(shape)}"
            )
        array = file.get_tensor(full_name)
        if not np.isfinite(array).all():
            raise BadInput(f"the array '{name}' in '{self.folder}' holds numbers that are not finite")
        return array

    def refuse_unread(self) -> None:
        """Raise `BadInput` if the files hold arrays that were not read, since they would change the model."""
        if self._unread:
            names = ", ".join(f"'{name}'" for name in sorted(self._unread)[:3])
            more = f" and {len(self._unread) - 3} more" if len(self._unread) > 3 else ""
            raise BadInput(f"the weights in '{self.folder}' hold {names}{more}, which its config does not provide for")


def _find_files(folder: Path) -> dict[Path, set[str]]:
    """The files of the weights, each with the arrays that the index places there."""
    single, index = folder / WEIGHTS, folder / INDEX
    if not index.is_file():
        if single.is_file():
            return {single: set()}
        pickles = [name for name in PICKLES if (folder / name).exists()]
        note = f" ({pickles[0]} is a pickle, which is not read)" if pickles else ""
        raise BadInput(f"there is no '{single}'{note}")
    try:
        places = json.loads(index.read_bytes())["weight_map"].items()
        files: dict[Path, set[str]] = {}
        for name, file_name in places:
            files.setdefault(folder / Path(file_name).name, set()).add(name)
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError):
        raise BadInput(f"'{index}' is damaged: it names no files") from None
    if single.is_file() and single not in files:
        raise BadInput(f"'{folder}' holds two models: '{WEIGHTS}', and the files of '{INDEX}'; remove one of them")
    return files


def _open(path: Path) -> Any:
    """A safetensors file, whose arrays are read on demand."""
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise BadInput(f"'{path}' is missing, although the index names it") from None
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"'{path}' is damaged or cut off: {error}") from None
