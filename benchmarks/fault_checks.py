"""The checks after a fault campaign: what was acknowledged, against the database and a replay of its journals."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from fault_clients import MODEL, History, Key
from journal_checks import check_decisions, list_replayed_texts
from ontogeny.server import keys
from ontogeny.server.learning import journal, versions
from ontogeny.server.store import Store
from server_group import Replica, send_request, wait_until

DEPLOYMENT = "story"
CHECKER = Path(__file__).parent / "linearizability"
REPLAY_TIME = 1200.0  # seconds in which a branch is learned again


def check_journal(store: Store, history: History) -> list[str]:
    """Compares the journal with what clients know; returns one sentence for each difference.

    Every acknowledged example is there, with its text and its key, unless somebody erased it; no text is there twice;
    every version that a client saw has the digest that the client saw; and each example has one decision.
    """
    faults = list[str]()
    for number, (key, text) in sorted(history.acknowledged.items()):
        example = journal.find_example(store, number)
        if example is None or example.key != key:
            faults.append(f"the acknowledged example {number} of key {key} is not in the journal")
        elif example.erased_at is None and example.text != text:
            faults.append(f"the acknowledged example {number} has another text")
        elif example.erased_at is not None and number not in history.erased:
            faults.append(f"the acknowledged example {number} was erased by nobody")
    texts = store.select_values("SELECT text FROM examples WHERE text IS NOT NULL")
    counts = Counter(text if isinstance(text, str) else bytes(text).decode() for text in texts)
    faults += [f"a text is in the journal {count} times: {text[:60]}" for text, count in counts.items() if count > 1]
    for (key, number), digests in history.digests.items():
        version = versions.get_version(store, f"{DEPLOYMENT}/{key}", number)
        if digests != {version.digest}:
            faults.append(f"version {number} of key {key} has another digest than a client saw")
    return faults


def check_restorations(store: Store, path: Path) -> list[str]:
    """Compares the restored versions with the uploads in a history; returns one sentence for each difference.

    An upload makes one version, however often it was sent. One of unknown outcome makes one or none.
    """
    answered, num_unknown = dict[str, list[int]](), Counter[str]()
    for line in path.read_text().splitlines():
        operation = json.loads(line)
        if operation["operation"] == "restore":
            versions = answered.setdefault(operation["key"], [])
            if operation["status"] is None:
                num_unknown[operation["key"]] += 1
            elif operation["status"] == 200:
                versions.append(operation["answer"]["version"])
    faults = list[str]()
    for key, versions in answered.items():
        query = "SELECT number FROM versions WHERE branch = ? AND parent IS NULL AND number > 0"
        restored = set(store.select_values(query, f"{DEPLOYMENT}/{key}"))
        if len(set(versions)) < len(versions) or not restored.issuperset(versions):
            faults.append(f"the uploads of key {key} were answered with the versions {sorted(versions)}")
        if len(restored - set(versions)) > num_unknown[key]:
            faults.append(f"more versions of key {key} were restored than states were uploaded")
    return faults


def check_branches(store: Store, owners: list[Key], replay: Replica, state_dir: Path) -> tuple[list[str], int]:
    """Lets new branches of a new server learn the journals of all branches, and compares the digests.

    Args:
        store: The database of the campaign.
        owners: The keys whose branches are compared.
        replay: A server that is not started, with a database of its own.
        state_dir: Its state folder.

    Returns:
        One sentence for each branch that differs, and the number of texts that were learned.
    """
    faults, texts = list[str](), dict[str, list[str]]()
    for name in (f"{DEPLOYMENT}/{key.id}" for key in owners):
        if store.select_value("SELECT 1 FROM branches WHERE branch = ?", name) is not None:
            try:
                check_decisions(store, name)
                texts[name] = list_replayed_texts(store, name)
            except AssertionError as error:
                faults.append(f"the decisions about branch {name} are inconsistent: {str(error)[:300]}")
    with Store(state_dir, database_url="") as replayed:
        replay_keys = {name: keys.create_key(replayed, "replay")[1] for name in texts}
    replay.start()
    try:
        replay.wait()
        for name, examples in texts.items():
            for text in examples:
                answer = send_request(replay.url, "POST", f"{MODEL}/examples", {"text": text}, replay_keys[name])
                assert answer.status == 200, answer
        for name, examples in texts.items():
            actual = _settled_branch(replay, replay_keys[name])
            expected = versions.get_version(store, name, journal.get_branch(store, name).current_version)
            # A restored version 0 has the weights of version 0, and the digest of weights and scratch.
            is_equal = actual["digest"] == expected.digest or not actual["weight_distance"]
            if not is_equal or actual["weight_distance"] != expected.weight_distance:
                faults.append(f"branch {name} differs from a replay of its {len(examples)} examples")
    finally:
        replay.kill()
    return faults, sum(map(len, texts.values()))


def _settled_branch(replay: Replica, key: str) -> dict[str, Any]:
    """The description of a branch once it has learned everything."""

    def find() -> dict[str, Any] | None:
        branch = send_request(replay.url, "GET", f"{MODEL}/branch", key=key).content
        return branch if branch["num_pending"] == 0 else None

    return wait_until(find, REPLAY_TIME, "a branch is replayed")


def check_state(state_dir: Path, address: str) -> list[str]:
    """What `ontogeny deployments check` finds."""
    command = [sys.executable, "-m", "ontogeny", "deployments", "check", "--json", "--state-dir", str(state_dir)]
    done = subprocess.run([*command, "--database-url", address], capture_output=True, text=True, timeout=300)
    if not done.stdout:
        return [f"`ontogeny deployments check` failed: {done.stderr[-500:]}"]
    return [f"{fault['place']}: {fault['problem']}" for fault in json.loads(done.stdout)["faults"]]


def build_checker(folder: Path) -> Path | str:
    """Builds the program of the folder `linearizability`; Go downloads Porcupine and compares its public checksum.

    Args:
        folder: Takes the program and the checksums.

    Returns:
        The program, or why it could not be built.
    """
    shutil.copy(CHECKER / "go.mod", folder)
    command = ["go", "build", "-mod=mod", f"-modfile={folder / 'go.mod'}", "-o", str(folder / "checker"), "."]
    done = subprocess.run(command, cwd=CHECKER, capture_output=True, text=True, env=os.environ | {"GOWORK": "off"})
    return done.stderr if done.returncode else folder / "checker"


def check_linearizability(path: Path, checker: Path | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Checks the history of each branch with Porcupine.

    Args:
        path: The history.
        checker: The program that `go build` makes of the folder `linearizability`; None to let Go build it, which
            downloads Porcupine.

    Returns:
        One sentence for each history that is not linearizable, and what the program printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = build_checker(Path(folder)) if checker is None else checker
        if isinstance(program, str):
            return [f"the histories could not be checked for linearizability: {program[-300:]}"], []
        done = subprocess.run([str(program), str(path.resolve())], capture_output=True, text=True, timeout=3600)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    if not results:
        return [f"the histories could not be checked for linearizability: {done.stderr[-300:]}"], []
    faults = [
        f"the history of key {result['key']} ({result['role']}) is not linearizable: {result['result']}"
        for result in results
        if result["result"] != "Ok"
    ]
    return faults, results
