"""Ray Serve's handle of an application, as the server calls it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayTaskError

from policy_server.errors import PolicyFailedError, PolicyServerError

__all__ = ["Handle"]

logger = logging.getLogger(__name__)


class Handle:
    """Ray Serve's handle of an application, whose answers are values or errors of ours."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 -- Ray's handle is generic
        """Own the handle; its router, in this loop, from the first call to `aclose`.

        Args:
            handle: Ray Serve's own, which nothing else uses.
        """
        self._handle = handle
        self._options: Mapping[str, Any] | None = None
        self._methods: dict[str, Any] = {}

    async def call(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401 -- what the method returns
        """Call a method of any replica.

        Args:
            method: one of `PolicyReplica`.
            arguments: the method's.

        Raises:
            PolicyServerError: the error that the replica raised or returned.
            RayError, RayServeException: if no replica answers.
        """
        bound = self._methods.get(method)
        if bound is None:
            bound = self._handle.options(method_name=method, **self._routed())
            self._methods[method] = bound
        try:
            answer = await bound.remote(*arguments)
        except RayTaskError as error:
            raise _cause_of(error) from error
        if isinstance(answer, PolicyServerError):
            raise answer
        return answer

    def _routed(self) -> Mapping[str, Any]:
        """Return the options of all calls, once there is a router."""
        if self._options is None:
            try:
                # In this loop: another thread would cost each call two changes of thread.
                self._handle._init(_run_router_in_separate_loop=False)  # noqa: SLF001 -- Ray's own way to say so
                self._options = {"_by_reference": False}
                self._handle.options(**self._options)
            except (AttributeError, TypeError, ValueError) as error:
                logger.warning("ray_handle_plain", extra={"reason": str(error)})
                self._options = {}
        return self._options

    async def aclose(self) -> None:
        """End the router; nothing is called any more."""
        self._methods.clear()
        try:
            await self._handle.shutdown_async()
        except Exception as error:
            # Its application is removed all the same.
            logger.info("ray_handle_not_ended", extra={"reason": repr(error)[:300]})


def _cause_of(error: RayTaskError) -> PolicyServerError:
    """Return the error that a replica raised, with the text of Ray's or Python's own as a note."""
    if isinstance(error.cause, PolicyServerError):
        return error.cause
    failed = PolicyFailedError("the policy failed; the server's log has the reason")
    failed.add_note(f"In the replica:\n{error}")
    return failed
