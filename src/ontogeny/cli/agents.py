"""`ontogeny train`, `evaluate` and `deploy`: develop an agent, score it, and run one lifetime of it."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli import shared
from ontogeny.cli.jax_setup import configure_jax, configure_jax_of_workers
from ontogeny.errors import BadInput, LearningDiverged
from ontogeny.report.formatting import pluralize

if TYPE_CHECKING:
    from ontogeny.memory import MemoryPrediction
    from ontogeny.stages.deploy import DeploymentStep
    from ontogeny.stages.evaluate import AgentEvaluation
    from ontogeny.stages.saved_agent import SavedAgent


def train(
    agent: Annotated[str, typer.Option(help="Agent, NAME[:setting=value,...]; see `ontogeny list agents`.")],
    env: Annotated[str, typer.Option(help="Environment, NAME[:setting=value,...]; see `ontogeny list environments`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")],
    development: Annotated[
        str,
        typer.Option(
            help="Outer loop, NAME[:setting=value,...]; see `ontogeny list development`. The default searches nothing: "
            "a network keeps its random initial weights."
        ),
    ] = "single_lifetime",
    drive: shared.Drives = None,
    checkpoint_interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Seconds between checkpoints; 0 saves one as often as possible.")
    ] = 5.0,
    seed: shared.Seed = 0,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="DRIVER",
            help="Where `evolution` evaluates its shards: in_process, one after another; processes, in parallel on "
            "this machine (processes:num_workers=4 for four of them); or ray, on the cluster that RAY_ADDRESS names. "
            "All three have bitwise equal results.",
        ),
    ] = None,
    device: shared.Device = None,
    num_host_devices: shared.NumHostDevices = None,
) -> None:
    """Develop an agent in an environment; rerun the same command to resume.

    Example: ontogeny train --agent recurrent_cells --env bandit:num_pulls=10 --development evolution --out runs/cells
    """
    if on is None:
        configure_jax(device, num_host_devices)
    else:
        configure_jax_of_workers(device, num_host_devices)
    from ontogeny.parallel.drivers import open_driver
    from ontogeny.runs import checkpoint
    from ontogeny.stages.train import train

    spec = shared.build_run_spec(agent, env, development, drive, seed)
    with (
        contextlib.nullcontext() if on is None else open_driver(on) as driver,
        shared.progress("training") as update,
    ):

        def on_progress(num_done: int, total: int, record: dict[str, Any]) -> None:
            steps = record["env_steps"]
            text = f"generation {num_done} of {total}, fitness {shared.format_number(record['fitness'])}"
            text += f"; {driver.status().describe()}" if driver is not None else ""
            update(steps, steps * total // num_done, text)

        def on_memory(prediction: "MemoryPrediction") -> None:
            shared.print_note(prediction.describe())

        train(
            spec, out, on_progress=on_progress, checkpoint_interval=checkpoint_interval, driver=driver,
            on_memory=on_memory,
        )  # fmt: skip
    genome = checkpoint.read_metadata(out, "genome")
    typer.echo(
        f"{out}: a genome of {pluralize(genome['num_parameters'], 'parameter')} after "
        f"{pluralize(genome['generation'], 'generation')} and {genome['env_steps']:,} steps, "
        f"genome digest {genome['digest'][:16]}"
    )


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished agent run or a saved deployment.")] = None,
    agent: Annotated[
        str | None, typer.Option(help="Agent to evaluate instead of a run, NAME[:setting=value,...].")
    ] = None,
    env: shared.EnvironmentOption = None,
    drive: shared.Drives = None,
    num_tasks: Annotated[int, typer.Option(help="Number of held-out tasks, one lifetime in each.")] = 4000,
    online: Annotated[bool, typer.Option("--online", help="Let the weights learn within each lifetime.")] = False,
    reset_each_episode: Annotated[
        bool,
        typer.Option(
            "--reset-each-episode",
            help="Where an episode begins, reset the activations and hide the last action and its outcome.",
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the tasks, the same for every agent, and of the initial weights of an --agent.",
            callback=shared.check_seed_option,
        ),
    ] = 0,
    as_json: shared.JsonOutput = False,
    out: shared.JsonFile = None,
    device: shared.Device = None,
    num_host_devices: shared.NumHostDevices = None,
) -> None:
    """Score an agent on tasks that its training cannot have drawn, with a 95 % interval.

    Examples: ontogeny evaluate runs/cells --num-tasks 40000; ontogeny evaluate --agent thompson --env
    bandit:num_arms=10
    """
    if (run is None) == (agent is None):
        raise BadInput("name either a run or an --agent with its --env")
    shared.check_new_path(out)
    configure_jax(device, num_host_devices)
    from ontogeny import trees
    from ontogeny.stages.evaluate import evaluate

    saved_agent = _load_run(run, env, drive) if run is not None else _build_agent(str(agent), env, drive, seed)
    if run is None and (num_parameters := trees.num_elements(saved_agent.genome)):
        shared.print_note(
            f"the genome of this agent, {pluralize(num_parameters, 'parameter')}, has its random initial values; "
            "`ontogeny train` develops a genome, and `ontogeny evaluate RUN` scores it"
        )
    if saved_agent.assembly.agent.learning and not online:
        shared.print_note("this agent learns by weights, which are frozen here; --online lets them learn")
    with shared.progress("evaluating") as update, shared.name_agent_in_violations(saved_agent):

        def on_progress(num_done: int, total: int, num_steps: int) -> None:
            update(num_steps, num_steps * total // num_done, f"{num_done:,} of {total:,} tasks")

        evaluation = evaluate(
            *saved_agent.assembly,
            saved_agent.genome if saved_agent.state is None else saved_agent.state,
            num_tasks=num_tasks,
            seed=seed,
            mode="online" if online else "frozen",
            reset_each_episode=reset_each_episode,
            on_progress=on_progress,
        )
    record = _as_record(saved_agent, evaluation, seed)
    shared.output_report(record, _evaluation_rows(record), out, as_json=as_json)


def _load_run(run: Path, env: str | None, drives: list[str] | None) -> "SavedAgent":
    """The agent of a run or saved deployment, in its own environment or another one."""
    from ontogeny.stages.saved_agent import read_saved_agent
    from ontogeny.stages.spec import parse_plugin_choice

    if drives:
        raise BadInput("a run keeps the drives with which it was developed; --drive goes with --agent")
    return read_saved_agent(run, env=parse_plugin_choice(env) if env else None)


def _build_agent(agent: str, env: str | None, drives: list[str] | None, seed: int) -> "SavedAgent":
    """The agent of the options `--agent` and `--env`, with its initial genome."""
    from ontogeny.stages.saved_agent import initial_agent

    if env is None:
        raise BadInput("an --agent is evaluated in an environment: name it with --env")
    return initial_agent(shared.build_run_spec(agent, env, "single_lifetime", drives, seed))


def _as_record(saved_agent: "SavedAgent", evaluation: "AgentEvaluation", seed: int) -> dict[str, Any]:
    """The evaluation as JSON values, with the complete settings of agent and environment."""
    from ontogeny.stages.spec import complete_spec, spec_to_json

    spec = spec_to_json(complete_spec(saved_agent.spec))
    curve = evaluation.curve
    return {
        "agent": spec["agent"],
        "env": spec["env"],
        "drives": spec["drives"],
        "mode": evaluation.mode,
        "seed": seed,
        "num_tasks": evaluation.num_tasks,
        "mean": evaluation.mean,
        "se": evaluation.standard_error,
        "interval": list(evaluation.interval),
        "curve": {
            "unit": curve.unit,
            "position": curve.position.tolist(),
            "mean": curve.mean.tolist(),
            "se": curve.standard_error.tolist(),
        },
        "env_steps": evaluation.env_steps,
        "seconds": round(evaluation.seconds, 3),
    }


def _evaluation_rows(record: dict[str, Any]) -> dict[str, str]:
    """The most important values of an evaluation by label, as text."""
    curve = record["curve"]
    low, high = record["interval"]
    return {
        "agent": shared.format_plugin_choice(record["agent"]),
        "environment": shared.format_plugin_choice(record["env"]),
        "mode": record["mode"],
        "score": f"{shared.format_number(record['mean'])} ± {shared.format_number(record['se'])} (standard error)",
        "95 % interval": f"{shared.format_number(low)} to {shared.format_number(high)}",
        "tasks": f"{record['num_tasks']:,} held out, seed {record['seed']}",
        f"by {curve['unit']}": shared.sparkline(curve["mean"]),
        "time": f"{record['seconds']:.1f} s for {record['env_steps']:,} steps",
    }


def deploy(
    run: Annotated[Path, typer.Argument(help="Folder of a finished agent run or a saved deployment.")],
    online: Annotated[
        bool, typer.Option("--online/--frozen", help="Let the weights keep learning, or keep them fixed.")
    ] = False,
    num_steps: Annotated[
        int | None, typer.Option(help="Number of steps; by default the length of a lifetime in this environment.")
    ] = None,
    env: shared.EnvironmentOption = None,
    seed: shared.Seed = 0,
    save: Annotated[Path | None, typer.Option(help="New folder for the weights and activations at the end.")] = None,
    device: shared.Device = None,
    num_host_devices: shared.NumHostDevices = None,
) -> None:
    """Run one lifetime of a saved agent step by step, and compare its weights before and after.

    Example: ontogeny deploy runs/cells --frozen --num-steps 20 --save runs/cells-deployed
    """
    shared.check_new_path(save)
    configure_jax(device, num_host_devices)
    from ontogeny import trees
    from ontogeny.stages.deploy import deploy
    from ontogeny.stages.saved_agent import initial_state, read_saved_agent, save_deployment
    from ontogeny.stages.spec import parse_plugin_choice

    saved_agent = read_saved_agent(run, env=parse_plugin_choice(env) if env else None)
    before = trees.digest(initial_state(saved_agent, seed)[1].weights)
    step, divergence = None, None
    with shared.name_agent_in_violations(saved_agent):
        try:
            for step in deploy(saved_agent, online=online, seed=seed, num_steps=num_steps):
                typer.echo(_format_step(step))
        except LearningDiverged as error:
            if step is None:
                raise
            divergence = error  # the state of the last step is good
    assert step is not None
    after = trees.digest(step.state.weights)
    comparison = "the weights are the same" if after == before else "the weights have changed"
    typer.echo(f"{comparison}: weights digest {before[:16]} at the start, {after[:16]} at the end")
    if save is not None:
        mode = "online" if online else "frozen"
        typer.echo(f"saved in {save_deployment(save, saved_agent.spec, step.state, mode=mode, num_steps=step.number)}")
    if divergence is not None:
        where = f"the state after step {step.number:,} is {f'saved in {save}' if save else 'lost without --save'}"
        raise BadInput(f"{divergence}; {where}")


def _format_step(step: "DeploymentStep") -> str:
    """One step of a deployment as a line of text."""
    observation = step.observation if isinstance(step.observation, int) else step.observation.tolist()
    outcome = "  ".join(f"{feature} {shared.format_number(value)}" for feature, value in step.outcome.items())
    return (
        f"step {step.number}  episode {step.episode}  observation {observation}  action {step.action}  {outcome}  "
        f"reward {shared.format_number(step.reward)}  score {shared.format_number(step.score)}"
    )
