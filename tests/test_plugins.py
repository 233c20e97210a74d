"""Plugins of installed packages: found by entry points, loaded lazily, rejected where names clash."""

import json
import sys

import pytest

from ontogeny import plugins
from ontogeny.environments import ranges
from ontogeny.stages.assembly import assemble
from ontogeny.stages.spec import complete_spec, parse_run_spec, spec_to_json
from ontogeny.studies.entries import StudyEnvironment
from ontogeny.studies.plan import build_env
from ontogeny.types import BadInput, Environment

LONELY_BANDIT = '''"""A bandit with three arms, from another package."""
from ontogeny.environments import bandit

def build(*, num_pulls: int = 7):
    return bandit.build(num_arms=3, num_pulls=num_pulls)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package with one module and its entry points, for one test."""

    def install_package(entry_points, source=LONELY_BANDIT, package="lonely"):
        (tmp_path / f"{package}_env.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, f"{package}_env", raising=False)

    yield install_package
    plugins._read_entry_points.cache_clear()
    for name in [name for name in sys.modules if name.endswith("_env") and "." not in name]:
        del sys.modules[name]


def test_a_plugin_of_an_installed_package_is_listed_without_being_imported(install):
    install("[ontogeny.environments]\nlonely_bandit = lonely_env\n")
    names = plugins.list_names("environments")
    assert names == sorted(names) and {"bandit", "lonely_bandit"} <= set(names)
    assert plugins.help_line("environments", "lonely_bandit") == "A bandit with three arms, from another package."
    assert "lonely_env" not in sys.modules
    assert "lonely_bandit" not in plugins.list_names("agents")


def test_a_plugin_of_an_installed_package_is_built_with_its_settings(install):
    install("[ontogeny.environments]\nlonely_bandit = lonely_env\n")
    assert plugins.default_settings("environments", "lonely_bandit") == {"num_pulls": 7}
    env = plugins.build("environments", "lonely_bandit", num_pulls=9)
    assert isinstance(env, Environment) and env.spec.num_actions == 3 and env.spec.num_steps == 9
    with pytest.raises(BadInput, match="environment 'lonely_bandit' has no setting 'num_pull'; did you mean num_pulls"):
        plugins.build("environments", "lonely_bandit", num_pull=9)


@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        ("bandit = lonely_env", "the package 'lonely' registers the environment 'bandit', a name that is built in"),
        ("lonely-bandit = lonely_env", "registers the environment 'lonely-bandit': not an identifier"),
    ],
)
def test_an_invalid_name_of_an_installed_plugin_is_rejected(install, entry_points, message):
    install(f"[ontogeny.environments]\n{entry_points}\n")
    with pytest.raises(BadInput, match=message) as error_info:
        plugins.list_names("environments")
    assert "\n" not in str(error_info.value)


def test_two_packages_that_register_the_same_name_are_rejected(install):
    install("[ontogeny.environments]\nlonely_bandit = lonely_env\n")
    install("[ontogeny.environments]\nlonely_bandit = other_env\n", package="other")
    with pytest.raises(BadInput, match="both register the environment 'lonely_bandit'"):
        plugins.list_names("environments")


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("lonely_env", "import nowhere_at_all", "cannot be loaded: ModuleNotFoundError: No module"),
        ("lonely_env", '"""No build."""', "does not define `build`"),
        ("missing_env", "", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_broken_installed_plugin_is_reported_in_one_sentence(install, target, source, message):
    install(f"[ontogeny.environments]\nlonely_bandit = {target}\n", source)
    with pytest.raises(BadInput, match=message) as error_info:
        plugins.build("environments", "lonely_bandit")
    assert "'lonely'" in str(error_info.value) and "\n" not in str(error_info.value)


@pytest.mark.parametrize(
    ("kind", "name", "setting", "message"),
    [
        ("environments", "bandit", "arms", "has no setting 'arms': `arms` was renamed `num_arms`$"),
        ("environments", "two_step", "trials", "`trials` was renamed `num_trials`"),
        ("development", "evolution", "spread", "`spread` was renamed `sigma`"),
    ],
)
def test_the_old_name_of_a_setting_is_answered_with_its_new_name(kind, name, setting, message):
    arguments = () if kind == "environments" else (None, None, None)
    with pytest.raises(BadInput, match=message):
        plugins.build(kind, name, *arguments, **{setting: 3})


PROVIDER = '''"""Bandits of another library, `lonely_provider:ID`."""
from ontogeny.environments import bandit

TAKES_ID = True

def build(*, id: str = "", sizes: tuple[int, ...] = (), scale: float = 1.0):
    """Build the environment.

    Args:
        id: Number of arms.
        sizes: Unused.
        scale: Unused.
    """
    env = bandit.build(num_arms=len(id.split("/")), num_pulls=max(sizes, default=3))
    return env._replace(spec=env.spec._replace(name=f"lonely_provider:{id}"))
'''
PROVIDER_TEXTS = {
    "lonely_provider": {},
    "lonely_provider:A-v0": {"id": "A-v0"},
    "lonely_provider:my_module:pkg/A-v0": {"id": "my_module:pkg/A-v0"},
    "lonely_provider:a,b=c": {"id": "a", "b": "c"},
    "lonely_provider:a/b, sizes=3+5,scale=2": {"id": "a/b", "sizes": "3+5", "scale": 2},
    "lonely_provider:a,b": {"id": "a,b"},
    "lonely_provider:id=a/b,scale=1e-3": {"id": "a/b", "scale": 0.001},
    "lonely_provider:7": {"id": "7"},
}


@pytest.fixture
def provider(install):
    """An installed provider of environments that are named by an ID."""
    install("[ontogeny.environments]\nlonely_provider = lonely_env\n", PROVIDER)
    yield "lonely_provider"
    plugins._declares_id.cache_clear()


@pytest.mark.parametrize(("text", "settings"), PROVIDER_TEXTS.items())
def test_the_id_of_a_provider_ends_before_the_first_setting(provider, text, settings):
    assert plugins.parse(text) == (provider, settings)
    name, same_settings = plugins.parse(plugins.format_choice(provider, settings))
    assert (name, same_settings) == (provider, settings)
    assert "lonely_env" not in sys.modules  # nothing is imported to read a name


def test_a_provider_is_listed_but_not_built_without_an_id(provider):
    assert plugins.takes_id(provider) and not plugins.takes_id("bandit") and not plugins.takes_id("nowhere.py")
    assert provider in plugins.list_names("environments")
    assert provider not in plugins.list_buildable("environments")
    assert "recurrent" in plugins.list_buildable("agents") == plugins.list_names("agents")


def test_a_file_of_the_user_can_be_a_provider(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PROVIDER, encoding="utf-8")
    assert plugins.parse(f"{path}:a/b,scale=3") == (str(path), {"id": "a/b", "scale": 3})
    path.write_text("this is no Python", encoding="utf-8")
    assert plugins.parse(f"{path}:scale=3") == (str(path), {"scale": 3})


@pytest.mark.parametrize(
    "choice",
    [
        "lonely_provider:a/b,sizes=8+5",
        {"name": "lonely_provider", "id": "a/b", "sizes": [8, 5]},
        {"name": "lonely_provider", "settings": {"id": "a/b", "sizes": [8, 5]}},
    ],
)
def test_an_environment_of_a_provider_is_built_from_a_text_or_a_table(provider, choice):
    spec = parse_run_spec({"env": choice, "agent": "random"})
    assert spec.env.name == provider and spec.env.settings["id"] == "a/b"
    env = assemble(spec).env
    assert env.spec.name == "lonely_provider:a/b" and (env.spec.num_actions, env.spec.num_steps) == (2, 8)
    written = json.loads(json.dumps(spec_to_json(complete_spec(spec))))
    assert written["env"]["settings"].keys() == {"id", "sizes", "scale"}
    rebuilt = assemble(parse_run_spec(written)).env.spec
    assert rebuilt == env.spec
    text = choice if isinstance(choice, str) else plugins.format_choice(*plugins.parse_table(choice))
    study = StudyEnvironment.model_validate({"name": "mine", "env": choice, "num_tasks": 2})
    assert study.env == text and build_env(study).spec == env.spec


def test_a_list_of_settings_has_one_form(provider):
    assert plugins.build("environments", provider, id="a/b", sizes="8+5").spec.num_steps == 8
    assert plugins.build("environments", provider, id="a/b", sizes=7).spec.num_steps == 7
    with pytest.raises(BadInput, match="setting 'sizes' of environment 'lonely_provider' must be of type tuple"):
        plugins.build("environments", provider, id="a/b", sizes=True)
    with pytest.raises(BadInput, match="needs its 'name'"):
        plugins.parse_table({"id": "a"})


RANGES = {
    "length:5..10": (5, 10),
    "length:-1.5e-2..+.5": (-0.015, 0.5),
    "length:0...5": (0, 0.5),
    " length:.25..2.0E1 ": (0.25, 20),
    "length:5..10..15": None,
    "length:1.2.3..4": None,
    "length:1..2.3.4": None,
    "length:1.2": None,
    "length:....": None,
}


@pytest.mark.parametrize("text", RANGES)
def test_a_range_has_two_numbers(text):
    if RANGES[text] is None:
        for wrong in (text, f"{text}:100"):
            with pytest.raises(BadInput, match=r"of the form PARAMETER:LOW\.\.HIGH"):
                ranges.parse_range(wrong, "vary", has_steps=wrong != text)
    else:
        assert ranges.parse_range(text, "vary") == ranges.Range("length", *RANGES[text])
        assert ranges.parse_range(f"{text.strip()}:5..9", "drift", has_steps=True)[1:] == (*RANGES[text], 5, 4)


@pytest.mark.parametrize("kind", plugins.PLUGIN_KINDS)
def test_the_meaning_of_every_setting_is_documented(kind):
    for name in plugins.list_names(kind):
        meanings = plugins.describe_settings(kind, name)
        assert meanings.keys() == plugins.default_settings(kind, name).keys(), name
        assert not [text for text in meanings.values() if text.startswith(("At least", "One of"))], name
