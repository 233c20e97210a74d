"""Constrained decoding: whatever the logits are, a complete answer is a JSON value of its schema."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.engine.grammar import compile_json_schema
from ontogeny.engine.sampling import ConstraintFailure, SamplingParams, adjust_logits, make_adjustments, sample_token
from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import (
    ByteTokenizer,
    CharacterTokenizer,
    SpecialTokens,
    decode,
    parse_tokenizer,
    read_tokenizer,
    train_tokenizer,
)

TOKENIZERS = [
    ByteTokenizer(),
    train_tokenizer("bpe", 300, ['{"name": "anna", "age": 31, "tags": ["true", "a é語"]}'] * 9),
    # It writes a space before a text.
    read_tokenizer(Path(__file__).parent / "golden" / "llama2", SpecialTokens("<s>", "</s>")),
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["true", "a"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def generate(adjustments, tokenizer, seed, max_tokens=300):
    """An answer from random logits, with or without its end token."""
    draws, generated = np.random.default_rng(seed), []
    while len(generated) < max_tokens and tokenizer.end not in generated:
        logits = draws.normal(0, 3, tokenizer.size + 5).astype(np.float32)  # a vocabulary may have spare logits
        adjusted = adjust_logits(logits, adjustments, generated, [tokenizer.end])
        generated.append(sample_token(adjusted, SamplingParams(seed=seed), len(generated)))
    return generated


@given(st.sampled_from(TOKENIZERS), st.integers(0, 1000))
def test_an_answer_from_any_logits_has_its_schema(tokenizer, seed):
    constraint = compile_json_schema(SCHEMA, tokenizer)
    forbidden = {ord("{"): -100.0, tokenizer.end: -100.0}  # a bias cannot make an answer violate its schema
    adjustments = make_adjustments(constraint=constraint, logit_bias=forbidden, min_tokens=90)
    answer = generate(adjustments.for_another_answer(), tokenizer, seed)
    assert answer[-1] == tokenizer.end
    value = json.loads(decode(tokenizer, answer))
    assert set(value) == {"name", "age", "tags"} and len(value["name"]) <= 4
    assert type(value["age"]) is int and 10 <= value["age"] <= 99
    assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"true", "a"}
    assert generate(adjustments.for_another_answer(), tokenizer, seed) == answer  # no state of another answer


def test_a_tokenizer_that_normalizes_text_writes_words_that_are_not_normalized():
    settings = json.loads(TOKENIZERS[1].as_json()) | {"normalizer": {"type": "NFC"}}
    tokenizer = parse_tokenizer(json.dumps(settings))
    adjustments = make_adjustments(constraint=compile_json_schema({"enum": ["cafe\u0301 x", "e\u0301"]}, tokenizer))
    assert adjustments is not None
    for seed in range(4):
        answer = decode(tokenizer, generate(adjustments.for_another_answer(), tokenizer, seed))
        assert json.loads(answer) in ("cafe\u0301 x", "e\u0301")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nothing"}, "the schema cannot be used: Invalid type: nothing"),
        ({"$ref": "http://example.org/schema"}, "the schema cannot be used: Resource"),
        ({"type": "string", "pattern": "(?=a)b"}, "the schema cannot be used: regex parse error"),
    ],
    ids=["type", "reference", "pattern"],
)
def test_a_schema_that_cannot_be_used_is_rejected(schema, message):
    with pytest.raises(BadInput, match=message) as rejected:
        compile_json_schema(schema, TOKENIZERS[0])
    assert "\n" not in str(rejected.value)


def test_a_schema_that_proves_too_complex_has_no_next_token():
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2100)}}
    constraint = compile_json_schema(schema, TOKENIZERS[0])
    with pytest.raises(ConstraintFailure):
        constraint.find_allowed_tokens([ord("{")])


def test_a_schema_that_is_nested_too_deeply_is_rejected():
    schema = {"type": "string"}
    for _ in range(900):
        schema = {"type": "array", "items": schema}
    with pytest.raises(BadInput, match="nested too deeply"):
        compile_json_schema(schema, TOKENIZERS[0])


def test_a_tokenizer_that_cannot_write_json_is_rejected():
    with pytest.raises(BadInput, match="no token for the character"):
        compile_json_schema({}, CharacterTokenizer("abc"))
