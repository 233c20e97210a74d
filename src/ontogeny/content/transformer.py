"""A transformer language model, whose settings make it one of a family: GPT-2, Llama, Mistral, Qwen, SmolLM.

GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; learned positions, LayerNorm before
each part, GELU, biases, output weights tied to the embedding. Llama (Touvron et al. 2023, arXiv 2302.13971): rotary
positions (Su et al. 2021, arXiv 2104.09864), RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), SwiGLU (Shazeer 2020,
arXiv 2002.05202), no biases. Its relatives differ from it by a few settings: fewer heads of keys than of queries,
biases of queries, keys and values, norms of queries and keys, a window beyond which a token sees nothing, layers
without positions. Squared ReLU: So et al. 2021, arXiv 2109.08668.

The module holds the model and its key-value cache only: tokenizers, training and sampling are elsewhere. Weights are
float32; products are computed in `compute_dtype`.

Letters: B sequences, T tokens, K tokens of one call, C capacity of a cache, V vocabulary, W width, H heads of queries,
G heads of keys and values, D size of a head, M width of the feed-forward network.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int32, Integer

from ontogeny.content import transformer_block
from ontogeny.content.optimizers import apply_gradient, build_optimizer
from ontogeny.content.transformer_block import NO_DROPOUT, BlockConfig, BlockWeights, Dropout, Linear, Norm, RopeScaling
from ontogeny.errors import BadInput, require_at_least, require_one_of
from ontogeny.types import Key, Weights, WorldModel

ARCHITECTURES = ("gpt2", "llama", "qwen3")
POSITION_ENCODINGS = ("learned", "rotary")
MAX_LOGITS = 1 << 24  # that `last_token_losses` computes at a time: 64 MiB


class TransformerConfig(NamedTuple):
    """The settings that determine the shapes and the program of a transformer; hashable, hence a static argument.

    Attributes:
        context_length: Tokens that the model can attend to, the present one included.
        positions: One of `POSITION_ENCODINGS`.
        use_biases: Whether norms and all linear maps have biases; where it is False, the three settings below say
            which linear maps have them nevertheless.
        tie_embeddings: Whether the output weights are the token embedding.
        num_kv_heads: Heads of keys and values; None for as many as of queries.
        head_size: None for `width` / `num_heads`.
        qk_norm: Whether each head of queries and keys is normalized before it is rotated.
        sliding_window: Tokens that a token of `sliding_layers` can attend to, itself included; None for all.
        sliding_layers: Numbers of the layers that have the window.
        unrotated_layers: Numbers of the layers without positions, where positions are rotary.
    """

    vocab_size: int
    context_length: int
    num_layers: int = 4
    num_heads: int = 4
    width: int = 128
    mlp_width: int = 512
    positions: str = "learned"
    norm: str = "layer"
    activation: str = "gelu"
    use_biases: bool = True
    tie_embeddings: bool = True
    norm_epsilon: float = 1e-5
    rope_base: float = 10000.0
    num_kv_heads: int | None = None
    head_size: int | None = None
    use_qkv_biases: bool = False
    use_out_proj_bias: bool = False
    use_mlp_biases: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()

    @property
    def kv_heads(self) -> int:
        """G, the heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def size_of_head(self) -> int:
        """D."""
        return self.head_size or self.width // self.num_heads

    def block(self, layer: int) -> BlockConfig:
        """The settings of the block with this number, 0 to num_layers - 1."""
        is_rotary = self.positions == "rotary" and layer not in self.unrotated_layers
        rope_base = self.rope_base if is_rotary else None
        return BlockConfig(
            self.num_heads,
            self.norm,
            self.norm_epsilon,
            self.activation,
            rope_base,
            self.rope_scaling,
            self.num_kv_heads,
        )

    def window(self, layer: int) -> int | None:
        """The tokens that a token can attend to in the layer with this number; None for all before it."""
        return self.sliding_window if layer in self.sliding_layers else None


class TransformerWeights(NamedTuple):
    """All weights of a transformer."""

    embedding: Float[Array, "V W"]
    positions: Float[Array, "C W"] | None  # None where positions are rotary
    blocks: tuple[BlockWeights, ...]
    norm: Norm
    lm_head: Float[Array, "V W"] | None  # None where the output weights are the embedding


class KVCache(NamedTuple):
    """Keys and values of the tokens that each sequence has processed.

    Entries at or beyond `length` are never read.
    """

    keys: tuple[Float[Array, "B G C D"], ...]  # one array per layer
    values: tuple[Float[Array, "B G C D"], ...]
    length: Int32[Array, "B"]  # tokens processed

    @property
    def capacity(self) -> int:
        """The number of tokens per sequence that the cache has room for."""
        return self.keys[0].shape[2]


def build(
    *,
    vocab_size: int = 256,
    context_length: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    width: int = 64,
    architecture: str = "gpt2",
    learning_rate: float = 1e-3,
) -> WorldModel:
    """Builds a transformer that predicts each token from those before it and learns with Adam.

    `query(content, tokens [T])` returns the log-probabilities [T, V] of each next token; `update(weights, tokens
    [B, T+1])` takes one step of Adam on the mean loss of all next tokens. `ontogeny.lm` trains language models with
    schedules and checkpoints.

    Args:
        vocab_size: Number of different tokens, at least 1.
        context_length: Tokens that a prediction may depend on, at least 2.
        num_layers: Transformer blocks, at least 1.
        num_heads: Attention heads; must divide `width`.
        width: Width of the residual stream.
        architecture: Family of the model: `gpt2`, `llama` or `qwen3`; see `make_config`.
        learning_rate: Step size of Adam.

    Returns:
        The world model; the scratch of its weights are the moments of Adam.
    """
    config = make_config(
        architecture, vocab_size, context_length, num_layers=num_layers, num_heads=num_heads, width=width
    )
    optimizer = build_optimizer(learning_rate, max_gradient_norm=None)

    def init(key: Key) -> Weights:
        content: Any = init_weights(key, config)
        return Weights(content, optimizer.init(content))

    def query(content: TransformerWeights, tokens: Integer[Array, "T"]) -> Float[Array, "T V"]:
        return jax.nn.log_softmax(forward(config, content, tokens[None])[0])

    def update(weights: Weights, tokens: Integer[Array, "B T"]) -> tuple[Weights, dict[str, Array]]:
        def mean_loss(content: TransformerWeights) -> Array:
            return token_losses(config, content, tokens).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(weights.content)
        return apply_gradient(optimizer, gradient, weights), {"loss": loss}

    return WorldModel(init, query, update)


def make_config(
    architecture: str,
    vocab_size: int,
    context_length: int,
    *,
    num_layers: int,
    num_heads: int,
    width: int,
    num_kv_heads: int | None = None,
) -> TransformerConfig:
    """Derives a whole config from the settings that determine the size of a model.

    Args:
        architecture: `gpt2`; `llama`, whose SwiGLU network has three matrices with as many weights in all as the two of
            GPT-2; or `qwen3`, which also normalizes queries and keys.
        vocab_size: Number of different tokens, at least 1.
        context_length: Tokens that a prediction may depend on, at least 2.
        num_layers: Transformer blocks, at least 1.
        num_heads: Attention heads, at least 1; must divide `width`.
        width: Width of the residual stream, at least 1.
        num_kv_heads: Heads of keys and values, which must divide `num_heads`; None for as many. GPT-2 has as many.

    Raises:
        BadInput: If no transformer has these settings.
    """
    require_at_least(1, vocab_size=vocab_size, num_layers=num_layers, num_heads=num_heads, width=width)
    require_at_least(2, context_length=context_length)
    require_one_of(ARCHITECTURES, architecture=architecture)
    config = TransformerConfig(vocab_size, context_length, num_layers, num_heads, width, 4 * width)
    if architecture == "gpt2":
        if num_kv_heads not in (None, num_heads):
            raise BadInput(f"gpt2 has as many heads of keys as of queries, {num_heads}, not {num_kv_heads}")
        return validate_config(config)
    return validate_config(
        config._replace(
            mlp_width=max(8, round(8 * width / 3 / 16) * 16),
            positions="rotary",
            norm="rms",
            activation="swiglu",
            use_biases=False,
            num_kv_heads=num_kv_heads,
            qk_norm=architecture == "qwen3",
        )
    )


def validate_config(config: TransformerConfig) -> TransformerConfig:
    """Returns the config; raises `BadInput` where no transformer has these settings."""
    if config.head_size is None and config.width % config.num_heads:
        raise BadInput(f"{config.num_heads} heads do not divide a width of {config.width}")
    if config.num_heads % config.kv_heads:
        raise BadInput(f"{config.kv_heads} heads of keys do not divide {config.num_heads} heads of queries")
    if config.positions == "rotary" and config.size_of_head % 2:
        raise BadInput(f"rotary positions need heads of an even width, not {config.size_of_head}")
    require_one_of(POSITION_ENCODINGS, positions=config.positions)
    require_one_of(transformer_block.NORMS, norm=config.norm)
    require_one_of(transformer_block.ACTIVATIONS, activation=config.activation)
    if config.rope_scaling is not None:
        require_one_of(transformer_block.ROPE_SCALINGS, rope_scaling=config.rope_scaling.kind)
    if config.sliding_layers and (config.sliding_window is None or config.sliding_window < 1):
        raise BadInput(f"layers with a sliding window need a window of at least 1 token, not {config.sliding_window}")
    return config


def config_from_settings(settings: dict[str, Any]) -> TransformerConfig:
    """Builds a config from JSON, in which tuples are lists.

    Raises:
        BadInput: If no transformer has these settings.
        TypeError: If a setting is unknown, or one without a default is absent.
    """
    settings = dict(settings)
    for name in ("sliding_layers", "unrotated_layers"):
        settings[name] = tuple(settings.get(name, ()))
    scaling = settings.get("rope_scaling")
    if scaling is not None:
        settings["rope_scaling"] = RopeScaling(**scaling) if isinstance(scaling, dict) else RopeScaling(*scaling)
    return validate_config(TransformerConfig(**settings))


def init_weights(key: Key, config: TransformerConfig) -> TransformerWeights:
    """Draws initial weights as GPT-2 does.

    They are Normal with standard deviation 0.02; those of the two projections that write into the residual stream are
    smaller by a factor of sqrt(2 num_layers), which keeps the variance of the stream independent of the depth.
    """
    keys = iter(jax.random.split(key, 3 + 4 * config.num_layers))
    residual_deviation = 0.02 / math.sqrt(2 * config.num_layers)

    def linear(num_inputs: int, num_outputs: int, has_bias: bool, deviation: float = 0.02) -> Linear:
        weight = deviation * jax.random.normal(next(keys), (num_inputs, num_outputs))
        return Linear(weight, jnp.zeros(num_outputs) if has_bias or config.use_biases else None)

    def norm(width: int = config.width) -> Norm:
        return Norm(jnp.ones(width), jnp.zeros(width) if config.use_biases else None)

    W, M, D = config.width, config.mlp_width, config.size_of_head
    H, G = config.num_heads, config.kv_heads
    up_width = 2 * M if config.activation == "swiglu" else M
    embedding = 0.02 * jax.random.normal(next(keys), (config.vocab_size, W))
    is_learned = config.positions == "learned"
    positions = 0.02 * jax.random.normal(next(keys), (config.context_length, W)) if is_learned else None
    blocks = []
    for _ in range(config.num_layers):
        qkv = linear(W, (H + 2 * G) * D, config.use_qkv_biases)
        out_proj = linear(H * D, W, config.use_out_proj_bias, residual_deviation)
        up = linear(W, up_width, config.use_mlp_biases)
        down = linear(M, W, config.use_mlp_biases, residual_deviation)
        head_norms = (norm(D), norm(D)) if config.qk_norm else (None, None)
        blocks.append(BlockWeights(norm(), qkv, out_proj, norm(), up, down, *head_norms))
    lm_head = None if config.tie_embeddings else 0.02 * jax.random.normal(next(keys), (config.vocab_size, W))
    return TransformerWeights(embedding, positions, tuple(blocks), norm(), lm_head)


def forward(
    config: TransformerConfig,
    weights: TransformerWeights,
    tokens: Integer[Array, "B T"],
    compute_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T V"]:
    """Computes the logits of each next token of whole sequences.

    Args:
        config: Config of the weights.
        tokens: Sequences of at most `context_length` tokens.
        compute_dtype: Type in which products are computed.

    Returns:
        Logits in float32.

    Raises:
        BadInput: If the sequences are longer than the context length.
    """
    return _project_logits(config, weights, _run_blocks(config, weights, tokens, compute_dtype))


def _run_blocks(
    config: TransformerConfig,
    weights: TransformerWeights,
    tokens: Array,
    compute_dtype: DTypeLike,
    dropout: Dropout = NO_DROPOUT,
) -> Float[Array, "B T W"]:
    """The residual stream of whole sequences after the last block; arguments as in `token_losses`."""
    T = tokens.shape[1]
    if config.context_length < T:
        raise BadInput(f"{T} tokens are more than the model's context of {config.context_length}")
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    stream = dropout.fold(0).apply(_embed(weights, tokens, positions, compute_dtype))
    for layer, block in enumerate(weights.blocks):
        settings, layer_dropout = config.block(layer), dropout.fold(layer + 1)
        queries, keys, values = transformer_block.project_qkv(settings, block, stream, positions)
        mask = visibility(positions, positions[0], config.window(layer))
        attended = transformer_block.attend(queries, keys, values, mask, dropout=layer_dropout.fold(2))
        stream = transformer_block.finish_block(settings, block, stream, attended, layer_dropout)
    return stream


def token_losses(
    config: TransformerConfig,
    weights: TransformerWeights,
    tokens: Integer[Array, "B T"],
    compute_dtype: DTypeLike = jnp.float32,
    dropout: Dropout = NO_DROPOUT,
) -> Float[Array, "B T-1"]:
    """Computes the negative log-probability, in nats, of each token but the first; arguments as in `forward`.

    Args:
        dropout: For training.
    """
    stream = _run_blocks(config, weights, tokens[:, :-1], compute_dtype, dropout)
    return _target_losses(_project_logits(config, weights, stream), tokens[:, 1:])


def _target_losses(logits: Array, targets: Array) -> Array:
    """The negative log-probabilities [...] of targets [...] under logits [..., V]."""
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def last_token_losses(
    config: TransformerConfig, weights: TransformerWeights, tokens: Integer[Array, "B T"], num_scored: int
) -> Float[Array, "B N"]:
    """Computes the losses of `token_losses` of the last tokens alone, without gradients in mind.

    Logits exist for a part of the tokens at a time, so that memory does not grow with batch x context x vocabulary.

    Args:
        config: Config of the weights.
        weights: Of the model.
        tokens: Sequences of 2 to `context_length` + 1 tokens.
        num_scored: How many tokens at the end of each sequence are scored, 1 to T - 1.
    """
    stream = _run_blocks(config, weights, tokens[:, :-1], jnp.float32)[:, -num_scored:]
    targets = tokens[:, -num_scored:]
    num_tokens = targets.size
    num_parts = -(-num_tokens * config.vocab_size // MAX_LOGITS)
    part_size = -(-num_tokens // num_parts)
    padding = num_parts * part_size - num_tokens
    streams = jnp.pad(stream.reshape(num_tokens, -1), ((0, padding), (0, 0))).reshape(num_parts, part_size, -1)

    def losses(part: tuple[Array, Array]) -> Array:
        return _target_losses(_project_logits(config, weights, part[0]), part[1])

    parts = jnp.pad(targets.reshape(-1), (0, padding)).reshape(num_parts, part_size)
    return jax.lax.map(losses, (streams, parts)).reshape(-1)[:num_tokens].reshape(targets.shape)


def init_cache(
    config: TransformerConfig, num_sequences: int, capacity: int | None = None, compute_dtype: DTypeLike = jnp.float32
) -> KVCache:
    """Returns an empty cache.

    Args:
        config: Config of the model.
        num_sequences: Sequences that the cache has room for.
        capacity: Tokens per sequence, from 1 to the context of the model, which is the default.
        compute_dtype: Type of keys and values, and of the products of all calls that use the cache.

    Raises:
        BadInput: If the capacity does not fit the context of the model.
    """
    capacity = config.context_length if capacity is None else capacity
    if not 1 <= capacity <= config.context_length:
        raise BadInput(f"a cache of {capacity} tokens does not fit the model's context of {config.context_length}")
    shape = (num_sequences, config.kv_heads, capacity, config.size_of_head)
    keys, values = (tuple(jnp.zeros(shape, compute_dtype) for _ in range(config.num_layers)) for _ in range(2))
    return KVCache(keys, values, jnp.zeros(num_sequences, jnp.int32))


def extend_cache(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    tokens: Integer[Array, "B K"],
    num_tokens: Integer[Array, "B"],
    *,
    all_logits: bool = False,
    lm_head: Float[Array, "W V"] | None = None,
) -> tuple[KVCache, Float[Array, "B V"] | Float[Array, "B K V"]]:
    """Processes further tokens of each sequence: prefill for many tokens, a decode step for one.

    Sequences do not influence each other: for the same number of sequences, capacity and K, the keys, values and
    logits of a sequence are bitwise independent of the other sequences. Tokens beyond the capacity are dropped.

    Args:
        config: Config of the weights.
        cache: Cache of the sequences so far.
        tokens: The next tokens; those from `num_tokens` on are padding.
        num_tokens: Number of tokens to process of each sequence, 0 to K.
        all_logits: Whether to return the logits after each of the K tokens instead of those after the last one.
        lm_head: Output weights from `transposed_lm_head`, which decode steps multiply faster.

    Returns:
        The extended cache, and float32 logits of the next token; they have no meaning where `num_tokens` is 0.
    """
    B, K = tokens.shape
    capacity = cache.capacity
    offset = jnp.arange(K, dtype=jnp.int32)[None]
    positions = cache.length[:, None] + offset
    slot = jnp.where(offset < num_tokens[:, None], positions, capacity)  # writes at the capacity are dropped
    sequence = jnp.arange(B, dtype=jnp.int32)[:, None]
    slots = jnp.arange(capacity, dtype=jnp.int32)
    embedded_positions = jnp.minimum(positions, config.context_length - 1)
    stream = _embed(weights, tokens, embedded_positions, cache.keys[0].dtype)
    all_keys, all_values = [], []
    for layer, (block, keys, values) in enumerate(zip(weights.blocks, cache.keys, cache.values, strict=True)):
        settings = config.block(layer)
        queries, new_keys, new_values = transformer_block.project_qkv(settings, block, stream, positions)
        keys = keys.at[sequence, :, slot].set(new_keys.swapaxes(1, 2), mode="drop", unique_indices=False)
        values = values.at[sequence, :, slot].set(new_values.swapaxes(1, 2), mode="drop", unique_indices=False)
        all_keys.append(keys)
        all_values.append(values)
        attended = transformer_block.attend(queries, keys, values, visibility(positions, slots, config.window(layer)))
        stream = transformer_block.finish_block(settings, block, stream, attended)
    if not all_logits:
        stream = jnp.take_along_axis(stream, jnp.maximum(num_tokens - 1, 0)[:, None, None], axis=1)[:, 0]
    length = jnp.minimum(cache.length + num_tokens.astype(jnp.int32), capacity)
    return KVCache(tuple(all_keys), tuple(all_values), length), _project_logits(config, weights, stream, lm_head)


def visibility(
    positions: Int32[Array, "B T"], key_positions: Int32[Array, "S"], window: int | None
) -> Bool[Array, "B T S"]:
    """Computes which tokens each token may attend to: itself and those before it, as far back as the window reaches.

    Args:
        positions: Of the tokens that attend.
        key_positions: Of the tokens that are attended to.
        window: Tokens in the window, the attending one included; None for no limit.
    """
    is_visible = key_positions <= positions[..., None]
    return is_visible if window is None else is_visible & (key_positions > positions[..., None] - window)


def transposed_lm_head(weights: TransformerWeights) -> Float[Array, "W V"]:
    """Returns the output weights transposed, the layout in which a product with few tokens is fastest."""
    return (weights.embedding if weights.lm_head is None else weights.lm_head).T


def clear_sequences(cache: KVCache, selected: Bool[Array, "B"]) -> KVCache:
    """Empties the cache of the selected sequences."""
    return cache._replace(length=jnp.where(selected, 0, cache.length))


def _embed(weights: TransformerWeights, tokens: Array, positions: Array, compute_dtype: DTypeLike) -> Array:
    """Token embedding, plus learned positions where the model has them: [B, T, W]."""
    stream = weights.embedding[tokens]
    if weights.positions is not None:
        stream = stream + weights.positions[positions]
    return stream.astype(compute_dtype)


def _project_logits(
    config: TransformerConfig, weights: TransformerWeights, stream: Array, lm_head: Array | None = None
) -> Array:
    """Logits [..., V] in float32 of a residual stream [..., W]."""
    stream = transformer_block.normalize(config.block(0), weights.norm, stream)
    if lm_head is not None:
        return jnp.matmul(stream, lm_head.astype(stream.dtype), preferred_element_type=jnp.float32)
    head = weights.embedding if weights.lm_head is None else weights.lm_head
    return jnp.einsum("...w,vw->...v", stream, head.astype(stream.dtype), preferred_element_type=jnp.float32)
