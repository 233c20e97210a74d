"""What is served: each deployment is a saved model under a name, frozen (Case 2) or learning online (Case 1).

A frozen deployment knows the digest of its weights and looks at intervals whether it is still that. Knows nothing of
HTTP.
"""

import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.engine import Engine
from ontogeny.errors import BadInput
from ontogeny.lm import model as models
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.plugins import unknown_name_error
from ontogeny.server.learning import branches as lines
from ontogeny.server.learning import journal, learner
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.sessions.agents import Sessions
from ontogeny.server.sessions.texts import TextSessions
from ontogeny.server.store import Store

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
log = logging.getLogger(__name__)


class ServerConfig(NamedTuple):
    """What a person may say about a server of models."""

    online: bool = False
    frozen: tuple[str, ...] = ()  # deployments that do not learn, where others do
    shared: bool = False  # one line of learning for all keys
    bound: float = lines.BOUND
    share: float = 0.07  # of the time, that learning may take while others wait for answers
    rows: int = 64
    queue: int = 256
    verify: float = 60.0  # seconds between two looks at frozen weights
    learning: OnlineConfig = OnlineConfig()  # how weights change


class ServedWeights(NamedTuple):
    """The weights that answer a request, and which version of its line they are; 0 is as trained."""

    weights: TransformerWeights
    version: int
    digest: str  # of the version


class LanguageDeployment:
    """A language model with its engine and, online, its lines of learning."""

    kind = "language"

    def __init__(self, name: str, model: LanguageModel, store: Store, options: ServerConfig) -> None:
        self.name, self.model, self.created = name, model, int(time.time())
        self.online = options.online
        self.engine = Engine(model.config, max_num_seqs=options.rows, max_queue=options.queue)
        self.digest = trees.digest(model.weights)
        self.lines = _lines(name, model, store, options) if options.online else None
        self.sessions = TextSessions(name, model, store)
        self.changed = False  # frozen weights are not what they were

    def start(self) -> None:
        self.engine.start(self.model.weights)
        self.sessions.warm_up()
        if self.lines is not None:
            self.lines.start()

    def stop(self) -> None:
        self.engine.stop()
        self.sessions.stop()
        if self.lines is not None:
            self.lines.stop()

    def answering(self, owner: str) -> ServedWeights:
        if self.lines is None:
            return ServedWeights(self.model.weights, 0, self.digest)
        live = self.lines.current(owner)
        return ServedWeights(live.whole, live.version.number, live.version.digest)

    def erase(self, contribution: journal.TrainingExample, who: str) -> None:
        """Deletes a contribution and what was learned from it.

        With them goes what weights that had learned from it made of texts, and the memory of its giver's prompts.
        """
        assert self.lines is not None
        self.lines.erase(contribution.number, who)
        self.engine.prefix_cache.evict_owner(contribution.key)
        lines = journal.lines(self.lines.store, self.name)
        versions = [version for line in lines for version in journal.versions(self.lines.store, line.line)]
        known = {version.digest for version in versions if not version.gone}
        self.sessions.forget(known)

    def verify(self) -> None:
        if trees.digest(self.model.weights) != self.digest:
            self.changed = True
            log.error("the weights of '%s' are not those that it was started with", self.name)

    @property
    def failure(self) -> str | None:
        """Why it cannot answer, if it cannot."""
        if self.changed:
            return f"the weights of '{self.name}' are not those that it was started with"
        if self.engine.failure is not None:
            return f"the engine of '{self.name}' has failed"
        if self.lines is not None and self.lines.failed is not None:
            return f"the learner of '{self.name}' has failed"
        return None


class AgentDeployment:
    """An agent, whose sessions are lives; what learns in the online case are the weights of each life."""

    kind = "agent"

    def __init__(self, name: str, folder: Path, store: Store, options: ServerConfig) -> None:
        self.name, self.created, self.online = name, int(time.time()), options.online
        self.sessions = Sessions(name, folder, store, online=options.online)
        self.digest = self.sessions.digest
        self.failure: str | None = None

    def start(self) -> None:
        self.sessions.warm_up()

    def stop(self) -> None:
        self.sessions.stop()

    def verify(self) -> None:
        if not self.sessions.unchanged():
            self.failure = f"what '{self.name}' is born with is not what it was started with"


Deployment = LanguageDeployment | AgentDeployment


class Deployments:
    """All that one server serves; they are started, and looked after, by a thread."""

    def __init__(self, runs: Sequence[tuple[str, Path]], store: Store, options: ServerConfig) -> None:
        self.options, self.store = options, store
        self.by_name: dict[str, Deployment] = {}
        self.ready = threading.Event()
        self.failed: BaseException | None = None
        self._stopping = threading.Event()
        made: dict[Path, LanguageModel] = {}
        for name in options.frozen:
            if name not in (names := [name for name, _ in runs]):
                raise unknown_name_error("deployment", name, names)
        for name, folder in runs:
            if not NAME.fullmatch(name):
                raise BadInput(
                    f"'{name}' cannot be a deployment's name: letters, digits, '.', '_' and '-', 64 at most; "
                    f"give it one with --alias NAME={folder}"
                )
            if name in self.by_name:
                raise BadInput(
                    f"there are two deployments of the name '{name}'; give one another with --alias NAME=RUN"
                )
            here = options._replace(online=options.online and name not in options.frozen)
            if models.is_language(folder):
                model = made.get(folder.resolve()) or models.load(folder)
                made[folder.resolve()] = model
                self.by_name[name] = LanguageDeployment(name, model, store, here)
            else:
                self.by_name[name] = AgentDeployment(name, folder, store, here)
        self._thread = threading.Thread(target=self._run, name="deployments", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            journal.drop_unnamed(self.store)
            for deployment in self.by_name.values():
                deployment.start()
            self.ready.set()
            looked = time.monotonic()
            while not self._stopping.wait(0.2):
                texts = [made for made in self.by_name.values() if isinstance(made, LanguageDeployment)]
                busy = any(made.engine.num_requests_running + made.engine.num_requests_waiting for made in texts)
                for made in texts:
                    if made.lines is not None:
                        made.lines.busy = busy  # whoever waits, for whichever model: all share one processor
                if time.monotonic() - looked >= self.options.verify:
                    for deployment in self.by_name.values():
                        deployment.verify()
                    looked = time.monotonic()
        except BaseException as error:
            self.failed = error
            log.error("the server cannot go on: %s", error)
        finally:
            for deployment in self.by_name.values():
                deployment.stop()


def _lines(name: str, model: LanguageModel, store: Store, options: ServerConfig) -> BranchManager:
    try:
        how = learner.build(model, options.learning)
    except BadInput as error:
        raise BadInput(f"'{name}' cannot learn online: {error}") from None
    settings = lines.Settings(bound=options.bound, share=options.share)
    return BranchManager(store, name, how, shared=options.shared, settings=settings)


def about(deployment: Deployment) -> dict[str, Any]:
    """What anybody with a key may know of a deployment."""
    return {
        "kind": deployment.kind,
        "case": "online" if deployment.online else "frozen",
        "trained": deployment.digest,
    }
