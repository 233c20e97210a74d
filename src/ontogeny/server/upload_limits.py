"""Size limits of request bodies that follow from a model: states, and the observations of agents."""

import math
import re
from typing import NamedTuple

import jax

from ontogeny import trees
from ontogeny.server.deployment_kinds import Deployment, LanguageDeployment
from ontogeny.server.deployments import Deployments

ROUTE = re.compile(r"/v1/(?:models|agents)/([^/]+)/(branch|sessions)(?:/[^/]+)?/(state|act)/*")
STATE_MARGIN = 1 << 20  # bytes for the header of a state, which names every array
NUMBER_LENGTH = 32  # characters of a number in JSON, with its separators and brackets


class UploadSizes(NamedTuple):
    """Bytes of the largest uploads of a deployment."""

    branch_state: int
    session_state: int
    observation: int


class UploadLimits:
    """The limits of all deployments.

    Args:
        deployments: The models. Their setting `max_body_bytes` is the least limit.
    """

    def __init__(self, deployments: Deployments) -> None:
        self._min_limit = deployments.config.max_body_bytes
        self._sizes = {name: _measure(deployment) for name, deployment in deployments.by_name.items()}

    def find(self, method: str, path: str) -> int | None:
        """Returns the bytes that the body of a request may have; None for a route without such a limit."""
        match = ROUTE.fullmatch(path)
        sizes = None if match is None else self._sizes.get(match[1])
        if match is None or sizes is None:
            return None
        if (method, match[3]) == ("PUT", "state"):
            size = sizes.branch_state if match[2] == "branch" else sizes.session_state
        elif (method, match[3]) == ("POST", "act"):
            size = sizes.observation
        else:
            return None
        return max(self._min_limit, size + STATE_MARGIN)


def _measure(deployment: Deployment) -> UploadSizes:
    """Returns the bytes of the largest uploads of a deployment."""
    if isinstance(deployment, LanguageDeployment):
        branches, config, length = deployment.branches, deployment.model.config, deployment.engine.max_sequence_length
        branch_state = 0 if branches is None else trees.num_bytes(jax.eval_shape(branches.learner.init))
        num_activations = 2 * config.num_layers * config.kv_heads * config.size_of_head * length  # keys and values
        return UploadSizes(branch_state, 4 * (num_activations + length + 1), 0)
    agent = deployment.sessions.agent
    observation = NUMBER_LENGTH * math.prod(agent.spec.observation_shape)
    return UploadSizes(0, trees.num_bytes(agent.state_types), observation)
