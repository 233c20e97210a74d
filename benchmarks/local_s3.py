"""An S3-compatible server (moto) on a free port of the loopback interface, for tests and benchmarks."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import obstore
from obstore.store import S3Store

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}
MAX_START_TIME = 60.0  # seconds


class LocalS3:
    """A running server, which keeps objects in memory.

    Attributes:
        url: The address of the server.
        port: Its port.
        environment: The variables with which clients reach it.
    """

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": self.url}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        self._client = S3Store(
            "snapshots", endpoint=self.url, region="us-east-1", access_key_id="tests", secret_access_key="tests",
            client_options={"allow_http": True},
        )  # fmt: skip
        deadline = time.monotonic() + MAX_START_TIME
        while True:
            try:
                return self.create_bucket("snapshots")
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None, "the server has not started"
                time.sleep(0.05)

    def create_bucket(self, name: str) -> None:
        """Creates an empty bucket."""
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def write(self, path: str, content: bytes) -> None:
        """Writes an object of the bucket `snapshots`."""
        obstore.put(self._client, path, content)

    def delete(self, path: str) -> None:
        """Deletes an object of the bucket `snapshots`."""
        obstore.delete(self._client, path)

    def stop(self) -> None:
        """Ends the server; its objects are gone."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running_s3() -> Iterator[LocalS3]:
    """Starts a server of its own and stops it at the end."""
    server = LocalS3()
    try:
        yield server
    finally:
        server.stop()


class CuttingProxy:
    """A TCP proxy that closes every connection once it has passed on a number of bytes to the server.

    Args:
        target_port: The port of the server on the loopback interface.

    Attributes:
        port: The port of the proxy.
        max_bytes: Bytes that a connection may send to the server, or None for any number; 0 refuses connections.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.max_bytes: int | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops accepting connections."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # ends the call that waits for one
        self._listening.close()

    def _accept(self) -> None:
        """Accepts connections until the proxy is closed."""
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                if self.max_bytes == 0:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target_port))
                for source, target, is_request in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=(source, target, is_request), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        """Passes bytes on until one side ends, or the request is cut."""
        num_bytes = 0
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                num_bytes += len(received)
                if is_request and self.max_bytes is not None and num_bytes > self.max_bytes:
                    target.sendall(received[: len(received) // 2])
                    break
                target.sendall(received)
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
