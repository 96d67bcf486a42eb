"""The ledger of a cluster: what goes is what nobody uses and another version replaces."""

from __future__ import annotations

import pytest

from policy_server.backends.ray.cluster_ledger import LedgerBook

OLD, NEW = "policy-default-000000000000", "policy-default-111111111111"
OTHER = "policy-default-b-222222222222"
SOMEBODYS = "recommender"
# Longer than a server may be silent.
LONG_S = 60.0


class Cluster:
    """Ray Serve's applications, and a clock."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.now = 1000.0
        self.book = LedgerBook(self.names.remove, lambda: list(self.names), lambda: self.now)

    def wait(self, seconds: float = LONG_S) -> None:
        """Let time pass."""
        self.now += seconds


@pytest.fixture
def cluster() -> Cluster:
    """Return a cluster with two versions of a policy, another policy, and somebody's own."""
    cluster = Cluster(OLD, NEW, OTHER, SOMEBODYS)
    cluster.wait()
    return cluster


def test_version_that_nobody_uses_goes_when_another_has_its_place(cluster: Cluster) -> None:
    cluster.book.enter("a", [NEW])

    cluster.book.remove_replaced(NEW)

    assert cluster.names == [NEW, OTHER, SOMEBODYS]


def test_version_that_another_server_uses_stays_until_it_has_gone(cluster: Cluster) -> None:
    cluster.book.enter("a", [NEW])
    cluster.book.enter("b", [OLD])

    cluster.book.remove_replaced(NEW)
    while_used = list(cluster.names)
    cluster.book.leave("b", OLD, False)  # noqa: FBT003 -- Ray's calls are positional here
    cluster.book.remove_replaced(NEW)

    assert while_used == [OLD, NEW, OTHER, SOMEBODYS]
    assert cluster.names == [NEW, OTHER, SOMEBODYS]


def test_server_that_is_not_heard_of_any_more_uses_nothing(cluster: Cluster) -> None:
    cluster.book.enter("a", [NEW])
    cluster.book.enter("b", [OLD])

    cluster.wait()
    cluster.book.remove_replaced(NEW)

    assert cluster.names == [NEW, OTHER, SOMEBODYS]


def test_ledger_that_was_restarted_hears_everybody_before_it_removes() -> None:
    cluster = Cluster(OLD, NEW)
    cluster.book.enter("a", [NEW])

    cluster.book.remove_replaced(NEW)

    assert cluster.names == [OLD, NEW]


def test_retired_version_goes_with_its_last_user(cluster: Cluster) -> None:
    cluster.book.enter("a", [OLD])
    cluster.book.enter("b", [OLD])

    cluster.book.leave("a", OLD, True)  # noqa: FBT003
    while_used = list(cluster.names)
    cluster.book.leave("b", OLD, True)  # noqa: FBT003

    assert OLD in while_used
    assert OLD not in cluster.names


def test_version_outlives_the_servers_that_end(cluster: Cluster) -> None:
    cluster.book.enter("a", [NEW])

    cluster.book.leave("a", NEW, False)  # noqa: FBT003

    assert NEW in cluster.names


def test_one_server_at_a_time_deploys_a_version(cluster: Cluster) -> None:
    book = cluster.book

    first = [book.begin("a", NEW), book.begin("b", NEW), book.begin("b", OTHER)]
    book.end("b", NEW)
    still = book.begin("b", NEW)
    book.end("a", NEW)
    then = book.begin("b", NEW)

    assert first == [True, False, True]
    assert (still, then) == (False, True)


def test_server_that_died_while_it_deployed_holds_nobody_up(cluster: Cluster) -> None:
    cluster.book.begin("a", NEW)

    cluster.wait()

    assert cluster.book.begin("b", NEW)


def test_server_that_deploys_for_long_and_is_heard_of_keeps_others_waiting(
    cluster: Cluster,
) -> None:
    cluster.book.begin("a", NEW)

    for _ in range(10):
        cluster.wait(20)
        cluster.book.enter("a", [NEW])

    assert not cluster.book.begin("b", NEW)


def test_server_hears_which_files_are_lost(cluster: Cluster) -> None:
    cluster.book.store(NEW, {"saved_model.pb": []})

    assert cluster.book.enter("a", [NEW, OTHER]) == [OTHER]
    assert cluster.book.files(NEW) == {"saved_model.pb": []}
    assert cluster.book.files(OTHER) is None
