"""Engine: the same question has the same bits, alone, among others, in any order, after any history."""

import contextlib
import random
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.content.transformer import KVCache, forward, init_weights, make_config
from ontogeny.engine import programs
from ontogeny.engine.engine import Engine, QueueFull
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.requests import FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams, compute_logprobs, sample_token
from ontogeny.engine.text_stream import TextStream
from ontogeny.errors import BadInput

pytestmark = pytest.mark.computes

CONFIG = make_config("gpt2", 257, 64, num_layers=2, num_heads=2, width=64)


@pytest.fixture(scope="module")
def weights():
    return jax.jit(init_weights, static_argnums=1)(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def engine(weights):
    engine = Engine(CONFIG)
    engine.start(weights)
    yield engine
    engine.stop()


class Answer:
    """Collects what the engine tells."""

    def __init__(self):
        self.scores, self.tokens, self.reason, self.done = None, [], None, threading.Event()

    def __call__(self, what):
        if isinstance(what, TokenOutput):
            self.tokens.append(what)
        elif isinstance(what, FinishOutput):
            self.reason = what.finish_reason
            self.done.set()
        else:
            self.scores = list(what)

    def wait(self):
        assert self.done.wait(120)
        return self.scores, self.tokens, self.reason


def question(number, weights):
    """Questions of all kinds: long and short, greedy and drawn, scored and not, longer than the context."""
    draw = np.random.default_rng(number)
    echo = number % 3 == 0
    prompt = tuple(int(t) for t in draw.integers(0, 256, draw.integers(1, 60 if echo else 100)))
    taste = SamplingParams([0.0, 1.0, 0.7][number % 3], [1.0, 0.9][number % 2], number)
    most = int(draw.integers(0, 40)) if not echo else number % 2
    return GenerationRequest(weights, prompt, most, taste, 256, num_logprobs=number % 4, score_prompt=echo)


def submit_all(engine, questions):
    answers = [Answer() for _ in questions]
    for asked, answer in zip(questions, answers, strict=True):
        engine.submit(asked, answer)
    return [answer.wait() for answer in answers]


def test_same_question_same_bits_alone_among_63_others_and_in_any_order(engine, weights):
    numbers = list(range(64))
    together = submit_all(engine, [question(n, weights) for n in numbers])
    for seed in range(3):
        random.Random(seed).shuffle(numbers)
        again = submit_all(engine, [question(n, weights) for n in numbers])
        assert all(found == together[n] for n, found in zip(numbers, again, strict=True))
    for number in numbers[:16]:
        assert submit_all(engine, [question(number, weights)]) == [together[number]]


def test_one_thread_and_three_answer_in_the_same_bits(engine, weights):
    questions = [question(n, weights) for n in range(24)]
    expected = submit_all(engine, questions)
    for workers in (1, 3):
        other = Engine(CONFIG, max_num_seqs=16, num_workers=workers)
        other.start(weights)
        assert submit_all(other, questions) == expected
        other.stop()


@pytest.fixture
def chunks(monkeypatch):
    """How many chunks of prompts were read: a list, one entry each."""
    read, made = programs.prefill, []
    monkeypatch.setattr(programs, "prefill", lambda *arguments: made.append(1) or read(*arguments))
    return made


def test_who_comes_again_with_the_same_beginning_has_the_same_bits_and_reads_only_what_is_new(engine, weights, chunks):
    draw = np.random.default_rng(5)
    first = tuple(map(int, draw.integers(0, 256, 40)))
    prompts = [first, first, (*first, 7, 8, 9), first[:35], (*first[:33], *range(15)), tuple(range(45)), first[:32]]

    def questions(cache_scope):
        return [
            GenerationRequest(weights, p, 12, SamplingParams(1.0, seed=i), None, 2, cache_scope=cache_scope)
            for i, p in enumerate(prompts)
        ]

    cold = [submit_all(engine, [asked])[0] for asked in questions(None)]
    assert len(chunks) == 2 * 6 + 1
    for counts in ([2, 0, 1, 1, 1, 2, 1], [0] * 7):  # chunks of 32 tokens; what is not known whole has one at least
        for asked, expected, count in zip(questions(("anna", "1")), cold, counts, strict=True):
            chunks.clear()
            assert submit_all(engine, [asked]) == [expected]
            assert len(chunks) == count
    chunks.clear()
    assert submit_all(engine, questions(("berta", "1"))[:1]) == cold[:1]  # nobody goes on from what another has read
    assert len(chunks) == 2
    engine.prefix_cache.evict_owner("anna")
    chunks.clear()
    assert submit_all(engine, questions(("anna", "1"))[:1]) == cold[:1]
    assert len(chunks) == 2


def test_what_is_cut_scored_or_longer_than_the_context_has_the_same_bits_from_memory(engine, weights):
    draw = np.random.default_rng(6)
    prompt = tuple(map(int, draw.integers(0, 256, 90)))
    plain = GenerationRequest(weights, prompt, 20, SamplingParams(1.0, seed=1), None, 1)
    asked = [
        plain,
        plain._replace(max_tokens=30),
        plain._replace(max_tokens=150),
        plain._replace(prompt=prompt[7:], max_tokens=9),
    ]
    short = plain._replace(prompt=prompt[:50], max_tokens=1)
    asked += [
        short,
        short._replace(score_prompt=True),
        short._replace(max_tokens=0),
        short._replace(max_tokens=0, score_prompt=True),
    ]
    for _ in range(2):
        for one in asked:
            assert submit_all(engine, [one._replace(cache_scope=("carl", "1"))]) == submit_all(engine, [one])


def test_questions_that_belong_together_are_let_in_together(weights):
    engine = Engine(CONFIG, max_num_seqs=8, max_queue=4)
    engine.start(weights)
    asked = [GenerationRequest(weights, (1,), 5, SamplingParams(1.0), None)] * 24
    answers = [Answer() for _ in asked]
    engine.submit_all(asked, answers)  # nobody waits: more than the queue holds
    with pytest.raises(QueueFull):
        engine.submit_all(asked[:4], [Answer() for _ in range(4)])
    assert all(answer.wait()[2] == "length" for answer in answers)
    assert all(batch.weights is None for batch in engine._scheduler.batches)  # no weights outlive their last sequence
    engine.stop()


def test_of_those_who_come_together_with_the_same_prompt_one_reads_it(engine, weights, chunks):
    prompt = tuple(range(60, 110))
    asked = [
        GenerationRequest(weights, prompt, 5, SamplingParams(1.0, seed=i), None, cache_scope=("ways", "on"))
        for i in range(8)
    ]
    found = submit_all(engine, asked)
    assert len(chunks) == 2
    assert found == submit_all(engine, [one._replace(cache_scope=None) for one in asked])


@pytest.mark.parametrize("length", [3, 63])
def test_prompts_keep_nobody_waiting(weights, chunks, length):
    """Between two tokens of an answer one long prompt goes on by one chunk, and two short ones are read."""
    engine = Engine(CONFIG, max_num_seqs=8, num_workers=1)
    engine.start(weights)
    answers = [Answer() for _ in range(7)]

    class Counting(Answer):
        def __call__(self, what):
            self.read = [*getattr(self, "read", []), len(chunks)]
            super().__call__(what)

    counting = Counting()
    engine.submit(GenerationRequest(weights, (1,), 60, SamplingParams(1.0), None), counting)
    while not counting.tokens:
        pass
    for answer in answers:
        engine.submit(GenerationRequest(weights, tuple(range(length)), 1, SamplingParams(1.0), None), answer)
    assert counting.wait()[2] == "length" and all(answer.wait()[2] == "length" for answer in answers)
    assert max(np.diff(counting.read)) <= 3
    engine.stop()


def test_short_prompts_that_never_cease_do_not_keep_a_long_one_from_being_read(weights):
    engine = Engine(CONFIG, max_num_seqs=8, num_workers=1)
    engine.start(weights)
    done, many, every = [], 60, threading.Event()

    def ask_short():
        engine.submit(GenerationRequest(weights, (1, 2), 0, SamplingParams(0.0), None), short)

    def short(what):
        done.append("short")
        (every.set if len(done) >= many else ask_short)()

    for _ in range(7):
        ask_short()
    engine.submit(
        GenerationRequest(weights, tuple(range(60)), 0, SamplingParams(0.0), None), lambda _: done.append("long")
    )
    assert every.wait(60)
    assert "long" in done[:40]
    engine.stop()


def test_when_a_thread_fails_everybody_is_told(weights, monkeypatch):
    engine = Engine(CONFIG, max_num_seqs=8)
    engine.start(weights)
    answers = [Answer() for _ in range(9)]

    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(programs, "prefill", broken)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with contextlib.suppress(QueueFull):
        for answer in answers:
            engine.submit(GenerationRequest(weights, (1,), 5, SamplingParams(1.0), None), answer)
    assert answers[0].wait()[2] == "failed" and isinstance(engine.failure, RuntimeError)
    with pytest.raises(QueueFull):
        engine.submit(GenerationRequest(weights, (1,), 1, SamplingParams(1.0), None), Answer())
    engine.stop()


def test_other_weights_beside_change_no_bit(engine, weights):
    others = jax.tree.map(lambda leaf: leaf * 1.01, weights)
    alone = submit_all(engine, [question(n, weights) for n in range(6)])
    mixed = submit_all(engine, [question(n // 2, others if n % 2 else weights) for n in range(12)])
    assert mixed[::2] == alone
    assert mixed[1::2] != alone
    assert [score.logprob for score in mixed[0][0]] != [score.logprob for score in mixed[1][0]]


def test_scores_are_those_of_the_whole_sequence_at_once(engine, weights):
    prompt = tuple(range(50, 100))
    scores, _, _ = submit_all(
        engine, [GenerationRequest(weights, prompt, 0, SamplingParams(0.0), 256, 2, score_prompt=True)]
    )[0]
    logits = forward(CONFIG, weights, jax.numpy.array([prompt], jax.numpy.int32))[0]
    expected = jax.nn.log_softmax(logits)[np.arange(49), np.array(prompt[1:])]
    assert scores[0].logprob is None
    np.testing.assert_allclose([s.logprob for s in scores[1:]], expected, atol=2e-5)
    assert all(s.top_logprobs[0][1] >= s.logprob for s in scores[1:])


def test_a_scored_prompt_is_followed_by_one_token_even_the_end_token(engine, weights):
    bent = weights._replace(norm=weights.norm._replace(bias=100.0 * weights.embedding[256]))
    scored, tokens, reason = submit_all(
        engine, [GenerationRequest(bent, (1, 2, 3), 1, SamplingParams(0.0), 256, 1, score_prompt=True)]
    )[0]
    assert [t.token for t in tokens] == [256] and len(scored) == 3 and reason == "stop"
    assert tokens[0].logprobs.logprob == tokens[0].logprobs.top_logprobs[0][1]
    assert submit_all(engine, [GenerationRequest(bent, (1, 2, 3), 9, SamplingParams(0.0), 256)])[0][1:] == ([], "stop")


def test_an_answer_goes_on_beyond_the_context(engine, weights):
    _, tokens, reason = submit_all(engine, [GenerationRequest(weights, (1,), 200, SamplingParams(1.0, seed=4), None)])[
        0
    ]
    assert len(tokens) == 200 and reason == "length"


def test_nothing_is_compiled_under_load(engine, weights):
    submit_all(engine, [question(n, weights) for n in range(40)])
    compiled = (programs.prefill, programs.insert_sequence, programs.decode_step)
    before = [program._cache_size() for program in compiled]
    submit_all(engine, [question(n + 100, weights) for n in range(80)])
    assert [program._cache_size() for program in compiled] == before


def test_a_row_is_free_again_soon_after_its_owner_leaves(engine, weights):
    answer = Answer()
    ticket = engine.submit(GenerationRequest(weights, (1,), 10**6, SamplingParams(1.0), None), answer)
    while len(answer.tokens) < 3:
        pass
    ticket.cancel()
    assert answer.wait()[2] == "cancelled" and engine.num_requests_running == 0


def test_time_is_limited_in_the_row_and_in_the_queue(weights):
    engine = Engine(CONFIG, max_num_seqs=8, max_queue=9)
    engine.start(weights)
    slow = [Answer() for _ in range(8)]
    for answer in slow:
        engine.submit(
            GenerationRequest(weights, (1,), 10**6, SamplingParams(1.0), None, deadline=time.monotonic() + 0.5), answer
        )
    waits = Answer()
    engine.submit(
        GenerationRequest(weights, (1,), 1, SamplingParams(1.0), None, deadline=time.monotonic() + 0.1), waits
    )
    assert waits.wait()[1:] == ([], "time")
    assert {answer.wait()[2] for answer in slow} == {"time"}
    engine.stop()


def test_a_full_queue_says_when_to_come_again(weights):
    engine = Engine(CONFIG, max_num_seqs=8, max_queue=2)
    engine.start(weights)
    tickets, refused = [], None
    for _ in range(8 + 2 + 8):
        try:
            tickets.append(engine.submit(GenerationRequest(weights, (1,), 10**6, SamplingParams(1.0), None), Answer()))
        except QueueFull as busy:
            refused = busy
    assert refused is not None and refused.retry_after >= 0
    engine.stop()
    with pytest.raises(QueueFull):
        engine.submit(GenerationRequest(weights, (1,), 1, SamplingParams(1.0), None), Answer())


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@given(st.lists(st.tuples(st.sampled_from("ab"), TOKENS), max_size=8), TOKENS, st.integers(1, 4), st.integers(0, 900))
def test_prefixes_are_the_longest_that_were_read_and_are_kept(read, wanted, chunk, most):
    """Against a plain search: whole prompts, else beginnings in whole chunks, of the same name, the last ones."""

    def encoded(tokens):
        return np.array(tokens, np.int32).tobytes()

    prefixes, kept = PrefixCache(chunk, most=most), {}
    cache = KVCache((np.zeros(1, np.float32),), (), np.zeros(1, np.int32))
    for name, tokens in read:
        prefixes.insert((name, "1"), encoded(tokens), cache, np.array(tokens, np.int64), 0)
        size = 8 + (4 + 8) * len(tokens)  # cache; tokens and logits
        if size <= most:
            kept.setdefault((name, tuple(tokens)), size)
        while sum(kept.values()) > most:
            del kept[next(iter(kept))]
    assert len(prefixes) == len(kept)
    own = [list(tokens) for name, tokens in kept if name == "a"]
    found = prefixes.lookup(("a", "1"), encoded(wanted))
    assert prefixes.contains(("a", "1"), encoded(wanted)) == (wanted in own)
    if wanted in own:
        assert found is not None and found.length == len(wanted) and found.logits.tolist() == wanted
    else:
        lengths = [n for n in range(chunk, len(wanted), chunk) if any(other[:n] == wanted[:n] for other in own)]
        assert (found.length if found else 0) == max(lengths, default=0)
        assert found is None or found.logits is None
    prefixes.evict_owner("a")
    prefixes.insert(("a", "1"), encoded(wanted), cache, np.zeros(1), 0)  # was being read when all was to be forgotten
    assert prefixes.lookup(("a", "1"), encoded(wanted)) is None and prefixes.lookup(("b", "2"), encoded(wanted)) is None
    assert len(prefixes) == sum(name == "b" for name, _ in kept)


def test_what_cannot_be_asked(engine, weights):
    with pytest.raises(BadInput, match="at least one"):
        engine.submit(GenerationRequest(weights, (), 1, SamplingParams(), None), Answer())
    with pytest.raises(BadInput, match="context of 64"):
        engine.submit(GenerationRequest(weights, (1,) * 65, 1, SamplingParams(), None, 1, score_prompt=True), Answer())


def test_choices_by_seed_and_place():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    drawn = [sample_token(logits, SamplingParams(1.0, 1.0, 7), place) for place in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = {sample_token(logits, SamplingParams(1.0, 0.75, 7), place) for place in range(400)}
    assert nucleus == {0, 1}
    assert {sample_token(logits, SamplingParams(0.0), place) for place in range(4)} == {0}
    assert {sample_token(logits, SamplingParams(1.0, 1e-9), place) for place in range(50)} == {0}
    neighbours = [
        [sample_token(logits, SamplingParams(1.0, 1.0, 2**64 - seed), place) for place in range(20)]
        for seed in (1, 2, 3)
    ]
    assert len(set(map(tuple, neighbours))) == 3
    found = compute_logprobs(logits, 2, 2)
    assert found.top_logprobs[0][0] == 0 and abs(found.logprob - np.log(0.15)) < 1e-6


class Letters:
    """Two letters a token, and a token for each half of an é."""

    def bytes_of(self, token):
        return {0: b"ab", 1: b"cd", 2: b"\xc3", 3: b"\xa9"}[token]


@pytest.mark.parametrize(
    ("tokens", "stops", "pieces", "stopped"),
    [
        ([0, 1], (), ["ab", "cd", ""], False),
        ([0, 2, 3, 1], (), ["ab", "", "é", "cd", ""], False),
        ([0, 2], (), ["ab", "", "\ufffd"], False),
        ([0, 1, 0], ("bc",), ["a", "", "", ""], True),
        ([0, 0, 1], ("bx", "dz"), ["a", "ba", "bc", "d"], False),
        ([0, 1], ("cd",), ["ab", "", ""], True),
    ],
)
def test_text_is_shown_in_whole_characters_and_never_a_stop_string(tokens, stops, pieces, stopped):
    growing = TextStream(Letters(), stops)
    shown = [growing.push(token) for token in tokens] + [growing.finish()]
    assert shown == pieces and growing.stopped is stopped
