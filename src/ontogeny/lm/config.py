"""The settings of a training, from which `ontogeny lm train` derives its options.

The module imports no JAX, so that the command line can read the settings before it configures JAX.
"""

from typing import Literal

from pydantic import Field, field_validator

from ontogeny.validation import FrozenModel, Seed

MAX_COUNT = 2**31 - 1


class TrainConfig(FrozenModel):
    """The settings of a training; those that are None follow from `size` and the text.

    Attributes:
        size: Size of the model: pico, nano, micro, small, medium or large.
        architecture: Architecture: gpt2, llama (rotary positions, RMSNorm, SwiGLU, no biases), or qwen3 (llama with
            norms of queries and keys).
        tokenizer: Kind of tokenizer: bytes, characters or bpe.
        vocab_size: Size of the vocabulary of byte-pair encoding (bpe).
        held_out_fraction: Share of the text that is not trained on.
        split: Held-out part: the tail of each file (tail), or whole files (document).
        num_layers: Number of layers (default: that of the size).
        num_heads: Number of attention heads (default: that of the size).
        num_kv_heads: Number of heads of keys and values, not with gpt2 (default: that of the attention heads).
        width: Width of the embeddings (default: that of the size).
        context_length: Number of tokens that the model can attend to (default: that of the size).
        batch_size: Sequences per batch (default: that of the size).
        gradient_accumulation: Number of batches whose gradients are averaged in one step.
        num_steps: Number of steps; by default 20 tokens per parameter, at most 8 epochs.
        optimizer: Optimizer: adamw or muon.
        learning_rate: Highest learning rate (default: that of the size).
        warmup_fraction: Share of the steps in which the learning rate rises.
        decay_schedule: Schedule by which the learning rate falls to a tenth: cosine or linear.
        weight_decay: Weight decay of matrices.
        max_gradient_norm: Norm to which larger gradients are scaled down.
        dropout: Share of the embeddings, attention weights and additions to the residual stream that is set to zero in
            training.
        adapter_rank: Rank of the adapters that are trained in place of the weights; requires --from (default: 0, all
            weights are trained).
        precision: Type of matrix products: float32, bfloat16, or auto (bfloat16 on an accelerator, float32 on a CPU).
        seed: Seed of the initial weights, of the batches and of a split by document.
    """

    size: str = "nano"
    architecture: Literal["gpt2", "llama", "qwen3"] = "gpt2"
    tokenizer: Literal["bytes", "characters", "bpe"] = "bpe"
    vocab_size: int = 1024
    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    split: Literal["tail", "document"] = "tail"
    num_layers: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    num_heads: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    num_kv_heads: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    width: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    context_length: int | None = Field(default=None, ge=2, le=MAX_COUNT)
    batch_size: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    num_steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    learning_rate: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gradient_accumulation: int = Field(default=1, ge=1, le=MAX_COUNT)
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    max_gradient_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    decay_schedule: Literal["cosine", "linear"] = "cosine"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    adapter_rank: int = Field(default=0, ge=0, le=MAX_COUNT)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Seed = 0

    @field_validator("architecture", mode="before")
    @classmethod
    def _rename_architecture(cls, architecture: object) -> object:
        """Accept the former name of Llama's architecture, which older runs have."""
        return "llama" if architecture == "modern" else architecture
