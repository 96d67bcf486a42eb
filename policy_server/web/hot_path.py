"""The hot path: the routes that answer observations in one request, without ASGI.

The protocol of a connection hands over a request's head and body (`http_server.hot_requests`); the
gate's own checks decide about the head, once, and the answers are made by the same functions as
those of FastAPI's routes. All that isn't answered here ASGI answers, refused requests too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policy_server.http_server import HotRoute, RequestHead
from policy_server.web.answering import PolicyAnswering
from policy_server.web.gate import Gate
from policy_server.web.hot_answering import AdmittedHead, HotAnswering
from policy_server.web.hot_sessions import HotSession
from policy_server.web.hot_teams import HotTeam, HotTeamSession
from policy_server.web.media_types import is_npy
from policy_server.web.request_headers import read_headers
from policy_server.web.route_table import AnswerRoute, session_in
from policy_server.web.session_answering import SessionAnswering
from policy_server.web.team_answering import TeamAnswering
from policy_server.web.team_session_answering import TeamSessionAnswering

__all__ = ["HotAnswers"]

# Those of a strict form are cut out of the head before.
_CUT_OUT = frozenset(
    {
        b"x-observation-stamp",
        b"x-previous-action",
        b"x-previous-reward",
        b"x-request-id",
        b"x-request-timeout-ms",
        b"x-step",
    }
)


class HotAnswers:
    """Decides which requests are hot, and answers them; see `HotRoutes`."""

    def __init__(
        self,
        gate: Gate,
        policies: Mapping[str, PolicyAnswering],
        sessions: Mapping[str, SessionAnswering],
        *,
        team: TeamAnswering | None = None,
        team_sessions: TeamSessionAnswering | None = None,
    ) -> None:
        """Own nothing: the gate decides, and the policies answer.

        Args:
            gate: checks keys and sizes, counts and logs.
            policies: answer observations, by the policies' names.
            sessions: answer the steps of sessions, by the policies' names.
            team: answers a team's steps; None where there is no team.
            team_sessions: answers the steps of its sessions.
        """
        self._gate = gate
        self._policies = policies
        self._sessions = sessions
        self._team = team
        self._team_sessions = team_sessions
        self._unloaded = 0
        for answering in policies.values():
            answering.slot.on_unloaded.append(self._note_unloaded)

    @property
    def changes(self) -> int:
        """Return how often what the gate lets pass, or who answers, has changed; see `HotRoutes`.

        A head that is remembered keeps the version that answered last, which may be unloaded.
        """
        return self._gate.keys.changes + self._unloaded

    def _note_unloaded(self) -> None:
        self._unloaded += 1

    def find(self, head: RequestHead) -> HotRoute | None:
        """Return the route of a request; None where ASGI has to answer it; see `HotRoutes`."""
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": head.path,
            "root_path": head.root_path,
            "headers": head.headers,
        }
        headers = read_headers(head.headers)
        route, key = self._gate.admit_plain(scope, headers) or (None, None)
        if not isinstance(route, AnswerRoute):
            return None
        named = session_in(scope["path"]) if route.has_session else ""
        if head.session_id != named or route.has_session != bool(named):
            return None
        if not route.has_session and b"x-state" in headers:
            return None
        # What is none, or is written in an unusual way, is still there, maybe for the second time.
        if not _CUT_OUT.isdisjoint(name for name, _ in head.headers):
            return None
        return self._answering(route, head, headers, key)

    def _answering(
        self, route: AnswerRoute, head: RequestHead, headers: Mapping[bytes, str], key: str | None
    ) -> HotRoute | None:
        admitted = AdmittedHead(self._gate, route, head, headers, key)
        match route.transport:
            case "single":
                policy = self._policies[route.policy]
                return HotAnswering(admitted, policy)
            case "session":
                return HotSession(admitted, self._sessions[route.policy])
            case "team":
                assert self._team is not None, "its routes stand where there is a team"
                return HotTeam(admitted, self._team)
            case "team_session":
                assert self._team_sessions is not None, "its routes stand where there is a team"
                if not is_npy(headers.get(b"content-type", "")):
                    return HotTeamSession(admitted, self._team_sessions)
        return None
