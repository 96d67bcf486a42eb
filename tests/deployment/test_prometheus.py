"""prometheus.yml, the alert rules and the dashboard, in Debian's own Prometheus."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from policy_server.metrics.counts import FAMILIES
from policy_server.settings import Settings
from tests.support import asking
from tests.support.folders import ROOT
from tests.support.processes import child, program, run
from tests.support.server_processes import Server, compiled_home_of, running_server
from tests.support.servers import free_port, status_of
from tests.support.waiting import wait_until

DASHBOARD = ROOT / "monitoring/grafana/dashboards/policy_server.json"
ALERTS = ROOT / "monitoring/prometheus/alerts.yml"
OURS = re.compile(r"policy_server_\w+")


def promtool(*arguments: str) -> str:
    done = run(program("promtool", package="prometheus"), *arguments)
    return done.stdout + done.stderr


def panels() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return loaded


def panel_expressions() -> list[tuple[str, str]]:
    """Return title and expression of each, with Grafana's variables filled in."""
    values = {"$__rate_interval": "1m", "$instance": ".*", "$policy": ".*", "$component": ".*"}
    found = []
    for panel in panels():
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, panel["title"]
            found.append((panel["title"], expression))
    return found


def alert_expressions() -> list[tuple[str, str]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def names_in_use(pattern: re.Pattern[str]) -> set[str]:
    text = " ".join(expression for _, expression in [*panel_expressions(), *alert_expressions()])
    return set(pattern.findall(text))


def test_configuration_is_sound_and_names_files_that_exist() -> None:
    printed = promtool("check", "config", "prometheus.yml")

    assert "1 rule files found" in printed
    [job] = yaml.safe_load((ROOT / "prometheus.yml").read_text())["scrape_configs"]
    [discovery] = job["file_sd_configs"]
    [pattern] = discovery["files"]
    [targets] = list(ROOT.glob(pattern))
    default = Settings.model_fields["metrics_port"].default
    assert yaml.safe_load(targets.read_text()) == [{"targets": [f"localhost:{default}"]}]
    assert job["job_name"] == "policy_server"


def test_every_alert_rule_fires_when_it_should_and_not_otherwise() -> None:
    printed = promtool("test", "rules", "monitoring/prometheus/alerts_test.yml")

    assert "SUCCESS" in printed
    cases = yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in cases
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {name for name, _ in alert_expressions()}


def test_grafana_finds_the_dashboard_and_its_data_source() -> None:
    provisioning = ROOT / "monitoring/grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load((provisioning / "dashboards/policy_server.yml").read_text())[
        "providers"
    ]

    used = {
        json.dumps(part["datasource"], sort_keys=True)
        for panel in panels()
        for part in [panel, *panel.get("targets", [])]
        if "datasource" in part
    }
    assert used == {json.dumps({"type": source["type"], "uid": source["uid"]}, sort_keys=True)}
    mounts = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]["grafana"][
        "volumes"
    ]
    assert f"./monitoring/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert len({panel["id"] for panel in panels()}) == len(panels())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        compiled_home_of("ppo_discrete", tmp_path_factory.mktemp("home"))
    ) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Prometheus that runs with the repository's own files, on free ports."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(ROOT / "prometheus.yml", folder)
    shutil.copytree(ROOT / "monitoring/prometheus", folder / "monitoring/prometheus")
    target = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    [targets] = (folder / "monitoring/prometheus/targets").glob("*.yml")
    targets.write_text(json.dumps([{"targets": [target]}]))
    configuration = folder / "prometheus.yml"
    configuration.write_text(configuration.read_text().replace("interval: 15s", "interval: 1s"))
    url = f"http://127.0.0.1:{free_port()}"
    command = (
        program("prometheus", package="prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    )
    with (
        asking.client(base_url=url, timeout=10) as client,
        child(*command, log=folder / "prometheus.log") as started,
    ):
        started.wait_until(lambda: status_of(f"{url}/-/ready") == httpx.codes.OK)
        yield client


def query(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def wait_for(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    return wait_until(
        lambda: query(prometheus, expression),
        timeout_s=60.0,
        pause_s=0.5,
        told=lambda: f"nothing came of {expression}",
    )


@pytest.mark.service
def test_prometheus_scrapes_the_server(prometheus: httpx.Client) -> None:
    [up] = wait_for(prometheus, 'up{job="policy_server"} == 1')

    assert up["value"][1] == "1"
    [healthy] = wait_for(prometheus, "policy_server_replicas == 1")
    assert healthy["value"][1] == "1"


@pytest.mark.service
def test_prometheus_stores_no_series_of_rays(prometheus: httpx.Client) -> None:
    wait_for(prometheus, "policy_server_replicas")

    assert query(prometheus, '{__name__=~"ray_.*|python_.*|process_.*"}') == []


@pytest.mark.service
def test_prometheus_counts_a_request(prometheus: httpx.Client, server: Server) -> None:
    with server.client() as client:
        client.post("/predict_raw", json={"obs": [0.0] * 4}).raise_for_status()

    name = 'policy_server_requests_total{route=~".*predict_raw", status="200"}'
    [counted] = wait_for(prometheus, f"sum({name}) > 0")
    assert float(counted["value"][1]) >= 1


@pytest.mark.service
def test_server_writes_every_metric_that_dashboard_and_alerts_read(server: Server) -> None:
    with server.client() as client:
        client.post("/predict_raw", json={"obs": [0.0] * 4}).raise_for_status()
    types = re.findall(
        r"^# TYPE (policy_server_\w+) (\w+)$",
        asking.get(server.metrics_url).text,
        re.MULTILINE,
    )

    written = {
        f"{name}{suffix}"
        for name, kind in types
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    used = names_in_use(OURS)
    assert used
    assert used <= written, f"nothing writes {sorted(used - written)}"


SELECTED = re.compile(r"(policy_server_\w+)\{([^}]*)\}")
GROUPED = re.compile(r"\b(?:by|on|ignoring) \(([^)]*)\)")


def labels_of_metrics() -> dict[str, set[str]]:
    """Return the labels of each name that a page of metrics may have."""
    found: dict[str, set[str]] = {}
    for metric in FAMILIES.values():
        name, labels = f"policy_server_{metric.name}", set(metric.labels)
        if metric.kind == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels}
            found |= {f"{name}_count": labels}
        else:
            found[name + ("_total" if metric.kind == "counter" else "")] = labels
    return {name: labels | {"instance", "job"} for name, labels in found.items()}


def unknown_labels(expression: str) -> set[tuple[str, str]]:
    """Return the labels of an expression that its metrics don't have, with the metrics."""
    known = labels_of_metrics()
    unknown = set()
    for name, matchers in SELECTED.findall(expression):
        used = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers)
        unknown |= {(name, label) for label in used if label not in known[name]}
    names = OURS.findall(expression)
    for group in GROUPED.findall(expression):
        for label in filter(None, (part.strip() for part in group.split(","))):
            unknown |= {(name, label) for name in names if label not in known[name]}
    return unknown


@pytest.mark.parametrize(
    ("title", "expression"), [*panel_expressions(), *alert_expressions()], ids=lambda item: item
)
def test_expressions_use_labels_that_their_metrics_have(title: str, expression: str) -> None:
    assert OURS.search(expression) or expression.startswith(("sum(up", "up{")), title
    assert unknown_labels(expression) == set(), title


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ('sum(rate(policy_server_requests_total{code="200"}[5m]))', "code"),
        ("sum by (stage) (policy_server_queue_depth)", "stage"),
    ],
)
def test_label_that_a_metric_does_not_have_is_found(expression: str, unknown: str) -> None:
    assert {label for _, label in unknown_labels(expression)} == {unknown}


@pytest.mark.service
def test_prometheus_reads_every_panel(prometheus: httpx.Client) -> None:
    expressions = panel_expressions()
    assert len(expressions) > 10
    for _, expression in expressions:
        query(prometheus, expression)


@pytest.mark.service
def test_prometheus_loads_every_alert(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]

    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    assert [rule["name"] for rule in rules] == [name for name, _ in alert_expressions()]
    assert all(not rule.get("lastError") for rule in rules)
