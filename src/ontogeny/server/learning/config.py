"""Limits of the branches of a deployment."""

from pydantic import Field

from ontogeny.server.config import ServerConfig
from ontogeny.validation import FrozenModel


class BranchConfig(FrozenModel):
    """Limits of the branches of a deployment.

    Attributes:
        max_forgetting: Nats per token of held-out text.
        snapshot_interval: Accepted examples between two snapshots of a branch.
        max_snapshots: Per branch.
        max_loaded: Versions in memory.
        learning_fraction: Part of the learner's time while other requests wait.
    """

    max_forgetting: float = Field(default=ServerConfig().max_forgetting, ge=0)
    snapshot_interval: int = Field(default=16, ge=1)
    max_snapshots: int = Field(default=4, ge=1)
    max_loaded: int = Field(default=8, ge=1)
    learning_fraction: float = Field(default=1.0, gt=0, le=1)
