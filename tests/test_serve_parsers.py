"""Fuzzed state files, request bodies and settings are accepted or rejected as bad input, without any other error."""

import asyncio
import contextlib
import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ontogeny.engine.engine import Engine
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm import online_learner
from ontogeny.server.api import chat, protocol
from ontogeny.server.api.validation_messages import MESSAGES, describe_validation_errors
from ontogeny.server.learning import learner
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.sessions.texts import Continuation, TextSessions
from ontogeny.server.store import Store
from serving import load, shared_run

pytestmark = pytest.mark.computes

METADATA = ["format", "kind", "trained_digest", "weights_digest", "num_steps", "digest", "learner_digest", "version"]
ODD_VALUES = ["", "0", "-1", "1_000", "\u0661", "9" * 30, str(2**63 - 1), "nan", "1.5", "\ud800", "x" * 100]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    model = load(shared_run(tmp_path_factory))
    engine = Engine(model.config)
    engine.start(model.weights)
    sessions = TextSessions("story", model, engine, Store(tmp_path_factory.mktemp("texts")))
    yield sessions
    sessions.stop()
    engine.stop()


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    branch_learner = learner.build(load(shared_run(tmp_path_factory)), online_learner.OnlineConfig())
    store = Store(tmp_path_factory.mktemp("branches"))
    return BranchManager(store, "story", branch_learner, config=BranchConfig(max_forgetting=5.0))


@st.composite
def damages(draw):
    """A change of a state file: missing or changed bytes, or another value in its header."""
    kinds = st.sampled_from(["truncated", "bytes", "metadata", "array", "junk"])
    parts = kinds, st.integers(0, 10**6), st.sampled_from(METADATA), st.sampled_from(ODD_VALUES), st.binary(max_size=40)
    return tuple(map(draw, parts))


def apply_damage(data, damage):
    kind, position, field, value, junk = damage
    if kind == "truncated":
        return data[: position % (len(data) + 1)]
    if kind == "bytes":
        position %= len(data)
        return data[:position] + junk + data[position + len(junk) :]
    if kind == "junk":
        return junk
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if kind == "metadata":
        header["__metadata__"][field] = value
    else:
        name = sorted(set(header) - {"__metadata__"})[position % (len(header) - 1)]
        changes = [{"dtype": "F64"}, {"shape": [position]}, {"shape": []}, {"data_offsets": [0, position]}]
        header[name] |= changes[position % 4]
    encoded = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + size :]


@given(damages())
def test_a_damaged_state_of_a_text_is_rejected_or_can_be_continued(sessions, damage):
    weights, digest = sessions._model.weights, sessions.trained_digest
    continuation = Continuation(weights, digest, 0, [65, 66], 2, SamplingParams(0.0), math.inf)
    id = sessions.create("anna", digest).id
    asyncio.run(sessions.complete("anna", id, continuation))
    with contextlib.suppress(BadInput):
        sessions.restore("anna", id, apply_damage(sessions.export("anna", id), damage), digest, 0)
    assert len(asyncio.run(sessions.complete("anna", id, continuation)).tokens) <= 2
    sessions.delete("anna", id)


@given(damages())
def test_a_damaged_state_of_a_branch_is_rejected_or_can_answer(branches, damage):
    state = branches.export("anna")
    with contextlib.suppress(BadInput):
        branches.restore("anna", apply_damage(state, damage), "test")
    assert all(np.isfinite(leaf).all() for leaf in branches.current("anna").full_weights.embedding[:1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
MODELS = [
    member
    for _, member in inspect.getmembers(protocol, inspect.isclass)
    if issubclass(member, BaseModel) and member.__module__ == protocol.__name__ and member.model_fields
]
SCALARS = [None, True, -1, 2**64, 10**4000, 1.5, 1e300, math.nan, math.inf, "", "a", "1", "\ud800", "a" * 1001]
INVALID_VALUES = [
    *SCALARS,
    *([scalar] for scalar in SCALARS),
    *([scalar] * 1001 for scalar in ("a", 1, None)),
    *({"role": "user", "content": scalar} for scalar in SCALARS),
    [],
    [[]],
    [[-1]],
    [{}],
    [{"role": "x"}],
    [{"role": "user", "content": [{"type": "x"}]}],
    [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
    {},
    {"a": "b"},
    {"a": math.nan},
    {"\ud800": 1},
    {str(number): 1 for number in range(2000)},
]
LIBRARY_WORDS = ("Input should", "Value should", "String should", "List should", "Field required", "Value error")


def find_errors(model, body, *, as_json=False):
    """The errors of a body, read as Python objects or as JSON, in the form of FastAPI; none if the body is valid."""
    try:
        model.model_validate_json(json.dumps(body)) if as_json else model.model_validate(body)
    except ValidationError as error:
        return [details | {"loc": ("body", *details["loc"])} for details in error.errors(include_input=False)]
    return []


@pytest.mark.parametrize("model", MODELS)
def test_every_error_of_the_validation_library_has_a_sentence_of_the_server(model):
    for body in [*SCALARS, [], {}, *({name: value} for name in model.model_fields for value in INVALID_VALUES)]:
        errors = [*find_errors(model, body), *find_errors(model, body, as_json=True)]
        assert {details["type"] for details in errors} <= MESSAGES.keys()
        for details in errors:
            field, message = describe_validation_errors([details])
            assert message and not any(words in message for words in LIBRARY_WORDS) and "_length}" not in message
            assert field or details["loc"] == ("body",) or details["type"] == "value_error"


@given(st.sampled_from(MODELS), st.data())
def test_request_bodies_are_accepted_or_rejected(model, data):
    names = data.draw(st.lists(st.sampled_from(list(model.model_fields)), max_size=6, unique=True))
    body = {name: data.draw(JSON) for name in names}
    if errors := find_errors(model, body):
        field, message = describe_validation_errors(errors)
        assert field and message and {details["type"] for details in errors} <= MESSAGES.keys()
    else:
        request = model.model_validate(body)
        if isinstance(request, protocol.CompletionFields):
            assert all(request.stops) or request.stop is None or request.stop == []
        if isinstance(request, protocol.CompletionRequest):
            assert isinstance(request.prompts, list)
        if isinstance(request, protocol.ChatRequest):
            assert chat.plain_prompt(request.messages).endswith("Assistant:")


@pytest.mark.parametrize(
    ("model", "body", "hint"),
    [
        (protocol.ForkRequest, {"to": "x"}, "`to` was renamed `target_key`."),
        (protocol.RollbackRequest, {"owner": "x"}, "`owner` was renamed `owner_key`."),
    ],
)
def test_an_old_field_is_rejected_with_its_new_name(model, body, hint):
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    assert error.value.errors()[0]["msg"].endswith(hint)


@pytest.mark.parametrize(
    ("model", "body", "field"),
    [
        (protocol.RollbackRequest, {"versoin": 3}, "versoin"),  # would restore version 0
        (protocol.ForkRequest, {"target_key": "a", "owner": "b"}, "owner_key"),
        (protocol.ExampleRequest, {"text": "a", "learn": False}, "learn"),
        (protocol.FeedbackRequest, {"rewrad": 1.0}, "rewrad"),
    ],
)
def test_a_misspelled_field_of_a_route_of_ontogeny_is_rejected(model, body, field):
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    assert field in str(error.value)


SETTINGS = ["chunk_size=8", "adapter_rank=2", "decay=nan", "x=1", "chunk_size=-1", "="]


@given(st.text(max_size=30) | st.lists(st.sampled_from(SETTINGS)).map(",".join))
def test_settings_of_online_learning_are_accepted_or_rejected(text):
    try:
        online_learner.parse_config(text)
    except BadInput as error:
        assert "\n" not in str(error)
