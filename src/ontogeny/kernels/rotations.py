"""Tables of the cosines and sines of rotary positions, which exist once per model and grow with the texts."""

import threading
from functools import cache as cached

import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer_block import RopeScaling, rotation_speeds

NUM_POSITIONS = 1024  # that are computed at a time, so that no bit depends on how far a table has grown


class RotationTable:
    """Cosines and sines [positions, D / 2] of the angles of all pairs of a head."""

    def __init__(self, base: float, head_size: int, scaling: RopeScaling | None) -> None:
        self._speeds = rotation_speeds(base, head_size, scaling)
        self._lock = threading.Lock()
        empty = np.zeros((0, head_size // 2), np.float32)
        self._parts = empty, empty

    def cover(self, num_positions: int) -> tuple[Float[np.ndarray, "_ P"], Float[np.ndarray, "_ P"]]:
        """Return cosines and sines of at least this number of positions."""
        with self._lock:
            length = len(self._parts[0])
            if length < num_positions:
                stop = max(num_positions, 2 * length)
                pieces = [self._compute(first) for first in range(length, stop, NUM_POSITIONS)]
                cosines, sines = (
                    np.concatenate([part, *new])
                    for part, new in zip(self._parts, zip(*pieces, strict=True), strict=True)
                )
                self._parts = cosines, sines
            return self._parts

    def _compute(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """The next positions."""
        angles = np.arange(first, first + NUM_POSITIONS, dtype=np.float32)[:, None] * self._speeds
        wide = angles.astype(np.float64)
        return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


rotation_table = cached(RotationTable)
