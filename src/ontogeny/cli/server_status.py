"""`ontogeny deployments status`: the processes that share a database, their branches and their queues."""

import json
from typing import TYPE_CHECKING, Any

import typer

from ontogeny.cli.shared import (
    DEFAULT_STATE_DIR,
    DatabaseUrl,
    JsonOutput,
    StateDir,
    format_time,
    open_store,
    print_table,
)
from ontogeny.printable import to_printable
from ontogeny.report.formatting import pluralize

if TYPE_CHECKING:
    from ontogeny.server.processes.membership import ServerProcess
    from ontogeny.server.processes.status import Computation, ProcessStatus

HEADINGS = ("process", "name", "address", "since", "running", "waiting", "branches", "to learn", "lag")


def show_status(
    state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None, as_json: JsonOutput = False
) -> None:
    """Print the server processes that share a database, with their requests, branches and examples to learn.

    Example: ontogeny deployments status --database-url postgresql://ontogeny@localhost/ontogeny
    """
    from ontogeny.server.processes.options import group_options
    from ontogeny.server.processes.status import list_computations, read_status

    with open_store(state_dir, database_url, read_only=True) as store:
        statuses, waiting = read_status(store)
        is_shared = store.database.is_shared
        computations = list_computations(store) if is_shared else []
    if as_json:
        processes = [
            (_to_record(status.process) if status.process else {"number": None})
            | {"num_branches": status.num_branches, "num_pending": status.num_pending, "lag": status.lag}
            for status in statuses
        ]
        lists = {"waiting": waiting, "computations": computations}
        records = {name: [record._asdict() for record in records] for name, records in lists.items()}
        return typer.echo(json.dumps({"processes": processes} | records))
    print_table([_describe(status) for status in statuses], HEADINGS)
    if not is_shared:
        typer.echo("only processes that share a PostgreSQL database are listed; a server with SQLite is not")
    for option, groups in group_options([status.process for status in statuses if status.process]).items():
        parts = [f"{chosen} at {', '.join(map(str, numbers))}" for chosen, numbers in groups.items()]
        typer.echo(to_printable(f"processes have different options: {option} is {'; '.join(parts)}"))
    for computation in computations:
        typer.echo(to_printable(_describe_computation(computation)))
    for branch in waiting:
        owner = "no process" if branch.owner is None else f"process {branch.owner}"
        oldest = format_time(branch.oldest_created_at)
        typer.echo(
            f"{branch.branch} ({owner}): {pluralize(branch.num_pending, 'example')} to learn, the oldest from {oldest}"
        )


def _to_record(process: "ServerProcess") -> dict[str, Any]:
    """The fields of a process for JSON."""
    return process._asdict() | {"options": json.loads(process.options)}


def _describe_computation(computation: "Computation") -> str:
    """The processes that compute with the same kind of processor and packages, or the branches that wait for one."""
    numbers = ", ".join(map(str, computation.processes))
    if len(computation.processes) > 1:
        return f"processes {numbers} compute with {computation.computed_by}"
    if numbers:
        return f"process {numbers} computes with {computation.computed_by}"
    return (
        f"branches without a process whose weights need another kind of process: {computation.num_branches:,}; none "
        f"runs that computes with {computation.computed_by} (see --allow-mixed)"
    )


def _describe(status: "ProcessStatus") -> list[str]:
    """The cells of a process."""
    amounts = [f"{status.num_branches:,}", f"{status.num_pending:,}", f"{status.lag:.1f} s"]
    process = status.process
    if process is None:
        return ["no process", "", "", "", "", "", *amounts]
    load = [str(process.num_running), str(process.num_waiting)]
    return [str(process.number), process.name, process.url, format_time(process.started_at), *load, *amounts]
