"""`ontogeny evaluate`: score an agent on held-out tasks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import (
    Device,
    Drives,
    EnvironmentOption,
    JsonFile,
    JsonOutput,
    build_run_spec,
    check_new_path,
    format_number,
    format_plugin_choice,
    name_agent_in_violations,
    print_note,
    progress,
    sparkline,
)
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from ontogeny.stages.evaluate import AgentEvaluation
    from ontogeny.stages.saved_agent import SavedAgent


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished agent run or a saved deployment.")] = None,
    agent: Annotated[
        str | None, typer.Option(help="Agent to evaluate instead of a run, NAME[:setting=value,...].")
    ] = None,
    env: EnvironmentOption = None,
    drive: Drives = None,
    num_tasks: Annotated[int, typer.Option(help="Number of held-out tasks, one lifetime in each.")] = 4000,
    online: Annotated[bool, typer.Option("--online", help="Let the weights learn within each lifetime.")] = False,
    reset_each_episode: Annotated[
        bool, typer.Option("--reset-each-episode", help="Reset the activations where an episode begins.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the tasks, which are the same for every agent, and of the genome of an --agent."),
    ] = 0,
    as_json: JsonOutput = False,
    out: JsonFile = None,
    device: Device = None,
) -> None:
    """Score an agent on tasks that its training cannot have drawn, with a 95 % interval.

    Examples: ontogeny evaluate runs/cells --num-tasks 40000; ontogeny evaluate --agent thompson --env
    bandit:num_arms=10
    """
    if (run is None) == (agent is None):
        raise BadInput("name either a run or an --agent with its --env")
    check_new_path(out)
    configure_jax(device)
    from ontogeny.runs.files import write_json
    from ontogeny.stages.evaluate import evaluate
    from ontogeny.stages.spec import check_seed

    check_seed(seed, "options")
    saved_agent = _load_run(run, env, drive) if run is not None else _build_agent(str(agent), env, drive, seed)
    if saved_agent.assembly.agent.learning and not online:
        print_note("this agent learns by weights, which are frozen here; --online lets them learn")
    with progress("evaluating") as update, name_agent_in_violations(saved_agent):
        num_steps = saved_agent.assembly.env.spec.num_steps

        def on_progress(num_done: int, total: int) -> None:
            update(num_done * num_steps, total * num_steps, f"{num_done:,} of {total:,} tasks")

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
    if out is not None:
        write_json(out, record)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        _print_evaluation(record)


def _load_run(run: Path, env: str | None, drives: list[str] | None) -> "SavedAgent":
    from ontogeny.stages.saved_agent import read_saved_agent
    from ontogeny.stages.spec import parse_plugin_choice

    if drives:
        raise BadInput("a run keeps the drives with which it was developed; --drive goes with --agent")
    return read_saved_agent(run, env=parse_plugin_choice(env) if env else None)


def _build_agent(agent: str, env: str | None, drives: list[str] | None, seed: int) -> "SavedAgent":
    import jax

    from ontogeny.stages.assembly import assemble
    from ontogeny.stages.saved_agent import SavedAgent

    if env is None:
        raise BadInput("an --agent is evaluated in an environment: name it with --env")
    spec = build_run_spec(agent, env, "single_lifetime", drives, seed)
    assembly = assemble(spec)
    return SavedAgent(spec, assembly, assembly.agent.genome(jax.random.key(seed)), None)


def _as_record(saved_agent: "SavedAgent", evaluation: "AgentEvaluation", seed: int) -> dict[str, Any]:
    from ontogeny.runs.formats import FORMATS, JSON_REPORT
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
        "format": FORMATS[JSON_REPORT],
    }


def _print_evaluation(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    curve = record["curve"]
    low, high = record["interval"]
    rows = {
        "agent": format_plugin_choice(record["agent"]),
        "environment": format_plugin_choice(record["env"]),
        "mode": record["mode"],
        "score": f"{format_number(record['mean'])} ± {format_number(record['se'])} (standard error)",
        "95 % interval": f"{format_number(low)} to {format_number(high)}",
        "tasks": f"{record['num_tasks']:,} held out, seed {record['seed']}",
        f"by {curve['unit']}": sparkline(curve["mean"]),
        "time": f"{record['seconds']:.1f} s for {record['env_steps']:,} steps",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
