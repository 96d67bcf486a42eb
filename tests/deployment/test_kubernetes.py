"""The Helm chart, rendered by Helm itself, and the KubeRay example against Kubernetes' schemas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from policy_server.metrics import Metrics, MetricsExporter
from policy_server.settings import ENV_PREFIX, Settings
from tests.support.folders import ROOT

CHART = ROOT / "deploy/helm/policy-server"
CLUSTER = ROOT / "deploy/kuberay/raycluster.yaml"
OLDEST, NEWEST = "1.29", "1.37"
SETTINGS = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
OTHERS = {"FORWARDED_ALLOW_IPS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
# Kinds of operators, whose schemas are not Kubernetes' own.
FOREIGN_KINDS = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "RayCluster"}
# What the chart has values of its own for, or sets itself.
ELSEWHERE = {"HOME", "MODEL_URI", "SCHEMA_URI", "BACKEND", "API_KEY", "SESSIONS_URL"}

Manifest = dict[str, Any]

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "apiKey": {"value": "my own"},
        "policy": {"configMap": "policy"},
        "ingress": {"enabled": True, "className": "nginx", "path": "/app/v1", "tlsSecret": "tls"},
        "autoscaling": {"enabled": True, "targetQueueDepth": 32},
        "podDisruptionBudget": {"enabled": True},
        "networkPolicy": {
            "enabled": True,
            "clients": [{"podSelector": {"matchLabels": {"role": "simulator"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"role": "monitoring"}}}],
        },
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceAccountName": "reads-policies",
        "serviceMonitor": {
            "enabled": True,
            "keySecret": "scraper",
            "labels": {"release": "prometheus"},
        },
        "ray": {"address": "policy-server-head-svc:6379", "tokenSecret": "policy-server"},
        "settings": {"NUM_REPLICAS": 2, "LOG_LEVEL": "DEBUG", "LOG_FORMAT": "text"},
        "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
    "fetched": {
        "backend": "local",
        "apiKey": {"existingSecret": "mine"},
        "sessions": {"existingSecret": "redis"},
        "policy": {
            "modelUri": "s3://bucket/saved_model.zip",
            "schemaUri": "s3://bucket/schema.yaml",
        },
        "service": {"type": "LoadBalancer"},
    },
    "moved": {"settings": {"METRICS_PORT": 8081}, "ray": {"address": "head:6379"}},
    "claim": {"policy": {"existingClaim": "policies"}, "settings": {"DASHBOARD_PORT": 8256}},
    "kept": {"home": {"existingClaim": "versions"}, "settings": {"ADMIN_KEY": "own"}},
}

every_choice = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


def render(values: dict[str, Any]) -> dict[str, Manifest]:
    """Return the manifests that Helm makes, by kind and name."""
    rendered = helm_python.Chart.load(CHART).render(values, name="mouse", namespace="default")
    manifests = [
        manifest
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in manifests}


def validate(manifests: list[Manifest]) -> None:
    """Hold manifests against the schemas of the oldest and the newest Kubernetes."""
    assert manifests
    for version in (OLDEST, NEWEST):
        for manifest in manifests:
            assert kubernetes_validate.validate(manifest, version, strict=True) == version


def pod_of(manifests: dict[str, Manifest]) -> Manifest:
    spec: Manifest = manifests["Deployment/mouse-policy-server"]["spec"]["template"]["spec"]
    return spec


def variables_of(pod: Manifest) -> dict[str, Manifest]:
    return {one["name"]: one for one in pod["containers"][0]["env"]}


def test_helm_lint_finds_nothing() -> None:
    report = helm_python.lint(CHART, strict=True)

    worse_than_info = [one for one in report["messages"] if one["severity"] > 1]
    assert not report["errors"]
    assert not worse_than_info


@every_choice
def test_manifests_follow_kubernetes_schemas(values: dict[str, Any]) -> None:
    manifests = render(values)

    validate([one for one in manifests.values() if one["kind"] not in FOREIGN_KINDS])


@every_choice
def test_pods_are_safe_and_have_what_ray_needs(values: dict[str, Any]) -> None:
    pod = pod_of(render(values))
    policy = values.get("policy", {})

    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    [container] = pod["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    given = {"/source": "source"} if {"configMap", "existingClaim"} & set(policy) else {}
    assert mounted == {"/srv/policy": "policy", "/tmp": "tmp", "/dev/shm": "dshm", **given}  # noqa: S108 -- paths in a container
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["dshm"]["emptyDir"]["medium"] == "Memory"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@every_choice
def test_variables_of_the_pods_are_settings(values: dict[str, Any]) -> None:
    pod = pod_of(render(values))
    given = set(variables_of(pod))

    assert len(given) == len(pod["containers"][0]["env"])
    extra = {one["name"] for one in values.get("env", [])}
    assert given - extra <= SETTINGS | OTHERS


def test_chart_takes_every_setting_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]

    assert not schema["additionalProperties"]
    assert set(schema["properties"]) == {name.upper() for name in Settings.model_fields} - ELSEWHERE


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (10_485_760, "10485760"),
        (4_294_967_296, "4294967296"),
        (0.5, "0.5"),
        (30, "30"),
        ("64MB", "64MB"),
        (True, "true"),
    ],
)
def test_numbers_reach_the_server_as_they_are_written(given: object, expected: str) -> None:
    manifests = render({"settings": {"MAX_BODY_BYTES": given}})

    assert variables_of(pod_of(manifests))["POLICY_SERVER_MAX_BODY_BYTES"]["value"] == expected


PRIVATE = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, None, id="nobody"),
        pytest.param({"ingress": {"enabled": True}}, PRIVATE, id="ingress"),
        pytest.param({"forwardedAllowIps": "192.0.2.7"}, "192.0.2.7", id="named"),
        pytest.param(
            {"ingress": {"enabled": True}, "forwardedAllowIps": "192.0.2.7"},
            "192.0.2.7",
            id="named-ingress",
        ),
    ],
)
def test_headers_of_a_proxy_are_believed_where_there_is_one(
    values: dict[str, Any], expected: str | None
) -> None:
    variables = variables_of(pod_of(render({"apiKey": {"value": "own"}, **values})))

    assert variables.get("FORWARDED_ALLOW_IPS", {}).get("value") == expected


@pytest.mark.parametrize("port", [9100, "9100"])
def test_metrics_port_moves_in_the_server_the_container_and_the_service(port: int | str) -> None:
    manifests = render({"settings": {"METRICS_PORT": port}})
    [container] = pod_of(manifests)["containers"]

    [named] = [item for item in container["ports"] if item["name"] == "metrics"]
    [served] = manifests["Service/mouse-policy-server-metrics"]["spec"]["ports"]
    assert named["containerPort"] == served["port"] == 9100
    assert variables_of(pod_of(manifests))["POLICY_SERVER_METRICS_PORT"]["value"] == "9100"


@pytest.mark.parametrize(
    ("values", "expected"), [("everything", "8081"), ("moved", "8082")], ids=["apart", "moved"]
)
def test_metrics_of_a_pods_ray_have_a_port_of_their_own(values: str, expected: str) -> None:
    command = pod_of(render(VALUES[values]))["containers"][0]["args"][-1]

    assert f"--metrics-export-port={expected} " in command


def test_pods_run_under_the_service_account_that_is_named() -> None:
    assert pod_of(render(VALUES["everything"]))["serviceAccountName"] == "reads-policies"
    assert "serviceAccountName" not in pod_of(render({}))


def test_pods_spread_over_the_nodes_unless_told_otherwise() -> None:
    own = [
        {
            "maxSkew": 2,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule",
        }
    ]
    manifests = render({})
    labels = manifests["Deployment/mouse-policy-server"]["spec"]["template"]["metadata"]["labels"]

    [spread] = pod_of(manifests)["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    given = render({"topologySpreadConstraints": own})
    assert pod_of(given)["topologySpreadConstraints"] == own


def test_budget_and_network_policy_are_about_the_pods() -> None:
    manifests = render(VALUES["everything"])
    labels = manifests["Deployment/mouse-policy-server"]["spec"]["template"]["metadata"]["labels"]

    budget = manifests["PodDisruptionBudget/mouse-policy-server"]["spec"]
    assert budget["maxUnavailable"] == 1
    policy = manifests["NetworkPolicy/mouse-policy-server"]["spec"]
    for selector in (budget["selector"], policy["podSelector"]):
        assert selector["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in pod_of(manifests)["containers"][0]["ports"]}
    requests, scrapes, cluster = policy["ingress"]
    assert {rule["ports"][0]["port"] for rule in (requests, scrapes)} == ports
    assert requests["from"] == VALUES["everything"]["networkPolicy"]["clients"]
    assert scrapes["from"] == VALUES["everything"]["networkPolicy"]["monitoring"]
    assert "ports" not in cluster


def test_network_policy_lets_everybody_ask_where_no_clients_are_named() -> None:
    policy = render({"networkPolicy": {"enabled": True}})["NetworkPolicy/mouse-policy-server"]

    assert [set(rule) for rule in policy["spec"]["ingress"]] == [{"ports"}, {"ports"}]


def test_alerts_of_the_chart_are_those_of_prometheus() -> None:
    alerts = (ROOT / "monitoring/prometheus/alerts.yml").read_text()
    rule = render(VALUES["everything"])["PrometheusRule/mouse-policy-server"]

    assert (CHART / "files/alerts.yml").read_text() == alerts
    assert rule["spec"] == yaml.safe_load(alerts)
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_services_meet_the_pods_and_the_monitor_meets_one_service() -> None:
    manifests = render(VALUES["everything"])

    labels = manifests["Deployment/mouse-policy-server"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in pod_of(manifests)["containers"][0]["ports"]}
    services = [one for one in manifests.values() if one["kind"] == "Service"]
    for service in services:
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    monitor = manifests["ServiceMonitor/mouse-policy-server"]["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    [met] = [one for one in services if wanted <= one["metadata"]["labels"].items()]
    assert [port["name"] for port in met["spec"]["ports"]] == [monitor["endpoints"][0]["port"]]
    backend = manifests["Ingress/mouse-policy-server"]["spec"]["rules"][0]["http"]["paths"][0]
    target = manifests[f"Service/{backend['backend']['service']['name']}"]
    assert backend["backend"]["service"]["port"]["name"] in {
        port["name"] for port in target["spec"]["ports"]
    }


def test_only_servers_have_the_job_that_dashboard_and_alerts_know() -> None:
    monitor = render(VALUES["everything"])["ServiceMonitor/mouse-policy-server"]["spec"]
    pods = yaml.safe_load((ROOT / "deploy/kuberay/podmonitor.yaml").read_text())["spec"]

    credentials = monitor["endpoints"][0]["authorization"]["credentials"]
    assert credentials == {"name": "scraper", "key": "metrics-key"}
    [server], [ray] = monitor["endpoints"], pods["podMetricsEndpoints"]
    assert server["relabelings"] == [{"targetLabel": "job", "replacement": "policy_server"}]
    # Ray's pods are no servers: the panel Servers would count them, and PolicyServerDown fire.
    assert ray["relabelings"] == [{"targetLabel": "job", "replacement": "policy_server_ray"}]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param(
            {"settings": {"METRICS_KEY": "a"}},
            {"name": "mouse-policy-server", "key": "metrics-key"},
            id="charts-own",
        ),
        pytest.param(
            {"keys": {"existingSecret": "mine", "metricsKey": "scraper"}},
            {"name": "mine", "key": "scraper"},
            id="ones-own",
        ),
    ],
)
def test_monitor_sends_the_key_that_the_server_asks_for(
    values: dict[str, Any], expected: dict[str, str] | None
) -> None:
    manifests = render({"serviceMonitor": {"enabled": True}, **values})

    [endpoint] = manifests["ServiceMonitor/mouse-policy-server"]["spec"]["endpoints"]
    assert endpoint.get("authorization", {}).get("credentials") == expected


def test_autoscaler_owns_the_number_of_pods() -> None:
    manifests = render(VALUES["everything"])

    assert "replicas" not in manifests["Deployment/mouse-policy-server"]["spec"]
    target = manifests["HorizontalPodAutoscaler/mouse-policy-server"]["spec"]["scaleTargetRef"]
    assert f"{target['kind']}/{target['name']}" in manifests


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, ["cpu"], id="cpu"),
        pytest.param({"targetQueueDepth": 32}, ["cpu", "policy_server_queue_depth"], id="both"),
        pytest.param(
            {"targetQueueDepth": 32, "targetCPUUtilizationPercentage": 0},
            ["policy_server_queue_depth"],
            id="queue",
        ),
    ],
)
def test_autoscaler_goes_by_cpu_and_by_the_servers_own_metric(
    values: dict[str, Any], expected: list[str]
) -> None:
    manifests = render({"autoscaling": {"enabled": True, **values}})
    metrics = manifests["HorizontalPodAutoscaler/mouse-policy-server"]["spec"]["metrics"]

    named = [
        one["resource"]["name"] if one["type"] == "Resource" else one["pods"]["metric"]["name"]
        for one in metrics
    ]
    assert named == expected
    page = MetricsExporter(Metrics(), port=0).render().decode()
    assert "# TYPE policy_server_queue_depth gauge" in page


def test_key_comes_from_a_secret_only() -> None:
    for values in (VALUES["everything"], VALUES["fetched"]):
        manifests = render(values)
        variable = variables_of(pod_of(manifests))["POLICY_SERVER_API_KEY"]
        reference = variable["valueFrom"]["secretKeyRef"]

        assert "value" not in variable
        secret = manifests.get(f"Secret/{reference['name']}")
        assert (secret is None) == ("existingSecret" in values["apiKey"])
        assert secret is None or reference["key"] in secret["stringData"]


KEYS = {"ADMIN_KEY": "admin-key", "METRICS_KEY": "metrics-key", "STATE_KEY": "state-key"}


def test_keys_among_the_settings_are_in_the_charts_secret_alone() -> None:
    manifests = render({"settings": {name: f"{name}-in-clear" for name in KEYS}})
    variables = variables_of(pod_of(manifests))

    secret = manifests["Secret/mouse-policy-server"]["stringData"]
    for name, key in KEYS.items():
        variable = variables[f"POLICY_SERVER_{name}"]
        reference = {"name": "mouse-policy-server", "key": key}
        assert variable["valueFrom"] == {"secretKeyRef": reference}
        assert secret[key] == f"{name}-in-clear"
    assert "in-clear" not in str(manifests["Deployment/mouse-policy-server"])


def test_key_that_is_a_number_is_kept_as_it_is_written() -> None:
    secret = render({"settings": {"ADMIN_KEY": 12345678}})["Secret/mouse-policy-server"]

    assert secret["stringData"] == {"admin-key": "12345678"}


def test_changed_key_of_the_chart_starts_the_pods_anew() -> None:
    def annotations(key: str) -> object:
        manifests = render({"settings": {"ADMIN_KEY": key}})
        return manifests["Deployment/mouse-policy-server"]["spec"]["template"]["metadata"]

    assert annotations("a") != annotations("b")


def test_keys_come_from_a_secret_of_ones_own() -> None:
    manifests = render(
        {"keys": {"existingSecret": "mine", "adminKey": "admin", "metricsKey": "scraper"}}
    )
    variables = variables_of(pod_of(manifests))

    assert "Secret/mouse-policy-server" not in manifests
    for name, key in (("ADMIN_KEY", "admin"), ("METRICS_KEY", "scraper")):
        reference = variables[f"POLICY_SERVER_{name}"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "mine", "key": key}
    assert "POLICY_SERVER_STATE_KEY" not in variables


def test_versions_can_be_changed_in_one_pod_or_in_the_pods_of_a_cluster() -> None:
    for values in ({}, {"replicaCount": 3, "ray": {"address": "head:6379"}}):
        assert render({**values, "settings": {"ADMIN_KEY": "a"}})


def test_address_of_the_sessions_comes_from_a_secret_only() -> None:
    variable = variables_of(pod_of(render(VALUES["fetched"])))["POLICY_SERVER_SESSIONS_URL"]

    assert variable["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "url"}
    assert "value" not in variable


def test_example_that_is_served_by_default_exists() -> None:
    [container] = pod_of(render({}))["initContainers"]

    shell, script, source = container["command"]
    assert shell == "sh"
    assert (ROOT / "deploy" / Path(script).name).exists()
    assert f"deploy/{Path(script).name}" in (ROOT / "Dockerfile").read_text()
    example = ROOT / source.removeprefix("/opt/policy-server/")
    assert {"schema.yaml", "saved_model.zip"} <= {path.name for path in example.iterdir()}


def test_policies_of_a_schema_that_names_their_addresses_need_no_other() -> None:
    pod = pod_of(render({"policy": {"schemaUri": "s3://bucket/schema.yaml"}}))
    variables = variables_of(pod)

    assert "initContainers" not in pod
    assert variables["POLICY_SERVER_SCHEMA_URI"]["value"] == "s3://bucket/schema.yaml"
    assert "POLICY_SERVER_MODEL_URI" not in variables


def test_server_that_fetches_its_policy_needs_no_copy() -> None:
    pod = pod_of(render(VALUES["fetched"]))

    assert "initContainers" not in pod
    assert variables_of(pod)["POLICY_SERVER_MODEL_URI"]["value"] == "s3://bucket/saved_model.zip"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"typo": 1}, "typo", id="unknown"),
        pytest.param({"backend": "x"}, "must be one of", id="backend"),
        pytest.param({"settings": {"POLICY_SERVER_HOME": "/"}}, "POLICY_SERVER", id="prefix"),
        pytest.param({"settings": {"NUM_REPLICA": 2}}, "NUM_REPLICA", id="misspelt-setting"),
        pytest.param({"settings": {"BACKEND": "local"}}, "BACKEND", id="setting-of-the-chart"),
        pytest.param({"settings": {"METRICS_PORT": 0}}, "METRICS_PORT", id="any-port"),
        pytest.param(
            {"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": 0}},
            "targetQueueDepth",
            id="autoscaling-by-nothing",
        ),
        pytest.param({"apiKey": {"value": "a", "existingSecret": "b"}}, "not both", id="two-keys"),
        pytest.param({"policy": {"modelUri": "s3://a"}}, "needs schemaUri", id="half-a-policy"),
        pytest.param(
            {"policy": {"configMap": "a", "existingClaim": "b"}}, "not several", id="two-policies"
        ),
        pytest.param({"backend": "local", "ray": {"address": "a:1"}}, "backend: ray", id="ray"),
        pytest.param(
            {"replicaCount": 2, "settings": {"ADMIN_KEY": "a"}}, "one pod only", id="admin-of-two"
        ),
        pytest.param(
            {"replicaCount": 2, "keys": {"existingSecret": "a", "adminKey": "b"}},
            "one pod only",
            id="admin-of-two-by-a-secret",
        ),
        pytest.param(
            {"replicaCount": 2, "env": [{"name": "POLICY_SERVER_ADMIN_KEY", "value": "a"}]},
            "one pod only",
            id="admin-of-two-by-a-variable",
        ),
        pytest.param(
            {"replicaCount": 2, "env": [{"name": "policy_server_admin_key", "value": "a"}]},
            "one pod only",
            id="admin-of-two-by-a-variable-in-lower-case",
        ),
        pytest.param(
            {"autoscaling": {"enabled": True}, "settings": {"ADMIN_KEY": "a"}},
            "one pod only",
            id="admin-of-many",
        ),
        pytest.param(
            {
                "settings": {"ADMIN_KEY": "a"},
                "keys": {"existingSecret": "a", "adminKey": "b"},
            },
            "not both",
            id="two-admin-keys",
        ),
        pytest.param({"keys": {"adminKey": "b"}}, "existingSecret", id="key-of-no-secret"),
        pytest.param(
            {"service": {"type": "LoadBalancer"}}, "key of your own", id="public-balancer"
        ),
        pytest.param(
            {
                "serviceMonitor": {"enabled": True},
                "env": [{"name": "POLICY_SERVER_METRICS_KEY", "value": "a"}],
            },
            "serviceMonitor.keySecret",
            id="scrapes-without-a-key",
        ),
        pytest.param(
            {"replicaCount": 2, "home": {"existingClaim": "a"}}, "folder of one pod", id="two-homes"
        ),
        pytest.param({"service": {"type": "NodePort"}}, "key of your own", id="public-node"),
        pytest.param({"ingress": {"enabled": True}}, "key of your own", id="public-ingress"),
        pytest.param(
            {
                "ingress": {"enabled": True},
                "policy": {"configMap": "a"},
                "apiKey": {"value": "1234567asdfgh"},
            },
            "key of your own",
            id="public-key",
        ),
        pytest.param({"settings": {"METRICS_PORT": 8000}}, "port of HTTP", id="port-of-http"),
        pytest.param({"settings": {"METRICS_PORT": "99999"}}, "up to 65535", id="no-port"),
        pytest.param(
            {"settings": {"METRICS_PORT": 9100, "DASHBOARD_PORT": "9100"}},
            "DASHBOARD_PORT: 9100",
            id="port-of-two",
        ),
        pytest.param(
            {"settings": {"METRICS_HOST": "127.0.0.1"}, "serviceMonitor": {"enabled": True}},
            "not reached from outside",
            id="unreached-metrics",
        ),
        pytest.param(
            {"autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 2}},
            "minReplicas is 9",
            id="least-over-most",
        ),
        pytest.param(
            {"settings": {"NUM_REPLICAS": "4", "MAX_REPLICAS": 2}},
            "MAX_REPLICAS: is 2",
            id="replicas-over-most",
        ),
        pytest.param(
            {
                "apiKey": {"value": "a", "secretKey": "admin-key"},
                "settings": {"ADMIN_KEY": "b"},
            },
            "place of settings.ADMIN_KEY",
            id="two-keys-of-one-place",
        ),
        pytest.param({"keys": {"existingSecret": "b"}}, "name adminKey", id="secret-of-no-key"),
        pytest.param(
            {"settings": {"DRAIN_S": 30}},
            "terminationGracePeriodSeconds: is 60; expected more than 65",
            id="short-grace",
        ),
        pytest.param(
            {"settings": {"DRAIN_S": "0", "REQUEST_TIMEOUT_S": "55.5"}},
            "expected more than 60.5",
            id="short-grace-of-texts",
        ),
        pytest.param(
            {"settings": {"REQUEST_TIMEOUT_S": 9_000_000_000_000}},
            "expected more than 9000000000005: .* and 9000000000000 s of settings",
            id="short-grace-of-no-end",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


SHOWN: dict[str, dict[str, Any]] = {
    "ingress": {"ingress": {"enabled": True}},
    "balancer": {"service": {"type": "LoadBalancer"}},
    "node": {"service": {"type": "NodePort"}},
}


def public_keys() -> list[str]:
    """Return the keys that stand in this repository, as docker-compose's guard has them."""
    [words] = re.findall(
        r"is_public\(\) \{\n +case \$1 in\n +(.*)\) return 0",
        (ROOT / "deploy/compose/guard.sh").read_text(),
    )
    return [word.strip("'") for word in words.split("|")]


def ways_to_give(key: str) -> dict[str, dict[str, Any]]:
    """Return the values that give a key in clear, by the place that a refusal names."""
    own = {"apiKey": {"value": "own"}}
    return {
        "apiKey.value": {"apiKey": {"value": key}},
        "env POLICY_SERVER_API_KEY": {"env": [{"name": "POLICY_SERVER_API_KEY", "value": key}]},
        # The server takes names of its variables in any case.
        "env policy_server_api_key": {"env": [{"name": "policy_server_api_key", "value": key}]},
        **{f"settings.{name}": {**own, "settings": {name: key}} for name in KEYS},
        **{
            f"env POLICY_SERVER_{name}": {
                **own,
                "env": [{"name": f"POLICY_SERVER_{name}", "value": key}],
            }
            for name in KEYS
        },
    }


@pytest.mark.parametrize("policy", [{}, {"policy": {"configMap": "a"}}], ids=["example", "own"])
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
@pytest.mark.parametrize("place", ways_to_give("").keys())
def test_public_key_is_refused_where_others_are_let_in(
    place: str, shown: dict[str, Any], policy: dict[str, Any]
) -> None:
    for key in public_keys():
        values = {**shown, **policy, **ways_to_give(key)[place]}
        with pytest.raises(helm_python.HelmError, match=f"{place}: .*give a key of your own"):
            render(values)


@pytest.mark.parametrize("place", ways_to_give("").keys())
def test_own_key_is_taken_where_others_are_let_in_and_any_where_not(place: str) -> None:
    assert render({**SHOWN["ingress"], **ways_to_give("own 1234567asdfgh")[place]})
    assert render(ways_to_give("1234567asdfgh")[place])


@pytest.mark.parametrize(
    ("env", "is_taken"),
    [
        pytest.param({"value": ""}, False, id="empty"),
        pytest.param({}, False, id="none"),
        pytest.param({"valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}, True, id="secret"),
    ],
)
def test_examples_key_counts_where_a_variable_gives_none(
    env: dict[str, Any], *, is_taken: bool
) -> None:
    values = {**SHOWN["ingress"], "env": [{"name": "POLICY_SERVER_API_KEY", **env}]}

    if is_taken:
        assert render(values)
        return
    with pytest.raises(helm_python.HelmError, match="give a key of your own"):
        render(values)


@pytest.mark.parametrize(
    ("settings", "expected_s"),
    [
        pytest.param({}, 900, id="defaults"),
        pytest.param({"START_TIMEOUT_S": "1200.5"}, 1802, id="load"),
        pytest.param({"START_TIMEOUT_S": 60, "DOWNLOAD_TIMEOUT_S": 7200}, 7260, id="fetch"),
    ],
)
def test_start_may_take_as_long_as_the_settings_say(
    settings: dict[str, Any], expected_s: int
) -> None:
    probe = pod_of(render({"settings": settings}))["containers"][0]["startupProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] == expected_s
    defaults = (
        Settings.model_fields[name].default for name in ("start_timeout_s", "download_timeout_s")
    )
    assert settings or sum(defaults) == expected_s


NO_END = "9000000000000"
INT32_MAX = 2**31 - 1


@pytest.mark.parametrize("name", ["START_TIMEOUT_S", "DOWNLOAD_TIMEOUT_S"])
@pytest.mark.parametrize("given", [NO_END, int(NO_END), 4294967296])
def test_start_without_an_end_has_as_many_probes_as_kubernetes_takes(
    name: str, given: object
) -> None:
    manifests = render({"settings": {name: given}})

    probe = pod_of(manifests)["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] == INT32_MAX
    assert variables_of(pod_of(manifests))[f"POLICY_SERVER_{name}"]["value"] == str(given)


def test_large_numbers_are_whole_numbers_in_the_manifests() -> None:
    """Helm has numbers of values as floats, and writes them as 1e+06 from a million on."""
    manifests = render(
        {
            "replicaCount": 1_000_000,
            "podDisruptionBudget": {"enabled": True, "maxUnavailable": 2_000_000},
            "terminationGracePeriodSeconds": 9_000_000_000_100,
            "settings": {"REQUEST_TIMEOUT_S": NO_END},
        }
    )
    scaled = render(
        {"autoscaling": {"enabled": True, "minReplicas": 1_000_000, "maxReplicas": 3_000_000}}
    )

    deployment = manifests["Deployment/mouse-policy-server"]["spec"]
    scaler = scaled["HorizontalPodAutoscaler/mouse-policy-server"]["spec"]
    assert deployment["replicas"] == 1_000_000
    assert pod_of(manifests)["terminationGracePeriodSeconds"] == 9_000_000_000_100
    budget = manifests["PodDisruptionBudget/mouse-policy-server"]["spec"]
    assert budget["maxUnavailable"] == 2_000_000
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1_000_000, 3_000_000)
    validate([*manifests.values(), *scaled.values()])


@pytest.mark.parametrize("is_kept", [False, True], ids=["lost", "kept"])
def test_deployed_versions_outlive_the_pod_on_a_volume_and_are_warned_of_without_one(
    *, is_kept: bool
) -> None:
    values: dict[str, Any] = {"settings": {"ADMIN_KEY": "a"}}
    if is_kept:
        values["home"] = {"existingClaim": "versions"}
    rendered = helm_python.Chart.load(CHART).render(values, name="mouse", namespace="default")
    manifests = render(values)

    [home] = [one for one in pod_of(manifests)["volumes"] if one["name"] == "policy"]
    strategy = manifests["Deployment/mouse-policy-server"]["spec"]["strategy"]
    [notes] = [text for path, text in rendered.items() if path.endswith("NOTES.txt")]
    assert ("persistentVolumeClaim" in home, "emptyDir" in home) == (is_kept, not is_kept)
    assert (strategy.get("type") == "Recreate") == is_kept
    assert ("WARNING: versions" in notes) == (not is_kept)


def cluster_groups() -> dict[str, Manifest]:
    spec = yaml.safe_load(CLUSTER.read_text())["spec"]
    return {"head": spec["headGroupSpec"]} | {
        group["groupName"]: group for group in spec["workerGroupSpecs"]
    }


def test_pods_of_the_ray_cluster_follow_kubernetes_schemas() -> None:
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **group["template"]}
        for name, group in cluster_groups().items()
    ]

    validate(pods)


def test_ray_cluster_runs_the_pinned_ray() -> None:
    [pinned] = re.findall(
        r"^ray\[.*\]==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )

    assert yaml.safe_load(CLUSTER.read_text())["spec"]["rayVersion"] == pinned


def test_ray_cluster_has_the_fields_of_kuberays_api() -> None:
    # KubeRay 1.5, ray-operator/apis/ray/v1: RayClusterSpec, HeadGroupSpec, WorkerGroupSpec.
    spec = yaml.safe_load(CLUSTER.read_text())["spec"]
    groups = cluster_groups()
    head = groups.pop("head")

    assert set(spec) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert set(head) == {"serviceType", "rayStartParams", "template"}
    for group in groups.values():
        assert set(group) == {
            "groupName",
            "replicas",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
        }
    for group in (head, *groups.values()):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_workers_of_the_ray_cluster_have_room_for_an_update_of_the_example() -> None:
    workers = cluster_groups()["policy"]
    [container] = workers["template"]["spec"]["containers"]
    cpus = workers["replicas"] * int(container["resources"]["limits"]["cpu"])

    pages = [CLUSTER.read_text(), (ROOT / "docs/deployment-kubernetes.md").read_text()]
    asked = [
        int(number)
        for page in pages
        for number in re.findall(r" settings.NUM_REPLICAS=(\d+)", page)
    ]
    assert len(asked) == 2
    assert all(2 * replicas <= cpus for replicas in asked)
    # Nothing scales them.
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]


def test_replicas_on_the_ray_cluster_are_not_nice() -> None:
    for group in cluster_groups().values():
        [container] = group["template"]["spec"]["containers"]
        assert container["env"] == [{"name": "RAY_worker_niceness", "value": "0"}]


def test_chart_joins_the_ray_cluster_of_the_example() -> None:
    name = yaml.safe_load(CLUSTER.read_text())["metadata"]["name"]
    command = " ".join(
        line.lstrip("# ") for line in CLUSTER.read_text().splitlines() if line.startswith("#")
    )

    # KubeRay names the head's service and the token's Secret after the cluster.
    assert f"ray.address={name}-head-svc:6379" in command
    assert f"ray.tokenSecret={name}" in command
