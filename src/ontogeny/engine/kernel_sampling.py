"""The sampler on a CPU: the tokens of all sequences of a step at a time, by the threads that share steps."""

from collections.abc import Sequence

import numpy as np

from ontogeny.engine.runners import TokenDraw
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.kernels import layout
from ontogeny.kernels.sampling import SCRATCH_SIZE
from ontogeny.kernels.step import run_step
from ontogeny.kernels.transformer import Workspace, team
from ontogeny.seeds import NUM_SAMPLING_SEEDS

MIN_SHARED_WORK = 1 << 18  # operations, below which waking another thread takes longer than the work


def sample_tokens(draws: Sequence[TokenDraw], workspace: Workspace) -> list[tuple[int, TokenLogprobs | None]]:
    """Draw tokens, and compute log-probabilities where they are needed.

    Args:
        draws: Of the same vocabulary.
        workspace: Memory for the computation.
    """
    if not draws:
        return []
    vocab_size, max_top = len(draws[0].logits), max(min(draw.num_top or 0, len(draw.logits)) for draw in draws)
    fields = np.array([_describe(draw) for draw in draws], np.int64)
    numbers = np.array([(draw.params.temperature, draw.params.top_p, 0.0) for draw in draws], np.float64)
    top_tokens = np.zeros((len(draws), max_top), np.int64)
    top_logprobs = np.zeros((len(draws), max_top), np.float64)
    table = np.zeros(layout.NUM_FIELDS, np.int64)
    table[layout.NUM_SAMPLES], table[layout.MAX_TOP], table[layout.VOCAB_SIZE] = len(draws), max_top, vocab_size
    for field, array in (
        (layout.SAMPLES, fields),
        (layout.SAMPLE_NUMBERS, numbers),
        (layout.TOP_TOKENS, top_tokens),
        (layout.TOP_LOGPROBS, top_logprobs),
    ):
        table[field] = layout.address(array)
    table[layout.SCRATCH_SIZE] = size = 2 * (vocab_size + 1) + SCRATCH_SIZE
    table[layout.SCRATCH] = workspace.reserve(layout.SCRATCH, team().num_threads * size)
    table[layout.COUNTERS] = workspace.clear(layout.COUNTERS, layout.COUNTER_STRIDE)
    if sum(map(_estimate_work, draws)) < MIN_SHARED_WORK:
        run_step(layout.address(table), 0)
    else:
        team().run(table)
    tokens = fields[:, layout.SAMPLE_TOKEN].tolist()
    if all(draw.num_top is None for draw in draws):
        return [(token, None) for token in tokens]
    logprobs = numbers[:, layout.LOGPROB].tolist()
    tops = [
        tuple(zip(of_draw.tolist(), values.tolist(), strict=True))
        for of_draw, values in zip(top_tokens, top_logprobs, strict=True)
    ]
    return [
        (token, None if draw.num_top is None else TokenLogprobs(token, logprob, top[: draw.num_top]))
        for draw, token, logprob, top in zip(draws, tokens, logprobs, tops, strict=True)
    ]


def _estimate_work(draw: TokenDraw) -> int:
    """The operations of a draw, roughly: some for each token of the vocabulary, except for a search of the highest."""
    is_cheap = draw.num_top is None and (draw.params.temperature == 0 or draw.params.top_p == 0)
    return len(draw.logits) * (1 if is_cheap else 16)


def _describe(draw: TokenDraw) -> tuple[int, ...]:
    """The integers that describe a draw to the kernel; see `layout`."""
    model = layout.address(draw.logits)
    candidates = model if draw.adjusted is None else layout.address(draw.adjusted)
    count = len(draw.logits) if draw.num_candidates is None else min(draw.num_candidates, len(draw.logits))
    seed = draw.params.seed % NUM_SAMPLING_SEEDS
    return (
        candidates,
        count,
        model,
        draw.params.top_k,
        seed - NUM_SAMPLING_SEEDS if seed >= NUM_SAMPLING_SEEDS // 2 else seed,
        draw.position,
        -1 if draw.num_top is None else min(draw.num_top, len(draw.logits)),
        -1 if draw.token is None else draw.token,
    )
