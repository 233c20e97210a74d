"""Arrays in safetensors files, read when they are needed, so that a tree of them takes no memory.

A file is opened anew for each part that is read: what stays open stays in the resident memory of the process.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ontogeny.errors import BadInput

open_file: Any = partial(safe_open, framework="numpy")  # the type of its results is not known
FLOAT_TYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
PIECE_SIZE = 1 << 22  # numbers that are compared at a time


class StoredPart(NamedTuple):
    """An array in a file.

    Attributes:
        path: Of the safetensors file.
        name: Of the array in the file.
        shape: As in the file.
        type_name: The type as safetensors writes it, such as `BF16`.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def dtype(self) -> np.dtype:
        """The type as NumPy knows it; one of `FLOAT_TYPES`."""
        return FLOAT_TYPES[self.type_name]

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read an array, or rows of it.

        Raises:
            BadInput: The file cannot be read, or the numbers are not finite.
        """
        try:
            with open_file(self.path) as file:
                start, stop, _ = rows.indices(self.shape[0])
                array = file.get_slice(self.name)[start:stop]
        except OSError as error:
            raise BadInput(f"'{self.path}' cannot be read: {error.strerror or error}") from None
        except SafetensorError as error:
            raise BadInput(f"'{self.path}' is damaged or cut off: {error}") from None
        if not _is_finite(array):
            raise BadInput(f"the array '{self.name}' in '{self.path}' holds numbers that are not finite")
        return array


def _is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite."""
    if array.dtype.itemsize != 2:
        return bool(np.isfinite(array).all())
    largest = np.array(np.inf, array.dtype).view(np.uint16)  # the bits of all finite numbers are smaller
    return bool((array.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0) < largest)


class StoredArray:
    """An array that NumPy reads from its file each time it is converted.

    Attributes:
        weight_type: The type in which the kernels keep it, if it is a matrix; see `kernels.layout.WEIGHT_TYPES`.
        dtype: The type in the file.
    """

    def __init__(self, parts: Sequence[StoredPart], weight_type: str, is_transposed: bool = False) -> None:
        """Describe an array.

        Args:
            parts: They stand side by side, joined along the last axis.
            weight_type: The attribute.
            is_transposed: Whether each part is stored as its transpose.
        """
        self._parts, self._is_transposed, self.weight_type = tuple(parts), is_transposed, weight_type
        self.dtype = np.dtype(np.result_type(*(part.dtype for part in parts)))
        shapes = [part.shape[::-1] if is_transposed else part.shape for part in parts]
        self.shape: tuple[int, ...] = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads the array; `copy` has no effect, since it is always a new one."""
        arrays = [part.read().T if self._is_transposed else part.read() for part in self._parts]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Reads rows of an array that is stored as it is."""
        assert len(self._parts) == 1 and not self._is_transposed, "only rows that are stored side by side can be read"
        return self._parts[0].read(rows)

    def equals(self, array: "StoredArray") -> bool:
        """Whether another array has equal numbers; both are stored as they are."""
        if self.shape != array.shape:
            return False
        num_rows = max(PIECE_SIZE // int(np.prod(self.shape[1:])), 1)
        pieces = (slice(first, first + num_rows) for first in range(0, self.shape[0], num_rows))
        return all(np.array_equal(self[piece], array[piece]) for piece in pieces)


def list_parts(path: Path) -> dict[str, StoredPart]:
    """List the arrays of a safetensors file by name.

    Raises:
        BadInput: The file cannot be read, or is damaged or cut off.
    """
    parts: dict[str, StoredPart] = {}
    try:
        with open_file(path) as file:
            for name in file.keys():  # noqa: SIM118 - the file is no dict
                view = file.get_slice(name)
                parts[name] = StoredPart(path, name, tuple(view.get_shape()), view.get_dtype())
    except FileNotFoundError:
        raise BadInput(f"'{path}' is missing, although the index names it") from None
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"'{path}' is damaged or cut off: {error}") from None
    return parts
