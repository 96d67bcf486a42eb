"""The warning about a key that everybody can read."""

from __future__ import annotations

import logging

import pytest
import yaml

from policy_server.access_keys import AccessKey
from policy_server.public_key import PUBLIC_KEY, host_of, warn_of_public_key
from tests.support.folders import ROOT


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "policy.example.com", ""])  # noqa: S104 -- what is warned of
def test_public_key_on_the_network_is_warned_of(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_public_key(
        [AccessKey.of("plant", "my own"), AccessKey.of("api_key", PUBLIC_KEY)], host=host
    )

    [record] = caplog.records
    assert (record.levelno, record.message) == (logging.WARNING, "public_api_key")
    assert "POLICY_SERVER_API_KEY" in vars(record)["reason"]
    assert PUBLIC_KEY not in vars(record)["reason"]


@pytest.mark.parametrize(
    ("api_key", "host"),
    [
        (PUBLIC_KEY, "127.0.0.1"),
        (PUBLIC_KEY, "::1"),
        (PUBLIC_KEY, "[::1]"),
        (PUBLIC_KEY, "localhost"),
        ("my own", "0.0.0.0"),  # noqa: S104 -- what is not warned of
        (None, "0.0.0.0"),  # noqa: S104 -- likewise
    ],
)
def test_own_keys_and_servers_of_this_machine_are_not_warned_of(
    api_key: str | None, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [] if api_key is None else [AccessKey.of("api_key", api_key)]
    warn_of_public_key(keys, host=host)

    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        pytest.param(["uvicorn", "app:app"], {}, "127.0.0.1", id="default"),
        pytest.param(["uvicorn", "--host", "0.0.0.0"], {}, "0.0.0.0", id="option"),  # noqa: S104 -- what is told
        pytest.param(["uvicorn", "--host=::"], {"UVICORN_HOST": "a"}, "::", id="option-wins"),
        pytest.param(["uvicorn", "--host"], {"UVICORN_HOST": "a"}, "a", id="variable"),
    ],
)
def test_host_is_uvicorns(arguments: list[str], environment: dict[str, str], expected: str) -> None:
    assert host_of(arguments, environment) == expected


def test_public_key_is_that_of_every_example_and_page() -> None:
    schemas = list(ROOT.glob("examples/*/schema.yaml"))
    keys = {yaml.safe_load(path.read_text())["parameters"]["api_key"] for path in schemas}

    assert keys == {PUBLIC_KEY}
    assert PUBLIC_KEY in (ROOT / "README.md").read_text()
    assert PUBLIC_KEY in (ROOT / "deploy/compose/guard.sh").read_text()
