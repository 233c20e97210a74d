"""Weights in the order in which the kernels read them, and the table of a step that names them."""

import hashlib
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.content.transformer_block import ACTIVATIONS, BlockWeights, Linear, Norm
from ontogeny.errors import BadInput
from ontogeny.kernels import layout
from ontogeny.kernels.layout import PAGE, PAIR, PANEL, WEIGHT_TYPES

MAX_INT8, MAX_FLOAT16 = 127, 65504.0
PIECE_SIZE = 1 << 20  # numbers of an embedding that are packed at a time
Adapters = Sequence[Mapping[str, Any]]  # pairs of factors by the name of their linear map, one mapping per block
_Packed = TypeVar("_Packed")


class WeightStorage(NamedTuple):
    """How weights of one type lie in memory.

    Attributes:
        dtype: Type of one weight.
        num_scale_bytes: Bytes of the scales at the beginning of each panel.
    """

    dtype: np.dtype
    num_scale_bytes: int

    def panel_bytes(self, num_inputs: int) -> int:
        """The bytes of one panel."""
        return self.num_scale_bytes + self.dtype.itemsize * PANEL * num_inputs

    def num_bytes(self, num_inputs: int, num_outputs: int) -> int:
        """The bytes of the panels of a linear map."""
        return -(-num_outputs // PANEL) * self.panel_bytes(num_inputs)


STORAGES = {
    "float32": WeightStorage(np.dtype(np.float32), 0),
    "bfloat16": WeightStorage(np.dtype(ml_dtypes.bfloat16), 0),
    "float16": WeightStorage(np.dtype(np.float16), 0),
    "int8": WeightStorage(np.dtype(np.int8), 4 * PANEL),
}


def fill_panels(panels: np.ndarray, weight: np.ndarray, weight_type: str, is_paired: bool = False) -> None:
    """Packs the weights of a linear map in panels of 64 columns, the last one filled with zeros.

    A column of int8 is divided by a scale, the largest of its absolute values / 127, and rounded.

    Args:
        panels: [panels, bytes], the memory to be filled.
        weight: [K, N] numbers of any floating-point type.
        weight_type: One of `layout.WEIGHT_TYPES`.
        is_paired: Whether a panel has 32 gates and their 32 values, which stand side by side in the weights.
    """
    storage, (num_inputs, num_outputs) = STORAGES[weight_type], map(int, weight.shape)
    starts, width = ([0, num_outputs // 2], PAIR) if is_paired else ([0], PANEL)
    for number, panel in enumerate(panels):
        weights = panel[storage.num_scale_bytes :].view(storage.dtype).reshape(num_inputs, PANEL)
        scales = panel[: storage.num_scale_bytes].view(np.float32)
        for place, start in enumerate(starts):
            stop = start + num_outputs // len(starts)
            columns = weight[:, min(start + number * width, stop) : min(start + (number + 1) * width, stop)]
            first, last = place * width, place * width + columns.shape[1]
            if weight_type == "int8":
                wide = np.asarray(columns, np.float32)
                scales[first:last] = np.abs(wide).max(axis=0) / np.float32(MAX_INT8)
                columns = np.rint(wide / np.where(scales[first:last] == 0, 1, scales[first:last]))
            elif weight_type == "float16" and columns.dtype != np.float16 and np.abs(columns).max() > MAX_FLOAT16:
                raise BadInput(f"a weight exceeds the largest number of float16, {MAX_FLOAT16:g}; choose bfloat16")
            weights[:, first:last] = columns
            weights[:, last : first + width] = 0


def pack_panels(weight: Float[np.ndarray, "K N"], weight_type: str = "float32", is_paired: bool = False) -> np.ndarray:
    """Returns panels [panels, bytes]; see `fill_panels`."""
    num_inputs, num_outputs = map(int, weight.shape)
    panels = np.zeros((-(-num_outputs // PANEL), STORAGES[weight_type].panel_bytes(num_inputs)), np.uint8)
    fill_panels(panels, weight, weight_type, is_paired)
    return panels


def interleave_pairs(bias: Float[np.ndarray, "N"]) -> Float[np.ndarray, "_"]:
    """Reorders the biases of gates and values as `fill_panels` reorders their weights."""
    size = len(bias) // 2
    halves = np.zeros((2, -(-size // PAIR) * PAIR), np.float32)
    halves[:, :size] = bias.reshape(2, size)
    return halves.reshape(2, -1, PAIR).swapaxes(0, 1).reshape(-1)


class PackedWeights:
    """All weights of a transformer for the kernels; they need no other copy.

    Attributes:
        config: Config of the weights.
        weight_type: In which the matrices are kept; norms, biases and learned positions are float32.
        positions: The learned positions [C, W]; None where positions are rotary.
        table: The table of a step with the entries that do not differ between steps.
        num_bytes: Memory of the packed weights.
    """

    def __init__(self, config: TransformerConfig, weights: TransformerWeights, weight_type: str = "float32") -> None:
        """Pack weights, one array after the other.

        Args:
            config: Config of the weights.
            weights: Arrays, or what NumPy can convert to arrays. Of embeddings, only parts are read at a time.
            weight_type: One of `layout.WEIGHT_TYPES`.
        """
        self.config, self.weight_type = config, weight_type
        self._storage, self._arrays = STORAGES[weight_type], list[np.ndarray]()
        t = np.zeros(layout.NUM_FIELDS, np.int64)
        self.table = t
        longest = max(-(-config.context_length // PAGE) * PAGE, config.width, config.size_of_head)
        constants = np.array([config.norm_epsilon, 1 / math.sqrt(config.size_of_head)], np.float32)
        t[layout.NUM_LAYERS], t[layout.WIDTH], t[layout.VOCAB_SIZE] = config.num_layers, config.width, config.vocab_size
        t[layout.NUM_HEADS], t[layout.NUM_KV_HEADS] = config.num_heads, config.kv_heads
        t[layout.HEAD_SIZE], t[layout.PADDED_SIZE] = config.size_of_head, layout.padded_size(config.size_of_head)
        t[layout.MLP_WIDTH] = config.mlp_width
        t[layout.IS_LAYER_NORM], t[layout.WEIGHT_TYPE] = config.norm == "layer", WEIGHT_TYPES.index(weight_type)
        t[layout.ACTIVATION] = ACTIVATIONS.index(config.activation)
        layers = [self._pack_layer(number, block) for number, block in enumerate(weights.blocks)]
        t[layout.LAYERS] = self._hold(np.array(layers, np.int64))
        t[layout.FINAL_SCALE], t[layout.FINAL_BIAS] = self._hold_norm(weights.norm)
        t[layout.EMBEDDING] = self._hold_embedding(weights.embedding)
        t[layout.LM_HEAD] = t[layout.EMBEDDING] if weights.lm_head is None else self._hold_embedding(weights.lm_head)
        self.positions = None if weights.positions is None else np.array(weights.positions, np.float32)
        t[layout.CONSTANTS], t[layout.ONES] = self._hold(constants), self._hold(np.ones(longest, np.float32))
        self.num_bytes = sum(array.nbytes for array in self._arrays)
        if self.positions is not None:
            self.num_bytes += self.positions.nbytes

    def checksum(self) -> str:
        """SHA-256 over the bits of all packed weights."""
        sha256 = hashlib.sha256()
        for array in self._arrays:
            sha256.update(array.reshape(-1).view(np.uint8).data)
        return sha256.hexdigest()

    def _hold(self, array: np.ndarray) -> int:
        """Keeps an array in memory and returns its address."""
        array = np.ascontiguousarray(array)
        self._arrays.append(array)
        return layout.address(array)

    def _hold_vector(self, vector: object) -> int:
        return 0 if vector is None else self._hold(np.array(vector, np.float32))

    def _hold_norm(self, norm: Norm | None) -> tuple[int, int]:
        return (0, 0) if norm is None else (self._hold_vector(norm.scale), self._hold_vector(norm.bias))

    def _hold_embedding(self, embedding: Any) -> int:
        """Packs an embedding [V, W] as the linear map from the residual stream to the vocabulary."""
        num_tokens, width = embedding.shape
        panels = np.zeros((-(-num_tokens // PANEL), self._storage.panel_bytes(width)), np.uint8)
        panels_per_piece = max(PIECE_SIZE // (width * PANEL), 1)
        for first in range(0, len(panels), panels_per_piece):
            last = min(first + panels_per_piece, len(panels))
            piece = np.asarray(embedding[first * PANEL : last * PANEL])
            fill_panels(panels[first:last], piece.T, self.weight_type)
        return self._hold(panels)

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
        has_pairs = self.config.activation == "swiglu"
        for panels, bias, linear, is_paired in (
            (layout.QKV_PANELS, layout.QKV_BIAS, block.attn_qkv, False),
            (layout.OUT_PANELS, layout.OUT_BIAS, block.out_proj, False),
            (layout.UP_PANELS, layout.UP_BIAS, block.up, has_pairs),
            (layout.DOWN_PANELS, layout.DOWN_BIAS, block.down, False),
        ):
            entries[panels], entries[bias] = self._hold_linear(linear, is_paired)
        return entries

    def _hold_linear(self, linear: Linear, is_paired: bool) -> tuple[int, int]:
        """Packs a linear map and its bias; gates and values are interleaved where it has both."""
        weight: Any = np.asarray(linear.weight)
        vector = None if linear.bias is None else np.asarray(linear.bias, np.float32)
        if is_paired and vector is not None:
            vector = interleave_pairs(vector)
        return self._hold(pack_panels(weight, self.weight_type, is_paired)), self._hold_vector(vector)


def predict_num_bytes(config: TransformerConfig, weights: TransformerWeights, weight_type: str) -> int:
    """The memory that packed weights of these shapes need.

    Args:
        config: Config of the weights.
        weights: Arrays, or anything that has shapes.
        weight_type: One of `layout.WEIGHT_TYPES`.
    """
    storage, total = STORAGES[weight_type], 0
    for block in weights.blocks:
        for part in block:
            if isinstance(part, Linear):
                num_inputs, num_outputs = part.weight.shape
                total += storage.num_bytes(num_inputs, num_outputs)
    for embedding in (weights.embedding, weights.lm_head):
        if embedding is not None:
            total += storage.num_bytes(embedding.shape[1], embedding.shape[0])
    if weights.positions is not None:
        total += 4 * math.prod(weights.positions.shape)
    return total


class PackedAdapter:
    """A low-rank adapter of all linear maps of a transformer for the kernels; see `low_rank`.

    Attributes:
        rank: Columns of the first factors, and vectors of the second ones.
        address: Of the table of addresses, int64 [layers, NUM_ADAPTED, NUM_FACTORS].
        num_bytes: Memory of the packed factors.
    """

    def __init__(self, config: TransformerConfig, adapters: Adapters) -> None:
        """Pack the factors of an adapter.

        Args:
            config: Config of the weights to which the products of the factors are added.
            adapters: Both factors, [I, r] and [r, O], of each linear map of each block, by its name.
        """
        self.rank = int(adapters[0]["up"][0].shape[1])
        self._arrays = list[np.ndarray]()
        table = np.zeros((config.num_layers, layout.NUM_ADAPTED, layout.NUM_FACTORS), np.int64)
        for entries, factors in zip(table, adapters, strict=True):
            for matrix, name in (
                (layout.ADAPTED_QKV, "attn_qkv"),
                (layout.ADAPTED_OUT, "out_proj"),
                (layout.ADAPTED_UP, "up"),
                (layout.ADAPTED_DOWN, "down"),
            ):
                first, second = (np.asarray(factor, np.float32) for factor in factors[name])
                is_paired = name == "up" and config.activation == "swiglu"
                entries[matrix] = self._hold(first.T), self._hold(pack_panels(second, "float32", is_paired))
        self.address = self._hold(table)
        self.num_bytes = sum(array.nbytes for array in self._arrays)

    def _hold(self, array: np.ndarray) -> int:
        """Keeps an array in memory and returns its address."""
        array = np.ascontiguousarray(array)
        self._arrays.append(array)
        return layout.address(array)


_packed: dict[tuple[int, ...], Any] = {}  # by the identities of the arrays of weights, or of an adapter
_packing_lock = threading.Lock()


def weight_type_of(weights: TransformerWeights) -> str:
    """The type in which the kernels keep the matrices: that which stored arrays name, else float32."""
    return getattr(weights.embedding, "weight_type", "float32")


def pack(config: TransformerConfig, weights: TransformerWeights) -> PackedWeights:
    """Returns the packed copy of weights, which exists once and as long as all arrays of the weights.

    Args:
        config: Config of the weights.
        weights: The caller keeps them in memory while the packed weights are used. Stored arrays are read here.
    """
    return _pack_once(weights, lambda: PackedWeights(config, weights, weight_type_of(weights)))


def pack_adapter(config: TransformerConfig, adapters: Adapters) -> PackedAdapter:
    """Returns the packed copy of an adapter, which exists as long as its arrays; see `PackedAdapter`."""
    return _pack_once(adapters, lambda: PackedAdapter(config, adapters))


def _pack_once(arrays: Any, build: Callable[[], _Packed]) -> _Packed:
    """The packed copy of a tree of arrays, built if there is none."""
    leaves = jax.tree.leaves(arrays)
    identity = tuple(map(id, leaves))
    with _packing_lock:
        packed = _packed.get(identity)
        if packed is None:
            packed = _packed[identity] = build()
            for leaf in leaves:
                weakref.finalize(leaf, _packed.pop, identity, None).atexit = False
    return packed
