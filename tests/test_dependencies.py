"""Every package that an installation for the tests brings has one version in a file of constraints."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
WITHOUT_PINS = ("eval", "parity")  # torch differs between machines


def installed_dependencies(requirements: list[str]) -> set[str]:
    """The names of all packages that these requirements bring.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    waiting, visited = [Requirement(text) for text in requirements], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        if (name, *sorted(requirement.extras)) in visited:
            continue
        visited.add((name, *sorted(requirement.extras)))
        if name == "ontogeny":
            texts = [text for extra in requirement.extras for text in PROJECT["optional-dependencies"][extra]]
        else:
            texts = metadata.requires(name) or []
        for needed in map(Requirement, texts):
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                waiting.append(needed)
    return {name for name, *_ in visited} - {"ontogeny"}


@pytest.mark.uses_package("rejax", "minigrid", "xminigrid", "craftax", "envelope", "ray")
def test_every_dependency_has_one_version():
    lines = [
        line
        for name in ("constraints.txt", "constraints-optional.txt")
        for line in (CHECKOUT / name).read_text().splitlines()
        if not line.startswith("#")
    ]
    pins = [re.fullmatch(r"([\w.-]+)==[\w.+]+(; python_version (<|>=) \"3\.12\")?", line) for line in lines]
    assert None not in pins
    pinned = {canonicalize_name(pin[1]) for pin in pins}
    extras = {"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    num_installed = 0
    for extra in extras.keys() - set(WITHOUT_PINS):
        try:
            names = installed_dependencies(extras[extra])
        except metadata.PackageNotFoundError:
            continue
        num_installed += 1
        assert names <= pinned, f"the extra '{extra}' brings packages without a version: {names - pinned}"
    assert num_installed >= 3
