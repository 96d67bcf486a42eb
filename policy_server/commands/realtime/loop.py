"""A running server in a closed loop: connect, warm up, drive, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from policy_server.commands.client import PolicyClient, check_name
from policy_server.commands.realtime.asked_observations import AskedObservations, observations_of
from policy_server.commands.realtime.connections import (
    Connection,
    HttpConnection,
    Place,
    StreamConnection,
)
from policy_server.commands.realtime.figures import LoopFigures, figures_of
from policy_server.commands.realtime.picture import as_svg, as_text
from policy_server.commands.realtime.ticks import Asked, Ticks, drive
from policy_server.errors import PolicyServerError, ServerAnswerError, UsageError
from policy_server.files.atomic import write_whole

__all__ = ["LoopOptions", "Output", "measure", "realtime"]

_OK = 200
_TRANSPORTS = ("http", "stream")
_WARM_UP = 20
_MOST_HZ, _MOST_TICKS = 100_000, 50_000_000


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """The options of a closed loop.

    Attributes:
        hz: ticks a second.
        seconds: for how long.
        transport: http or stream.
        policies: the names of the policies that each tick asks; empty for the server's default.
        is_deterministic: ask for the mode instead of a draw.
        observation: see `observations_of`.
        deadline_ms: until when after its schedule a tick has to be answered; None for a period.
        spin_us: how long before a tick the processor is kept busy.
    """

    hz: float
    seconds: float
    transport: str
    policies: Sequence[str] = ()
    is_deterministic: bool = False
    observation: str | None = None
    deadline_ms: float | None = None
    spin_us: float = 200.0

    def check(self) -> None:
        """Refuse what can't be driven.

        Raises:
            UsageError: naming the option.
        """
        if not 0 < self.hz <= _MOST_HZ:
            raise UsageError(f"--hz: expected more than 0 and at most {_MOST_HZ}, got {self.hz:g}")
        if not 0 < self.seconds * self.hz <= _MOST_TICKS:
            raise UsageError(
                f"--seconds: expected more than 0, and at most {_MOST_TICKS} ticks in all, got "
                f"{self.seconds:g}"
            )
        for policy in self.policies:
            check_name(policy, "--policy")
        if self.transport not in _TRANSPORTS:
            raise UsageError(
                f"--transport: expected one of {', '.join(_TRANSPORTS)}, got {self.transport!r}"
            )
        if self.deadline_ms is not None and not self.deadline_ms > 0:
            raise UsageError(f"--deadline-ms: expected more than 0, got {self.deadline_ms:g}")
        if not self.spin_us >= 0:
            raise UsageError(f"--spin-us: expected 0 or more, got {self.spin_us:g}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """The form of a report.

    Attributes:
        is_json: one line of JSON in place of text.
        picture: the SVG file to write; None for none.
    """

    is_json: bool
    picture: str | None


def realtime(
    place: Place,
    options: LoopOptions,
    output: Output,
    *,
    read_standard_input: Callable[[], str],
    show: Callable[[int, int], None],
) -> Iterator[str]:
    """Drive a server at a fixed rate, and report what its answers took.

    Args:
        place: where it is.
        options: what is asked, and how often.
        output: the form of the report.
        read_standard_input: gives the text that is piped in.
        show: is told how many ticks of how many are done.

    Yields:
        The lines of the report; of a loop that ended early too.

    Raises:
        UsageError: if an option can't be used.
        ServerAnswerError: if the server can't be reached or refuses; if it is gone in the middle,
            once what was measured is reported.
        KeyboardInterrupt: once what was measured is reported.
    """
    options.check()
    if output.picture is not None and not Path(output.picture).resolve().parent.is_dir():
        raise UsageError(f"--picture: there is no folder for {output.picture!r}")
    ticks, figures = _driven(place, options, read_standard_input, show)
    if figures is not None:
        yield from _report(figures, output)
    if isinstance(ticks.ended, ServerAnswerError):
        raise ServerAnswerError(f"{ticks.ended.message}; {len(ticks)} ticks were answered before")
    if ticks.ended is not None:
        raise ticks.ended


def measure(place: Place, options: LoopOptions) -> LoopFigures:
    """Drive a server at a fixed rate, and return the figures of all ticks.

    Args:
        place: where it is.
        options: what is asked, and how often.

    Raises:
        ServerAnswerError: if the server can't be reached or refuses, or is gone in the middle.
    """
    ticks, figures = _driven(place, options, str, lambda _done, _total: None)
    if ticks.ended is not None:
        raise ticks.ended
    assert figures is not None, "all ticks were answered"
    return figures


def _driven(
    place: Place,
    options: LoopOptions,
    read_standard_input: Callable[[], str],
    show: Callable[[int, int], None],
) -> tuple[Ticks, LoopFigures | None]:
    """Connect to each policy and drive it; the figures are None where no tick was answered."""
    names: Sequence[str | None] = options.policies or [None]
    with ExitStack() as stack:
        policies = [
            stack.enter_context(_asked(place, options, name, read_standard_input)) for name in names
        ]
        ticks = drive(
            policies,
            hz=options.hz,
            seconds=options.seconds,
            spin_s=options.spin_us / 1e6,
            show=show,
        )
    way = "TCP" if place.uds is None else "UNIX socket"
    return ticks, figures_of(
        ticks,
        [policy.name for policy in policies],
        transport=f"{options.transport} over {way}",
        deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1000,
    )


@contextmanager
def _asked(
    place: Place, options: LoopOptions, name: str | None, read_standard_input: Callable[[], str]
) -> Iterator[Asked]:
    with (
        PolicyClient(place.url, place.key, policy=name, uds=place.uds) as client,
        ExitStack() as stack,
    ):
        schema = client.schema()
        observations = observations_of(
            client, schema, options.observation, read_standard_input=read_standard_input
        )
        session = _session(client, schema, options, stack)
        # The client words a refusal; a question changes nothing.
        client.post(_route("", options, observations), observations.bodies[0])
        connection = _connection(place, client.prefix + session, options, observations)
        stack.callback(connection.close)
        found = Asked(
            name or "the default policy",
            connection,
            [connection.encode(body) for body in observations.bodies],
        )
        _warm_up(found, place)
        yield found


def _session(
    client: PolicyClient, schema: Mapping[str, Any], options: LoopOptions, stack: ExitStack
) -> str:
    """Begin a session where a policy with memory is asked by requests; return its route."""
    if options.transport == "stream" or not schema["policy"]["memory_width"]:
        return ""
    session = f"/sessions/{client.post('/sessions', b'')['session_id']}"

    def end() -> None:
        # The server may be gone.
        with suppress(PolicyServerError):
            client.delete(session)

    stack.callback(end)
    return session


def _connection(
    place: Place, prefix: str, options: LoopOptions, observations: AskedObservations
) -> Connection:
    route = _route(prefix, options, observations)
    if options.transport == "stream":
        return StreamConnection(place, f"{route}/stream")
    return HttpConnection(place, route)


def _route(prefix: str, options: LoopOptions, observations: AskedObservations) -> str:
    kind = "predict_deterministic" if options.is_deterministic else "predict"
    return f"{prefix}/{kind}{'_raw' if observations.is_raw else ''}"


def _warm_up(policy: Asked, place: Place) -> None:
    """Ask some times: of the first requests on a connection the server learns their head."""
    for index in range(_WARM_UP):
        status, answer = policy.connection.ask(policy.requests[index % len(policy.requests)])
        if status != _OK:
            detail = orjson.loads(answer).get("detail")
            raise ServerAnswerError(f"{place.where}: answered {status}: {detail}")


def _report(figures: LoopFigures, output: Output) -> Iterator[str]:
    if output.is_json:
        yield orjson.dumps(figures.as_json()).decode()
    else:
        yield from as_text(figures)
    if output.picture is not None:
        try:
            write_whole(Path(output.picture), as_svg(figures))
        except OSError as error:
            raise UsageError(f"--picture: {output.picture}: {error.strerror}") from error
        if not output.is_json:
            yield ""
            yield f"wrote {output.picture}"
