"""A frozen server on loopback: unmodified clients, bitwise reproducibility, hostile clients, unchanged weights."""

import asyncio
import json
import math
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import openai
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from openai import types
from openai.types import chat, completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ValidationError

import texts
from ontogeny.lm import evaluation
from ontogeny.renamed import TABLES
from ontogeny.server import keys
from ontogeny.server.api import protocol
from ontogeny.server.api.error_handlers import add_error_handlers
from ontogeny.server.api.request_limits import RequestLimits
from ontogeny.server.api.unsupported import IGNORED, DefaultOnly
from ontogeny.server.store import Store
from serving import ROOT, ServerProcess, load, shared_run, wait_until

pytestmark = [
    pytest.mark.computes,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("http") / "state"


@pytest.fixture(scope="module")
def key(state_dir):
    store = Store(state_dir)
    text = keys.create_key(store, "anna", admin=True)[1]
    store.close()
    return text


@pytest.fixture(scope="module")
def server(run, state_dir, key):
    aliases = ("--alias", f"story={run}", "--alias", f"gpt-4o-mini={run}")
    limits = ("--log-level", "info", "--weight-check-interval", "1", "--max-body-bytes", "300000", "--time-limit", "60")
    with ServerProcess(state_dir, *aliases, *limits) as server:
        yield server
        log = server.log.read_text()
        assert "Traceback" not in log and "secret prompt" not in log and "og-" not in log
        assert server.stop() in (0, -15)


@pytest.fixture
def client(server, key):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


# --- unmodified clients


def test_the_openai_client_completes(client):
    assert [model.id for model in client.models.list()] == ["story", "gpt-4o-mini"]
    response = client.completions.create(
        model="gpt-4o-mini", prompt="The agent", max_tokens=12, n=3, seed=7, temperature=0.8, top_p=0.9, logprobs=2
    )
    assert len(response.choices) == 3
    assert response.usage.completion_tokens == 36 and response.usage.prompt_tokens == 9
    assert [choice.finish_reason for choice in response.choices] == ["length"] * 3
    assert "".join(response.choices[0].logprobs.tokens) == response.choices[0].text
    unseeded = client.completions.create(model="story", prompt="The agent", max_tokens=40, n=3)
    assert len({choice.text for choice in unseeded.choices}) == 3
    greedy = client.completions.create(model="story", prompt="The agent", max_tokens=12, temperature=0)
    text = greedy.choices[0].text
    stopped = client.completions.create(model="story", prompt="The agent", max_tokens=12, temperature=0, stop=text[3:5])
    assert stopped.choices[0].text == text[: text.find(text[3:5])] and stopped.choices[0].finish_reason == "stop"


def test_the_example_of_the_readme_runs(server, key, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n((?:(?!```).)*from openai import.*?)```", readme, re.DOTALL)
    assert examples
    for code in examples:
        exec(code.replace("http://127.0.0.1:8000", server.url).replace('"none"', repr(key)), {})
        assert len(capsys.readouterr().out) > 10


def test_the_openai_client_streams_the_same_text(client):
    body = dict(model="story", prompt="An environment is", max_tokens=30, seed=3, n=2)
    response = client.completions.create(**body)
    texts, reasons, usage = ["", ""], [None, None], None
    for part in client.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in response.choices] and reasons == ["length", "length"]
    assert usage == response.usage


def test_the_openai_client_chats(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    body = dict(model="story", messages=messages, max_completion_tokens=10, seed=1, logprobs=True, top_logprobs=2)
    response = client.chat.completions.create(**body, user="somebody", store=False, metadata={"a": "b"})
    assert response.choices[0].message.role == "assistant" and response.usage.completion_tokens <= 10
    assert all(len(token.top_logprobs) == 2 for token in response.choices[0].logprobs.content)
    parts = list(client.chat.completions.create(**body, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts) == response.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == response.choices[0].finish_reason


def test_the_openai_client_recognizes_errors(server, client, key):
    with pytest.raises(openai.NotFoundError) as unknown_model:
        client.completions.create(model="nobody", prompt="a")
    assert unknown_model.value.code == "model_not_found" and unknown_model.value.param == "model"
    with pytest.raises(openai.BadRequestError) as invalid:
        client.completions.create(model="story", prompt="a", temperature=3)
    assert invalid.value.param == "temperature" and invalid.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="story", prompt="a" * 66, max_tokens=0, echo=True, logprobs=1)
    assert too_long.value.code == "context_length_exceeded"
    for invalid_key in ("wrong", key[:-1] + ("a" if key[-1] != "a" else "b"), f"og-00000000-{key[12:]}"):
        stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key=invalid_key, max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError) as rejected:
            stranger.models.list()
        assert rejected.value.code == "invalid_api_key"


def test_scoring_requests_of_lm_eval(server, key):
    """The requests that lm_eval 0.4.13 sends for `local-completions`, and the fields that it reads."""
    text = "Every contract is tested bit for bit."
    batch = [list(text.encode())[:n] for n in (12, 20, 37)]
    body = {
        "model": "story",
        "prompt": batch,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    status, response = server.post("/v1/completions", body, key)
    assert status == 200 and [choice["index"] for choice in response["choices"]] == [0, 1, 2]
    for tokens, choice in zip(batch, response["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(tokens) + 1
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for chosen, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert chosen <= max(top.values()) < 0
        assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())  # the generated one, greedy
    short, longer = (response["choices"][i]["logprobs"]["token_logprobs"][1:12] for i in (0, 2))
    assert short == longer


def test_scores_over_http_are_those_of_the_evaluation_in_process(server, key, run):
    """Windows of the context and the token after it, each of which scores a whole context of tokens."""
    model, text = load(run), texts.read(texts.HELD_OUT)
    assert model.tokenizer.end is not None
    tokens = [model.tokenizer.end, *model.tokenizer.encode(text).tolist()][: 3 * 64 + 1]
    windows = [tokens[start : start + 65] for start in range(0, 3 * 64, 64)]
    body = {"model": "story", "prompt": windows, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    status, response = server.post("/v1/completions", body, key)
    assert status == 200
    scores = [score for choice in response["choices"] for score in choice["logprobs"]["token_logprobs"][1:65]]
    expected = evaluation.token_losses(model, tokens, stride=64)
    assert len(scores) == 3 * 64 and np.abs(np.array(scores) + expected).max() < 2e-5


def test_rolling_perplexity_of_lm_eval_over_the_server_is_that_in_process(server, key, run, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: `make parity` brings it")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from ontogeny.engine.harness import HarnessModel

    client = LocalCompletionsAPI(
        model="story",
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="remote",
        max_length=66,  # the context, the token after it, and the one that lm_eval sets aside
        auth_token=key,
    )
    requests = [
        Instance("loglikelihood_rolling", {}, (texts.read(texts.HELD_OUT)[:length],), 0) for length in (40, 64, 65, 150)
    ]
    expected = HarnessModel(run).loglikelihood_rolling(requests)
    np.testing.assert_allclose(client.loglikelihood_rolling(requests), expected, rtol=1e-5)


def test_lm_eval_runs_on_the_server(server, key, run, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: `make parity` brings it")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    rows = [{"question": q, "choices": ["an agent", "zqx"], "answer": 0} for q in ("What acts is", "What learns is")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        f"task: local_mc\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    from lm_eval.tasks import TaskManager

    evaluation = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=f"model=story,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length=64,"
        f"auth_token={key}",  # its remote tokenizer does not read OPENAI_API_KEY
        tasks=["local_mc"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert evaluation["results"]["local_mc"]["acc,none"] == 1.0


# --- the OpenAI API, field by field


def _stream_choices(client, **body):
    """Joins the parts of a streamed completion: by choice, its text, log-probabilities and finish reason."""
    choices = {}
    for part in client.completions.create(**body, stream=True):
        for choice in part.choices:
            text, logprobs, _ = choices.setdefault(choice.index, ["", {}, None])
            for name, values in (choice.logprobs.to_dict() if choice.logprobs else {}).items():
                logprobs.setdefault(name, []).extend(values)
            choices[choice.index] = [text + choice.text, logprobs, choice.finish_reason]
    return choices


TEXT = "日本語🐕 ok\u2028\x85"


@pytest.mark.parametrize("settings", [{}, {"echo": True}, {"stop": ["e", "  "]}, {"echo": True, "stop": "a"}], ids=str)
def test_text_offsets_are_positions_in_prompt_and_completion(client, settings):
    bytes_of_a_character = {"logit_bias": {str(byte): 30 for byte in "語".encode()}}  # and broken ones
    texts, numbers = [TEXT, "", "The agent"], [list(TEXT.encode())[:4]]
    for prompts, bias in ((texts, {}), (numbers, {}), (texts, bytes_of_a_character)):
        body = dict(model="story", prompt=prompts, max_tokens=20, seed=3, n=2, logprobs=1) | settings | bias
        response = client.completions.create(**body)
        streamed = _stream_choices(client, **body)
        for choice in response.choices:
            prompt = prompts[choice.index // 2]
            text = prompt if isinstance(prompt, str) else bytes(prompt).decode(errors="replace")
            full_text = choice.text if "echo" in settings else text + choice.text
            tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
            assert full_text.startswith(text) and offsets == sorted(offsets) and len(offsets) == len(tokens)
            assert offsets[0] == (0 if "echo" in settings else len(text)) and offsets[-1] <= len(full_text)
            for token, offset in zip(tokens, offsets, strict=True):
                is_text = not token.startswith(("bytes:", "token:")) and offset < len(full_text)
                assert not is_text or full_text[offset] == token
            assert streamed[choice.index] == [choice.text, choice.logprobs.to_dict(), choice.finish_reason]


def test_the_parts_of_a_character_have_its_position_when_it_is_echoed(client):
    response = client.completions.create(model="story", prompt="日🐕!", max_tokens=0, echo=True, logprobs=0)
    assert response.choices[0].logprobs.text_offset == [0, 0, 0, 1, 1, 1, 1, 2]


def test_zero_logprobs_give_the_chosen_token_alone(client):
    body = dict(model="story", prompt="The agent", max_tokens=5, seed=1)
    chosen = client.completions.create(**body, logprobs=0).choices[0].logprobs
    assert chosen.token_logprobs == client.completions.create(**body, logprobs=3).choices[0].logprobs.token_logprobs
    pairs = zip(chosen.tokens, chosen.token_logprobs, strict=True)
    assert chosen.top_logprobs == [{token: logprob} for token, logprob in pairs]
    echoed = client.completions.create(**body, logprobs=0, echo=True).choices[0].logprobs
    assert echoed.token_logprobs[0] is None and echoed.top_logprobs[0] is None and len(echoed.tokens) == 14
    assert [list(top.values()) for top in echoed.top_logprobs[1:]] == [[value] for value in echoed.token_logprobs[1:]]


def test_top_p_of_zero_is_greedy(client):
    body = dict(model="story", prompt="The agent", max_tokens=12, seed=1)
    greedy = client.completions.create(**body, temperature=0).choices[0].text
    assert client.completions.create(**body, top_p=0).choices[0].text == greedy


def test_line_separators_are_escaped_in_events(server, key):
    separators = "\u2028\u2029\x85"
    body = {"model": "story", "prompt": separators, "max_tokens": 2, "echo": True, "stream": True, "logprobs": 2}
    status, content = server.post("/v1/completions", body, key)
    assert status == 200 and content.decode().splitlines() == content.decode().split("\n")[:-1]
    parts = [json.loads(line.removeprefix("data: ")) for line in content.decode().splitlines() if "{" in line]
    assert "".join(part["choices"][0]["text"] for part in parts).startswith(separators)


def test_the_seeds_of_choices_are_hashed(client):
    """Choice k of seed s differs from choice 0 of seed s + k; prompts of one request are answered as if alone."""
    body = dict(model="story", max_tokens=20, n=3)
    texts = [[c.text for c in client.completions.create(**body, prompt="It", seed=s).choices] for s in range(4)]
    assert len({text for choices in texts for text in choices}) == 12
    pair = [choice.text for choice in client.completions.create(**body, prompt=["It", "It"], seed=0).choices]
    assert pair == texts[0] * 2
    unseeded = client.completions.create(model="story", max_tokens=20, prompt=["It"] * 4)
    assert len({choice.text for choice in unseeded.choices}) == 4


WIRE_TYPES = {
    "text_completion": types.Completion,
    "chat.completion": chat.ChatCompletion,
    "chat.completion.chunk": chat.ChatCompletionChunk,
    "model": types.Model,
    "error": ErrorObject,
}


def _check_wire_type(kind, content, is_chunk=False, has_echo=False):
    """Validates an object with the types of the openai package: strictly, and without fields that they do not have."""
    try:
        parsed = WIRE_TYPES[kind].model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        # The types know neither the parts of a stream of completions nor the first token of an echoed prompt.
        for fault in error.errors():
            is_unfinished = is_chunk and kind == "text_completion" and fault["loc"][-1] == "finish_reason"
            is_first = has_echo and fault["loc"][-2:] in (("token_logprobs", 0), ("top_logprobs", 0))
            assert (is_unfinished or is_first) and fault["input"] is None, fault
        return
    _check_no_extra_fields(parsed, {"ontogeny"})


def _check_no_extra_fields(parsed, allowed=frozenset()):
    assert set(parsed.model_extra or ()) <= allowed, parsed
    for value in parsed.__dict__.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, BaseModel):
                _check_no_extra_fields(item)


def _read_events(server, key, path, body):
    """The parts of a stream; the last event says that the stream is complete."""
    status, content = server.post(path, body | {"stream": True}, key)
    assert status == 200
    events = [event.removeprefix("data: ") for event in content.decode().split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    return [json.loads(event) for event in events[:-2]]


COMPLETION = {"model": "story", "prompt": "The é", "max_tokens": 6, "seed": 5}
CHAT = {"model": "story", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 5}


@pytest.mark.parametrize(
    "settings", [{}, {"n": 2, "logprobs": 3}, {"logprobs": 0, "echo": True}, {"echo": True, "stop": "e"}], ids=str
)
def test_completions_have_the_types_of_the_openai_package(server, key, settings):
    response = server.post("/v1/completions", COMPLETION | settings, key)[1]
    _check_wire_type("text_completion", response, has_echo="echo" in settings)
    assert set(response) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage", "ontogeny"}
    for has_usage in (False, True):
        options = {"stream_options": {"include_usage": True}} if has_usage else {}
        chunks = _read_events(server, key, "/v1/completions", COMPLETION | settings | options)
        for chunk in chunks:
            assert chunk["object"] == "text_completion"
            _check_wire_type("text_completion", chunk, is_chunk=True, has_echo="echo" in settings)
        _check_stream(chunks, response, has_usage)
    texts = ["".join(c["text"] for part in chunks for c in part["choices"] if c["index"] == i) for i in (0, 1)]
    assert texts[: len(response["choices"])] == [choice["text"] for choice in response["choices"]]


@pytest.mark.parametrize("settings", [{}, {"n": 2, "logprobs": True, "top_logprobs": 2}, {"logprobs": True}], ids=str)
def test_chats_have_the_types_of_the_openai_package(server, key, settings):
    response = server.post("/v1/chat/completions", CHAT | settings, key)[1]
    _check_wire_type("chat.completion", response)
    for choice in response["choices"]:
        assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
        assert choice["message"] == {"role": "assistant", "content": choice["message"]["content"], "refusal": None}
        data = b"".join(bytes(token["bytes"] or ()) for token in (choice["logprobs"] or {}).get("content", ()))
        assert not choice["logprobs"] or data.decode().removeprefix(" ") == choice["message"]["content"]
    for has_usage in (False, True):
        options = {"stream_options": {"include_usage": True}} if has_usage else {}
        chunks = _read_events(server, key, "/v1/chat/completions", CHAT | settings | options)
        for chunk in chunks:
            assert chunk["object"] == "chat.completion.chunk"
            _check_wire_type("chat.completion.chunk", chunk)
        _check_stream(chunks, response, has_usage)
        n = len(response["choices"])
        assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:n]] == ["assistant"] * n
        assert all("role" not in choice["delta"] for chunk in chunks[n:] for choice in chunk["choices"])


def _check_stream(chunks, response, has_usage):
    """The parts share their header, each choice ends once, and the usage is in the last part alone."""
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"] is not None]
    assert sorted(reasons) == sorted(choice["finish_reason"] for choice in response["choices"])
    if has_usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == response["usage"]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert not any("usage" in chunk for chunk in chunks)


def test_models_and_errors_have_the_types_of_the_openai_package(server, key):
    listed = server.get("/v1/models", key)[1]
    assert set(listed) == {"object", "data"} and listed["object"] == "list"
    for model in [*listed["data"], server.get("/v1/models/story", key)[1]]:
        _check_wire_type("model", model)
    for status, method, path, body, key_text in (
        (400, "POST", "/v1/completions", {"model": "story", "n": 0}, key),
        (400, "POST", "/v1/chat/completions", {}, key),
        (401, "GET", "/v1/models", None, "wrong"),
        (404, "GET", "/v1/models/nobody", None, key),
        (404, "GET", "/v1/nothing", None, key),
        (405, "DELETE", "/v1/completions", None, key),
    ):
        answer = server.request(method, path, body, key_text)
        assert answer[0] == status and set(answer[1]) == {"error"}
        _check_wire_type("error", answer[1]["error"])


def test_penalties_biases_and_min_tokens_have_the_meaning_of_the_reference(client):
    body = dict(model="story", prompt="The agent", max_tokens=30, temperature=0)
    plain = client.completions.create(**body).choices[0].text
    assert (
        client.completions.create(**body, presence_penalty=0, frequency_penalty=0, logit_bias={}).choices[0].text
        == plain
    )
    varied = client.completions.create(**body, presence_penalty=2, frequency_penalty=2, logprobs=1).choices[0]
    assert len(set(varied.text)) > len(set(plain))
    assert (
        varied.logprobs.top_logprobs[0]
        == client.completions.create(**body, logprobs=1).choices[0].logprobs.top_logprobs[0]
    )
    excluded = client.completions.create(**body, logit_bias={str(ord(" ")): -100}).choices[0].text
    assert " " in plain and " " not in excluded
    assert client.completions.create(**body, logit_bias={"122": 100}).choices[0].text == "z" * 30
    top = client.completions.create(**body | {"temperature": 1}, extra_body={"top_k": 1}).choices[0].text
    assert top == plain
    ended = body | {"logit_bias": {"256": 100}}
    assert client.completions.create(**ended).usage.completion_tokens <= 1
    longer = client.completions.create(**ended, extra_body={"min_tokens": 7})
    assert 7 <= longer.usage.completion_tokens <= 8 and longer.choices[0].finish_reason == "stop"
    stopped = client.completions.create(**body, stop=plain[1], extra_body={"min_tokens": 9}).choices[0]
    assert stopped.text.startswith(plain[:9])
    messages = [{"role": "user", "content": "Hi"}]
    chat_body = dict(model="story", messages=messages, max_tokens=5, seed=1, logit_bias={"122": 100})
    assert client.chat.completions.create(**chat_body).choices[0].message.content == "zzzzz"


def test_a_response_format_constrains_the_answer_to_json(client):
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "maxLength": 9}, "number": {"type": "integer", "maximum": 99}},
        "required": ["word", "number"],
        "additionalProperties": False,
    }
    formats = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema, "strict": True}}
    body = dict(model="story", messages=CHAT["messages"], max_tokens=120, n=4, seed=1, response_format=formats)
    response = client.chat.completions.create(**body)
    for choice in response.choices:
        value = json.loads(choice.message.content)
        assert choice.finish_reason == "stop" and set(value) == {"word", "number"} and value["number"] <= 99
    assert len({choice.message.content for choice in response.choices}) > 1
    assert [c.message.content for c in client.chat.completions.create(**body).choices] == [
        c.message.content for c in response.choices
    ]
    streamed = client.chat.completions.create(**body | {"n": 1}, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in streamed) == response.choices[0].message.content
    constrained = dict(
        model="story", prompt="It", max_tokens=40, extra_body={"response_format": {"type": "json_object"}}
    )
    assert client.completions.create(**constrained).choices[0].text.startswith("{")
    complex_schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2100)}}
    formats = {"type": "json_schema", "json_schema": {"name": "complex", "schema": complex_schema}}
    with pytest.raises(openai.InternalServerError, match="an error occurred while the answer was generated"):
        client.chat.completions.create(**body | {"n": 1, "response_format": formats})


def test_best_of_returns_the_candidates_with_the_highest_mean_log_probability(client):
    body = dict(model="story", prompt=["The agent", "It"], max_tokens=9, seed=2)
    candidates = client.completions.create(**body, n=6, logprobs=0).choices

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = [sorted(candidates[first : first + 6], key=mean, reverse=True)[:2] for first in (0, 6)]
    best = client.completions.create(**body, best_of=6, n=2)
    assert [choice.text for choice in best.choices] == [choice.text for group in ranked for choice in group]
    assert [choice.index for choice in best.choices] == [0, 1, 2, 3] and best.choices[0].logprobs is None
    assert best.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in candidates)
    for impossible in ({"best_of": 2, "n": 3}, {"best_of": 3, "stream": True}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**body, **impossible)
        assert refused.value.param == "best_of"


@pytest.mark.parametrize(
    ("path", "field", "refused", "accepted"),
    [
        ("completions", "suffix", "end", ""),
        ("completions", "max_completion_tokens", 5, None),
        ("completions", "logit_bias", {"257": 1}, {"256": 1}),
        ("completions", "logit_bias", {str(token): -100 for token in range(257)}, {"1": -100}),
        ("completions", "min_tokens", 7, 6),
        ("chat/completions", "response_format", {"type": "json_schema"}, {"type": "text"}),
        (
            "completions",
            "response_format",
            {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}},
            {"type": "text"},
        ),
        ("chat/completions", "tools", [{"type": "function", "function": {"name": "f"}}], []),
        ("chat/completions", "tool_choice", "required", "none"),
        ("chat/completions", "functions", [{"name": "f"}], []),
        ("chat/completions", "function_call", {"name": "f"}, "auto"),
        ("chat/completions", "modalities", ["text", "audio"], ["text"]),
        ("chat/completions", "audio", {"voice": "a", "format": "wav"}, None),
        ("chat/completions", "reasoning_effort", "high", "none"),
        ("chat/completions", "top_logprobs", 2, 0),
        ("chat/completions", "repetition_penalty", 1.5, 1.0),
        ("chat/completions", "ignore_eos", True, False),
        ("chat/completions", "stop_token_ids", [1], []),
        ("chat/completions", "stream_options", {"continuous_usage_stats": True}, {"include_usage": True}),
        ("chat/completions", "messages", [{"role": "assistant", "content": "a", "tool_calls": [{}]}], CHAT["messages"]),
        ("chat/completions", "echo", True, False),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_and_its_default_accepted(
    server, key, path, field, refused, accepted
):
    body = COMPLETION if path == "completions" else CHAT
    status, content = server.post(f"/v1/{path}", body | {field: refused}, key)
    error = content["error"]
    assert status == 400 and error["param"].startswith(field) and field in error["message"], content
    expected = server.post(f"/v1/{path}", body, key)[1]["choices"]
    if field not in ("logit_bias", "min_tokens"):
        status, content = server.post(f"/v1/{path}", body | {field: accepted}, key)
        assert (status, content["choices"]) == (200, expected) and "ignored_fields" not in content["ontogeny"]


def test_a_text_session_rejects_unknown_fields(server, key):
    path = f"/v1/models/story/sessions/{server.post('/v1/models/story/sessions', {}, key)[1]['id']}/completions"
    for field, value in (("stop", ["."]), ("presence_penalty", 1), ("max_token", 3)):
        status, content = server.post(path, {"prompt": "a", field: value}, key)
        assert status == 400 and content["error"]["message"] == f"{field}: there is no such field", content
        assert content["error"]["param"] == field
    assert server.post(path, {"prompt": "a", "max_tokens": 1, "top_p": 0}, key)[0] == 200


def test_unknown_fields_are_ignored_and_named_in_the_response(server, key):
    ignored = {"user": "anna", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}
    assert "ignored_fields" not in server.post("/v1/completions", COMPLETION | ignored, key)[1]["ontogeny"]
    response = server.post("/v1/completions", COMPLETION | ignored | {"max_token": 3, "x" * 99: 1}, key)[1]
    assert response["ontogeny"]["ignored_fields"] == ["max_token", "x" * 64]
    chunks = _read_events(server, key, "/v1/chat/completions", CHAT | {"max_token": 3})
    assert all(chunk["ontogeny"]["ignored_fields"] == ["max_token"] for chunk in chunks)


def test_the_names_of_participants_are_part_of_the_prompt(server, key):
    def num_prompt_tokens(**fields):
        return server.post("/v1/chat/completions", CHAT | {"messages": [fields]}, key)[1]["usage"]["prompt_tokens"]

    assert num_prompt_tokens(role="user", content="Hi", name="anna") == num_prompt_tokens(role="user", content="Hi") + 7
    refusal = num_prompt_tokens(role="assistant", refusal="I cannot")
    assert refusal == num_prompt_tokens(role="assistant", content="I cannot")


def _documented_fields():
    """The rows of the tables of fields: name, and whether completions, chats or messages support it."""
    page = (ROOT / "docs" / "reference" / "openai-api.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    requests = {row[0].strip("`"): row[1:3] for row in rows if len(row) == 4}
    return requests, {row[0].strip("`"): row[1] for row in rows if len(row) == 3}


def test_every_field_of_the_api_reference_is_documented_as_supported_ignored_or_refused():
    requests, messages = _documented_fields()
    params = [completion_create_params.CompletionCreateParamsBase, chat_create_params.CompletionCreateParamsBase]
    assert {name for param in params for name in param.__annotations__} | {"stream"} <= set(requests)
    parts = [*get_args(chat.ChatCompletionMessageParam), chat.ChatCompletionStreamOptionsParam]
    assert {name for part in parts for name in part.__annotations__} <= set(messages)

    def status(model, name):
        if name not in model.model_fields:
            return "ignored"
        is_refused = any(isinstance(data, DefaultOnly) for data in model.model_fields[name].metadata)
        return "refused" if is_refused else "supported"

    for column, model in enumerate((protocol.CompletionRequest, protocol.ChatRequest)):
        assert {name: statuses[column] for name, statuses in requests.items()} == {
            name: status(model, name) for name in {*model.model_fields, *IGNORED}
        }
    declared = protocol.Message.model_fields | protocol.StreamOptions.model_fields
    expected = {name: status(protocol.Message, name) for name in protocol.Message.model_fields}
    expected |= {name: status(protocol.StreamOptions, name) for name in protocol.StreamOptions.model_fields}
    assert messages == expected | {"include_obfuscation": "ignored"}
    assert set(messages) <= set(declared)


# --- bitwise reproducibility


def _completion_body(number):
    draw = random.Random(number)
    text = "".join(draw.choice("the agent learns an environment. ") for _ in range(draw.randrange(1, 60)))
    body = {
        "model": "story",
        "prompt": text,
        "max_tokens": draw.randrange(1, 30),
        "seed": number,
        "logprobs": number % 3,
    }
    if number % 4 == 0:
        body |= {"echo": True, "max_tokens": number % 2}
    return body | {"temperature": [0, 1, 0.7][number % 3], "top_p": [1, 0.9][number % 2]}


def _responses(server, key, numbers, num_threads):
    def send(number):
        status, response = server.post("/v1/completions", _completion_body(number), key, timeout=120)
        assert status == 200, response
        return response["choices"]

    with ThreadPoolExecutor(num_threads) as pool:
        return dict(zip(numbers, pool.map(send, numbers), strict=True))


def test_equal_requests_are_answered_bitwise_equal(server, key, run, tmp_path):
    """Alone, in batches with 63 other requests, in another order, and by a restarted server."""
    numbers = list(range(64))
    batched = _responses(server, key, numbers, 64)
    random.Random(1).shuffle(numbers)
    assert _responses(server, key, numbers, 64) == batched
    with ServerProcess(tmp_path / "elsewhere", "--alias", f"story={run}") as restarted:
        assert _responses(restarted, None, numbers[:10], 1) == {n: batched[n] for n in numbers[:10]}


# --- unchanged weights


def _send_mixed_requests(server, key, count):
    """Sends requests of all kinds, none of which may change a weight; returns the statuses."""

    def send(number):
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "model": "story"}
        kinds = (
            lambda: server.post("/v1/completions", _completion_body(number) | {"max_tokens": 2}, key),
            lambda: server.post("/v1/chat/completions", chat, key),
            lambda: server.post("/v1/models/story/examples", {"text": "learn this"}, key),
            lambda: server.post("/v1/models/story/rollback", {"version": 0}, key),
            lambda: server.put("/v1/models/story/branch/state", b"\xff" * 100, key),
            lambda: server.post("/v1/completions", b"{", key),
            lambda: server.get("/v1/models", key),
        )
        return kinds[number % len(kinds)]()[0]

    with ThreadPoolExecutor(16) as pool:
        return set(pool.map(send, range(count)))


def test_weights_of_a_frozen_deployment_stay_the_same(server, key, run):
    before = server.get("/v1/models/story", key)[1]["ontogeny"]
    assert _send_mixed_requests(server, key, 280) == {200, 400, 409}
    time.sleep(1.5)  # the server checks its weights in the meantime
    assert server.get("/ready")[0] == 200
    assert server.get("/v1/models/story", key)[1]["ontogeny"] == before


@pytest.mark.slow
def test_weights_are_the_same_after_ten_thousand_requests(server, key, run):
    from ontogeny import trees

    assert _send_mixed_requests(server, key, 10_000) == {200, 400, 409}
    time.sleep(2)
    assert server.get("/ready")[0] == 200
    assert server.get("/v1/models/story", key)[1]["ontogeny"]["trained_digest"] == trees.digest(load(run).weights)


# --- hostile clients


def test_the_openapi_document_holds_under_fuzzing(server, key):
    """Random requests by schemathesis: no status 5xx, no request that hangs, and errors in one form."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:

        @settings(max_examples=5, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def check(case):
            response = case.call(headers={"Authorization": f"Bearer {key}"}, timeout=60)
            assert response.status_code < 500, (response.status_code, response.text)
            if response.status_code >= 400:
                error = response.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert not any(words in error["message"] for words in LIBRARY_WORDS)

        check()


LIBRARY_WORDS = ("Input should", "Value should", "String should", "List should", "Field required", "Value error")
PICTURE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {"prompt": ["a"] * 257}, "prompt: the list has more than 256 elements"),
        ("completions", {"prompt": [-1]}, "prompt: the number is less than 0"),
        ("completions", {"prompt": [1.5]}, "prompt: the value has none of the accepted types"),
        ("completions", {"prompt": ["a", 1]}, "prompt: the value has none of the accepted types"),
        ("completions", {"prompt": "a", "stop": ["x"] * 17}, "stop: the list has more than 16 elements"),
        ("completions", {"prompt": "a", "temperature": math.nan}, "temperature: the number is not finite"),
        ("completions", {"prompt": "\ud800"}, "prompt: the text holds half a surrogate pair"),
        ("completions", {"prompt": "a", "model": None}, "the request must name a model; available: story, gpt-4o-mini"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": PICTURE}]},
            "'text' or 'refusal'",
        ),
    ],
)
def test_an_invalid_field_is_named(server, key, path, body, words):
    status, content = server.post(f"/v1/{path}", {"model": "story"} | body, key)
    assert status == 400 and words in content["error"]["message"], content


def test_a_body_without_its_content_type_is_answered_with_the_header_to_send(server, key):
    body = b'{"model": "story", "prompt": "a", "text": "a", "tokens": [1], "target_key": "a", "messages": []}'
    document = server.get("/openapi.json")[1]
    paths = [
        path.replace("{model}", "story")
        for path, operations in document["paths"].items()
        if "application/json" in operations.get("post", {}).get("requestBody", {}).get("content", {})
        and not path.startswith(("/v1/agents", "/v1/models/{model}/sessions/"))  # the server has neither
    ]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/models/story/examples"} <= set(paths)
    authorization = f"Authorization: Bearer {key}"
    for path in paths:
        for declared in ((), ("Content-Type: application/x-www-form-urlencoded",), ("Content-Type: text/plain",)):
            status, _, content = _send_and_close(server, "POST", path, authorization, *declared, body=body)
            if "is frozen" not in content:
                assert status == 415 and "'Content-Type: application/json'" in content, (path, content)
    status, _, content = _send_and_close(server, "POST", "/v1/completions", authorization)
    assert status == 400 and "the request has no body" in content
    accepted = "Content-Type: Application/JSON; charset=utf-8"
    body = b'{"model": "story", "max_tokens": 1}'
    assert _send_and_close(server, "POST", "/v1/completions", authorization, accepted, body=body)[0] == 200


def test_head_is_answered_like_get_without_content(server, key):
    document = server.get("/openapi.json")[1]
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    assert len(paths) > 10
    authorization = f"Authorization: Bearer {key}"
    for path in [*paths, "/", "/docs", "/openapi.json", "/nowhere"]:
        path = path.replace("{model}", "story")
        get, head = (_send_and_close(server, method, path, authorization) for method in ("GET", "HEAD"))
        assert head[:2] == get[:2] and get[2] and not head[2] and head[0] != 405, path
    assert _send_and_close(server, "HEAD", "/v1/completions", authorization)[0] == 405


def test_a_slash_at_the_end_of_a_path_is_answered_without_a_redirect(server, key):
    authorization = f"Authorization: Bearer {key}"
    for path in ("/v1/models", "/v1/models/story", "/v1/models/story/branch", "/health", "/docs", "/nowhere"):
        plain, *responses = (_send_and_close(server, "GET", f"{path}{end}", authorization) for end in ("", "/", "//"))
        assert responses == [plain, plain] and "location" not in plain[1], path
    body = {"model": "story", "prompt": "a", "max_tokens": 1}
    assert server.post("/v1/completions/", body, key)[0] == 200


def test_metrics_need_a_key_once_keys_exist(server, key):
    assert server.get("/metrics")[0] == 401 and server.get("/metrics", "og-0-0")[0] == 401
    status, metrics = server.get("/metrics", key)
    assert status == 200 and b"ontogeny_requests_total" in metrics


LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING|ERROR) [\w.]+: .*")


def test_no_request_forges_a_line_of_the_log_or_puts_a_key_into_it(server, key):
    # The line of a request is written after its answer, so the lines of earlier tests may come after they have ended.
    _send_and_close(server, "GET", "/beginning")
    wait_until(lambda: b"GET /beginning" in server.log.read_bytes(), 20)
    position = server.log.stat().st_size
    forged = "2026-01-01 00:00:00,000 INFO ontogeny.requests: GET /v1/forged 200"
    quoted = forged.replace(" ", "%20")
    targets = [
        f"/x{end}{quoted}" for end in ("%0a", "%0d%0a", "%00", "%1b[2J", "%c2%85", "%e2%80%a8", "%e2%80%ae", "%ff")
    ]
    targets += [
        f"/v1/{key}",
        f"/v1/models/{key}/branch",
        f"/{key.replace('-', '%2d')}",
        f"/v1/models?key={key}",
        "/" + "a" * 9000,
    ]
    for target in targets:
        _send_and_close(server, "GET", target)
    for method in ("FORGED", key, "A" * 5000):
        _send_and_close(server, method, "/")
    for header in (f"Origin: {key}", f"User-Agent: {key}", f"Sec-Fetch-Site: {key}"):
        _send_and_close(server, "GET", "/v1/models", header)
    _send_and_close(server, "GET", f"/v1/models/{key}/branch", f"Authorization: Bearer {key}")
    _send_bytes(server, f"GET / HTTP/1.1\r\nHost: {key}\r\n\r\n".encode())
    count = len(targets) + 8

    def new_lines():
        lines = server.log.read_bytes()[position:].decode().split("\n")[:-1]
        return lines if len(lines) >= count else None

    lines = wait_until(new_lines, 20)
    assert len(lines) == count
    assert all(LOG_LINE.fullmatch(line) and line.isprintable() and len(line) < 500 for line in lines), lines
    assert not any(line.startswith("2026-01-01 00:00:00,000") or key[12:] in line or "og-" in line for line in lines)
    assert any("GET /v1/models/{model}/branch 404" in line for line in lines)


def test_an_internal_error_has_the_same_form():
    """A planted error: a route that fails."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    def fail():
        raise OverflowError("planted")

    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
    asyncio.run(RequestLimits(app, max_body_bytes=100, arrival_limit=5)(scope, receive, send))
    assert sent[0]["status"] == 500 and json.loads(sent[1]["body"])["error"]["type"] == "server_error"


def _send_bytes(server, data, seconds=30):
    """Sends bytes and returns the response, until the server closes the connection or so many seconds have passed."""
    deadline = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        response = b""
        try:
            while part := connection.recv(65536):
                response += part
                if (b"\r\n\r\n" in response and b"chunked" not in response) or time.monotonic() > deadline:
                    break
        except TimeoutError:
            pass
        return response


def _send_and_close(server, method, path, *headers, body=b""):
    """Sends a request; returns status, header names and content as they arrive until the server closes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(
            "".join(f"{line}\r\n" for line in [*lines, f"Content-Length: {len(body)}", ""]).encode() + body
        )
        header, _, content = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    status, *fields = header.decode().split("\r\n")
    return int(status.split()[1]), {field.partition(":")[0].lower() for field in fields}, content.decode()


def _post_bytes(body, key, length=None):
    header = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    header += "Content-Type: application/json\r\n"
    return f"{header}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_invalid_bodies_are_rejected(server, key):
    for body, status in (
        (b'{"prompt": "\xff\xfe"}', b"400"),
        (b'{"model": "story", "prompt": "\\ud800", "echo": true}', b"400"),
        (b'{"model": "\\ud800", "prompt": "a"}', b"400"),
        (b"[" * 100_000, b"400"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", b"400"),
        (b'{"temperature": NaN}', b"400"),
        (b"", b"400"),
    ):
        assert _send_bytes(server, _post_bytes(body, key)).split()[1] == status, body[:40]
    assert _send_bytes(server, _post_bytes(b"", key, length=10 << 20)).split()[1] == b"413"
    chunked = _post_bytes(b"", key).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"%x\r\n%s\r\n" % (1 << 16, b"a" * (1 << 16))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(chunked)
        try:
            for _ in range(160):
                connection.sendall(chunk)
            response = connection.recv(100)
        except (ConnectionError, TimeoutError):
            response = b"HTTP/1.1 413"
        assert response.split()[1] == b"413"


def test_requests_are_answered_beside_slow_half_closed_and_many_connections(server, key):
    connections = []
    try:
        for number in range(1000):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connections.append(connection)
            if number % 4 == 0:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le")  # incomplete
            elif number % 4 == 1:
                connection.sendall(_post_bytes(b"{", key, length=100))
            elif number % 4 == 2:
                connection.sendall(_post_bytes(b"{", key, length=100))
                connection.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        assert server.post("/v1/completions", _completion_body(1), key)[0] == 200
        assert time.monotonic() - started < 20
    finally:
        for connection in connections:
            connection.close()
    assert server.get("/ready")[0] == 200


def test_a_closed_connection_cancels_its_sequences(server, key):
    body = {"model": "story", "prompt": "a", "max_tokens": 4096, "stream": True, "n": 16}
    for stream in (True, False):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(_post_bytes(json.dumps(body | {"stream": stream}).encode(), key))
            time.sleep(0.3)
    idle = 'ontogeny_num_requests_running{deployment="story"} 0.0'
    wait_until(lambda: idle in server.get("/metrics", key)[1].decode(), 20)


def test_keys_are_limited_counted_and_revoked(server, state_dir, key):
    store = Store(state_dir)
    limited, text = keys.create_key(store, "bob", requests_per_minute=3)
    body = {"model": "story", "prompt": "secret prompt", "max_tokens": 1}
    statuses = [server.post("/v1/completions", body, text)[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    rejection = _send_bytes(server, _post_bytes(json.dumps(body).encode(), text)).lower()
    assert rejection.split()[1] == b"429" and 1 <= int(rejection.split(b"retry-after: ")[1].split()[0]) <= 20
    small = keys.create_key(store, "carl", tokens_per_minute=40)[1]
    assert [server.post("/v1/completions", body | {"max_tokens": 20}, small)[0] for _ in range(2)] == [200, 429]
    assert server.post("/v1/models/story/freeze", {}, text)[0] == 403
    keys.revoke_key(store, limited.id)
    assert [server.post("/v1/completions", body, k)[0] for k in (text, None, "", "og-x-y")] == [401] * 4
    for path in ("/v1/models", "/v1/models/story/branch", "/v1/agents/x", "/tokenizer_info"):
        assert server.get(path)[0] == 401

    def usage():
        return [record[3:] for record in keys.list_usage(store) if record.key == limited.id and record.num_requests > 2]

    assert wait_until(usage, 10) == [(3, 39, 3)]  # requests, prompt tokens, generated tokens
    database = b"".join(p.read_bytes() for p in state_dir.iterdir() if p.is_file())
    assert text.encode() not in database and text[12:].encode() not in database
    store.close()


def test_pages_refer_to_no_other_host(server):
    for path in ("/", "/docs"):
        status, page = server.get(path)
        assert status == 200 and b"http://" not in page and b"https://" not in page and b"//cdn" not in page
    document = server.get("/openapi.json")[1]
    assert "/v1/completions" in document["paths"] and "/v1/agents/{name}/sessions/{id}/act" in document["paths"]


@pytest.mark.parametrize(("old", "new"), list(TABLES["route"].items()))
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("POST", "/fork")])
def test_an_old_route_is_answered_with_its_new_name(server, key, old, new, method, rest):
    body = {} if method == "POST" else None
    status, content = server.request(method, f"/v1/models/story{old}{rest}", body, key)
    assert (status, content["error"]["message"]) == (404, f"`{old}` was renamed `{new}`.")


def test_an_unknown_route_has_no_hint(server, key):
    status, content = server.get("/v1/nothing", key)
    assert (status, content["error"]["message"]) == (404, "there is no such route; /docs lists all routes")
