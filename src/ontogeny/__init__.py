"""Compare ways of building adaptive agents, and measure where their ability is stored and where it keeps changing.

The functions below are the public API; each is imported when it is first used, so that `import ontogeny` is quick.
Functions that compute keep their compiled programs in the user's cache folder (`ontogeny.compilation_cache`).

    env = ontogeny.make_env("bandit", num_arms=10)
    agent = ontogeny.make_agent("thompson", env)
    run = ontogeny.train({"agent": "recurrent_cells", "env": "bandit", "development": "evolution"}, "runs/cells")
    session = ontogeny.load(run)

`ontogeny.lm` has the same stages for language models.
"""

import importlib
from typing import TYPE_CHECKING, Any, cast

from ontogeny.errors import BadInput, ContractViolation

if TYPE_CHECKING:
    from pathlib import Path

    from ontogeny import lm
    from ontogeny.engine.generate import generate
    from ontogeny.engine.sampling import SamplingParams
    from ontogeny.lm.model import LanguageModel
    from ontogeny.plugins import list_names as list_plugins
    from ontogeny.rollouts import rollout
    from ontogeny.runs.kinds import open_run
    from ontogeny.stages.assembly import make_agent, make_env, make_steering
    from ontogeny.stages.evaluate import evaluate
    from ontogeny.stages.session import AgentSession
    from ontogeny.stages.train import train

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "ContractViolation",
    "SamplingParams",
    "evaluate",
    "generate",
    "list_plugins",
    "lm",
    "load",
    "make_agent",
    "make_env",
    "make_steering",
    "open_run",
    "rollout",
    "train",
]

_SOURCES = {
    "SamplingParams": "ontogeny.engine.sampling:SamplingParams",
    "evaluate": "ontogeny.stages.evaluate:evaluate",
    "generate": "ontogeny.engine.generate:generate",
    "list_plugins": "ontogeny.plugins:list_names",
    "make_agent": "ontogeny.stages.assembly:make_agent",
    "make_env": "ontogeny.stages.assembly:make_env",
    "make_steering": "ontogeny.stages.assembly:make_steering",
    "open_run": "ontogeny.runs.kinds:open_run",
    "rollout": "ontogeny.rollouts:rollout",
    "train": "ontogeny.stages.train:train",
}
_COMPUTES_NOTHING = {"SamplingParams", "list_plugins", "open_run"}  # all others use the cache of compiled programs


def load(folder: "Path | str", *, online: bool = False) -> "AgentSession | LanguageModel":
    """The trained agent or language model in a folder, ready to use.

    Args:
        folder: An agent run, saved deployment, language-model run or folder of Hugging Face.
        online: Whether the weights of an agent keep learning.

    Returns:
        An `AgentSession`, which acts step by step, or a `LanguageModel`, which `generate` and `ontogeny.lm` take.

    Raises:
        BadInput: The folder holds no single agent or language model, or is unfinished, damaged or of another format.
    """
    from ontogeny import compilation_cache
    from ontogeny.runs import kinds

    compilation_cache.use()
    return cast("AgentSession | LanguageModel", kinds.load(folder, online=online))


def __getattr__(name: str) -> Any:
    if name != "lm" and name not in _SOURCES:
        raise AttributeError(f"module 'ontogeny' has no attribute '{name}'")
    if name not in _COMPUTES_NOTHING:
        from ontogeny import compilation_cache

        compilation_cache.use()
    if name == "lm":
        return importlib.import_module("ontogeny.lm")
    module, _, attribute = _SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
