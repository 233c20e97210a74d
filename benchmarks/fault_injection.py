"""The faults of `server_faults.py`: what they do to a cluster, and the evidence that they hit what they aim at."""

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from database_proxy import StoppedCommit
from fault_clients import FROZEN, Key
from fault_cluster import Cluster, read_time, wrong_clock
from server_group import DISCONNECTED, START_TIME, Replica, send_request

LEASE = 1.5  # seconds after which other processes take the branches of a process over
MAX_OUTAGE = 60.0  # seconds for which the database is unreachable at most
AIM_TIME = 8.0  # seconds in which a commit must come that a fault aims at
HITS = ("transaction", "upload", "hand_over")
WEIGHTS = {  # kinds of faults and how often they are drawn, relative to each other
    "kill": 3, "pause": 3, "drain": 2, "restart_database": 1, "database_unreachable": 0.6, "cut": 3, "partition": 2,
    "slow": 2, "same_name": 1, "skewed_clock": 1, "full_disk": 0.7, "open_transaction": 5, "lost_acknowledgment": 2,
    "upload": 4, "hand_over": 6,
}  # fmt: skip


class Fault(NamedTuple):
    """A fault that was injected.

    Attributes:
        kind: The method of `Injector`.
        target: The process that it hit, if it hit one.
        seconds: How long the disturbance lasted.
        hits: What it hit, of `HITS`, and the evidence.
        is_tried: Whether it could be injected.
        details: Whatever else describes it.
    """

    kind: str
    target: int | None
    seconds: float
    hits: dict[str, str]
    is_tried: bool
    details: dict[str, Any]


class Injector:
    """Draws faults and injects them, one after the other; what a fault ended is started again in the background.

    Args:
        cluster: The processes under load.
        draw: The random numbers.
        max_outage: Seconds for which the database is unreachable at most.
    """

    def __init__(self, cluster: Cluster, draw: random.Random, max_outage: float = MAX_OUTAGE) -> None:
        self._cluster, self._draw, self._max_outage = cluster, draw, max_outage
        self._hits: dict[str, str] = {}
        self._details: dict[str, Any] = {}
        self._target: int | None = None
        self._is_tried = True
        self.num_failed_starts = 0  # of processes that could not reach the database

    def inject(self, kind: str | None = None) -> Fault:
        """Injects a fault of this kind, or of one that is drawn, and waits for its end."""
        self._wait_for_processes()
        kind = kind or self._draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        self._hits, self._details, self._target, self._is_tried = {}, {}, None, True
        started_at = read_time()
        function: Callable[[], None] = getattr(self, kind)
        function()
        return Fault(kind, self._target, round(read_time() - started_at, 3), self._hits, self._is_tried, self._details)

    def kill(self) -> None:
        """Kills a process."""
        replica = self._choose()
        self._note_open_transactions(replica)
        replica.kill()
        self._restart_later(replica)

    def pause(self) -> None:
        """Stops a process for longer than its lease, then lets it go on."""
        replica = self._choose()
        self._pause(replica)

    def drain(self) -> None:
        """Ends a process by SIGTERM."""
        replica = self._choose()
        self._details["exit_code"] = replica.terminate()
        self._restart_later(replica)

    def restart_database(self) -> None:
        """Ends PostgreSQL like a crash, and starts it again after a moment."""
        self._cluster.database.stop("immediate")
        time.sleep(self._draw.random() * 3)
        self._cluster.database.start()

    def database_unreachable(self) -> None:
        """Lets no process reach the database, for up to a minute."""
        seconds = self._max_outage if self._draw.random() < 0.25 else 2 + self._draw.random() * self._max_outage / 3
        key, replicas = self._choose_key("frozen"), [r for r in self._cluster.replicas if r.is_ready]
        for replica in replicas:  # so that the process knows the key
            self._ask_frozen(replica, key)
        for proxy in self._cluster.proxies:
            proxy.is_refusing = True
            proxy.cut()
        started_at, statuses = time.monotonic(), Counter[int]()
        while (elapsed := time.monotonic() - started_at) < seconds:
            for replica in replicas:
                statuses[self._ask_frozen(replica, key)] += 1
            time.sleep(min(1.0, seconds - elapsed))
        self._details |= {"outage": round(seconds, 1), "statuses of frozen weights": dict(statuses)}
        if statuses.keys() - {200}:
            self._cluster.history.report(f"frozen weights did not answer without the database: {dict(statuses)}")
        for proxy in self._cluster.proxies:
            proxy.restore()

    def _ask_frozen(self, replica: Replica, key: Key) -> int:
        """The status of a request to frozen weights; 0 if there was no answer."""
        body = {"model": FROZEN, "prompt": "The", "max_tokens": 2}
        with contextlib.suppress(*DISCONNECTED):
            return send_request(replica.url, "POST", "/v1/completions", body, key.text, timeout=10).status
        return 0

    def cut(self) -> None:
        """Resets all connections between one process and the database."""
        replica = self._choose()
        self._note_open_transactions(replica)
        self._details["connections"] = self._cluster.proxies[replica.number].cut()

    def partition(self) -> None:
        """Separates one process from the database: it refuses, or nothing arrives any more."""
        replica = self._choose()
        proxy = self._cluster.proxies[replica.number]
        if self._draw.random() < 0.5:
            proxy.is_refusing = True
            proxy.cut()
        else:
            proxy.is_silent = True
        time.sleep(self._draw.random() * 6 * LEASE)
        proxy.restore()

    def slow(self) -> None:
        """Delays all messages between one process and the database."""
        replica = self._choose()
        self._cluster.proxies[replica.number].delay = self._details["delay"] = 0.02 + self._draw.random() * 0.3
        time.sleep(2 + self._draw.random() * 4)
        self._cluster.proxies[replica.number].restore()

    def same_name(self) -> None:
        """Starts a further process with the name of another one, and ends it after a while."""
        replica = self._choose()
        double = self._cluster.make_replica(replica.number)
        double.start()
        try:
            with contextlib.suppress(TimeoutError, RuntimeError):
                double.wait(30)
            self._details["was_ready"] = double.is_ready
            time.sleep(1)
        finally:
            if double.is_running and self._draw.random() < 0.5:
                with contextlib.suppress(Exception):
                    double.terminate(20)
            double.kill()

    def skewed_clock(self) -> None:
        """Restarts a process with a clock that is a minute wrong, or right again."""
        replica = self._choose()
        offset = 0 if replica.environment else self._draw.choice([-60, 60])
        environment = wrong_clock(offset, self._cluster.folder) if offset else {}
        self._is_tried, self._details["offset"] = not offset or bool(environment), offset
        replica.kill()
        replica.environment = environment
        self._restart_later(replica)

    def full_disk(self) -> None:
        """Fills the disk of the database, and frees it after a while."""
        disk, database = self._cluster.disk, self._cluster.database
        if disk is None:
            self._is_tried = False
            return
        disk.fill()
        time.sleep(1 + self._draw.random() * 5)
        disk.release()
        time.sleep(0.5)
        self._details["database_ended"] = not database.is_running
        if not database.is_running:
            database.start()

    def open_transaction(self) -> None:
        """Stops a COMMIT of a process before it reaches the database; then the process or its connection fails."""
        self._fail_at_commit(after=False)

    def lost_acknowledgment(self) -> None:
        """Lets a COMMIT of a process take effect, but not its answer; then the process or its connection fails."""
        self._fail_at_commit(after=True)

    def upload(self) -> None:
        """Hits a process that receives or restores a state."""
        replica, key = self._choose(), self._choose_key("restorer")
        client = self._cluster.make_client(1000, self._draw.getrandbits(30))
        client.export(key)
        reached, go_on = threading.Event(), threading.Event()
        is_within_body = self._draw.random() < 0.6

        def wait_within_body() -> None:
            if is_within_body:
                reached.set()
                go_on.wait(30)

        thread = threading.Thread(
            target=client.restore, args=(key,), kwargs={"first": replica.number, "before_body_ends": wait_within_body},
            daemon=True,
        )  # fmt: skip
        thread.start()
        if is_within_body:
            reached.wait(5)
        else:
            time.sleep(self._draw.random() * 0.08)
        if thread.is_alive():
            where = "half of the body had been sent" if reached.is_set() else "the request was not answered yet"
            self._hits["upload"] = where
        action = self._fail(replica)
        go_on.set()
        action()
        thread.join(60)

    def hand_over(self) -> None:
        """Hits a hand-over of branches: the process that gives them away, or one that takes them."""
        replica = self._choose_owner()
        number = self._process_number(replica)
        before = self._branches_of(number)
        receivers = [r for r in self._cluster.replicas if r is not replica and r.is_ready]
        is_planned = self._draw.random() < 0.5
        if is_planned:
            replica.send_signal(signal.SIGTERM)
            time.sleep(self._draw.random() * 0.25)
        else:
            replica.kill()
            time.sleep(LEASE * (0.8 + self._draw.random() * 0.6))
        left = self._branches_of(number)
        if before and left:
            cause = "SIGTERM" if is_planned else "SIGKILL"
            self._hits["hand_over"] = f"{cause}: {len(left)} of {len(before)} branches were still owned"
        victims: list[Replica] = [replica] if is_planned and replica.is_running else []
        victim = (
            self._draw.choice(victims + receivers[:1] * (len(receivers) > 1)) if victims or len(receivers) > 1 else None
        )
        self._target = replica.number
        if victim is None:
            self._cluster.proxies[replica.number if is_planned else receivers[0].number].cut()
        else:
            self._details["victim"] = victim.number
            victim.kill()
            self._restart_later(victim)
        if replica is not victim:
            if is_planned:
                with contextlib.suppress(Exception):
                    assert replica.process is not None
                    replica.process.wait(20)
            replica.kill()
            self._restart_later(replica)

    def _fail_at_commit(self, after: bool) -> None:
        replica = self._choose()
        proxy = self._cluster.proxies[replica.number]
        commit = proxy.stop_next_commit(after=after)
        if not commit.is_stopped.wait(AIM_TIME):
            proxy.next_commit = None
            commit.released.set()
            self._details["reason"] = "no commit came"
            return
        self._note_stopped_commit(commit)
        action = self._fail(replica)
        commit.released.set()
        action()

    def _fail(self, replica: Replica) -> Callable[[], None]:
        """Lets a process or its connection fail; returns what ends the failure."""
        proxy = self._cluster.proxies[replica.number]
        kind = self._draw.choice(["kill", "pause", "cut", "silent"])
        self._details["failure"] = kind
        if kind == "kill":
            replica.kill()
            return lambda: self._restart_later(replica)
        if kind == "pause":
            replica.send_signal(signal.SIGSTOP)
            time.sleep(LEASE * (1.2 + self._draw.random() * 2))
            return lambda: replica.send_signal(signal.SIGCONT)
        if kind == "cut":
            proxy.cut()
            return lambda: None
        proxy.is_silent = True
        time.sleep(LEASE * (1.2 + self._draw.random() * 2))
        return proxy.restore

    def _pause(self, replica: Replica) -> None:
        replica.send_signal(signal.SIGSTOP)
        self._note_open_transactions(replica)
        time.sleep(LEASE * (1.2 + self._draw.random() * 2.5))
        replica.send_signal(signal.SIGCONT)

    def _choose(self) -> Replica:
        """Draws a process that is ready, or now and then one that is starting."""
        running = [replica for replica in self._cluster.replicas if replica.is_running and not replica.is_paused]
        ready = [replica for replica in running if replica.is_ready]
        replica = self._draw.choice(ready if ready and self._draw.random() < 0.9 else running)
        self._target = replica.number
        return replica

    def _choose_owner(self) -> Replica:
        """Chooses the process that owns more branches than any other one, if that is known."""
        numbers = Counter(self._cluster.owned_branches().values())
        ready = [replica for replica in self._cluster.replicas if replica.is_ready]
        if not numbers or not ready:
            return self._choose()
        replica = max(ready, key=lambda replica: numbers[self._process_number(replica) or 0])
        self._target = replica.number
        return replica

    def _choose_key(self, role: str) -> Key:
        """Draws a key of this role."""
        return self._draw.choice([key for key in self._cluster.keys if key.role == role])

    def _note_open_transactions(self, replica: Replica) -> None:
        """Records the open transactions of a process as evidence."""
        sessions = self._cluster.sessions(replica.number)
        if sessions:
            self._hits["transaction"] = f"{len(sessions)} sessions idle in a transaction: {sessions[0][2][:80]}"

    def _note_stopped_commit(self, commit: StoppedCommit) -> None:
        """Records the state of the session whose COMMIT is stopped as evidence."""
        states = self._cluster.query(
            "SELECT state, query FROM pg_stat_activity WHERE client_port = %s", commit.client_port
        )
        if commit.after or any(state == "idle in transaction" for state, _ in states):
            place = "the answer of COMMIT is stopped" if commit.after else "COMMIT is stopped"
            self._hits["transaction"] = f"{place}; the session is {states[0][0] if states else 'unknown'}"

    def _process_number(self, replica: Replica) -> int | None:
        """The number that a process has in the table of processes."""
        numbers = self._cluster.query("SELECT max(number) FROM processes WHERE url LIKE %s", f"%:{replica.port}%")
        return numbers[0][0] if numbers else None

    def _branches_of(self, number: int | None) -> list[str]:
        """The branches that a process owns, as the database records them."""
        return [branch for branch, owner in self._cluster.owned_branches().items() if owner == number]

    def _restart_later(self, replica: Replica) -> None:
        """Starts a process that a fault has ended; it becomes ready in the background."""
        if not replica.is_running:
            replica.start()

    def _wait_for_processes(self) -> None:
        """Waits until all processes but one are ready."""
        deadline = time.monotonic() + START_TIME
        replicas = self._cluster.replicas
        while sum(replica.is_ready for replica in replicas) < max(1, len(replicas) - 1):
            for replica in replicas:
                if not replica.is_running:
                    self._report_end(replica)
                    replica.start()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the processes were not ready again within {START_TIME:.0f} s")
            time.sleep(0.2)

    def _report_end(self, replica: Replica) -> None:
        """Reports a process that ended by itself, unless it could not start without the database."""
        if "cannot be used: connection" in replica.log_end and replica.exit_code == 2 and not replica.was_ready:
            self.num_failed_starts += 1
            return
        reason = f"with the exit code {replica.exit_code}: {replica.log_end}"
        self._cluster.history.report(f"process {replica.number} ended by itself {reason}")
