"""Where the arrays of each family of Hugging Face models belong in the weights of the transformer, both ways."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ontogeny.content.transformer import TransformerConfig, TransformerWeights, init_weights
from ontogeny.content.transformer_block import BlockWeights, Linear, Norm
from ontogeny.errors import BadInput
from ontogeny.lm.hugging_face.array_files import ArrayFiles

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


def build_weights(config: TransformerConfig, files: ArrayFiles, dtype: DTypeLike = np.float32) -> TransformerWeights:
    """Builds the weights of a model from the arrays of its files.

    Args:
        config: From the folder's `config.json`.
        files: The arrays.
        dtype: Type of the weights.

    Raises:
        BadInput: An array is absent, has another shape, or is not provided for by the config.
    """
    layout = find_layout(config)

    def read(names: list[str], widths: list[int], template: Any) -> jax.Array | None:
        """One array of ours from those that stand side by side in it."""
        if template is None:
            return None
        columns = []
        for name, width in zip(names, widths, strict=True):
            is_matrix = len(template.shape) == 2
            shape = (*template.shape[:-1], width)
            stored = files.read(name, shape[::-1] if is_matrix and layout.has_outputs_first else shape)
            stored = stored.T if is_matrix and layout.has_outputs_first else stored
            columns.append(np.asarray(stored, dtype))
        return jnp.asarray(columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1))

    def read_part(template: Linear | Norm, names: list[str], widths: list[int]) -> Any:
        arrays: Any = (read([f"{name}.{kind}" for name in names], widths, leaf) for kind, leaf in _leaves(template))
        return type(template)(*arrays)

    template = jax.eval_shape(partial(init_weights, config=config), jax.random.key(0))
    blocks = []
    for layer, weights_of_layer in enumerate(template.blocks):
        parts: dict[str, Any] = {
            entry.field: read_part(entry.part, entry.names, entry.widths)
            for entry in _parts(config, layer, weights_of_layer)
        }
        blocks.append(BlockWeights(**parts))
    head = None
    if config.tie_embeddings:
        embedding = _read_tied(layout, files, template.embedding.shape, dtype)
    else:
        embedding = jnp.asarray(np.asarray(files.read(layout.embedding, template.embedding.shape), dtype))
        head = jnp.asarray(np.asarray(files.read(LM_HEAD, template.embedding.shape), dtype))
    positions = None
    if layout.positions is not None and template.positions is not None:
        positions = jnp.asarray(np.asarray(files.read(layout.positions, template.positions.shape), dtype))
    norm = read_part(template.norm, [layout.norm], [config.width])
    files.refuse_unread()
    return TransformerWeights(embedding, positions, tuple(blocks), norm, head)


def to_arrays(config: TransformerConfig, weights: TransformerWeights) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors` in float32, by name; the inverse of `build_weights`."""
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


def _read_tied(layout: ArrayLayout, files: ArrayFiles, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """The embedding that is also the output weights; it may be stored under either name, or under both."""
    names = [name for name in (layout.embedding, LM_HEAD) if name in files] or [layout.embedding]
    stored = [files.read(name, shape) for name in names]
    if len(stored) == 2 and not np.array_equal(stored[0], stored[1]):
        raise BadInput(
            f"in '{files.folder}', '{LM_HEAD}' differs from '{layout.embedding}', although the config ties them "
            "(tie_word_embeddings)"
        )
    return jnp.asarray(np.asarray(stored[0], dtype))
