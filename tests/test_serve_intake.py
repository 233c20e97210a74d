"""The memory of recent prompts, and the records of requests that taught something."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import texts
from ontogeny.lm.tokenizer import ByteTokenizer, CharacterTokenizer, train_tokenizer
from ontogeny.server.learning import prompts, repeats
from ontogeny.server.learning.prompts import RecentPrompts, find_new_part
from ontogeny.server.request_identity import IdempotencyKeyReused, RequestIdentity
from ontogeny.server.store import Store

TOKENIZERS = (
    ByteTokenizer(),
    CharacterTokenizer("".join(sorted({*texts.read_training(), *"aé日本 .'"}))),
    train_tokenizer("bpe", 400, [texts.read_training()]),
)
WORDS = st.text(st.sampled_from("aé日本 .'\n"), max_size=40)


@given(st.sampled_from(TOKENIZERS), WORDS, WORDS)
def test_the_new_part_of_a_prompt_begins_with_a_token_and_with_a_word(tokenizer, beginning, rest):
    new_part = find_new_part(beginning + rest, len(beginning), tokenizer)
    if not rest:
        assert new_part == ""
        return
    assert (beginning + rest).endswith(new_part) and len(new_part) >= len(rest)
    learned_before = (beginning + rest)[: len(beginning + rest) - len(new_part)]
    assert not (learned_before and learned_before[-1].isalpha() and new_part[0].isalpha())
    ends, num_bytes = {0}, 0
    for token in tokenizer.encode(beginning + rest):
        num_bytes += len(tokenizer.bytes_of(int(token)))
        ends.add(num_bytes)
    assert len(learned_before.encode()) in ends


def test_a_character_of_several_code_points_is_not_divided():
    for text in ("The family 👨\u200d👩\u200d👧 left.", "A wave 👋🏽 at sea.", "Cafe\u0301 au lait."):
        for num_known in range(1, len(text)):
            new_part = find_new_part(text, num_known, ByteTokenizer())
            assert len(new_part) >= len(text) - num_known
            assert new_part[0] not in "\u200d\u0301🏽" and not new_part.startswith(("👩", "👧"))


def test_the_memory_of_prompts_is_bounded():
    recent = RecentPrompts()
    for number in range(3 * prompts.MAX_PROMPTS):
        recent.add("a", "story", f"Prompt {number:04d}", number, number)
    assert recent.find_beginning("a", "story", "Prompt 0000 grows") is None
    last = recent.find_beginning("a", "story", f"Prompt {3 * prompts.MAX_PROMPTS - 1:04d} grows")
    assert last is not None and last.last_example == 3 * prompts.MAX_PROMPTS - 1
    for number in range(prompts.MAX_OWNERS):
        recent.add(f"key {number}", "story", "Prompt", 1, 1)
    assert recent.find_beginning("a", "story", f"Prompt {3 * prompts.MAX_PROMPTS - 1:04d} grows") is None


def test_an_idempotency_key_that_another_process_has_recorded_meanwhile_is_refused(tmp_path):
    with Store(tmp_path / "state") as store:
        with store.transaction():
            repeats.add_record(store, "a", RequestIdentity("x", "k", 0, 0.0), 1)
        with pytest.raises(IdempotencyKeyReused), store.transaction():
            repeats.add_record(store, "a", RequestIdentity("y", "k", 0, 0.0), 2)
        assert store.select_values("SELECT example FROM learned_requests") == [1]


def test_records_of_requests_expire_and_are_bounded(tmp_path, monkeypatch):
    store, current_time = Store(tmp_path / "state"), [1e9]
    monkeypatch.setattr(repeats.time, "time", lambda: current_time[0])
    monkeypatch.setattr(repeats, "MAX_RECORDS", 50)

    def identity(digest, idempotency_key=None, num_retries=0):
        return RequestIdentity(digest, idempotency_key, num_retries, current_time[0])

    def add(request, example):
        with store.transaction():
            repeats.add_record(store, "a", request, example)

    def find(*arguments):
        record = repeats.find_record(store, "a", identity(*arguments))
        return None if record is None else record.example

    add(identity("x"), 1)
    add(identity("y", "k"), 2)
    assert find("x", None, 1) == 1 and find("x") is None and find("y", "k") == 2
    assert repeats.find_record(store, "b", identity("x", None, 1)) is None  # of another key
    with pytest.raises(IdempotencyKeyReused):
        find("x", "k")
    early = identity("z")
    current_time[0] += 5
    add(identity("z", None, 1), 3)  # a retry that overtook its first attempt
    record = repeats.find_record(store, "a", early)
    assert record is not None and record.example == 3 and find("z", None, 0) == 3
    current_time[0] += 1
    assert find("z", None, 0) is None
    current_time[0] += repeats.RETRY_WINDOW
    assert find("x", None, 1) is None and find("y", "k") == 2
    current_time[0] += repeats.IDEMPOTENCY_KEY_WINDOW
    assert find("x", "k") is None
    with store.transaction():  # a request of any key removes the expired records of all keys
        repeats.add_record(store, "b", identity("first"), 4)
    assert store.select_values("SELECT example FROM learned_requests") == [4]
    current_time[0] += repeats.RETRY_WINDOW
    for number in range(120):
        add(identity("n", f"key {number}"), number)
    assert store.select_values("SELECT example FROM learned_requests") == list(range(70, 120))
    store.close()
