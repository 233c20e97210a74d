"""`ontogeny serve --on ray` as far as it needs no Ray: refusals, options, and the ingress before real sockets."""

import asyncio
import contextlib
import sys
from pathlib import Path

import httpx2
import pytest

from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.clusters import ray_serve
from ontogeny.server.clusters.ingress import Ingress, find_key_id
from ontogeny.server.clusters.proxy import list_middleware
from ontogeny.server.clusters.ray_serve import RayOptions, read_options
from ontogeny.server.clusters.replica import ReplicaSettings
from ontogeny.server.config import ServerConfig
from ontogeny.server.store import Store
from serving import shared_run

LLAMA = Path(__file__).parent / "golden" / "llama3"
POSTGRES = "postgresql://nobody@127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rya", r"^there is no cluster manager 'rya'; did you mean ray\?$"),
        ("ray:replicas=2", r"^--on ray has no setting 'replicas'; its settings are address, num_replicas, num_cpus$"),
        ("ray:num_replicas=0", r"^the setting 'num_replicas' must lie between 1 and 1024, not 0$"),
        ("ray:num_replicas=two", "the setting 'num_replicas' of --on ray"),
        ("ray:num_cpus=-1", "num_cpus"),
        ("ray:address=ray://10.0.0.5:10001", r"^a server is not started through ray://"),
    ],
)
def test_a_wrong_setting_of_the_cluster_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_options(text)


def test_settings_of_the_cluster_are_read() -> None:
    assert read_options("ray") == RayOptions()
    assert read_options("ray:address=10.0.0.5:6379,num_replicas=3,num_cpus=0.5") == RayOptions("10.0.0.5:6379", 3, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--on ray needs a PostgreSQL database"),
        (("--database-url", POSTGRES, "--process-url", "http://a:1"), "--process-url cannot be used with --on ray"),
        (("--database-url", POSTGRES, "--port", "0"), "--port 0 cannot be used with --on ray"),
        (("--database-url", POSTGRES), "servers on a cluster need the package ray: pip install 'ontogeny[ray]'"),
    ],
)
@pytest.mark.sqlite
def test_a_server_that_cannot_be_started_is_refused(tmp_path_factory, call_cli, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.delenv("ONTOGENY_DATABASE_URL", raising=False)
    code, output, errors = call_cli("serve", str(shared_run(tmp_path_factory)), "--on", "ray", *arguments)
    assert code == 2 and not output
    assert message in errors and errors.count("\n") == 1


@pytest.mark.sqlite
def test_a_server_without_a_key_is_refused_before_its_processes_start(
    tmp_path, tmp_path_factory, call_cli, monkeypatch, postgres
):
    monkeypatch.setattr(ray_serve, "_import_ray", lambda options: None)
    run, storage = shared_run(tmp_path_factory), ("--state-dir", str(tmp_path / "state"))
    code, _, errors = call_cli(
        "serve", str(run), "--on", "ray", "--database-url", postgres.address_for(tmp_path), *storage
    )
    assert code == 2 and "--on ray needs a key" in errors and errors.count("\n") == 1


@pytest.mark.sqlite
def test_wrong_settings_of_the_models_are_refused_before_a_cluster_starts(tmp_path, call_cli, monkeypatch, postgres):
    monkeypatch.setattr(ray_serve, "_import_ray", lambda options: None)
    monkeypatch.setattr(ray_serve, "RayServer", None)
    database = postgres.address_for(tmp_path)
    with Store(tmp_path / "state", database_url=database) as store:
        keys.create_key(store, "anna")
    arguments = ("serve", str(LLAMA), "--online", "--on", "ray", "--database-url", database)
    code, output, errors = call_cli(*arguments, "--state-dir", str(tmp_path / "state"))
    assert (code, output) == (2, "") and errors.count("\n") == 1
    assert "'llama3' cannot learn online: this model came without its training texts" in errors


def test_the_text_of_the_settings_has_no_password(tmp_path) -> None:
    settings = ReplicaSettings(
        [("run", tmp_path)], tmp_path, "postgresql://a:secret@b/c", None, {"PGPASSWORD": "secret"}, ServerConfig(),
        print,
    )  # fmt: skip
    assert "secret" not in f"{settings} {settings!r}"


@pytest.mark.parametrize(
    ("header", "id"),
    [("Bearer og-12ab34cd-secret", "12ab34cd"), ("Bearer other", "local"), ("Basic og-1-2", "local"), ("", "local")],
)
def test_the_hint_is_the_public_part_of_the_key(header: str, id: str) -> None:
    assert find_key_id({"headers": [(b"authorization", header.encode())]}) == id


class Replica:
    """A server process of sockets: it answers with what it received, or closes the connection."""

    def __init__(self, answers: bool) -> None:
        self.answers, self.requests, self.url = answers, [], ""

    async def handle(self, reader, writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            header = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in header.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            self.requests.append((header.decode(), await reader.readexactly(length)))
            if self.answers:
                content = self.requests[-1][1] or b"none"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content))
                writer.write(content)
                await writer.drain()
        writer.close()


class Hanging(Replica):
    """A process that accepts connections and answers nothing."""

    def __init__(self) -> None:
        super().__init__(False)

    async def handle(self, reader, writer) -> None:
        await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def running(*replicas: Replica):
    """Lets replicas listen on loopback."""
    async with contextlib.AsyncExitStack() as stack:
        for replica in replicas:
            server = await asyncio.start_server(replica.handle, "127.0.0.1", 0)
            await stack.enter_async_context(server)
            replica.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield


async def send(ingress: Ingress, method: str, **options):
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(ingress), base_url="http://example.org") as client:
        return await client.request(method, "/v1/x?y=%20z", **options)


def test_a_request_whose_replica_ends_is_repeated_with_a_mark_at_another_one() -> None:
    async def run() -> None:
        failing, answering, hints = Replica(False), Replica(True), []

        async def choose(hint: str) -> str:
            hints.append(hint)
            return "http://127.0.0.1:1" if len(hints) == 1 else failing.url if len(hints) == 2 else answering.url

        async with running(failing, answering):
            headers = {"Authorization": "Bearer og-12-secret", "Origin": "http://example.org"}
            response = await send(Ingress(choose, None), "POST", content=b"text" * 1000, headers=headers)
        assert response.status_code == 200 and response.content == b"text" * 1000
        assert hints == ["12", "", ""]  # a replica that does not answer is not chosen again because of the hint
        (first,), (second,) = failing.requests, answering.requests
        assert "x-stainless-retry-count" not in first[0].lower()  # the first one accepted no connection
        assert "x-stainless-retry-count: 1" in second[0].lower() and first[1] == second[1]
        for line in ("POST /v1/x?y=%20z HTTP/1.1", "host: example.org", "origin: http://example.org"):
            assert line.lower() in second[0].lower()

    asyncio.run(run())


def test_a_body_that_is_too_large_to_be_stored_is_sent_once(monkeypatch) -> None:
    async def run() -> None:
        failing, answering, urls = Replica(False), Replica(True), []

        async def choose(hint: str) -> str:
            return urls.pop(0)

        async with running(failing, answering):
            monkeypatch.setattr("ontogeny.server.clusters.ingress.MAX_STORED_BYTES", 1000)
            urls += [answering.url, failing.url]
            assert (await send(Ingress(choose, ""), "PUT", content=b"x" * 5000)).content == b"x" * 5000
            response = await send(Ingress(choose, ""), "PUT", content=b"x" * 5000)
        assert response.status_code == 503 and response.headers["retry-after"] and not urls
        assert response.json()["error"]["code"] == "no_process"

    asyncio.run(run())


def test_without_any_replica_the_answer_is_503(monkeypatch) -> None:
    async def choose(hint: str) -> str:
        raise TimeoutError

    monkeypatch.setattr("ontogeny.server.clusters.ingress.MAX_WAITING_TIME", 0.2)
    response = asyncio.run(send(Ingress(choose, ""), "GET"))
    assert response.status_code == 503 and response.headers["retry-after"]


def test_a_process_that_hangs_is_left_for_another_one(monkeypatch) -> None:
    async def run() -> None:
        hanging, answering, urls = Hanging(), Replica(True), []

        async def choose(hint: str) -> str:
            return urls.pop(0)

        async with running(hanging, answering):
            for name, seconds in (("CHECK_INTERVAL", 0.1), ("MAX_PROBE_TIME", 0.3)):
                monkeypatch.setattr(f"ontogeny.server.clusters.ingress.{name}", seconds)
            urls += [hanging.url, answering.url]
            response = await send(Ingress(choose, ""), "POST", content=b"text")
        assert response.content == b"text" and "x-stainless-retry-count: 1" in answering.requests[0][0].lower()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("num_failures", "size", "status", "marks"),
    [
        (0, 1, 200, [None]),
        (2, 1000, 200, [None, b"1", b"1"]),
        (9, 1, 503, [None, b"1", b"1"]),
        (1, 5 << 20, 503, [None]),
        (0, 2, 503, [None]),  # of Ray itself
    ],
)
def test_rays_http_server_sends_a_request_again_that_an_ingress_has_not_answered(num_failures, size, status, marks):
    requests: list[tuple[bytes | None, int]] = []

    async def ray_server(scope, receive, send):
        """Returns without an answer, as Ray does when the process of a request has ended."""
        num_bytes, more_body = 0, True
        while more_body:
            message = await receive()
            num_bytes, more_body = num_bytes + len(message["body"]), message["more_body"]
        requests.append((dict(scope["headers"]).get(b"x-stainless-retry-count"), num_bytes))
        if len(requests) > num_failures:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

    async def ask() -> httpx2.Response:
        (middleware,) = list_middleware()
        transport = httpx2.ASGITransport(middleware.cls(ray_server, *middleware.args, **middleware.kwargs))
        async with httpx2.AsyncClient(transport=transport, base_url="http://ray") as client:
            return await client.post("/v1/completions", content=b"x" * size)

    answer = asyncio.run(ask())
    assert answer.status_code == status and ("retry-after" in answer.headers) == (status == 503)
    assert [mark for mark, _ in requests] == marks and {num_bytes for _, num_bytes in requests} == {size}
