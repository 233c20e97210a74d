"""The settings of a server and their defaults, which the command line reads. Imports neither jax nor web libraries."""

from dataclasses import dataclass

from ontogeny.errors import BadInput, require_at_least

LOG_LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class ServerConfig:
    """How models are served.

    Attributes:
        online: Whether deployments learn.
        frozen: Names of deployments that do not learn although `online` is set.
        shared_branch: Whether all keys share one branch per deployment; otherwise each key has its own.
        max_forgetting: Limit of the acceptance test, in nats per token of held-out text, at least 0.
        learning: How weights are updated, as settings such as 'adapter=8,learning_rate=1e-3'.
        learning_fraction: The part of the time that learning may take while requests wait, above 0, at most 1.
        max_num_seqs: Sequences that are generated at a time, per model.
        max_queue: Requests that may wait, per model.
        weight_check_interval: Seconds between two checks of frozen weights against their digest.
        host: The address to listen on.
        port: The TCP port to listen on; 0 for any free one.
        time_limit: Seconds that a request may take.
        max_body_bytes: Bytes that the body of a request may have.
        log_level: One of `LOG_LEVELS`; "info" logs one line per request.
    """

    online: bool = False
    frozen: tuple[str, ...] = ()
    shared_branch: bool = False
    max_forgetting: float = 0.05
    learning: str = ""
    learning_fraction: float = 0.07
    max_num_seqs: int = 64
    max_queue: int = 256
    weight_check_interval: float = 60.0
    host: str = "127.0.0.1"
    port: int = 8000
    time_limit: float = 120.0
    max_body_bytes: int = 4 << 20
    log_level: str = "warning"

    def __post_init__(self) -> None:
        require_at_least(0, max_forgetting=self.max_forgetting)
        if self.log_level not in LOG_LEVELS:
            raise BadInput(f"the --log-level must be one of {', '.join(LOG_LEVELS)}, not '{self.log_level}'")
        if self.learning and not self.online:
            raise BadInput("--learning sets how weights are updated, so it needs --online")
