"""A client of a running server for the page: answers, and refusals in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import requests

from policy_server.errors import PolicyServerError

__all__ = ["AnswerKind", "Observation", "RefusalError", "ServerClient"]

AnswerKind = Literal["predict", "predict_deterministic", "distribution"]
Observation = Mapping[str, Any] | Sequence[Any]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NOT_READY_TIMEOUT_S = 2.0


class RefusalError(PolicyServerError):
    """A server gave no answer, or an error.

    Attributes:
        answered: the HTTP status that the server answered; None where it gave no answer.
        problems: the mistakes in the observation: each a field, and the value that was expected.
    """

    def __init__(
        self,
        message: str,
        *,
        answered: int | None = None,
        problems: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.answered = answered
        self.problems = tuple(problems)


class ServerClient:
    """Asks one server; each question has a connection of its own."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        policy: str = "",
        version: str = "",
        is_of_team: bool = False,
        timeout_s: float = 30.0,
    ) -> None:
        """Own the address and the key; nothing is sent yet.

        Args:
            url: the server's address, with a proxy's prefix if there is one.
            api_key: the access key; empty to send none.
            policy: the policy's name; empty for the server's default.
            version: the name of the version to ask; empty leaves that to the server.
            is_of_team: ask for several agents at once, whose observations and answers are by agent.
            timeout_s: the longest wait for an answer, in seconds.
        """
        self.url = url.strip().rstrip("/")
        self.policy = policy
        self.version = version
        self._api_key = api_key
        self._prefix = f"/policies/{quote(policy, safe='')}" if policy else ""
        self._behind = "/agents" if is_of_team else ""
        self._timeout_s = timeout_s

    def of(self, *, policy: str | None = None, version: str | None = None) -> ServerClient:
        """Return a client of another policy or version of the same server.

        Args:
            policy: the policy's name; None for the same.
            version: the version's name; None for the same.
        """
        return ServerClient(
            self.url,
            self._api_key,
            policy=self.policy if policy is None else policy,
            version=self.version if version is None else version,
            timeout_s=self._timeout_s,
        )

    def of_team(self) -> ServerClient:
        """Return a client of the team of the same server."""
        return ServerClient(self.url, self._api_key, is_of_team=True, timeout_s=self._timeout_s)

    def policies(self) -> dict[str, Any]:
        """Return the policies of the server, with their versions.

        Raises:
            RefusalError: if it can't be reached, or refuses.
        """
        document = self._ask("GET", "/policies")
        try:
            versions = {entry["name"]: list(entry["versions"]) for entry in document["policies"]}
            is_ours = document["default"] in versions
        except (LookupError, TypeError):
            is_ours = False
        if not is_ours:
            raise RefusalError(f"{self.url} answers, but not as a Policy Server does")
        listed: dict[str, Any] = document
        return listed

    def schema(self) -> dict[str, Any]:
        """Return the server's description of its policy.

        Raises:
            RefusalError: if it can't be reached, or refuses.
        """
        document = self._ask("GET", f"{self._prefix}/schema")
        if not isinstance(document, dict) or "policy" not in document:
            raise RefusalError(f"{self.url} answers, but not as a Policy Server does")
        return document

    def is_ready(self) -> bool:
        """Return whether the server would answer an observation now."""
        client = ServerClient(self.url, self._api_key, timeout_s=_NOT_READY_TIMEOUT_S)
        try:
            client._ask("GET", "/readyz")
        except RefusalError:
            return False
        return True

    def ask(
        self,
        kind: AnswerKind,
        observation: Observation,
        *,
        is_flat: bool = False,
        session: str = "",
        step: int = 0,
        previous_reward: float | None = None,
        episode: str = "",
    ) -> dict[str, Any]:
        """Ask about an observation.

        Args:
            kind: the kind of answer.
            observation: by name, or flat; of a team, the body that `team_body` gives.
            is_flat: whether the observations of a team are flat.
            session: the name of the session that it is a step of; empty where it is of none.
            step: the number of that step in its episode, from 0, by which a step that was asked
                twice is made once.
            previous_reward: of the step before.
            episode: names an episode that has no session: one version answers all that is asked of
                it; empty leaves that to the traffic.

        Returns:
            The answer's JSON.

        Raises:
            RefusalError: if the server can't be reached, or refuses.
        """
        route, body = self.request_of(kind, observation, is_flat=is_flat, session=session)
        headers = {}
        if session:
            headers["x-step"] = str(step)
            if previous_reward is not None:
                headers["x-previous-reward"] = repr(previous_reward)
        elif episode:
            headers["x-episode-id"] = episode
        try:
            answer: dict[str, Any] = self._ask("POST", route, body, headers)
        except RefusalError as refusal:
            if not session or refusal.answered != HTTPStatus.NOT_FOUND:
                raise
            raise RefusalError(
                "the server has ended this session, and the episode's memory with it; Reset begins "
                "another episode",
                answered=refusal.answered,
            ) from refusal
        return answer

    def request_of(
        self,
        kind: AnswerKind,
        observation: Observation,
        *,
        is_flat: bool = False,
        session: str = "",
    ) -> tuple[str, str]:
        """Return the route and the JSON body that ask about an observation; see `ask`.

        Args:
            kind: the kind of answer.
            observation: by name, or flat; of a team, the body that `team_body` gives.
            is_flat: whether the observations of a team are flat.
            session: the name of the session that it is a step of; empty where it is of none.
        """
        is_named = isinstance(observation, Mapping)
        route = f"{self._prefix}{f'/sessions/{session}' if session else ''}/{kind}"
        route += f"{'_raw' if is_flat or not is_named else ''}{self._behind}"
        return route, json.dumps(observation if is_named else {"obs": observation})

    def begin_episode(self, session: str = "") -> str:
        """Begin an episode whose memory the server keeps.

        Args:
            session: the name of the session of the episode before; empty if there was none.

        Returns:
            The name of the session: the same one, unless it has ended.

        Raises:
            RefusalError: if the server can't be reached, or refuses.
        """
        route = f"{self._prefix}/sessions"
        if session:
            try:
                self._ask("POST", f"{route}/{session}/reset{self._behind}")
            except RefusalError as refusal:
                if refusal.answered != HTTPStatus.NOT_FOUND:
                    raise
            else:
                return session
        return str(self._ask("POST", route + self._behind)["session_id"])

    def _ask(
        self,
        method: str,
        route: str,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 -- any JSON
        try:
            with requests.Session() as session:
                # No proxy leads to this machine, whatever the environment says.
                session.trust_env = urlsplit(self.url).hostname not in _LOOPBACK
                response = session.request(
                    method,
                    self.url + route,
                    data=None if body is None else body.encode(),
                    headers={**self._headers(route), **(headers or {})},
                    timeout=self._timeout_s,
                    allow_redirects=False,
                )
        except (requests.RequestException, ValueError) as error:
            raise RefusalError(self._why_unreached(error)) from error
        if response.status_code not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise _refusal(response)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise RefusalError(f"{self.url} answers, but not as a Policy Server does") from error

    def _headers(self, route: str) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self._api_key:
            if not (self._api_key.isascii() and self._api_key.isprintable()):
                raise RefusalError(
                    "the access key holds signs that an HTTP header can't carry; expected plain "
                    "letters, digits and punctuation"
                )
            headers["access-token"] = self._api_key
        # A session has its version from its beginning.
        if self.version and not route.startswith(f"{self._prefix}/sessions/"):
            headers["x-policy-version"] = self.version
        return headers

    def _why_unreached(self, error: Exception) -> str:
        if isinstance(error, requests.Timeout):
            return f"{self.url} gave no answer within {self._timeout_s:g} s; look into its log"
        if isinstance(error, requests.exceptions.SSLError):
            return f"no secure connection to {self.url}: its certificate was not accepted"
        if isinstance(error, requests.ConnectionError):
            return (
                f"no server answers at {self.url}; start one on the left, or with "
                "python generate.py serve, and check host and port"
            )
        return f"expected an address such as http://127.0.0.1:8000, got {self.url!r}"


def _refusal(response: requests.Response) -> RefusalError:
    status = response.status_code
    try:
        detail = response.json()["detail"]
    except (ValueError, LookupError, TypeError, RecursionError):
        detail = None
    if problems := _problems(detail):
        return RefusalError(
            "the server does not accept this observation", answered=status, problems=problems
        )
    reason = detail if isinstance(detail, str) and detail else response.reason
    match status:
        case HTTPStatus.UNAUTHORIZED:
            what = "is missing" if reason.startswith("no ") else "is wrong"
            message = f"the access key {what}; type the server's key in on the left"
        case HTTPStatus.NOT_FOUND:
            message = f"the server has no such route; is {response.url} a Policy Server?"
        case HTTPStatus.NOT_IMPLEMENTED:
            message = f"the server can't answer that: {reason}"
        case HTTPStatus.SERVICE_UNAVAILABLE:
            message = f"the server is busy or still starting: {reason}"
        case _:
            message = f"the server answered {status}: {reason}"
    return RefusalError(message, answered=status)


def _problems(detail: Any) -> list[tuple[str, str]]:  # noqa: ANN401 -- any JSON
    """Return the mistakes that a refusal lists; none where it is no list of ours."""
    if not isinstance(detail, list):
        return []
    try:
        return [(_field(item["loc"]), str(item["msg"])) for item in detail]
    except (LookupError, TypeError):
        return []


def _field(location: Sequence[str | int]) -> str:
    """Return the path of a field in the body as a person writes it, such as `links[3]`."""
    names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:]]
    return "".join(names).removeprefix(".") or "the observation"
