"""Old names of commands, options, settings, keys and routes, and the names that replaced them.

No old name works. An old name is answered with the new one: "`--world` was renamed `--env`." The tables are in
`renamed.toml`, one for each kind of name.
"""

import tomllib
from pathlib import Path

TABLES: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def renamed_hint(kind: str, name: str) -> str | None:
    """Name the replacement of an old name.

    Args:
        kind: A key of `TABLES`, such as `option`.
        name: The name that a person used.

    Returns:
        A sentence such as "`--world` was renamed `--env`.", or None where the name was never renamed.
    """
    new = TABLES[kind].get(name)
    return None if new is None else f"`{name}` was renamed `{new}`."
