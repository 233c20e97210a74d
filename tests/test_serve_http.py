"""A live server, frozen, on loopback: unmodified clients, the same bits, hostile clients, weights that stay."""

import asyncio
import json
import math
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings

from ontogeny.server import app, keys
from ontogeny.server.api.request_limits import RequestLimits
from ontogeny.server.store import Store
from serving import ROOT, Live, load, shared_run

pytestmark = [
    pytest.mark.computes,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("http") / "state"


@pytest.fixture(scope="module")
def key(state):
    store = Store(state)
    made = keys.create(store, "anna", admin=True)[1]
    store.close()
    return made


@pytest.fixture(scope="module")
def live(run, state, key):
    aliases = ("--alias", f"story={run}", "--alias", f"gpt-4o-mini={run}")
    limits = ("--verify", "1", "--most-bytes", "300000", "--time-limit", "60")
    with Live(state, *aliases, *limits) as live:
        yield live
        log = live.log.read_text()
        assert "Traceback" not in log and "secret prompt" not in log and "og-" not in log
        assert live.stop() in (0, -15)


@pytest.fixture
def client(live, key):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


# --- unmodified clients


def test_the_openai_client_completes(client):
    assert [model.id for model in client.models.list()] == ["story", "gpt-4o-mini"]
    made = client.completions.create(
        model="gpt-4o-mini", prompt="The agent", max_tokens=12, n=3, seed=7, temperature=0.8, top_p=0.9, logprobs=2
    )
    assert len(made.choices) == 3 and made.usage.completion_tokens == 36 and made.usage.prompt_tokens == 9
    assert [choice.finish_reason for choice in made.choices] == ["length"] * 3
    assert "".join(made.choices[0].logprobs.tokens) == made.choices[0].text
    unseeded = client.completions.create(model="story", prompt="The agent", max_tokens=40, n=3)
    assert len({choice.text for choice in unseeded.choices}) == 3
    greedy = client.completions.create(model="story", prompt="The agent", max_tokens=12, temperature=0)
    text = greedy.choices[0].text
    stopped = client.completions.create(model="story", prompt="The agent", max_tokens=12, temperature=0, stop=text[3:5])
    assert stopped.choices[0].text == text[: text.find(text[3:5])] and stopped.choices[0].finish_reason == "stop"


def test_the_copy_and_paste_of_the_readme_runs(live, key, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = readme.split("<!-- run: openai -->\n```python\n")[1].split("```")[0]
    exec(code.replace("http://127.0.0.1:8000", live.url).replace('"none"', repr(key)), {})
    assert len(capsys.readouterr().out) > 10


def test_the_openai_client_streams_the_same_text(client):
    asked = dict(model="story", prompt="An environment is", max_tokens=30, seed=3, n=2)
    whole = client.completions.create(**asked)
    texts, reasons, usage = ["", ""], [None, None], None
    for part in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices] and reasons == ["length", "length"]
    assert usage == whole.usage


def test_the_openai_client_chats(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    asked = dict(model="story", messages=messages, max_completion_tokens=10, seed=1, logprobs=True, top_logprobs=2)
    made = client.chat.completions.create(**asked, user="somebody", store=False, metadata={"a": "b"})
    assert made.choices[0].message.role == "assistant" and made.usage.completion_tokens <= 10
    scored = made.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in scored)
    parts = list(client.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts) == made.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == made.choices[0].finish_reason


def test_the_openai_client_understands_what_goes_wrong(live, client, key):
    with pytest.raises(openai.NotFoundError) as absent:
        client.completions.create(model="nobody", prompt="a")
    assert absent.value.code == "model_not_found" and absent.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="story", prompt="a", temperature=3)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="story", prompt="a" * 65, max_tokens=0, echo=True, logprobs=1)
    assert long.value.code == "context_length_exceeded"
    for bad in ("wrong", key[:-1] + ("a" if key[-1] != "a" else "b"), f"og-00000000-{key[12:]}"):
        other = openai.OpenAI(base_url=f"{live.url}/v1", api_key=bad, max_retries=0)
        with other, pytest.raises(openai.AuthenticationError) as stranger:
            other.models.list()
        assert stranger.value.code == "invalid_api_key"


def test_scoring_as_lm_eval_asks_for_it(live, key):
    """The requests that lm_eval 0.4.13 sends for `local-completions`, and what it reads of the answers."""
    text = "The three laws are tested bit for bit"
    batch = [list(text.encode())[:n] for n in (12, 20, 37)]
    asked = {
        "model": "story",
        "prompt": batch,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    status, answer = live.post("/v1/completions", asked, key)
    assert status == 200 and [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for tokens, choice in zip(batch, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(tokens) + 1
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for chosen, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert chosen <= max(top.values()) < 0
        assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())  # the generated one, greedy
    short, longer = (answer["choices"][i]["logprobs"]["token_logprobs"][1:12] for i in (0, 2))
    assert short == longer


def test_lm_eval_runs_on_it(live, key, run, tmp_path, monkeypatch):
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

    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=f"model=story,base_url={live.url}/v1/completions,tokenizer_backend=remote,max_length=64,"
        f"auth_token={key}",  # its remote tokenizer does not read OPENAI_API_KEY
        tasks=["local_mc"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert found["results"]["local_mc"]["acc,none"] == 1.0


# --- the same bits


def _question(number):
    draw = random.Random(number)
    text = "".join(draw.choice("the agent learns an environment. ") for _ in range(draw.randrange(1, 60)))
    asked = {
        "model": "story",
        "prompt": text,
        "max_tokens": draw.randrange(1, 30),
        "seed": number,
        "logprobs": number % 3,
    }
    if number % 4 == 0:
        asked |= {"echo": True, "max_tokens": number % 2}
    return asked | {"temperature": [0, 1, 0.7][number % 3], "top_p": [1, 0.9][number % 2]}


def _answers(live, key, numbers, together):
    def ask(number):
        status, answer = live.post("/v1/completions", _question(number), key, timeout=120)
        assert status == 200, answer
        return answer["choices"]

    with ThreadPoolExecutor(together) as pool:
        return dict(zip(numbers, pool.map(ask, numbers), strict=True))


def test_same_question_same_bits(live, key, run, tmp_path):
    """Alone and cold, among 63 others, shuffled, and from a server that was started anew."""
    numbers = list(range(64))
    together = _answers(live, key, numbers, 64)
    random.Random(1).shuffle(numbers)
    assert _answers(live, key, numbers, 64) == together
    with Live(tmp_path / "elsewhere", "--alias", f"story={run}") as other:
        assert _answers(other, None, numbers[:10], 1) == {n: together[n] for n in numbers[:10]}


# --- weights that stay


def _mixed(live, key, count):
    """Requests of all kinds; none may change a weight."""

    def one(number):
        kinds = (
            lambda: live.post("/v1/completions", _question(number) | {"max_tokens": 2}, key),
            lambda: live.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
                                                       "model": "story"}, key),
            lambda: live.post("/v1/models/story/contributions", {"text": "learn this"}, key),
            lambda: live.post("/v1/models/story/rollback", {"version": 0}, key),
            lambda: live.ask("PUT", "/v1/models/story/line/state", b"\xff" * 100, key),
            lambda: live.post("/v1/completions", b"{", key),
            lambda: live.get("/v1/models", key),
        )  # fmt: skip
        return kinds[number % len(kinds)]()[0]

    with ThreadPoolExecutor(16) as pool:
        return set(pool.map(one, range(count)))


def test_weights_of_a_frozen_deployment_stay_the_same(live, key, run):
    before = live.get("/v1/models/story", key)[1]["ontogeny"]
    assert _mixed(live, key, 280) == {200, 400, 409}
    time.sleep(1.5)  # the server has looked at its weights meanwhile
    assert live.get("/ready")[0] == 200
    assert live.get("/v1/models/story", key)[1]["ontogeny"] == before


@pytest.mark.slow
def test_weights_are_the_same_after_ten_thousand_requests(live, key, run):
    from ontogeny import trees

    assert _mixed(live, key, 10_000) == {200, 400, 409}
    time.sleep(2)
    assert live.get("/ready")[0] == 200
    assert live.get("/v1/models/story", key)[1]["ontogeny"]["trained"] == trees.digest(load(run).weights)


# --- hostile clients


def test_openapi_document_holds_under_fuzz(live, key):
    """schemathesis: whatever is sent, no 5xx, nothing that hangs, and errors in one form."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:

        @settings(max_examples=5, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def check(case):
            answer = case.call(headers={"Authorization": f"Bearer {key}"}, timeout=60)
            assert answer.status_code < 500, (answer.status_code, answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        check()


PICTURE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {"prompt": ["a"] * 257}, "prompt: List should have at most 256 items"),
        ("completions", {"prompt": [-1]}, "prompt: Input should be greater than or equal to 0"),
        ("completions", {"prompt": [1.5]}, "prompt: is in none of the forms"),
        ("completions", {"prompt": ["a", 1]}, "prompt: is in none of the forms"),
        ("completions", {"prompt": "a", "stop": ["x"] * 17}, "stop: List should have at most 16 items"),
        ("completions", {"prompt": "a", "temperature": math.nan}, "temperature: Input should be a finite number"),
        ("completions", {"prompt": "\ud800"}, "prompt: holds half a surrogate pair"),
        ("completions", {"prompt": "a", "model": None}, "name a model; there are: story, gpt-4o-mini"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": PICTURE}]},
            "'text' or 'refusal'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(live, key, path, body, words):
    status, content = live.post(f"/v1/{path}", {"model": "story"} | body, key)
    assert status == 400 and words in content["error"]["message"], content


def test_what_nobody_foresaw_is_an_error_in_the_same_form():
    """The planted error: a route that fails."""
    made = FastAPI()
    app._add_errors(made)

    @made.get("/")
    def broken():
        raise OverflowError("planted")

    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
    asyncio.run(RequestLimits(made, most_bytes=100, arrival=5, departure=5)(scope, receive, send))
    assert sent[0]["status"] == 500 and json.loads(sent[1]["body"])["error"]["type"] == "server_error"


def _raw(live, data, seconds=30):
    """Sends bytes and returns what comes back until the other side closes or so much time has passed."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
                if b"\r\n\r\n" in found and b"chunked" not in found:
                    break
        except TimeoutError:
            pass
        return found


def _post(body, key, length=None):
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_bodies_that_cannot_be_used(live, key):
    for body, status in (
        (b'{"prompt": "\xff\xfe"}', b"400"),
        (b'{"model": "story", "prompt": "\\ud800", "echo": true}', b"400"),
        (b'{"model": "\\ud800", "prompt": "a"}', b"400"),
        (b"[" * 100_000, b"400"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", b"400"),
        (b'{"temperature": NaN}', b"400"),
        (b"", b"400"),
    ):
        assert _raw(live, _post(body, key)).split()[1] == status, body[:40]
    assert _raw(live, _post(b"", key, length=10 << 20)).split()[1] == b"413"
    chunked = _post(b"", key).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"%x\r\n%s\r\n" % (1 << 16, b"a" * (1 << 16))
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(chunked)
        try:
            for _ in range(160):
                connection.sendall(chunk)
            answer = connection.recv(100)
        except (ConnectionError, TimeoutError):
            answer = b"HTTP/1.1 413"
        assert answer.split()[1] == b"413"


def test_others_are_answered_beside_slow_half_closed_and_many_connections(live, key):
    open_ones = []
    try:
        for number in range(1000):
            connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
            open_ones.append(connection)
            if number % 4 == 0:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")  # never goes on
            elif number % 4 == 1:
                connection.sendall(_post(b"{", key, length=100))
            elif number % 4 == 2:
                connection.sendall(_post(b"{", key, length=100))
                connection.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        assert live.post("/v1/completions", _question(1), key)[0] == 200
        assert time.monotonic() - started < 20
    finally:
        for connection in open_ones:
            connection.close()
    assert live.get("/ready")[0] == 200


def test_whoever_hangs_up_sets_the_row_free(live, key):
    asked = {"model": "story", "prompt": "a", "max_tokens": 4096, "stream": True, "n": 16}
    for stream in (True, False):
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
            connection.sendall(_post(json.dumps(asked | {"stream": stream}).encode(), key))
            time.sleep(0.3)
    until = time.monotonic() + 20
    while 'rows_under_way{deployment="story"} 0.0' not in live.get("/metrics")[1].decode():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_keys_open_and_close(live, state, key):
    store = Store(state)
    made, text = keys.create(store, "bob", requests_per_minute=3)
    asked = {"model": "story", "prompt": "secret prompt", "max_tokens": 1}
    found = [live.post("/v1/completions", asked, text)[0] for _ in range(4)]
    assert found == [200, 200, 200, 429]
    refused = _raw(live, _post(json.dumps(asked).encode(), text)).lower()
    assert refused.split()[1] == b"429" and 1 <= int(refused.split(b"retry-after: ")[1].split()[0]) <= 20
    few = keys.create(store, "carl", tokens_per_minute=40)[1]
    assert [live.post("/v1/completions", asked | {"max_tokens": 20}, few)[0] for _ in range(2)] == [200, 429]
    assert live.post("/v1/models/story/freeze", {}, text)[0] == 403
    keys.revoke(store, made.id)
    assert [live.post("/v1/completions", asked, k)[0] for k in (text, None, "", "og-x-y")] == [401] * 4
    for path in ("/v1/models", "/v1/models/story/line", "/v1/agents/x", "/tokenizer_info"):
        assert live.get(path)[0] == 401
    until = time.monotonic() + 10
    while not (used := [u for u in keys.usage(store) if u.key == made.id]) or used[0].requests < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (used[0].requests, used[0].prompt_tokens, used[0].completion_tokens) == (3, 39, 3)
    database = b"".join(p.read_bytes() for p in state.iterdir() if p.is_file())
    assert text.encode() not in database and text[12:].encode() not in database
    store.close()


def test_pages_need_nothing_from_elsewhere(live):
    for path in ("/", "/docs"):
        status, page = live.get(path)
        assert status == 200 and b"http://" not in page and b"https://" not in page and b"//cdn" not in page
    document = live.get("/openapi.json")[1]
    assert "/v1/completions" in document["paths"] and "/v1/agents/{name}/sessions/{id}/act" in document["paths"]
