"""Connections of clients that send or read nothing, and the end of requests when the server stops; real sockets."""

import asyncio
import contextlib
import gc
import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from ontogeny.server.api.request_limits import RequestLimits
from ontogeny.server.connections import LimitedConnection, build_server
from serving import ServerProcess, make_run, wait_until

pytestmark = [
    pytest.mark.computes,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
LIMIT = 0.5  # seconds
HEADER = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEADER + b"Transfer-Encoding: chunked\r\n\r\n"


async def application(scope, receive, send):
    """Reads the body unless the path is /unread, and sends ten megabytes for /large and three letters otherwise."""
    while scope["path"] != "/unread" and (await receive()).get("more_body"):
        pass
    body = b"a" * (10 << 20 if scope["path"] == "/large" else 3)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _serve(application, *, drain_time=5.0, **settings):
    """Serves an ASGI application with short limits on a thread, and stops it; yields its port."""

    async def with_lifespan(scope, receive, send):
        if scope["type"] == "http":
            return await application(scope, receive, send)
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return None

    limits = RequestLimits(with_lifespan, max_body_bytes=1 << 30, arrival_limit=LIMIT, **settings)
    server = build_server(limits, limits, arrival_limit=LIMIT, send_limit=LIMIT, backlog=100, drain_time=drain_time)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def limited_port():
    """The port of a server whose limits of time are short."""
    with _serve(application) as port:
        yield port


def _read_all(connection):
    """What the server sends until it closes the connection; fails if it stays open."""
    response = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            response += part
    return response


def _parse(response):
    """Status, headers and JSON content of a response."""
    header, _, content = response.partition(b"\r\n\r\n")
    lines = header.decode().lower().split("\r\n")
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), json.loads(content)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nAcc", b"GET / HTTP/1.1\r\n\r\n"[:1]])
def test_a_connection_that_sends_nothing_or_half_a_header_is_closed(limited_port, sent):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(sent)
        response = _read_all(connection)
    if not sent:
        assert response == b""
    else:
        status, _, content = _parse(response)
        assert (status, content["error"]["code"]) == (408, "timeout")


def test_parts_of_an_answer_do_not_wait_for_the_client_to_confirm_others():
    """A listening socket that does not name its protocol, as those of `socket.create_server`."""
    options = []

    async def read_options(scope, receive, send):
        connections = [c for c in gc.get_objects() if isinstance(c, LimitedConnection) and c.transport is not None]
        options.extend(
            c.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for c in connections
        )
        await application(scope, receive, send)

    with _serve(read_options) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(HEADER + b"Content-Length: 0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert options and all(options)


def test_a_header_that_arrives_byte_by_byte_is_refused(limited_port):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)  # the pace of the client, which is the subject of this test
            pytest.fail("the connection is still open after 5 s")


def test_a_second_request_that_never_ends_is_refused_too(limited_port):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = b""
        while not first.endswith(b"aaa"):
            first += connection.recv(65536)
        connection.sendall(b"GET / HTTP/1.1\r\nHo")
        assert first.startswith(b"HTTP/1.1 200") and _parse(_read_all(connection))[0] == 408


def test_an_idle_connection_is_closed_after_a_response(limited_port):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [CHUNKED + b"1\r\na\r\n", HEADER + b"Content-Length: 100\r\n\r\na"])
def test_a_body_that_never_ends_is_refused_and_its_connection_closed(limited_port, sent):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(sent)
        status, headers, content = _parse(_read_all(connection))
    assert (status, headers["connection"], content["error"]["code"]) == (408, "close", "timeout")


def test_an_endless_body_of_an_answered_request_ends_its_connection(limited_port):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(CHUNKED.replace(b"POST /", b"POST /unread"))
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"1\r\na\r\n")
                time.sleep(0.05)  # the pace of the client, which is the subject of this test
            pytest.fail("the connection is still open after 10 s")


def test_a_client_that_reads_nothing_loses_its_connection(limited_port):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", limited_port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Sending shows the reset of a connection without reading the response.
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"\r\n")
                time.sleep(0.05)
            pytest.fail("the connection is still open after 10 s")


def test_what_is_no_http_is_refused_in_the_form_of_all_errors(limited_port):
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(b"hello\r\n\r\n")
        status, headers, content = _parse(_read_all(connection))
    assert (status, headers["connection"]) == (400, "close")
    assert content["error"]["type"] == "invalid_request_error"


def test_a_refused_body_is_not_awaited(limited_port):
    """A client that sends the whole body before it reads sees the refusal."""
    with socket.create_connection(("127.0.0.1", limited_port), timeout=20) as connection:
        connection.sendall(HEADER + b"Content-Length: %d\r\n\r\n" % (2 << 30) + b"a" * (4 << 20))
        assert _parse(_read_all(connection))[0] == 413


# --- the end of a server


def test_a_client_that_reads_nothing_does_not_keep_a_server_from_stopping():
    is_full = threading.Event()

    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while True:
            is_full.set()
            await send({"type": "http.response.body", "body": b"data: a\n\n" * 100_000, "more_body": True})
            is_full.clear()
            await asyncio.sleep(0)  # where a server that stops cancels the request

    with _serve(stream) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(10) and is_full.wait(20)


@pytest.fixture
def port_0_server(tmp_path):
    run = make_run(tmp_path / "run", num_steps=1)
    with ServerProcess(
        tmp_path / "state", "--alias", f"story={run}", "--max-num-seqs", "1", "--max-queue", "9999", port=0
    ) as server:
        yield server


def _post(server, body):
    """Opens a connection and sends a completion request."""
    content = json.dumps({"model": "story", "prompt": ["a"] * 16, "n": 16, "max_tokens": 4096} | body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(
        HEADER.replace(b"/ ", b"/v1/completions ") + b"Content-Length: %d\r\n\r\n" % len(content) + content
    )
    return connection


@pytest.mark.sqlite  # several servers may share a PostgreSQL database
def test_a_stopping_server_ends_every_request_with_an_error_of_its_own(port_0_server):
    """Whole answers, streams, new requests, and clients that hang; the process ends by itself with code 0."""
    server = port_0_server
    assert re.fullmatch(
        r"starting story \(frozen\)\nserving story \(frozen\) on http://127.0.0.1:\d+\n", server.log.read_text()
    )
    connections = stream, answered, _ = [_post(server, {"stream": streams}) for streams in (True, False, True)]
    half_header, half_body = (socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(2))
    with contextlib.ExitStack() as stack:
        for connection in (*connections, half_header, half_body):
            stack.enter_context(connection)
        half_header.sendall(b"GET / HTTP/1.1\r\nHo")
        half_body.sendall(HEADER.replace(b"/ ", b"/v1/completions ") + b"Content-Length: 100\r\n\r\n{")
        assert stream.recv(10)
        reading = stack.enter_context(ThreadPoolExecutor(1)).submit(_read_all, stream)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/v1/models")[0] == 503)
        for connection in (answered, half_body):
            status, headers, content = _parse(_read_all(connection))
            assert (status, content["error"]["code"]) == (503, "server_stops") and int(headers["retry-after"]) > 0
        events = reading.result(30).decode()
        assert "[DONE]" not in events and '"code": "server_stops"' in events.rpartition("data: ")[2]
        assert events.endswith("\r\n0\r\n\r\n")  # the end of a body in chunks
        assert _read_all(half_header) == b""
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_stopping_server_answers_every_connection_that_it_accepts():
    """Where other processes answer, a client of a stopping server gets an answer or cannot connect."""
    results, ports = [], []

    def use(number):
        """Connects and sends a request at once or after a moment, until the server refuses a connection."""
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", ports[0]), timeout=20)
            except ConnectionRefusedError:
                return
            with connection:
                time.sleep(0.004 * (number % 4))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"GET /unread HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    results.append(connection.recv(65536)[:15])
                    continue
                results.append(b"reset")

    for _ in range(2):
        results.clear()
        with _serve(application, answers_until_end=True) as port:
            ports[:] = [port]
            clients = [threading.Thread(target=use, args=(number,)) for number in range(16)]
            for client in clients:
                client.start()
            wait_until(lambda: len(results) > 100)
        for client in clients:
            client.join()
        # On a busy machine, a connection can arrive between the last one that is accepted and the end of the listening.
        assert set(results) <= {b"HTTP/1.1 200 OK", b"reset"} and results.count(b"reset") <= 2, Counter(results)


@pytest.mark.parametrize(("drain_time", "status"), [(0.2, 503), (20.0, 200)])
def test_running_requests_have_the_drain_time_to_finish(drain_time, status):
    async def answer_late(scope, receive, send):
        await receive()
        await asyncio.sleep(1.5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with contextlib.ExitStack() as stack:
        with _serve(answer_late, drain_time=drain_time) as port:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.3)
        assert _parse(_read_all(connection))[0] == status
