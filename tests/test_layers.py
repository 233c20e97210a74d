"""The structure of the package: layers, sizes of modules and functions, class names, annotations and docstrings."""

import ast
import io
import re
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import ontogeny
from ontogeny import plugins

ROOT = Path(ontogeny.__file__).parent
LAYERS = [  # from the lowest on; modules and packages of one layer do not import each other
    ("errors", "printable", "renamed"),
    ("types", "seeds", "optional_packages", "source_files", "compilation_cache"),
    ("rng",),
    ("trees", "tracing"),
    ("memory",),
    ("plugins",),
    ("validation",),
    ("bounded",),
    ("stats",),
    ("rollouts",),
    ("host_rollouts",),
    ("contracts",),
    ("parallel",),
    ("lifetimes",),
    ("environments", "content", "steering"),
    ("agents", "kernels"),
    ("runs",),
    ("development",),
    ("stages",),
    ("report",),
    ("audit", "lm"),
    ("engine",),
    ("studies", "server"),
    ("cli",),
    ("__main__",),
    ("__init__",),
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
PLUGIN_FOLDERS = {plugins.FOLDERS.get(kind, kind).replace("/", ".") for kind in plugins.PLUGIN_KINDS}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
FILLER_WORDS = {"a", "an", "and", "as", "by", "for", "from", "in", "is", "its", "of", "on", "or", "that", "the", "to"}
LONG_FORMS = {"env": "environment", "num": "number", "max": "maximum", "min": "minimum", "spec": "specification"}
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("*.py"))
}


@cache
def parse(source: str) -> ast.Module:
    """The syntax tree of a source, which all tests share."""
    return ast.parse(source)


@cache
def list_nodes(source: str) -> list[ast.AST]:
    """All nodes of the syntax tree of a source."""
    return list(ast.walk(parse(source)))


@cache
def list_imports(source: str) -> list[str]:
    """The modules of the package that a source imports, at any place: `agents.base`, `types`, ..."""
    imported = []
    for node in list_nodes(source):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            imported.append(f"ontogeny.a relative import in line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported += [name if _is_module(name) else node.module for name in names]
    return [name.removeprefix("ontogeny.") for name in imported if name.startswith("ontogeny.")]


def _is_module(name: str) -> bool:
    path = ROOT.parent / Path(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _is_plugin(module: str) -> bool:
    """Whether a module lies in the folder of a plugin kind and defines `build`."""
    folder, _, name = module.rpartition(".")
    if folder not in PLUGIN_FOLDERS or name == "base" or module not in SOURCES:
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == "build" for node in parse(SOURCES[module]).body)


def layer_violations(module: str, source: str) -> Iterator[str]:
    """Imports from the same or a higher layer, and imports between plugins of one kind."""
    package = module.partition(".")[0]
    for imported in list_imports(source):
        target = imported.partition(".")[0]
        if target not in LEVELS:
            yield f"{module} imports {imported}, which has no layer"
        elif target != package and LEVELS[target] >= LEVELS[package]:
            yield f"{module} imports {imported} from the same or a higher layer"
        elif (
            _is_plugin(module)
            and _is_plugin(imported)
            and imported != module
            and imported.rpartition(".")[0] == module.rpartition(".")[0]
        ):
            yield f"{module} imports {imported}, a plugin of its own kind; only `base` may be shared"


def find_cycle(imports: dict[str, list[str]]) -> list[str]:
    """A cycle of imports, or an empty list."""
    finished: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished or module not in imports:
            return []
        path.append(module)
        for imported in sorted(set(imports[module])):
            if cycle := visit(imported):
                return cycle
        path.pop()
        finished.add(module)
        return []

    return next((cycle for module in imports if (cycle := visit(module))), [])


def count_code_lines(source: str) -> int:
    """Lines without docstrings, comments and blank lines."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in list_nodes(source):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def list_functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a source, nested ones included."""
    for node in list_nodes(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def size_violations(module: str, source: str) -> Iterator[str]:
    """Modules and functions with too many lines of code."""
    if source.count("\n") > MAX_MODULE_LINES and (lines := count_code_lines(source)) > MAX_MODULE_LINES:
        yield f"{module} has {lines} lines of code"
    for function in list_functions(source):
        end = function.end_lineno or function.lineno
        if end - function.lineno < MAX_FUNCTION_LINES:
            continue
        text = textwrap.dedent("\n".join(source.splitlines()[function.lineno - 1 : end]))
        if (lines := count_code_lines(text)) > MAX_FUNCTION_LINES:
            yield f"{module}.{function.name} has {lines} lines of code"


def annotation_violations(module: str, source: str) -> Iterator[str]:
    """Functions that lack an annotation of a parameter or of what they return."""
    for function in list_functions(source):
        arguments = function.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [parameter for parameter in (arguments.vararg, arguments.kwarg) if parameter is not None]
        missing = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
        if missing or function.returns is None:
            yield f"{module}.{function.name}, line {function.lineno}: {', '.join(missing) or 'the return value'}"


def repeated_class_names(sources: dict[str, str]) -> Iterator[str]:
    """Class names that are used in more than one place."""
    places = defaultdict(list)
    for module, source in sources.items():
        for node in list_nodes(source):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    for name, modules in places.items():
        if len(modules) > 1:
            yield f"{name}: {', '.join(modules)}"


def docstring_violations(module: str, source: str) -> Iterator[str]:
    """Lines of an Args section that only repeat the name or the type of the parameter."""
    for function in list_functions(source):
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", ast.get_docstring(function) or "", re.MULTILINE)
        entries = (
            re.findall(r"^    \*{0,2}(\w+):((?:.*\n?)(?:        .*\n?)*)", section.group(1), re.MULTILINE)
            if section
            else []
        )
        arguments = function.args
        annotations = {
            p.arg: ast.unparse(p.annotation) if p.annotation else ""
            for p in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            if p is not None
        }
        for name, text in entries:
            if name not in annotations:
                yield f"{module}.{function.name}: '{name}' is not a parameter"
            elif _words(text) - FILLER_WORDS <= _words(name) | _words(annotations[name]):
                yield f"{module}.{function.name}: '{name}: {text.strip()}' only repeats the name or the type"


def _words(text: str) -> set[str]:
    """The words of a text or of identifiers in it, in lower case, abbreviations also in their long form."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)}
    return words | {LONG_FORMS[word] for word in words if word in LONG_FORMS}


def violations_of_all(rule: Callable[[str, str], Iterator[str]]) -> list[str]:
    """The violations of a rule in all modules."""
    return [violation for module, source in SOURCES.items() for violation in rule(module, source)]


def test_imports_go_down() -> None:
    modules = {module.removesuffix(".__init__"): source for module, source in SOURCES.items() if module != "__init__"}
    assert not [violation for module, source in modules.items() for violation in layer_violations(module, source)]


def test_there_is_no_cycle_of_imports() -> None:
    imports = {module.removesuffix(".__init__"): list_imports(source) for module, source in SOURCES.items()}
    assert not find_cycle(imports)


def test_modules_and_functions_are_short() -> None:
    assert not violations_of_all(size_violations)


def test_every_function_is_annotated() -> None:
    assert not violations_of_all(annotation_violations)


def test_random_keys_come_from_checked_seeds() -> None:
    pattern = re.compile(r"random\.(?:key|PRNGKey)\((?!\d+\))")
    checked = {module for module in SOURCES if module != "rng" and not module.startswith("contracts.")}
    assert not [module for module in checked if pattern.search(SOURCES[module])], (
        "a random key of a seed is made by `rng.key_from_seed`"
    )


def test_docstrings_of_arguments_add_information() -> None:
    assert not violations_of_all(docstring_violations)


def test_class_names_are_unique() -> None:
    assert not list(repeated_class_names(SOURCES))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("environments.bandit", "from ontogeny.agents import base"),
        ("environments.bandit", "from ontogeny.environments.random_mdp import build"),
        ("audit.organisms.planner", "from ontogeny.audit.organisms import dyna"),
        ("agents.random", "def act():\n    from ontogeny.stages import train"),
        ("types", "from ontogeny import plugins"),
        ("audit.base", "from ontogeny.lm import train"),
        ("studies.runner", "import ontogeny.cli"),
        ("environments.bandit", "from ..agents import base"),
        ("environments.bandit", "from .random_mdp import build"),
    ],
)
def test_a_planted_import_is_detected(module: str, source: str) -> None:
    assert list(layer_violations(module, source))


def test_a_planted_cycle_is_detected() -> None:
    assert find_cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a", "b", "c", "a"]
    assert not find_cycle({"a": ["b", "c"], "b": ["c"], "c": []})


def test_a_planted_long_module_or_function_is_detected() -> None:
    short = 'def f() -> None:\n    """Text.\n\n    More text."""\n    # comment\n\n    x = 1\n'
    assert count_code_lines(short) == 2 and not list(size_violations("m", short))
    assert list(size_violations("m", "x = 1\n" * (MAX_MODULE_LINES + 1))) == ["m has 401 lines of code"]
    long_function = "def f() -> None:\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert list(size_violations("m", long_function)) == ["m.f has 61 lines of code"]


@pytest.mark.parametrize("source", ["def f(x) -> int: ...", "def f(x: int): ...", "def f(*args) -> int: ..."])
def test_a_planted_function_without_annotations_is_detected(source: str) -> None:
    assert list(annotation_violations("m", source))
    assert not list(annotation_violations("m", "class C:\n    def f(self, x: int) -> int: ..."))


def test_a_planted_repeated_class_name_is_detected() -> None:
    assert list(repeated_class_names({"a": "class State: ...", "b": "class State: ..."})) == ["State: a, b"]
    assert not list(repeated_class_names({"a": "class State: ...", "b": "class OtherState: ..."}))


@pytest.mark.parametrize(
    ("line", "is_violation"),
    [
        ("env: The environment.", True),
        ("env: The env.", True),
        ("num_steps: Number of steps.", True),
        ("num_steps: Number of the steps, an int.", True),
        ("key: The key.", True),
        ("num_step: At least 1.", True),
        ("num_steps: T, at least 1.", False),
        ("env: The environment in which the agent is evaluated.", False),
    ],
)
def test_a_planted_docstring_that_repeats_the_signature_is_detected(line: str, is_violation: bool) -> None:
    signature = "def f(key: Key, env: Environment, num_steps: int) -> None"
    source = f'{signature}:\n    """Text.\n\n    Args:\n        {line}\n    """'
    assert bool(list(docstring_violations("m", source))) == is_violation
