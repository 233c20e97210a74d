"""Large bodies: the event loop goes on while they are parsed, keys come first, and limits follow from the model."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ontogeny.lm.tokenizer import ByteTokenizer
from ontogeny.server import keys
from ontogeny.server.api.bodies import JSON_STRING, MAX_LARGE_BODIES
from ontogeny.server.api.protocol import CompletionRequest
from ontogeny.server.api.tokenizer import tokenize_prompts
from ontogeny.server.store import Store
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train as train_agent
from serving import ServerProcess, shared_run

pytestmark = [
    pytest.mark.computes,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
TOKENS = json.dumps({"model": "story", "prompt": [97] * 900_000, "max_tokens": 1}).encode()
PARTS = json.dumps(
    {
        "model": "story",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 80_000}],
        "max_tokens": 1,
    }
).encode()
INVALID = json.dumps({"model": "story", "prompt": [[97] * 2] * 250 + [[-1, "a"] * 100_000]}).encode()


@pytest.fixture(scope="module")
def key_server(tmp_path_factory):
    """A server, and two keys."""
    folder, run = tmp_path_factory.mktemp("bodies"), shared_run(tmp_path_factory)
    store = Store(folder / "state")
    texts = [keys.create_key(store, name)[1] for name in ("anna", "ben")]
    store.close()
    with ServerProcess(folder / "state", "--alias", f"story={run}") as server:
        yield server, *texts
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


class Poller:
    """Asks for /health again and again while the context is open; `lateness` is the longest answer in seconds."""

    def __init__(self, server):
        self.lateness, self._server, self._is_ending = 0.0, server, threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def _poll(self):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)) as connection:
            while not self._is_ending.is_set():
                started_at = time.monotonic()
                connection.request("GET", "/health")
                assert connection.getresponse().read()
                self.lateness = max(self.lateness, time.monotonic() - started_at)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_ending.set()
        self._thread.join()


def _parse_time():
    """Seconds in which this process parses one large body, the slowest of three times."""

    def measure():
        started_at = time.monotonic()
        CompletionRequest.model_validate_json(TOKENS)
        return time.monotonic() - started_at

    return max(measure() for _ in range(3))


@pytest.mark.parametrize("is_authenticated", [True, False])
def test_large_bodies_do_not_hold_up_the_event_loop(key_server, is_authenticated):
    server, key, _ = key_server

    def send(request):
        path, body = request
        return server.post(path, body, key if is_authenticated else "wrong")[0]

    requests = [("/v1/completions", TOKENS)] * 6 + [("/v1/chat/completions", PARTS), ("/v1/completions", INVALID)]

    def is_prompt():
        with Poller(server) as poller, ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(send, requests))
        assert statuses == ([200] * 7 + [400] if is_authenticated else [401] * 8)
        return poller.lateness < 8 * _parse_time()

    assert any(is_prompt() for _ in range(4))  # on a busy machine, /health is late for other reasons as well


def test_many_short_prompts_are_tokenized_beside_the_event_loop():
    threads = set()

    class RecordingTokenizer(ByteTokenizer):
        def encode(self, text):
            threads.add(threading.get_ident())
            return super().encode(text)

    tokens = asyncio.run(tokenize_prompts(RecordingTokenizer(), ["a" * 1000] * 256))
    assert list(map(len, tokens)) == [1000] * 256
    assert threads and threading.get_ident() not in threads


def test_a_string_without_end_is_searched_once():
    unfinished = b'"' + b'\\"' * 500_000
    started_at = time.thread_time()
    assert JSON_STRING.sub(b"", b'["a\\"]", [' + unfinished) == b"[, ["
    assert JSON_STRING.sub(b"", b"[" + unfinished + b"\\") == b"["
    assert time.thread_time() - started_at < 5


@contextlib.contextmanager
def _begin_request(server, key, header=b""):
    """Sends the header of a request with a large body and nothing of the body; yields the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%sAuthorization: "
            b"Bearer %s\r\nContent-Length: %d\r\n\r\n" % (header, key.encode(), len(TOKENS))
        )
        yield connection


@pytest.mark.parametrize("header", [b"", b"Expect: 100-continue\r\n"])
def test_a_request_without_a_valid_key_is_refused_before_its_body_arrives(key_server, header):
    server, key, _ = key_server
    with _begin_request(server, key[:-4] + "....", header) as connection:
        response = b""
        while part := connection.recv(65536):
            response += part
    assert response.startswith(b"HTTP/1.1 401") and b"connection: close" in response.lower()
    assert b"invalid_api_key" in response


def test_a_key_has_few_large_bodies_in_memory_and_delays_only_itself(key_server):
    server, anna, ben = key_server
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        unfinished = [stack.enter_context(_begin_request(server, anna)) for _ in range(MAX_LARGE_BODIES)]
        for connection in unfinished:
            connection.sendall(TOKENS[:100_000])
        waiting = pool.submit(server.post, "/v1/completions", TOKENS, anna)
        assert server.post("/v1/completions", TOKENS, ben)[0] == 200
        small = {"model": "story", "prompt": "a", "max_tokens": 1}
        assert server.post("/v1/completions", small, anna)[0] == 200
        assert not waiting.done()
        unfinished[0].close()
        assert waiting.result(30)[0] == 200


def test_an_exported_state_of_any_size_can_be_restored(tmp_path, tmp_path_factory):
    """A branch of a language model and a session of an agent, with a small limit for other requests."""
    spec = {"agent": "model_based", "env": "random_mdp:num_states=18,num_actions=3,horizon=2"}
    train_agent(parse_run_spec(spec, "test"), tmp_path / "agent")
    runs = ("--alias", f"agent={tmp_path / 'agent'}", "--alias", f"story={shared_run(tmp_path_factory)}", "--online")
    with ServerProcess(tmp_path / "state", *runs, "--max-body-bytes", "2048") as server:
        id = server.post("/v1/agents/agent/sessions", {})[1]["id"]
        for owner in ("models/story/branch", f"agents/agent/sessions/{id}"):
            _export_and_restore(server, f"/v1/{owner}/state", 2048)


def _export_and_restore(server, route, max_body_bytes):
    """Restores an exported state that is larger than other requests may be, and no larger one."""
    status, state = server.get(route)
    assert status == 200 and len(state) > max_body_bytes
    assert server.put(route, state)[0] == 200
    assert server.put(route, state + bytes(2 << 20))[0] == 413
    assert server.post("/v1/completions", b"a" * (max_body_bytes + 1))[0] == 413
