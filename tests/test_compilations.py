"""Nothing is compiled, and no memory is lost, at requests and lifetimes like those before."""

import gc
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

import ontogeny
from ontogeny import BadInput, plugins, trees
from ontogeny.server import keys
from ontogeny.server.store import Store
from ontogeny.stages.session import AgentSession
from ontogeny.stages.train import train
from ontogeny.tracing import TracedFunction, build_once
from route_calls import AGENT, MODEL, RouteCalls
from serving import ServerProcess, shared_run, wait_until

ENVS = {
    "random_mdp": {"num_states": 3, "num_actions": 2, "horizon": 4, "num_episodes": 6},
    "bandit": {"num_arms": 3, "num_pulls": 20},
    "chain": {"num_trials": 4, "num_exposures": 2, "num_test_trials": 2},
    "stream": {"num_segments": 3, "segment_length": 10},
    "text": {"passage_length": 10, "num_passages": 3},
    "foraging": {"size": 3, "num_episodes": 5},
    "beacon": {},
    "relay": {"num_steps": 30},
}
AGENTS = plugins.list_names("agents")
COMPILATION = "/jax/core/compile/backend_compile_duration"
MEGABYTE = 2**20


class CompilationCounter:
    """The programs that JAX has compiled in this process since the counter was created."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: str, duration_secs: float, **kwargs: object) -> None:
        del duration_secs, kwargs
        self.count += event == COMPILATION


@contextmanager
def counted_compilations():
    """Counts compilations in its context."""
    counter = CompilationCounter()
    jax.monitoring.register_event_duration_secs_listener(counter)
    try:
        yield counter
    finally:
        jax.monitoring.unregister_event_duration_listener(counter)


def resident_memory(process: int | str = "self") -> int:
    """The bytes of a process that are in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def check_repetitions(function: Callable[[], object], num_repetitions: int, max_growth: int = 16 * MEGABYTE) -> None:
    """Fails if repetitions of a function, after the first two, compile a program or lose memory."""
    function()
    function()
    gc.collect()
    memory = resident_memory()
    with counted_compilations() as counter:
        for number in range(num_repetitions):
            function()
            assert not counter.count, f"repetition {number} compiled {counter.count} programs"
    gc.collect()
    assert resident_memory() - memory < max_growth


def build(agent: str) -> tuple:
    """A new agent, with the first of the environments that it accepts, and its steering."""
    for name, settings in ENVS.items():
        env = ontogeny.make_env(name, **settings)
        try:
            return ontogeny.make_agent(agent, env), env, ontogeny.make_steering(env)
        except BadInput:
            continue
    raise AssertionError(f"no environment for {agent}")


def some(names: list[str], quick: set[str]) -> list:
    """Parameters of a test, slow but for a few."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(AGENTS, {"model_based", "psrl"}))
def test_lifetimes_begin_without_compilation(name):
    agent, _, _ = build(name)

    def begin():
        key = jax.random.key(0)
        agent.reset(agent.init(key, agent.genome(key)))

    check_repetitions(begin, 200)


@pytest.mark.parametrize("name", some(list(ENVS), {"beacon"}))
def test_environments_sample_tasks_without_compilation(name):
    env = ontogeny.make_env(name, **ENVS[name])

    def sample():
        state, _ = env.reset(jax.random.key(0))
        env.step(jax.random.key(1), state, jax.numpy.int32(0))

    check_repetitions(sample, 50)


def use_anew(name: str, num_steps: int, folder: Path | None = None) -> None:
    """Builds an agent, and evaluates, loads and steps it, as a program does in a loop."""
    agent, env, steering = build(name)
    key = jax.random.key(0)
    state = agent.init(key, agent.genome(key))
    for learning in {False, agent.learning}:
        ontogeny.rollout(key, agent, env, steering, state, num_steps, learning)
    ontogeny.evaluate(agent, env, steering, agent.genome(key), num_tasks=2, seed=0)
    if folder is not None:
        session = ontogeny.load(folder, online=True)
        assert isinstance(session, AgentSession)
        observation = 0 if session.spec.num_observations else [0.0] * session.spec.observation_shape[0]
        _, state = session.act(session.init(1), observation)
        outcome = dict.fromkeys(session.spec.outcome_features, 1.0)
        session.act(session.reset(state), observation)
        session.act(state, observation, outcome=outcome)


def test_an_agent_built_from_equal_settings_is_not_compiled_again(tmp_path):
    spec = {"agent": "model_based", "env": {"name": "random_mdp", "settings": ENVS["random_mdp"]}}
    run = train(spec | {"development": "single_lifetime:num_lifetimes=2"}, tmp_path / "run")
    check_repetitions(lambda: use_anew("model_based", 3, run), 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_any_agent_built_from_equal_settings_is_not_compiled_again(name, tmp_path):
    agent, env, _ = build(name)
    run = None
    if not agent.privileged:
        spec = {"agent": name, "env": {"name": env.spec.name, "settings": ENVS[env.spec.name]}}
        run = train(spec | {"development": "single_lifetime:num_lifetimes=2"}, tmp_path / "run")
    check_repetitions(lambda: use_anew(name, 3, run), 200, 32 * MEGABYTE)


def test_a_traced_function_has_the_bits_of_the_function():
    env = plugins.build("environments", "foraging", **ENVS["foraging"])
    traced, key = TracedFunction(env.reset), jax.random.key(7)
    assert trees.bitwise_equal(traced(key)[0], env.reset(key)[0])
    assert trees.bitwise_equal(jax.jit(traced)(key), jax.jit(env.reset)(key))
    assert trees.bitwise_equal(jax.jit(lambda: traced(key))(), jax.jit(lambda: env.reset(key))())


def test_an_object_is_built_once_for_equal_arguments():
    assert build_once(list, (1,)) is build_once(list, (1,))
    assert build_once(list, (1,)) is not build_once(list, (1.0,)) is not build_once(list, (True,))
    assert build_once(list, ([1],)) is not build_once(list, ([1],))  # not hashable
    inside = jax.jit(lambda: build_once(jax.numpy.zeros, 3) + build_once(jax.numpy.zeros, 3))()
    assert inside.shape == build_once(jax.numpy.zeros, 3).shape == (3,)


# --- a server


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compilations")
    agent = {"agent": "model_based", "env": "random_mdp", "development": "single_lifetime:num_lifetimes=2"}
    train(agent, folder / "mdp")
    store = Store(folder / "state")
    key, text = keys.create_key(store, "anna", admin=True)
    store.close()
    aliases = ("--alias", f"{MODEL}={shared_run(tmp_path_factory)}", "--alias", f"{AGENT}={folder / 'mdp'}")
    options = ("--online", "--learning-fraction", "1", "--max-forgetting", "2")
    options += ("--max-loaded-branches", "2", "--max-kv-cache-bytes", "1000000")  # so that no cache grows
    with ServerProcess(folder / "state", *aliases, *options) as server:
        yield RouteCalls(server, text, key.id)
        assert "Traceback" not in server.log.read_text()
        server.stop()


def metric(calls: RouteCalls, name: str) -> float:
    """The value of a metric without labels."""
    lines = calls.request("GET", "/metrics").decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def settle(calls: RouteCalls) -> None:
    """Waits until no example is pending."""
    wait_until(lambda: calls.request("GET", f"/v1/models/{MODEL}/branch")["num_pending"] == 0)


NUM_PARTS = 6  # of the counted requests, after each of which the memory is measured


def growth_of_a_part(memory: list[int]) -> float:
    """The median growth between two measurements: a leak grows in every part, a cache or a free page in a few.

    Args:
        memory: Bytes after each part; differences are taken over half of the parts, so that one jump changes few.
    """
    half = len(memory) // 2
    return statistics.median((late - early) / half for early, late in zip(memory, memory[half:], strict=False))


def check_routes(calls: RouteCalls, routes: list[str], num_warm: int, num_in_part: int, max_growth: int) -> None:
    """Fails if requests to these routes, after the first ones, compile programs or lose memory or descriptors.

    Args:
        calls: Of the server.
        routes: To which one request is sent in each round.
        num_warm: Rounds before the first measurement.
        num_in_part: Rounds of each of the parts.
        max_growth: Bytes by which a part may enlarge the memory.
    """
    process = calls.server.process.pid
    run_routes(calls, routes, num_warm)
    compilations, descriptors = metric(calls, "ontogeny_compilations_total"), count_descriptors(process)
    memory = []
    for _ in range(NUM_PARTS):
        run_routes(calls, routes, num_in_part)
        memory.append(resident_memory(process))
    assert growth_of_a_part(memory) < max_growth, memory
    assert metric(calls, "ontogeny_compilations_total") == compilations
    assert count_descriptors(process) <= descriptors + 3  # connections that are still open


def count_descriptors(process: int) -> int:
    """The open files and sockets of a process."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def run_routes(calls: RouteCalls, routes: list[str], num_rounds: int) -> None:
    """Sends requests to these routes and waits until no example is pending."""
    for _ in range(num_rounds):
        for route in routes:
            calls.calls[route]()
    settle(calls)


def test_every_route_has_a_call(calls):
    assert not calls.missing_routes()


def test_requests_to_all_routes_compile_nothing_and_lose_no_memory(calls):
    check_routes(calls, list(calls.calls), 3, 1, MEGABYTE)


def test_a_leak_is_detected_and_a_cache_that_fills_is_not():
    leak = [100 * MEGABYTE + 2 * MEGABYTE * part for part in range(NUM_PARTS)]
    assert growth_of_a_part(leak) > MEGABYTE
    released = [memory - 20 * MEGABYTE * (part == 4) for part, memory in enumerate(leak)]
    assert growth_of_a_part(released) > MEGABYTE
    jump = [100 * MEGABYTE + 30 * MEGABYTE * (part > 0) for part in range(NUM_PARTS)]
    assert growth_of_a_part(jump) < MEGABYTE


def test_memory_that_a_function_retains_is_measured():
    retained, memory = [], []
    for _ in range(NUM_PARTS):
        retained.append(bytearray(b"x" * (34 * MEGABYTE)))  # so large that no free memory of the process is used
        memory.append(resident_memory())
    assert growth_of_a_part(memory) > MEGABYTE, memory


def test_metrics_describe_the_process(calls):
    assert metric(calls, "process_open_fds") > 0
    memory = metric(calls, "process_resident_memory_bytes")
    assert 0.5 < memory / resident_memory(calls.server.process.pid) < 2


@pytest.mark.slow
@pytest.mark.parametrize("group", ["/v1/agents", "/v1/models/{model}/sessions", "/v1/models/{model}/", ""])
def test_a_thousand_requests_compile_nothing_and_lose_no_memory(calls, group):
    routes = [route for route in calls.calls if route.partition(" ")[2].startswith(group)]
    check_routes(calls, routes, -(-20 // len(routes)), -(-1000 // (NUM_PARTS * len(routes))), 2 * MEGABYTE)
