"""The port that Prometheus scrapes."""

from __future__ import annotations

import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.client_limits import ClientLimit
from policy_server.files.shared_folders import beginning_of
from policy_server.http_server.metrics_port import exported_metrics
from policy_server.metrics import Metrics, MetricsExporter
from policy_server.settings import Settings
from tests.support import asking
from tests.support.pages import samples
from tests.support.servers import Handler, answered_by


@contextmanager
def exported(metrics: Metrics) -> Iterator[MetricsExporter]:
    """Serve metrics on a free port."""
    exporter = MetricsExporter(metrics, port=0)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop()


def get(url: str) -> tuple[int, bytes]:
    """Ask for a page of this machine."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 -- a loopback address
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_figures_of_workers_add_up(tmp_path: Path) -> None:
    ours, theirs = Metrics(), Metrics()
    for metrics in (ours, theirs):
        metrics.observe_request("walker", "/predict", 200, 0.01)
        metrics.of("walker").describe_model(version="abc", family="normal(1)", load_seconds=2.0)
        metrics.of("walker").watch_queue(lambda: 3)
    other = MetricsExporter(theirs, port=0, shared=tmp_path)
    other.share()
    (own,) = tmp_path.iterdir()
    # As if another living process had written it.
    own.rename(tmp_path / f"metrics-{os.getppid()}-{beginning_of(os.getppid())}.json")

    page = samples(MetricsExporter(ours, port=0, shared=tmp_path).render())

    assert page["requests_total policy=walker route=/predict status=200"] == 2
    assert page["request_seconds_count policy=walker route=/predict"] == 2
    assert page["queue_depth policy=walker"] == 6
    assert page["model_load_seconds policy=walker"] == 2.0
    assert other.url is None


def test_next_page_has_no_less_when_another_worker_renders_it(tmp_path: Path) -> None:
    metrics = Metrics()
    exporter = MetricsExporter(metrics, port=0, shared=tmp_path)
    exporter.share()
    metrics.observe_request("walker", "/predict", 200, 0.01)
    exporter.render()
    (own,) = tmp_path.iterdir()
    # As if the process that rendered the page had been killed.
    own.rename(tmp_path / f"metrics-{os.getpid()}-1.json")

    page = samples(MetricsExporter(Metrics(), port=0, shared=tmp_path).render())

    assert page["requests_total policy=walker route=/predict status=200"] == 1


def test_folder_that_is_gone_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shared"
    metrics = Metrics()
    metrics.observe_request("walker", "/predict", 200, 0.01)
    exporter = MetricsExporter(metrics, port=0, shared=folder)

    for _ in range(3):
        exporter.share()
        page = samples(exporter.render())
    folder.mkdir()
    exporter.share()

    assert page["requests_total policy=walker route=/predict status=200"] == 1
    assert [vars(record)["step"] for record in caplog.records] == ["write", "read"]
    assert len(list(folder.iterdir())) == 1


def test_worker_that_leaves_takes_its_files_along(tmp_path: Path) -> None:
    exporter = MetricsExporter(Metrics(), port=0, shared=tmp_path)
    exporter.share()
    exporter.leave()

    assert list(tmp_path.iterdir()) == []


def test_page_is_served_and_other_paths_are_not() -> None:
    metrics = Metrics()
    metrics.observe_request("", "/", 200, 0.5)

    with exported(metrics) as exporter:
        assert exporter.url is not None
        status, page = get(exporter.url)
        missing, _ = get(exporter.url.replace("/metrics", "/other"))

    assert status == 200
    assert b"policy_server_requests_total" in page
    assert missing == 404
    assert exporter.url is None


RAYS_PAGE = b"""# HELP ray_serve_deployment_replica_healthy Whether the replica is healthy
# TYPE ray_serve_deployment_replica_healthy gauge
ray_serve_deployment_replica_healthy{application="policy-1",replica="a"} 1.0
ray_serve_deployment_replica_healthy{application="policy-1",replica="b"} 1.0
ray_serve_deployment_replica_healthy{application="policy-1",replica="c"} 0.0
# TYPE ray_object_store_memory gauge
ray_object_store_memory{Location="IN_MEMORY"} 0.0
"""


class _Ray(Handler):
    def answer(self) -> None:
        self.reply(200, RAYS_PAGE)


@pytest.fixture
def beside_ray() -> Iterator[MetricsExporter]:
    """An exporter on a free port, beside a Ray that has a page of its own."""
    with answered_by(_Ray) as url, exported(Metrics()) as exporter:
        exporter.foreign_url = lambda: f"{url}/metrics"
        exporter.healthy_replicas = lambda: 2
        yield exporter


def test_page_has_no_metric_of_rays_and_the_number_of_replicas(beside_ray: MetricsExporter) -> None:
    assert beside_ray.url is not None
    _, page = get(beside_ray.url)

    lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
    assert lines
    assert all(line.startswith("policy_server_") for line in lines)
    assert "policy_server_replicas 2.0" in lines


def test_rays_own_page_has_a_path_of_its_own(beside_ray: MetricsExporter) -> None:
    assert beside_ray.url is not None
    status, page = get(f"{beside_ray.url}/ray")

    assert (status, page) == (200, RAYS_PAGE)


def test_rays_page_is_read_past_a_proxy(
    beside_ray: MetricsExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    # For the test's own question.
    monkeypatch.setattr("urllib.request.getproxies", dict)

    assert get(f"{beside_ray.url}/ray") == (200, RAYS_PAGE)


def test_rays_page_is_empty_where_there_is_none() -> None:
    with exported(Metrics()) as exporter:
        assert get(f"{exporter.url}/ray") == (200, b"")


def test_page_stands_without_ray() -> None:
    exporter = MetricsExporter(Metrics(), port=0)
    exporter.foreign_url = lambda: "http://127.0.0.1:9/metrics"

    page = exporter.render()

    assert b"policy_server_stream_connections 0.0" in page
    assert b"\npolicy_server_replicas " not in page


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        pytest.param("127.0.0.2", "127.0.0.2", id="one address"),
        pytest.param("0.0.0.0", "127.0.0.1", id="all of IPv4"),  # noqa: S104 -- the default
        pytest.param("::1", "[::1]", id="IPv6"),
        pytest.param("localhost", "localhost", id="name"),
    ],
)
def test_page_is_served_on_the_host_that_was_asked_for(host: str, shown: str) -> None:
    exporter = MetricsExporter(Metrics(), port=0, host=host)
    exporter.start()
    try:
        assert exporter.url is not None
        assert exporter.url.startswith(f"http://{shown}:")
        assert get(exporter.url)[0] == 200
    finally:
        exporter.stop()


def test_idle_connections_take_no_thread_and_hold_nobody_up() -> None:
    with exported(Metrics()) as exporter, ExitStack() as idle:
        assert exporter.url is not None
        address = ("127.0.0.1", int(exporter.url.split(":")[2].split("/")[0]))
        threads = threading.active_count()
        for _ in range(150):
            idle.enter_context(socket.create_connection(address, timeout=5))
        status, _ = get(exporter.url)

        assert status == 200
        assert threading.active_count() - threads < 10


def test_taken_port_is_an_error() -> None:
    with exported(Metrics()) as exporter:
        assert exporter.url is not None
        port = int(exporter.url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="in use"):
            MetricsExporter(Metrics(), port=port).start()


def test_key_of_metrics_is_asked_for_on_every_page() -> None:
    keys = KeyRing([AccessKey.of("prometheus", "k", "metrics"), AccessKey.of("plant", "p")])
    exporter = MetricsExporter(Metrics(), port=0, keys=keys)
    exporter.start()
    try:
        assert exporter.url is not None
        pages = [exporter.url, f"{exporter.url}/ray", exporter.url.removesuffix("/metrics")]
        refused = [asking.get(page, headers={"access-token": "p"}) for page in pages]
        none = asking.get(exporter.url)
        let_in = [asking.get(page, headers={"authorization": "Bearer k"}) for page in pages]
    finally:
        exporter.stop()

    assert [answer.text for answer in refused] == ["wrong metrics key\n"] * 3
    assert {answer.status_code for answer in [*refused, none]} == {401}
    assert none.headers["www-authenticate"] == "Bearer"
    assert [answer.status_code for answer in let_in] == [200] * 3


async def test_address_that_guesses_keys_of_metrics_is_refused() -> None:
    keys = KeyRing([AccessKey.of("prometheus", "k", "metrics")])
    settings = Settings(metrics_host="127.0.0.1", metrics_port=0, max_address_rate=0.001)
    right, wrong = {"access-token": "k"}, {"access-token": "guess"}
    async with exported_metrics(settings, Metrics(), None, keys=keys) as exporter:
        assert exporter.url is not None
        let_in = [asking.get(exporter.url, headers=right) for _ in range(3)]
        guesses = [asking.get(exporter.url, headers=wrong) for _ in range(3)]
        found = asking.get(exporter.url, headers=right)

    assert [answer.status_code for answer in let_in] == [200] * 3
    assert [answer.status_code for answer in guesses] == [401, 429, 429]
    assert "this address: expected at most 0.001 observations" in guesses[1].text
    assert 900 < int(guesses[1].headers["retry-after"]) <= 1000
    assert "www-authenticate" not in guesses[1].headers
    # A guess that is right looks like the others.
    assert found.status_code == 429


def test_pages_without_a_key_are_shown_at_any_rate() -> None:
    exporter = MetricsExporter(Metrics(), port=0, of_address=ClientLimit(max_rate=0.001))
    exporter.start()
    try:
        assert exporter.url is not None
        answers = [asking.get(exporter.url, headers={"access-token": "x"}) for _ in range(3)]
    finally:
        exporter.stop()

    assert [answer.status_code for answer in answers] == [200] * 3
