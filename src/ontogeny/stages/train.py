"""Training: the development of a genome from a spec, in a folder from which a killed run resumes.

Spec and seed determine a run: `records.jsonl` (one record per generation) and the genome have the same bytes however
often the run was killed and resumed. Wall times are in `timing.jsonl`. The folder holds `spec.json`, these two,
`checkpoint.*`, and from the end of the run on `genome.*`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import plugins, trees
from ontogeny.development.base import require_finite_search
from ontogeny.errors import BadInput
from ontogeny.memory import MemoryPrediction, predict_peak, require_compilation_memory, require_memory
from ontogeny.parallel.drivers import Driver
from ontogeny.rng import key_from_seed
from ontogeny.runs import formats
from ontogeny.runs.folder import claim
from ontogeny.runs.recorder import RunRecorder
from ontogeny.runs.records import Record
from ontogeny.stages.assembly import assemble, build_development
from ontogeny.stages.saved_agent import GENOME, portable_spec
from ontogeny.stages.shards import check_continuation, divide_generations, predict_memory, require_shards
from ontogeny.stages.spec import RunSpec, complete_spec, parse_run_spec, user_files
from ontogeny.types import Development

OnTrainingProgress = Callable[[int, int, Record], None]
OnMemoryPrediction = Callable[[MemoryPrediction], None]
MEMORY_ADVICE = (
    "choose a smaller population_size (or, for strategies other than Open_ES, Open_ES), a smaller network, or fewer "
    "lifetimes"
)


def train(
    spec: RunSpec | Mapping[str, Any],
    out: Path | str,
    *,
    on_progress: OnTrainingProgress | None = None,
    checkpoint_interval: float = 5.0,
    driver: Driver | None = None,
    on_memory: OnMemoryPrediction | None = None,
) -> Path:
    """Run a spec to its end.

    An unfinished run of the same spec is resumed.

    Args:
        spec: A spec, or a mapping with the keys `env`, `agent`, `development`, `drives` and `seed`; only the first two
            are required.
        out: The folder of the run; it is created where it is absent.
        on_progress: Receives the number of generations done and of all generations, and the last record, after each
            compiled call.
        checkpoint_interval: Seconds between checkpoints, at least 0; 0 saves one after each compiled call.
        driver: Evaluates the shards of each generation, for the development `evolution`. The bits of the run are the
            same with every driver, but differ from those of a run without one.
        on_memory: Receives the predicted memory of this process before the first compiled call, and with a driver that
            of its workers; nothing for developments other than `evolution` in environments of Python objects.

    Returns:
        The folder.

    Raises:
        BadInput: The spec is faulty, or the folder holds a finished run, another run or anything else; such a folder
            stays untouched. Or the run would need more memory than there is.
    """
    if not checkpoint_interval >= 0:
        raise BadInput(f"the seconds between checkpoints must be at least 0, not {checkpoint_interval}")
    out = Path(out)
    if not isinstance(spec, RunSpec):
        spec = parse_run_spec(spec)
    development = build_development(spec, assemble(spec))
    if driver is not None:
        require_shards(development, spec)
    completed, files = portable_spec(complete_spec(spec))
    names = [str(path) for _, path in user_files(spec)]

    @cache
    def init() -> Any:
        if driver is not None:
            for prediction in predict_memory(development, spec, driver):
                require_memory(prediction, MEMORY_ADVICE)
                if on_memory is not None:
                    on_memory(prediction)
        if driver is not None or development.program is None:
            return development.init(key_from_seed(spec.seed))
        return _init_within_memory(development, spec.seed, on_memory)

    def prepare(folder: Path) -> dict[str, Any]:
        del folder
        init()  # a run that is refused leaves no folder
        return {}

    with (
        claim(out, formats.AGENT_RUN, completed, files=files, final=f"{GENOME}.json", prepare=prepare),
        plugins.explain_plugin_errors(names, "training fails", only_their_lines=True),
        RunRecorder(out, checkpoint_interval) as recorder,
    ):
        check_continuation(out, in_tasks=driver is not None)
        if driver is not None:
            development = divide_generations(development, spec, out, driver)
        _run(init, development, recorder, on_progress, driver)
    return out


def _run(
    init: Any,
    development: Development,
    recorder: RunRecorder,
    on_progress: OnTrainingProgress | None,
    driver: Driver | None,
) -> None:
    """Run the compiled calls that are not done yet from the state of a cached `init`; save the last genome."""
    state = init()
    init.cache_clear()  # or the first state would stay in memory
    num_calls, generations = development.num_calls, development.generations_per_call
    progress = {"generation": 0, "env_steps": 0}
    resumed = recorder.resume(state)
    if resumed is not None:
        state, progress = resumed
    record: Record = {}
    for call in range(progress["generation"] // generations + 1, num_calls + 1):
        started = time.perf_counter()
        state, info = development.step(state)
        info = jax.device_get(info)
        require_finite_search(info)
        for record in _records(info, progress, development):
            recorder.append([record])
        progress = {name: record[name] for name in progress}
        timing = {"compiled_call": call, "seconds": round(time.perf_counter() - started, 6)}
        recorder.append_timing(timing | ({} if driver is None else driver.status().counts()))
        recorder.save(state, progress, is_last=call == num_calls)
        if on_progress is not None:
            on_progress(call * generations, num_calls * generations, record)
    genome = development.genome(state)
    if not trees.is_finite(genome):
        raise BadInput("the development diverged: its genome holds numbers that are not finite")
    recorder.finish(GENOME, genome, progress)


def _init_within_memory(development: Development, seed: int, on_memory: OnMemoryPrediction | None) -> Any:
    """The initial state of a development; raises `BadInput` where its run would exceed the memory that there is."""
    key = key_from_seed(seed)
    require_compilation_memory()

    def predict(state: Any) -> MemoryPrediction:
        extra_bytes = 0 if development.extra_bytes is None else development.extra_bytes(state)
        return predict_peak(development.program, state, extra_bytes=extra_bytes)

    require_memory(predict(jax.eval_shape(development.init, key)), MEMORY_ADVICE)
    state = development.init(key)
    if on_memory is not None:
        on_memory(predict(state))
    return state


def _records(info: dict[str, Any], progress: Mapping[str, int], development: Development) -> Iterator[Record]:
    """One record for each generation of a compiled call, after those that `progress` counts."""
    values = {name: np.asarray(value) for name, value in info.items()}
    generation, env_steps = progress["generation"], progress["env_steps"]
    steps_taken = values.pop("env_steps", None)
    for index in range(development.generations_per_call):
        generation += 1
        if steps_taken is None:
            env_steps += development.steps_per_generation
        else:
            env_steps += int(steps_taken[index].sum(dtype=np.int64))
        record = {"generation": generation, "env_steps": env_steps}
        yield record | {name: _plain(value[index]) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Arrays as lists and numbers; a number that is not finite as None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
