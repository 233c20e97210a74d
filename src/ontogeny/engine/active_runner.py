"""The runner of this machine."""

from jax.typing import DTypeLike

from ontogeny import kernels
from ontogeny.content.transformer import TransformerConfig
from ontogeny.engine.runners import Runner
from ontogeny.engine.xla_runner import XlaRunner


def create_runner(
    config: TransformerConfig, max_length: int, max_num_seqs: int, max_bytes: int | None, compute_dtype: DTypeLike
) -> Runner:
    """Returns that of the kernels where they are active, else that of XLA.

    Args:
        config: Config of all weights.
        max_length: The most tokens of a sequence's context.
        max_num_seqs: The most sequences that run at the same time.
        max_bytes: Memory for caches, if it is limited.
        compute_dtype: Type of matrix products.
    """
    if kernels.is_active(compute_dtype):
        from ontogeny.engine.kernel_runner import KernelRunner

        return KernelRunner(config, max_length)
    return XlaRunner(config, max_length, max_num_seqs, max_bytes, compute_dtype)
