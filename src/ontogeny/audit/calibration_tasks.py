"""A calibration whose chunks are tasks: measured in several processes or on several machines; see `parallel.drivers`.

A worker finds a control by its name, so that a task consists of names and numbers only.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax

from ontogeny.audit.base import AuditTest, select_tests
from ontogeny.audit.calibration import (
    CONTROLS_BETWEEN_CLEARING,
    Chunk,
    Control,
    ControlResult,
    OnProgress,
    Selection,
    calibrate,
    controls_of,
    measure_chunk,
    plan_selection,
)
from ontogeny.parallel.drivers import Driver
from ontogeny.parallel.tasks import Setup, Task, TaskFailure, raise_first_failure

_measured_controls: set[tuple[str, str, str]] = set()  # whose programs JAX may hold in this process


def calibrate_on(
    driver: Driver,
    selection: Selection,
    num_audits: int = 1000,
    seed: int = 0,
    *,
    extra: Sequence[Control] = (),
    recorded: Sequence[Chunk] = (),
    on_chunk: Callable[[Chunk], None] | None = None,
    on_progress: OnProgress | None = None,
) -> list[ControlResult]:
    """`calibration.calibrate` with the chunks of a driver.

    Args:
        driver: Measures all chunks but those of the controls in `extra`, which exist in this process only.
        selection: Tests, organisms and environments.
        num_audits: Audits of each control by each test.
        seed: Determines all randomness.
        extra: Further controls, such as distilled networks.
        recorded: Chunks of an earlier calibration, which are not measured again.
        on_chunk: Called with each new chunk, in the order in which they arrive.
        on_progress: Called with the number of finished chunks, the number of chunks and a text.

    Returns:
        One result per test, environment and control; controls that cannot act there are left out.

    Raises:
        BadInput: If a recorded chunk was measured with other settings.
        TaskFailed: If a chunk raised an error other than `BadInput`; chunks that arrived before were passed on.
    """
    chunks = {chunk.key: chunk for chunk in recorded}
    planned = plan_selection(selection, num_audits)
    setup = driver.put({"tests": list(selection.tests), "organisms": list(selection.organisms)})

    def measure_missing(numbers: Callable[[int], bool]) -> None:
        """Measure the chunks that have one of these numbers and no record, of controls that can act."""
        tasks = []
        for number, size, test, control in planned:
            key = (test.name, control.env, control.name, seed, number)
            if numbers(number) and key not in chunks and (number == 0 or (*key[:4], 0) in chunks):
                tasks.append(_task(test, control, size, seed, number))

        def receive(index: int, answer: Any) -> None:
            if not isinstance(answer, TaskFailure):
                chunk = Chunk(**answer["chunk"], seconds=answer["timing"])
                chunks[chunk.key] = chunk
                if on_chunk is not None:
                    on_chunk(chunk)
            if on_progress is not None:
                text = "{test} {env}: {control}".format(**tasks[index].request)
                on_progress(min(len(chunks), len(planned)), len(planned), f"{text}; {driver.status().describe()}")

        answers = driver.run(tasks, setup, on_answer=receive, keep_failures=True)
        raise_first_failure([a for a in answers if not (isinstance(a, TaskFailure) and a.is_bad_input)])

    measure_missing(lambda number: number == 0)
    measure_missing(lambda number: number > 0)
    return calibrate(selection, num_audits, seed, extra=extra, recorded=list(chunks.values()), on_chunk=on_chunk)


def _task(test: AuditTest, control: Control, num_audits: int, seed: int, number: int) -> Task:
    """The task that measures a chunk."""
    names = {"test": test.name, "env": control.env, "control": control.name}
    return Task(f"{__name__}:measure", names | {"num_audits": num_audits, "seed": seed, "number": number})


def measure(setup: Setup, request: Mapping[str, Any]) -> dict[str, Any]:
    """Measures a chunk in a worker.

    Returns:
        The chunk without its time as `chunk`, and its processor seconds as `timing`.
    """
    name = (request["test"], request["env"], request["control"])
    if name not in _measured_controls and len(_measured_controls) >= CONTROLS_BETWEEN_CLEARING:
        jax.clear_caches()
        _measured_controls.clear()
    _measured_controls.add(name)
    test, controls = _find_controls(request["test"], request["env"], tuple(setup["tests"]), tuple(setup["organisms"]))
    chunk = measure_chunk(
        test, controls[request["control"]], *(request[key] for key in ("num_audits", "seed", "number"))
    )
    record = chunk._asdict()
    seconds = record.pop("seconds")
    return {"chunk": record, "timing": seconds}


@lru_cache(maxsize=32)
def _find_controls(
    name: str, env: str, tests: Sequence[str], organisms: Sequence[str]
) -> tuple[AuditTest, dict[str, Control]]:
    """A test and its controls in an environment, by name."""
    test = next(test for test in select_tests(tests) if test.name == name)
    controls = controls_of(test, organisms, [env] if env else [])
    return test, {control.name: control for control in controls}
