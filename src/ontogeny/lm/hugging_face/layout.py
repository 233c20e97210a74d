"""Where the arrays of each family of Hugging Face models belong in the weights of the transformer, both ways."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import TransformerConfig, TransformerWeights, init_weights
from ontogeny.content.transformer_block import BlockWeights, Linear, Norm
from ontogeny.errors import BadInput
from ontogeny.lm.hugging_face.array_files import ArrayFiles
from ontogeny.runs.stored_arrays import StoredArray

LM_HEAD = "lm_head.weight"


class ArrayLayout(NamedTuple):
    """The names of a family's arrays.

    Attributes:
        prefix: In front of all names but that of the output weights.
        layer: In front of the names of a layer, whose number stands for the braces.
        parts: By the fields of `BlockWeights`; where several arrays are given, ours has them side by side.
        has_outputs_first: Whether matrices are stored as [outputs, inputs], the transpose of ours.
    """

    prefix: str
    embedding: str
    positions: str | None
    norm: str
    layer: str
    parts: dict[str, tuple[str, ...]]
    has_outputs_first: bool


class LayerPart(NamedTuple):
    """A linear map or a norm of one block.

    Attributes:
        field: Its name in `BlockWeights`.
        part: Its arrays, or their shapes.
        names: The stored arrays that stand side by side in it.
        widths: The outputs of each of these.
    """

    field: str
    part: Linear | Norm
    names: list[str]
    widths: list[int]


GPT2 = ArrayLayout(
    "transformer.",
    "wte.weight",
    "wpe.weight",
    "ln_f",
    "h.{}.",
    {
        "norm_1": ("ln_1",),
        "attn_qkv": ("attn.c_attn",),
        "out_proj": ("attn.c_proj",),
        "norm_2": ("ln_2",),
        "up": ("mlp.c_fc",),
        "down": ("mlp.c_proj",),
    },
    has_outputs_first=False,
)
LLAMA = ArrayLayout(
    "model.",
    "embed_tokens.weight",
    None,
    "norm",
    "layers.{}.",
    {
        "norm_1": ("input_layernorm",),
        "attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out_proj": ("self_attn.o_proj",),
        "norm_2": ("post_attention_layernorm",),
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
        "query_norm": ("self_attn.q_norm",),
        "key_norm": ("self_attn.k_norm",),
    },
    has_outputs_first=True,
)


def find_layout(config: TransformerConfig) -> ArrayLayout:
    """The layout of the family to which a config belongs."""
    return GPT2 if config.positions == "learned" else LLAMA


def find_weights(config: TransformerConfig, files: ArrayFiles, weight_type: str | None = None) -> TransformerWeights:
    """Finds the weights of a model among the arrays of its files, which are read when they are needed.

    Args:
        config: From the folder's `config.json`.
        files: The arrays.
        weight_type: Type in which the kernels keep matrices; None for that of the file.

    Returns:
        Weights whose leaves are `StoredArray`.

    Raises:
        BadInput: An array is absent, has another shape, or is not provided for by the config.
    """
    layout = find_layout(config)
    template = jax.eval_shape(partial(init_weights, config=config), jax.random.key(0))
    vocabulary = template.embedding.shape
    tied = [name for name in (layout.embedding, LM_HEAD) if name in files] if config.tie_embeddings else []
    embeddings = [files.find(name, vocabulary) for name in tied or [layout.embedding]]
    weight_type = weight_type or (embeddings[0].dtype.name if embeddings[0].dtype.itemsize == 2 else "float32")

    def find(names: list[str], widths: list[int], like: Any) -> StoredArray | None:
        """One array of ours from those that stand side by side in it."""
        if like is None:
            return None
        is_transposed = len(like.shape) == 2 and layout.has_outputs_first
        shapes = [(*like.shape[:-1], width) for width in widths]
        parts = [
            files.find(name, shape[::-1] if is_transposed else shape) for name, shape in zip(names, shapes, strict=True)
        ]
        return StoredArray(parts, weight_type, is_transposed)

    def find_part(like: Linear | Norm, names: list[str], widths: list[int]) -> Any:
        arrays: Any = (find([f"{name}.{kind}" for name in names], widths, leaf) for kind, leaf in _leaves(like))
        return type(like)(*arrays)

    blocks = []
    for layer, weights_of_layer in enumerate(template.blocks):
        parts: dict[str, Any] = {
            entry.field: find_part(entry.part, entry.names, entry.widths)
            for entry in _parts(config, layer, weights_of_layer)
        }
        blocks.append(BlockWeights(**parts))
    positions: Any = None
    if layout.positions is not None and template.positions is not None:
        positions = StoredArray([files.find(layout.positions, template.positions.shape)], weight_type)
    head: Any = None if config.tie_embeddings else StoredArray([files.find(LM_HEAD, vocabulary)], weight_type)
    norm = find_part(template.norm, [layout.norm], [config.width])
    files.refuse_unused()
    arrays: list[Any] = [StoredArray([part], weight_type) for part in embeddings]
    if len(arrays) == 2 and not arrays[0].equals(arrays[1]):
        raise BadInput(
            f"in '{files.folder}', '{LM_HEAD}' differs from '{layout.embedding}', although the config ties them "
            "(tie_word_embeddings)"
        )
    return TransformerWeights(arrays[0], positions, tuple(blocks), norm, head)


def to_arrays(config: TransformerConfig, weights: TransformerWeights) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors` in float32, by name; the inverse of `find_weights`."""
    layout = find_layout(config)
    arrays: dict[str, Any] = {layout.embedding: weights.embedding}
    if layout.positions is not None:
        arrays[layout.positions] = weights.positions
    for layer, weights_of_layer in enumerate(weights.blocks):
        for entry in _parts(config, layer, weights_of_layer):
            for kind, array in _leaves(entry.part):
                if array is None:
                    continue
                columns = np.split(np.asarray(array), np.cumsum(entry.widths)[:-1], axis=-1)
                for name, column in zip(entry.names, columns, strict=True):
                    is_turned = column.ndim == 2 and layout.has_outputs_first
                    arrays[f"{name}.{kind}"] = column.T if is_turned else column
    for kind, array in _leaves(weights.norm):
        if array is not None:
            arrays[f"{layout.norm}.{kind}"] = array
    with_prefix = {layout.prefix + name: array for name, array in arrays.items()}
    if weights.lm_head is not None:
        with_prefix[LM_HEAD] = weights.lm_head
    return {name: np.require(np.asarray(array), np.float32, "C") for name, array in with_prefix.items()}


def _leaves(part: Linear | Norm) -> list[tuple[str, Any]]:
    """The arrays of a linear map or a norm, by the last part of their stored names."""
    return [("weight", part[0]), ("bias", part[1])]


def _parts(config: TransformerConfig, layer: int, weights_of_layer: BlockWeights) -> Iterator[LayerPart]:
    """The parts that a block has."""
    layout, D = find_layout(config), config.size_of_head
    for field, names in layout.parts.items():
        part = getattr(weights_of_layer, field)
        if part is None:
            continue
        width = part[0].shape[-1]
        widths = [width // len(names)] * len(names)
        if field == "attn_qkv" and len(names) == 3:
            widths = [config.num_heads * D, config.kv_heads * D, config.kv_heads * D]
        yield LayerPart(field, part, [layout.layer.format(layer) + name for name in names], widths)
