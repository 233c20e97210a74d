"""From requests to the journal: refused requests teach nothing, growing prompts and repeated requests teach once."""

import contextlib
import http.client
import json
import os
import signal
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import openai
import pytest

from ontogeny.server import keys
from ontogeny.server.store import Store
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from serving import ServerProcess, shared_run, wait_until

pytestmark = [pytest.mark.computes, pytest.mark.filterwarnings("ignore::ResourceWarning")]
TIME_LIMIT = 4.0  # seconds


@contextlib.contextmanager
def relay_without_answers(server_port):
    """Passes requests to a server and discards its answers, on the port that it yields."""

    class Relay(socketserver.BaseRequestHandler):
        def handle(self):
            with socket.create_connection(("127.0.0.1", server_port)) as upstream, contextlib.suppress(OSError):
                while data := self.request.recv(65536):
                    upstream.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield relay.server_address[1]
        relay.shutdown()


class Answer(NamedTuple):
    """A response with the number of the example in its header."""

    status: int
    example: Any  # a number, or None
    content: Any


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("teaching") / "state"


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    settings = {"agent": "thompson", "env": "bandit", "development": "single_lifetime", "seed": 0}
    folder = tmp_path_factory.mktemp("agents") / "bandit"
    train(parse_run_spec(settings, "test"), folder)
    return folder


@pytest.fixture(scope="module")
def server(run, state_dir, bandit):
    store = Store(state_dir)
    keys.create_key(store, "admin", admin=True)
    store.close()
    with start(run, state_dir, "--alias", f"bandit={bandit}") as server:
        yield server
        assert "Traceback" not in server.log.read_text()
        server.stop()


def start(run, state_dir, *options):
    limits = ("--max-num-seqs", "8", "--max-queue", "4", "--time-limit", str(TIME_LIMIT))
    online = ("--online", "--learning-fraction", "1")
    return ServerProcess(state_dir, "--alias", f"story={run}", *online, *limits, *options)


@pytest.fixture
def key(server, state_dir):
    """A new key without limits."""
    return create_key(state_dir)


def create_key(state_dir, **limits):
    store = Store(state_dir)
    with contextlib.closing(store):
        return keys.create_key(store, "somebody", **limits)[1]


def post(server, key, path, body, timeout=60.0, **headers):
    """Sends a request; underscores in the names of headers stand for hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    with contextlib.closing(connection):
        renamed_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        fixed = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", path, json.dumps(body).encode(), fixed | renamed_headers)
        response = connection.getresponse()
        number, content = response.headers.get("x-ontogeny-example"), response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return Answer(
            response.status, None if number is None else int(number), json.loads(content) if is_json else content
        )


def complete(server, key, prompt, **more):
    headers = {name: more.pop(name) for name in ("Idempotency_Key", "x_stainless_retry_count") if name in more}
    return post(server, key, "/v1/completions", {"model": "story", "prompt": prompt, "max_tokens": 1} | more, **headers)


def chat(server, key, *messages):
    body = {
        "model": "story",
        "messages": [{"role": "user", "content": message} for message in messages],
        "max_tokens": 1,
    }
    return post(server, key, "/v1/chat/completions", body)


def add_example(server, key, text, **headers):
    return post(server, key, "/v1/models/story/examples", {"text": text}, **headers)


def list_texts(server, key):
    return [example["text"] for example in server.get("/v1/models/story/examples", key)[1]["data"]]


@contextlib.contextmanager
def full_queue(server, key):
    """Keeps the engine busy, and the queue of a key full with the sequences of one request."""
    body = {
        "model": "story",
        "prompt": "a",
        "n": 13,
        "max_tokens": 4096,
        "min_tokens": 4096,  # so that no sequence ends early, also where this process is slow
        "stream": True,
        "learn": False,
    }  # 8 run, 5 wait
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body).encode(), headers)
        with connection.getresponse() as response:
            assert response.status == 200
            yield
    empty = b'ontogeny_num_requests_waiting{deployment="story"} 0.0'
    wait_until(lambda: empty in server.request("GET", "/metrics", key=key)[1])


# --- admission before learning


def test_a_request_refused_by_a_full_queue_is_not_learned_from(server, key):
    with full_queue(server, key):
        for stream in (False, True):
            refused = complete(server, key, "The queue was full.", stream=stream)
            assert (refused.status, refused.content["error"]["code"]) == (429, "queue_full")
            assert refused.example is None
        assert list_texts(server, key) == []
    accepted = complete(server, key, "The queue was full.", x_stainless_retry_count="2")  # a retry of the refused one
    assert accepted.status == 200 and accepted.content["ontogeny"]["example"] == accepted.example is not None
    assert list_texts(server, key) == ["The queue was full."]


def test_tokens_of_refused_requests_are_returned(server, state_dir):
    limited = create_key(state_dir, tokens_per_minute=60_000)
    prompt = "The sea. " * 300  # 2,700 tokens; the sequences that fill the queue take 53,261
    with full_queue(server, limited):
        for _ in range(6):
            assert complete(server, limited, prompt, learn=False).content["error"]["code"] == "queue_full"
    for _ in range(6):
        assert complete(server, limited, prompt, learn=False).status == 200


def test_a_request_abandoned_before_its_first_token_uses_no_tokens(server, state_dir, key):
    limited = create_key(state_dir, tokens_per_minute=600)
    prompt = "The sea. " * 60
    with Store(state_dir) as store, store.transaction():  # the request waits for the journal
        with pytest.raises(TimeoutError):
            body = {"model": "story", "prompt": prompt, "max_tokens": 1}
            post(server, limited, "/v1/completions", body, timeout=0.5)
        assert complete(server, limited, prompt, learn=False).status == 429
    wait_until(lambda: complete(server, limited, prompt, learn=False).status == 200, 10)


def test_an_answer_that_ends_by_the_time_limit_names_the_example_of_its_prompt(server, state_dir, key):
    with ThreadPoolExecutor(2) as threads:
        with Store(state_dir) as store, store.transaction():  # the request waits for the journal until its time is over
            answers = [
                threads.submit(complete, server, key, f"The {word} was slow.", stream=word == "sea")
                for word in ("sea", "sky")
            ]
            time.sleep(TIME_LIMIT + 0.5)
        for answer in (future.result() for future in answers):
            assert (answer.status, answer.content["error"]["code"]) == (503, "time_limit")
            assert answer.example is not None
    assert sorted(list_texts(server, key)) == ["The sea was slow.", "The sky was slow."]


def test_a_prompt_that_the_journal_refuses_is_not_answered_and_uses_no_tokens(server, state_dir):
    key = create_key(state_dir, tokens_per_minute=300, max_stored_bytes=1)
    for stream in (False, True) * 4:  # more often than the queue and the allowance permit
        refused = complete(server, key, "The disk is for others. " * 10, stream=stream, x_stainless_retry_count="1")
        assert (refused.status, refused.content["error"]["code"]) == (429, "insufficient_quota")
        assert refused.example is None
    assert list_texts(server, key) == []
    assert complete(server, key, "The disk is for others. " * 10, learn=False, n=1).status == 200


def test_a_stream_that_is_abandoned_returns_its_tokens(server, state_dir):
    key = create_key(state_dir, tokens_per_minute=5000)
    body = {"model": "story", "prompt": "a", "max_tokens": 4096, "stream": True, "learn": False}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    for attempt in range(3):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
            connection.request("POST", "/v1/completions", json.dumps(body).encode(), headers)
            if attempt:  # otherwise the client leaves before the response begins
                connection.getresponse().read(1)
        wait_until(lambda: complete(server, key, "a", max_tokens=3500, n=1, stop="a", learn=False).status == 200, 10)


def test_streams_and_errors_name_the_example(server, key):
    streamed = complete(server, key, "A stream of the sea.", stream=True)
    assert streamed.status == 200 and streamed.example is not None
    first = json.loads(streamed.content.split(b"\n")[0].removeprefix(b"data: "))
    assert first["ontogeny"]["example"] == streamed.example
    assert chat(server, key, "A chat of the sea.").example == streamed.example + 1
    assert add_example(server, key, "An example of the sea.").example == streamed.example + 2
    assert complete(server, key, "Nothing.", learn=False).example is None


# --- growing prompts


def test_what_is_new_in_a_prompt_is_not_cut_by_letters_between_unrelated_prompts(server, key):
    complete(server, key, "She had a dog who barked.")
    complete(server, key, "She had a duck who swam.")
    complete(server, key, "She had a dog who barked. It was")
    complete(server, key, "She had a dog who barked. It wasn't hers.")
    expected = ["She had a dog who barked.", "She had a duck who swam.", " It was", "wasn't hers."]
    assert list_texts(server, key) == expected
    assert complete(server, key, "She had a dog who barked. It was").example is None
    tokens = list(b"She had a duck who swam. It left.")
    assert complete(server, key, tokens).example is not None
    assert list_texts(server, key) == [*expected, " It left."]


def test_interleaved_conversations_of_one_key_are_each_continued(server, key):
    chat(server, key, "Tell of the sea.")
    chat(server, key, "Tell of the sky.")
    chat(server, key, "Tell of the sea.", "And of its fish.")
    chat(server, key, "Tell of the sky.", "And of its birds.")
    chat(server, key, "Tell of the sea.", "And of its fish.", "And of the sand.")
    new = ["And of its fish.", "And of its birds.", "And of the sand."]
    assert list_texts(server, key) == ["Tell of the sea.", "Tell of the sky.", *(f"\n\n{text}" for text in new)]


def test_an_erased_prompt_counts_as_new_and_other_conversations_do_not(server, key):
    sea, sky = complete(server, key, "The sea is wide."), complete(server, key, "The sky is high.")
    grown = complete(server, key, "The sea is wide. And deep.")
    assert server.delete(f"/v1/models/story/examples/{grown.example}", key=key)[0] == 200
    complete(server, key, "The sea is wide. And cold.")
    assert server.delete(f"/v1/models/story/examples/{sea.example}", key=key)[0] == 200
    complete(server, key, "The sea is wide. And deep.")
    complete(server, key, "The sky is high. And blue.")
    assert list_texts(server, key)[-3:] == [" And cold.", "The sea is wide. And deep.", " And blue."]
    assert sky.example is not None


# --- repeated requests


def test_a_repeated_idempotency_key_teaches_once_and_returns_the_first_number(server, key):
    body = {"model": "story", "prompt": "The key was golden.", "max_tokens": 2, "seed": 3}
    first = post(server, key, "/v1/completions", body, Idempotency_Key="one")
    assert complete(server, key, "Something in between.").example == first.example + 1
    repeated = post(server, key, "/v1/completions", body, Idempotency_Key="one")
    assert repeated.example == first.example == repeated.content["ontogeny"]["example"]
    assert len(repeated.content["choices"]) == 1  # the answer is generated again
    text = add_example(server, key, "The key was of iron.", Idempotency_Key="two")
    assert add_example(server, key, "The key was of iron.", Idempotency_Key="two") == text
    assert add_example(server, key, "The key was of iron.", Idempotency_Key="three").example == text.example + 1
    for answer in (
        post(server, key, "/v1/completions", body | {"prompt": "Another one."}, Idempotency_Key="one"),
        add_example(server, key, "The key was of iron.", Idempotency_Key="one"),
        add_example(server, key, "The key was of tin.", Idempotency_Key="two"),
    ):
        assert (answer.status, answer.content["error"]["code"]) == (400, "idempotency_key_reused")
    assert add_example(server, key, "x", Idempotency_Key="k" * 300).status == 400
    assert len(list_texts(server, key)) == 4


def test_a_repeated_rollback_with_an_idempotency_key_is_made_once(server, state_dir):
    key = create_key(state_dir, admin=True)
    path, body = "/v1/models/story/rollback", {"version": 0}
    answers = [post(server, key, path, body, Idempotency_Key="back")]
    assert answers[0].status == 200 and add_example(server, key, "It is not set aside.").status == 200
    answers.append(post(server, key, path, body, Idempotency_Key="back"))
    assert answers[0] == answers[1] and list_texts(server, key) == ["It is not set aside."]
    status = server.get("/v1/models/story/examples", key)[1]["data"][0]["status"]
    assert status in ("waiting", "learned", "rejected")
    assert post(server, key, path, {"version": 1}, Idempotency_Key="back").status == 400
    assert post(server, key, path, body).status == 200
    assert server.get("/v1/models/story/examples", key)[1]["data"][0]["status"] in ("set_aside", "rejected")


def test_simultaneous_requests_of_one_idempotency_key_teach_once(server, key):
    with ThreadPoolExecutor(8) as threads:
        sent = [threads.submit(add_example, server, key, "All at once.", Idempotency_Key="k") for _ in range(16)]
    assert len({future.result().example for future in sent}) == 1 == len(list_texts(server, key))


def test_a_retry_that_the_client_counts_teaches_once(server, key):
    first = add_example(server, key, "The client counts.", x_stainless_retry_count="0")
    for count in ("1", "2"):
        assert add_example(server, key, "The client counts.", x_stainless_retry_count=count) == first
    assert add_example(server, key, "The client counts.").example == first.example + 1  # sent again on purpose
    unrelated = add_example(server, key, "The client counts on.", x_stainless_retry_count="1")
    assert unrelated.example == first.example + 2  # the first attempt did not arrive
    assert len(list_texts(server, key)) == 3


def test_the_openai_client_that_retries_after_a_timeout_teaches_once(server, key):
    prompts = ["An answer is lost.", "Another answer is lost."]  # two conversations of one key

    def complete_until_timeout(prompt):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=2, timeout=0.7)
        with client, pytest.raises(openai.APITimeoutError):  # in all three attempts
            client.completions.create(model="story", prompt=prompt, max_tokens=4096, n=2)

    with relay_without_answers(server.port) as port, ThreadPoolExecutor(2) as threads:
        list(threads.map(complete_until_timeout, prompts))
    assert sorted(list_texts(server, key)) == prompts


def test_the_openai_client_receives_the_number_of_its_first_attempt(server, state_dir, key):
    is_locked = threading.Event()

    def lock() -> None:
        with Store(state_dir) as store, store.transaction():
            is_locked.set()
            time.sleep(1.5)

    for path, body, texts in (
        ("/completions", {"model": "story", "prompt": "The disk was slow."}, ["The disk was slow."]),
        ("/models/story/examples", {"text": "It was fast."}, ["The disk was slow.", "It was fast."]),
    ):
        is_locked.clear()
        locking = threading.Thread(target=lock)  # the first attempt waits for the journal
        locking.start()
        is_locked.wait()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=4, timeout=0.7) as client:
            answer: Any = client.post(path, cast_to=object, body=body)
        locking.join()
        examples = server.get("/v1/models/story/examples", key)[1]["data"]
        assert [example["text"] for example in examples] == texts
        assert examples[-1]["number"] == (answer["number"] if "number" in answer else answer["ontogeny"]["example"])


@pytest.mark.slow
def test_a_retry_after_kill_9_teaches_once(run, tmp_path):
    state_dir = tmp_path / "state"
    key = create_key(state_dir)
    prompt, headers = "The process was killed.", {"Idempotency_Key": "one"}
    with start(run, state_dir) as server:
        completion = complete(server, key, prompt)
        keyed = add_example(server, key, "The process was killed again.", **headers)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with start(run, state_dir) as server:
        assert complete(server, key, prompt, x_stainless_retry_count="1").example == completion.example
        assert add_example(server, key, "The process was killed again.", **headers) == keyed
        complete(server, key, f"{prompt} It was started again.")
        assert list_texts(server, key) == [prompt, "The process was killed again.", " It was started again."]


def test_erasing_an_example_erases_the_record_of_its_request(server, state_dir, key):
    plain = add_example(server, key, "A secret text.")
    keyed = add_example(server, key, "A second secret text.", Idempotency_Key="s")
    for answer in (plain, keyed):
        assert server.delete(f"/v1/models/story/examples/{answer.example}", key=key)[0] == 200
    store = Store(state_dir)
    with contextlib.closing(store):
        query = "SELECT digest FROM learned_requests WHERE example IN (?, ?)"
        assert store.select_values(query, plain.example, keyed.example) == [None]
    assert add_example(server, key, "A second secret text.", Idempotency_Key="s").example == keyed.example
    assert list_texts(server, key) == []


# --- repeated requests to sessions


def test_a_repeated_request_to_a_session_of_an_agent_takes_one_step(server, key):
    path = "/v1/agents/bandit/sessions"
    first = post(server, key, path, {"seed": 3}, Idempotency_Key="create")
    assert post(server, key, path, {"seed": 3}, Idempotency_Key="create") == first
    assert post(server, key, path, {"seed": 4}, Idempotency_Key="create").status == 400
    assert post(server, key, path, {"seed": 3}, x_stainless_retry_count="1").content["id"] != first.content["id"]
    id, body = first.content["id"], {"observation": 0, "first": True}
    step = post(server, key, f"{path}/{id}/act", body, Idempotency_Key="step")
    assert step.content["num_steps"] == 1
    assert post(server, key, f"{path}/{id}/act", body, Idempotency_Key="step") == step
    reused = post(server, key, f"{path}/{id}/act", {"observation": 0}, Idempotency_Key="step")
    assert (reused.status, reused.content["error"]["code"]) == (400, "idempotency_key_reused")
    for _ in range(2):
        response = post(server, key, f"{path}/{id}/feedback", {"reward": 1.0}, x_stainless_retry_count="1")
        assert response.status == 200
    acted = post(server, key, f"{path}/{id}/act", body)
    assert acted.content["num_steps"] == 2
    assert post(server, key, f"{path}/{id}/act", body, x_stainless_retry_count="1") == acted
    intended = post(server, key, f"{path}/{id}/act", body)  # no retry: it lacks the consequences of the last action
    assert intended.status == 400 and "state the outcome" in intended.content["error"]["message"]
    created = post(server, key, path, {})
    second = post(server, key, path, {}, x_stainless_retry_count="1")  # possibly of another client of the key
    assert second.content["id"] != created.content["id"]
    fork = post(server, key, f"{path}/{id}/fork", {}, Idempotency_Key="fork")
    assert post(server, key, f"{path}/{id}/fork", {}, Idempotency_Key="fork") == fork
    assert fork.content["id"] != id


def test_a_retry_of_a_refused_step_is_no_repeat_of_the_equal_step_before(server, state_dir):
    key = create_key(state_dir)
    path = "/v1/agents/bandit/sessions"
    id = post(server, key, path, {}).content["id"]
    post(server, key, f"{path}/{id}/act", {"observation": 0, "first": True})
    body = {"observation": 0, "reward": 1.0}
    with contextlib.closing(Store(state_dir)) as store:
        keys.change_limits(store, key.split("-")[1], requests_per_minute=1)
        assert post(server, key, f"{path}/{id}/act", body).content["num_steps"] == 2
        assert post(server, key, f"{path}/{id}/act", body).status == 429
        assert post(server, key, f"{path}/{id}/act", body, x_stainless_retry_count="1").status == 429
        keys.change_limits(store, key.split("-")[1], requests_per_minute=None)
    for _ in range(2):
        answer = post(server, key, f"{path}/{id}/act", body, x_stainless_retry_count="2")
        assert answer.content["num_steps"] == 3


def test_a_repeated_request_to_a_session_of_a_text_continues_it_once(server, state_dir):
    key = create_key(state_dir, tokens_per_minute=100)
    path = "/v1/models/story/sessions"
    id = post(server, key, path, {}).content["id"]
    body = {"prompt": "Once there was", "max_tokens": 20, "seed": 1}
    first = post(server, key, f"{path}/{id}/completions", body)
    assert first.content["num_steps"] == first.content["usage"]["total_tokens"]
    for _ in range(3):  # which uses no tokens
        assert post(server, key, f"{path}/{id}/completions", body, x_stainless_retry_count="2") == first
    for _ in range(3):
        assert post(server, key, f"{path}/unknown/completions", body).status == 404
    export = server.get(f"{path}/{id}/state", key)[1]
    assert server.put(f"{path}/{id}/state", export, key)[0] == 200
    repeated = post(server, key, f"{path}/{id}/completions", body | {"max_tokens": 0}, x_stainless_retry_count="1")
    assert repeated.content["num_steps"] > first.content["num_steps"]  # the restored state answered no request
