"""Settings: how a server is deployed, from environment variables and `.env`."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from policy_server.access_keys import HASH, LEAST_RATE
from policy_server.errors import SettingsError
from policy_server.files.env_file import check_lines, read_env_file, variables_of
from policy_server.files.regular import target_of

__all__ = [
    "ENV_PREFIX",
    "SECRET_VARIABLES",
    "Engine",
    "LogFormat",
    "Settings",
    "find_log_format",
    "read_settings",
    "without_variables",
]

ENV_PREFIX = "POLICY_SERVER_"
Engine = Literal["auto", "numpy", "tensorflow", "onnxruntime"]
LogFormat = Literal["auto", "json", "text"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^\s/?#@\[\]:]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_USUAL_PORTS = {"http": ":80", "https": ":443"}
_ENV_FILE = ".env"
_HEADER_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_URL_TEXT = re.compile(r"[!-~]+")
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_keyfile",
}
_NUMBERS = (int, float, int | None, float | None)
_SPACE_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f]")
# Beyond, Ray's own processes take gigabytes for replicas that no cluster has room for.
_MOST_REPLICAS = 10_000
# A token and its signature are enough to try keys on, at any rate.
_SHORTEST_STATE_KEY = 16
# The system counts memory in 64 bits.
_MOST_MEMORY_BYTES = 2**60
# A round number below what Redis takes: it counts milliseconds, in digits only below 1e17.
_LONGEST_S = 9_000_000_000_000
_Seconds = Annotated[float, Field(le=_LONGEST_S, allow_inf_nan=False)]
# Variables that the examples of the client libraries read.
_OF_CLIENTS = ("URL",)
# Options of uvicorn that people look for here.
_OF_UVICORN = {
    "HOST": "uvicorn's --host or UVICORN_HOST says where it listens",
    "PORT": "uvicorn's --port or UVICORN_PORT says where it listens",
    "WORKERS": "uvicorn's --workers or WEB_CONCURRENCY says how many web processes there are",
}
# Kubernetes tells each container of the services beside it, in variables that are named after them:
# a service `policy-server-metrics` gives POLICY_SERVER_METRICS_PORT=tcp://10.0.0.1:8080.
_OF_KUBERNETES = re.compile(
    r"(?:.+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_.+)?)"
)
_KUBERNETES_PORT = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)


class Settings(BaseSettings):
    """One field an environment variable, named with the prefix `POLICY_SERVER_`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    home: Path = Field(
        Path(),
        description="Folder where schema.yaml, the policy and models/ lie",
    )
    model_uri: SecretStr | None = Field(
        None,
        description="Where the policy's zip is fetched from at the start: s3://, gs://, https://, "
        "file:// or a path; #sha256=... pins it",
    )
    schema_uri: SecretStr | None = Field(
        None, description="Where schema.yaml is fetched from at the start, in the same forms"
    )
    download_timeout_s: _Seconds = Field(
        600.0,
        gt=0,
        description="Longest time that fetching one file may take, in seconds, retries included",
    )
    backend: Literal["ray", "local"] = Field(
        "ray", description="`ray` runs the policy in Ray Serve replicas, `local` in the web process"
    )
    api_key: SecretStr | None = Field(None, description="Access key; wins over schema.yaml's")
    admin_key: SecretStr | None = Field(
        None, description="Key of the routes that change versions; without it there are none"
    )
    metrics_key: SecretStr | None = Field(
        None, description="Key of the port of metrics; without it they are shown to everybody"
    )
    state_key: SecretStr | None = Field(
        None,
        description="Key that signs state tokens (`x-state`); without it, one that is derived from "
        "the access key",
    )
    allow_anonymous: bool = Field(default=False, description="Serve without any access key")
    cors_origins: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description="Origins whose web pages may call the server, separated by commas, or `*` for "
        "all",
    )
    metrics_port: int = Field(
        8080, ge=0, le=65535, description="Port of Prometheus metrics; 0 picks a free one"
    )
    metrics_host: str = Field(
        "0.0.0.0",  # noqa: S104 -- Prometheus is on another machine, mostly
        description="Address that the port of metrics listens on",
    )
    dashboard_port: int = Field(
        8256, ge=0, le=65535, description="Port of Ray's dashboard; 0 turns it off"
    )
    engine: Engine = Field(
        "auto",
        description="What computes the policy: `numpy`, `tensorflow` (a SavedModel), `onnxruntime` "
        "(an ONNX model), or `auto`: NumPy where it agrees with the other on probes",
    )
    dashboard_host: str = Field(
        "127.0.0.1",
        description="Address that Ray's dashboard listens on; its users can run code",
    )
    num_replicas: int = Field(
        1, ge=1, le=_MOST_REPLICAS, description="Ray Serve replicas of the policy"
    )
    max_replicas: int = Field(
        0,
        ge=0,
        le=_MOST_REPLICAS,
        description="Most replicas that Ray Serve scales to under load; 0 keeps NUM_REPLICAS",
    )
    replica_cpus: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="CPUs that a Ray cluster sets aside for a replica",
    )
    max_call_memory_bytes: int = Field(
        0,
        ge=0,
        le=_MOST_MEMORY_BYTES,
        description="Most memory that calls of a replica may take beyond what it has before the "
        "first, in bytes; a call that needs more fails; 0 for any amount",
    )
    direct_calls: bool = Field(
        default=True,
        description="Call replicas straight, by a socket to each; false sends calls by Ray Serve",
    )
    max_batch_size: int = Field(
        256, ge=1, description="Most observations in one call of the policy"
    )
    max_queue_size: int = Field(
        4096, ge=1, description="Observations in flight before requests are answered 503"
    )
    request_timeout_s: _Seconds = Field(
        30.0,
        gt=0,
        description="Longest wait for an answer, in seconds, then 503",
    )
    max_wait_s: _Seconds = Field(
        0.0,
        ge=0,
        description="Longest wait behind other requests, as measured, in seconds, that a request "
        "is accepted for, else 503 at once; 0 takes REQUEST_TIMEOUT_S",
    )
    keep_alive_s: _Seconds = Field(
        75.0,
        gt=0,
        description="How long an idle connection stays open, before its first request too, or one "
        "whose client reads nothing of its answer, in seconds; `--timeout-keep-alive` wins",
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="For how long requests are still taken after SIGTERM, in seconds, while "
        "`/readyz` is 503, so that load balancers send no more; SIGINT doesn't wait",
    )
    header_timeout_s: _Seconds = Field(
        10.0,
        gt=0,
        description="Longest time from the first to the last byte of a request's head, in seconds, "
        "else 408",
    )
    body_timeout_s: _Seconds = Field(
        30.0,
        gt=0,
        description="Longest time that a request's body may take to arrive, in seconds, and one "
        "second more for each 4 KiB, else 408",
    )
    max_header_bytes: int = Field(
        65_536, ge=256, description="Largest head of a request, in bytes, else 431"
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="Connections of a web process that are open at a time, else 503; fewer where "
        "the system allows fewer files",
    )
    max_pipelined: int = Field(
        64,
        ge=1,
        description="Requests of one connection that are answered at a time; others wait unread",
    )
    max_key_rate: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Most observations a second that one access key may ask, unless schema.yaml "
        "gives it a limit of its own, else 429; 0 for any number",
    )
    max_key_in_flight: int = Field(
        0,
        ge=0,
        description="Most requests and frames of one access key that are answered at a time, "
        "unless schema.yaml gives it a limit of its own, else 429; 0 for any number",
    )
    max_address_rate: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Most observations a second that one address may ask, else 429; 0 for any "
        "number",
    )
    max_address_in_flight: int = Field(
        0,
        ge=0,
        description="Most requests and frames of one address that are answered at a time, else "
        "429; 0 for any number",
    )
    max_address_connections: int = Field(
        0,
        ge=0,
        description="Connections of one address that are open at a time in a web process, else "
        "429; 0 for any number",
    )
    episode_idle_s: _Seconds = Field(
        900.0,
        gt=0,
        description="For how long after its last question an episode (`x-episode-id`) keeps its "
        "version of the policy, in seconds",
    )
    max_agents: int = Field(
        1024,
        ge=1,
        description="Most agents of a team in a request, and with a memory in an episode",
    )
    max_sessions: int = Field(
        10_000, ge=1, description="Sessions that are open at a time, else 503"
    )
    max_key_sessions: int = Field(
        0,
        ge=0,
        description="Sessions of one access key that are open at a time, or of one address without "
        "a key, else 429; 0 for any number",
    )
    max_kept_answer_bytes: int = Field(
        268_435_456,
        ge=0,
        description="Bytes of last answers over 16 KiB that sessions keep in all, for a step that "
        "is sent again; beyond, a long answer is not kept, and its step sent again is 409",
    )
    sessions_url: SecretStr | None = Field(
        None,
        description="Redis that keeps the sessions, for all web processes: redis://, rediss:// or "
        "unix://; without it they live in the web process",
    )
    session_idle_s: _Seconds = Field(
        900.0,
        gt=0,
        description="For how long after its last request a session is kept, in seconds",
    )
    session_drain_s: _Seconds = Field(
        3600.0,
        ge=0,
        description="For how long a version that answers nobody else is kept for the episodes and "
        "sessions that began with it, in seconds",
    )
    start_timeout_s: _Seconds = Field(
        300.0,
        gt=0,
        description="Longest wait for the policy to load, in seconds",
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1, description="Largest request body, in bytes, else 413"
    )
    max_batch_rows: int = Field(100_000, ge=1, description="Most observations in a batch, else 413")
    max_batch_body_bytes: int = Field(
        67_108_864, ge=1, description="Largest request body of a batch, in bytes, else 413"
    )
    max_unpacked_bytes: int = Field(
        2_147_483_648,
        ge=1,
        description="Largest size that the policy's zip may unpack to, in bytes",
    )
    access_log_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests that have a line in the log; those that are answered by an "
        "error all have one",
    )
    prediction_log_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of predictions that is logged: observation, answer and request id",
    )
    fluentd_host: str | None = Field(
        None, description="Host of a fluentd that gets the logged predictions as well"
    )
    fluentd_port: int = Field(24224, ge=1, le=65535, description="Port of that fluentd")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level that is logged"
    )
    log_format: LogFormat = Field(
        "auto", description="`json`, `text`, or `auto`: text on a terminal, JSON otherwise"
    )

    @field_validator("backend", "engine", "log_format", "log_level", mode="before")
    @classmethod
    def _take_any_case(cls, text: object, info: ValidationInfo) -> object:
        if not isinstance(text, str):
            return text
        return text.upper() if info.field_name == "log_level" else text.lower()

    @field_validator("metrics_port", "dashboard_port", "fluentd_port", mode="before")
    @classmethod
    def _pass_over_kubernetes(cls, port: object, info: ValidationInfo) -> object:
        if isinstance(port, str) and _KUBERNETES_PORT.match(port):
            assert info.field_name is not None, "it is a field's validator"
            return cls.model_fields[info.field_name].default
        return port

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_separators(cls, value: object, info: ValidationInfo) -> object:
        """Refuse `1_0`, which is Python's 10 only, and bytes that are no text but in a path."""
        assert info.field_name is not None, "it is a field's validator"
        kind = cls.model_fields[info.field_name].annotation
        if not isinstance(value, str):
            return value
        if kind in _NUMBERS and "_" in value:
            raise PydanticCustomError("digits", "a number in digits")
        if kind is not Path and not _is_unicode(value):
            raise PydanticCustomError("utf8", "text in UTF-8")
        return value

    @field_validator("metrics_host", "dashboard_host", "fluentd_host")
    @classmethod
    def _check_host(cls, host: str | None) -> str | None:
        if host is not None and not _is_host_name(host):
            raise PydanticCustomError("host", "the name or the address of a host")
        return host

    @field_validator("max_replicas")
    @classmethod
    def _check_replicas(cls, most: int, info: ValidationInfo) -> int:
        fewest = info.data.get("num_replicas", 1)
        if 0 < most < fewest:
            raise PydanticCustomError(
                "replicas",
                "0, or at least POLICY_SERVER_NUM_REPLICAS, which is {fewest}",
                {"fewest": fewest},
            )
        return most

    @field_validator("max_key_rate", "max_address_rate")
    @classmethod
    def _check_rate(cls, rate: float) -> float:
        if 0 < rate < LEAST_RATE:
            raise PydanticCustomError("rate", f"0, for no limit, or at least {LEAST_RATE:f}")
        return rate

    @field_validator("api_key", "admin_key", "metrics_key")
    @classmethod
    def _check_api_key(cls, api_key: SecretStr | None) -> SecretStr | None:
        key = "" if api_key is None else api_key.get_secret_value()
        if api_key is not None and not _HEADER_TEXT.fullmatch(key):
            raise PydanticCustomError(
                "api_key",
                "printable ASCII text without spaces at its ends; HTTP headers carry nothing else",
            )
        if HASH.fullmatch(key):
            raise PydanticCustomError(
                "api_key",
                "a key, not the hash of one, which parameters.api_keys of schema.yaml takes",
            )
        return api_key

    @field_validator("state_key")
    @classmethod
    def _check_state_key(cls, state_key: SecretStr | None) -> SecretStr | None:
        if state_key is not None and (
            len(state_key.get_secret_value().strip()) < _SHORTEST_STATE_KEY
        ):
            raise PydanticCustomError(
                "state_key",
                "{least} random characters or more, blanks at its ends not counted",
                {"least": _SHORTEST_STATE_KEY},
            )
        return state_key

    @field_validator("sessions_url")
    @classmethod
    def _check_sessions_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_redis_url(url.get_secret_value()):
            raise PydanticCustomError(
                "sessions_url",
                "a URL such as redis://:password@redis:6379/0, rediss://... or "
                "unix:///run/redis.sock, with other characters in a user or password than letters, "
                "digits and -._~ as %..",
            )
        return url

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(_origin(item) for item in re.split(r"[\s,]+", value.strip(" ,\t\r\n[]")))

    @property
    def schema_path(self) -> Path:
        """Return where schema.yaml lies."""
        return self.home / "schema.yaml"

    @property
    def given_folder(self) -> Path:
        """Return the folder that a person put the policy into, as messages name it.

        It is `home`, unless deploy/place-policy.sh has copied a folder there that is mounted into a
        container. The script then keeps a record in `home`, and links schema.yaml.
        """
        with contextlib.suppress(OSError):
            if (self.home / ".placed").is_file():
                return target_of(self.schema_path).parent
        return self.home

    @property
    def zip_path(self) -> Path:
        """Return where saved_model.zip lies."""
        return self.home / "saved_model.zip"

    @property
    def models_path(self) -> Path:
        """Return the folder of the unzipped policy."""
        return self.home / "models"

    @property
    def sdks_path(self) -> Path:
        """Return the folder that keeps generated client libraries."""
        return self.home / ".clients-cache"


def _is_unicode(text: str) -> bool:
    """Return whether a text of the environment was UTF-8; other bytes are lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_host_name(text: str) -> bool:
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return not _SPACE_OR_CONTROL.search(text)


def _origin(text: str) -> str:
    """Return an origin as browsers write it: in lower case, without a slash or a usual port."""
    origin = text.strip("\"'").rstrip("/").lower()
    scheme, _, host = origin.partition("://")
    usual_port = _USUAL_PORTS.get(scheme)
    if usual_port is not None:
        origin = origin.removesuffix(usual_port)
    if origin != "*" and (not _ORIGIN.fullmatch(origin) or "*" in host):
        raise PydanticCustomError(
            "origin", "origins such as https://app.example.com, separated by commas, or * for all"
        )
    return origin


SECRET_VARIABLES = frozenset(
    f"{ENV_PREFIX}{name.upper()}"
    for name, field in Settings.model_fields.items()
    if field.annotation == SecretStr | None
)
"""The variables whose values nobody may see, in upper case."""
# Those that are not in the environment for the moment.
_hidden: dict[str, str] = {}


@contextlib.contextmanager
def without_variables(is_hidden: Callable[[str, str], bool]) -> Iterator[None]:
    """Take variables out of the environment while the block runs.

    `read_settings` finds settings among them all the same.

    Args:
        is_hidden: returns whether to take out the variable of a name and a value.
    """
    hidden = {name: text for name, text in os.environ.items() if is_hidden(name, text)}
    _hidden.update(hidden)
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
        for name in hidden:
            _hidden.pop(name, None)


def _is_redis_url(text: str) -> bool:
    """Return whether a text is an address of a Redis, and nothing in it would be passed over."""
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    if "#" in text or not has_port or not _URL_TEXT.fullmatch(text):
        return False
    if parts.scheme == "unix":
        known = options.keys() <= {"db", "password", "username"}
        return known and not parts.hostname and parts.path.startswith("/") and len(parts.path) > 1
    is_tls = parts.scheme == "rediss"
    return (
        (is_tls or parts.scheme == "redis")
        and bool(parts.hostname)
        and re.fullmatch(r"/?|/[0-9]+", parts.path) is not None
        and options.keys() <= (_TLS_OPTIONS if is_tls else set())
    )


def read_settings(
    **given: Any,  # noqa: ANN401 -- the settings' own types, which are checked
) -> Settings:
    """Read the settings from the environment and `.env`.

    Args:
        given: settings by their names in lower case, which win over both.

    Returns:
        The settings.

    Raises:
        SettingsError: naming the first variable that is no setting or can't be used, what was
            expected and what was found, or `.env` if that or a line of it can't be read.
    """
    known = list(Settings.model_fields)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "docs/settings.md lists them"
            raise SettingsError(f"{name}: is no setting; {remedy}")
    try:
        _check_names(os.environ, place="")
        from_file = _of_env_file(read_env_file(Path(_ENV_FILE)))
        return Settings(**{**from_file, **_of_the_environment_alone(), **given})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = str(problem["loc"][0])
        expected = problem["msg"].removeprefix("Input should be ")
        if problem["type"] == "int_parsing_size":
            expected = "an integer of fewer digits"
        is_secret = f"{ENV_PREFIX}{field.upper()}" in SECRET_VARIABLES
        got = "" if is_secret else f", got {problem['input']!r}"
        name = field if field in given else f"{ENV_PREFIX}{field.upper()}"
        raise SettingsError(f"{name}: expected {expected}{got}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected text in UTF-8"
        raise SettingsError(
            f"{_ENV_FILE}: can't be read: {reason}; mend it or remove it"
        ) from error


def _of_the_environment_alone() -> dict[str, Any]:
    """Return settings of the environment that pydantic would not take from it.

    An empty variable means the default: without it, `.env` would have the last word. What is hidden
    for the moment counts as if it were there.
    """
    prefix, fields = len(ENV_PREFIX), Settings.model_fields
    here = {name.upper(): text for name, text in {**os.environ, **_hidden}.items()}
    found: dict[str, Any] = {}
    for name in fields:
        text = here.get(f"{ENV_PREFIX}{name.upper()}")
        if text == "":
            found[name] = fields[name].get_default(call_default_factory=True)
    hidden = {
        name[prefix:].lower(): text
        for name, text in _hidden.items()
        if text and name.upper().startswith(ENV_PREFIX)
    }
    return {**found, **hidden}


def find_log_format() -> LogFormat:
    """Return the format of logs, even where another setting is wrong and has to be reported."""
    variable = f"{ENV_PREFIX}LOG_FORMAT"
    given = os.environ.get(variable)
    if given is None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            given = variables_of(read_env_file(Path(_ENV_FILE))).get(variable)
    match (given or "").lower():
        case "json":
            return "json"
        case "text":
            return "text"
    return "auto"


def _of_env_file(text: str) -> dict[str, str]:
    """Return the settings of `.env` by their names, but for those that the environment has.

    pydantic-settings would put the values of variables in the place of their names, in a key too.

    Args:
        text: the file's text.

    Raises:
        SettingsError: if one of its lines can't be read, or names no setting.
    """
    variables = variables_of(text)
    _check_env_file(text, variables)
    here = {name.upper() for name in (*os.environ, *_hidden)}
    found = {
        name.upper().removeprefix(ENV_PREFIX).lower(): value
        for name, value in variables.items()
        if value and name.upper().startswith(ENV_PREFIX) and name.upper() not in here
    }
    return {name: value for name, value in found.items() if name in Settings.model_fields}


def _check_env_file(text: str, variables: Mapping[str, str | None]) -> None:
    names = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    try:
        check_lines(text, ENV_PREFIX, names)
    except SettingsError as error:
        raise SettingsError(f"{_ENV_FILE}: {error.message}") from error
    _check_names(variables, place=f"{_ENV_FILE}: ")


def _check_names(variables: Mapping[str, str | None], *, place: str) -> None:
    """Refuse names that look like a setting and are none, so that no slip goes unnoticed."""
    known = [name.upper() for name in Settings.model_fields]
    spelled: dict[str, str] = {}
    for variable, value in sorted(variables.items()):
        name = variable.upper()
        if not name.startswith(ENV_PREFIX):
            continue
        if variables[spelled.setdefault(name, variable)] != value:
            raise SettingsError(
                f"{place}{variable}: {spelled[name]} says otherwise, and case does not count; keep "
                "one of them"
            )
        name = name.removeprefix(ENV_PREFIX)
        if name not in known and not _is_anothers(name, value or ""):
            # The value may be a secret.
            raise SettingsError(f"{place}{variable}: is no setting; {_remedy(name, known)}")


def _is_anothers(name: str, value: str) -> bool:
    """Return whether a variable is meant for clients, or injected by Kubernetes."""
    is_link = name.endswith("PORT") and _KUBERNETES_PORT.match(value) is not None
    return name in _OF_CLIENTS or is_link or _OF_KUBERNETES.fullmatch(name) is not None


def _remedy(name: str, known: list[str]) -> str:
    if name in _OF_UVICORN:
        return _OF_UVICORN[name]
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {ENV_PREFIX}{close[0]}?"
    return "docs/settings.md lists them"
