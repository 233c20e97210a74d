"""Snapshots as objects of an S3-compatible store, which the servers of several machines share.

The address is `s3://BUCKET/PREFIX`. Credentials, region and endpoint come from the environment variables and profiles
that all tools of AWS read, such as `AWS_ACCESS_KEY_ID`, `AWS_PROFILE` and `AWS_ENDPOINT_URL`. The store is reached over
`obstore`, which imports nothing until the first call.
"""

import os
import re
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any

from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.optional_packages import import_optional
from ontogeny.server.snapshot_stores.base import CONTENT_NAME, SnapshotFile, SnapshotStore, UnusableSnapshot

ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
PROFILE_VARIABLES = {"AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"}
PROFILE_FILES = ("~/.aws/credentials", "~/.aws/config")
SUFFIX = ".safetensors"
PART_SIZE = 16 * 1024 * 1024  # bytes of a request; larger files are sent and read in parts
CONNECT_TIMEOUT, TIMEOUT = timedelta(seconds=3), timedelta(seconds=60)  # of one request
RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
NO_RETRIES = {"max_retries": 0}
SHORT_TIMEOUT = timedelta(seconds=5)  # of deletions, for which the thread waits that watches the server
MAX_REASON = 200  # characters of a message of the store


class ObjectSnapshots(SnapshotStore):
    """The snapshots below a prefix of a bucket, which belongs to one database.

    Args:
        address: `s3://BUCKET/PREFIX`; the prefix may be empty.

    Raises:
        BadInput: The address is malformed, or the package `obstore` is not installed.
    """

    def __init__(self, address: str) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise BadInput(f"the address of the snapshots must have the form s3://BUCKET/PREFIX, not '{address}'")
        self._bucket, self._prefix = match[1], (match[2] or "").strip("/")
        self.address = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self.label = f"the snapshot store '{self.address}'"
        self._sizes: dict[str, int] = {}  # of files of earlier versions, whose names do not say it
        self._obstore: Any = import_optional("obstore", "s3", "snapshots in an S3-compatible store")
        import_optional("obstore.store", "s3", "snapshots in an S3-compatible store")

    def write_as(self, name: str, content: bytes) -> None:
        """Writes an object; see `SnapshotStore`. A larger one becomes visible when its last part has arrived."""
        with self._storage_errors("written"):
            self._obstore.put(
                self._client,
                name,
                content,
                use_multipart=len(content) > PART_SIZE,
                chunk_size=PART_SIZE,
                max_concurrency=4,
            )

    def fetch(self, name: str) -> bytes:
        """Reads an object; see `SnapshotStore`."""
        with self._storage_errors("read"):
            try:
                match = CONTENT_NAME.fullmatch(name)
                if match and int(match[2]) <= PART_SIZE:
                    return bytes(self._obstore.get(self._client, name).bytes())
                size = self._obstore.head(self._client, name)["size"]  # that of a damaged object may be another one
                starts = range(0, size, PART_SIZE)
                parts = (self._obstore.get_range(self._client, name, start=i, length=PART_SIZE) for i in starts)
                return b"".join(map(bytes, parts))
            except FileNotFoundError:
                self._require_bucket()
                raise UnusableSnapshot("it is absent from the store", True) from None

    def num_bytes(self, name: str) -> int:
        """The size of an object, which is looked up at most once; see `SnapshotStore`."""
        if name not in self._sizes:
            size = super().num_bytes(name)
            if not size:
                return 0
            self._sizes[name] = size
        return self._sizes[name]

    def stored_bytes(self, name: str) -> int | None:
        """The size of an object; see `SnapshotStore`."""
        with self._storage_errors("read"):
            try:
                return self._obstore.head(self._client, name)["size"]
            except FileNotFoundError:
                self._require_bucket()
                return None

    def list_files(self) -> Iterator[SnapshotFile]:
        """All snapshots below the prefix, and nothing else, such as objects of a longer prefix; see `SnapshotStore`."""
        with self._storage_errors("listed"):
            for batch in self._obstore.list(self._client):
                for entry in batch:
                    if "/" in entry["path"] or not entry["path"].endswith(SUFFIX):
                        continue
                    yield SnapshotFile(entry["path"], entry["size"], entry["last_modified"].timestamp())

    def delete(self, names: Collection[str]) -> None:
        """Deletes objects; see `SnapshotStore`."""
        with self._storage_errors("deleted"):
            if names:
                self._obstore.delete(self._quick_client, sorted(names))

    def check(self) -> None:
        """Lists the bucket; see `SnapshotStore`."""
        try:
            self._require_bucket()
        except StorageUnavailable as error:
            raise BadInput(str(error)) from None

    def path_of(self, name: str) -> str:
        """The address of an object."""
        return f"{self.address}/{name}"

    @cached_property
    def _client(self) -> Any:
        """The client of most requests."""
        return self._build_client(TIMEOUT, RETRIES)

    @cached_property
    def _quick_client(self) -> Any:
        """The client of deletions."""
        return self._build_client(SHORT_TIMEOUT, NO_RETRIES)

    def _build_client(self, timeout: timedelta, retries: dict[str, Any]) -> Any:
        """Builds a client with the settings of the environment."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, "timeout": timeout}
        if endpoint.startswith("http://"):
            options["allow_http"] = True
        try:
            return self._obstore.store.S3Store(
                self._bucket,
                prefix=self._prefix or None,
                client_options=options,
                retry_config=retries,
                credential_provider=_profile_credentials(),
            )
        except Exception as error:  # of obstore, for settings of the environment that it cannot use
            raise BadInput(f"{self.label} cannot be used: {_reason_of(error)}") from None

    def _require_bucket(self) -> None:
        """Raises `StorageUnavailable` if the bucket is absent, so that none of its objects counts as lost."""
        with self._storage_errors("listed"):
            next(iter(self._obstore.list(self._client, chunk_size=1)), None)

    @contextmanager
    def _storage_errors(self, action: str) -> Generator[None]:
        """Converts the errors of the store and of the connection to `StorageUnavailable`."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            text = str(error)
            if "NoSuchBucket" in text:
                place = os.environ.get("AWS_ENDPOINT_URL") or "AWS"
                raise StorageUnavailable(
                    f"there is no bucket '{self._bucket}' at {place}; create it, or name another one with "
                    "--snapshot-url"
                ) from error
            raise StorageUnavailable(f"{self.label} cannot be {action}: {_reason_of(error)}") from error


def _profile_credentials() -> Any:
    """The credentials of a profile, if the environment has no keys or names a profile; None for all others."""
    variables = os.environ.keys() & PROFILE_VARIABLES
    has_files = any(os.path.exists(os.path.expanduser(path)) for path in PROFILE_FILES)
    if "AWS_PROFILE" not in variables and ("AWS_ACCESS_KEY_ID" in os.environ or not (variables or has_files)):
        return None
    session = import_optional("boto3", "s3", "profiles of AWS").Session()
    if session.get_credentials() is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(session)


def _reason_of(error: Exception) -> str:
    """The message of the store, or the last part of that of the client, in one line."""
    text = str(error).partition("\n\nDebug source")[0]
    message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    reason = message[1] if message else text.rpartition(" - ")[2]
    return " ".join(reason.split())[:MAX_REASON] or type(error).__name__
