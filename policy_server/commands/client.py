"""A client of a running server: requests, and errors in words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests

from policy_server.commands.server_addresses import read_address
from policy_server.commands.server_answers import Answer, AnswerObject, receive
from policy_server.commands.timed_answers import TimedAdapter
from policy_server.commands.trusted_certificates import certificate_bundle
from policy_server.commands.unix_requests import UnixAdapter
from policy_server.errors import SchemaError, ServerAnswerError, SettingsError, UsageError
from policy_server.policy import LARGEST_SEED
from policy_server.schema import can_stand_in_an_address, read_schema_file
from policy_server.settings import Settings

__all__ = [
    "PolicyClient",
    "ask",
    "check_name",
    "choose_answer",
    "example_observation",
    "find_api_key",
    "is_flat",
    "read_observation",
]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHOWN_CHARACTERS = 60


class PolicyClient:
    """One connection to a server, for one of its policies. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        policy: str | None = None,
        timeout_s: float = 30.0,
        key_places: str = "POLICY_SERVER_API_KEY or the local schema.yaml",
        uds: str | None = None,
    ) -> None:
        """Check the address; nothing is sent.

        Args:
            url: the server's address, with a proxy's prefix if there is one.
            api_key: the access key; None to send none.
            policy: the policy's name; None for the server's default.
            timeout_s: the longest wait for an answer, in seconds.
            key_places: where the key may come from, for the message about a wrong one.
            uds: the server's UNIX socket, in place of the host and port in `url`; None for TCP.

        Raises:
            UsageError: if the address or the policy's name can't be used.
            SettingsError: if the key can't be used.
        """
        address = read_address(url)
        if policy is not None:
            check_name(policy, "--policy")
        if api_key is not None and not _is_for_headers(api_key):
            raise SettingsError(
                "the access key: expected printable ASCII text without spaces at its ends; HTTP "
                "headers carry nothing else"
            )
        # Without a password, which messages and generated files would show.
        self.url = address.shown
        self._address = address
        self._where = self.url if uds is None else uds
        self.prefix = "" if policy is None else f"/policies/{quote(policy, safe='')}"
        self._timeout_s = timeout_s
        self._key_places = key_places
        self._session = requests.Session()
        # No proxy leads to this machine, whatever the environment says.
        self._session.trust_env = address.hostname not in _LOOPBACK
        if address.is_secure:
            self._session.verify = certificate_bundle()
        self._session.mount("https://", TimedAdapter())
        self._session.mount("http://", TimedAdapter() if uds is None else UnixAdapter(uds))
        if api_key is not None:
            self._session.headers["access-token"] = api_key

    def __enter__(self) -> Self:
        """Return the client; the block's end closes the connection."""
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._session.close()

    def get(self, route: str) -> AnswerObject:
        """Ask for a document.

        Args:
            route: such as /schema.

        Returns:
            The answer's JSON object.

        Raises:
            ServerAnswerError: if the server can't be reached or refuses, in words.
        """
        return self.request("GET", route)

    def schema(self) -> AnswerObject:
        """Ask for the policy's schema.

        Raises:
            ServerAnswerError: if the server can't be reached or refuses, in words.
        """
        return self._schema_at(f"{self.prefix}/schema")

    def schema_of(self, policy: str) -> AnswerObject:
        """Ask for the schema of a policy of the server.

        Args:
            policy: its name.

        Raises:
            ServerAnswerError: if the server can't be reached or refuses, in words.
        """
        return self._schema_at(f"/policies/{quote(policy, safe='')}/schema")

    def post(
        self,
        route: str,
        body: bytes,
        *,
        seed: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AnswerObject:
        """Ask the policy about an observation, or for a change of a session.

        Args:
            route: such as /predict, without the policy's prefix.
            body: JSON.
            seed: makes a draw reproducible.
            headers: besides those of every request, such as `x-previous-reward`.

        Returns:
            The answer's JSON object.

        Raises:
            ServerAnswerError: if the server can't be reached or refuses, in words.
        """
        parameters = {} if seed is None else {"seed": str(seed)}
        return self.request(
            "POST", self.prefix + route, data=body, params=parameters, headers=headers
        )

    def delete(self, route: str) -> None:
        """End something of the policy's, such as a session.

        Args:
            route: such as /sessions/ID, without the policy's prefix.

        Raises:
            ServerAnswerError: if the server can't be reached or refuses, in words.
        """
        self._receive("DELETE", self.prefix + route, headers={}, timeout_s=self._timeout_s)

    def request(
        self,
        method: str,
        route: str,
        *,
        data: bytes | Iterable[bytes] = b"",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> AnswerObject:
        """Send a request, and return the answer's JSON object.

        Args:
            method: such as POST.
            route: its address below the server's.
            data: the body, whole or in parts.
            params: of the query.
            headers: besides those of every request.
            content_type: of the body.
            timeout_s: the longest wait for an answer, in seconds; None for the client's.

        Raises:
            ServerAnswerError: if the server can't be reached or refuses, in words.
        """
        answer = self._receive(
            method,
            route,
            data=data,
            params=params,
            headers={"content-type": content_type, **(headers or {})},
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )
        return answer.as_object()

    def _schema_at(self, route: str) -> AnswerObject:
        schema = self.get(route)
        fields = schema.get("observations") or {}
        parts = [schema["policy"], fields, *(fields.values() if isinstance(fields, dict) else ())]
        if not all(isinstance(part, dict) for part in parts):
            raise ServerAnswerError(f"{self._where}{route}: answered with no schema of a policy")
        return schema

    def _receive(
        self,
        method: str,
        route: str,
        *,
        data: bytes | Iterable[bytes] = b"",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Answer:
        answer = receive(
            self._session,
            method,
            self._address.url + route,
            where=self._where,
            data=data,
            params=params,
            headers=headers,
            timeout_s=timeout_s,
        )
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        raise ServerAnswerError(*self._explain(route, answer))

    def _explain(self, route: str, answer: Answer) -> list[str]:
        if answer.status == HTTPStatus.UNAUTHORIZED:
            return [
                f"{self.url}: {answer.detail() or 'access denied'}; the command line takes it from "
                f"--key, {self._key_places}"
            ]
        if problems := answer.problems():
            return [f"{self.url}{route}: refused, since", *problems]
        reason = answer.detail() or answer.reason
        return [f"{self.url}{route}: answered {answer.status}: {reason}"]


def check_name(name: str, argument: str) -> None:
    """Refuse a name of a policy or version that can't stand in an address.

    Args:
        name: the name.
        argument: the argument that holds it, for the message.

    Raises:
        UsageError: naming the argument.
    """
    if not can_stand_in_an_address(name):
        raise UsageError(
            f"{argument}: expected a name of letters, digits, - and _, which begins with a letter "
            f"or a digit, got {name!r}"
        )


def find_api_key(key: str | None, settings: Settings) -> str | None:
    """Return the key to send: the one given, else the environment's, else the local schema.yaml's.

    Args:
        key: the key that the user gave.
        settings: the environment, and the path of schema.yaml.

    Returns:
        The key; None where there is none, as for a server without access control.
    """
    if key is not None:
        return key
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    # The server may serve another policy: a mistake in the local file is no reason not to ask it.
    with contextlib.suppress(SchemaError):
        return read_schema_file(settings.schema_path).api_key
    return None


def read_observation(text: str, read_standard_input: Callable[[], str]) -> str:
    """Return the JSON that an argument stands for.

    Args:
        text: JSON, `-` for standard input, or a file's name.
        read_standard_input: gives the text that is piped in.

    Returns:
        The text of a JSON object or list; its numbers are as they were written.

    Raises:
        SettingsError: if it is none of these.
    """
    where, content = "the observation", text
    if text == "-":
        where, content = "standard input", _read_piped(read_standard_input)
    elif not text.lstrip().startswith(("{", "[")):
        where, content = text, _read_file(text)
    try:
        # Bytes that are no UTF-8 come from a terminal as halves of characters.
        content.encode()
        value = json.loads(content)
    except RecursionError as error:
        raise SettingsError(f"{where}: expected JSON that is nested less deeply") from error
    except UnicodeEncodeError as error:
        raise SettingsError(f"{where}: expected text in UTF-8, got {_show(content)}") from error
    except ValueError as error:
        raise SettingsError(f"{where}: expected JSON, got {_show(content)} ({error})") from error
    if not isinstance(value, dict | list):
        raise SettingsError(
            f"{where}: expected a JSON object, or a list for a flat observation, got "
            f"{_show(content)}"
        )
    return content


def example_observation(client: PolicyClient) -> str:
    """Return the observation that a server's own OpenAPI document gives as the policy's example.

    Args:
        client: of that server and policy.

    Returns:
        The text of a JSON object, or of a list where the server takes flat observations only.

    Raises:
        ServerAnswerError: if the server can't be reached, or gives no example.
    """
    document = client.get("/openapi.json")
    try:
        paths = document["paths"]
        is_named = f"{client.prefix}/predict" in paths
        operation = paths[f"{client.prefix}/predict" + ("" if is_named else "_raw")]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        example = document["components"]["schemas"][name]["examples"][0]
        return json.dumps(example if is_named else example["obs"])
    except (AttributeError, LookupError, TypeError, ServerAnswerError) as error:
        where = f"{client.url}/openapi.json"
        whose = f" of {client.prefix}" if client.prefix else ""
        raise ServerAnswerError(f"{where}: gives no example{whose}; name an observation") from error


def choose_answer(*, is_deterministic: bool, is_distribution: bool, seed: int | None) -> str:
    """Return the name of the route that gives an answer of this kind.

    Args:
        is_deterministic: ask for the mode.
        is_distribution: ask for the distribution.
        seed: of the draw.

    Raises:
        UsageError: if these don't go together, or no draw takes the seed.
    """
    if is_deterministic and is_distribution:
        raise UsageError("--deterministic and --distribution ask for two answers; give one")
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed: expected a whole number from 0 to {LARGEST_SEED}, got {seed}")
    if seed is not None and (is_deterministic or is_distribution):
        raise UsageError("--seed is for draws; leave it out with --deterministic or --distribution")
    if is_deterministic:
        return "predict_deterministic"
    return "distribution" if is_distribution else "predict"


def ask(client: PolicyClient, observation: str, answer: str, *, seed: int | None = None) -> str:
    """Ask about an observation; it goes out as it was written, so that the server judges it.

    Args:
        client: of the server.
        observation: the text of a JSON object; for a flat observation that of a list, or of an
            object with nothing but the list `obs`, and an action mask where the policy takes one.
        answer: the route's name, such as `predict`.
        seed: makes a draw reproducible.

    Returns:
        The answer's JSON on one line.

    Raises:
        ServerAnswerError: if the server can't be reached or refuses, in words.
    """
    value = json.loads(observation)
    is_list = isinstance(value, list)
    is_raw = is_list or (_may_be_flat(value) and is_flat(value, client.schema()))
    body = f'{{"obs": {observation}}}' if is_list else observation
    route = f"/{answer}_raw" if is_raw else f"/{answer}"
    return json.dumps(client.post(route, body.encode(), seed=seed), ensure_ascii=False)


def is_flat(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a flat observation, with its action mask or without.

    Args:
        value: the object.
        schema: of the policy, as the server gives it; an observation named `obs` is its own.
    """
    mask = schema["policy"].get("action_mask") or {}
    return (
        _may_be_flat(value)
        and {*value} <= {"obs", mask.get("name")}
        and "obs" not in (schema.get("observations") or {})
    )


def _may_be_flat(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("obs"), list)


def _is_for_headers(key: str) -> bool:
    return key.isascii() and key.isprintable() and key == key.strip()


def _read_piped(read_standard_input: Callable[[], str]) -> str:
    try:
        # A pipe of PowerShell begins with a byte order mark, as its files do.
        return read_standard_input().removeprefix("\ufeff")
    except ValueError as error:
        raise SettingsError(f"standard input: expected text in UTF-8: {error}") from error


def _read_file(name: str) -> str:
    none = SettingsError(
        f"the observation: expected JSON, a file, or - for standard input, got {_show(name)}"
    )
    if not name.strip():
        # Of an empty name pathlib makes the folder that one is in.
        raise none
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise none from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{_show(name)}: expected a readable text file: {error}") from error


def _show(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= _SHOWN_CHARACTERS else f"{flat[:_SHOWN_CHARACTERS]}...")
