"""How the kernels are compiled: once per version of their source and kind of processor, into the cache folder."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import cpu_target

from ontogeny import compilation_cache


def _choose_cache_folder() -> None:
    """Lets numba keep compiled kernels beside JAX's programs, unless `NUMBA_CACHE_DIR` names another folder.

    Numba compiles a function anew when its own file changes, not when a function that it calls changes in another file;
    the folder is therefore named after the source of all kernels.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    folder = compilation_cache.cache_folder()
    if folder is not None:
        source = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        numba.config.CACHE_DIR = str(folder / f"kernels-{hashlib.sha256(source).hexdigest()[:12]}")  # pyright: ignore


_choose_cache_folder()
_compile = numba.njit(nogil=True, cache=bool(compilation_cache.cache_folder()), error_model="numpy")


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a function for addresses and arrays; it runs without Python's lock."""
    return _compile(function)


_target: Any = cpu_target.target_context
HAS_WIDE_VECTORS = "+avx512f" in _target.codegen().magic_tuple()[2]
