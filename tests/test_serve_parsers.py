"""Whatever bytes or JSON come, they are read, or refused as input that cannot be used; nothing else goes wrong."""

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm import online_learner as plans
from ontogeny.server.api import protocol
from ontogeny.server.api.errors import told
from ontogeny.server.learning import learner
from ontogeny.server.learning.branches import BranchManager, Settings
from ontogeny.server.sessions.texts import TextSessions
from ontogeny.server.store import Store
from serving import load, shared_run

pytestmark = pytest.mark.computes

FIELDS = ["format", "kind", "base", "weights", "steps", "digest", "learner", "version", "tokens", "keys.0"]
ODD = ["", "0", "-1", "1_000", "\u0661", "9" * 30, str(2**63 - 1), "nan", "1.5", "\ud800", "x" * 100]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    model = load(shared_run(tmp_path_factory))
    made = TextSessions("story", model, Store(tmp_path_factory.mktemp("texts")))
    yield made, model
    made.stop()


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    how = learner.build(load(shared_run(tmp_path_factory)))
    return BranchManager(Store(tmp_path_factory.mktemp("lines")), "story", how, settings=Settings(bound=5.0))


@st.composite
def damage(draw):
    """A change of a file: bytes cut off, bytes changed, or its header said otherwise."""
    kinds = st.sampled_from(["cut", "bytes", "about", "array", "junk"])
    parts = kinds, st.integers(0, 10**6), st.sampled_from(FIELDS), st.sampled_from(ODD), st.binary(max_size=40)
    return tuple(map(draw, parts))


def damaged(data, change):
    kind, at, field, value, junk = change
    if kind == "cut":
        return data[: at % (len(data) + 1)]
    if kind == "bytes":
        at %= len(data)
        return data[:at] + junk + data[at + len(junk) :]
    if kind == "junk":
        return junk
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if kind == "about":
        header["__metadata__"][field] = value
    else:
        name = sorted(set(header) - {"__metadata__"})[at % (len(header) - 1)]
        header[name] |= [{"dtype": "F64"}, {"shape": [at]}, {"shape": []}, {"data_offsets": [0, at]}][at % 4]
    head = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


@given(damage())
def test_a_damaged_state_of_a_text_is_refused_or_can_be_gone_on_from(texts, change):
    sessions, model = texts
    id = sessions.create("anna", sessions.base).id
    sessions.go_on("anna", id, model.weights, sessions.base, [65, 66], 2, SamplingParams(0.0), math.inf)
    with contextlib.suppress(BadInput):
        sessions.restore("anna", id, damaged(sessions.export("anna", id), change), sessions.base)
    assert len(sessions.go_on("anna", id, model.weights, sessions.base, [67], 2, SamplingParams(0.0), math.inf).tokens) <= 2
    sessions.drop("anna", id)


@given(damage())
def test_a_damaged_state_of_a_line_is_refused_or_answers(lines, change):
    data = lines.export("anna")
    with contextlib.suppress(BadInput):
        lines.restore("anna", damaged(data, change), "test")
    assert all(np.isfinite(leaf).all() for leaf in lines.current("anna").whole.embedding[:1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
MODELS = [
    protocol.CompletionRequest,
    protocol.ChatRequest,
    protocol.GoOn,
    protocol.Seen,
    protocol.GoBack,
    protocol.ToText,
]


@given(st.sampled_from(MODELS), st.data())
def test_requests_are_understood_or_refused(model, data):
    body = {name: data.draw(JSON) for name in model.model_fields if data.draw(st.booleans())}
    try:
        made = model.model_validate(body)
    except ValidationError as error:
        found = [one | {"loc": ("body", *one["loc"])} for one in error.errors()]  # as FastAPI has it
        where, message = told(found)
        assert where and message
    else:
        if isinstance(made, protocol.Generation):
            assert all(made.stops) or made.stop is None or made.stop == []
        if isinstance(made, protocol.CompletionRequest):
            assert isinstance(made.prompts, list)
        if isinstance(made, protocol.ChatRequest):
            assert protocol.chat_prompt(made.messages).endswith("Assistant:")


SETTINGS = ["block=8", "adapter=2", "decay=nan", "x=1", "block=-1", "="]


@given(st.text(max_size=30) | st.lists(st.sampled_from(SETTINGS)).map(",".join))
def test_how_weights_change_is_understood_or_refused(text):
    try:
        plans.parse_config(text)
    except BadInput as error:
        assert "\n" not in str(error)
