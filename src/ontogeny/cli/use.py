"""The commands that measure and use an agent: evaluate, deploy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli import lm
from ontogeny.cli.shared import (
    Device,
    Drives,
    Environment,
    Seed,
    can_be_made,
    naming,
    note,
    progress,
    room_text,
    short,
    sketch,
    subject_of,
)
from ontogeny.cli.start import prepare
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from ontogeny.stages.evaluate import AgentEvaluation
    from ontogeny.stages.saved_agent import SavedAgent


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(help="A finished run, a saved deployment, or a language model's folder.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="In place of a run: NAME[:setting=value,...].")] = None,
    env: Environment = None,
    drive: Drives = None,
    tasks: Annotated[int, typer.Option(help="Unseen tasks, one life in each.")] = 4000,
    online: Annotated[bool, typer.Option("--online", help="Let weights learn in each life; else frozen.")] = False,
    reset_each_episode: Annotated[
        bool, typer.Option("--reset-each-episode", help="Restore activations where an episode begins.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="Of a language model: the text to score; by default what its run held out.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens scored per window; by default half of the context.")
    ] = None,
    learning: Annotated[
        str | None, typer.Option(help="Of a language model --online: setting=value,... of how its weights change.")
    ] = None,
    despite_overlap: Annotated[
        bool, typer.Option("--despite-overlap", help="Score a --text although the training text holds parts of it.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Draws the tasks, the same for every agent, and the genome of an --agent.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="A new file for the JSON.")] = None,
    device: Device = None,
) -> None:
    """Score an agent on tasks that no training can have drawn, or a language model on a text, with a 95 % interval."""
    if (run is None) == (agent is None):
        raise BadInput("name either a run or an --agent with its --env")
    can_be_made(out)
    prepare(device)
    from ontogeny.lm.model import is_language

    if run is not None and (text is not None or is_language(run)):
        if env or drive or reset_each_episode:
            raise BadInput("a language model is scored on a text: it has no --env, --drive or --reset-each-episode")
        return lm.evaluate(run, text, online, learning, stride, despite_overlap, seed, as_json, out)
    if text is not None or stride is not None or learning is not None or despite_overlap:
        raise BadInput("--text, --stride, --learning and --despite-overlap are for the run of a language model")
    from ontogeny.runs.files import write_json
    from ontogeny.stages.evaluate import evaluate
    from ontogeny.stages.spec import check_seed

    saved = subject_of(run, agent, env, drive, check_seed(seed, "evaluate"))
    if saved.assembly.agent.learning and not online:
        note("this agent learns by weights, which are frozen here; --online lets them learn")
    with progress("evaluating") as update, naming(saved):
        length = saved.assembly.env.spec.num_steps
        found = evaluate(
            *saved.assembly,
            saved.genome if saved.state is None else saved.state,
            num_tasks=tasks,
            seed=seed,
            mode="online" if online else "frozen",
            reset_each_episode=reset_each_episode,
            on_progress=lambda done, total: update(done * length, total * length, f"{done:,} of {total:,} tasks"),
        )
    record = as_record(saved, found, seed)
    if out is not None:
        write_json(out, record)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        print_evaluation(record)


def deploy(
    run: Annotated[Path, typer.Argument(help="A finished run or a saved deployment.")],
    online: Annotated[bool, typer.Option("--online/--frozen", help="Whether weights go on learning.")] = False,
    steps: Annotated[int | None, typer.Option(help="By default as many as a life in this environment has.")] = None,
    env: Environment = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="A new folder for weights and activations at the end.")] = None,
    device: Device = None,
) -> None:
    """Let a saved agent live one life in use, step by step; a frozen one shows that its weights stayed the same."""
    can_be_made(save)
    prepare(device)
    from ontogeny import trees
    from ontogeny.stages.deploy import deploy
    from ontogeny.stages.saved_agent import initial_state, read_saved_agent, save_deployment
    from ontogeny.stages.spec import check_seed, parse_plugin_choice

    agent = read_saved_agent(run, env=parse_plugin_choice(env) if env else None)
    before = trees.digest(initial_state(agent, check_seed(seed, "deploy"))[1].weights)
    step = None
    with naming(agent):
        for step in deploy(agent, online=online, seed=seed, num_steps=steps):
            outcome_features = "  ".join(f"{feature} {short(value)}" for feature, value in step.outcome.items())
            seen = step.observation if isinstance(step.observation, int) else step.observation.tolist()
            typer.echo(
                f"step {step.number}  episode {step.episode}  observation {seen}  action {step.action}  {outcome_features}  "
                f"reward {short(step.reward)}  score {short(step.score)}"
            )
    assert step is not None
    after = trees.digest(step.state.weights)
    same = "the weights are the same" if after == before else "the weights have changed"
    typer.echo(f"{same}: weights digest {before[:16]} at the start, {after[:16]} at the end")
    if save is not None:
        mode = "online" if online else "frozen"
        typer.echo(f"saved in {save_deployment(save, agent.spec, step.state, mode=mode, num_steps=step.number)}")


def as_record(saved: "SavedAgent", found: "AgentEvaluation", seed: int) -> dict[str, Any]:
    from ontogeny.stages.spec import complete_spec, spec_to_json

    spec = spec_to_json(complete_spec(saved.spec))
    return {
        "agent": spec["agent"],
        "env": spec["env"],
        "drives": spec["drives"],
        "mode": found.mode,
        "seed": seed,
        "tasks": found.num_tasks,
        "mean": found.mean,
        "se": found.standard_error,
        "interval": list(found.interval),
        "curve": {
            "unit": found.curve.unit,
            "position": found.curve.position.tolist(),
            "mean": found.curve.mean.tolist(),
            "se": found.curve.standard_error.tolist(),
        },
        "env_steps": found.env_steps,
        "seconds": round(found.seconds, 3),
        "format": 1,
    }


def print_evaluation(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    curve = record["curve"]
    table = Table(show_header=False, box=None)
    low, high = record["interval"]
    for name, value in (
        ("agent", room_text(record["agent"])),
        ("env", room_text(record["env"])),
        ("mode", record["mode"]),
        ("score", f"{short(record['mean'])} ± {short(record['se'])} (standard error)"),
        ("95 % interval", f"{short(low)} to {short(high)}"),
        ("tasks", f"{record['tasks']:,} unseen, seed {record['seed']}"),
        (f"by {curve['unit']}", sketch(curve["mean"])),
        ("time", f"{record['seconds']:.1f} s for {record['env_steps']:,} steps"),
    ):
        table.add_row(name, value)
    Console().print(table)
