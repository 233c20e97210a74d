"""nginx with the configuration under deploy/, in front of processes of a test."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from serving import ROOT

PROGRAM = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
IS_REQUIRED = bool(os.environ.get("ONTOGENY_REQUIRE_NGINX"))  # set by `.ci/run`: an absent program is a failure
NEEDS_NGINX = pytest.mark.skipif(PROGRAM is None and not IS_REQUIRED, reason="nginx is not installed")
FOLDER = ROOT / "deploy" / "nginx"
PORTS_OF_EXAMPLE = (8001, 8002)  # of the processes in upstream.conf
FRAME = """daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{content}
}}
"""


def write_config(folder: Path, port: int, ports: Sequence[int], upstream: Path = FOLDER / "upstream.conf") -> Path:
    """Writes a complete configuration from the files of the example; returns its path.

    Args:
        folder: Where nginx keeps its files.
        port: Where nginx listens.
        ports: Of the processes, in place of those of the example.
        upstream: The list of processes.
    """
    content = upstream.read_text() + (FOLDER / "ontogeny.conf").read_text()
    for before, after in zip(PORTS_OF_EXAMPLE, ports, strict=True):
        content = content.replace(f"127.0.0.1:{before}", f"127.0.0.1:{after}")
    content, number = re.subn(r"listen 8080;", f"listen 127.0.0.1:{port};", content)
    assert number == 1
    user = "user root;\n" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(user + FRAME.format(folder=folder, content=content))
    return config


class RunningNginx:
    """nginx on a free port of loopback.

    Args:
        folder: Takes its files.
        ports: Of the two processes behind it.
    """

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._config = folder, write_config(folder, self.port, ports)

    @staticmethod
    def check(folder: Path, config: Path) -> None:
        """Fails if nginx does not accept a configuration."""
        assert PROGRAM is not None
        command = [PROGRAM, "-t", "-p", str(folder), "-c", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        self._process = subprocess.Popen([PROGRAM, "-p", str(self._folder), "-c", str(self._config)])
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except ConnectionRefusedError:
                assert time.monotonic() < deadline and self._process.poll() is None, self.read_log()
                time.sleep(0.05)

    def read_log(self) -> str:
        """What nginx reports."""
        log = self._folder / "error.log"
        return log.read_text() if log.exists() else ""

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
