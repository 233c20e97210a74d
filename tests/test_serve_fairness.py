"""Keys are served in turn, and nobody's abandoned requests are computed: completions, sessions of texts and of agents.

Work is counted, in requests, tokens or steps of the other key; no time is measured.
"""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time

import pytest

from ontogeny import trees
from ontogeny.engine.engine import Engine
from ontogeny.engine.sampling import SamplingParams
from ontogeny.server import keys
from ontogeny.server.sessions.texts import Continuation, TextSessions
from ontogeny.server.states import read_metadata
from ontogeny.server.store import Store
from serving import ServerProcess, load, shared_run, wait_until

pytestmark = pytest.mark.computes

TEXTS, AGENTS = "/v1/models/story/sessions", "/v1/agents/mdp/sessions"
STEP = {"observation": 0, "outcome": {"gain": 1.0}}  # of an agent that has acted before
NUM_CLIENTS = 40
LONG_TEXT = 400  # tokens


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    from ontogeny.stages.spec import parse_run_spec
    from ontogeny.stages.train import train

    folder = tmp_path_factory.mktemp("agents") / "mdp"
    settings = {"agent": "model_based", "env": "random_mdp", "development": "single_lifetime", "seed": 0}
    train(parse_run_spec(settings, "test"), folder)
    return folder


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("fairness") / "state"


@pytest.fixture(scope="module")
def key(state_dir):
    """The texts of two keys."""
    store = Store(state_dir)
    created = {name: keys.create_key(store, name)[1] for name in ("anna", "berta")}
    store.close()
    return created


def start(tmp_path_factory, agent, state_dir):
    names = "--alias", f"story={shared_run(tmp_path_factory)}", "--alias", f"mdp={agent}"
    return ServerProcess(state_dir, *names)


@pytest.fixture(scope="module")
def server(tmp_path_factory, agent, state_dir, key):
    with start(tmp_path_factory, agent, state_dir) as server:
        yield server
        server.stop()
        assert "Traceback" not in server.log.read_text()


def read_metric(server, key, name, deployment):
    content = server.get("/metrics", key)[1].decode()
    value = re.search(rf'^ontogeny_{name}{{deployment="{deployment}"}} (\S+)$', content, re.MULTILINE)
    assert value, f"no metric {name} of {deployment}"
    return float(value[1])


def send(server, path, body, key):
    """Sends a request and returns its connection without waiting for the response."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def create_sessions(server, path, count, key):
    """Creates sessions; agents take their first step, which follows no action."""
    ids = [server.post(path, {}, key)[1]["id"] for _ in range(count)]
    if path == AGENTS:
        assert all(server.post(f"{path}/{id}/act", {"observation": 0}, key)[0] == 200 for id in ids)
    return ids


def count_steps(server, path, ids, key):
    return [server.get(f"{path}/{id}", key)[1]["num_steps"] for id in ids]


def test_requests_to_text_sessions_whose_client_hung_up_are_not_computed(server, key):
    ids = create_sessions(server, TEXTS, 5, key["anna"])
    # The most likely tokens repeat for ever: no answer ends with the end token before its client hangs up.
    body = {"prompt": "Once", "max_tokens": 4096, "temperature": 0}
    connections = [send(server, f"{TEXTS}/{id}/completions", body, key["anna"]) for id in ids * 10]
    wait_until(lambda: read_metric(server, key["anna"], "num_generated_tokens", "story") > 20)
    for connection in connections:
        connection.close()
    wait_until(lambda: read_metric(server, key["anna"], "num_requests_running", "story") == 0)
    assert count_steps(server, TEXTS, ids, key["anna"]) == [0] * 5  # unchanged; none of them waits any more
    num_tokens = read_metric(server, key["anna"], "num_generated_tokens", "story")
    assert num_tokens < 4096 * 5
    assert server.post(f"{TEXTS}/{ids[0]}/completions", {"max_tokens": 2}, key["anna"])[1]["num_steps"] >= 1
    assert read_metric(server, key["anna"], "num_generated_tokens", "story") <= num_tokens + 2


def test_steps_of_agents_whose_client_hung_up_are_not_taken(server, key):
    """A step that has begun is taken; the others are dropped."""
    ids = create_sessions(server, AGENTS, 1, key["anna"])
    os.kill(server.process.pid, signal.SIGSTOP)  # so that it reads no request before its client hangs up
    try:
        for _ in range(200):
            send(server, f"{AGENTS}/{ids[0]}/act", STEP, key["anna"]).close()
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    wait_until(lambda: read_metric(server, key["anna"], "num_session_calls_waiting", "mdp") == 0)
    num_steps = count_steps(server, AGENTS, ids, key["anna"])[0]
    assert num_steps < 100
    assert server.post(f"{AGENTS}/{ids[0]}/act", STEP, key["anna"])[1]["num_steps"] == num_steps + 1


class Flood:
    """Clients of one key, each of which sends the same request again and again."""

    def __init__(self, server, key, requests, num_awaited=2):
        self._num_awaited = num_awaited  # answers, until the context begins
        self.num_answers, self._lock, self._is_ending = 0, threading.Lock(), threading.Event()
        self._connections = []
        self._threads = [
            threading.Thread(target=self._send, args=(server, path, body, key), daemon=True) for path, body in requests
        ]

    def _send(self, server, path, body, key):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
            connection.connect()
            self._connections.append(connection.sock)
            with contextlib.suppress(OSError, http.client.HTTPException):  # `__exit__` ends the connection
                while not self._is_ending.is_set():
                    connection.request("POST", path, json.dumps(body), headers)
                    response = connection.getresponse()
                    response.read()
                    if response.status == 429:  # the queue is full until the engine has begun the other requests
                        time.sleep(0.01)
                        continue
                    assert response.status == 200
                    with self._lock:
                        self.num_answers += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.num_answers >= self._num_awaited)
        return self

    def __exit__(self, *_):
        self._is_ending.set()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(120)


@pytest.mark.parametrize(
    ("sessions", "action", "flood_body", "body"),
    [
        (TEXTS, "completions", {"prompt": "A word. ", "max_tokens": LONG_TEXT}, {"prompt": "B", "max_tokens": 2}),
        (AGENTS, "act", STEP, STEP),
    ],
)
def test_the_sessions_of_one_key_do_not_delay_those_of_another(server, key, sessions, action, flood_body, body):
    """Berta's request is answered before a fraction of the requests of Anna that wait before it."""
    ids = create_sessions(server, sessions, NUM_CLIENTS, key["anna"])
    [id] = create_sessions(server, sessions, 1, key["berta"])
    with Flood(server, key["anna"], [(f"{sessions}/{i}/{action}", flood_body) for i in ids]) as flood:
        num_answers = []
        for _ in range(5):
            before = flood.num_answers
            assert server.post(f"{sessions}/{id}/{action}", body, key["berta"])[0] == 200
            num_answers.append(flood.num_answers - before)
    assert sorted(num_answers)[2] < NUM_CLIENTS // 2  # at least NUM_CLIENTS in the order of arrival


def test_requests_with_128_choices_do_not_delay_those_of_another_key(server, key):
    """Anna's two clients always have a request that is not begun, so that Berta would wait for all of its tokens."""
    body = {"model": "story", "prompt": ["The", "A"] * 8, "n": 8, "max_tokens": 64, "seed": 1}
    [id] = create_sessions(server, TEXTS, 1, key["berta"])
    request = {"prompt": "A", "max_tokens": 3}
    requests = [("/v1/completions", {"model": "story", **request}), (f"{TEXTS}/{id}/completions", request)]
    num_tokens, first = [], read_metric(server, key["anna"], "num_generated_tokens", "story")
    with Flood(server, key["anna"], [("/v1/completions", body)] * 2, num_awaited=0):
        wait_until(lambda: read_metric(server, key["anna"], "num_generated_tokens", "story") > first + 1000)
        for path, request in requests * 5:
            before = read_metric(server, key["anna"], "num_generated_tokens", "story")
            assert server.post(path, request, key["berta"])[0] == 200
            num_tokens.append(read_metric(server, key["anna"], "num_generated_tokens", "story") - before)
    assert max(sorted(num_tokens[::2])[2], sorted(num_tokens[1::2])[2]) < 128 * 64 / 2, num_tokens


def test_calls_of_one_session_are_answered_one_after_another(server, key):
    id, answers = server.post(TEXTS, {}, key["berta"])[1]["id"], []

    def complete():
        body = {"prompt": "x", "max_tokens": 0}
        answers.append(server.post(f"{TEXTS}/{id}/completions", body, key["berta"])[1]["num_steps"])

    threads = [threading.Thread(target=complete) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == list(range(1, 13))


def test_a_text_that_exceeds_the_time_limit_is_unchanged(tmp_path_factory, tmp_path):
    model = load(shared_run(tmp_path_factory))
    engine = Engine(model.config)
    engine.start(model.weights)
    sessions = TextSessions("story", model, engine, Store(tmp_path))
    id = sessions.create("anna", "trained").id
    before = sessions.get("anna", id)
    endless = Continuation(model.weights, "trained", 0, [65], 10**6, SamplingParams(1.0), time.monotonic() + 0.3)
    with pytest.raises(TimeoutError):
        asyncio.run(sessions.complete("anna", id, endless))
    after = sessions.get("anna", id)
    assert after.num_steps == before.num_steps == 0 and trees.bitwise_equal(after.activations, before.activations)
    assert engine.num_requests_running == 0
    sessions.stop()
    engine.stop()


def digest(state):
    """The digest of the tokens and activations of an exported state; the order of its header varies."""
    return read_metadata(state, "text session")["digest"]


def write_text(server, key):
    """Calls of one session; returns its id, the answers with the digests of the states, and the last state."""
    id = server.post(TEXTS, {}, key)[1]["id"]
    outcomes = []
    for seed, (prompt, max_tokens) in enumerate([("Once there was", 20), (" a lamp", 0), ("", 70), ("word " * 9, 12)]):
        body = {"prompt": prompt, "max_tokens": max_tokens, "seed": seed}
        content = server.post(f"{TEXTS}/{id}/completions", body, key)[1]
        state = server.get(f"{TEXTS}/{id}/state", key)[1]
        outcomes.append((content["text"], content["num_steps"], digest(state)))
    return id, outcomes, state


def continue_text(server, id, key):
    body = {"prompt": " and then", "max_tokens": 15, "seed": 9}
    content = server.post(f"{TEXTS}/{id}/completions", body, key)[1]
    return content["text"], digest(server.get(f"{TEXTS}/{id}/state", key)[1])


def test_texts_are_continued_bitwise_equal_alone_among_others_and_after_a_restart(
    server, tmp_path_factory, agent, state_dir, key
):
    first, expected, state = write_text(server, key["berta"])
    body = {"prompt": "Flood. ", "max_tokens": 60}
    ids = create_sessions(server, TEXTS, 8, key["anna"])
    with Flood(server, key["anna"], [(f"{TEXTS}/{id}/completions", body) for id in ids]):
        second, outcomes, _ = write_text(server, key["berta"])
        assert outcomes == expected
        forked = server.post(f"{TEXTS}/{first}/fork", {}, key["berta"])[1]["id"]
        continued = continue_text(server, forked, key["berta"])
    restored = server.post(TEXTS, {}, key["berta"])[1]["id"]
    assert server.put(f"{TEXTS}/{restored}/state", state, key["berta"])[0] == 200
    assert continue_text(server, restored, key["berta"]) == continued
    server.stop()  # this test is the last one of the module
    with start(tmp_path_factory, agent, state_dir) as restarted:
        assert continue_text(restarted, second, key["berta"]) == continued
        assert write_text(restarted, key["berta"])[1] == expected
        restarted.stop()
