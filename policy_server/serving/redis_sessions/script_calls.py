"""The connection of a web process to Redis, on which scripts run in the order of their calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import (
    NoScriptError,
    RedisError,
    ResponseError,
)

from policy_server.errors import SessionStoreError, SettingsError
from policy_server.serving.redis_sessions.redis_failures import (
    describe_failure,
    is_elsewhere,
    store_failure,
    system_failure,
)
from policy_server.serving.redis_sessions.scripts import Script
from policy_server.settings import ENV_PREFIX

__all__ = ["Argument", "RedisScripts"]

logger = logging.getLogger(__name__)

Argument: TypeAlias = bytes | str | int


# A Redis in the same network answers in a millisecond.
_TIMEOUT_S = 1.0
# How soon a Redis that has failed is tried again.
_PAUSE_S = 0.5
# One that refuses some calls goes on with others.
_QUIET_S = 5.0
_MOST_CALLS = 256
_MOMENT_S = 0.05


@dataclass(eq=False, slots=True)
class _Call:
    """A call of a script, and the answer that its caller waits for; None if nobody does."""

    script: Script
    arguments: Sequence[Argument]
    answer: asyncio.Future[Any] | None

    def give(self, found: object) -> None:
        if self.answer is None or self.answer.done():
            return
        if isinstance(found, Exception):
            self.answer.set_exception(found)
        else:
            self.answer.set_result(found)


class RedisScripts:
    """Runs scripts in one Redis, for one event loop.

    Calls that are made during a round trip share the next one. All of them reach Redis in the order
    in which they were made, one whose caller was cancelled too. Where the connection is lost, a
    call may reach Redis twice: a script has to bear that.

    A Redis that fails is tried again from time to time, and until it answers calls fail at once. So
    a call takes at the most two round trips of `timeout_s`: that before it, and its own.
    """

    def __init__(
        self,
        url: SecretStr,
        *,
        timeout_s: float = _TIMEOUT_S,
        pause_s: float = _PAUSE_S,
        quiet_s: float = _QUIET_S,
    ) -> None:
        """Own the connection, from the first call to `aclose`.

        Args:
            url: the address of the Redis, as the setting has it.
            timeout_s: the longest time that a round trip may take, in seconds.
            pause_s: how long after a failure Redis is tried again, in seconds.
            quiet_s: for how long Redis refuses nothing before its refusals are over, in seconds.

        Raises:
            SettingsError: if the URL can't be used.
        """
        self._connection = _connection_of(url)
        self._place = _place_of(url)
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None
        self._quiet_s = quiet_s
        self._failed: str | None = None
        self._trying: asyncio.Task[None] | None = None
        # What nobody waits for, and Redis did not answer.
        self._owed: list[_Call] = []
        # The reasons that were logged since Redis was reachable last.
        self._told: set[str] = set()
        self._refused_at: float | None = None

    @property
    def is_answered(self) -> bool:
        """Return whether Redis has answered since it failed last."""
        return self._trying is None

    def call(self, script: Script, key: str, *arguments: Argument) -> asyncio.Future[Any]:
        """Run a script.

        Args:
            script: the script.
            key: the key that it is about.
            arguments: its arguments.

        Returns:
            A future of its answer, which fails with a `SessionStoreError`. Whoever cancels it takes
            nothing back.

        Raises:
            SessionStoreError: if Redis fails already: the script was not sent.
        """
        if not self.is_answered:
            raise self._failure()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send_soon(_Call(script, (key, *arguments), answer))
        return answer

    def tell(self, script: Script, key: str, *arguments: Argument) -> None:
        """Run a script whose answer nobody waits for: now, or before all others once Redis answers.

        See `call`.
        """
        call = _Call(script, (key, *arguments), None)
        if self.is_answered:
            self._send_soon(call)
        else:
            self._owed.append(call)

    async def aclose(self) -> None:
        """Wait for the calls so far, and close the connection."""
        if self._sending is not None:
            await self._sending
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.wait([self._trying])
        await self._disconnect()

    def _send_soon(self, call: _Call) -> None:
        self._waiting.append(call)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        calls: list[_Call] = []
        try:
            while self._waiting:
                calls = self._waiting[:_MOST_CALLS]
                del self._waiting[:_MOST_CALLS]
                try:
                    async with _time_limit(self._timeout_s):
                        await self._exchange(calls)
                except (RedisError, OSError, ValueError) as error:
                    await self._fail(error)
                    self._trying = asyncio.create_task(self._try())
                    break
        finally:
            self._sending = None
            waiting, self._waiting = self._waiting, []
            self._refuse([*calls, *waiting])

    def _refuse(self, calls: Iterable[_Call]) -> None:
        for call in calls:
            if call.answer is None:
                self._owed.append(call)
            else:
                call.give(self._failure())

    def _failure(self) -> SessionStoreError:
        return store_failure(self._failed or "does not answer")

    async def _fail(self, error: Exception) -> None:
        await self._disconnect()
        self._note_failure(error)

    async def _try(self) -> None:
        """Try to reach Redis until it answers, and make up for what it was told meanwhile.

        It is asked for nothing else before: a Redis that stood still runs all that has reached it
        when it goes on, such as turns of sessions which nobody waits for any more.
        """
        while not self.is_answered:
            await asyncio.sleep(self._pause_s)
            try:
                async with _time_limit(self._timeout_s):
                    await self._connection.connect()
                    await self._ask([("PING",)])
                while owed := self._owed[:_MOST_CALLS]:
                    async with _time_limit(self._timeout_s):
                        await self._round_trip(owed)
                    del self._owed[: len(owed)]
            except (RedisError, OSError, ValueError) as error:
                await self._fail(error)
            else:
                self._trying = None

    async def _exchange(self, calls: Sequence[_Call]) -> None:
        """Send calls, and hand their answers over.

        A connection that was there before may be lost by now: then they are sent on a new one.
        """
        was_connected = self._connection.is_connected
        try:
            found = await self._round_trip(calls)
        except LostConnectionError:
            if not was_connected:
                raise
            await self._disconnect()
            found = await self._round_trip(calls)
        failure = next((item for item in found if isinstance(item, ResponseError)), None)
        if failure is None:
            self._note_answers(calls)
        else:
            self._note_failure(failure)
            if is_elsewhere(failure):
                await self._disconnect()
        for call, item in zip(calls, found, strict=True):
            is_error = isinstance(item, Exception)
            call.give(store_failure(self._describe(item)) if is_error else item)

    async def _round_trip(self, calls: Sequence[_Call]) -> list[Any]:
        await self._connection.connect()
        found = await self._ask([("EVALSHA", c.script.digest, 1, *c.arguments) for c in calls])
        # Redis forgets scripts when it ends.
        forgotten = [i for i, item in enumerate(found) if isinstance(item, NoScriptError)]
        if forgotten:
            again = [("EVAL", calls[i].script.text, 1, *calls[i].arguments) for i in forgotten]
            for i, item in zip(forgotten, await self._ask(again), strict=True):
                found[i] = item
        return found

    async def _ask(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        connection = self._connection
        packed = connection.pack_commands(commands)
        await connection.send_packed_command(packed, check_health=False)
        found: list[Any] = []
        for _ in commands:
            try:
                found.append(await connection.read_response())
            except ResponseError as error:
                found.append(error)
        return found

    def _describe(self, error: Exception) -> str:
        return describe_failure(error, timeout_s=self._timeout_s)

    def _note_failure(self, error: Exception) -> None:
        """Log each reason once, until Redis is reachable again."""
        self._failed = reason = self._describe(error)
        is_refusal = isinstance(error, ResponseError)
        self._refused_at = asyncio.get_running_loop().time() if is_refusal else None
        if reason not in self._told:
            self._told.add(reason)
            known = {"reason": f"it {reason}", "system": system_failure(error)}
            logger.warning("sessions_unreachable", extra={"redis": self._place, **known})

    def _note_answers(self, calls: Iterable[_Call]) -> None:
        """Log the end of failures, once.

        A Redis that refuses some calls answers others all the while: the refusals are over when
        none has come for some time, and it takes what a full one or a replica would not.
        """
        self._failed = None
        if not self._told:
            return
        if self._refused_at is not None:
            seconds = asyncio.get_running_loop().time() - self._refused_at
            if seconds < self._quiet_s or not any(call.script.takes_room for call in calls):
                return
        self._told.clear()
        self._refused_at = None
        logger.info("sessions_reachable", extra={"redis": self._place})

    async def _disconnect(self) -> None:
        with suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)


@asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    """Raise a TimeoutError in a block that takes longer.

    An event loop that stood still meanwhile may have the answer already: it gets a moment to read.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + _MOMENT_S))
        try:
            yield
        finally:
            timer.cancel()


def _connection_of(url: SecretStr) -> Connection:
    """Return a connection that nothing has opened yet."""
    try:
        options: dict[str, Any] = {**parse_url(url.get_secret_value())}
        made = options.pop("connection_class", Connection)
        connection: Connection = made(
            **options,
            protocol=2,
            driver_info=None,
            socket_timeout=None,
            socket_connect_timeout=None,
        )
    except (TypeError, ValueError, RedisError):
        # The reason may hold the password.
        raise SettingsError(
            f"{ENV_PREFIX}SESSIONS_URL: has an option that the client of Redis does not take"
        ) from None
    return connection


def _place_of(url: SecretStr) -> str:
    """Return the address without its user, password and options."""
    parts = urlsplit(url.get_secret_value())
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
