"""Errors while an answer is generated: an error of the response, never an answer that looks like a cut one."""

import shutil
from pathlib import Path

import openai
import pytest

from ontogeny.server import keys
from ontogeny.server.store import Store
from serving import ServerProcess

GOLDEN = Path(__file__).parent / "golden" / "llama2"
# The server with two errors: in the text of the third token of an answer, and in the draw of tokens of the seed 13.
PLANTED = """
from ontogeny.cli import main
from ontogeny.engine import engine
from ontogeny.engine.text_stream import TextStream

push, prepare_draw, num_tokens = TextStream.push, engine._prepare_draw, {}

def broken_push(stream, *tokens):
    num_tokens[stream] = num_tokens.get(stream, 0) + 1
    if num_tokens[stream] == 3:
        raise IndexError("planted")
    return push(stream, *tokens)

def broken_draw(sequence, logits):
    if sequence.request.sampling_params.seed == 13:
        raise ZeroDivisionError("planted")
    return prepare_draw(sequence, logits)

TextStream.push, engine._prepare_draw = broken_push, broken_draw
main()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("errors") / "state"
    folder = shutil.copytree(GOLDEN, state_dir.with_name("model"))
    store = Store(state_dir)
    key = keys.create_key(store, "anna")[1]
    store.close()
    with ServerProcess(state_dir, "--alias", f"model={folder}", program=("-c", PLANTED)) as process:
        yield process, key


@pytest.mark.parametrize(("max_tokens", "seed"), [(2, 13), (3, 1), (40, 1)])
def test_an_error_in_generation_is_an_error_of_the_response(server, max_tokens, seed):
    process, key = server
    body = {"model": "model", "prompt": "The", "max_tokens": max_tokens, "seed": seed, "min_tokens": max_tokens}
    status, response = process.post("/v1/completions", body, key)
    assert status == 500 and "an error occurred while the answer was generated" in response["error"]["message"]
    assert "planted" in process.log.read_text() and "planted" not in response["error"]["message"]
    assert process.post("/v1/completions", body | {"max_tokens": 2, "min_tokens": 2, "seed": 1}, key)[0] == 200


@pytest.mark.parametrize("seed", [1, 13])
def test_an_error_in_generation_ends_a_stream_with_an_error(server, seed):
    process, key = server
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        reasons = []
        with pytest.raises(openai.APIError, match="an error occurred while the answer was generated"):
            stream = client.completions.create(
                model="model", prompt="The", max_tokens=9, seed=seed, stream=True, extra_body={"min_tokens": 9}
            )
            reasons += [chunk.choices[0].finish_reason for chunk in stream]
        assert not any(reasons)


def test_an_error_in_generation_leaves_a_text_session_as_it_is(server):
    process, key = server
    path = "/v1/models/model/sessions"
    status, session = process.post(path, None, key)
    assert status == 200
    body = {"prompt": "The", "max_tokens": 4, "seed": 13}
    assert process.post(f"{path}/{session['id']}/completions", body, key)[0] == 500
    assert process.get(f"{path}/{session['id']}", key)[1]["num_steps"] == 0
    assert process.post(f"{path}/{session['id']}/completions", body | {"seed": 1}, key)[0] == 200
