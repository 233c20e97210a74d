"""The whole battery over one subject, and who the subjects of a saved agent are.

An agent that learns by weights is two subjects: the whole agent with its code learning on, and its learned content
alone, whose weights are frozen after one life in another task. Any other agent is one, frozen. Verdicts of one table
are held together: a yes must stand Holm's correction over all tests that were asked (Holm 1979, Scand J Stat 6:65).
Supporting tests stand beside the deciding ones, are asked only on demand and move no verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ontogeny import plugins, steering
from ontogeny.audit.base import BESIDE, QUESTIONS, Finding, Subject, Test, tests
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime
from ontogeny.stages.saved_agent import SavedAgent
from ontogeny.types import Agent, Environment, Genome, State, Steering

LEVEL = 0.05
OnProgress = Callable[[int, int, str], None]


def subjects(saved: SavedAgent) -> list[Subject]:
    """Those of a finished run or of a saved deployment."""
    agent, home, _ = saved.assembly
    name = saved.spec.agent.name
    built, genome = partial(_built, saved), partial(_genome, saved)
    after = partial(_after_a_life, genome)
    if not agent.learning:
        return [Subject(name, home, built, genome)]
    return [
        Subject(f"{name}, the whole agent, learning", home, built, genome, online=True),
        Subject(f"{name}, its learned content alone, frozen", home, built, after),
    ]


def audit(
    subject: Subject,
    *,
    seed: int = 0,
    num_lifetimes: int | None = None,
    supporting: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Finding]:
    """One finding per test, in the order of the questions, the deciding ones first; `lives` in place of each test's own
    number. `supporting` asks the supporting tests as well."""
    found, order = [], list(QUESTIONS | BESIDE)
    asked = [(name, test) for name, test in tests().items() if test.deciding or supporting]
    asked.sort(key=lambda item: (not item[1].deciding, order.index(item[1].question)))
    for number, (name, test) in enumerate(asked):
        if on_progress is not None:
            on_progress(number, len(asked), name)
        keys = sample_lifetime_keys(jax.random.key(seed), num_lifetimes or test.num_lifetimes, "evaluation")
        try:
            found.append(test.judge(test.measure(subject, keys), test.thresholds))
        except BadInput as refusal:
            found.append(_not_asked(name, test, str(refusal)))
    return corrected(found)


def corrected(found: Sequence[Finding]) -> list[Finding]:
    """A yes that does not stand the correction over all tests that were asked becomes undetermined."""
    asked = sorted((finding for finding in found if finding.deciding and not finding.gate), key=lambda f: f.p)
    kept: dict[str, float] = {}
    largest = 0.0
    for rank, finding in enumerate(asked):
        largest = max(largest, min(1.0, finding.p * (len(asked) - rank)))
        kept[finding.test] = largest
    return [
        finding._replace(verdict="undetermined", told=f"not beyond chance among {len(asked)} tests: {finding.told}")
        if finding.verdict == "yes" and kept.get(finding.test, 0.0) > LEVEL
        else finding
        for finding in found
    ]


def verdicts(found: Sequence[Finding]) -> dict[str, str]:
    """By question; a question that no deciding test could ask is undetermined. Where several could, one yes is enough,
    and a no needs all of them."""
    said: dict[str, list[str]] = {question: [] for question in QUESTIONS}
    for finding in found:
        if finding.deciding and not finding.gate:
            said[finding.question].append(finding.verdict)
    return {question: _together(verdicts) for question, verdicts in said.items()}


def _together(said: Sequence[str]) -> str:
    if "yes" in said:
        return "yes"
    return "no" if said and all(verdict == "no" for verdict in said) else "undetermined"


def in_words(found: Sequence[Finding]) -> str:
    """What all three answers amount to."""
    said = verdicts(found)
    if all(verdict == "yes" for verdict in said.values()):
        if any(finding.question == "mechanism" and finding.verdict == "yes" for finding in found):
            return "It behaves as an inner optimizer. Mechanism shown: its belief was exchanged, its choice followed."
        return "It behaves as an inner optimizer. That is a signature in behaviour; the mechanism is not shown by it."
    if any(verdict == "no" for verdict in said.values()):
        lacks = [QUESTIONS[question] for question, verdict in said.items() if verdict == "no"]
        return f"It does not behave as an inner optimizer ({' '.join(lacks)} No.)"
    return "Whether it behaves as an inner optimizer is undetermined."


def as_json(subject: Subject, found: Sequence[Finding]) -> dict[str, Any]:
    """Everything that was found, with numbers that are not finite as text."""
    return {
        "subject": subject.name,
        "online": subject.online,
        "verdicts": verdicts(found),
        "in_words": in_words(found),
        "findings": [as_plain(finding._asdict()) for finding in found],
    }


def _not_asked(name: str, test: Test, why: str) -> Finding:
    return Finding(name, test.question, test.deciding, "undetermined", f"not asked: {why}", 1.0, {}, {}, why)


def _built(saved: SavedAgent, env: Environment) -> tuple[Agent, Steering]:
    same = env.spec.name == saved.assembly.env.spec.name
    drives = steering.build(env.spec, saved.spec.drives if same else {})
    return plugins.build("agents", saved.spec.agent.name, env.spec, drives, **saved.spec.agent.settings), drives


def _genome(saved: SavedAgent, agent: Agent, *_: Any) -> Genome | State:
    """What was saved, where it fits; of code that nobody searched, the genome as it is written for this environment."""
    own = agent.genome(jax.random.key(saved.spec.seed))
    if saved.state is not None:
        born = jax.eval_shape(agent.init, jax.random.key(0), own)
        return _fitting(saved.state, born)
    if saved.spec.development.name == "single_lifetime":
        return own
    return _fitting(saved.genome, own)


def _fitting(kept: Any, wanted: Any) -> Any:
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (kept, wanted)]
    if shapes[0] != shapes[1]:
        raise BadInput("what was developed has other shapes than an agent of the environment in which this is asked")
    return kept


def _after_a_life(genome: Callable, agent: Agent, env: Environment, drives: Steering) -> State:
    """Weights as one life in another task has left them, activations as at birth."""
    given = genome(agent)
    if isinstance(given, State):
        return agent.reset(given)
    key = sample_lifetime_keys(jax.random.key(0), 1, "validation")[0]
    state, _ = jax.jit(lambda key: rollout_lifetime(key, agent, env, drives, given, learning=True))(key)
    return agent.reset(state)


def as_plain(value: Any) -> Any:
    """Records as JSON takes them: named tuples as tables, numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {key: as_plain(part) for key, part in value.items()}
    if hasattr(value, "_asdict"):
        return as_plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
