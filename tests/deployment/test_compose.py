"""docker-compose.yaml: sound, and about things that exist."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy_server.settings import ENV_PREFIX, Settings
from tests.deployment.programs import ROOT, run

TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SMALL = {"policy_server", "traefik", "prometheus", "grafana"}
LOGGING = {"fluentd", "elasticsearch", "kibana", "kibana_account"}
SETTINGS = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
# Read by other software than ours: uvicorn, Ray, and docker-compose itself.
OTHERS = {"FORWARDED_ALLOW_IPS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}")

every_service = pytest.mark.parametrize("name", sorted(SERVICES))


def filled_in(text: str) -> str:
    """Return a text with the defaults of its variables."""
    return VARIABLE.sub(lambda match: match[2] or "", text)


def ports(service: str) -> dict[int, int]:
    """Return container ports by the host's."""
    pairs = [filled_in(port).split(":")[-2:] for port in SERVICES[service].get("ports", [])]
    return {int(host): int(container) for host, container in pairs}


def mounts(service: str) -> list[tuple[str, str]]:
    """Return what is mounted, and where."""
    volumes = [filled_in(volume).split(":") for volume in SERVICES[service].get("volumes", [])]
    return [(parts[0], parts[1]) for parts in volumes]


def test_file_follows_the_compose_specification() -> None:
    run(
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yaml",
    )


def test_small_stack_starts_without_the_logging_stack() -> None:
    assert {name for name in SERVICES if "profiles" not in SERVICES[name]} == SMALL
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["logging"]} == LOGGING
    for name in SMALL:
        assert not LOGGING & set(SERVICES[name].get("depends_on", {}))


@every_service
def test_service_has_limits_and_a_pinned_image(name: str) -> None:
    service = SERVICES[name]

    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    if "build" not in service:
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])


@every_service
def test_service_has_a_health_check_unless_it_ends_by_itself(name: str) -> None:
    if name == "kibana_account":
        assert "restart" not in SERVICES[name]
    elif name == "policy_server":
        assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    else:
        assert SERVICES[name]["healthcheck"]["test"]


@every_service
def test_what_a_service_waits_for_can_come_true(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert set(SERVICES[name]["networks"]) & set(SERVICES[other]["networks"])
        if condition["condition"] == "service_completed_successfully":
            assert "healthcheck" not in SERVICES[other]


@every_service
def test_mounted_files_and_volumes_exist(name: str) -> None:
    for source, target in mounts(name):
        assert target.startswith("/")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"], source


def test_every_volume_and_network_is_used() -> None:
    used = {source for name in SERVICES for source, _ in mounts(name) if source[0] not in "./"}
    networks = {network for service in SERVICES.values() for network in service["networks"]}

    assert used == set(COMPOSE["volumes"])
    assert networks == set(COMPOSE["networks"])


def test_ports_of_the_server_are_its_own() -> None:
    defaults = [Settings.model_fields[name].default for name in ("metrics_port", "dashboard_port")]

    assert ports("policy_server") == {port: port for port in (8000, *defaults)}


def test_ports_of_the_others_are_what_their_files_say() -> None:
    traefik = tomllib.loads((ROOT / "traefik.toml").read_text())
    assert ports("traefik") == {9999: int(traefik["entryPoints"]["http"]["address"].strip(":"))}
    fluentd = (ROOT / "monitoring/fluentd/fluent.conf").read_text()
    [forward] = re.findall(r"@type forward\n.*\n\s*port (\d+)", fluentd)
    [monitor] = re.findall(r"@type monitor_agent\n.*\n\s*port (\d+)", fluentd)
    assert ports("fluentd") == {int(forward): int(forward)}
    assert f":{monitor}/" in SERVICES["fluentd"]["healthcheck"]["test"][-1]
    # The defaults of images whose own files are not here.
    assert ports("prometheus") == {9090: 9090}
    assert ports("grafana") == {3000: 3000}
    assert ports("kibana") == {5601: 5601}
    assert "ports" not in SERVICES["elasticsearch"]


def test_only_traefik_listens_on_the_network() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            expected = "0.0.0.0" if name == "traefik" else "127.0.0.1"  # noqa: S104 -- what is asked for
            assert filled_in(port).split(":")[0] == expected


def test_addresses_inside_the_stack_are_services_on_a_common_network() -> None:
    grafana = SERVICES["grafana"]["environment"]["PROMETHEUS_URL"]
    assert grafana == "http://prometheus:9090"
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])
    [targets] = yaml.safe_load((ROOT / "deploy/compose/targets.yml").read_text())
    metrics_port = Settings.model_fields["metrics_port"].default
    assert targets == {"targets": [f"policy_server:{metrics_port}"]}
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["policy_server"]["networks"])
    routes = tomllib.loads((ROOT / "deploy/compose/routes.toml").read_text())["http"]
    [service] = routes["services"].values()
    assert service["loadBalancer"]["servers"] == [{"url": "http://policy_server:8000"}]
    assert set(SERVICES["traefik"]["networks"]) & set(SERVICES["policy_server"]["networks"])
    fluentd = SERVICES["fluentd"]
    assert fluentd["environment"]["ELASTICSEARCH_HOST"] in SERVICES
    assert set(fluentd["networks"]) & set(SERVICES["policy_server"]["networks"])


def test_prometheus_finds_its_files_where_its_configuration_looks() -> None:
    configuration = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    places = dict(mounts("prometheus"))
    folder = Path(places["./prometheus.yml"]).parent

    [rules] = configuration["rule_files"]
    assert places[f"./{rules}"] == str(folder / rules)
    [files] = configuration["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert Path(places["./deploy/compose/targets.yml"]).match(str(folder / files))


def test_variables_of_the_server_are_settings() -> None:
    given = set(SERVICES["policy_server"]["environment"])

    assert given <= SETTINGS | OTHERS
    assert {name for name in given if not name.startswith(ENV_PREFIX)} == OTHERS


def test_variables_of_fluentd_are_those_that_its_configuration_reads() -> None:
    read = re.findall(r"ENV\['(\w+)'\]", (ROOT / "monitoring/fluentd/fluent.conf").read_text())

    assert set(SERVICES["fluentd"]["environment"]) == set(read)


def test_env_example_has_every_variable_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text()
    written = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))

    used: dict[str, str] = dict(VARIABLE.findall(TEXT))
    passed_on = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    assert set(written) == set(used) | passed_on | {"COMPOSE_PROFILES"}
    # What is shown for the logging stack turns it on.
    shown = {name: value for name, value in written.items() if name in used}
    assert shown.pop("POLICY_SERVER_FLUENTD_HOST") in SERVICES
    assert shown == {name: used[name] for name in shown}
    assert written["COMPOSE_PROFILES"] == "logging"
