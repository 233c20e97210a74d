"""`ontogeny keys`, `usage` and `deployments`: the state of a server, which may be running.

The commands list and change API keys, the requests and tokens of each, and the branches of online deployments.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.shared import (
    DEFAULT_STATE_DIR,
    JsonOutput,
    StateDir,
    format_number,
    format_time,
    open_store,
    print_table,
)
from ontogeny.errors import BadInput
from ontogeny.printable import to_printable

if TYPE_CHECKING:
    from ontogeny.server.learning.journal import Branch
    from ontogeny.server.store import Store

ACTOR = "command line"  # in the log
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of an online deployment.")]


def create_key(
    name: Annotated[str, typer.Option(help="Name of the person or program that uses the key.")],
    admin: Annotated[bool, typer.Option("--admin", help="Allow the key to roll back, freeze and unfreeze.")] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Rate limit of requests; none by default.", show_default=False)
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(help="Rate limit of prompt and generated tokens; none by default.", show_default=False),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Create an API key and print it. The key cannot be printed again.

    Example: ontogeny keys create --name anna --requests-per-minute 60
    """
    from ontogeny.server import keys
    from ontogeny.server.store import Store

    key, text = keys.create_key(
        Store(state_dir),
        name,
        admin=admin,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    typer.echo(f"key {key.id} for {key.name}; store it now, it cannot be printed again:")
    typer.echo(text)


def list_keys(state_dir: StateDir = DEFAULT_STATE_DIR, as_json: JsonOutput = False) -> None:
    """List all API keys, revoked ones included, without their secrets.

    Example: ontogeny keys list
    """
    from ontogeny.server import keys

    all_keys = keys.list_keys(open_store(state_dir, read_only=True))
    if as_json:
        return typer.echo(json.dumps([key._asdict() for key in all_keys]))
    records = [
        [
            key.id,
            key.name,
            "admin" if key.is_admin else "",
            _format_limit(key.requests_per_minute),
            _format_limit(key.tokens_per_minute),
            format_time(key.created_at),
            "" if key.revoked_at is None else format_time(key.revoked_at),
        ]
        for key in all_keys
    ]
    print_table(records, ["id", "name", "role", "requests/min", "tokens/min", "created", "revoked"])


def revoke_key(
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `ontogeny keys list` prints it.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Revoke an API key. A running server rejects it from the next request on.

    Example: ontogeny keys revoke 1f2e3d4c
    """
    from ontogeny.server import keys

    key = keys.revoke_key(open_store(state_dir), id)
    typer.echo(f"key {key.id} of {to_printable(key.name)} is revoked")


def usage(state_dir: StateDir = DEFAULT_STATE_DIR, as_json: JsonOutput = False) -> None:
    """Print requests and tokens by day, key and deployment.

    Example: ontogeny usage
    """
    from ontogeny.server import keys

    store = open_store(state_dir, read_only=True)
    usage_records = keys.list_usage(store)
    if as_json:
        return typer.echo(json.dumps([record._asdict() for record in usage_records]))
    names = {key.id: key.name for key in keys.list_keys(store)}
    records = []
    for record in usage_records:
        counts = (record.num_requests, record.prompt_tokens, record.completion_tokens)
        key = f"{record.key} {names.get(record.key, '')}"
        records.append([record.day, key, record.deployment, *(f"{count:,}" for count in counts)])
    print_table(records, ["day", "key", "deployment", "requests", "prompt tokens", "generated tokens"])


def _format_limit(limit: int | None) -> str:
    """A limit with separators of thousands; empty where there is none."""
    return "" if limit is None else f"{limit:,}"


def show_log(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR, as_json: JsonOutput = False) -> None:
    """Print every decision of the learner: versions, their training examples, and rejections with reasons.

    Example: ontogeny deployments log story
    """
    from ontogeny.server.learning import journal

    store = open_store(state_dir, read_only=True)
    branches = _list_branches(store, name)
    versions = {
        (branch.branch, version.number): version
        for branch in branches
        for version in journal.list_versions(store, branch.branch)
    }
    entries: list[dict[str, Any]] = []
    for decision in journal.list_decisions(store, name):
        entry = decision._asdict()
        if decision.version is not None:
            version = versions[decision.branch, decision.version]
            entry |= {field: getattr(version, field) for field in ("digest", "first_example", "last_example")}
            entry["version_description"] = journal.describe_version(store, version)
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
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Make an earlier version of the weights current; a running server uses it from the next request on.

    Example: ontogeny deployments rollback story --to 0
    """
    from ontogeny.server.learning import journal

    store = open_store(state_dir)
    branches = _list_branches(store, name)
    if key is None:
        chosen = [branch for branch in branches if branch.current_version]
    else:
        chosen = [branch for branch in branches if branch.owner_key == key]
    if len(chosen) > 1:
        owners = ", ".join(branch.owner_key for branch in chosen)
        raise BadInput(f"'{name}' has several branches; name the owner with --key: {owners}")
    if not chosen:
        raise BadInput(f"'{name}' has no branch of key '{key}'" if key else f"'{name}' has not learned anything")
    version = journal.rollback(store, chosen[0].branch, to, ACTOR)
    typer.echo(f"{chosen[0].branch}: current version {version.number}, digest {version.digest[:16]}")


def freeze(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Stop learning in every branch of a deployment.

    Example: ontogeny deployments freeze story
    """
    _set_frozen(name, state_dir, True)


def unfreeze(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Resume learning in every branch of a deployment.

    Example: ontogeny deployments unfreeze story
    """
    _set_frozen(name, state_dir, False)


def _set_frozen(name: str, state_dir: Path, frozen: bool) -> None:
    """Stop or resume learning in every branch of a deployment, and print the branches."""
    from ontogeny.server.learning import journal

    store = open_store(state_dir)
    _list_branches(store, name)
    for branch in journal.set_frozen(store, name, frozen, ACTOR):
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
        text += f", version {entry['version']} {entry['digest'][:16]} ({entry['version_description']})"
    return text if entry["held_out_loss"] is None else f"{text}, held-out loss {format_number(entry['held_out_loss'])}"
