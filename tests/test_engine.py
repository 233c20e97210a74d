"""The engine: a request yields bitwise equal tokens alone, in any batch, in any order and after any history."""

import contextlib
import importlib
import itertools
import random
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny import kernels
from ontogeny.content.transformer import forward, init_weights, make_config
from ontogeny.engine import programs, runners
from ontogeny.engine.active_runner import create_runner
from ontogeny.engine.engine import Engine, QueueFull
from ontogeny.engine.prefix_cache import PrefixCache
from ontogeny.engine.requests import FinishOutput, GenerationRequest, SequenceState, TokenOutput
from ontogeny.engine.sampling import SamplingParams, compute_logprobs, make_adjustments, sample_token
from ontogeny.engine.scheduler import Scheduler
from ontogeny.engine.text_stream import TextStream, TokenOffsets
from ontogeny.errors import BadInput
from ontogeny.lm.adapters import AdaptedWeights, init_adapters
from ontogeny.lm.tokenizer import ByteTokenizer, read_tokenizer, train_tokenizer

pytestmark = pytest.mark.computes

CONFIG = make_config("gpt2", 257, 64, num_layers=2, num_heads=2, width=64)
GREEDY = SamplingParams(temperature=0.0)
ENDLESS = 10**6  # tokens


@pytest.fixture(scope="module")
def weights():
    return jax.jit(init_weights, static_argnums=1)(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def engine(weights):
    with started(weights) as engine:
        yield engine


@contextlib.contextmanager
def started(weights, **settings):
    """A running engine of its own."""
    engine = Engine(CONFIG, **settings)
    engine.start(weights)
    yield engine
    engine.stop()


class Collector:
    """Collects the outputs of one request."""

    def __init__(self):
        self.scores, self.tokens, self.finish_reason = None, [], None
        self.three_tokens, self.done = threading.Event(), threading.Event()

    def __call__(self, output):
        if isinstance(output, TokenOutput):
            self.tokens.append(output)
            if len(self.tokens) == 3:
                self.three_tokens.set()
        elif isinstance(output, FinishOutput):
            self.finish_reason, self.activations = output.finish_reason, output.activations
            self.done.set()
        else:
            self.scores = list(output)

    def wait(self):
        assert self.done.wait(120)
        return self.scores, self.tokens, self.finish_reason


def make_request(weights, prompt=(1,), max_tokens=1, params=SamplingParams(), end_tokens=frozenset(), **settings):  # noqa: B008
    return GenerationRequest(weights, prompt, max_tokens, params, end_tokens, **settings)


def random_request(number, weights):
    """Requests of all kinds: long and short, greedy and sampled, scored and not, longer than the context."""
    generator = np.random.default_rng(number)
    score_prompt = number % 3 == 0
    length = generator.integers(1, 60 if score_prompt else 100)
    prompt = tuple(int(t) for t in generator.integers(0, 256, length))
    params = SamplingParams([0.0, 1.0, 0.7][number % 3], [1.0, 0.9][number % 2], number)
    max_tokens = number % 2 if score_prompt else int(generator.integers(0, 40))
    adjustments = make_adjustments(
        presence_penalty=number % 5 / 4, frequency_penalty=number % 5 / 8, logit_bias={number % 256: -50.0}
    )
    return make_request(
        weights,
        prompt,
        max_tokens,
        params,
        frozenset([256]),
        num_logprobs=number % 4,
        score_prompt=score_prompt,
        logit_adjustments=adjustments if number % 2 else None,
    )


def answer_all(engine, requests):
    collectors = [Collector() for _ in requests]
    for request, collector in zip(requests, collectors, strict=True):
        engine.submit(request, collector)
    return [collector.wait() for collector in collectors]


def answer(engine, request):
    return answer_all(engine, [request])[0]


def test_answers_are_batch_invariant_alone_among_63_others_and_in_any_order(engine, weights):
    numbers = list(range(64))
    together = answer_all(engine, [random_request(n, weights) for n in numbers])
    for seed in range(2):
        random.Random(seed).shuffle(numbers)
        shuffled = answer_all(engine, [random_request(n, weights) for n in numbers])
        assert all(result == together[n] for n, result in zip(numbers, shuffled, strict=True))
    for number in numbers[:8]:
        assert answer(engine, random_request(number, weights)) == together[number]


RUNNER = type(create_runner(CONFIG, 64, 8, None, np.float32))
IS_PAGED = kernels.is_active()


@pytest.fixture
def prefills(monkeypatch):
    """The number of tokens of each chunk of a prompt that is processed."""
    sizes, run = [], RUNNER.run

    def counting_run(runner, weights, sequences, tokens, needs):
        sizes.extend(len(new) for sequence, new in zip(sequences, tokens, strict=True) if sequence.unprocessed)
        return run(runner, weights, sequences, tokens, needs)

    monkeypatch.setattr(RUNNER, "run", counting_run)
    return sizes


@pytest.fixture
def steps(monkeypatch):
    """The number of sequences of each step."""
    sizes, run = [], RUNNER.run

    def counting_run(runner, weights, sequences, tokens, needs):
        sizes.append(len(sequences))
        return run(runner, weights, sequences, tokens, needs)

    monkeypatch.setattr(RUNNER, "run", counting_run)
    return sizes


def test_the_prefix_cache_changes_no_bit_of_an_answer_and_saves_prefill(engine, weights, prefills):
    generator = np.random.default_rng(5)
    first = tuple(map(int, generator.integers(0, 256, 40)))
    prompts = [first, first, (*first, 7, 8, 9), first[:35], (*first[:33], *range(15)), tuple(range(45)), first[:32]]

    def requests(scope):
        params = [SamplingParams(1.0, seed=i) for i in range(len(prompts))]
        return [
            make_request(weights, prompt, 12, p, num_logprobs=2, cache_scope=scope)
            for prompt, p in zip(prompts, params, strict=True)
        ]

    cold = [answer(engine, request) for request in requests(None)]
    assert sum(prefills) == sum(map(len, prompts))
    first_counts = [40, 1, 3, 1, 15, 45, 1] if IS_PAGED else [40, 8, 11, 3, 16, 45, 32]  # XLA shares chunks of 32
    later_counts = [1] * 7 if IS_PAGED else [8, 8, 11, 3, 16, 13, 32]
    for counts in (first_counts, later_counts):
        for request, expected, count in zip(requests(("anna", "1")), cold, counts, strict=True):
            prefills.clear()
            assert answer(engine, request) == expected
            assert sum(prefills) == count
    prefills.clear()
    assert answer(engine, requests(("berta", "1"))[0]) == cold[0]  # scopes share nothing
    assert sum(prefills) == 40
    engine.prefix_cache.evict({"anna"}, ())
    prefills.clear()
    assert answer(engine, requests(("anna", "1"))[0]) == cold[0]
    assert sum(prefills) == 40


@pytest.mark.skipif(not IS_PAGED, reason="XLA does not share generated tokens")
def test_a_conversation_continues_from_the_cached_answer(engine, weights, prefills):
    prompt, scope = tuple(range(100, 120)), ("anna", "conversation")
    tokens = [
        output.token for output in answer(engine, make_request(weights, prompt, 15, GREEDY, cache_scope=scope))[1]
    ]
    longer = make_request(weights, (*prompt, *tokens, 3, 4, 5), 10, GREEDY, num_logprobs=2)
    expected = answer(engine, longer)
    prefills.clear()
    assert answer(engine, longer._replace(cache_scope=scope)) == expected
    assert sum(prefills) == 4  # the last token of the answer, and the new ones


def test_a_prompt_whose_weights_were_chosen_before_an_erasure_is_not_cached(engine, weights):
    prompt, scope = tuple(range(40)), ("carl", "1")
    epoch = engine.prefix_cache.epoch
    engine.prefix_cache.evict({"dora"}, {"1"})  # between the choice of the weights and the request
    request = make_request(weights, prompt, 1, cache_scope=scope)
    answer(engine, request._replace(cache_epoch=epoch))
    encoded = np.asarray(prompt, np.int32).tobytes()
    assert not engine.prefix_cache.contains(scope, encoded)
    answer(engine, request)
    assert engine.prefix_cache.contains(scope, encoded)
    engine.prefix_cache.evict({"dora"}, {"1"})
    assert not engine.prefix_cache.contains(scope, encoded)


def test_prefixes_scored_prompts_and_overlong_prompts_are_answered_bitwise_equal_from_the_prefix_cache(engine, weights):
    prompt = tuple(map(int, np.random.default_rng(6).integers(0, 256, 90)))
    plain = make_request(weights, prompt, 20, SamplingParams(1.0, seed=1), num_logprobs=1)
    short = plain._replace(prompt=prompt[:50], max_tokens=1)
    requests = [
        plain,
        plain._replace(max_tokens=30),
        plain._replace(max_tokens=150),
        plain._replace(prompt=prompt[7:], max_tokens=9),
        short,
        short._replace(score_prompt=True),
        short._replace(max_tokens=0),
        short._replace(max_tokens=0, score_prompt=True),
    ]
    for _ in range(2):
        for request in requests:
            assert answer(engine, request._replace(cache_scope=("carl", "1"))) == answer(engine, request)


def test_requests_of_one_submission_are_accepted_or_rejected_together(weights):
    with started(weights, max_num_seqs=8, max_queue=4) as engine:
        requests = [make_request(weights, max_tokens=5)] * 24
        collectors = [Collector() for _ in requests]
        engine.submit_all(requests, collectors)  # nothing waits: more than the queue holds is accepted
        with pytest.raises(QueueFull):
            engine.submit_all(requests[:4], [Collector() for _ in range(4)])
        assert all(collector.wait()[2] == "length" for collector in collectors)
        assert not engine._scheduler.running and not engine._scheduler.waiting  # no weights outlive their sequences


def test_of_concurrent_requests_with_the_same_prompt_one_is_prefilled(engine, weights, prefills):
    requests = [
        make_request(weights, tuple(range(60, 110)), 5, SamplingParams(seed=i), cache_scope=("ways", "on"))
        for i in range(8)
    ]
    collectors = [Collector() for _ in requests]
    engine.submit_all(requests, collectors)
    answers = [collector.wait() for collector in collectors]
    assert sum(prefills) == (50 + 7 if IS_PAGED else 50 + 7 * 18)
    assert answers == answer_all(engine, [request._replace(cache_scope=None) for request in requests])


@pytest.mark.parametrize("length", [3, 63])
def test_prefill_does_not_stall_decoding(weights, prefills, length, monkeypatch):
    """Between two tokens of an answer there is a limited number of tokens of prompts."""
    if IS_PAGED:
        monkeypatch.setattr("ontogeny.engine.kernel_runner.MAX_PREFILL_BESIDE_DECODE", 64)

    class CountingCollector(Collector):
        def __call__(self, output):
            self.counts = [*getattr(self, "counts", []), sum(prefills)]
            super().__call__(output)

    with started(weights, max_num_seqs=8) as engine:
        collectors, counting = [Collector() for _ in range(7)], CountingCollector()
        engine.submit(make_request(weights, max_tokens=60), counting)
        assert counting.three_tokens.wait(60)
        engine.submit_all([make_request(weights, tuple(range(length)))] * 7, collectors)
        assert counting.wait()[2] == "length" and all(collector.wait()[2] == "length" for collector in collectors)
        assert max(np.diff(counting.counts)) <= 64


def test_a_stream_of_short_prompts_does_not_starve_a_long_one(weights):
    finished, num_requests, enough = [], 60, threading.Event()
    with started(weights, max_num_seqs=8) as engine:

        def submit_short():
            engine.submit(make_request(weights, (1, 2), 0, GREEDY), on_short)

        def on_short(_):
            finished.append("short")
            (enough.set if len(finished) >= num_requests else submit_short)()

        for _ in range(7):
            submit_short()
        engine.submit(make_request(weights, tuple(range(60)), 0, GREEDY), lambda _: finished.append("long"))
        assert enough.wait(60)
        assert "long" in finished[:40]


def test_the_failure_of_a_thread_ends_all_requests(weights, monkeypatch):
    def broken_run(*_):
        raise RuntimeError("planted")

    with started(weights, max_num_seqs=8) as engine:
        collectors = [Collector() for _ in range(9)]
        monkeypatch.setattr(RUNNER, "run", broken_run)
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        with contextlib.suppress(QueueFull):
            for collector in collectors:
                engine.submit(make_request(weights, max_tokens=5), collector)
        assert collectors[0].wait()[2] == "failed" and isinstance(engine.failure, RuntimeError)
        with pytest.raises(QueueFull):
            engine.submit(make_request(weights), Collector())


@pytest.mark.parametrize("place", ["token", "end"])
def test_an_error_of_a_callback_fails_its_request_alone(engine, weights, place):
    class BrokenCollector(Collector):
        def __call__(self, output):
            is_end = isinstance(output, FinishOutput)
            if output.finish_reason == "length" if is_end else place == "token":
                raise IndexError("planted")
            super().__call__(output)

    broken, sound = BrokenCollector(), Collector()
    request = make_request(weights, max_tokens=1, params=GREEDY)
    for collector in (broken, sound):
        engine.submit(request, collector)
    assert broken.wait()[2] == "failed" and sound.wait()[2] == "length"


def test_an_error_of_sampling_fails_its_request_alone(engine, weights, monkeypatch):
    adjustments = make_adjustments(presence_penalty=1.0)
    sound, broken = (make_request(weights, max_tokens=5, params=GREEDY) for _ in range(2))
    expected = answer(engine, sound)
    monkeypatch.setattr("ontogeny.engine.engine.adjust_logits", lambda *_: 1 / 0)
    (_, _, reason), undisturbed = answer_all(engine, [broken._replace(logit_adjustments=adjustments), sound])
    assert reason == "failed" and undisturbed == expected and engine.failure is None


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_a_context_of_tokens_and_the_one_after_it_are_scored(engine, weights, max_tokens):
    prompt = tuple(range(50, 115))
    request = make_request(weights, prompt, max_tokens, GREEDY, num_logprobs=1, score_prompt=True)
    scores, tokens, reason = answer(engine, request)
    logits = forward(CONFIG, weights, jax.numpy.array([prompt[:-1]], jax.numpy.int32))[0]
    expected = jax.nn.log_softmax(logits)[np.arange(64), np.array(prompt[1:])]
    np.testing.assert_allclose([s.logprob for s in scores[1:]], expected, atol=2e-5)
    assert len(tokens) == max_tokens and reason == "length"
    with pytest.raises(BadInput, match="66 tokens to score"):
        answer(engine, request._replace(prompt=(*prompt, 1)))


def test_requests_for_other_weights_change_no_bit(engine, weights):
    scaled = jax.tree.map(lambda leaf: leaf * 1.01, weights)
    separate = answer_all(engine, [random_request(n, weights) for n in range(6)])
    mixed = answer_all(engine, [random_request(n // 2, scaled if n % 2 else weights) for n in range(12)])
    assert mixed[::2] == separate
    assert mixed[1::2] != separate
    assert [score.logprob for score in mixed[0][0]] != [score.logprob for score in mixed[1][0]]


@pytest.fixture(scope="module")
def adapters(weights):
    """Adapters of random numbers, and None."""
    generator = np.random.default_rng(0)

    def fill(leaf):
        return jax.numpy.asarray(0.2 * generator.standard_normal(leaf.shape, dtype=np.float32))

    return [None, *(jax.tree.map(fill, init_adapters(CONFIG, weights, 4)) for _ in range(3))]


@pytest.mark.skipif(not IS_PAGED, reason="XLA generates with weights that adapters were added to")
def test_requests_with_different_adapters_share_steps_and_no_bit_depends_on_that(engine, weights, adapters, steps):
    def requests(shift=0):
        return [
            random_request(n, weights)._replace(
                adapter=adapters[(n + shift) % len(adapters)], cache_scope=("anna", str((n + shift) % len(adapters)))
            )
            for n in range(24)
        ]

    separate = [answer(engine, request) for request in requests()]
    num_separate = len(steps)
    steps.clear()
    together = answer_all(engine, requests())
    assert together == separate and len(steps) < num_separate / 4 and max(steps) > len(adapters)
    exchanged = answer_all(engine, requests(1))  # other adapters change every answer with any token
    assert all(left != right for left, right in zip(exchanged, together, strict=True) if left[0] or left[1])
    # Weights that an adapter was added to give nearly the same log-probabilities, and share no step.
    scored = make_request(weights, tuple(range(40)), 0, GREEDY, num_logprobs=0, score_prompt=True)
    for adapter in adapters:
        merged = answer(engine, scored._replace(weights=AdaptedWeights(weights, adapter).merge()))[0]
        applied = answer(engine, scored._replace(adapter=adapter))[0]
        pairs = [(left.logprob, right.logprob) for left, right in zip(applied[1:], merged[1:], strict=True)]
        np.testing.assert_allclose(*zip(*pairs, strict=True), atol=1e-4)


@pytest.mark.skipif(not IS_PAGED, reason="XLA generates with weights that adapters were added to")
def test_a_text_with_an_adapter_continues_from_its_activations_and_beyond_the_context(engine, weights, adapters):
    first = make_request(weights, tuple(range(60)), 20, num_logprobs=1, adapter=adapters[1], returns_activations=True)
    collector = Collector()
    engine.submit(first, collector)
    for adapter in adapters:  # at the same time
        engine.submit(make_request(weights, (5, 6, 7), 30, adapter=adapter), Collector())
    tokens = [output.token for output in collector.wait()[1]]
    assert collector.activations.tokens[-20:] == tuple(tokens)
    second = make_request(weights, (*collector.activations.tokens, 9), 4, num_logprobs=1, adapter=adapters[1])
    continued = answer(engine, second._replace(activations=collector.activations))
    assert continued[1] == answer(engine, second._replace(activations=collector.activations))[1]
    exchanged = second._replace(activations=collector.activations, adapter=adapters[2])
    assert answer(engine, exchanged)[1] != continued[1]


@pytest.mark.skipif(IS_PAGED, reason="the kernels apply adapters")
def test_programs_take_no_adapter(engine, weights, adapters):
    with pytest.raises(BadInput, match="needs weights that an adapter was added to"):
        engine.submit(make_request(weights, adapter=adapters[1]), Collector())


def test_prompt_log_probabilities_are_those_of_one_forward_pass(engine, weights):
    prompt = tuple(range(50, 100))
    request = make_request(weights, prompt, 0, GREEDY, frozenset([256]), num_logprobs=2, score_prompt=True)
    scores, _, _ = answer(engine, request)
    logits = forward(CONFIG, weights, jax.numpy.array([prompt], jax.numpy.int32))[0]
    expected = jax.nn.log_softmax(logits)[np.arange(49), np.array(prompt[1:])]
    assert scores[0].logprob is None
    np.testing.assert_allclose([s.logprob for s in scores[1:]], expected, atol=2e-5)
    assert all(s.top_logprobs[0][1] >= s.logprob for s in scores[1:])


def test_a_scored_prompt_is_followed_by_one_token_even_the_end_token(engine, weights):
    biased = weights._replace(norm=weights.norm._replace(bias=100.0 * weights.embedding[256]))
    request = make_request(biased, (1, 2, 3), 1, GREEDY, frozenset([256]), num_logprobs=1, score_prompt=True)
    scores, tokens, reason = answer(engine, request)
    assert [t.token for t in tokens] == [256] and len(scores) == 3 and reason == "stop"
    assert tokens[0].logprobs.logprob == tokens[0].logprobs.top_logprobs[0][1]
    assert answer(engine, make_request(biased, (1, 2, 3), 9, GREEDY, frozenset([256])))[1:] == ([], "stop")


def test_adjusted_logits_change_tokens_and_not_the_log_probabilities_of_the_model(engine, weights):
    def answer_with(**adjustments):
        request = make_request(weights, (1, 2), 12, GREEDY, frozenset([256]), num_logprobs=1)
        return answer(engine, request._replace(logit_adjustments=make_adjustments(**adjustments)))[1]

    plain, excluded = answer_with(), answer_with(logit_bias={256: -100.0})
    first = plain[0].token
    changed = answer_with(logit_bias={first: -100.0})
    assert first not in [output.token for output in changed]
    assert changed[0].logprobs.top_logprobs == plain[0].logprobs.top_logprobs
    assert answer_with(presence_penalty=0.0) == plain and len(excluded) == 12
    varied = [output.token for output in answer_with(presence_penalty=2.0, frequency_penalty=2.0)]
    assert len(set(varied)) > len({output.token for output in plain})


def test_an_answer_continues_beyond_the_context(engine, weights):
    _, tokens, reason = answer(engine, make_request(weights, max_tokens=200, params=SamplingParams(seed=4)))
    assert len(tokens) == 200 and reason == "length"


def test_nothing_is_compiled_under_load(engine, weights):
    answer_all(engine, [random_request(n, weights) for n in range(40)])
    if not IS_PAGED:
        compiled = [
            program._cache_size for program in (programs.prefill, programs.insert_sequence, programs.decode_step)
        ]
    else:
        step = importlib.import_module("ontogeny.kernels.step")
        compiled = [lambda kernel=kernel: len(kernel.signatures) for kernel in (step.lead_step, step.run_step)]
    sizes = [count() for count in compiled]
    answer_all(engine, [random_request(n + 100, weights) for n in range(80)])
    assert [count() for count in compiled] == sizes


@pytest.mark.parametrize("own_weights", [False, True])
def test_a_request_of_another_owner_does_not_wait_for_256_answers_and_changes_no_bit_of_them(
    engine, weights, own_weights, steps
):
    """The other owner is served within a few steps of the first, also where the first one has all slots."""
    requests = [random_request(n, weights)._replace(max_tokens=30, score_prompt=False) for n in range(256)]
    requests = [request._replace(owner="anna", end_tokens=frozenset()) for request in requests]
    other_weights = jax.tree.map(lambda leaf: leaf * 1.01, weights) if own_weights else weights
    request = random_request(1, other_weights)._replace(owner="berta", max_tokens=10, end_tokens=frozenset())
    expected = answer(engine, request)
    with started(weights, max_num_seqs=8) as busy_engine:
        collectors, collector = [Collector() for _ in requests], Collector()
        busy_engine.submit_all(requests, collectors)
        assert collectors[0].three_tokens.wait(60)
        num_before = len(steps)
        busy_engine.submit(request, collector)
        assert collector.wait() == expected
        assert len(steps) - num_before < 2 * (10 + 4)  # of more than a thousand
        answers = [collector.wait() for collector in collectors[:8]]  # some of which were suspended
        assert not collectors[-1].tokens
    assert answers == answer_all(engine, requests[:8])


def test_the_full_queue_of_an_owner_is_not_full_for_others(weights):
    with started(weights, max_num_seqs=8, max_queue=4) as engine:
        many = [make_request(weights, max_tokens=ENDLESS, owner="anna")] * 12
        engine.submit_all(many, [Collector() for _ in many])
        with pytest.raises(QueueFull):
            engine.submit(many[0], Collector())
        collector = Collector()
        engine.submit(make_request(weights, max_tokens=3, owner="berta"), collector)
        assert collector.wait()[2] == "length"


WORK = st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(1, 30), st.booleans())  # prompt, answer


class CountingRunner(runners.Runner):
    """A runner without computations: a token needs one byte of memory, and a step processes four tokens of prompts."""

    def num_bytes(self, num_tokens):
        return num_tokens

    def max_prefill_tokens(self, num_decoded):
        return 4

    def chunk_size(self, sequence, limit):
        return min(len(sequence.unprocessed), limit)

    def suspend(self, sequence):
        pass

    def release(self, sequence):
        pass


@given(
    st.lists(WORK, max_size=25), st.integers(0, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 6),
    st.integers(90, 400),
)  # fmt: skip
def test_the_work_that_precedes_an_answer_does_not_grow_with_the_requests_of_others(
    weights, other_requests, num_before, prompt_length, num_tokens, max_num_seqs, max_bytes
):
    """Each owner has one version of the weights of its own, and one in common with the others."""
    shared, own_weights = weights._replace(), {owner: weights._replace() for owner in "abc"}
    scheduler = Scheduler(CountingRunner(), max_num_seqs, max_bytes, PrefixCache(4))  # pyright: ignore
    finished, num_steps = set(), itertools.count()

    def submit(owner, length, num_tokens, is_shared):
        request = make_request(
            shared if is_shared else own_weights[owner], tuple(range(length)), num_tokens, owner=owner
        )
        sequence = SequenceState(request, lambda _: None, 90)
        scheduler.waiting.append(sequence)
        return sequence

    def advance():
        """Takes one step; false if there is nothing to do."""
        scheduler.admit()
        step = scheduler.next_step()
        if step is None:
            return False
        next(num_steps)
        assert len(scheduler.running) <= max_num_seqs
        assert sum(s.reserved_bytes for s in (*scheduler.running, *scheduler.waiting)) <= max_bytes
        assert sum(len(chunk.tokens) for chunk in step.chunks if chunk.sequence.unprocessed) <= 4
        for sequence, tokens, is_final in step.chunks:
            assert sequence in scheduler.running and sequence.request.weights is step.weights
            sequence.cache, sequence.cache_length = "cache", sequence.cache_length + len(tokens)
            assert sequence.cache_length <= sequence.reserved_bytes
            sequence.unprocessed = sequence.unprocessed[len(tokens) :]
            assert is_final == (not sequence.unprocessed)
            if is_final:
                sequence.tokens.append(0)
                sequence.num_generated += 1
                if sequence.num_generated == sequence.request.max_tokens:
                    scheduler.remove(sequence)
                    finished.add(sequence)
                elif sequence.cache_length == 90:
                    sequence.drop_first_half()
        return True

    for work in other_requests:
        submit(*work)
    for _ in range(num_before):
        advance()
    sequence, start = submit("z", prompt_length, num_tokens, True), next(num_steps)
    while sequence not in finished:
        assert advance(), "nothing to do, but a request is not answered"
    num_owners = 1 + len({owner for owner, *_ in other_requests})
    assert next(num_steps) - start <= (num_owners + 1) * (prompt_length + num_tokens + 90)
    while advance():
        pass
    assert len(finished) == len(other_requests) + 1
    assert not scheduler.waiting and not scheduler.running  # all are answered


def continue_in_parts(engine, weights, other_requests=()):
    """A text of three requests, each of which continues from the activations that the one before left."""
    activations, results = None, []
    for number, (length, num_tokens) in enumerate([(20, 12), (9, 25), (40, 70), (0, 0), (1, 5)]):
        known_tokens = () if activations is None else activations.tokens
        new = tuple(map(int, np.random.default_rng(number).integers(0, 256, length)))
        request = make_request(weights, known_tokens + new, num_tokens, SamplingParams(seed=number), num_logprobs=1)
        request = request._replace(activations=activations, returns_activations=True)
        collectors, collector = [Collector() for _ in other_requests], Collector()
        for other_request, other_collector in zip(other_requests, collectors, strict=True):
            engine.submit(other_request, other_collector)
        engine.submit(request, collector)
        results.append(collector.wait()[1:])
        activations = collector.activations
        assert activations.tokens == known_tokens + new + tuple(t.token for t in collector.tokens)
        for other_collector in collectors:
            other_collector.wait()
    return results, [leaf.tobytes() for leaf in jax.tree.leaves(activations.layers)]


def test_a_text_continues_from_activations_with_the_same_bits_alone_and_among_others(engine, weights):
    expected = continue_in_parts(engine, weights)
    assert continue_in_parts(engine, weights, [random_request(n, weights) for n in range(20)]) == expected
    with started(weights) as other_engine:
        assert continue_in_parts(other_engine, weights) == expected


def test_continuing_from_activations_processes_the_new_tokens_alone(engine, weights, prefills):
    collector = Collector()
    engine.submit(make_request(weights, tuple(range(50)), 0, returns_activations=True), collector)
    collector.wait()
    assert collector.activations.num_cached == 49 and sum(prefills) == 50
    prefills.clear()
    prompt = (*range(50), 1, 2, 3)
    continued = answer(engine, make_request(weights, prompt, 5, GREEDY, activations=collector.activations))
    assert sum(prefills) == 4
    assert [t.token for t in continued[1]] == [
        t.token for t in answer(engine, make_request(weights, prompt, 5, GREEDY))[1]
    ]


def test_a_waiting_request_needs_no_memory_for_its_activations(weights):
    first, waiting = Collector(), Collector()
    with started(weights, max_num_seqs=8) as engine:
        engine.submit(make_request(weights, tuple(range(20)), 0, returns_activations=True), first)
        first.wait()
        request = make_request(weights, (*range(20), 1), 5, GREEDY, activations=first.activations)
        expected = answer(engine, request)
        collectors = [Collector() for _ in range(8)]
        handles = [engine.submit(make_request(weights, max_tokens=ENDLESS), collector) for collector in collectors]
        assert all(collector.three_tokens.wait(60) for collector in collectors)
        engine.submit(request, waiting)
        assert engine.num_requests_waiting == 1 and engine._scheduler.waiting[0].cache is None
        for handle in handles:
            handle.cancel()
        assert waiting.wait() == expected


def test_cancelling_a_request_frees_its_slot(engine, weights):
    collector = Collector()
    handle = engine.submit(make_request(weights, max_tokens=ENDLESS), collector)
    assert collector.three_tokens.wait(60)
    handle.cancel()
    assert collector.wait()[2] == "cancelled" and engine.num_requests_running == 0


def test_a_deadline_ends_running_and_waiting_requests(weights):
    with started(weights, max_num_seqs=8, max_queue=9) as engine:
        running, waiting = [Collector() for _ in range(8)], Collector()
        for collector in running:
            engine.submit(make_request(weights, max_tokens=ENDLESS, deadline=time.monotonic() + 0.5), collector)
        engine.submit(make_request(weights, deadline=time.monotonic() + 0.1), waiting)
        assert waiting.wait()[1:] == ([], "time")
        assert {collector.wait()[2] for collector in running} == {"time"}


def test_a_full_queue_states_when_to_retry(weights):
    with started(weights, max_num_seqs=8, max_queue=2) as engine:
        rejection = None
        for _ in range(8 + 2 + 8):
            try:
                engine.submit(make_request(weights, max_tokens=ENDLESS), Collector())
            except QueueFull as error:
                rejection = error
        assert rejection is not None and rejection.retry_after >= 0
    with pytest.raises(QueueFull):
        engine.submit(make_request(weights), Collector())


def test_reserved_places_in_the_queue_are_used_or_given_up(weights):
    with started(weights, max_num_seqs=8, max_queue=4) as engine:
        reservation = engine.reserve(6)  # nothing waits: more than the queue holds is accepted
        with pytest.raises(QueueFull):
            engine.reserve(1)
        with pytest.raises(QueueFull):
            engine.submit(make_request(weights), Collector())
        collectors = [Collector() for _ in range(6)]
        engine.submit_all([make_request(weights, max_tokens=5)] * 6, collectors, reservation)
        assert all(collector.wait()[2] == "length" for collector in collectors)
        reservation.release()
        for _ in range(3):  # a place that is given up twice counts once
            later = engine.reserve(4)
            later.release()
            later.release()
        refused = engine.reserve(4)
        with pytest.raises(QueueFull):
            engine.reserve(1)
        refused.release()
        assert answer(engine, make_request(weights, max_tokens=1))[2] == "length"
    with pytest.raises(QueueFull):
        engine.reserve(1)


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), TOKENS), max_size=8), TOKENS, st.integers(1, 4), st.integers(0, 900),
    st.booleans(),
)  # fmt: skip
def test_a_lookup_in_the_prefix_cache_agrees_with_a_linear_search(inserted, prompt, chunk_size, max_bytes, any_length):
    """The cache returns the longest prefix without the last token, or of whole chunks, of the same scope."""

    def encode(tokens):
        return np.array(tokens, np.int32).tobytes()

    prefix_cache, expected = PrefixCache(chunk_size, max_bytes, any_length=any_length), {}
    shared, caches = np.zeros(1, np.int32), itertools.count()
    for owner, tokens in inserted:
        array = np.zeros(2 * len(tokens), np.int32)
        prefix_cache.insert((owner, "1"), encode(tokens), next(caches), [shared, array], 0)
        size = 12 * len(tokens)  # tokens and cache
        if 4 + size <= max_bytes:
            expected.setdefault((owner, tuple(tokens)), size)
        while expected and 4 + sum(expected.values()) > max_bytes:  # what all have in common counts once
            del expected[next(iter(expected))]
    assert len(prefix_cache) == len(expected)
    assert prefix_cache.num_bytes == (4 + sum(expected.values()) if expected else 0)
    cached_prompts = [list(tokens) for owner, tokens in expected if owner == "a"]
    prefix = prefix_cache.lookup(("a", "1"), encode(prompt))
    assert prefix_cache.contains(("a", "1"), encode(prompt)) == (prompt in cached_prompts)
    equal = [[x == y for x, y in zip(cached, prompt, strict=False)] for cached in cached_prompts]
    lengths = [[*flags, False].index(False) for flags in equal]
    longest = min(max(lengths, default=0), len(prompt) - 1)
    length = prefix.length if prefix else 0
    if prompt in cached_prompts:
        assert length == (len(prompt) - 1 if any_length else (len(prompt) - 1) // chunk_size * chunk_size)
    else:
        assert longest // chunk_size * chunk_size <= length <= longest
        assert any_length or not length % chunk_size
    prefix_cache.evict({"a"}, ())
    prefix_cache.insert(("a", "1"), encode(prompt), 0, [shared], 0)  # it arrived before the eviction
    assert prefix_cache.lookup(("a", "1"), encode(prompt)) is None
    assert prefix_cache.lookup(("b", "2"), encode(prompt)) is None
    assert len(prefix_cache) == sum(owner == "b" for owner, _ in expected)
    assert prefix_cache.limit(0) and not prefix_cache.limit(-1) and len(prefix_cache) == prefix_cache.num_bytes == 0


def test_requests_that_cannot_be_answered_are_rejected(engine, weights):
    with pytest.raises(BadInput, match="at least one"):
        engine.submit(make_request(weights, ()), Collector())
    with pytest.raises(BadInput, match="context of 64"):
        engine.submit(make_request(weights, (1,) * 66, num_logprobs=1, score_prompt=True), Collector())


def test_tokens_depend_on_seed_and_position():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampled = [sample_token(logits, SamplingParams(1.0, 1.0, 7), position) for position in range(4000)]
    np.testing.assert_allclose(np.bincount(sampled) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert {sample_token(logits, SamplingParams(1.0, 0.75, 7), position) for position in range(400)} == {0, 1}
    assert {sample_token(logits, SamplingParams(0.0), position) for position in range(4)} == {0}
    assert {sample_token(logits, SamplingParams(1.0, 1e-9), position) for position in range(50)} == {0}
    params = [SamplingParams(1.0, 1.0, 2**64 - seed) for seed in (1, 2, 3)]
    assert len({tuple(sample_token(logits, p, position) for position in range(20)) for p in params}) == 3
    scored = compute_logprobs(logits, 2, 2)
    assert scored.top_logprobs[0][0] == 0 and abs(scored.logprob - np.log(0.15)) < 1e-6


class PairTokenizer(ByteTokenizer):
    """Tokens of two letters, and a token for each half of an é."""

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
def test_a_text_stream_yields_whole_characters_and_no_stop_string(tokens, stops, pieces, stopped):
    stream = TextStream(PairTokenizer(), stops)
    parts = [stream.push(token) for token in tokens] + [stream.finish()]
    assert parts == pieces and stream.stopped is stopped


def test_the_end_token_has_the_length_of_its_name_in_a_tokenized_text():
    tokenizer, text = train_tokenizer("bpe", 257, []), "aé<|endoftext|>b"
    tokens = tokenizer.encode(text).tolist()
    assert tokens[-2] == tokenizer.end
    for text_of_prompt, expected in ((text, [0, 1, 1, 2, 15]), ("", [0, 1, 1, 2, 2])):
        offsets = TokenOffsets(tokenizer, text=text_of_prompt)
        assert [offsets.push(token) for token in tokens] == expected


def test_special_tokens_and_the_space_before_a_text_have_their_lengths_in_a_tokenized_text():
    tokenizer = read_tokenizer(Path(__file__).parent / "golden" / "llama2")
    for text in ("You may use", " You", "é中 work", "<s>The</s>work", "a <unk>b"):
        tokens = tokenizer.encode(text).tolist()
        offsets = TokenOffsets(tokenizer, text=text)
        positions = [offsets.push(token) for token in tokens]
        for token, first, last in zip(tokens, positions, [*positions[1:], len(text)], strict=True):
            source = tokenizer.source_of(token).decode(errors="replace")
            assert "\ufffd" in source or text[first:last].strip() == source.strip(), (text, positions)


def test_stop_strings_do_not_end_an_answer_before_min_tokens():
    stream = TextStream(PairTokenizer(), ("cd",), min_tokens=2)
    assert [stream.push(token) for token in (0, 1, 0, 1)] == ["ab", "cd", "ab", ""]
    assert stream.stopped and stream.finish() == ""


CHARACTERS = st.text("aé語🐕\u2028", max_size=6).map(str.encode)


@given(
    st.lists(CHARACTERS | st.binary(max_size=4), max_size=6),
    st.lists(st.integers(0, 4), max_size=30),
    st.integers(0, 9),
)
def test_a_token_has_the_position_of_the_character_in_which_it_begins(parts, lengths, start):
    """Tokens of any bytes: parts of characters, several characters, invalid bytes and none."""
    data = b"".join(parts)
    cuts = [0, *np.minimum(np.cumsum(lengths), len(data)).tolist(), len(data)]
    tokens = [data[first:last] for first, last in itertools.pairwise(cuts)]

    class SlicedTokenizer(ByteTokenizer):
        def bytes_of(self, token):
            return tokens[token]

    counter = TokenOffsets(SlicedTokenizer(), start)
    offsets = [counter.push(token) for token in range(len(tokens))]
    assert offsets == sorted(offsets)
    assert all(start <= offset <= start + len(data.decode(errors="replace")) for offset in offsets)
    for first, token, offset in zip(cuts, tokens, offsets, strict=False):
        if token:  # the character that the first byte belongs to is the last one of the text up to it
            assert offset == start + len(data[: first + 1].decode(errors="replace")) - 1


@pytest.mark.skipif(not IS_PAGED, reason="XLA reserves the memory of all slots")
def test_the_memory_and_the_load_of_an_engine_change_no_bit_of_an_answer(engine, weights):
    """Sequences wait for memory, give it up for those of another owner, and are processed anew."""
    requests = [random_request(n, weights)._replace(owner="ab"[n > 20], cache_scope=("a", "1")) for n in range(24)]
    expected = [answer(engine, request._replace(cache_scope=None)) for request in requests]
    page_bytes = engine._runner.num_bytes(1)
    for max_bytes in (page_bytes, 3 * page_bytes, 100 * page_bytes):
        with started(weights, max_num_seqs=16, kv_cache_bytes=max_bytes) as small_engine:
            assert answer_all(small_engine, requests) == expected
            assert not any(s.reserved_bytes for s in small_engine._scheduler.running)


@pytest.mark.skipif(not IS_PAGED, reason="XLA reserves the memory of all slots")
def test_a_request_that_never_fits_into_the_memory_is_refused_with_the_figures(weights):
    with pytest.raises(BadInput, match=r"shortest request needs .* more than the limit of 1,000 bytes"):
        Engine(CONFIG, kv_cache_bytes=1000)
    with started(weights) as engine, pytest.raises(BadInput, match=r"64 tokens together need .* 500 bytes"):
        engine._scheduler.max_bytes = 500
        engine.submit(make_request(weights, max_tokens=100), Collector())


def test_a_bounded_context_is_that_of_all_requests(weights):
    with started(weights, max_context=20) as engine:
        assert engine.max_sequence_length == 20
        long, short = (make_request(weights, tuple(range(n, 40)), 5, GREEDY, num_logprobs=1) for n in (0, 25))
        assert answer(engine, long)[1:] == answer(engine, short)[1:]  # the beginning of a long prompt is cut off


def test_an_engine_generates_on_the_thread_of_its_caller(engine, weights):
    inline_engine, collectors = Engine(CONFIG, max_num_seqs=4), [Collector() for _ in range(9)]
    requests = [random_request(n, weights) for n in range(9)]
    inline_engine.submit_all(requests, collectors)
    inline_engine.run()
    assert [collector.wait() for collector in collectors] == answer_all(engine, requests)
