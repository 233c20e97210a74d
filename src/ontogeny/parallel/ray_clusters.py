"""Connections to Ray clusters: for tasks (the driver `ray`) and for servers (`ontogeny serve --on ray`)."""

import os
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ontogeny.errors import BadInput
from ontogeny.optional_packages import import_optional

LOCAL = "local"  # Ray's word for a new cluster on this machine
SECONDS_BEFORE_REFUSAL = 10.0  # of an address at which no program listens
SECONDS_BEFORE_RECONNECTION = 2.0  # doubled after each attempt


def find_address(address: str) -> str:
    """The address of the cluster that a user means: by default the variable RAY_ADDRESS, without it a new cluster.

    Args:
        address: As the user gave it, or an empty text.
    """
    return address or os.environ.get("RAY_ADDRESS", "") or LOCAL


def import_ray(address: str, module: str, feature: str) -> ModuleType:
    """Imports Ray with the settings that it reads at that time.

    Args:
        address: Of the cluster, from `find_address`.
        module: `ray`, or a module of it.
        feature: What needs it, as the message says it.

    Raises:
        BadInput: The package, or a part of it, is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # Ray's processes listen on all network interfaces; this cluster answers to this process only.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return import_optional(module, "ray", feature)


def require_listener(address: str) -> None:
    """Raises `BadInput` at once where no program listens at the address; Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_BEFORE_REFUSAL).close()
    except (OSError, OverflowError) as error:
        raise no_response(address, error) from None


def connect(
    ray: ModuleType,
    address: str,
    num_processors: int,
    num_attempts: int = 1,
    *,
    log_to_driver: bool = False,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Connects this process to a cluster, unless it is connected, or starts one on this machine.

    Args:
        ray: The package.
        address: From `find_address`.
        num_processors: Those of a cluster that is started.
        num_attempts: Further attempts are made after a while.
        log_to_driver: Whether this process prints what the workers print.
        variables: Further variables of the environment of all workers.

    Raises:
        BadInput: The cluster does not respond.
    """
    options: dict[str, Any] = {}
    if address == LOCAL:
        options = {"num_cpus": num_processors, "_node_ip_address": "127.0.0.1"}
    if variables:
        options["runtime_env"] = {"env_vars": dict(variables)}
    for attempt in range(num_attempts):
        try:
            if not ray.is_initialized():
                with warnings.catch_warnings():
                    # Ray's processes replace their program at once, so JAX's threads do not matter to them.
                    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                    ray.init(
                        address, logging_level="error", log_to_driver=log_to_driver, include_dashboard=False, **options
                    )
            return
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            ray.shutdown()
            if attempt + 1 == num_attempts or isinstance(error, ValueError):
                raise no_response(address, error) from None
            time.sleep(SECONDS_BEFORE_RECONNECTION * 2**attempt)


def no_response(address: str, error: Exception) -> BadInput:
    """Creates the error for a cluster to which no connection can be made."""
    message = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
    return BadInput(f"the Ray cluster '{address}' does not respond: {message}")
