"""The two kinds of deployments: a language model and an agent, each frozen or learning online.

A deployment knows the digest of its frozen weights and can check that they still have it. This module does not depend
on HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.engine import Engine
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.lm import online_learner, weight_types
from ontogeny.lm.adapters import AdapterTree
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.memory import available_bytes
from ontogeny.server.config import ServerConfig
from ontogeny.server.fair_executor import FairExecutor
from ontogeny.server.learning import branch_changes, default_config, journal, learner, versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.journal import TrainingExample
from ontogeny.server.learning.snapshots import LoadedVersion
from ontogeny.server.processes import options
from ontogeny.server.processes.identity import describe_computation
from ontogeny.server.processes.membership import Membership
from ontogeny.server.processes.ownership import BranchOwnership, SoleOwnership
from ontogeny.server.served_models import FINAL
from ontogeny.server.sessions.agents import AgentSessions
from ontogeny.server.sessions.texts import TextSessions
from ontogeny.server.sessions.turns import SessionTurns
from ontogeny.server.store import Store
from ontogeny.stages.session import AgentSession

# Of the versions in memory, by default: a process that stops writes those that have learned, some 10 ms for each.
MIN_LOADED, MAX_LOADED = 8, 128
ONLINE, FROZEN = "online", "frozen"  # the modes of a deployment
LOADED_SHARE = 1 / 8  # of the memory that is available at the start


class ServedWeights(NamedTuple):
    """The weights that answer a request."""

    weights: TransformerWeights
    version: int  # 0: the trained weights
    digest: str  # of the version
    cache_epoch: int = 0  # of the prefix cache, before the version was looked up
    adapter: AdapterTree | None = None  # of the weights


class LanguageDeployment:
    """A language model with its engine, its sessions and, if it learns, its branches.

    Args:
        name: The name that requests use.
        model: The model.
        store: The database.
        config: The settings of the server; `online` applies to this deployment.
        checkpoint_name: Which weights of its run the model has; see `ServedModel`.
        membership: This process among those that share the database, if several can.

    Attributes:
        options: What other processes compare; see `processes.options`.
        on_erased: Called with erased examples, whichever process has erased them.

    Raises:
        BadInput: The model cannot learn online, or its branches were learned from other weights.
    """

    kind = "language"

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        store: Store,
        config: ServerConfig,
        checkpoint_name: str = FINAL,
        membership: Membership | None = None,
    ) -> None:
        self.name, self.model, self.created_at = name, model, int(time.time())
        self.online, self.checkpoint_name = config.online, checkpoint_name
        self.engine = Engine(
            model.config,
            max_num_seqs=config.max_num_seqs,
            max_queue=config.max_queue,
            max_context=config.max_context,
            kv_cache_bytes=config.max_kv_cache_bytes,
        )
        self.digest = weight_types.digest(model.weights)
        self._checksum = weight_types.checksum(model.config, model.weights)
        self.options: dict[str, Any] = {
            "mode": ONLINE if config.online else FROZEN, "checkpoint": checkpoint_name,
            "digest": self.digest[: options.DIGEST_LENGTH], "max_context": self.engine.max_sequence_length,
        }  # fmt: skip
        self.learning: str | None = None  # what learns, in words
        self.branches: BranchManager | None = None
        if config.online:
            ownership = membership or SoleOwnership(store, describe_computation())
            self.branches, online_config = _build_branches(
                name, model, store, config, ownership, self.engine.applies_adapters
            )
            self.learning = default_config.describe_choice(online_config, trees.num_elements(model.weights))
            self.options |= {"shared_branch": config.shared_branch, "max_forgetting": config.max_forgetting}
        else:
            self.options["weights"] = config.weights
        self.sessions = TextSessions(name, model, self.engine, store, max_waiting=config.max_queue)
        self.on_erased: Callable[[Collection[TrainingExample]], None] = lambda examples: None
        if self.branches is not None:
            self.branches.on_erased = self._forget
        self._failure: str | None = None

    def start(self) -> None:
        """Compiles and starts the engine and the learner."""
        self.engine.start(self.model.weights)
        if self.branches is not None:
            self.branches.start()

    def stop(self) -> None:
        """Stops all threads; an update that is not finished is evaluated again after the next start."""
        self.engine.stop()
        self.sessions.stop()
        if self.branches is not None:
            self.branches.stop()

    @property
    def queues(self) -> dict[str, Engine | FairExecutor | SessionTurns]:
        """The queues in which requests of a key wait, by name."""
        return {"requests": self.engine, **self.sessions.queues}

    def served_weights(self, owner_key: str) -> ServedWeights:
        """Returns the weights that answer the requests of a key now.

        Raises:
            BranchUnavailable: The current version of the key's branch cannot be computed.
        """
        cache_epoch = self.engine.prefix_cache.epoch
        if self.branches is None:
            return self._trained(cache_epoch)
        try:
            loaded = self.branches.current(owner_key)
        except StorageUnavailable:
            if not self.branches.is_new(owner_key):
                raise
            return self._trained(cache_epoch)  # the branch cannot be created
        return self._served(loaded, cache_epoch)

    async def request_weights(self, owner_key: str) -> ServedWeights:
        """Returns what `served_weights` returns, without blocking the event loop."""
        cache_epoch = self.engine.prefix_cache.epoch
        if self.branches is None:
            return self._trained(cache_epoch)
        try:
            loaded = await self.branches.request_current(owner_key)
        except StorageUnavailable:
            if not await asyncio.to_thread(self.branches.is_new, owner_key):
                raise
            return self._trained(cache_epoch)  # the branch cannot be created
        return self._served(loaded, cache_epoch)

    def _trained(self, cache_epoch: int) -> ServedWeights:
        """The trained weights as a request uses them."""
        return ServedWeights(self.model.weights, 0, self.digest, cache_epoch)

    @staticmethod
    def _served(loaded: LoadedVersion, cache_epoch: int) -> ServedWeights:
        """The weights of a version as a request uses them."""
        weights, adapter = loaded.served
        return ServedWeights(weights, loaded.version.number, loaded.version.digest, cache_epoch, adapter)

    def erase_example(self, example: TrainingExample, actor: str) -> None:
        """Deletes an example and what was learned from it.

        This includes the cached prefixes of the key that sent it or that were computed by weights that learned it,
        and all session activations that were computed by such weights.
        """
        assert self.branches is not None
        self.branches.erase_example(example.number, actor)

    def _forget(self, examples: Collection[TrainingExample]) -> None:
        """Removes cached prefixes and activations of erased examples; see `BranchManager.on_erased`."""
        assert self.branches is not None
        store = self.branches.store
        remaining = versions.list_digests(store, self.name, deleted=False)
        deleted = versions.list_digests(store, self.name, deleted=True) - remaining
        self.engine.prefix_cache.evict({example.key for example in examples}, deleted)
        self.on_erased(examples)
        names = {name for example in examples for name in branch_changes.list_branches_with(store, example)}
        owners = {name.rpartition("/")[2] for name in names}
        self.sessions.drop_activations(deleted, None if journal.SHARED in owners else owners)

    def check_weights(self) -> None:
        """Compares the trained weights with their digest; a difference makes the deployment unavailable."""
        if weight_types.checksum(self.model.config, self.model.weights) != self._checksum:
            self.fail(f"the weights of '{self.name}' changed after the start of the server")

    def fail(self, reason: str) -> None:
        """Makes the deployment unavailable."""
        self._failure = reason

    @property
    def failure(self) -> str | None:
        """The reason why the deployment is unavailable, or None."""
        if self._failure is None and self.engine.failure is not None:
            return f"the engine of '{self.name}' has failed"
        return self._failure

    @property
    def learning_failure(self) -> str | None:
        """The reason why nothing is learned at present although requests are answered, or None."""
        reason = None if self.branches is None else self.branches.loop.general_failure
        return None if reason is None else f"'{self.name}' does not learn at present: {reason}"


class AgentDeployment:
    """An agent with its sessions; online, the weights of each session learn.

    Args:
        name: The name that requests use.
        agent: The agent.
        store: The database.
        config: The settings of the server; `online` applies to this deployment.
    """

    kind = "agent"
    checkpoint_name, learning = FINAL, None

    def __init__(self, name: str, agent: AgentSession, store: Store, config: ServerConfig) -> None:
        self.name, self.created_at, self.online = name, int(time.time()), config.online
        session = AgentSession(agent.saved_agent, online=config.online)
        self.sessions = AgentSessions(name, session, store, max_waiting=config.max_queue)
        self.digest = self.sessions.digest
        self.options: dict[str, Any] = {
            "mode": ONLINE if config.online else FROZEN, "digest": self.digest[: options.DIGEST_LENGTH],
        }  # fmt: skip
        self.failure: str | None = None
        self.learning_failure = None  # a session learns while it is called
        self.queues = self.sessions.queues

    def start(self) -> None:
        """Compiles a step."""
        self.sessions.warm_up()

    def stop(self) -> None:
        """Finishes the current step."""
        self.sessions.stop()

    def check_weights(self) -> None:
        """Compares genome and initial weights with their digest; a difference makes the deployment unavailable."""
        if not self.sessions.is_unchanged():
            self.fail(f"the initial weights of '{self.name}' changed after the start of the server")

    def fail(self, reason: str) -> None:
        """Makes the deployment unavailable."""
        self.failure = reason


Deployment = LanguageDeployment | AgentDeployment


def _build_branches(
    name: str,
    model: LanguageModel,
    store: Store,
    config: ServerConfig,
    ownership: BranchOwnership,
    applies_adapters: bool,
) -> tuple[BranchManager, OnlineConfig]:
    """Builds the branches of a model that learns online; returns them with the settings of the learner."""
    build = partial(learner.build, model, applies_adapters=applies_adapters)
    choice = default_config.choose_config(config.learning, trees.num_elements(model.weights))
    online_config, reference = choice.config, [Path(file) for file in config.reference_text]
    try:
        branch_learner = build(online_config, reference)
        digests = (None, branch_learner.digest, branch_learner.earlier_digest)
        if choice.is_adapter_by_size and journal.find_learner_digest(store, name) not in digests:
            # Branches of an earlier version, in which all weights of every model learned, go on as they began.
            online_config = online_learner.parse_config(config.learning)
            branch_learner = build(online_config, reference)
    except BadInput as error:
        raise BadInput(f"'{name}' cannot learn online: {error}") from None
    limits = BranchConfig(
        max_forgetting=config.max_forgetting,
        learning_fraction=config.learning_fraction,
        max_loaded=config.max_loaded_branches or default_max_loaded(branch_learner),
    )
    if config.allow_mixed:  # another machine may not be able to compute a version again
        limits = limits.model_copy(update={"snapshot_interval": 1})
    branches = BranchManager(
        store, name, branch_learner, shared=config.shared_branch, config=limits, ownership=ownership
    )
    return branches, online_config


def default_max_loaded(branch_learner: learner.BranchLearner) -> int:
    """Returns how many versions of a branch's weights stay in memory: as many as fit into a share of it, within bounds.

    Args:
        branch_learner: Tells the size of the weights.
    """
    weights = jax.eval_shape(branch_learner.init)
    # Content and scratch, and the copies of the content that answer.
    version_bytes = trees.num_bytes(weights) + 2 * trees.num_bytes(weights.content)
    available = available_bytes()
    if available is None:
        return MIN_LOADED
    return min(MAX_LOADED, max(MIN_LOADED, int(LOADED_SHARE * available) // version_bytes))
