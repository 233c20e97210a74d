"""Two processes that change one session at the same time: no change is lost."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from database_proxy import DatabaseProxy
from ontogeny.errors import CommitUnknown, StorageUnavailable
from ontogeny.server.api.sessions import SessionCaller
from ontogeny.server.keys import LOCAL
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.sessions.store import SessionChanged, SessionManager
from ontogeny.server.states import encode_state, read_metadata
from ontogeny.server.store import Store


class Count(NamedTuple):
    id: str
    num_steps: int
    weights_digest: str = ""
    revision: int = 0


class Counter(SessionManager[Count]):
    """A manager whose sessions count their steps."""

    def create(self, key):
        return self._insert(key, Count("", 0), None)

    def step(self, key, id, meanwhile=lambda: None):
        session = self.get(key, id)
        meanwhile()
        return self._write(key, session._replace(num_steps=session.num_steps + 1))

    def _encode(self, session):
        return encode_state("branch", {"a": 1.0}, {"num_steps": str(session.num_steps)})

    def _decode(self, id, data):
        return Count(id, int(read_metadata(data, "branch")["num_steps"]))


@pytest.fixture
def counters(tmp_path):
    first, second = Store(tmp_path / "state"), Store(tmp_path / "state")
    counters = Counter("count", first), Counter("count", second)
    yield counters
    for counter in counters:
        counter.stop()


def test_a_step_from_a_state_that_another_process_has_changed_writes_nothing(counters):
    first, second = counters
    id = first.create("anna").id
    with pytest.raises(SessionChanged):
        first.step("anna", id, meanwhile=lambda: second.step("anna", id))
    assert second.get("anna", id).num_steps == 1
    assert first.step("anna", id).num_steps == 2 == second.get("anna", id).revision


def test_steps_of_two_processes_are_taken_one_after_another(counters):
    id = counters[0].create("anna").id

    async def run():
        calls = (counter.call_in_turn(Counter.step, "anna", id) for _ in range(10) for counter in counters)
        return await asyncio.gather(*calls)

    steps = sorted(session.num_steps for session in asyncio.run(run()))
    assert steps == list(range(1, 21)) and counters[0].get("anna", id).num_steps == 20


@pytest.mark.parametrize(
    ("error", "num_retries"),
    [(ValueError("refused"), 0), (OwnedElsewhere(1, "http://127.0.0.1:1"), 1), (CommitUnknown("unknown"), 1)],
)
def test_a_retry_of_a_step_that_another_process_may_have_taken_is_a_repetition(counters, error, num_retries):
    identity = RequestIdentity("a digest", None, 1, 0.0)
    request: Any = SimpleNamespace(state=SimpleNamespace(identity=identity))
    deployment: Any = SimpleNamespace(sessions=counters[0])
    caller = SessionCaller(request, LOCAL, deployment)
    with pytest.raises(type(error)), caller.remember_failure():
        raise error
    assert counters[0].failed_attempts.recognize(LOCAL.id, identity).num_retries == num_retries


@pytest.mark.sqlite
@pytest.mark.parametrize("is_stored", [True, False])
def test_a_step_whose_commit_is_not_confirmed_is_taken_once_or_not(postgres, tmp_path, is_stored):
    address = postgres.address_for(tmp_path)
    with DatabaseProxy(postgres.port) as proxy:
        address = address.replace(f":{postgres.port}/", f":{proxy.port}/")
        with Store(tmp_path / "state", database_url=address) as store:
            counter = Counter("count", store)
            id = counter.create("anna").id
            commit = proxy.stop_next_commit(after=is_stored)
            with ThreadPoolExecutor() as pool:
                step = pool.submit(counter.step, "anna", id)
                assert commit.is_stopped.wait(30)
                proxy.cut()
                commit.released.set()
                error = step.exception(30)
            assert counter.get("anna", id).num_steps == is_stored
            if is_stored:
                assert error is None and step.result() == counter.get("anna", id)
            else:
                assert type(error) is StorageUnavailable
            counter.stop()
