"""The checks of all environments of a provider, as the rows of a table."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ontogeny import plugins
from ontogeny.contracts.environments import run_env_checks
from ontogeny.errors import BadInput
from ontogeny.types import EnvSpec

COLUMNS = ("environment", "observations", "actions", "longest episode", "checks", "steps/s", "remarks")


class ProviderRow(NamedTuple):
    """What the checks found of one environment.

    Attributes:
        name: `PROVIDER:ID`.
        spec: None where the environment is refused.
        num_checks: Checks that ran.
        num_passed: Those whose rule holds, notes included.
        steps_per_second: Of a batch of lifetimes with random actions.
        remarks: Why it is refused, which rules it violates, and notes.
    """

    name: str
    spec: EnvSpec | None
    num_checks: int
    num_passed: int
    steps_per_second: float
    remarks: tuple[str, ...]


def check_provider(provider: str, seed: int = 0) -> Iterator[ProviderRow]:
    """Checks every environment of a provider; one that cannot be built or run has the reason in its row.

    Args:
        provider: An environment plugin that takes an ID and has a function `list_ids`. Settings may follow these IDs.
        seed: As of `run_env_checks`.

    Raises:
        BadInput: The provider cannot list its environments.
    """
    list_ids: Callable[[], Sequence[str]] | None = plugins.get_attribute("environments", provider, "list_ids")
    if list_ids is None:
        raise BadInput(f"'{provider}' cannot list its environments: name one of them, {provider}:ID")
    for id in list_ids():
        yield _check_id(provider, id, seed)


def format_row(row: ProviderRow) -> str:
    """A row of a table in Markdown; `COLUMNS` are its columns."""
    spec = row.spec
    cells = [f"`{row.name}`"]
    if spec is None:
        cells += ["", "", "", "refused", ""]
    else:
        shape = " x ".join(map(str, spec.observation_shape))
        observations = f"{spec.num_observations} numbers" if spec.num_observations else f"array of {shape}"
        cells += [observations, f"{spec.num_actions}", f"{spec.horizon:,}", f"{row.num_passed} of {row.num_checks}"]
        cells += [f"{_round(row.steps_per_second):,}"]
    return f"| {' | '.join([*cells, '; '.join(row.remarks)])} |"


def _check_id(provider: str, id: str, seed: int) -> ProviderRow:
    """The row of one environment."""
    name = f"{provider}:{id}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that there is a newer version of the environment
            env = plugins.build("environments", provider, **plugins.parse(name)[1])
            report = run_env_checks(env, seed)
    except BadInput as error:
        return ProviderRow(name, None, 0, 0, 0.0, (str(error).replace("|", "/"),))
    remarks = tuple(entry.violation.replace("|", "/") for entry in report.results if entry.violation)
    num_checks, speed = len(report.results), report.steps_per_second
    return ProviderRow(name, env.spec, num_checks, num_checks - len(report.violations), speed, remarks)


def _round(speed: float) -> int:
    """A speed with two significant digits."""
    return int(float(f"{speed:.1e}"))
