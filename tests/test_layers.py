"""Imports go down only, and siblings of a family import only their base."""

import ast
from pathlib import Path

import pytest

import ontogeny

ROOT = Path(ontogeny.__file__).parent
LAYERS = {
    "errors": 1, "renamed": 1, "stats": 1, "types": 1, "trees": 1, "plugins": 1, "validation": 1, "rng": 1,
    "environments": 2, "content": 2, "steering": 2,
    "agents": 3,
    "rollouts": 4,
    "development": 5, "contracts": 5.5,
    "runs": 6, "stages": 6.2, "report": 6.5,
    "audit": 7, "lm": 7, "engine": 7.5,
    "studies": 8, "server": 8,
    "cli": 9, "__main__": 9.5, "__init__": 10,
}  # fmt: skip
PLUGIN_PACKAGES = {"environments", "content", "agents", "development", "audit"}  # rooms that plug in
ORDER_ON_LAYER_ONE = ("errors", "renamed", "stats", "types", "rng", "trees", "plugins", "validation")


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


def _is_plugin(module: str) -> bool:
    """Whether a module defines `build` at its top level, as every plugin does."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    if path.stem == "base" or not path.exists():
        return False
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "build"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def violations(module: str, source: str) -> list[str]:
    room, _, rest = module.partition(".")
    found = []
    for imported in imports(source):
        other, _, other_rest = imported.partition(".")
        if other not in LAYERS:
            found.append(f"{module} imports {imported}, which has no floor")
        elif LAYERS[other] > LAYERS[room]:
            found.append(f"{module} (floor {LAYERS[room]}) imports {imported} (floor {LAYERS[other]}): an arrow upward")
        elif other == room and room in PLUGIN_PACKAGES and rest != "base" and _is_plugin(imported):
            found.append(f"{module} imports its sibling {imported}: only modules that are no plugins may be shared")
        elif other != room and LAYERS[other] == LAYERS[room]:
            levels = ORDER_ON_LAYER_ONE
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
        ("environments.bandit", "from ontogeny.agents import base"),
        ("environments.bandit", "from ontogeny.environments.random_mdp import build"),
        ("agents.random", "def act():\n    from ontogeny.stages import train"),
        ("types", "from ontogeny import registry"),
        ("study.report", "import ontogeny.cli"),
        ("environments.bandit", "from ..agents import base"),
        ("environments.bandit", "from .random_mdp import build"),
    ],
)
def test_a_planted_arrow_is_found(module, source):
    assert violations(module, source)


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long
