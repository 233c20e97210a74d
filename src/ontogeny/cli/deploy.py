"""`ontogeny deploy`: run one lifetime of a saved agent and print its steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import (
    Device,
    EnvironmentOption,
    Seed,
    check_new_path,
    format_number,
    name_agent_in_violations,
)

if TYPE_CHECKING:
    from ontogeny.stages.deploy import DeploymentStep


def deploy(
    run: Annotated[Path, typer.Argument(help="Folder of a finished agent run or a saved deployment.")],
    online: Annotated[
        bool, typer.Option("--online/--frozen", help="Let the weights keep learning, or keep them fixed.")
    ] = False,
    num_steps: Annotated[
        int | None, typer.Option(help="Number of steps; by default the length of a lifetime in this environment.")
    ] = None,
    env: EnvironmentOption = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="New folder for the weights and activations at the end.")] = None,
    device: Device = None,
) -> None:
    """Run one lifetime of a saved agent step by step, and compare its weights before and after.

    Example: ontogeny deploy runs/cells --frozen --num-steps 20 --save runs/cells-deployed
    """
    check_new_path(save)
    configure_jax(device)
    from ontogeny import trees
    from ontogeny.stages.deploy import deploy
    from ontogeny.stages.saved_agent import initial_state, read_saved_agent, save_deployment
    from ontogeny.stages.spec import check_seed, parse_plugin_choice

    saved_agent = read_saved_agent(run, env=parse_plugin_choice(env) if env else None)
    before = trees.digest(initial_state(saved_agent, check_seed(seed, "options"))[1].weights)
    step = None
    with name_agent_in_violations(saved_agent):
        for step in deploy(saved_agent, online=online, seed=seed, num_steps=num_steps):
            typer.echo(_format_step(step))
    assert step is not None
    after = trees.digest(step.state.weights)
    comparison = "the weights are the same" if after == before else "the weights have changed"
    typer.echo(f"{comparison}: weights digest {before[:16]} at the start, {after[:16]} at the end")
    if save is not None:
        mode = "online" if online else "frozen"
        typer.echo(f"saved in {save_deployment(save, saved_agent.spec, step.state, mode=mode, num_steps=step.number)}")


def _format_step(step: "DeploymentStep") -> str:
    observation = step.observation if isinstance(step.observation, int) else step.observation.tolist()
    outcome = "  ".join(f"{feature} {format_number(value)}" for feature, value in step.outcome.items())
    return (
        f"step {step.number}  episode {step.episode}  observation {observation}  action {step.action}  {outcome}  "
        f"reward {format_number(step.reward)}  score {format_number(step.score)}"
    )
