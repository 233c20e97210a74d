"""Drivers of tasks: equal answers in task order, failures of single tasks, workers that end or do not respond."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ontogeny.errors import BadInput
from ontogeny.parallel.deadlines import FACTOR, NUM_RECENT_TASKS, Deadlines
from ontogeny.parallel.drivers import Driver, open_driver
from ontogeny.parallel.in_process import InProcess
from ontogeny.parallel.tasks import Task, TaskFailed, TaskFailure, UnequalAnswers, digest
from ontogeny.parallel.worker import ENVIRONMENT, fingerprint, worker_environment


def square(setup, request):
    """The square of a number, times a factor of the setup."""
    return {"square": setup.get("factor", 1) * request["x"] ** 2, "timing": time.perf_counter()}


def refuse(setup, request):
    raise BadInput(f"the number {request['x']} is bad")


def divide(setup, request):
    return request["x"] / request["by"]


def disturb(setup, request):
    """Ends or stops its process in the first call for each number, and answers in the second."""
    mark = Path(setup["folder"]) / str(request["x"])
    if request["x"] in setup.get("disturbed", ()) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), setup["signal"])
    return request["x"]


def tasks_of(function, numbers, **settings) -> list[Task]:
    return [Task(f"{__name__}:{function.__name__}", {"x": x}, **settings) for x in numbers]


@pytest.fixture(scope="module")
def pool():
    with open_driver("processes:num_workers=2") as driver:
        yield driver


@pytest.fixture(params=["in_process", "processes"])
def driver(request) -> Driver:
    return open_driver() if request.param == "in_process" else request.getfixturevalue("pool")


def test_answers_are_in_the_order_of_the_tasks(driver: Driver) -> None:
    arrived = {}
    setup = driver.put({"factor": 2})
    answers = driver.run(tasks_of(square, range(5)), setup, on_answer=arrived.__setitem__)
    assert [answer["square"] for answer in answers] == [0, 2, 8, 18, 32]
    assert [arrived[index] for index in range(5)] == answers
    assert driver.run(tasks_of(square, [3]))[0]["square"] == 9  # another setup, without the factor


def test_errors_name_their_task_and_lose_no_other(driver: Driver) -> None:
    with pytest.raises(BadInput, match=r"^the number 1 is bad$"):
        driver.run(tasks_of(square, [3]) + tasks_of(refuse, [1, 2]))
    divisions = [Task(f"{__name__}:divide", {"x": 6, "by": by}) for by in (0, 2)]
    with pytest.raises(TaskFailed, match=r"divide of .*0.* failed: ZeroDivisionError"):
        driver.run(divisions)
    failure, bad, quotient = driver.run([divisions[0], *tasks_of(refuse, [7]), divisions[1]], keep_failures=True)
    assert isinstance(failure, TaskFailure) and not failure.is_bad_input and quotient == 3
    assert bad.is_bad_input and bad.message == "the number 7 is bad"
    assert driver.status().num_retries == 0


def test_a_worker_that_ends_is_replaced(tmp_path: Path, pool: Driver) -> None:
    before = pool.status()
    setup = pool.put({"folder": str(tmp_path), "disturbed": [1, 3], "signal": signal.SIGKILL})
    assert pool.run(tasks_of(disturb, range(5)), setup) == [0, 1, 2, 3, 4]
    after = pool.status()
    assert after.num_retries - before.num_retries == 2 and after.num_workers == 2
    assert len(after.fingerprints) == 1


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    with open_driver("processes:num_workers=2,deadline=4.0") as pool:
        setup = pool.put({"folder": str(tmp_path), "disturbed": [0], "signal": signal.SIGSTOP})
        assert pool.run(tasks_of(disturb, range(3)), setup) == [0, 1, 2]
        assert pool.status().num_stragglers >= 1


def test_a_new_worker_has_the_time_to_compile() -> None:
    task, deadlines = Task("module:function", {}), Deadlines(0.0)
    deadlines.record(task.function, 40.0, is_first=True)
    for _ in range(NUM_RECENT_TASKS):
        deadlines.record(task.function, 5.0)
    assert deadlines.seconds_for(task) == FACTOR * 5.0 and deadlines.seconds_for(task, is_first=True) == FACTOR * 40.0
    assert deadlines.seconds_for(task._replace(repeatable=False), is_first=True) == float("inf")


def test_a_task_that_always_ends_its_process_fails(tmp_path: Path, pool: Driver) -> None:
    tasks = [Task("os:_exit", {"x": 0}), *tasks_of(square, [2])]
    tasks[0] = Task(f"{__name__}:end_process", {})
    failure, answer = pool.run(tasks, keep_failures=True)
    assert "4 processes" in failure.message and "exit code 3" in failure.message and answer["square"] == 4


def end_process(setup, request):
    os._exit(3)


def test_workers_end_with_their_parent() -> None:
    program = (
        "from ontogeny.parallel.drivers import open_driver\n"
        "from ontogeny.parallel.tasks import Task\n"
        "pool = open_driver('processes:num_workers=1')\n"
        "print(pool._idle[0].process.pid, flush=True)\n"
        "pool.run([Task('test_drivers:sleep', {})])\n"
    )
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=variables) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        if not is_running(worker):
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def sleep(setup, request):
    time.sleep(60)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_set_one_thread_before_they_import_jax(pool: Driver) -> None:
    (answer,) = pool.run([Task(f"{__name__}:read_settings", {})])
    assert answer == {name: ENVIRONMENT[name] for name in answer}


def read_settings(setup, request):
    return {name: os.environ.get(name) for name in ("NPROC", "OMP_NUM_THREADS", "JAX_PLATFORMS")}


def test_other_flags_of_the_user_reach_the_workers() -> None:
    environment = worker_environment({"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_x=3", "A": "b"})
    assert "--xla_cpu_x=3" in environment["XLA_FLAGS"] and "A" not in environment
    assert environment["XLA_FLAGS"].count("device_count") == 1 and "device_count=1" in environment["XLA_FLAGS"]


class TwiceDriver(InProcess):
    """Gives every answer twice; the second one may have other numbers or come from another kind of worker."""

    def __init__(self, *, second: dict, mixed_workers: bool = False) -> None:
        super().__init__()
        self.second, self.mixed_workers = second, mixed_workers

    def _compute(self, tasks, setup):
        for index, received in super()._compute(tasks, setup):
            yield index, received
            yield index, received._replace(**self.second)


def test_second_answers_must_have_the_bits_of_the_first() -> None:
    task = [Task(f"{__name__}:divide", {"x": 6, "by": 2})]
    driver = TwiceDriver(second={"answer": 3.0})
    assert driver.run(task) == [3.0] and driver.status().num_duplicates == 1
    with pytest.raises(UnequalAnswers, match="two different answers"):
        TwiceDriver(second={"answer": np.nextafter(3.0, 4.0)}).run(task)


def test_workers_of_different_kinds_are_refused_or_marked() -> None:
    task = [Task(f"{__name__}:divide", {"x": 6, "by": 2})]
    second = {"fingerprint": {**fingerprint(), "jaxlib": "0.0"}}
    with pytest.raises(BadInput, match=r"workers are of different kinds .*jaxlib '.*' and '0.0'"):
        TwiceDriver(second=second).run(task)
    driver = TwiceDriver(second=second, mixed_workers=True)
    assert driver.run(task) == [3.0]
    assert "different kinds" in driver.status().describe() and len(driver.status().fingerprints) == 2


@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_processors() -> None:
    """Workers with 1, 2 and 4 processors, as many of these as there are, evaluate a shard of a large network."""
    processors = sorted(os.sched_getaffinity(0))
    spec = {
        "agent": "recurrent:hidden_size=192",
        "env": "bandit:num_arms=2,num_pulls=50",
        "development": "evolution:population_size=16,num_lifetimes=4,num_generations=1",
    }
    digests = []
    try:
        for count in {1, min(2, len(processors)), min(4, len(processors))}:
            os.sched_setaffinity(0, processors[:count])
            with open_driver("processes:num_workers=1") as driver:
                answers = driver.run([Task(f"{__name__}:first_shard", {"spec": spec})])
                digests.append(digest(answers))
    finally:
        os.sched_setaffinity(0, processors)
    assert len(digests) > 1 and len(set(digests)) == 1


def first_shard(setup, request):
    import jax

    from ontogeny import trees
    from ontogeny.rng import key_from_seed
    from ontogeny.stages import shards
    from ontogeny.stages.assembly import assemble, build_development
    from ontogeny.stages.spec import parse_run_spec

    text = json.dumps(request["spec"])
    generation, _ = shards._build_shards(text)
    spec = parse_run_spec(request["spec"])
    development = build_development(spec, assemble(spec))
    arrays = trees.to_arrays(generation.propose(jax.jit(development.init)(key_from_seed(0))))
    return shards.evaluate_shard({"spec": text, "arrays": arrays}, {"shard": 0})


def test_digests_depend_on_types_bits_and_order_but_not_on_timing() -> None:
    x = np.array([0.0, 1.0], np.float32)
    different = [
        x,
        x.astype(np.float64),
        x[::-1],
        -x,
        [0.0, 1.0],
        [0, 1],
        ["0.0", 1.0],
        [[0.0], 1.0],
        {"x": x},
        {"y": x},
    ]
    assert len({digest(tree) for tree in different}) == len(different)
    assert digest({"x": x, "timing": 1, "y": 2}) == digest({"y": 2, "x": x.copy(), "timing": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads", "there is no driver 'threads'"),
        ("processes:num_threads=2", "has no setting 'num_threads'"),
        ("processes:num_workers=-1", "must lie between 0 and 1024"),
        ("processes:num_workers=1025", "must lie between 0 and 1024"),
        ("processes:num_workers=0.5", "setting 'num_workers' of the driver 'processes' must be of type int, not 0.5"),
        ("processes:deadline=soon", "must be of type float, not 'soon'"),
        ("processes:deadline=-1", "must be at least 0"),
    ],
)
def test_bad_drivers_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_driver(text)


@pytest.mark.slow
def test_a_calibration_on_workers_has_the_chunks_of_one_process(pool: Driver) -> None:
    from ontogeny.audit.calibration import Chunk, Selection, calibrate
    from ontogeny.audit.calibration_tasks import calibrate_on

    selection = Selection(("learns",), ("win_stay", "latent_state_learner"), ("bandit",))
    recorded: list[Chunk] = []
    results = calibrate_on(pool, selection, 3, on_chunk=recorded.append)
    assert sorted(chunk.organism for chunk in recorded) == ["latent_state_learner", "win_stay"]
    continued = calibrate_on(pool, selection, 3, recorded=recorded, on_chunk=recorded.append)
    assert continued == results and len(recorded) == 2
    expected = calibrate(selection, 3)
    counts = [[(r.organism, r.yes, r.no, r.yes_by_z) for r in of_run] for of_run in (results, expected)]
    assert counts[0] == counts[1]
