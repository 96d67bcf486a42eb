"""All policies of a server, by name."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from policy_server.errors import PolicyServerError, SettingsError
from policy_server.schema import AgentPolicies, can_stand_in_an_address
from policy_server.serving.slot import PolicySlot

__all__ = ["PolicyRegistry"]

logger = logging.getLogger(__name__)


class PolicyRegistry:
    """The slots of a server's policies, by name; one of them is the default.

    Attributes:
        default: the slot that answers where a request names no policy.
        is_named: whether people have named the policies, so that the names stand in addresses.
        agents: the policies of a team's agents; None where there is no team.
        is_ending: whether the server has been told to end; requests are still answered.
    """

    def __init__(
        self,
        slots: Sequence[PolicySlot],
        *,
        default: str | None = None,
        is_named: bool | None = None,
        agents: AgentPolicies | None = None,
    ) -> None:
        """Own the slots while `running`.

        Args:
            slots: at least one, each with a name of its own.
            default: the default policy's name; None takes the first one.
            is_named: whether people have named the policies; None if there are several.
            agents: the policies of a team's agents; None for no team.

        Raises:
            SettingsError: if a name can't stand in an address, or stands for two policies.
        """
        self._slots: dict[str, PolicySlot] = {}
        for slot in slots:
            if not can_stand_in_an_address(slot.name):
                raise SettingsError(
                    f"policies: {slot.name!r} can't stand in an address; use up to 63 letters, "
                    "digits, '-' and '_', beginning with a letter or digit"
                )
            if slot.name in self._slots:
                raise SettingsError(f"policies: {slot.name!r} stands for two policies; rename one")
            self._slots[slot.name] = slot
        self.default = slots[0] if default is None else self._slots[default]
        self.is_named = len(slots) > 1 if is_named is None else is_named
        self.agents = agents
        self.is_ending = False

    def __iter__(self) -> Iterator[PolicySlot]:
        """Iterate over the slots in their order."""
        return iter(self._slots.values())

    def __len__(self) -> int:
        """Return the number of policies."""
        return len(self._slots)

    def __getitem__(self, name: str) -> PolicySlot:
        """Return the slot of a policy.

        Args:
            name: the policy's name.

        Raises:
            KeyError: if there is none of that name.
        """
        return self._slots[name]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load every policy, answer until the block ends, then drain and unload all.

        A policy that can't be loaded leaves the others serving: its slot says why.

        Raises:
            PolicyServerError: if no policy can be loaded.
        """
        async with AsyncExitStack() as stack:
            for slot in self:
                stack.push_async_callback(slot.aclose)
                try:
                    await slot.start()
                except PolicyServerError as error:
                    logger.error(  # noqa: TRY400 -- the message says it all
                        "policy_not_served", extra={"policy": slot.name, "reason": error.message}
                    )
                    if all(other.failure is not None for other in self):
                        raise
            yield

    def note_ending(self) -> None:
        """Say from now on that no more requests should come; those that do are answered."""
        self.is_ending = True

    async def is_ready(self) -> bool:
        """Return whether every policy that could be loaded would answer a question now."""
        for slot in self:
            if slot.failure is None and not await slot.is_ready():
                return False
        return True

    def lost(self) -> str | None:
        """Return the name of a policy that only another process would answer for; None for none.

        One is enough: the server is not ready without it, so that nobody asks it for the others.
        """
        return next((slot.name for slot in self if slot.is_lost()), None)

    @property
    def failures(self) -> Mapping[str, str]:
        """Return the reason of each policy that could not be loaded, by name."""
        return {slot.name: slot.failure for slot in self if slot.failure is not None}
