"""Evolution on a Ray cluster of three machines: bitwise equal to one process, whatever ends, hangs or is lost.

Workers, a raylet and the driver end by SIGKILL. A disturbance happens in a certain task at a certain phase: before the
evaluation of a shard, in its middle, or after it and before the answer.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from ontogeny.parallel.drivers import open_driver
from ontogeny.stages import shards
from ontogeny.stages.train import train
from sharded_run import NUM_GENERATIONS, NUM_SHARDS, SPEC, read_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_package("ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
NUM_NODES = 3
PLAN = "ONTOGENY_TEST_DISTURBANCES"  # names the folder of the disturbances, one file each
SECONDS_IN_THE_MIDDLE = 1.0  # for which a shard that is disturbed in the middle takes longer


PROGRAM = """
import sys
from ontogeny.parallel.drivers import open_driver
from ontogeny.stages import shards
from ontogeny.stages.train import train
from sharded_run import SPEC
from test_ray_cluster import __name__ as name
shards.SHARD_FUNCTION = f"{name}:disturbed_shard"
with open_driver(sys.argv[1]) as driver:
    train(SPEC, sys.argv[2], driver=driver, checkpoint_interval=3600)
"""


class Disturbance(NamedTuple):
    """A signal to the process that computes a task, or to the raylet of its machine."""

    phase: str
    number: int = signal.SIGKILL
    spared_raylet: int = 0  # if not 0, the raylet receives the signal, unless it is this one


def disturbed_shard(setup, request):
    """`shards.evaluate_shard` with the disturbance that a file of the plan describes, once."""
    for task in ("{generation}-{shard}".format(**request), "{generation}".format(**request)):
        path = Path(os.environ[PLAN]) / task
        with contextlib.suppress(FileNotFoundError):
            phase, number, spared_raylet = json.loads(path.read_text())
            if spared_raylet != os.getppid():
                path.rename(path.with_suffix(f".{os.getpid()}"))
                return evaluate_and_signal(
                    setup, request, phase, os.getppid() if spared_raylet else os.getpid(), number
                )
    return shards.evaluate_shard(setup, request)


def evaluate_and_signal(setup, request, phase: str, pid: int, number: int):
    if phase == "before":
        os.kill(pid, number)
    if phase == "middle":
        threading.Timer(SECONDS_IN_THE_MIDDLE / 2, os.kill, (pid, number)).start()
        time.sleep(SECONDS_IN_THE_MIDDLE)
    answer = shards.evaluate_shard(setup, request)
    if phase == "after":
        os.kill(pid, number)
    return answer


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLAN, str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        patch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
        patch.setattr(shards, "SHARD_FUNCTION", f"{__name__}:disturbed_shard")
        yield folder
    for path in folder.glob("*.*"):  # workers that were stopped outlive their cluster
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.suffix[1:]), signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory) -> list[bytes]:
    """The files of a run in one worker process on this machine."""
    with open_driver("processes:num_workers=1") as driver:
        return read_files(train(SPEC, tmp_path_factory.mktemp("runs") / "undisturbed", driver=driver))


@pytest.fixture(scope="module")
def cluster(plan):
    from ray.cluster_utils import Cluster

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "ray_client_server_port": port})
    cluster.client_address = f"ray://127.0.0.1:{port}"  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(NUM_NODES - 1):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def run_on(cluster, folder: Path, deadline: float = 0.0):
    with open_driver(f"ray:address={cluster.address},deadline={deadline}") as driver:
        train(SPEC, folder, driver=driver)
        return driver.status()


def disturb(plan: Path, task: str, disturbance: Disturbance) -> None:
    (plan / task).write_text(json.dumps(list(map(str, disturbance[:1])) + list(map(int, disturbance[1:]))))


def test_an_undisturbed_run_is_bitwise_equal_to_one_process(cluster, undisturbed, tmp_path) -> None:
    status = run_on(cluster, tmp_path / "run")
    assert read_files(tmp_path / "run") == undisturbed
    assert status.num_workers == NUM_NODES and status.num_answers == NUM_GENERATIONS * NUM_SHARDS + 1  # of the memory
    assert status.num_retries == 0
    num_tasks = NUM_GENERATIONS * NUM_SHARDS
    assert status.request_bytes / num_tasks + status.answer_bytes / num_tasks < 10_000


def test_workers_that_are_killed_in_three_phases_change_nothing(cluster, plan, undisturbed, tmp_path) -> None:
    for task, phase in (("1-0", "before"), ("2-3", "middle"), ("2-5", "middle"), ("3-7", "after")):
        disturb(plan, task, Disturbance(phase))
    status = run_on(cluster, tmp_path / "run")
    assert read_files(tmp_path / "run") == undisturbed
    assert status.num_retries >= 4 and not [path for path in plan.iterdir() if not path.suffix]


def test_a_worker_that_hangs_changes_nothing(cluster, plan, undisturbed, tmp_path) -> None:
    disturb(plan, "2-2", Disturbance("middle", signal.SIGSTOP))
    status = run_on(cluster, tmp_path / "run", deadline=20.0)
    assert read_files(tmp_path / "run") == undisturbed
    assert status.num_stragglers >= 1


def start_driver(address: str, folder: Path) -> subprocess.Popen:
    """A process that runs the spec with a checkpoint at its end only."""
    return subprocess.Popen([sys.executable, "-c", PROGRAM, f"ray:address={address}", str(folder)])


def wait_for_generations(driver: subprocess.Popen, folder: Path, number: int) -> None:
    log = folder / shards.FITNESS_FILE
    while driver.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= number):
        time.sleep(0.02)


def test_a_driver_that_is_killed_resumes(cluster, undisturbed, tmp_path) -> None:
    folder = tmp_path / "run"
    with start_driver(cluster.address, folder) as driver:
        wait_for_generations(driver, folder, 2)
        driver.kill()
    assert (folder / shards.FITNESS_FILE).read_bytes().count(b"\n") >= 2 and not (folder / "genome.json").exists()
    run_on(cluster, folder)
    assert read_files(folder) == undisturbed


def find_client_servers() -> list[int]:
    """The processes of the cluster that serve drivers outside it."""
    servers = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"specific-server" in path.read_bytes():
                servers.append(int(path.parent.name))
    return servers


def test_a_driver_outside_the_cluster_survives_a_lost_connection(cluster, plan, undisturbed, tmp_path) -> None:
    """The process of the cluster that serves this driver is killed."""
    folder = tmp_path / "run"
    disturb(plan, "2", Disturbance("middle", signal.SIGCONT))  # which takes some time and changes nothing
    with start_driver(cluster.client_address, folder) as driver:
        wait_for_generations(driver, folder, 1)
        servers = find_client_servers()
        assert servers
        for server in servers:
            os.kill(server, signal.SIGKILL)
    assert driver.returncode == 0 and read_files(folder) == undisturbed


def test_a_machine_that_is_lost_changes_nothing(cluster, plan, undisturbed, tmp_path) -> None:
    """The last test of the cluster: the raylet of the machine that computes this shard is killed."""
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    disturb(plan, "2", Disturbance("middle", spared_raylet=raylet))
    status = run_on(cluster, tmp_path / "run")
    assert read_files(tmp_path / "run") == undisturbed
    assert status.num_retries >= 1
