"""The options of the processes that share a database, as far as clients notice when processes differ in them.

A process records its options with its lease. Different values of some options would break a promise: what a branch
learns, or what a request is answered, would depend on the process. The process that was started later then ends, or
does not start. Other options only differ, as while they are changed in one process after the other. Options that
belong to one machine (addresses, names, memory, logs) are not recorded. Options that one of two processes has not
recorded, because it has another version of the program, are not compared.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server.config import ServerConfig
from ontogeny.server.processes.membership import ServerProcess

DEPLOYMENTS = "deployments"
# Options of a deployment in which processes must agree, with what depends on the process otherwise. The settings of
# learning are not among them, because they are compared with the record of every branch (`journal.open_branch`).
PROMISES = {
    "mode": "whether a text is learned would depend on the process that receives it",
    "shared_branch": "whether the texts of a key reach the answers of others would depend on the process",
    "max_forgetting": "whether a text is learned would depend on the process that owns the branch",
    "max_context": "the answer to a request would depend on the process",
}
# Options of the server in which they may differ.
SERVER_OPTIONS = (
    "learning_fraction", "max_queue", "time_limit", "max_body_bytes", "max_pending_examples", "max_stored_bytes",
    "max_sessions", "key_grace_time", "allowed_hosts", "allowed_origins",
)  # fmt: skip
LABELS = {"mode": "--online", "checkpoint": "--best", "digest": "weights", DEPLOYMENTS: "RUN"}  # of other names
DIGEST_LENGTH = 16  # characters that are recorded


class Option(NamedTuple):
    """An option, whose value processes may differ in.

    Attributes:
        deployment: Its name; empty for an option of the server.
        name: Its name in the record.
    """

    deployment: str
    name: str

    @property
    def label(self) -> str:
        """How messages name the option."""
        label = LABELS.get(self.name) or f"--{self.name.replace('_', '-')}"
        return f"{label} of '{self.deployment}'" if self.deployment else label

    @property
    def promise(self) -> str | None:
        """What would depend on the process, if a promise were broken; otherwise None."""
        return PROMISES.get(self.name) if self.deployment else None


class Difference(NamedTuple):
    """An option in which two processes differ."""

    option: Option
    choice_here: Any
    process: ServerProcess  # the other one
    choice_there: Any

    def describe(self) -> str:
        """Names the option, both values and the process."""
        place = f"process {self.process.number} ('{self.process.name}')"
        return f"{self.option.label} is {_format(self.choice_here)} here and {_format(self.choice_there)} at {place}"


def describe_options(config: ServerConfig, deployments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what a process records.

    Args:
        config: Its settings.
        deployments: The options of each of its deployments.
    """
    options = config.model_dump(mode="json", include=set(SERVER_OPTIONS))
    return options | {DEPLOYMENTS: {name: dict(deployments[name]) for name in sorted(deployments)}}


def list_differences(options: Mapping[str, Any], processes: Sequence[ServerProcess]) -> list[Difference]:
    """Returns the options in which processes differ from this one.

    Args:
        options: What this process records.
        processes: The other processes.
    """
    flat = dict(_flatten(options))
    return [
        Difference(option, flat[option], process, present)
        for process in processes
        for option, present in _flatten(json.loads(process.options))
        if option in flat and flat[option] != present
    ]


def find_conflict(options: Mapping[str, Any], processes: Sequence[ServerProcess]) -> BadInput | None:
    """Returns the error of a process whose options would break a promise that others keep.

    Args:
        options: What this process records.
        processes: The other processes.
    """
    for difference in list_differences(options, processes):
        if (promise := difference.option.promise) is not None:
            return BadInput(
                f"{difference.describe()}, which shares the database: {promise}; start all processes with the same "
                "value, or stop the others before"
            )
    return None


def describe_differences(options: Mapping[str, Any], processes: Sequence[ServerProcess]) -> str | None:
    """Returns a line for the log about options in which processes differ without a broken promise, or None."""
    parts = [difference.describe() for difference in list_differences(options, processes)]
    return f"processes that share the database have different options: {'; '.join(parts)}" if parts else None


def group_options(processes: Sequence[ServerProcess]) -> dict[str, dict[str, list[int]]]:
    """Returns the options in which processes differ: for each, the processes by value, all as messages name them."""
    choices: dict[Option, dict[str, list[int]]] = {}
    for process in processes:
        for option, choice in _flatten(json.loads(process.options)):
            choices.setdefault(option, {}).setdefault(_format(choice), []).append(process.number)
    return {option.label: by_value for option, by_value in choices.items() if len(by_value) > 1}


def _flatten(options: Mapping[str, Any]) -> Iterator[tuple[Option, Any]]:
    """All options of a record, with their values."""
    for name, recorded in options.items():
        if name == DEPLOYMENTS:
            yield Option("", name), list(recorded)
            for deployment, chosen in recorded.items():
                for option, choice in chosen.items():
                    yield Option(deployment, option), choice
        elif name in SERVER_OPTIONS:
            yield Option("", name), recorded


def _format(choice: Any) -> str:
    """The value of an option as messages show it."""
    if isinstance(choice, bool):
        return "on" if choice else "off"
    if isinstance(choice, list):
        return ", ".join(map(str, choice)) or "empty"
    return str(choice)
