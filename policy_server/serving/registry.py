"""All policies of a server, by name."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from policy_server.errors import SettingsError
from policy_server.serving.slot import PolicySlot

__all__ = ["PolicyRegistry"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class PolicyRegistry:
    """The slots of a server's policies, by name; one of them is the default.

    Attributes:
        default: the slot that answers where a request names no policy.
    """

    def __init__(self, slots: Sequence[PolicySlot], *, default: str | None = None) -> None:
        """Own the slots while `running`.

        Args:
            slots: at least one, each with a name of its own.
            default: the default policy's name; None takes the first one.

        Raises:
            SettingsError: if a name can't stand in an address, or stands for two policies.
        """
        self._slots: dict[str, PolicySlot] = {}
        for slot in slots:
            if _NAME.fullmatch(slot.name) is None:
                raise SettingsError(
                    f"policies: {slot.name!r} can't stand in an address; use up to 63 letters, "
                    "digits, '-' and '_'"
                )
            if slot.name in self._slots:
                raise SettingsError(f"policies: {slot.name!r} stands for two policies; rename one")
            self._slots[slot.name] = slot
        self.default = slots[0] if default is None else self._slots[default]

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

        Raises:
            PolicyServerError: if a policy can't be loaded.
        """
        async with AsyncExitStack() as stack:
            for slot in self:
                await slot.start()
                stack.push_async_callback(slot.aclose)
            yield

    async def is_ready(self) -> bool:
        """Return whether every policy would answer a question now."""
        for slot in self:
            if not await slot.is_ready():
                return False
        return True
