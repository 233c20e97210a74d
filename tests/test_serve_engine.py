"""Engine: the same question has the same bits, alone, among others, in any order, after any history."""

import random
import threading
import time

import jax
import numpy as np
import pytest

from ontogeny.content.transformer import configure, forward, initial
from ontogeny.errors import BadInput
from ontogeny.server import programs
from ontogeny.server.choices import Taste, choose, score
from ontogeny.server.engine import Busy, End, Engine, Question, Token
from ontogeny.server.text import Growing

CONFIG = configure("gpt2", 257, 64, layers=2, heads=2, width=64)


@pytest.fixture(scope="module")
def weights():
    return jax.jit(initial, static_argnums=1)(jax.random.key(0), CONFIG)


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
        if isinstance(what, Token):
            self.tokens.append(what)
        elif isinstance(what, End):
            self.reason = what.reason
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
    taste = Taste([0.0, 1.0, 0.7][number % 3], [1.0, 0.9][number % 2], number)
    most = int(draw.integers(0, 40)) if not echo else number % 2
    return Question(weights, prompt, most, taste, 256, alternatives=number % 4, echo=echo)


def ask_all(engine, questions):
    answers = [Answer() for _ in questions]
    for asked, answer in zip(questions, answers, strict=True):
        engine.ask(asked, answer)
    return [answer.wait() for answer in answers]


def test_same_question_same_bits_alone_among_63_others_and_in_any_order(engine, weights):
    numbers = list(range(64))
    together = ask_all(engine, [question(n, weights) for n in numbers])
    for seed in range(3):
        random.Random(seed).shuffle(numbers)
        again = ask_all(engine, [question(n, weights) for n in numbers])
        assert all(found == together[n] for n, found in zip(numbers, again, strict=True))
    for number in numbers[:16]:
        assert ask_all(engine, [question(number, weights)]) == [together[number]]


def test_other_weights_beside_change_no_bit(engine, weights):
    others = jax.tree.map(lambda leaf: leaf * 1.01, weights)
    alone = ask_all(engine, [question(n, weights) for n in range(6)])
    mixed = ask_all(engine, [question(n // 2, others if n % 2 else weights) for n in range(12)])
    assert mixed[::2] == alone
    assert mixed[1::2] != alone
    assert [score.logprob for score in mixed[0][0]] != [score.logprob for score in mixed[1][0]]


def test_scores_are_those_of_the_whole_sequence_at_once(engine, weights):
    prompt = tuple(range(50, 100))
    scores, _, _ = ask_all(engine, [Question(weights, prompt, 0, Taste(0.0), 256, 2, echo=True)])[0]
    logits = forward(CONFIG, weights, jax.numpy.array([prompt], jax.numpy.int32))[0]
    expected = jax.nn.log_softmax(logits)[np.arange(49), np.array(prompt[1:])]
    assert scores[0].logprob is None
    np.testing.assert_allclose([s.logprob for s in scores[1:]], expected, atol=2e-5)
    assert all(s.top[0][1] >= s.logprob for s in scores[1:])


def test_a_scored_prompt_is_followed_by_one_token_even_the_end_token(engine, weights):
    bent = weights._replace(norm=weights.norm._replace(bias=100.0 * weights.embedding[256]))
    scored, tokens, reason = ask_all(engine, [Question(bent, (1, 2, 3), 1, Taste(0.0), 256, 1, echo=True)])[0]
    assert [t.token for t in tokens] == [256] and len(scored) == 3 and reason == "stop"
    assert tokens[0].scored.logprob == tokens[0].scored.top[0][1]
    assert ask_all(engine, [Question(bent, (1, 2, 3), 9, Taste(0.0), 256)])[0][1:] == ([], "stop")


def test_an_answer_goes_on_beyond_the_context(engine, weights):
    _, tokens, reason = ask_all(engine, [Question(weights, (1,), 200, Taste(1.0, seed=4), None)])[0]
    assert len(tokens) == 200 and reason == "length"


def test_nothing_is_compiled_under_load(engine, weights):
    ask_all(engine, [question(n, weights) for n in range(40)])
    before = programs.read._cache_size(), programs.go_on._cache_size()
    ask_all(engine, [question(n + 100, weights) for n in range(80)])
    assert (programs.read._cache_size(), programs.go_on._cache_size()) == before


def test_a_row_is_free_again_soon_after_its_owner_leaves(engine, weights):
    answer = Answer()
    ticket = engine.ask(Question(weights, (1,), 10**6, Taste(1.0), None), answer)
    while len(answer.tokens) < 3:
        pass
    ticket.cancel()
    assert answer.wait()[2] == "cancelled" and engine.under_way == 0


def test_time_is_limited_in_the_row_and_in_the_queue(weights):
    engine = Engine(CONFIG, rows=8, queue=9)
    engine.start(weights)
    slow = [Answer() for _ in range(8)]
    for answer in slow:
        engine.ask(Question(weights, (1,), 10**6, Taste(1.0), None, deadline=time.monotonic() + 0.5), answer)
    waits = Answer()
    engine.ask(Question(weights, (1,), 1, Taste(1.0), None, deadline=time.monotonic() + 0.1), waits)
    assert waits.wait()[1:] == ([], "time")
    assert {answer.wait()[2] for answer in slow} == {"time"}
    engine.stop()


def test_a_full_queue_says_when_to_come_again(weights):
    engine = Engine(CONFIG, rows=8, queue=2)
    engine.start(weights)
    tickets, refused = [], None
    for _ in range(8 + 2 + 8):
        try:
            tickets.append(engine.ask(Question(weights, (1,), 10**6, Taste(1.0), None), Answer()))
        except Busy as busy:
            refused = busy
    assert refused is not None and refused.seconds >= 0
    engine.stop()
    with pytest.raises(Busy):
        engine.ask(Question(weights, (1,), 1, Taste(1.0), None), Answer())


def test_what_cannot_be_asked(engine, weights):
    with pytest.raises(BadInput, match="at least one"):
        engine.ask(Question(weights, (), 1, Taste(), None), Answer())
    with pytest.raises(BadInput, match="context of 64"):
        engine.ask(Question(weights, (1,) * 65, 1, Taste(), None, 1, echo=True), Answer())


def test_choices_by_seed_and_place():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    drawn = [choose(logits, Taste(1.0, 1.0, 7), place) for place in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = {choose(logits, Taste(1.0, 0.75, 7), place) for place in range(400)}
    assert nucleus == {0, 1}
    assert {choose(logits, Taste(0.0), place) for place in range(4)} == {0}
    assert {choose(logits, Taste(1.0, 1e-9), place) for place in range(50)} == {0}
    neighbours = [[choose(logits, Taste(1.0, 1.0, 2**64 - seed), place) for place in range(20)] for seed in (1, 2, 3)]
    assert len(set(map(tuple, neighbours))) == 3
    found = score(logits, 2, 2)
    assert found.top[0][0] == 0 and abs(found.logprob - np.log(0.15)) < 1e-6


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
    growing = Growing(Letters(), stops)
    shown = [growing.push(token) for token in tokens] + [growing.finish()]
    assert shown == pieces and growing.stopped is stopped
