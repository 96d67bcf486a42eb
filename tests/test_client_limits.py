"""The limits of a client: rates, requests in flight, and how many clients are remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.client_limits import NO_SHARE, ClientLimit, ClientLimits, client_name
from policy_server.errors import TooManyRequestsError

PLANT = AccessKey.of("plant", "plant key")
OPS = AccessKey.of("ops", "ops key")
ADDRESS = "10.0.0.1"
NO_LIMIT = ClientLimit()


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits_of(
    clock: Clock,
    *keys: AccessKey,
    of_key: ClientLimit = NO_LIMIT,
    of_address: ClientLimit = NO_LIMIT,
) -> ClientLimits:
    ring = KeyRing(keys or (PLANT, OPS))
    return ClientLimits(ring, of_key=of_key, of_address=of_address, clock=clock)


def asked(limits: ClientLimits, times: int, *, address: str = ADDRESS) -> int:
    """Return how many of some requests are taken, each of which is answered at once."""
    taken = 0
    for _ in range(times):
        try:
            limits.begin("plant", address).end()
        except TooManyRequestsError:
            continue
        taken += 1
    return taken


def test_without_limits_no_client_is_remembered(clock: Clock) -> None:
    limits = limits_of(clock)

    assert limits.begin("plant", ADDRESS) is NO_SHARE
    assert (limits.is_on, len(limits)) == (False, 0)


def test_key_may_ask_the_work_of_a_second_at_once_and_then_at_its_rate(clock: Clock) -> None:
    limits = limits_of(clock, of_key=ClientLimit(max_rate=5))
    counts = [asked(limits, 20)]
    for seconds in (0.4, 0.2, 60.0):
        clock.now += seconds
        counts.append(asked(limits, 20))

    assert counts == [5, 2, 1, 5]


def test_slow_rate_takes_one_request_in_its_time(clock: Clock) -> None:
    limits = limits_of(clock, of_key=ClientLimit(max_rate=0.1))
    limits.begin("plant", None).end()

    with pytest.raises(TooManyRequestsError) as caught:
        limits.begin("plant", None)
    clock.now += 10

    assert caught.value.headers == {"retry-after": "10"}
    assert (
        caught.value.message
        == "key 'plant': expected at most 0.1 observations a second, got more; try again in 10 s"
    )
    assert caught.value.reason == "key_rate"
    assert asked(limits, 2) == 1


@pytest.mark.parametrize("rate", [1e-6, 1e-320])
def test_client_is_told_to_wait_for_a_day_at_the_most(clock: Clock, rate: float) -> None:
    limits = limits_of(clock, of_key=ClientLimit(max_rate=rate))
    limits.begin("plant", None).charge(100_000)

    with pytest.raises(TooManyRequestsError) as caught:
        limits.begin("plant", None)

    assert caught.value.headers == {"retry-after": "86400"}


def test_large_batch_is_paid_off_later(clock: Clock) -> None:
    limits = limits_of(clock, of_key=ClientLimit(max_rate=8))
    share = limits.begin("plant", ADDRESS)
    share.charge(87)
    share.end()
    with pytest.raises(TooManyRequestsError) as caught:
        limits.begin("plant", ADDRESS)
    clock.now += 10.0
    counts = [asked(limits, 5)]
    clock.now += 0.125
    counts.append(asked(limits, 5))

    assert caught.value.headers == {"retry-after": "11"}
    assert counts == [0, 1]


def test_request_without_observations_counts_as_one_and_a_refunded_one_as_none(
    clock: Clock,
) -> None:
    limits = limits_of(clock, of_address=ClientLimit(max_rate=2))

    limits.begin(None, ADDRESS).refund()
    limits.begin(None, ADDRESS).charge(-1)

    assert asked(limits, 3) == 1


def test_requests_in_flight_are_limited_until_they_end(clock: Clock) -> None:
    limits = limits_of(clock, of_key=ClientLimit(max_in_flight=2))
    first, _second = limits.begin("plant", ADDRESS), limits.begin("plant", ADDRESS)
    with pytest.raises(TooManyRequestsError) as caught:
        limits.begin("plant", ADDRESS)
    other = limits.begin("ops", ADDRESS)
    first.end()
    first.end()
    limits.begin("plant", ADDRESS)
    with pytest.raises(TooManyRequestsError):
        limits.begin("plant", ADDRESS)

    assert other is not NO_SHARE
    assert caught.value.reason == "key_in_flight"
    assert caught.value.headers == {"retry-after": "1"}
    assert (
        caught.value.message == "key 'plant': 2 requests are being answered already, the most at a "
        "time; try again when one is answered"
    )


def test_request_that_the_key_may_not_ask_costs_its_address_nothing(clock: Clock) -> None:
    limits = limits_of(
        clock, of_key=ClientLimit(max_rate=1), of_address=ClientLimit(max_rate=3, max_in_flight=3)
    )

    taken = asked(limits, 20)
    of_others = [limits.begin("ops", ADDRESS), limits.begin(None, ADDRESS)]
    with pytest.raises(TooManyRequestsError, match="this address: expected at most 3 obs") as found:
        limits.begin(None, ADDRESS)

    assert (taken, len(of_others)) == (1, 2)
    assert found.value.reason == "address_rate"


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        pytest.param("10.0.0.1", "10.0.0.2", False, id="IPv4"),
        pytest.param("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True, id="one network of IPv6"),
        pytest.param("2001:db8:1:2::1", "2001:db8:1:3::1", False, id="two networks of IPv6"),
        pytest.param("::ffff:10.0.0.1", "10.0.0.1", True, id="IPv4 in IPv6"),
        pytest.param("::ffff:10.0.0.1", "::ffff:10.0.0.2", False, id="two IPv4 in IPv6"),
        pytest.param("_hidden", "_secret", False, id="names"),
    ],
)
def test_address_is_a_client_by_its_network(
    clock: Clock, one: str, other: str, *, are_one: bool
) -> None:
    limits = limits_of(clock, of_address=ClientLimit(max_rate=1))

    assert asked(limits, 2, address=one) == 1
    assert asked(limits, 2, address=other) == (0 if are_one else 1)


def test_addresses_are_forgotten_beyond_a_number_the_longest_idle_first(clock: Clock) -> None:
    limits = limits_of(clock, of_address=ClientLimit(max_rate=1))
    asked(limits, 1, address="10.255.0.1")
    asked(limits, 1, address="10.255.0.2")
    for number in range(9_999):
        asked(limits, 1, address=f"10.0.{number // 256}.{number % 256}")
        asked(limits, 1, address="10.255.0.2")

    assert len(limits) == 10_000
    assert asked(limits, 1, address="10.255.0.2") == 0
    assert asked(limits, 1, address="10.255.0.1") == 1


def test_unknown_address_has_no_limit(clock: Clock) -> None:
    limits = limits_of(clock, of_address=ClientLimit(max_rate=1))

    assert [limits.begin(None, None) for _ in range(3)] == [NO_SHARE] * 3


def test_key_has_its_own_limits_in_place_of_the_usual_ones(clock: Clock) -> None:
    keys = (
        replace(PLANT, max_rate=4.0),
        replace(OPS, max_rate=0.0, max_in_flight=0),
    )
    limits = limits_of(clock, *keys, of_key=ClientLimit(max_rate=2, max_in_flight=3))
    held = [limits.begin("plant", None) for _ in range(3)]
    with pytest.raises(TooManyRequestsError, match="3 requests are being answered"):
        limits.begin("plant", None)
    held.pop().end()
    limits.begin("plant", None).end()

    with pytest.raises(TooManyRequestsError, match="at most 4 observations"):
        limits.begin("plant", None)
    assert limits.begin("ops", None) is NO_SHARE


def test_limits_follow_the_keys_and_what_was_asked_stays_counted(clock: Clock) -> None:
    ring = KeyRing([PLANT])
    limits = ClientLimits(ring, of_key=ClientLimit(), of_address=ClientLimit(), clock=clock)
    was_on = limits.is_on
    ring.replace([replace(PLANT, max_rate=3.0, max_in_flight=1)])
    held = limits.begin("plant", None)
    ring.replace([replace(PLANT, max_rate=2.0, max_in_flight=1), OPS])
    with pytest.raises(TooManyRequestsError, match="1 requests"):
        limits.begin("plant", None)
    held.end()

    assert (was_on, limits.is_on) == (False, True)
    assert asked(limits, 5) == 2
    ring.replace([PLANT])
    assert asked(limits, 5) == 5
    assert not limits.is_on


@pytest.mark.parametrize(
    ("key", "address", "expected"),
    [
        ("plant", ADDRESS, "key:plant"),
        (None, ADDRESS, f"address:{ADDRESS}"),
        (None, "2001:db8::1", client_name(None, "2001:db8::2")),
        (None, None, ""),
    ],
)
def test_client_has_the_name_of_its_key_or_else_its_network(
    key: str | None, address: str | None, expected: str
) -> None:
    assert client_name(key, address) == expected
