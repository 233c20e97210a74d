"""The tables of integers that describe one step to the kernels: sizes, and addresses of arrays.

A kernel receives one address of a table instead of dozens of arrays, so that a call from Python costs microseconds and
one compiled kernel serves all architectures. An address of 0 means that the model has no such weights.
"""

import numpy as np

(
    NUM_TOKENS,
    NUM_SEQUENCES,
    NUM_LOGITS,
    NUM_LAYERS,
    WIDTH,
    NUM_HEADS,
    NUM_KV_HEADS,
    HEAD_SIZE,
    MLP_WIDTH,
    VOCAB_SIZE,
    PADDED_SIZE,  # of a head of values in the cache
    IS_LAYER_NORM,
    ACTIVATION,
    WEIGHT_TYPE,  # of all panels
    SCRATCH_SIZE,  # float32 numbers per thread
    # Addresses of weights and constants.
    LAYERS,  # int64 [layers, NUM_LAYER_FIELDS]
    FINAL_SCALE,
    FINAL_BIAS,
    EMBEDDING,
    LM_HEAD,
    CONSTANTS,  # the epsilon of norms and the scale of scores
    ONES,  # as many as the longest sum needs
    # Addresses of what differs between steps.
    COSINES,  # [positions, D / 2]
    SINES,
    FIRST_TOKENS,  # int64 [sequences + 1]: where the tokens of each sequence begin among all tokens
    PAGE_TABLES,  # int64 [sequences]: the address of the array that has the addresses of a sequence's pages
    LENGTHS,  # int64 [sequences]: the tokens that the cache of each sequence holds
    LOGIT_TOKENS,  # int64 [logits]: the tokens after which logits are computed
    STREAM,  # [tokens, W]: the residual stream
    QKV,  # [tokens, (H + 2 G) D]
    ATTENDED,  # [tokens, H D]
    HIDDEN,  # [tokens, M]
    LOGITS,  # [logits, V]
    COUNTERS,  # int64 [phases, COUNTER_STRIDE]
    SCRATCH,  # [threads, SCRATCH_SIZE]
    # Adapters; see `low_rank`.
    NUM_GROUPS,
    GROUPS,  # int64 [groups, NUM_GROUP_FIELDS]: tokens with the same adapter, side by side
    MAX_RANK,  # of the adapters of the step
    REDUCED,  # [tokens, MAX_RANK]: the inputs of a linear map times the first factor of its adapter
    # Tokens to draw, instead of a step.
    NUM_SAMPLES,
    MAX_TOP,
    SAMPLES,  # int64 [samples, NUM_SAMPLE_FIELDS]
    SAMPLE_NUMBERS,  # float64 [samples, NUM_SAMPLE_NUMBERS]
    TOP_TOKENS,  # int64 [samples, MAX_TOP]
    TOP_LOGPROBS,  # float64 [samples, MAX_TOP]
    NUM_FIELDS,
) = range(46)

(
    CANDIDATE_LOGITS,  # address
    NUM_CANDIDATES,
    MODEL_LOGITS,  # address
    TOP_K,
    SAMPLE_SEED,
    SAMPLE_POSITION,
    NUM_TOP,  # of the most probable tokens to list; -1 for no log-probabilities
    SAMPLE_TOKEN,  # the token whose log-probability is computed; -1 to draw it, after which it is here
    NUM_SAMPLE_FIELDS,
) = range(9)
TEMPERATURE, TOP_P, LOGPROB, NUM_SAMPLE_NUMBERS = range(4)

(
    NORM_1_SCALE,
    NORM_1_BIAS,
    QKV_PANELS,
    QKV_BIAS,
    QUERY_SCALE,
    QUERY_BIAS,
    KEY_SCALE,
    KEY_BIAS,
    OUT_PANELS,
    OUT_BIAS,
    NORM_2_SCALE,
    NORM_2_BIAS,
    UP_PANELS,
    UP_BIAS,
    DOWN_PANELS,
    DOWN_BIAS,
    HAS_HEAD_NORMS,
    IS_ROTARY,
    WINDOW,
    NUM_LAYER_FIELDS,
) = range(20)

GROUP_TOKEN, GROUP_SIZE, GROUP_ADAPTER, GROUP_RANK, NUM_GROUP_FIELDS = range(5)
ADAPTED_QKV, ADAPTED_OUT, ADAPTED_UP, ADAPTED_DOWN, NUM_ADAPTED = range(5)  # linear maps of a layer
FIRST_FACTOR, SECOND_FACTOR, NUM_FACTORS = range(3)  # addresses, of each linear map of each layer

PAGE = 64  # tokens of a page of a cache
PANEL = 64  # columns of a panel of packed weights
PAIR = PANEL // 2  # columns of the gate, and of the value, in a panel of SwiGLU
GELU, EXACT_GELU, RELU, SQUARED_RELU, SWIGLU = range(5)  # as in `transformer_block.ACTIVATIONS`
WEIGHT_TYPES = ("float32", "bfloat16", "float16", "int8")
FLOAT32, BFLOAT16, FLOAT16, INT8 = range(4)
PHASES_PER_LAYER = 5
COUNTER_STRIDE = 24  # int64 numbers per phase, so that the three counters lie on different cache lines
DONE, DONE_REDUCED = 8, 16  # where the second and the third counter of a phase begin


def address(array: np.ndarray) -> int:
    """The address of the first element of a contiguous array, which the caller keeps in memory."""
    return array.ctypes.data


def padded_size(size: int) -> int:
    """The head size of values in the cache, a multiple of the numbers of a vector."""
    return -(-size // 16) * 16
