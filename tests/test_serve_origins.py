"""Pages of other origins and a server without keys: in headless Chromium, and by the headers that browsers send."""

import http.client
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from ontogeny.server.store import Store
from serving import NEEDS_CHROMIUM, ServerProcess, open_chromium, shared_run

pytestmark = pytest.mark.computes


class EmptyPage(BaseHTTPRequestHandler):
    """Answers every request with an empty page."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>page</title>")

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def origins():
    """The origins of two web sites on loopback."""
    sites = [ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) for _ in range(2)]
    for site in sites:
        threading.Thread(target=site.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{site.server_port}" for site in sites]
    for site in sites:
        site.shutdown()
        site.server_close()


@pytest.fixture(scope="module")
def foreign(origins):
    return origins[0]


@pytest.fixture(scope="module")
def allowed(origins):
    return origins[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory, allowed):
    run, state_dir = shared_run(tmp_path_factory), tmp_path_factory.mktemp("origins") / "state"
    lists = ("--allowed-origins", allowed, "--allowed-hosts", "proxy.test")
    with ServerProcess(state_dir, "--alias", f"story={run}", "--online", *lists) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    name_resolution = "--host-resolver-rules=MAP evil.test 127.0.0.1"
    with open_chromium(name_resolution, "--disable-features=LocalNetworkAccessChecks") as browser:
        yield browser


@pytest.fixture
def page(browser):
    page = browser.new_page()
    yield page
    page.close()


def read_state(server):
    """What a page could change: sessions, examples, versions, decisions, and whether the model learns."""
    store = Store(server.state_dir)
    state = [store.select_value(f"SELECT count(*) FROM {table}") for table in ("sessions", "examples", "decisions")]
    store.close()
    return [*state, server.get("/v1/models/story/branch")[1]["learning"]]


def send(server, method, path, headers, body=None):
    """Sends a request with these headers; returns status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in (headers | ({"Content-Length": str(len(data))} if data else {})).items():
            connection.putheader(name, value)
        connection.endheaders(data.encode() if data else None)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


ATTACKS = """async url => {
  const post = (path, body) => fetch(url + path, {method: "POST", mode: "no-cors", body}).catch(() => null);
  const text = JSON.stringify({text: "a text of a foreign page"});
  const prompt = JSON.stringify({prompt: "a prompt of a foreign page"});
  await post("/v1/models/story/freeze");
  await post("/v1/models/story/sessions");
  await post("/v1/models/story/examples", new Blob([text], {type: "text/plain"}));
  await post("/v1/models/story/examples", new Blob([text]));
  await post("/v1/completions", prompt);
  await post("/v1/models/story/rollback", "{}");
  const read = await fetch(url + "/v1/models/story/branch").then(r => r.text(), () => null);
  const erased = await fetch(url + "/v1/models/story/examples/1", {method: "DELETE"}).then(r => r.text(), () => null);
  return [read, erased];
}"""
FORM = """url => { const form = document.body.appendChild(document.createElement("form"));
  form.method = "POST"; form.action = url; form.submit(); }"""
FRAME = """url => new Promise(resolve => { const frame = document.createElement("iframe");
  frame.onload = resolve; frame.src = url; document.body.append(frame); })"""


@NEEDS_CHROMIUM
def test_a_page_of_another_origin_can_neither_change_nor_read_nor_frame_anything(server, page, foreign):
    before = read_state(server)
    assert before[-1] is True
    page.goto(foreign)
    assert page.evaluate(ATTACKS, server.url) == [None, None]
    page.evaluate(FRAME, server.url)
    (frame,) = page.main_frame.child_frames
    assert frame.locator("textarea").count() == 0
    for path in ("freeze", "sessions"):
        page.goto(foreign)
        with page.expect_navigation():
            page.evaluate(FORM, f"{server.url}/v1/models/story/{path}")
        assert "may not use this server" in page.content()
    assert read_state(server) == before


@NEEDS_CHROMIUM
def test_a_page_whose_name_resolves_to_loopback_reads_nothing(server, page):
    url = f"http://evil.test:{server.port}/"
    answer = page.goto(url)
    assert answer is not None and answer.status == 421 and "--allowed-hosts" in answer.text()
    page.route(url, lambda route: route.fulfill(content_type="text/html", body="<p>loaded before the name changed</p>"))
    page.goto(url)
    for method, path in (("GET", "branch"), ("GET", "examples"), ("POST", "rollback"), ("POST", "freeze")):
        fetch = "([path, method]) => fetch(path, {method}).then(async r => [r.status, await r.text()])"
        status, content = page.evaluate(fetch, [f"/v1/models/story/{path}", method])
        assert status == 421 and "--allowed-hosts" in content


@NEEDS_CHROMIUM
def test_a_link_of_another_page_opens_the_page_and_the_page_works(server, page, foreign):
    page.goto(foreign)
    with page.expect_navigation():
        page.evaluate(
            """url => { const link = document.body.appendChild(document.createElement("a"));
          link.href = url; link.click(); }""",
            f"{server.url}/",
        )
    expect(page.locator("#mode")).to_have_text("learning", timeout=30_000)
    post = "path => fetch(path, {method: 'POST'}).then(response => response.status)"
    assert [page.evaluate(post, f"/v1/models/story/{path}") for path in ("freeze", "unfreeze")] == [200, 200]


@NEEDS_CHROMIUM
def test_an_allowed_origin_uses_the_api_from_a_browser(server, page, allowed):
    page.goto(allowed)
    result = page.evaluate(
        """async url => {
          const headers = {"Content-Type": "application/json", "Authorization": "Bearer none", "X-Stainless-OS": "a"};
          const body = JSON.stringify({model: "story", prompt: "The agent", max_tokens: 3, learn: false});
          const response = await fetch(url + "/v1/completions", {method: "POST", headers, body});
          return [response.status, (await response.json()).usage.completion_tokens];
        }""",
        server.url,
    )
    assert result == [200, 3]


def test_requests_of_foreign_pages_are_rejected_by_their_headers(server, foreign, allowed):
    before = read_state(server)
    own_origin = f"http://127.0.0.1:{server.port}"
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for headers in (
        {"Origin": foreign},
        {"Origin": "null"},
        {"Origin": "https://example.org"},
        {"Origin": f"http://localhost:{server.port}"},  # another origin than the host of the request
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": own_origin},
        {"Sec-Fetch-Site": "same-origin", "Origin": foreign},
        navigation,
        navigation | {"Origin": "null"},
    ):
        for method, path in (
            ("GET", "/v1/models/story/examples"),
            ("GET", "/metrics"),
            ("POST", "/v1/models/story/sessions"),
            ("POST", "/v1/models/story/freeze"),
            ("PUT", "/v1/models/story/branch/state"),
            ("DELETE", "/v1/models/story/examples/1"),
            ("OPTIONS", "/v1/completions"),
            ("POST", "/"),
            ("GET", "/v1/unknown"),
        ):
            status, response_headers, content = send(server, method, path, headers)
            assert status == 403, (headers, method, path, content)
            assert json.loads(content)["error"]["code"] == "foreign_origin" and "--allowed-origins" in content
            assert "access-control-allow-origin" not in response_headers
    assert read_state(server) == before
    for headers in (
        {},
        {"Origin": own_origin},
        {"Sec-Fetch-Site": "same-origin", "Origin": own_origin},
        {"Sec-Fetch-Site": "none"},
        {"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1"},  # as some proxies write the host
        {"Host": "127.0.0.1:443", "Origin": "https://127.0.0.1"},
        {"Host": "127.0.0.1", "Origin": "http://127.0.0.1:80"},
    ):
        assert send(server, "GET", "/v1/models", headers)[0] == 200, headers
    for path in ("/", "/docs"):
        assert send(server, "GET", path, navigation)[0] == 200
        assert send(server, "GET", path, navigation | {"Sec-Fetch-Dest": "iframe"})[0] == 403


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/story/branch"])
def test_a_server_on_loopback_answers_only_for_names_of_loopback_and_allowed_hosts(server, path):
    for host in ("127.0.0.1", "localhost", "LOCALHOST:1", f"[::1]:{server.port}", "127.8.9.1:80", "proxy.test:443"):
        assert send(server, "GET", path, {"Host": host})[0] == 200, host
    for host in (
        "evil.test",
        f"evil.test:{server.port}",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "evil.test@127.0.0.1",
        "0.0.0.0",
        "192.168.0.7:8000",
        "127.0.0.1/evil",
        "[::1",
        "",
    ):
        status, _, content = send(server, "GET", path, {"Host": host, "Origin": f"http://{host}"})
        assert status == 421 and "--allowed-hosts" in content, host
    assert (
        send(server, "POST", "/v1/models/story/unfreeze", {"Host": "proxy.test", "Origin": "https://proxy.test"})[0]
        == 200
    )


def test_an_allowed_origin_receives_the_headers_that_its_browser_asks_for(server, allowed, foreign):
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        "Sec-Fetch-Site": "cross-site",
    }
    status, headers, _ = send(server, "OPTIONS", "/v1/completions", preflight | {"Origin": allowed})
    assert status == 200 and headers["Access-Control-Allow-Origin"] == allowed
    assert headers["Access-Control-Allow-Headers"] == preflight["Access-Control-Request-Headers"]
    assert "POST" in headers["Access-Control-Allow-Methods"] and "Access-Control-Allow-Credentials" not in headers
    for path, expected in (("/v1/models", 200), ("/v1/models/nobody", 404)):
        status, headers, _ = send(server, "GET", path, {"Origin": allowed, "Sec-Fetch-Site": "cross-site"})
        assert status == expected and headers["Access-Control-Allow-Origin"] == allowed and "Origin" in headers["Vary"]
    status, headers, _ = send(server, "OPTIONS", "/v1/completions", preflight | {"Origin": foreign})
    assert status == 403 and "Access-Control-Allow-Origin" not in headers


def test_every_response_restricts_what_browsers_do_with_it(server):
    for method, path, host in (
        ("GET", "/", "localhost"),
        ("GET", "/docs", "localhost"),
        ("GET", "/v1/models", "localhost"),
        ("GET", "/metrics", "localhost"),
        ("POST", "/v1/completions", "localhost"),
        ("GET", "/nowhere", "localhost"),
        ("GET", "/", "evil.test"),
    ):
        _, headers, _ = send(server, method, path, {"Host": host})
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers.get_all("X-Content-Type-Options") == ["nosniff"] and headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_connection_of_a_web_socket_is_rejected(server):
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "YQ==",
    }
    for origin in ({"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "websocket"}):
        assert send(server, "GET", "/v1/models", headers | origin)[0] == 403


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--allowed-origins", "*"),
        ("--allowed-origins", "null"),
        ("--allowed-origins", "https://example.org/"),
        ("--allowed-hosts", "*"),
        ("--allowed-hosts", "example.org:80"),
        ("--process-url", "first:8000"),
        ("--process-url", "http://first:8000/"),
        ("--process-url", "http://anna:secret@first:8000"),
    ],
)
def test_an_invalid_host_origin_or_address_is_named(option, value, call_cli):
    code, _, error = call_cli("serve", "run", option, value)
    assert code == 2 and option.removeprefix("--").replace("-", "_") in error and repr(value) in error


@pytest.mark.sqlite
def test_nobody_but_the_owner_may_read_what_a_server_writes(server):
    modes = {path: path.stat().st_mode & 0o777 for path in (server.state_dir, *server.state_dir.rglob("*"))}
    assert {path.name for path in modes} >= {"ontogeny.sqlite", "ontogeny.sqlite-wal", "snapshots", ".ontogeny.lock"}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes


@pytest.fixture
def wide_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.sqlite
def test_files_of_an_earlier_version_lose_the_permissions_of_others(tmp_path, wide_umask):
    folder = tmp_path / "state"
    Store(folder).close()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "snapshots" / "old.safetensors").write_bytes(b"weights")
    with Store(folder) as store, store.transaction():
        store.snapshots.write_as("new.safetensors", b"weights")
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert {name: mode for name, mode in modes.items() if mode != 0o600} == {"snapshots": 0o700}
    assert len(modes) == 6 and folder.stat().st_mode & 0o777 == 0o755  # which its owner chose
