"""Plugins of installed packages: found by entry points, loaded lazily, rejected where names clash."""

import sys

import pytest

from ontogeny import plugins
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


@pytest.mark.parametrize("kind", plugins.PLUGIN_KINDS)
def test_the_meaning_of_every_setting_is_documented(kind):
    for name in plugins.list_names(kind):
        meanings = plugins.describe_settings(kind, name)
        assert meanings.keys() == plugins.default_settings(kind, name).keys(), name
        assert not [text for text in meanings.values() if text.startswith(("At least", "One of"))], name
