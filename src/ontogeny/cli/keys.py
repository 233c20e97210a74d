"""`ontogeny keys` and `ontogeny usage`: the API keys of a server, and the requests and tokens of each."""

import json
from typing import Annotated

import typer

from ontogeny.cli.shared import DEFAULT_STATE_DIR, JsonOutput, StateDir, format_time, open_store, print_table


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

    all_keys = keys.list_keys(open_store(state_dir))
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
    typer.echo(f"key {key.id} of {key.name} is revoked")


def usage(state_dir: StateDir = DEFAULT_STATE_DIR, as_json: JsonOutput = False) -> None:
    """Print requests and tokens by day, key and deployment.

    Example: ontogeny usage
    """
    from ontogeny.server import keys

    store = open_store(state_dir)
    usage_records = keys.list_usage(store)
    if as_json:
        return typer.echo(json.dumps([record._asdict() for record in usage_records]))
    names = {key.id: key.name for key in keys.list_keys(store)}
    records = [
        [r.day, f"{r.key} {names.get(r.key, '')}", r.deployment, *(f"{count:,}" for count in r[3:])]
        for r in usage_records
    ]
    print_table(records, ["day", "key", "deployment", "requests", "prompt tokens", "generated tokens"])


def _format_limit(limit: int | None) -> str:
    return "" if limit is None else f"{limit:,}"
