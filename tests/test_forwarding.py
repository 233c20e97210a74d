"""Requests that a process passes on: from one that leaves to the owner, and how often a request is counted."""

import asyncio
import contextlib
import threading
import time
import urllib.error
import urllib.request

import pytest
import uvicorn

from ontogeny.errors import StorageUnavailable
from ontogeny.server.api.forwarding import RequestForwarding
from ontogeny.server.api.request_limits import RequestLimits
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.store import Store
from stepping import fake_learner

pytestmark = pytest.mark.sqlite
LONG = 30.0  # seconds


class Process:
    """A process of a group with an application that answers with its name for the branches that it owns."""

    def __init__(self, name, store):
        self.name, self.num_counted = name, 0
        self.member = Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
        self.branches = BranchManager(store, "story", fake_learner(), ownership=self.member)
        guarded = RequestLimits(
            RequestForwarding(self.answer, self.member), max_body_bytes=1000, arrival_limit=LONG, answers_until_end=True
        )
        self.server = uvicorn.Server(uvicorn.Config(guarded, port=0, log_config=None, lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.member.start(name, self.url)

    async def answer(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        self.num_counted += 1
        scope["state"]["refund"] = lambda: setattr(self, "num_counted", self.num_counted - 1)
        scope["state"]["lease"], status = self.member.number or 0, 200
        try:
            await asyncio.to_thread(self.branches.claim, "anna")
        except OwnedElsewhere as error:
            scope["state"]["owned_elsewhere"] = error
        except StorageUnavailable:
            status = 503
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": self.name.encode()})

    def ask(self):
        """The status and the text of an answer, and the seconds until it came."""
        started_at = time.monotonic()
        try:
            with urllib.request.urlopen(self.url, timeout=LONG) as response:
                return response.status, response.read().decode(), time.monotonic() - started_at
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), time.monotonic() - started_at

    def stop(self):
        self.member.leave()
        self.server.should_exit = True
        self.thread.join(LONG)


@pytest.fixture
def processes(postgres, tmp_path):
    with contextlib.ExitStack() as stack:
        processes = []
        for name in ("first", "second", "third"):
            store = stack.enter_context(Store(tmp_path / name, database_url=postgres.address_for(tmp_path)))
            process = Process(name, store)
            stack.callback(process.stop)
            processes.append(process)
        yield processes


def test_a_process_that_leaves_passes_requests_on_to_the_owner_among_several(processes):
    first, _, third = processes
    assert third.ask()[1] == "third"  # which owns the branch from now on
    assert [process.ask()[:2] for process in processes] == [(200, "third")] * 3
    first.member.is_leaving = True
    first.member.leave()
    status, text, seconds = first.ask()
    assert (status, text) == (200, "third") and seconds < 5
    third.member.is_leaving = True  # now nobody owns the branch, and the first process is asked again
    third.member.leave()
    assert first.ask()[:2] == third.ask()[:2] == (200, "second")


def test_a_request_that_is_passed_on_is_counted_once(processes):
    first, _, third = processes
    assert third.ask()[1] == "third" and first.ask()[1] == "third"
    assert [process.num_counted for process in processes] == [0, 0, 2]
    first.member.is_leaving = True  # the second process refuses the request, and names the third one
    first.member.leave()
    assert first.ask()[1] == "third"
    assert [process.num_counted for process in processes] == [0, 0, 3]


def test_a_request_waits_while_its_process_has_no_lease_for_a_moment(processes, monkeypatch):
    first = processes[0]
    renew, failures = first.member._renew, []

    def fail(number):
        failures.append(number)
        if len(failures) < 6:
            raise StorageUnavailable("slow")
        return renew(number)

    monkeypatch.setattr(first.member, "_renew", fail)
    while first.member.number is not None:
        time.sleep(0.01)
    status, text, seconds = first.ask()
    assert (status, text) == (200, "first") and seconds < 5
    assert first.num_counted == 1


def test_a_request_does_not_wait_for_a_lease_without_the_database(processes, monkeypatch):
    first = processes[0]
    assert first.ask()[1] == "first"

    def fail(number):
        raise StorageUnavailable("stopped")

    monkeypatch.setattr(first.member, "_renew", fail)
    database = type(first.member._store.database)
    monkeypatch.setattr(database, "failed_at", property(lambda database: 1.0))
    while first.member.number is not None:
        time.sleep(0.01)
    status, text, seconds = first.ask()
    assert status == 503 and "storage_unavailable" in text and seconds < 5
