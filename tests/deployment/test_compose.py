"""docker-compose.yaml: sound, and about things that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy_server.settings import ENV_PREFIX, Settings
from tests.support.folders import ROOT
from tests.support.processes import run

TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SMALL = {"guard", "policy_server", "traefik", "prometheus", "grafana"}
# They do their part and end.
ENDING = {"guard", "kibana_account"}
LOGGING = {"fluentd", "elasticsearch", "kibana", "kibana_account"}
SETTINGS = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
# Read by other software than ours: uvicorn, Ray, and docker-compose itself.
OTHERS = {"FORWARDED_ALLOW_IPS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
PASSWORDS = {"GRAFANA_PASSWORD", "ELASTIC_PASSWORD", "KIBANA_PASSWORD"}
OWN = dict.fromkeys([f"{ENV_PREFIX}API_KEY", *PASSWORDS], "my own")
# What stands in this repository for a key, a password or a token.
PUBLIC = ["1234567asdfgh", "admin", "policy_server", "a long random text"]
KINDS = ["ADMIN", "METRICS", "STATE"]
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
    assert SERVICES["redis"]["profiles"] == ["sessions"]
    for name in SMALL:
        assert "redis" not in SERVICES[name].get("depends_on", {})
        assert not LOGGING & set(SERVICES[name].get("depends_on", {}))


def test_server_believes_the_proxys_headers_alone() -> None:
    [network] = COMPOSE["networks"]["web"]["ipam"]["config"]
    proxy = filled_in(SERVICES["traefik"]["networks"]["web"]["ipv4_address"])
    subnet, given_by_docker = (
        ip_network(filled_in(network[name])) for name in ("subnet", "ip_range")
    )
    gateway = filled_in(network["gateway"])

    assert filled_in(SERVICES["policy_server"]["environment"]["FORWARDED_ALLOW_IPS"]) == proxy
    assert ip_address(proxy) in subnet
    assert ip_address(gateway) in subnet
    # Of clients that reach the server itself Docker may show the gateway's address.
    assert proxy != gateway
    # Docker gives others none that the proxy needs.
    assert ip_address(proxy) not in given_by_docker


@every_service
def test_service_has_limits_and_a_pinned_image(name: str) -> None:
    service = SERVICES[name]

    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    if "build" not in service:
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])


@every_service
def test_service_has_a_health_check_unless_it_ends_by_itself(name: str) -> None:
    if name in ENDING:
        assert "restart" not in SERVICES[name]
    elif name == "policy_server":
        assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    else:
        assert SERVICES[name]["healthcheck"]["test"]


@every_service
def test_what_a_service_waits_for_can_come_true(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        if other != "guard":
            assert set(SERVICES[name]["networks"]) & set(SERVICES[other]["networks"])
        is_awaited_to_end = condition["condition"] == "service_completed_successfully"
        assert is_awaited_to_end == (other in ENDING)


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
    networks = {network for service in SERVICES.values() for network in service.get("networks", [])}

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
    assert "ports" not in SERVICES["redis"]


def test_stack_is_reached_from_this_machine_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert filled_in(port).split(":")[0] == "127.0.0.1"


def test_ports_without_a_password_stay_on_this_machine() -> None:
    for name in ("prometheus", "fluentd"):
        [port] = SERVICES[name]["ports"]
        assert port.startswith("127.0.0.1:")


def test_security_names_every_port() -> None:
    security = (ROOT / "SECURITY.md").read_text()

    for name in SERVICES:
        for port in ports(name):
            assert f"\n| {port}, " in security, port


def test_prometheus_has_the_key_where_the_docs_say() -> None:
    [key] = [item for item in SERVICES["prometheus"]["configs"] if item["source"] == "metrics_key"]

    assert COMPOSE["configs"]["metrics_key"]["content"] == "${POLICY_SERVER_METRICS_KEY:-}\n"
    assert f"credentials_file: {key['target']}\n" in (ROOT / "docs/monitoring.md").read_text()


def test_times_of_a_start_and_an_end_are_those_of_the_settings() -> None:
    server = SERVICES["policy_server"]
    start = float(filled_in(server["healthcheck"]["start_period"]).removesuffix("s"))
    end = float(filled_in(server["stop_grace_period"]).removesuffix("s"))
    defaults = {name: field.default for name, field in Settings.model_fields.items()}

    assert server["healthcheck"]["start_period"].startswith("${START_PERIOD:-")
    assert server["stop_grace_period"].startswith("${STOP_GRACE_PERIOD:-")
    assert start >= defaults["start_timeout_s"] + defaults["download_timeout_s"]
    assert end > defaults["drain_s"] + defaults["request_timeout_s"]
    [in_image] = re.findall(r"--start-period=(\d+)s", (ROOT / "Dockerfile").read_text())
    assert float(in_image) == start


def test_metrics_port_moves_in_the_container_on_the_host_and_for_prometheus() -> None:
    port = "${POLICY_SERVER_METRICS_PORT:-8080}"

    assert f"${{BIND_ADDRESS:-127.0.0.1}}:{port}:{port}" in SERVICES["policy_server"]["ports"]
    assert f"policy_server:{port}" in COMPOSE["configs"]["targets"]["content"]


def waits_for_the_guard(name: str) -> bool:
    return name == "guard" or any(
        waits_for_the_guard(other) for other in SERVICES[name].get("depends_on", {})
    )


@every_service
def test_nothing_starts_before_the_guard_has_agreed(name: str) -> None:
    assert waits_for_the_guard(name)


def guarded(**given: str) -> subprocess.CompletedProcess[str]:
    """Run the guard as Compose would, with these lines in .env."""
    environment = SERVICES["guard"]["environment"]
    variables = {name: given.get(name, filled_in(value)) for name, value in environment.items()}
    command = ["sh", str(ROOT / "deploy/compose/guard.sh")]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="as-it-is"),
        pytest.param({"PROXY_ADDRESS": "127.0.0.1", "BIND_ADDRESS": "::1"}, id="this-machine"),
        pytest.param({"RAY_AUTH_MODE": "disabled"}, id="open-dashboard-of-this-machine"),
        pytest.param({"PROXY_ADDRESS": "0.0.0.0", **OWN}, id="network"),  # noqa: S104 -- what is asked for
        pytest.param(
            {"BIND_ADDRESS": "192.0.2.1", **OWN, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "own"},
            id="token",
        ),
    ],
)
def test_guard_agrees(given: dict[str, str]) -> None:
    done = guarded(**given)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("address", ["PROXY_ADDRESS", "BIND_ADDRESS"])
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("value", [None, "", *PUBLIC])
def test_network_is_let_in_only_with_a_key_and_passwords_of_ones_own(
    address: str, name: str, value: str | None
) -> None:
    given = {address: "192.0.2.1", **OWN}
    del given[name]
    if value is not None:
        given[name] = value

    done = guarded(**given)

    assert done.returncode == 1
    assert f"for {name};" in done.stderr


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", *(f"{ENV_PREFIX}{kind}_KEY" for kind in KINDS)])
@pytest.mark.parametrize("value", PUBLIC)
def test_network_is_let_in_by_no_further_key_that_everybody_knows(name: str, value: str) -> None:
    done = guarded(BIND_ADDRESS="192.0.2.1", **OWN, **{name: value})

    assert done.returncode == 1
    assert f"for {name};" in done.stderr


def test_values_that_the_repository_shows_for_secrets_are_public() -> None:
    shown_text = (ROOT / ".env.example").read_text()
    secrets = re.findall(r"^#?\w+_(?:KEY|PASSWORD|TOKEN)=(.+)$", shown_text, re.MULTILINE)
    defaults = re.findall(r"\$\{\w+_(?:KEY|PASSWORD|TOKEN):-([^}]+)\}", TEXT)

    assert secrets
    assert {*secrets, *defaults} <= set(PUBLIC)


@pytest.mark.parametrize("mode", ["disabled", "tokn"])
def test_network_is_not_let_in_to_a_dashboard_without_a_token(mode: str) -> None:
    done = guarded(BIND_ADDRESS="192.0.2.1", **OWN, RAY_AUTH_MODE=mode)

    assert done.returncode == 1
    assert f"RAY_AUTH_MODE: expected token or none where other machines are let in, got {mode}" in (
        done.stderr
    )


@pytest.mark.parametrize(
    ("is_first", "status", "expected"),
    [
        pytest.param(True, 0, "started\n", id="first"),
        pytest.param(
            False,
            0,
            "--homepath /home --config /grafana.ini admin reset-admin-password "
            "--password-from-stdin my own\nstarted\n",
            id="later",
        ),
        pytest.param(False, 1, "", id="fails"),
    ],
)
def test_each_start_of_grafana_sets_its_password(
    *, is_first: bool, status: int, expected: str, tmp_path: Path
) -> None:
    if not is_first:
        (tmp_path / "grafana.db").touch()
    stand_in = tmp_path / "grafana"
    says = "shift; read -r password; echo $* $password" if status == 0 else "exit 1"
    stand_in.write_text(f"#!/bin/sh\n{says}\n")
    stand_in.chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "GF_PATHS_DATA": str(tmp_path),
        "GF_PATHS_HOME": "/home",
        "GF_PATHS_CONFIG": "/grafana.ini",
        "GF_SECURITY_ADMIN_PASSWORD": "my own",
    }

    command = ["sh", str(ROOT / "deploy/compose/grafana.sh"), "echo", "started"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (status, expected)


def test_grafana_starts_by_the_script_that_sets_its_password() -> None:
    [script] = [target for source, target in mounts("grafana") if source.endswith("grafana.sh")]

    assert SERVICES["grafana"]["entrypoint"] == ["/bin/sh", script]
    assert SERVICES["grafana"]["command"] == ["/run.sh"]


def test_addresses_inside_the_stack_are_services_on_a_common_network() -> None:
    grafana = SERVICES["grafana"]["environment"]["PROMETHEUS_URL"]
    assert grafana == "http://prometheus:9090"
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])
    [targets] = yaml.safe_load(filled_in(COMPOSE["configs"]["targets"]["content"]))
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
    [targets] = [item for item in SERVICES["prometheus"]["configs"] if item["source"] == "targets"]
    assert Path(targets["target"]).match(str(folder / files))


def test_every_setting_reaches_the_server() -> None:
    given: dict[str, str | None] = dict(SERVICES["policy_server"]["environment"])

    assert set(given) == SETTINGS | OTHERS | PASSWORDS
    # The home is the volume's place in the container.
    assert given.pop("POLICY_SERVER_HOME") in dict(mounts("policy_server")).values()
    # A password of others that stands in .env ends here.
    assert {given.pop(name) for name in PASSWORDS} == {""}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        # Passed on where it is set: Ray takes an empty one for a value.
        assert given.pop(name) is None
    for name, value in given.items():
        assert value is not None
        assert value.startswith(f"${{{name}:-"), name


def test_misspelt_setting_of_env_reaches_the_server_which_refuses_it() -> None:
    assert SERVICES["policy_server"]["env_file"] == [{"path": ".env", "required": False}]


def test_variable_that_the_image_sets_keeps_its_value() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    image = re.findall(rf"^ +({ENV_PREFIX}\w+)=(\S+)", dockerfile, re.MULTILINE)

    # An empty one would be the server's default instead.
    assert len(image) == 2
    for name, value in image:
        assert filled_in(SERVICES["policy_server"]["environment"][name]) == value


def test_policy_is_taken_from_the_folder_unless_an_address_is_given() -> None:
    environment = SERVICES["policy_server"]["environment"]

    # An address is for one policy, and schema.yaml may have several.
    assert filled_in(environment["POLICY_SERVER_MODEL_URI"]) == ""
    assert filled_in(environment["POLICY_SERVER_SCHEMA_URI"]) == ""
    assert ("./examples/mouse_and_cheese", "/srv/given") in mounts("policy_server")


def test_variables_of_fluentd_are_those_that_its_configuration_reads() -> None:
    read = re.findall(r"ENV\['(\w+)'\]", (ROOT / "monitoring/fluentd/fluent.conf").read_text())

    assert set(SERVICES["fluentd"]["environment"]) == set(read)


def test_env_example_has_every_variable_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text()
    written = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))

    used: dict[str, str] = dict(VARIABLE.findall(TEXT))
    assert set(written) == SETTINGS | set(used) | OTHERS | {"COMPOSE_PROFILES"}
    # What is shown for the logging stack turns it on.
    assert written.pop("POLICY_SERVER_FLUENTD_HOST") in SERVICES
    assert written["COMPOSE_PROFILES"] == "logging"
    defaults = {f"{ENV_PREFIX}{name.upper()}": shown(name) for name in Settings.model_fields}
    for name in (SETTINGS | set(used)) & set(written):
        expected = used.get(name) or defaults.get(name, "")
        assert written[name] == expected, name


def shown(name: str) -> str:
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default is None else str(default)


def test_no_proxy_stands_between_a_service_and_its_own_health() -> None:
    asking = [line for line in TEXT.splitlines() if re.search(r"\bcurl\b", line)]

    assert asking
    assert all("--noproxy" in line for line in asking)
