"""`ontogeny deployments`: the branches of online deployments, whose server may be running."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.shared import (
    DEFAULT_STATE_DIR,
    DatabaseUrl,
    JsonOutput,
    SnapshotUrl,
    StateDir,
    format_number,
    format_time,
    open_store,
    refuse_credentials,
    refuse_password,
)
from ontogeny.errors import BadInput
from ontogeny.printable import to_printable
from ontogeny.report.formatting import pluralize

if TYPE_CHECKING:
    from ontogeny.server.learning.journal import Branch
    from ontogeny.server.store import Store

ACTOR = "command line"  # in the log
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of an online deployment.")]


def show_log(
    name: Name, state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None, as_json: JsonOutput = False
) -> None:
    """Print every decision of the learner: versions, their training examples, and rejections with reasons.

    Example: ontogeny deployments log story
    """
    from ontogeny.server.learning import journal, versions

    store = open_store(state_dir, database_url, read_only=True)
    branches = _list_branches(store, name)
    branch_versions = {
        (branch.branch, version.number): version
        for branch in branches
        for version in versions.list_versions(store, branch.branch)
    }
    entries: list[dict[str, Any]] = []
    for decision in journal.list_decisions(store, name):
        entry = decision._asdict()
        version = None if decision.version is None else branch_versions.get((decision.branch, decision.version))
        if version is not None:  # its record may have been lost with a damaged page
            entry |= {field: getattr(version, field) for field in ("digest", "first_example", "last_example")}
            entry["version_description"] = versions.describe_version(store, version)
        entries.append(entry)
    if as_json:
        return typer.echo(json.dumps(entries))
    for branch in branches:
        frozen = ", frozen" if branch.frozen else ""
        pending = journal.num_pending(store, branch)
        typer.echo(f"{branch.branch}: current version {branch.current_version}, {pending} examples pending{frozen}")
    for entry in entries:
        heading = f"{format_time(entry['created_at'])}  {entry['branch']}  {entry['kind']}"
        typer.echo(to_printable(f"{heading}{_describe_entry(entry)}: {entry['reason']}"))


def roll_back(
    name: Name,
    to: Annotated[int, typer.Option(help="Version that becomes current; 0 is the trained weights.")] = 0,
    key: Annotated[
        str | None,
        typer.Option(help="Id of the key that owns the branch; needed if several branches have learned."),
    ] = None,
    learn_again: Annotated[
        bool,
        typer.Option("--learn-again", help="Learn the later examples again, instead of setting them aside."),
    ] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an earlier version of the weights current; a running server uses it from the next request on.

    Example: ontogeny deployments rollback story --to 0
    """
    from ontogeny.server.learning import branch_changes, versions

    store = open_store(state_dir, database_url)
    branches = _list_branches(store, name)
    if key is None:  # a branch that was rolled back to version 0 has others to return to
        chosen = [branch for branch in branches if versions.next_version(store, branch.branch) > 1]
    else:
        chosen = [branch for branch in branches if branch.owner_key == key]
    if len(chosen) > 1:
        owners = ", ".join(branch.owner_key for branch in chosen)
        raise BadInput(f"'{name}' has several branches; name the owner with --key: {owners}")
    if not chosen:
        raise BadInput(f"'{name}' has no branch of key '{key}'" if key else f"'{name}' has not learned anything")
    pending = ""
    if learn_again:
        version = versions.get_version(store, chosen[0].branch, to)
        pending = f"; examples to learn: {branch_changes.move_back(store, version, f'by {ACTOR}'):,}"
    else:
        version = branch_changes.rollback(store, chosen[0].branch, to, ACTOR)
    typer.echo(f"{chosen[0].branch}: current version {version.number}, digest {version.digest[:16]}{pending}")


def freeze(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None) -> None:
    """Stop learning in every branch of a deployment.

    Example: ontogeny deployments freeze story
    """
    _set_frozen(name, state_dir, database_url, True)


def unfreeze(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None) -> None:
    """Resume learning in every branch of a deployment.

    Example: ontogeny deployments unfreeze story
    """
    _set_frozen(name, state_dir, database_url, False)


def check(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
    snapshot_url: SnapshotUrl = None,
    as_json: JsonOutput = False,
) -> None:
    """Check database, branches, snapshots and sessions of a server, which may be running; nothing is changed.

    The exit code is 1 if anything is wrong.

    Example: ontogeny deployments check
    """
    from ontogeny.server.repair import check_state

    faults = check_state(state_dir, database_url, snapshot_url)
    if as_json:
        typer.echo(json.dumps({"faults": [fault._asdict() for fault in faults]}))
    else:
        for fault in faults:
            typer.echo(to_printable(f"{fault.place}: {fault.problem}; repair: {fault.repair}"))
        if not faults:
            typer.echo("no damage found")
    if faults:
        raise typer.Exit(1)


def repair(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
    snapshot_url: SnapshotUrl = None,
    lost_snapshots: Annotated[
        bool, typer.Option("--lost-snapshots", help="Repair although no snapshot exists, while versions have some.")
    ] = False,
) -> None:
    """Repair what `check` finds, while no server runs; a copy of the database is made first.

    Example: ontogeny deployments repair
    """
    from ontogeny.server.repair import repair_state

    result = repair_state(state_dir, ACTOR, database_url, snapshot_url, lost_snapshots=lost_snapshots)
    if result.copy is None:
        return typer.echo("no damage found")
    typer.echo(f"copy of the database and of everything that was set aside: '{result.copy}'")
    for action in result.actions:
        typer.echo(to_printable(action))
    for loss in result.losses:
        typer.echo(to_printable(f"lost: {loss}"))
    if not result.losses:
        typer.echo("nothing is lost")


def move(
    source: Annotated[
        str, typer.Argument(help="State folder, postgresql://USER@HOST/NAME, or snapshots in s3://BUCKET/PREFIX.")
    ],
    target: Annotated[str, typer.Argument(help="Where it is copied to; one of the two is a folder.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
    snapshot_url: SnapshotUrl = None,
) -> None:
    """Copy the state of a server between its folder and PostgreSQL, or its snapshots to another store; no server runs.

    The snapshots of a database in PostgreSQL are in --snapshot-url, or else in --state-dir. With s3:// as source or
    target, only snapshots are copied, those of the database of the folder (or of --database-url).

    Example: ontogeny deployments move ontogeny-state postgresql://ontogeny@localhost/ontogeny
    """
    kinds = [place.partition("://")[0] if "://" in place else "folder" for place in (source, target)]
    if kinds.count("folder") != 1:
        raise BadInput("name one state folder, and one database as postgresql://USER@HOST/NAME or store as s3://...")
    if "s3" in kinds:
        return _move_snapshots(source, target, database_url)
    from ontogeny.server.moving import copy_state
    from ontogeny.server.store import Store

    with contextlib.ExitStack() as stack:
        stores: list[Store] = []
        for place, create in ((source, False), (target, True)):
            if "://" in place:
                address = refuse_password(place)
                store = Store(state_dir, create=create, database_url=address, snapshot_url=snapshot_url)
            else:
                store = Store(place, create=create, database_url="", snapshot_url="")
            stores.append(stack.enter_context(store))
        _lock_stores(stack, stores)
        copied = copy_state(*stores)
    records = pluralize(sum(copied.num_records.values()), "record")
    typer.echo(f"{records} and {pluralize(copied.num_snapshots, 'snapshot')} copied to '{target}'")


def _move_snapshots(source: str, target: str, database_url: str | None) -> None:
    """Copy the snapshots of a state folder to an S3-compatible store, or back."""
    from ontogeny.server.moving import copy_snapshots
    from ontogeny.server.snapshot_stores.identity import adopt_store
    from ontogeny.server.store import Store

    folder = target if "://" in source else source
    address = refuse_credentials(source if "://" in source else target)
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"create": False, "database_url": database_url}
        local, remote = (
            stack.enter_context(Store(folder, snapshot_url=snapshots, **options)) for snapshots in ("", address)
        )
        _lock_stores(stack, [local])
        remote.snapshots.check()
        stores = (remote, local) if "://" in source else (local, remote)
        num_snapshots = copy_snapshots(local, *(store.snapshots for store in stores))
        adopt_store(local.database, stores[1].snapshots)
    typer.echo(f"{pluralize(num_snapshots, 'snapshot')} copied to '{target}'")


def use_snapshots(
    state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None, snapshot_url: SnapshotUrl = None
) -> None:
    """Let a database use another store of snapshots, as after a back-up was restored; no server runs.

    A database in PostgreSQL, or with snapshots in S3, records its store; servers refuse another one. Nothing is copied:
    `move` copies snapshots. The server computes weights without a snapshot again, except for uploaded ones.

    Example: ontogeny deployments use-snapshots --database-url postgresql://ontogeny@localhost/ontogeny
    """
    from ontogeny.server.snapshot_stores.identity import adopt_store
    from ontogeny.server.store import Store

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(
            Store(state_dir, create=False, database_url=database_url, snapshot_url=snapshot_url)
        )
        _lock_stores(stack, [store])
        adopt_store(store.database, store.snapshots)
    typer.echo(f"{store.database.label} uses the snapshots in {store.snapshots.label}")


def _lock_stores(stack: contextlib.ExitStack, stores: "list[Store]") -> None:
    """Exclude servers from state folders and databases, and check that the snapshots can be used."""
    from ontogeny.runs.folder import locked

    for folder in {store.folder.resolve() for store in stores}:
        stack.enter_context(locked(folder))
    for store in stores:
        stack.enter_context(store.database.lock_server(exclusive=True))
        store.snapshots.check()


def vacuum(state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None) -> None:
    """Remove erased texts from the files of a PostgreSQL database (VACUUM FULL); a running server waits meanwhile.

    SQLite needs no such command: it overwrites erased texts at once.

    Example: ontogeny deployments vacuum --database-url postgresql://ontogeny@localhost/ontogeny
    """
    with open_store(state_dir, database_url) as store:
        store.database.vacuum()
        typer.echo(f"{store.database.label}: the files hold no erased texts")


def _set_frozen(name: str, state_dir: Path, database_url: str | None, frozen: bool) -> None:
    """Stop or resume learning in every branch of a deployment, and print the branches."""
    from ontogeny.server.learning import branch_changes

    store = open_store(state_dir, database_url)
    _list_branches(store, name)
    for branch in branch_changes.set_frozen(store, name, frozen, ACTOR):
        typer.echo(f"{branch}: {'frozen' if frozen else 'learning'}")


def _list_branches(store: "Store", name: str) -> "list[Branch]":
    """The branches of a deployment; a name without any raises `BadInput`."""
    from ontogeny.plugins import unknown_name_error
    from ontogeny.server.learning import journal

    branches = journal.list_branches(store, name)
    if not branches:
        raise unknown_name_error("online deployment", name, journal.list_deployments(store))
    return branches


def _describe_entry(entry: dict[str, Any]) -> str:
    """The example of a decision, and the version that it led to."""
    text = "" if entry["example"] is None else f" example {entry['example']}"
    if entry["version"] is not None:
        text += f", version {entry['version']}"
    if "digest" in entry:
        text += f" {entry['digest'][:16]} ({entry['version_description']})"
    return text if entry["held_out_loss"] is None else f"{text}, held-out loss {format_number(entry['held_out_loss'])}"
