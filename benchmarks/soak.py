"""Eight keys use every part of an online server for half an hour, with restarts: is anything lost, leaked or wrong?

    python benchmarks/soak.py                      # trains a tiny model first
    python benchmarks/soak.py RUN --minutes 30 --keys 8

To the requests of `tests/workload.py` (examples, completions, erasure, rollback, fork, freeze, export and restore, text
sessions) this adds lifetimes of an online `model_based` agent, streams, chats, copies of sessions and clients that hang
up. The server is restarted by SIGKILL and by SIGTERM in turn. Clients pause so that it needs about one core.

Memory is that of the process without the prefix cache, which grows up to its limit. It is measured once a second after
the warm-up that follows each start; from then on the lowest value of each minute must stay the same, and nothing may be
compiled. Once a minute all clients pause, and the file descriptors of the server are counted: those of the database
belong to a limited number of connections, and the others must not become more. At the end every branch must equal one
that learns its surviving examples on another server, every surviving example must have one decision, and every key its
usage. Prints JSON lines; exits with 1 if anything is wrong.
"""

import argparse
import contextlib
import json
import math
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ontogeny.server import keys
from ontogeny.server.databases.base import MAX_CONNECTIONS
from ontogeny.server.databases.sqlite import DATABASE
from ontogeny.server.store import Store
from ontogeny.stages.train import train
from ontogeny.stats import critical_value

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serving import make_run
from workload import DISCONNECTED, MODEL, Client, Workload

AGENT = "/v1/agents/mdp/sessions"
TEXT = f"{MODEL}/sessions"
MAX_CORES = 1.0  # that the server may use on average
MIN_MINUTES = 4  # from which a slope of memory is computed
MAX_SLOPE = 1.0  # MB per minute that memory may grow, beyond two standard errors
MAX_DATABASE_FILES = 2 * (MAX_CONNECTIONS + 1) + 1  # a database and a log each, also for a check, and shared memory
MAX_DESCRIPTORS = 1.0  # others that may be more in the second half of an epoch, while all clients pause
COUNT_INTERVAL, PAUSE = 60.0, 3.0  # seconds between two counts of descriptors, and for which the clients then pause


class Sample(NamedTuple):
    """The state of a server process at one time."""

    minutes: float
    memory: float  # MB, without the prefix cache
    num_compilations: float


class DescriptorCount(NamedTuple):
    """The file descriptors of a process by what they refer to."""

    num_sockets: int
    num_database_files: int
    num_others: int


class Soak(Workload):
    """A workload with an agent, whose clients pause, and whose server is measured.

    Args:
        run: The language model.
        agent: The run of the agent.
        folder: Takes the state and the log of the server.
        num_keys: Keys that use the server at a time.
        seed: Of all random choices.
    """

    def __init__(self, run: Path, agent: Path, folder: Path, num_keys: int, seed: int) -> None:
        arguments = ("--alias", f"mdp={agent}", "--max-pending-examples", "1000000")
        super().__init__(run, folder, num_keys=num_keys, seed=seed, arguments=arguments)
        self.pause = 0.2  # mean seconds between two requests of a key
        self.epochs: list[list[Sample]] = []
        self.descriptors: list[list[DescriptorCount]] = []  # of each epoch, while all clients pause
        self.actions += [
            *[self.use_agent] * 6, *[self.stream] * 3, *[self.use_text] * 2, *[self.abandon] * 3, self.chat,
        ]  # fmt: skip

    def run_epochs(self, minutes: float, restart_interval: float, warm_up: float) -> int:
        """Lets all keys use the server, with restarts, until `stop_clients`; returns the number of restarts."""
        num_epochs = max(1, round(minutes / restart_interval))
        for number in range(num_epochs):
            if number:
                self.kill_and_restart(signal.SIGKILL if number % 2 else signal.SIGTERM)
            started_at = time.monotonic()
            if not number:
                self.start_clients()
                threading.Thread(target=self._limit_load, daemon=True).start()
            self.epochs.append([])
            self.descriptors.append([])
            counted_at = started_at + warm_up
            while time.monotonic() < started_at + 60 * minutes / num_epochs:
                time.sleep(1)
                if time.monotonic() > started_at + warm_up:
                    self.epochs[-1].append(self._sample())
                if time.monotonic() > counted_at + COUNT_INTERVAL:
                    self.descriptors[-1].append(self._count_while_clients_pause())
                    counted_at = time.monotonic()
        return num_epochs - 1

    def stream(self, client: Client) -> None:
        """Reads a completion as a stream to its end."""
        body = {"model": "story", "prompt": self._draw_text(client), "max_tokens": 30, "stream": True, "learn": False}
        self.request("POST", "/v1/completions", body, client.text)

    def chat(self, client: Client) -> None:
        """Requests a chat completion that is not learned from."""
        messages = [{"role": "user", "content": self._draw_text(client)}]
        body = {"model": "story", "messages": messages, "max_tokens": 20, "n": 2, "learn": False}
        self.request("POST", "/v1/chat/completions", body, client.text)

    def use_agent(self, client: Client) -> None:
        """A short lifetime of the agent."""
        path = self._open_session(client, AGENT)
        for step in range(client.draw.randint(1, 6) if path else 0):
            feedback = {"reward": client.draw.random()} if step else {}
            if step and client.draw.random() < 0.3:
                self.request("POST", f"{path}/feedback", feedback, client.text)
                feedback = {}
            self.request("POST", f"{path}/act", {"observation": client.draw.randrange(2)} | feedback, client.text)
        self._copy_session(client, AGENT, path)

    def use_text(self, client: Client) -> None:
        """A text that is continued a few times."""
        path = self._open_session(client, TEXT)
        for _ in range(client.draw.randint(1, 4) if path else 0):
            body = {"prompt": self._draw_text(client), "max_tokens": client.draw.randint(1, 30)}
            self.request("POST", f"{path}/completions", body, client.text)
        self._copy_session(client, TEXT, path)

    def abandon(self, client: Client) -> None:
        """A request whose client hangs up: a completion, a stream, a step of an agent or a text."""
        kind = client.draw.randrange(4)
        path, body = "/v1/completions", {"model": "story", "prompt": "The", "max_tokens": 2000, "learn": False}
        sessions = {2: AGENT, 3: TEXT}.get(kind)
        session = None if sessions is None else self._open_session(client, sessions)
        if kind == 1:
            body |= {"stream": True}
        elif kind == 2:
            path, body = f"{session}/act", {"observation": 0}
        elif kind == 3:
            path, body = f"{session}/completions", {"prompt": self._draw_text(client), "max_tokens": 2000}
        with contextlib.suppress(*DISCONNECTED):
            self._hang_up(client, path, body)
        if session is not None:
            self.request("DELETE", session, key=client.text)

    def check_usage(self) -> None:
        """Asserts that the usage of every key is recorded."""
        with Store(self.state_dir) as store:
            used = {record.key for record in keys.list_usage(store) if record.num_requests and record.prompt_tokens}
        assert used >= {client.id for client in self.clients}, used

    def _open_session(self, client: Client, sessions: str) -> str | None:
        """Creates a session; returns its path."""
        status, content = self.request("POST", sessions, {}, client.text)
        return f"{sessions}/{content['id']}" if status == 200 else None

    def _copy_session(self, client: Client, sessions: str, path: str | None) -> None:
        """Sometimes exports, restores and forks a session; deletes it and its copy."""
        if path is None:
            return
        if client.draw.random() < 0.3:
            status, state = self.request("GET", f"{path}/state", key=client.text)
            if status == 200:
                self.request("PUT", f"{path}/state", state, client.text)
            status, copy = self.request("POST", f"{path}/fork", {}, client.text)
            if status == 200:
                self.request("DELETE", f"{sessions}/{copy['id']}", key=client.text)
        self.request("DELETE", path, key=client.text)

    def _hang_up(self, client: Client, path: str, body: dict[str, Any]) -> None:
        """Sends a request and closes the connection before the answer is complete."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {client.text}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(head.encode() + data)
            time.sleep(client.draw.random() * 0.3)

    def _sample(self) -> Sample:
        """Measures the server."""
        lines = self.request("GET", "/metrics", key=self.admin)[1].decode().splitlines()

        def metric(name: str) -> float:
            return sum(float(line.split()[1]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

        memory = (metric("process_resident_memory_bytes") - metric("ontogeny_prefix_cache_bytes")) / 2**20
        compilations = metric("ontogeny_compilations_total")
        return Sample(time.monotonic() / 60, memory, compilations)

    def _count_while_clients_pause(self) -> DescriptorCount:
        """Counts the descriptors of the server; its files are open for moments, so the lowest numbers count."""
        with self.paused_clients():
            end, counts = time.monotonic() + PAUSE, [count_descriptors(self.server.process.pid)]
            while time.monotonic() < end:
                time.sleep(0.2)
                counts.append(count_descriptors(self.server.process.pid))
        return DescriptorCount(*(min(numbers) for numbers in zip(*counts, strict=True)))

    def _limit_load(self) -> None:
        """Adapts the pauses of clients so that the server needs about `MAX_CORES`."""
        process, used, measured_at = self.server.process, 0.0, time.monotonic()
        while not self._stopping.wait(3):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                time_read = time.monotonic()
                if process is self.server.process:
                    cores = (seconds - used) / (time_read - measured_at)
                    self.pause = min(max(self.pause * (1.3 if cores > MAX_CORES else 0.85), 0.02), 5)
                process, used, measured_at = self.server.process, seconds, time_read


def count_descriptors(pid: int) -> DescriptorCount:
    """Counts the file descriptors of a process (Linux only)."""
    targets = list[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            targets.append(str(descriptor.readlink()))
    num_sockets = sum(target.startswith("socket:") for target in targets)
    num_database_files = sum(DATABASE in target for target in targets)
    return DescriptorCount(num_sockets, num_database_files, len(targets) - num_sockets - num_database_files)


def lowest_of_each_minute(samples: list[Sample]) -> np.ndarray:
    """Times in minutes and lowest memory, [2, minutes].

    Once a minute the server returns free memory to the operating system; what it holds then is what it needs.
    """
    num_minutes = round(samples[-1].minutes - samples[0].minutes)
    blocks = np.array_split(np.array(samples), num_minutes)
    return np.array([block[np.argmin(block[:, 1]), :2] for block in blocks]).T


def memory_slope(samples: list[Sample]) -> tuple[float, float, float]:
    """MB per minute with the standard error, and the slope that is exceeded by chance in 2.3 % of cases if it is 0."""
    minutes, memory = lowest_of_each_minute(samples)
    centered = minutes - minutes.mean()
    slope = float(centered @ memory / (centered @ centered))
    residual = memory - memory.mean() - slope * centered
    error = math.sqrt(float(residual @ residual) / (len(memory) - 2) / float(centered @ centered))
    return slope, error, critical_value(2, len(memory) - 2) * error


def print_record(name: str, value: float, unit: str, setting: dict[str, Any], **fields: Any) -> None:
    """Prints one JSON line."""
    record = {"name": f"serve.soak.{name}", "value": round(value, 4), "unit": unit} | fields
    print(json.dumps(record | {"setting": setting}), flush=True)


def report_epochs(soak: Soak, setting: dict[str, Any]) -> list[str]:
    """Prints the measurements of each epoch; returns those that are out of range as sentences."""
    faults = list[str]()
    for number, samples in enumerate(soak.epochs):
        if samples[-1].minutes - samples[0].minutes < MIN_MINUTES:
            continue
        slope, error, margin = memory_slope(samples)
        counts = np.array(soak.descriptors[number])
        earlier, later = np.array_split(counts[:, [0, 2]].sum(1), 2)
        growth, num_database_files = float(later.mean() - earlier.mean()), int(counts[:, 1].max())
        compilations = samples[-1].num_compilations - samples[0].num_compilations
        memory = {"epoch": number, "first": round(samples[0].memory, 1), "last": round(samples[-1].memory, 1)}
        print_record("memory", slope, "MB per minute", setting, se=round(error, 4), **memory)
        ranges = zip(DescriptorCount._fields, counts.min(0).tolist(), counts.max(0).tolist(), strict=True)
        by_kind = {name: [lowest, highest] for name, lowest, highest in ranges}
        print_record("descriptors", growth, "more in the second half", setting, epoch=number, **by_kind)
        print_record("compilations", compilations, "programs after the warm-up", setting, epoch=number)
        if slope - margin > MAX_SLOPE:
            faults.append(f"memory grew by {slope:.2f} MB per minute in epoch {number}")
        if growth > MAX_DESCRIPTORS:
            faults.append(f"{growth:.1f} descriptors more in the second half of epoch {number}")
        if num_database_files > MAX_DATABASE_FILES:
            faults.append(f"{num_database_files} descriptors of the database in epoch {number}")
        if compilations:
            faults.append(f"{compilations:.0f} programs were compiled after the warm-up of epoch {number}")
    return faults


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--restart-interval", type=float, default=10, help="minutes between two starts")
    parser.add_argument("--warm-up", type=float, default=240, help="seconds after each start that are not measured")
    parser.add_argument("--seed", type=int, default=random.getrandbits(30))
    parser.add_argument("--folder", type=Path, help="an empty folder for state and log, which are kept")
    arguments = parser.parse_args()
    setting = {name: getattr(arguments, name) for name in ("minutes", "keys", "restart_interval", "warm_up", "seed")}
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = arguments.run or make_run(folder / "run")
        env = "random_mdp:num_states=2,num_actions=2,horizon=4"
        spec = {"agent": "model_based", "env": env, "development": "single_lifetime:num_lifetimes=2"}
        agent = train(spec, folder / "mdp")
        soak = stack.enter_context(Soak(run, agent, folder, arguments.keys, arguments.seed))
        setting["restarts"] = soak.run_epochs(arguments.minutes, arguments.restart_interval, arguments.warm_up)
        faults = report_epochs(soak, setting)
        for check in (soak.stop_clients, soak.check, soak.check_usage):
            try:
                check()
            except AssertionError as error:
                faults.append(str(error))
    statuses = {status: sum(n for name, n in soak.statuses.items() if name.startswith(status)) for status in "2345"}
    print_record("requests", sum(statuses.values()), "requests", setting, by_first_digit=statuses)
    print_record("faults", len(faults), "faults", setting, faults=[fault[:1000] for fault in faults])
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
