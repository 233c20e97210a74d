"""A short campaign of faults on two server processes; `benchmarks/server_faults.py` has the long one."""

import json
import os
import subprocess
import sys

import pytest

from local_postgres import find_program
from serving import ROOT, optimized_environment, shared_run

IS_REQUIRED = bool(os.environ.get("ONTOGENY_REQUIRE_POSTGRES"))
IS_ABSENT = find_program("initdb") is None and not IS_REQUIRED
pytestmark = [
    pytest.mark.slow,
    pytest.mark.sqlite,
    pytest.mark.skipif(IS_ABSENT, reason="PostgreSQL is not installed"),
]


def test_a_short_campaign_loses_nothing(tmp_path_factory, tmp_path):
    kinds = ["open_transaction", "upload", "hand_over", "lost_acknowledgment"]
    command = [
        sys.executable, str(ROOT / "benchmarks" / "server_faults.py"), str(shared_run(tmp_path_factory)),
        "--faults", "4", "--processes", "2", "--keys", "10", "--learning-keys", "5", "--pause", "0.2", "--seed", "3",
        "--interval", "0.2", "--folder", str(tmp_path / "campaign"), "--checker", "none", "--kinds", *kinds,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=optimized_environment())
    records = {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (records.get("serve.faults.violations"), done.stderr[-3000:])
    assert records["serve.faults.injected"]["value"] == 4
    assert records["serve.faults.acknowledged"]["value"] > 0
