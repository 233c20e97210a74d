"""Weights in the order in which the kernels read them, and the table of a step that names them."""

import math
import threading
import weakref
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.content.transformer_block import ACTIVATIONS, BlockWeights, Norm, rotation_speeds
from ontogeny.kernels import layout
from ontogeny.kernels.layout import PAIR, PANEL


def pack_panels(weight: Float[np.ndarray, "K N"]) -> Float[np.ndarray, "_ K 64"]:
    """Packs the weights of a linear map in panels of 64 columns, the last one filled with zeros."""
    num_inputs, num_outputs = map(int, weight.shape)
    num_panels = -(-num_outputs // PANEL)
    if num_outputs % PANEL:
        narrow, weight = weight, np.zeros((num_inputs, num_panels * PANEL), np.float32)
        weight[:, :num_outputs] = narrow
    return np.ascontiguousarray(weight.reshape(num_inputs, num_panels, PANEL).swapaxes(0, 1))


def interleave_pairs(weight: Float[np.ndarray, "K N"]) -> Float[np.ndarray, "K _"]:
    """Reorders gates and values, which stand side by side, so that a panel has 32 gates and their 32 values."""
    num_inputs, size = int(weight.shape[0]), int(weight.shape[1]) // 2
    num_panels = -(-size // PAIR)
    halves = np.zeros((num_inputs, 2, num_panels * PAIR), np.float32)
    halves[:, :, :size] = weight.reshape(num_inputs, 2, size)
    return halves.reshape(num_inputs, 2, num_panels, PAIR).swapaxes(1, 2).reshape(num_inputs, -1)


def _reader(leaf: jax.Array | np.ndarray) -> Callable[[], np.ndarray]:
    """A function that returns an array of weights without a copy, and that does not keep them in memory."""
    if leaf.dtype != np.float32:
        wide = np.asarray(leaf, np.float32)
        return lambda: wide
    reference = weakref.ref(leaf)

    def read() -> np.ndarray:
        live = reference()
        assert live is not None, "the weights of a step are in memory"
        return np.asarray(live)

    return read


class PackedWeights:
    """A float32 copy of all weights of a transformer for the kernels.

    Attributes:
        config: Config of the weights.
        embedding: Returns the embedding [V, W].
        positions: Returns the learned positions [C, W]; None where positions are rotary.
        table: The table of a step with the entries that do not differ between steps.
        num_bytes: Memory of the packed weights.
    """

    def __init__(self, config: TransformerConfig, weights: TransformerWeights) -> None:
        self.config = config
        self._arrays: list[np.ndarray] = []
        self.embedding = _reader(weights.embedding)
        self.positions = None if weights.positions is None else _reader(weights.positions)
        half = config.size_of_head // 2
        angles = np.zeros((config.context_length, half), np.float32)
        if config.positions == "rotary":
            speeds = rotation_speeds(config.rope_base, config.size_of_head, config.rope_scaling)
            angles = np.arange(config.context_length, dtype=np.float32)[:, None] * speeds
        wide = angles.astype(np.float64)
        layers = [self._pack_layer(number, block) for number, block in enumerate(weights.blocks)]
        longest = max(config.context_length, config.width, config.size_of_head)
        lm_head = np.asarray(weights.embedding if weights.lm_head is None else weights.lm_head, np.float32)
        constants = np.array([config.norm_epsilon, 1 / math.sqrt(config.size_of_head)], np.float32)
        t = np.zeros(layout.NUM_FIELDS, np.int64)
        t[layout.NUM_LAYERS], t[layout.WIDTH], t[layout.VOCAB_SIZE] = config.num_layers, config.width, config.vocab_size
        t[layout.NUM_HEADS], t[layout.NUM_KV_HEADS] = config.num_heads, config.kv_heads
        t[layout.HEAD_SIZE], t[layout.MLP_WIDTH] = config.size_of_head, config.mlp_width
        t[layout.IS_LAYER_NORM] = config.norm == "layer"
        t[layout.ACTIVATION] = ACTIVATIONS.index(config.activation)
        t[layout.LAYERS] = self._hold(np.array(layers, np.int64))
        t[layout.FINAL_SCALE], t[layout.FINAL_BIAS] = self._hold_norm(weights.norm)
        t[layout.LM_HEAD] = self._hold(pack_panels(lm_head.T))
        t[layout.COSINES] = self._hold(np.cos(wide).astype(np.float32))
        t[layout.SINES] = self._hold(np.sin(wide).astype(np.float32))
        t[layout.CONSTANTS], t[layout.ONES] = self._hold(constants), self._hold(np.ones(longest, np.float32))
        self.table = t
        self.num_bytes = sum(array.nbytes for array in self._arrays)

    def _hold(self, array: np.ndarray) -> int:
        """Keeps an array in memory and returns its address."""
        array = np.ascontiguousarray(array)
        self._arrays.append(array)
        return layout.address(array)

    def _hold_vector(self, vector: object) -> int:
        return 0 if vector is None else self._hold(np.array(vector, np.float32))

    def _hold_norm(self, norm: Norm | None) -> tuple[int, int]:
        return (0, 0) if norm is None else (self._hold_vector(norm.scale), self._hold_vector(norm.bias))

    def _pack_layer(self, number: int, block: BlockWeights) -> np.ndarray:
        """The entries of the table of layers for one block."""
        entries = np.zeros(layout.NUM_LAYER_FIELDS, np.int64)
        entries[layout.NORM_1_SCALE], entries[layout.NORM_1_BIAS] = self._hold_norm(block.norm_1)
        entries[layout.NORM_2_SCALE], entries[layout.NORM_2_BIAS] = self._hold_norm(block.norm_2)
        entries[layout.QUERY_SCALE], entries[layout.QUERY_BIAS] = self._hold_norm(block.query_norm)
        entries[layout.KEY_SCALE], entries[layout.KEY_BIAS] = self._hold_norm(block.key_norm)
        entries[layout.HAS_HEAD_NORMS] = block.query_norm is not None and block.key_norm is not None
        entries[layout.IS_ROTARY] = self.config.block(number).rope_base is not None
        entries[layout.WINDOW] = self.config.window(number) or 0
        for panels, bias, linear in (
            (layout.QKV_PANELS, layout.QKV_BIAS, block.attn_qkv),
            (layout.OUT_PANELS, layout.OUT_BIAS, block.out_proj),
            (layout.UP_PANELS, layout.UP_BIAS, block.up),
            (layout.DOWN_PANELS, layout.DOWN_BIAS, block.down),
        ):
            weight = np.asarray(linear.weight, np.float32)
            vector = None if linear.bias is None else np.asarray(linear.bias, np.float32)
            if linear is block.up and self.config.activation == "swiglu":
                weight = interleave_pairs(weight)
                vector = None if vector is None else interleave_pairs(vector[None])[0]
            entries[panels], entries[bias] = self._hold(pack_panels(weight)), self._hold_vector(vector)
        return entries


_packed: dict[tuple[int, ...], PackedWeights] = {}  # by the identities of the arrays of weights
_packing_lock = threading.Lock()


def pack(config: TransformerConfig, weights: TransformerWeights) -> PackedWeights:
    """Returns the packed copy of weights, which exists once and as long as all arrays of the weights.

    Args:
        config: Config of the weights.
        weights: The caller keeps them in memory while the packed weights are used.
    """
    leaves = jax.tree.leaves(weights)
    identity = tuple(map(id, leaves))
    with _packing_lock:
        packed = _packed.get(identity)
        if packed is None:
            packed = _packed[identity] = PackedWeights(config, weights)
            for leaf in leaves:
                weakref.finalize(leaf, _packed.pop, identity, None).atexit = False
    return packed
