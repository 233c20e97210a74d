"""`ontogeny keys` and `usage`: API keys, their limits, and what they used and store; their server may be running."""

import json
from typing import Annotated, Any

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
from ontogeny.errors import BadInput
from ontogeny.printable import to_printable

RequestsPerMinute = Annotated[int | None, typer.Option(help="Rate limit of requests.", show_default=False)]
TokensPerMinute = Annotated[
    int | None, typer.Option(help="Rate limit of prompt and generated tokens.", show_default=False)
]
MaxPendingExamples = Annotated[
    int | None, typer.Option(help="Examples that may wait to be learned.", show_default=False)
]
MaxStoredBytes = Annotated[
    int | None, typer.Option(help="Bytes of examples, sessions and uploaded states.", show_default=False)
]
MaxSessions = Annotated[int | None, typer.Option(help="Number of sessions.", show_default=False)]


def create_key(
    name: Annotated[str, typer.Option(help="Name of the person or program that uses the key.")],
    admin: Annotated[
        bool, typer.Option("--admin", help="Allow the key to roll back, fork, freeze and unfreeze branches.")
    ] = False,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_pending_examples: MaxPendingExamples = None,
    max_stored_bytes: MaxStoredBytes = None,
    max_sessions: MaxSessions = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
) -> None:
    """Create an API key and print it. The key cannot be printed again.

    A key has no rate limit, and the quotas of storage with which the server was started, unless it is given its own.

    Example: ontogeny keys create --name anna --requests-per-minute 60
    """
    from ontogeny.server import keys
    from ontogeny.server.store import Store

    with Store(state_dir, database_url=database_url) as store:
        key, text = keys.create_key(
            store,
            name,
            admin=admin,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_pending_examples=max_pending_examples,
            max_stored_bytes=max_stored_bytes,
            max_sessions=max_sessions,
        )
    typer.echo(f"key {key.id} for {key.name}; store it now, it cannot be printed again:")
    typer.echo(text)


def change_limits(
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `ontogeny keys list` prints it.")],
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_pending_examples: MaxPendingExamples = None,
    max_stored_bytes: MaxStoredBytes = None,
    max_sessions: MaxSessions = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    database_url: DatabaseUrl = None,
) -> None:
    """Change limits of an API key; 0 removes a limit of the key. A running server applies them at once.

    Example: ontogeny keys limit 1f2e3d4c --max-sessions 20 --requests-per-minute 0
    """
    from ontogeny.server import keys

    options = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_pending_examples": max_pending_examples,
        "max_stored_bytes": max_stored_bytes,
        "max_sessions": max_sessions,
    }
    limits = {name: limit or None for name, limit in options.items() if limit is not None}
    if not limits:
        raise BadInput("name at least one limit to change")
    with open_store(state_dir, database_url) as store:
        key = keys.change_limits(store, id, **limits)
    typer.echo(f"the limits of key {key.id} of {to_printable(key.name)} are changed")


def list_keys(
    state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None, as_json: JsonOutput = False
) -> None:
    """List all API keys, revoked ones included, without their secrets.

    Example: ontogeny keys list
    """
    from ontogeny.server import keys

    with open_store(state_dir, database_url, read_only=True) as store:
        all_keys = keys.list_keys(store)
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
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke an API key. A running server rejects it from the next request on.

    Example: ontogeny keys revoke 1f2e3d4c
    """
    from ontogeny.server import keys

    with open_store(state_dir, database_url) as store:
        key = keys.revoke_key(store, id)
    typer.echo(f"key {key.id} of {to_printable(key.name)} is revoked")


def usage(
    state_dir: StateDir = DEFAULT_STATE_DIR, database_url: DatabaseUrl = None, as_json: JsonOutput = False
) -> None:
    """Print requests and tokens by day, key and deployment, and what each key stores beside its limits.

    Example: ontogeny usage
    """
    from ontogeny.server import keys, quotas

    with open_store(state_dir, database_url, read_only=True) as store:
        usage_records, storage_records = keys.list_usage(store), quotas.list_storage(store)
        names = {key.id: key.name for key in keys.list_keys(store)}
    if as_json:
        report = {"usage": usage_records, "storage": storage_records}
        return typer.echo(json.dumps({name: [r._asdict() for r in records] for name, records in report.items()}))
    records: list[list[Any]] = []
    for record in usage_records:
        counts = (record.num_requests, record.prompt_tokens, record.completion_tokens)
        key = f"{record.key} {names.get(record.key, '')}"
        records.append([record.day, key, record.deployment, *(f"{count:,}" for count in counts)])
    print_table(records, ["day", "key", "deployment", "requests", "prompt tokens", "generated tokens"])
    typer.echo()
    records = []
    for storage in storage_records:
        uses = (
            (storage.num_pending_examples, storage.max_pending_examples),
            (storage.num_stored_bytes, storage.max_stored_bytes),
            (storage.num_sessions, storage.max_sessions),
        )
        key = f"{storage.key} {names.get(storage.key, '')}"
        records.append([key, *(f"{number:,} of {limit:,}" for number, limit in uses)])
    print_table(records, ["key", "examples waiting", "bytes stored", "sessions"])


def _format_limit(limit: int | None) -> str:
    """A limit with separators of thousands; empty where there is none."""
    return "" if limit is None else f"{limit:,}"
