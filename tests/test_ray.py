"""The driver `ray` on real local clusters: its answers are those of other drivers, whatever happens to its workers."""

import signal
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.parallel.drivers import open_driver
from ontogeny.parallel.tasks import Task, TaskFailure
from ontogeny.parallel.worker import ENVIRONMENT
from test_drivers import disturb, divide, read_settings, refuse, square, tasks_of

pytestmark = [
    pytest.mark.needs_package("ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def local_cluster():
    with open_driver("ray:num_workers=2,deadline=3.0") as driver:
        yield driver


def test_answers_settings_and_failures_are_those_of_other_drivers(local_cluster) -> None:
    setup = local_cluster.put({"factor": 2})
    assert [a["square"] for a in local_cluster.run(tasks_of(square, range(5)), setup)] == [0, 2, 8, 18, 32]
    (settings,) = local_cluster.run(tasks_of(read_settings, [0]))
    assert settings == {name: ENVIRONMENT[name] for name in settings}
    with pytest.raises(BadInput, match=r"^the number 1 is bad$"):
        local_cluster.run(tasks_of(square, [3]) + tasks_of(refuse, [1]))
    tasks = [Task(f"{divide.__module__}:divide", {"x": 6, "by": by}) for by in (0, 2)]
    failure, quotient = local_cluster.run(tasks, keep_failures=True)
    assert isinstance(failure, TaskFailure) and "ZeroDivisionError" in failure.message and quotient == 3


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_refused_at_once(address: str) -> None:
    with pytest.raises(BadInput, match=f"^the Ray cluster '{address}' does not respond: "):
        open_driver(f"ray:address={address}")


@pytest.mark.parametrize(("number", "field"), [(signal.SIGKILL, "num_retries"), (signal.SIGSTOP, "num_stragglers")])
def test_a_worker_that_ends_or_hangs_changes_no_answer(tmp_path: Path, local_cluster, number, field) -> None:
    before = getattr(local_cluster.status(), field)
    setup = local_cluster.put({"folder": str(tmp_path), "disturbed": [1], "signal": number})
    assert local_cluster.run(tasks_of(disturb, range(5)), setup) == [0, 1, 2, 3, 4]
    assert getattr(local_cluster.status(), field) > before


def test_the_status_survives_a_lost_connection(local_cluster, monkeypatch) -> None:
    import grpc  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    def fail():
        raise grpc.RpcError("the connection was lost")

    before = local_cluster.status().num_workers
    monkeypatch.setattr(local_cluster._ray, "cluster_resources", fail)
    monkeypatch.setattr(local_cluster, "_last_count", float("-inf"))
    assert local_cluster.status().num_workers == before
