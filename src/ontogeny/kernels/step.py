"""One step of a transformer: new tokens of several sequences pass all layers, and the cache grows by them.

Any number of threads run `run_step` with the same table. Each phase of a layer consists of pieces of work that do not
depend on each other: panels of a product, or heads of a sequence. A thread takes the next piece from a counter, so a
thread that comes late or is interrupted delays the others by one piece at most. Which thread computes a piece changes
no bit of it. Where sequences have adapters, the first pieces of a linear map are the products with the first factors,
one per group of tokens; see `low_rank`.
"""

import numpy as np

from ontogeny.kernels import layout as at
from ontogeny.kernels.attention import attend_sequence
from ontogeny.kernels.compiling import kernel
from ontogeny.kernels.elementwise import normalize, view
from ontogeny.kernels.low_rank import add_products, reduce_group
from ontogeny.kernels.primitives import (
    as_int_pointer,
    carray,
    fetch_add,
    load_shared,
    pause,
    sleep_microseconds,
    store_shared,
)
from ontogeny.kernels.products import add_to_stream, multiply_panel, store, store_activated
from ontogeny.kernels.sampling import sample_sequences

MAX_SPINS = 4000  # tens of microseconds, after which a waiting thread gives its core to others
SLEEP_MICROSECONDS = 20


@kernel
def wait_briefly(num_spins: int) -> None:
    """Pauses for a moment; after many of these spins sleeps instead, so that other programs can use the core."""
    if num_spins < MAX_SPINS:
        pause()
    else:
        sleep_microseconds(SLEEP_MICROSECONDS)


@kernel
def integers(address: int, count: int) -> np.ndarray:
    """The int64 numbers at an address, as an array."""
    return carray(as_int_pointer(address), (count,))


@kernel
def take(counters: int, phase: int) -> int:
    """The number of the next piece of work of a phase; it may be beyond the last."""
    return fetch_add(counters + 8 * at.COUNTER_STRIDE * phase, 1)


@kernel
def finish_phase(counters: int, phase: int, num_completed: int, num_pieces: int) -> None:
    """Reports the pieces that this thread has completed, and waits until all of the phase are complete."""
    done = counters + 8 * (at.COUNTER_STRIDE * phase + at.DONE)
    if num_completed:
        fetch_add(done, num_completed)
    num_spins = 0
    while load_shared(done) < num_pieces:
        num_spins += 1
        wait_briefly(num_spins)


@kernel
def reduce_inputs(
    d: np.ndarray, number: int, matrix: int, counters: int, phase: int, group: int, inputs: int, num_inputs: int
) -> None:
    """Multiplies the inputs of a group of tokens with the first factor of their adapter, and reports it."""
    reduce_group(d, number, matrix, group, inputs, num_inputs)
    fetch_add(counters + 8 * (at.COUNTER_STRIDE * phase + at.DONE_REDUCED), 1)


@kernel
def project(
    d: np.ndarray,
    number: int,
    matrix: int,
    counters: int,
    phase: int,
    inputs: int,
    num_inputs: int,
    panels: int,
    panel: int,
    products: int,
) -> None:
    """One panel of a linear map of all tokens, to which the adapters of their sequences are added.

    The pieces of a phase with the first factors precede those with panels, so no thread waits for a thread that waits.
    """
    multiply_panel(inputs, d[at.NUM_TOKENS], num_inputs, panels, d[at.WEIGHT_TYPE], panel, products)
    if d[at.NUM_GROUPS]:
        done, num_spins = counters + 8 * (at.COUNTER_STRIDE * phase + at.DONE_REDUCED), 0
        while load_shared(done) < d[at.NUM_GROUPS]:
            num_spins += 1
            wait_briefly(num_spins)
        add_products(d, number, matrix, panel, products)


@kernel
def normalize_tokens(d: np.ndarray, scale: int, bias: int, target: int) -> None:
    """Writes the norm of the residual stream of all tokens."""
    epsilon = view(d[at.CONSTANTS], 2)[0]
    width = d[at.WIDTH]
    for token in range(d[at.NUM_TOKENS]):
        offset = 4 * token * width
        normalize(d[at.STREAM] + offset, target + offset, width, scale, bias, d[at.IS_LAYER_NORM], epsilon, d[at.ONES])


@kernel
def project_qkv(
    d: np.ndarray, layer: np.ndarray, number: int, counters: int, phase: int, normalized: int, products: int
) -> None:
    """Queries, keys and values of all tokens."""
    num_outputs = (d[at.NUM_HEADS] + 2 * d[at.NUM_KV_HEADS]) * d[at.HEAD_SIZE]
    width, panels, first, matrix = d[at.WIDTH], layer[at.QKV_PANELS], d[at.NUM_GROUPS], at.ADAPTED_QKV
    num_pieces = first + (num_outputs + at.PANEL - 1) // at.PANEL
    piece, completed = take(counters, phase), 0
    if piece < num_pieces:
        normalize_tokens(d, layer[at.NORM_1_SCALE], layer[at.NORM_1_BIAS], normalized)
    while piece < num_pieces:
        if piece < first:
            reduce_inputs(d, number, matrix, counters, phase, piece, normalized, width)
        else:
            project(d, number, matrix, counters, phase, normalized, width, panels, piece - first, products)
            store(products, d[at.NUM_TOKENS], piece - first, layer[at.QKV_BIAS], d[at.QKV], num_outputs)
        piece, completed = take(counters, phase), completed + 1
    finish_phase(counters, phase, completed, num_pieces)


@kernel
def attend(d: np.ndarray, layer: np.ndarray, number: int, counters: int, phase: int, scratch: int) -> None:
    """Attention of all tokens in the layer with this number."""
    first_tokens = integers(d[at.FIRST_TOKENS], d[at.NUM_SEQUENCES] + 1)
    tables, lengths = integers(d[at.PAGE_TABLES], d[at.NUM_SEQUENCES]), integers(d[at.LENGTHS], d[at.NUM_SEQUENCES])
    num_heads = d[at.NUM_KV_HEADS]
    num_pieces = d[at.NUM_SEQUENCES] * num_heads
    piece, completed = take(counters, phase), 0
    while piece < num_pieces:
        sequence, head = piece // num_heads, piece % num_heads
        first, length = first_tokens[sequence], lengths[sequence]
        count = first_tokens[sequence + 1] - first
        pages = integers(tables[sequence], (length + count + at.PAGE - 1) // at.PAGE)
        attend_sequence(d, layer, number, pages, head, first, count, length, scratch)
        piece, completed = take(counters, phase), completed + 1
    finish_phase(counters, phase, completed, num_pieces)


@kernel
def project_to_stream(
    d: np.ndarray,
    number: int,
    matrix: int,
    counters: int,
    phase: int,
    inputs: int,
    num_inputs: int,
    panels: int,
    bias: int,
    products: int,
) -> None:
    """Adds a linear map of the inputs to the residual stream."""
    first = d[at.NUM_GROUPS]
    num_pieces = first + (d[at.WIDTH] + at.PANEL - 1) // at.PANEL
    piece, completed = take(counters, phase), 0
    while piece < num_pieces:
        if piece < first:
            reduce_inputs(d, number, matrix, counters, phase, piece, inputs, num_inputs)
        else:
            project(d, number, matrix, counters, phase, inputs, num_inputs, panels, piece - first, products)
            add_to_stream(products, d[at.NUM_TOKENS], piece - first, bias, d[at.STREAM], d[at.WIDTH])
        piece, completed = take(counters, phase), completed + 1
    finish_phase(counters, phase, completed, num_pieces)


@kernel
def project_up(
    d: np.ndarray, layer: np.ndarray, number: int, counters: int, phase: int, normalized: int, products: int
) -> None:
    """The hidden layer of the feed-forward network."""
    columns = at.PAIR if d[at.ACTIVATION] == at.SWIGLU else at.PANEL
    width, panels, first, matrix = d[at.WIDTH], layer[at.UP_PANELS], d[at.NUM_GROUPS], at.ADAPTED_UP
    num_pieces = first + (d[at.MLP_WIDTH] + columns - 1) // columns
    piece, completed = take(counters, phase), 0
    if piece < num_pieces:
        normalize_tokens(d, layer[at.NORM_2_SCALE], layer[at.NORM_2_BIAS], normalized)
    while piece < num_pieces:
        if piece < first:
            reduce_inputs(d, number, matrix, counters, phase, piece, normalized, width)
        else:
            panel, bias = piece - first, layer[at.UP_BIAS]
            project(d, number, matrix, counters, phase, normalized, width, panels, panel, products)
            store_activated(products, d[at.NUM_TOKENS], panel, bias, d[at.HIDDEN], d[at.MLP_WIDTH], d[at.ACTIVATION])
        piece, completed = take(counters, phase), completed + 1
    finish_phase(counters, phase, completed, num_pieces)


@kernel
def project_logits(d: np.ndarray, counters: int, phase: int, normalized: int, products: int) -> None:
    """The logits after the selected tokens."""
    num_logits, width = d[at.NUM_LOGITS], d[at.WIDTH]
    num_pieces = (d[at.VOCAB_SIZE] + at.PANEL - 1) // at.PANEL if num_logits else 0
    panel, completed = take(counters, phase), 0
    if panel < num_pieces:
        epsilon = view(d[at.CONSTANTS], 2)[0]
        tokens = integers(d[at.LOGIT_TOKENS], num_logits)
        for i in range(num_logits):
            source, target = d[at.STREAM] + 4 * tokens[i] * width, normalized + 4 * i * width
            scale, bias = d[at.FINAL_SCALE], d[at.FINAL_BIAS]
            normalize(source, target, width, scale, bias, d[at.IS_LAYER_NORM], epsilon, d[at.ONES])
    while panel < num_pieces:
        multiply_panel(normalized, num_logits, width, d[at.LM_HEAD], d[at.WEIGHT_TYPE], panel, products)
        store(products, num_logits, panel, 0, d[at.LOGITS], d[at.VOCAB_SIZE])
        panel, completed = take(counters, phase), completed + 1
    finish_phase(counters, phase, completed, num_pieces)


@kernel
def run_step(table: int, thread: int) -> None:
    """Runs a whole step together with the other threads that run it.

    Args:
        table: Address of the table of the step; see `layout`. The counters that it names are 0 before the step.
        thread: The number of this thread, which determines its part of the scratch memory.
    """
    d = integers(table, at.NUM_FIELDS)
    if d[at.NUM_SAMPLES]:
        sample_sequences(d, d[at.SCRATCH] + 4 * thread * d[at.SCRATCH_SIZE])
        return
    counters = d[at.COUNTERS]
    normalized = d[at.SCRATCH] + 4 * thread * d[at.SCRATCH_SIZE]
    products = normalized + 4 * d[at.NUM_TOKENS] * d[at.WIDTH]
    scores = products + 4 * d[at.NUM_TOKENS] * at.PANEL
    num_attended = d[at.NUM_HEADS] * d[at.HEAD_SIZE]
    for number in range(d[at.NUM_LAYERS]):
        layer = integers(d[at.LAYERS] + 8 * at.NUM_LAYER_FIELDS * number, at.NUM_LAYER_FIELDS)
        phase = at.PHASES_PER_LAYER * number
        project_qkv(d, layer, number, counters, phase, normalized, products)
        attend(d, layer, number, counters, phase + 1, scores)
        panels, bias = layer[at.OUT_PANELS], layer[at.OUT_BIAS]
        project_to_stream(
            d, number, at.ADAPTED_OUT, counters, phase + 2, d[at.ATTENDED], num_attended, panels, bias, products
        )
        project_up(d, layer, number, counters, phase + 3, normalized, products)
        panels, bias = layer[at.DOWN_PANELS], layer[at.DOWN_BIAS]
        project_to_stream(
            d, number, at.ADAPTED_DOWN, counters, phase + 4, d[at.HIDDEN], d[at.MLP_WIDTH], panels, bias, products
        )
    project_logits(d, counters, at.PHASES_PER_LAYER * d[at.NUM_LAYERS], normalized, products)


OPEN, INSIDE, NUM_CONTROLS = 0, 8, 16  # int64 numbers, each on a cache line of its own


@kernel
def lead_step(table: int, control: int, number: int) -> None:
    """Runs a step and lets helpers join it; returns when it is complete and all helpers have left it."""
    store_shared(control + 8 * OPEN, number)
    run_step(table, 0)
    store_shared(control + 8 * OPEN, 0)
    num_spins = 0
    while load_shared(control + 8 * INSIDE):
        num_spins += 1
        wait_briefly(num_spins)


@kernel
def help_steps(table: int, control: int, thread: int, max_idle_spins: int) -> None:
    """Joins every step that another thread opens, until none has been opened for a while."""
    num_spins, last = 0, 0
    while num_spins < max_idle_spins:
        number = load_shared(control + 8 * OPEN)
        if number == 0 or number == last:
            num_spins += 1
            pause()
            continue
        fetch_add(control + 8 * INSIDE, 1)
        if load_shared(control + 8 * OPEN) == number:
            run_step(table, thread)
        fetch_add(control + 8 * INSIDE, -1)
        num_spins, last = 0, number
