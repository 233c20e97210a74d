"""The commands of a deployment as a service: serve, keys, usage, deployments."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.shared import Device, short
from ontogeny.cli.start import prepare
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from ontogeny.server.store import Store

State = Annotated[Path, typer.Option("--state", help="Folder of keys, usage, journal and snapshots.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT = Path("deployments")

keys = typer.Typer(help="Who may use a deployment.", no_args_is_help=True)
deployments = typer.Typer(help="What a deployment has learned; going back, freezing, thawing.", no_args_is_help=True)


def serve(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Language models and agents.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RUN", help="Serve a run under this name; may be given often.")
    ] = None,
    online: Annotated[bool, typer.Option("--online/--frozen", help="Whether weights go on learning.")] = False,
    freeze: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --online: this one stays frozen; may be given often.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="One line of learning for all keys, not one each.")] = False,
    bound: Annotated[
        float, typer.Option(help="Nats per token of held-out text that what is learned may cost at most.")
    ] = 0.05,
    learning: Annotated[
        str, typer.Option(help="With --online: how weights change, 'block=32,adapter=8'; see docs/language.md.")
    ] = "",
    state: State = DEFAULT,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    rows: Annotated[
        int, typer.Option(min=1, max=4096, help="Answers under way at a time, in whole tiles of rows.")
    ] = 64,
    queue: Annotated[int, typer.Option(min=1, max=100_000, help="Requests that may wait for a row.")] = 256,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 120.0,
    most_bytes: Annotated[int, typer.Option(min=1024, help="Bytes that a request may have.")] = 4 << 20,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of the time, for learning, while others wait for answers.")
    ] = 0.07,
    verify: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at frozen weights.")] = 60.0,
    log_level: Annotated[str, typer.Option(help="error, warning or info (a line per request).")] = "warning",
    device: Device = None,
) -> None:
    """Put saved models on HTTP: the OpenAI API, agents, a page; frozen, or learning online."""
    if log_level not in ("error", "warning", "info"):
        raise BadInput(f"--log-level is error, warning or info, not '{log_level}'")
    if learning and not online:
        raise BadInput("--learning says how weights change: it goes with --online")
    if not bound >= 0:
        raise BadInput(f"the --bound is at least 0, not {bound}")
    named = [(run.resolve().name, run) for run in runs or []]
    for text in alias or []:
        name, equals, run = text.partition("=")
        if not equals or not name or not run:
            raise BadInput(f"'{text}' is not of the form NAME=RUN")
        named.append((name, Path(run)))
    if not named:
        raise BadInput("name at least one run to serve")
    prepare(device)
    from ontogeny.lm import online_learner
    from ontogeny.runs.folder import locked
    from ontogeny.server import app
    from ontogeny.server.deployments import Deployments, ServerConfig
    from ontogeny.server.store import Store

    plan = online_learner.parse_config(learning)
    store = Store(state)
    with locked(store.folder):
        options = ServerConfig(online, tuple(freeze or ()), shared, bound, share, rows, queue, verify, plan)
        made = Deployments(named, store, options)
        cases = ", ".join(f"{name} ({'online' if one.online else 'frozen'})" for name, one in made.by_name.items())
        app.serve(
            made,
            host=host,
            port=port,
            time_limit=time_limit,
            most_bytes=most_bytes,
            log_level=log_level,
            listens=lambda: typer.echo(f"serving {cases} on http://{host}:{port}"),
        )


@keys.command("create", epilog="Example: ontogeny keys create --name anna --requests-per-minute 60")
def create_key(
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    admin: Annotated[bool, typer.Option("--admin", help="May go back, freeze and thaw.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(help="No limit where it is not given.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Of prompts and answers.")] = None,
    state: State = DEFAULT,
) -> None:
    """Make a key and show it, this once."""
    from ontogeny.server import keys
    from ontogeny.server.store import Store

    key, text = keys.create(
        Store(state),
        name,
        admin=admin,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    typer.echo(f"key {key.id} for {key.name}; it is shown this once:")
    typer.echo(text)


@keys.command("list", epilog="Example: ontogeny keys list")
def list_keys(state: State = DEFAULT, as_json: Json = False) -> None:
    """Show all keys there ever were; not their secrets, which nobody has but their holders."""
    from ontogeny.server import keys

    found = keys.listed(_store(state))
    if as_json:
        return typer.echo(json.dumps([key._asdict() for key in found]))
    rows = [
        [
            key.id,
            key.name,
            "admin" if key.admin else "",
            _limit(key.requests_per_minute, "requests"),
            _limit(key.tokens_per_minute, "tokens"),
            _when(key.created),
            "" if key.revoked is None else f"revoked {_when(key.revoked)}",
        ]
        for key in found
    ]
    _table(["id", "name", "", "limit", "limit", "created", ""], rows)


@keys.command("revoke", epilog="Example: ontogeny keys revoke 1f2e3d4c")
def revoke_key(id: Annotated[str, typer.Argument(help="As `keys list` shows it.")], state: State = DEFAULT) -> None:
    """Make a key open nothing any more, from the next request on."""
    from ontogeny.server import keys

    key = keys.revoke(_store(state), id)
    typer.echo(f"key {key.id} of {key.name} is revoked")


def usage(state: State = DEFAULT, as_json: Json = False) -> None:
    """Show requests and tokens by key, deployment and day."""
    from ontogeny.server import keys

    found = keys.usage(_store(state))
    if as_json:
        return typer.echo(json.dumps([used._asdict() for used in found]))
    names = {key.id: key.name for key in keys.listed(_store(state))}
    rows = [[u.day, f"{u.key} {names.get(u.key, '')}", u.deployment, *(f"{n:,}" for n in u[3:])] for u in found]
    _table(["day", "key", "deployment", "requests", "prompt tokens", "completion tokens"], rows)


Name = Annotated[str, typer.Argument(help="A deployment.")]


@deployments.command("log", epilog="Example: ontogeny deployments log story")
def deployment_log(name: Name, state: State = DEFAULT, as_json: Json = False) -> None:
    """Show every decision about what was learned: versions, what they learned from, what was refused and why."""
    from ontogeny.server.learning import journal

    store = _store(state)
    lines = _lines(store, name)
    found = journal.decisions(store, name)
    versions = {line.line: {v.number: v for v in journal.versions(store, line.line)} for line in lines}

    def entry(decision: journal.LearningDecision) -> dict[str, Any]:
        version = versions[decision.line].get(-1 if decision.version is None else decision.version)
        more = {} if version is None else {"digest": version.digest, "first": version.first, "last": version.last}
        return decision._asdict() | more

    if as_json:
        return typer.echo(json.dumps([entry(decision) for decision in found]))
    for line in lines:
        frozen = ", frozen" if line.frozen else ""
        typer.echo(f"{line.line}: version {line.head} is live, {journal.pending(store, line)} to be learned{frozen}")
    for decision in found:
        known = entry(decision)
        typer.echo(f"{_when(decision.at)}  {decision.line}  {decision.kind}{_what(known)}: {decision.reason}")


def _what(known: dict[str, Any]) -> str:
    """Of a decision: the contribution, the version that it led to, what that one learned from."""
    text = "" if known["contribution"] is None else f" contribution {known['contribution']}"
    if known["version"] is not None:
        span = "as trained" if known["first"] is None else f"from {known['first']} to {known['last']}"
        text += f", version {known['version']} {known['digest'][:16]} ({span})"
    return text if known["held_out"] is None else f"{text}, held-out {short(known['held_out'])}"


@deployments.command("rollback", epilog="Example: ontogeny deployments rollback story --to 0")
def rollback(
    name: Name,
    to: Annotated[int, typer.Option(help="A version; 0 is the trained weights.")] = 0,
    key: Annotated[str | None, typer.Option(help="Whose line, by the key's id, where there are several.")] = None,
    state: State = DEFAULT,
) -> None:
    """Go back to a version of the weights; a server that is running follows at once."""
    from ontogeny.server.learning import journal

    store = _store(state)
    lines = _lines(store, name)
    moved = [line for line in lines if line.head or line.owner == key] if key is None else lines
    chosen = [line for line in moved if key is None or line.owner == key]
    if key is None and len(moved) > 1:
        owners = ", ".join(line.owner for line in moved)
        raise BadInput(f"'{name}' has several lines; say with --key whose: {owners}")
    if not chosen:
        raise BadInput(f"'{name}' has no line of '{key}'" if key else f"'{name}' has not learned anything")
    version = journal.rollback(store, chosen[0].line, to, "command line")
    typer.echo(f"{chosen[0].line}: version {version.number} is live, digest {version.digest[:16]}")


@deployments.command("freeze", epilog="Example: ontogeny deployments freeze story")
def freeze(name: Name, state: State = DEFAULT) -> None:
    """Stop learning, in every line."""
    _freeze(name, state, True)


@deployments.command("thaw", epilog="Example: ontogeny deployments thaw story")
def thaw(name: Name, state: State = DEFAULT) -> None:
    """Let every line learn again."""
    _freeze(name, state, False)


def _freeze(name: str, state: Path, frozen: bool) -> None:
    from ontogeny.server.learning import journal

    store = _store(state)
    _lines(store, name)
    for line in journal.freeze(store, name, frozen, "command line"):
        typer.echo(f"{line}: {'frozen' if frozen else 'learning'}")


def _store(state: Path) -> "Store":
    from ontogeny.server.store import Store

    return Store(state, make=False)


def _lines(store: "Store", name: str) -> list[Any]:
    from ontogeny.plugins import unknown_name_error
    from ontogeny.server.learning import journal

    found = journal.lines(store, name)
    if not found:
        raise unknown_name_error("online deployment", name, journal.deployments(store))
    return found


def _limit(limit: int | None, what: str) -> str:
    return "" if limit is None else f"{limit:,} {what}/min"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _table(heads: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=None, header_style="", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
