"""The routes as data: addresses, access, limits, and names that several policies don't share."""

from __future__ import annotations

import pytest

from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.web.route_table import AnswerRoute, RouteTable
from tests.support.fakes import integer_backend, registry_of, slot_of

NAMED = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
FLAT = parse_schema("parameters: {discrete: True}")


def table_of(*names: str) -> RouteTable:
    """Return the routes of policies with named observations."""
    return RouteTable(PolicyRegistry([slot_of(integer_backend(), NAMED, name=n) for n in names]))


def test_one_policy_has_the_short_addresses_alone() -> None:
    paths = [route.path for route in table_of("door")]

    assert "/predict_deterministic_raw/batch" in paths
    assert len(paths) == len(set(paths)) == 11 + 3 * 2 * 4 + 1 + 3
    assert not any(path.startswith("/policies/") for path in paths)


def test_policy_without_named_observations_has_flat_routes_alone() -> None:
    table = RouteTable(registry_of(integer_backend(), FLAT))

    assert {route.form for route in table.answering("single", "batch", "stream")} == {"raw"}
    assert table.find("/predict") is None


@pytest.mark.parametrize(
    ("path", "policy", "namespace"),
    [
        ("/distribution/batch", "door", ""),
        ("/policies/door/distribution/batch", "door", "door"),
        ("/policies/lift-2/distribution/batch", "lift-2", "lift-2"),
    ],
    ids=["short", "default", "other"],
)
def test_several_policies_have_addresses_of_their_own(
    path: str, policy: str, namespace: str
) -> None:
    route = table_of("door", "lift-2").find(path)

    assert isinstance(route, AnswerRoute)
    assert (route.policy, route.namespace) == (policy, namespace)
    assert (route.kind, route.form, route.transport) == ("distribution", "named", "batch")
    assert (route.access, route.body_limit) == ("key", "batch")


def test_operations_have_names_that_no_two_share() -> None:
    table = table_of("door", "lift-2")

    names = [route.operation for route in table.answering("single", "batch")]

    assert len(names) == len(set(names))
    assert {"predict_raw_batch", "door_predict", "lift_2_predict_raw_batch"} <= set(names)


@pytest.mark.parametrize(
    ("path", "label", "access"),
    [
        ("/", "/", "open"),
        ("/readyz", "/readyz", "open"),
        ("/static/swagger/swagger-ui.css", "/static/*", "open"),
        ("/clients", "/clients", "key"),
        ("/clients/python", "/clients/*", "key"),
        ("/schema", "/schema", "key"),
    ],
)
def test_page_is_found_with_its_label_and_access(path: str, label: str, access: str) -> None:
    route = table_of("door").find(path)

    assert route is not None
    assert (route.label, route.access) == (label, access)


@pytest.mark.parametrize(
    "path", ["/nothing", "/static", "/predict/batch/x", "/policies/door/predict"]
)
def test_address_that_is_none_is_not_found(path: str) -> None:
    assert table_of("door").find(path) is None
