"""Every route of the server as data; no other module knows their addresses.

The gate, the fast path, FastAPI's routes, web sockets, OpenAPI, the metrics' labels and the tests
of the documentation are all made from it. For example, `/policies/door/predict_raw/batch` is the
kind `predict` in the form `raw` by the transport `batch` for the policy `door`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from policy_server.errors import SchemaError
from policy_server.policy import ANSWER_KINDS, AnswerKind
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.serving.team import Team

__all__ = [
    "ADMIN",
    "AGENTS",
    "Access",
    "AnswerRoute",
    "BodyLimit",
    "Form",
    "Route",
    "RouteTable",
    "Transport",
    "session_in",
]

Form = Literal["named", "raw"]
Transport = Literal["single", "batch", "stream", "session", "team", "team_stream", "team_session"]
Access = Literal["open", "key", "admin"]
BodyLimit = Literal["single", "batch", "upload"]

_SCHEMA = "/schema"
_FORMS: dict[Form, str] = {"named": "", "raw": "_raw"}
_SESSIONS = "/sessions"
_SESSION = f"{_SESSIONS}/{{session_id}}"
_RESET = f"{_SESSION}/reset"
# What stands before and behind the kind of answer.
_TRANSPORTS: dict[Transport, tuple[str, str]] = {
    "single": ("", ""),
    "batch": ("", "/batch"),
    "stream": ("", "/stream"),
    "session": (_SESSION, ""),
}
# Each route of a team is that of a policy with this behind it.
AGENTS = "/agents"
_TEAM_TRANSPORTS: dict[Transport, tuple[str, str]] = {
    "team": ("", AGENTS),
    "team_stream": ("", f"/stream{AGENTS}"),
    "team_session": (_SESSION, AGENTS),
}
_TEAM_SESSIONS = tuple(f"{path}{AGENTS}" for path in (_SESSIONS, _SESSION, _RESET))
_POLICIES = "/policies"
ADMIN = "/admin"
"""The routes that change versions lie below it."""

# The routes that belong to no policy. A trailing slash stands for every path below.
_PAGES: dict[str, Access] = {
    "/": "open",
    "/livez": "open",
    "/readyz": "open",
    "/docs": "open",
    "/redoc": "open",
    "/redoc/": "open",
    "/openapi.json": "open",
    "/static/": "open",
    "/clients": "key",
    "/clients/": "key",
    _POLICIES: "key",
}


_HEALTH = frozenset({"/", "/livez", "/readyz"})
_DOCUMENTATION = ("/docs", "/redoc", "/redoc/", "/openapi.json", "/static/")
_FOR_BROWSERS = frozenset({*_DOCUMENTATION, "/clients", "/clients/"})


@dataclass(frozen=True, kw_only=True)
class Route:
    """One address of the server.

    Attributes:
        path: the address below the server's own prefix; a trailing slash stands for all below it.
        policy: the name of the policy that it belongs to; empty for the server's own pages.
        access: whether it takes the access key, or the admin key.
        body_limit: the limit of its bodies: an observation's, a batch's or an uploaded policy's.
        namespace: sets the names in OpenAPI apart from those of other policies: empty for the short
            addresses, else the policy's name.
    """

    path: str
    policy: str = ""
    access: Access = "key"
    body_limit: BodyLimit = "single"
    namespace: str = ""

    @property
    def operation(self) -> str:
        """Return the route's name in OpenAPI, such as `predict_raw_batch`."""
        below = self.path.removeprefix(f"{_POLICIES}/").replace(_SESSION[1:], "session")
        return below.strip("/").replace("/", "_").replace("-", "_")

    @functools.cached_property
    def label(self) -> str:
        """Return the address as metrics and logs name it."""
        return f"{self.path}*" if self.is_folder else self.path

    @functools.cached_property
    def is_page(self) -> bool:
        """Return whether it is for browsers: documentation, its files, and client libraries."""
        return self.path in _FOR_BROWSERS

    @functools.cached_property
    def is_health(self) -> bool:
        """Return whether load balancers ask it for the server's health."""
        return self.path in _HEALTH

    @functools.cached_property
    def is_of_session(self) -> bool:
        """Return whether it is about a session that has begun."""
        return _SESSION in self.path

    @functools.cached_property
    def begins_session(self) -> bool:
        """Return whether it begins a session, of a policy or a team."""
        return self.path.removesuffix(AGENTS).endswith(_SESSIONS)

    @property
    def is_folder(self) -> bool:
        """Return whether the path stands for all addresses below it."""
        return self.path.endswith("/") and self.path != "/"


@dataclass(frozen=True, kw_only=True)
class AnswerRoute(Route):
    """A route that answers observations.

    Attributes:
        kind: the kind of answer.
        form: whether observations are named or flat.
        transport: one observation a request, a batch, a web socket, or one step of a session; or
            one observation for each agent of a team in a request, a web socket or a session.
    """

    kind: AnswerKind
    form: Form
    transport: Transport

    @property
    def is_raw(self) -> bool:
        """Return whether it takes flat observations."""
        return self.form == "raw"

    @property
    def has_session(self) -> bool:
        """Return whether it answers a step of a session."""
        return self.transport in ("session", "team_session")


class SessionRoutes(NamedTuple):
    """The routes that begin and end a policy's sessions.

    Attributes:
        begin: begins a session.
        one: shows one, and ends it.
        reset: begins another episode in one.
    """

    begin: Route
    one: Route
    reset: Route


class RouteTable:
    """The routes of a registry's policies, and the server's own.

    Attributes:
        default: the name of the policy that has the short addresses.
    """

    def __init__(self, registry: PolicyRegistry, *, has_admin: bool = False) -> None:
        """Own the routes, which never change.

        Args:
            registry: the policies. Named observations have routes where the schema lists some. The
                default policy has the short addresses; where people have named policies, each has
                its own below `/policies/`.
            has_admin: whether there are routes that change versions.
        """
        self.default = registry.default.name
        pages = [Route(path=path, access=access) for path, access in _PAGES.items()]
        routes: list[Route] = [*pages, *_routes_of(registry.default)]
        if registry.is_named:
            for slot in registry:
                routes += _routes_of(slot, namespace=slot.name)
        if registry.agents is not None:
            routes += _routes_of_team(Team(registry, registry.agents))
        if has_admin:
            routes.append(Route(path=f"{ADMIN}/", access="admin", body_limit="upload"))
        self._routes = {route.path: route for route in routes}
        self._folders = tuple(route for route in routes if route.is_folder)

    def __iter__(self) -> Iterator[Route]:
        """Iterate over all routes."""
        return iter(self._routes.values())

    def answering(self, *transports: Transport) -> Iterator[AnswerRoute]:
        """Iterate over the routes that answer observations.

        Args:
            transports: only those.
        """
        for route in self:
            if isinstance(route, AnswerRoute) and route.transport in transports:
                yield route

    def schemas(self) -> Iterator[Route]:
        """Iterate over the routes that give a policy's schema."""
        return (route for route in self if route.path.endswith(_SCHEMA))

    def sessions(self) -> Iterator[SessionRoutes]:
        """Iterate over the routes that begin and end a policy's sessions."""
        for page in self.schemas():
            prefix = page.path.removesuffix(_SCHEMA)
            yield SessionRoutes(
                *(self._routes[f"{prefix}{path}"] for path in (_SESSIONS, _SESSION, _RESET))
            )

    def team_sessions(self) -> SessionRoutes:
        """Return the routes that begin and end a team's sessions, where there is a team."""
        return SessionRoutes(*(self._routes[path] for path in _TEAM_SESSIONS))

    def check_prefix(self, prefix: str) -> None:
        """Refuse a prefix that hides routes which take a key.

        All routes have their addresses without the prefix too, for who comes past the proxy.

        Args:
            prefix: of all addresses, such as `/app/v1`; empty for none.

        Raises:
            SchemaError: naming a route that has the prefix's address, or one below it.
        """
        hidden = [
            route.path
            for route in self
            if route.access != "open" and f"{route.path}/".startswith(f"{prefix}/")
        ]
        if prefix and hidden:
            raise SchemaError(
                f"parameters.url_path: {prefix[1:]!r} would hide the route {hidden[0]}; choose "
                f"another path, such as app{prefix}"
            )

    def find(self, path: str) -> Route | None:
        """Return the route of an address; None where there is none.

        Args:
            path: the address without the server's prefix, and without a trailing slash.
        """
        known = self._routes.get(path) or self._routes.get(_with_any_session(path))
        if known is not None:
            return known
        return next((route for route in self._folders if path.startswith(route.path)), None)


def _routes_of(slot: PolicySlot, *, namespace: str = "") -> Iterator[Route]:
    prefix = f"{_POLICIES}/{namespace}" if namespace else ""
    is_named = slot.schema.observations is not None
    yield from _answer_routes(_TRANSPORTS, prefix, slot.name, namespace, is_named=is_named)
    for path in (_SCHEMA, _SESSIONS, _SESSION, _RESET):
        yield Route(path=f"{prefix}{path}", policy=slot.name, namespace=namespace)


def _routes_of_team(team: Team) -> Iterator[Route]:
    yield from _answer_routes(_TEAM_TRANSPORTS, is_named=team.has_named_observations)
    for path in _TEAM_SESSIONS:
        yield Route(path=path)


def _answer_routes(
    transports: Mapping[Transport, tuple[str, str]],
    prefix: str = "",
    policy: str = "",
    namespace: str = "",
    *,
    is_named: bool,
) -> Iterator[Route]:
    forms: tuple[Form, ...] = ("named", "raw") if is_named else ("raw",)
    for kind in ANSWER_KINDS:
        for form in forms:
            for transport, (before, behind) in transports.items():
                yield AnswerRoute(
                    path=f"{prefix}{before}/{kind}{_FORMS[form]}{behind}",
                    policy=policy,
                    kind=kind,
                    form=form,
                    transport=transport,
                    body_limit="batch" if transport == "batch" else "single",
                    namespace=namespace,
                )


def session_in(path: str) -> str:
    """Return the session's name in an address that has one.

    Args:
        path: the address.
    """
    return path.rpartition(f"{_SESSIONS}/")[2].partition("/")[0]


def _with_any_session(path: str) -> str:
    """Return an address with a placeholder for the session's name, if it may have one."""
    before, found, behind = path.rpartition(f"{_SESSIONS}/")
    if not found:
        return path
    _, slash, action = behind.partition("/")
    return f"{before}{_SESSION}{slash}{action}"
