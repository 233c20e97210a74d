"""The settings of a server, with their ranges and defaults."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ontogeny.validation import FrozenModel


class ServerConfig(FrozenModel):
    """How models are served.

    Attributes:
        online: Whether deployments learn.
        frozen: Names of deployments that do not learn although `online` is set.
        shared_branch: Whether all keys share one branch per deployment; otherwise each key has its own.
        max_forgetting: Limit of the acceptance test, in nats per token of held-out text.
        learning: How weights are updated, as settings such as 'adapter_rank=8,learning_rate=1e-3'.
        learning_fraction: The part of the time that learning may take while requests wait.
        max_num_seqs: Sequences that are generated at a time, per model.
        max_queue: Requests that may wait, per model.
        weight_check_interval: Seconds between two checks of frozen weights against their digest.
        host: The address to listen on.
        port: The TCP port to listen on; 0 for any free one.
        time_limit: Seconds that a request may take.
        max_body_bytes: Bytes that the body of a request may have.
        log_level: The least severe messages to log; "info" logs one line per request.
    """

    online: bool = False
    frozen: tuple[str, ...] = ()
    shared_branch: bool = False
    max_forgetting: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    learning: str = ""
    learning_fraction: float = Field(default=0.07, ge=0.01, le=1)
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_queue: int = Field(default=256, ge=1, le=100_000)
    weight_check_interval: float = Field(default=60.0, ge=0.1, allow_inf_nan=False)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    time_limit: float = Field(default=120.0, ge=0.1, allow_inf_nan=False)
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    log_level: Literal["error", "warning", "info"] = "warning"

    @model_validator(mode="after")
    def _check_learning(self) -> Self:
        if self.learning and not self.online:
            raise ValueError("has the setting 'learning', which needs 'online'")
        return self
