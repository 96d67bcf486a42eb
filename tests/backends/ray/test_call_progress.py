"""Whether a replica gets on with its call, by what its process uses."""

from __future__ import annotations

from dataclasses import replace

from policy_server.backends.ray.call_progress import CallProgress
from policy_server.backends.ray_processes import ProcessUse

PROCESS, CALL = 17, 3


class Watched:
    """A process that is watched, by a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.use: ProcessUse | None = ProcessUse(is_stopped=False, is_ready=False, processor_s=5.0)
        self.progress = CallProgress(lambda _: self.use, lambda: self.now)

    def after(self, seconds: float, *, computed_s: float = 0.0, call: int = CALL) -> bool:
        """Return whether it gets on, after so long."""
        self.now += seconds
        if self.use is not None:
            self.use = replace(self.use, processor_s=self.use.processor_s + computed_s)
        return self.progress.is_made(PROCESS, call)


def test_process_gets_on_for_as_long_as_it_computes() -> None:
    watched = Watched()
    found = [watched.after(0.02, computed_s=0.02) for _ in range(100)]

    assert all(found)


def test_process_that_shares_its_processor_gets_on() -> None:
    watched = Watched()
    found = [watched.after(0.02, computed_s=0.01 * (n % 4 == 0)) for n in range(100)]

    assert all(found)


def test_process_that_computes_no_more_is_found_out_in_two_tenths_of_a_second() -> None:
    watched = Watched()
    for _ in range(50):
        watched.after(0.02, computed_s=0.02)
    found = [watched.after(0.02) for _ in range(20)]

    assert found[0]
    assert not any(found[11:])


def test_process_that_is_given_a_little_time_of_a_busy_machine_gets_on() -> None:
    watched = Watched()
    watched.use = ProcessUse(is_stopped=False, is_ready=True, processor_s=5.0)
    found = [watched.after(0.02, computed_s=0.01 * (n % 50 == 0)) for n in range(1000)]

    assert all(found)


def test_process_that_is_ready_and_gets_no_time_at_all_is_found_out_in_four_seconds() -> None:
    watched = Watched()
    watched.use = ProcessUse(is_stopped=False, is_ready=True, processor_s=5.0)
    found = [watched.after(0.02) for _ in range(300)]

    assert found[0]
    assert not any(found[200:])


def test_process_that_goes_on_gets_on() -> None:
    watched = Watched()
    for _ in range(20):
        watched.after(0.02)
    found = [watched.after(0.02, computed_s=0.02) for _ in range(20)]

    assert not found[0]
    assert all(found[11:])


def test_next_call_of_a_process_is_watched_anew() -> None:
    watched = Watched()
    for _ in range(20):
        watched.after(0.02)

    assert watched.after(0.0, call=CALL + 1)


def test_process_that_a_signal_has_stopped_or_of_which_nobody_can_tell_does_not_get_on() -> None:
    watched = Watched()
    watched.after(0.02, computed_s=0.02)
    watched.use = ProcessUse(is_stopped=True, is_ready=False, processor_s=5.0)
    is_stopped = not watched.after(0.02)
    watched.use = None

    assert is_stopped
    assert not watched.after(0.02)
