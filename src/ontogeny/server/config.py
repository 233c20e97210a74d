"""The settings of a server, with their ranges and defaults."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ontogeny.validation import FrozenModel

HOST_NAME = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")
ORIGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://({HOST_NAME.pattern})(:[0-9]{{1,5}})?")
PROCESS_URL = re.compile(r"https?://[^/?#@\s]+")

MAX_QUOTA = 10**15  # of examples, bytes or sessions


class ServerConfig(FrozenModel):
    """The settings of a server, from which `ontogeny serve` derives its options.

    Attributes:
        online: Whether the weights learn from requests.
        frozen: Names of deployments that do not learn although `online` is set.
        best: Names of deployments that have the weights of the lowest held-out loss of their run.
        shared_branch: Let all keys share one branch of weights instead of one each.
        max_forgetting: Limit of the acceptance test: nats per token lost on held-out text.
        weights: Type in which the matrices of models that do not learn are kept in memory: that of the file (auto),
            float32, bfloat16, float16 or int8; all but auto and float32 need the extra `fast`.
        reference_text: File of text like the training text of a model that came without it, such as a folder of
            Hugging Face: it is rehearsed, and its last tenth measures forgetting; repeatable.
        learning: Settings of online learning, such as 'chunk_size=32,adapter_rank=8'; `lm evaluate --help` lists them.
            Without adapter_rank, all weights of a model of up to 5,000,000 parameters learn, and of a larger one an
            adapter.
        host: Address to listen on; an address other than loopback needs a key.
        port: TCP port to listen on; 0 for any free one.
        allowed_hosts: Host name, beside those of loopback, for which the server answers, as behind a proxy; repeatable.
        allowed_origins: Origin whose pages may use the server, such as https://example.org; repeatable.
        max_num_seqs: Sequences generated at a time per model.
        max_queue: Requests of one key that may wait per model, in all processes that share a database.
        max_context: Tokens on which an answer can depend at most (default: the context of the model).
        max_kv_cache_bytes: Memory for keys and values of all requests, per model (default: half of the memory that is
            available at the start, divided among the models).
        time_limit: Time limit of a request in seconds.
        drain_time: Seconds that running requests have to finish when the server is told to stop.
        max_body_bytes: Size limit of a request body in bytes; a state may be as large as an export of the model.
        max_pending_examples: Examples of a key that may wait to be learned, for keys without a limit of their own.
        max_stored_bytes: Bytes that a key may store, for keys without a limit of their own.
        max_sessions: Sessions that a key may have, for keys without a limit of their own.
        learning_fraction: Part of the time for learning while requests wait.
        max_loaded_branches: Branches per model whose weights stay in memory; those of others are read again (default: 8
            to 128, as many as an eighth of the memory holds that is available at the start).
        weight_check_interval: Seconds between checks of frozen weights against their digest.
        process_name: Name of this server process among those that share a database (default: its address and port).
        process_url: Address at which the other processes reach this one (default: http://ADDRESS:PORT).
        key_grace_time: Seconds for which a key that this process has accepted stays valid while the shared database
            cannot be reached.
        allow_mixed: Take over branches whose weights another kind of processor or other packages computed; the log of
            the branch says so.
        log_level: Messages to log: error, warning, or info (one line per request).
    """

    online: bool = False
    frozen: tuple[str, ...] = ()
    best: tuple[str, ...] = ()
    shared_branch: bool = False
    max_forgetting: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    weights: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    reference_text: tuple[str, ...] = Field(default=(), strict=False)
    learning: str = ""
    learning_fraction: float = Field(default=0.07, ge=0.01, le=1)
    max_loaded_branches: int | None = Field(default=None, ge=1, le=1_000_000)
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_queue: int = Field(default=256, ge=1, le=100_000)
    max_context: int | None = Field(default=None, ge=2)
    max_kv_cache_bytes: int | None = Field(default=None, ge=1)
    weight_check_interval: float = Field(default=60.0, ge=0.1, allow_inf_nan=False)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = Field(default=(), strict=False)  # options are lists
    allowed_origins: tuple[str, ...] = Field(default=(), strict=False)
    time_limit: float = Field(default=120.0, ge=0.1, allow_inf_nan=False)
    drain_time: float = Field(default=5.0, ge=0, le=3600, allow_inf_nan=False)
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    max_pending_examples: int = Field(default=10_000, ge=1, le=MAX_QUOTA)
    max_stored_bytes: int = Field(default=4 << 30, ge=1, le=MAX_QUOTA)
    max_sessions: int = Field(default=1000, ge=1, le=MAX_QUOTA)
    process_name: str = Field(default="", max_length=100)
    process_url: str = ""
    key_grace_time: float = Field(default=60.0, ge=0, le=86_400, allow_inf_nan=False)
    allow_mixed: bool = False
    log_level: Literal["error", "warning", "info"] = "warning"

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        """A host is a name or an address without a scheme, port or path."""
        for host in hosts:
            if not HOST_NAME.fullmatch(host):
                raise ValueError(f"must be a host name without scheme and port, such as example.org, not {host!r}")
        return hosts

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """An origin is written as browsers write it; there is none that stands for all pages."""
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"must be an origin without a path, such as https://example.org, not {origin!r}")
        return origins

    @field_validator("process_name")
    @classmethod
    def _check_process_name(cls, name: str) -> str:
        """The name is part of a header of every response."""
        if not name.isprintable():
            raise ValueError("must consist of printable characters")
        return name

    @field_validator("process_url")
    @classmethod
    def _check_process_url(cls, url: str) -> str:
        """The address has no path and no password."""
        if url and not PROCESS_URL.fullmatch(url):
            raise ValueError(f"must have the form http://NAME:PORT, not {url!r}")
        return url

    @model_validator(mode="after")
    def _check_learning(self) -> Self:
        """Settings of learning require an online deployment."""
        for name in ("learning", "reference_text", "shared_branch"):
            if getattr(self, name) and not self.online:
                raise ValueError(f"has the setting '{name}', which needs 'online'")
        return self
