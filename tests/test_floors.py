"""Imports go down only, and siblings of a family import only their base."""

import ast
from pathlib import Path

import pytest

import ontogeny

ROOT = Path(ontogeny.__file__).parent
FLOORS = {
    "errors": 1, "intervals": 1, "types": 1, "trees": 1, "registry": 1, "streams": 1,
    "worlds": 2, "content": 2, "steering": 2,
    "agents": 3,
    "lifetime": 4,
    "development": 5, "conformance": 5.5,
    "lifecycle": 6,
    "audit": 7, "language": 7,
    "study": 8, "server": 8,
    "cli": 9, "__main__": 9.5, "__init__": 10,
}  # fmt: skip
FAMILIES = {"worlds", "content", "agents", "development", "audit"}  # rooms that plug in
ORDER_ON_FLOOR_ONE = ("errors", "intervals", "types", "streams", "trees", "registry")


def imports(source: str) -> list[str]:
    """Modules of the package that a source imports, anywhere in it: 'agents.base', 'types', ..."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"ontogeny.a relative import, line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if _is_module(name) else node.module for name in deeper]
    return [name.removeprefix("ontogeny.") for name in found if name.startswith("ontogeny.")]


def _is_module(name: str) -> bool:
    path = ROOT.parent / Path(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def violations(module: str, source: str) -> list[str]:
    room, _, rest = module.partition(".")
    found = []
    for imported in imports(source):
        other, _, other_rest = imported.partition(".")
        if other not in FLOORS:
            found.append(f"{module} imports {imported}, which has no floor")
        elif FLOORS[other] > FLOORS[room]:
            found.append(f"{module} (floor {FLOORS[room]}) imports {imported} (floor {FLOORS[other]}): an arrow upward")
        elif (
            other == room and room in FAMILIES and rest != "base" and other_rest.rpartition(".")[2] not in ("base", "")
        ):
            found.append(f"{module} imports its sibling {imported}: only the base may be shared")
        elif other != room and FLOORS[other] == FLOORS[room]:
            levels = ORDER_ON_FLOOR_ONE
            allowed = other in levels and room in levels and levels.index(other) < levels.index(room)
            if not allowed:
                found.append(f"{module} imports {imported} from its own floor")
    return found


def modules() -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py" or path.parent != ROOT
    ]


@pytest.mark.parametrize("module", modules())
def test_no_arrow_upward_and_none_between_siblings(module):
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert not violations(module.removesuffix(".__init__"), source)


def test_no_circle_of_imports():
    graph = {}
    for module in modules():
        source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
        graph[module.removesuffix(".__init__")] = set(imports(source))
    seen, path = set(), []

    def visit(node):
        assert node not in path, f"a circle of imports: {' -> '.join([*path[path.index(node) :], node])}"
        if node in seen or node not in graph:
            return
        path.append(node)
        for other in sorted(graph[node]):
            visit(other)
        path.pop()
        seen.add(node)

    for node in graph:
        visit(node)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("worlds.bandit", "from ontogeny.agents import base"),
        ("worlds.bandit", "from ontogeny.worlds.random_mdp import build"),
        ("agents.random", "def act():\n    from ontogeny.lifecycle import train"),
        ("types", "from ontogeny import registry"),
        ("study.report", "import ontogeny.cli"),
        ("worlds.bandit", "from ..agents import base"),
        ("worlds.bandit", "from .random_mdp import build"),
    ],
)
def test_a_planted_arrow_is_found(module, source):
    assert violations(module, source)


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long
