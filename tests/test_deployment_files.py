"""The examples under deploy/: they can be parsed, and what they say exists in the program."""

import os
import re
import shlex
import shutil
import subprocess
from typing import Any

import pytest
import typer
import yaml

from local_nginx import NEEDS_NGINX, PORTS_OF_EXAMPLE, RunningNginx, write_config
from ontogeny.server import store as stores
from ontogeny.server.api.request_limits import MAX_END_TIME, server_stops
from ontogeny.server.config import ServerConfig
from ontogeny.server.connections import CLOSE_TIME, LINGER_TIME, MAX_PREPARATION_TIME
from pages import parse_command
from serving import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "ontogeny.yaml").read_text()))
UNIT = (DEPLOY / "systemd" / "ontogeny@.service").read_text().replace("\\\n", " ")
DRAIN_TIME = 45.0  # seconds, of every example
# Seconds after SIGTERM until all requests have ended.
END_TIME = MAX_PREPARATION_TIME + LINGER_TIME + DRAIN_TIME + 2 * MAX_END_TIME + CLOSE_TIME


def find_manifest(kind: str) -> dict[str, Any]:
    """The first Kubernetes object of a kind."""
    return next(manifest for manifest in MANIFESTS if manifest["kind"] == kind)


def server_commands() -> dict[str, list[str]]:
    """The command lines that the examples run, without the name of the program, by example."""
    commands = {f"compose {name}": COMPOSE["services"][name]["command"] for name in ("first", "second")}
    commands["systemd"] = re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1].replace("%i", "8001")
    container = find_manifest("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    parts = {name: shlex.split(command) for name, command in commands.items()}
    parts["kubernetes"] = container["command"] + container["args"]
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            for number, command in enumerate(re.findall(r"\b(ontogeny (?:keys|deployments) .*)", path.read_text())):
                parts[f"{path.name} {number}"] = shlex.split(command)
    for name, command in parts.items():
        assert os.path.basename(command[0]) == "ontogeny", name
    return {name: command[1:] for name, command in parts.items()}


@pytest.mark.parametrize("command", server_commands().values(), ids=server_commands())
def test_every_command_of_an_example_exists(command):
    try:
        parse_command(list(command))
    except (typer.TyperException, KeyError) as error:
        pytest.fail(f"`ontogeny {' '.join(command)}`: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("name", ["compose first", "compose second", "kubernetes"])
def test_a_process_that_listens_on_all_addresses_names_its_own(name):
    text = " ".join(server_commands()[name]).replace("=", " ")
    assert "--host 0.0.0.0" in text
    assert re.search(r"--process-url http://[^ ]+:8000", text)


def test_the_compose_file_refers_to_what_it_declares():
    services, declared = COMPOSE["services"], set(COMPOSE["volumes"])
    for service in services.values():
        volumes = {volume.partition(":")[0] for volume in service["volumes"] if not volume.startswith((".", "$"))}
        assert volumes <= declared and set(service.get("depends_on", ())) <= set(services)
        for volume in service["volumes"]:
            if volume.startswith("."):
                assert (DEPLOY / "compose" / volume.partition(":")[0]).is_file()
    upstream = (DEPLOY / "compose" / "upstream.conf").read_text()
    addresses = [services[name]["networks"]["default"]["ipv4_address"] for name in ("first", "second")]
    assert re.findall(r"server ([\d.]+):8000", upstream) == addresses
    for line in (DEPLOY / "compose" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])


def test_the_manifests_fit_together():
    pods = find_manifest("StatefulSet")
    template = pods["spec"]["template"]
    labels, (container,) = template["metadata"]["labels"], template["spec"]["containers"]
    services = [manifest for manifest in MANIFESTS if manifest["kind"] == "Service"]
    assert pods["spec"]["serviceName"] in [service["metadata"]["name"] for service in services]
    assert all(service["spec"]["selector"].items() <= labels.items() for service in services)
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in template["spec"]["volumes"]}
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    delay = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert template["spec"]["terminationGracePeriodSeconds"] > delay + END_TIME


def test_every_example_waits_for_the_end_of_a_process():
    for name in ("compose first", "compose second", "kubernetes", "systemd"):
        assert f"--drain-time {DRAIN_TIME:g}" in " ".join(server_commands()[name]).replace("=", " ")
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1]) > END_TIME
    assert int(COMPOSE["services"]["first"]["stop_grace_period"].removesuffix("s")) > END_TIME
    text = (DEPLOY / "nginx" / "ontogeny.conf").read_text()
    assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > ServerConfig().time_limit
    unmarked, _, marked = re.sub(r"#.*", "", text).partition("location @again")
    assert "non_idempotent" not in unmarked and "X-Stainless-Retry-Count" in marked.partition("}")[0]
    assert server_stops().status_code == 503


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / "ontogeny@8001.service"
    unit.write_text(UNIT.replace("/opt/ontogeny/bin/ontogeny", shutil.which("true")))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "ontogeny@" not in done.stderr, done.stderr


@NEEDS_NGINX
@pytest.mark.parametrize("upstream", ["nginx", "compose"])
def test_nginx_accepts_its_configuration(tmp_path, upstream):
    config = write_config(tmp_path, 8080, PORTS_OF_EXAMPLE, upstream=DEPLOY / upstream / "upstream.conf")
    RunningNginx.check(tmp_path, config)
    config.write_text(config.read_text().replace("proxy_buffering", "proxy_bufering"))
    with pytest.raises(AssertionError, match="proxy_bufering"):
        RunningNginx.check(tmp_path, config)


def test_every_variable_of_an_example_exists():
    names = {name for path in DEPLOY.rglob("*.*") for name in re.findall(r"ONTOGENY_\w+", path.read_text())}
    assert names == {stores.DATABASE_URL, stores.SNAPSHOT_URL}
