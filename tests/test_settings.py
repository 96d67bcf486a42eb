"""Settings: defaults, the environment, `.env` and mistakes in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policy_server.errors import SettingsError
from policy_server.settings import (
    ENV_PREFIX,
    Settings,
    find_log_format,
    read_settings,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{ENV_PREFIX}{name.upper()}", raising=False)


def test_files_lie_in_the_working_directory_by_default() -> None:
    settings = read_settings()

    assert settings.schema_path == Path("schema.yaml")
    assert settings.zip_path == Path("saved_model.zip")
    assert settings.models_path == Path("models")
    assert (settings.backend, settings.metrics_port) == ("ray", 8080)
    assert settings.api_key is None


def test_environment_wins_over_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("POLICY_SERVER_HOME=from-file\nPOLICY_SERVER_BACKEND=local\nOTHER=1\n")
    monkeypatch.setenv("POLICY_SERVER_HOME", "from-environment")

    settings = read_settings()

    assert settings.models_path == Path("from-environment/models")
    assert settings.backend == "local"


@pytest.mark.parametrize("quote", ["'", '"', ""], ids=["single", "double", "none"])
@pytest.mark.parametrize("value", ["a${NOPE}b", "a${HOME}b", "a${HOME:-x}b", "$HOME", "${HOME}"])
def test_value_of_the_file_is_taken_as_written(value: str, quote: str) -> None:
    Path(".env").write_text(
        f"HOME=elsewhere\nPOLICY_SERVER_API_KEY={quote}{value}{quote}\n"
        f"policy_server_fluentd_host={quote}{value}{quote}\n"
    )

    settings = read_settings()

    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == settings.fluentd_host == value


def test_log_format_of_the_file_is_taken_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORMAT", "json")
    Path(".env").write_text("POLICY_SERVER_LOG_FORMAT=${FORMAT}\n")

    assert find_log_format() == "auto"
    with pytest.raises(SettingsError, match=r"^POLICY_SERVER_LOG_FORMAT: .*, got '\$\{format\}'$"):
        read_settings()


def test_empty_value_of_the_file_means_the_default() -> None:
    Path(".env").write_text("POLICY_SERVER_API_KEY=\nPOLICY_SERVER_NUM_REPLICAS=''\n")

    settings = read_settings()

    assert (settings.api_key, settings.num_replicas) == (None, 1)


def test_environment_wins_over_dotenv_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("POLICY_SERVER_NUM_REPLICAS=many\npolicy_server_drain_s=3\n")
    monkeypatch.setenv("policy_server_num_replicas", "2")
    monkeypatch.setenv("Policy_Server_Drain_S", "")

    settings = read_settings()

    assert (settings.num_replicas, settings.drain_s) == (2, 0)


def test_empty_variable_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "POLICY_SERVER_MODEL_URI=s3://bucket/other.zip\nPOLICY_SERVER_NUM_REPLICAS=3\n"
        "POLICY_SERVER_LOG_FORMAT=json\n"
    )
    for name in ("MODEL_URI", "NUM_REPLICAS", "LOG_FORMAT"):
        monkeypatch.setenv(f"POLICY_SERVER_{name}", "")

    settings = read_settings()

    assert (settings.model_uri, settings.num_replicas) == (None, 1)
    assert find_log_format() == "auto"


def test_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_SERVER_API_KEY", "")
    monkeypatch.setenv("POLICY_SERVER_METRICS_PORT", "")

    assert read_settings() == Settings()


def test_key_does_not_show_in_the_settings_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_SERVER_API_KEY", "hunter2")

    settings = read_settings()

    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("BACKEND", "gpu", "expected 'ray' or 'local', got 'gpu'"),
        (
            "METRICS_PORT",
            "http",
            "expected a valid integer, unable to parse string as an integer, got 'http'",
        ),
        ("METRICS_PORT", "70000", "expected less than or equal to 65535, got '70000'"),
        ("NUM_REPLICAS", "0", "expected greater than or equal to 1, got '0'"),
        ("REQUEST_TIMEOUT_S", "nan", "expected a finite number, got 'nan'"),
        ("REQUEST_TIMEOUT_S", "inf", "expected a finite number, got 'inf'"),
        ("REQUEST_TIMEOUT_S", "0", "expected greater than 0, got '0'"),
        (
            "ALLOW_ANONYMOUS",
            "maybe",
            "expected a valid boolean, unable to interpret input, got 'maybe'",
        ),
        ("LOG_LEVEL", "LOUD", "expected 'DEBUG', 'INFO', 'WARNING' or 'ERROR', got 'LOUD'"),
        ("NUM_REPLICAS", "1000000", "expected less than or equal to 10000, got '1000000'"),
        (
            "MAX_CALL_MEMORY_BYTES",
            "9223372036854775808",
            "expected less than or equal to 1152921504606846976, got '9223372036854775808'",
        ),
        ("METRICS_HOST", "a..b", "expected the name or the address of a host, got 'a..b'"),
        ("DASHBOARD_HOST", " ", "expected the name or the address of a host, got ' '"),
        ("FLUENTD_HOST", "e" * 64, f"expected the name or the address of a host, got '{'e' * 64}'"),
        ("FLUENTD_HOST", "\udcff", "expected text in UTF-8, got '\\udcff'"),
        ("STATE_KEY", "\udcff", "expected text in UTF-8"),
        (
            "STATE_KEY",
            " ",
            "expected 16 random characters or more, blanks at its ends not counted",
        ),
        (
            "STATE_KEY",
            f"fifteen-letters{' ' * 9}",
            "expected 16 random characters or more, blanks at its ends not counted",
        ),
        (
            "MAX_KEY_RATE",
            "1e-320",
            "expected 0, for no limit, or at least 0.000001, got '1e-320'",
        ),
        (
            "MAX_ADDRESS_RATE",
            "9e-7",
            "expected 0, for no limit, or at least 0.000001, got '9e-7'",
        ),
    ],
    ids=lambda value: value.lower()[:16],
)
def test_mistake_is_one_line_that_names_the_variable(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"POLICY_SERVER_{name}", value)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert caught.value.message == f"POLICY_SERVER_{name}: {message}"


def test_value_of_any_length_is_quoted_in_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_SERVER_NUM_REPLICAS", "1" * 100_000)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    start = "POLICY_SERVER_NUM_REPLICAS: expected an integer of fewer digits, got '111"
    assert caught.value.message.startswith(start)
    assert len(caught.value.message) <= 800


def test_fewer_replicas_under_load_than_without_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLICY_SERVER_NUM_REPLICAS", "4")
    monkeypatch.setenv("POLICY_SERVER_MAX_REPLICAS", "2")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert caught.value.message == (
        "POLICY_SERVER_MAX_REPLICAS: expected 0, or at least POLICY_SERVER_NUM_REPLICAS, which is "
        "4, got '2'"
    )


def test_setting_in_two_spellings_that_disagree_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLICY_SERVER_LOG_LEVEL", "debug")
    monkeypatch.setenv("policy_server_log_level", "debug")
    assert read_settings().log_level == "DEBUG"
    monkeypatch.setenv("policy_server_log_level", "error")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert caught.value.message == (
        "policy_server_log_level: POLICY_SERVER_LOG_LEVEL says otherwise, and case does not "
        "count; keep one of them"
    )


@pytest.mark.parametrize("key", [" hunter2", "hunter2\n", "schlüssel", "a\tb", " "])
def test_key_that_no_header_can_carry_is_refused_without_being_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_API_KEY", key)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert caught.value.message == (
        "POLICY_SERVER_API_KEY: expected printable ASCII text without spaces at its ends; HTTP "
        "headers carry nothing else"
    )


@pytest.mark.parametrize("name", ["API_KEY", "ADMIN_KEY", "METRICS_KEY"])
def test_hash_is_no_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"POLICY_SERVER_{name}", f"sha256:{'0' * 64}")

    with pytest.raises(SettingsError, match=r"expected a key, not the hash of one, which para"):
        read_settings()


TIMES = [name for name in Settings.model_fields if name.endswith("_s") and name != "drain_s"]


@pytest.mark.parametrize("value", ["1e14", "1.7e308"])
@pytest.mark.parametrize("name", TIMES)
def test_time_that_a_clock_of_the_system_cannot_count_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(**{name: value})

    assert caught.value.message == (
        f"{name}: expected less than or equal to 9000000000000, got {value!r}"
    )


@pytest.mark.parametrize("name", TIMES)
def test_time_without_an_end_may_be_given_as_a_long_one(name: str) -> None:
    assert getattr(read_settings(**{name: "9e12"}), name) == 9e12


def test_dotenv_that_is_no_text_is_one_line() -> None:
    Path(".env").write_bytes(b"POLICY_SERVER_HOME=\xff\xfe\n")

    with pytest.raises(SettingsError, match=r"^\.env: can't be read: expected text in UTF-8; mend"):
        read_settings()


@pytest.mark.parametrize("name", ["POLICY_SERVER_METRICS_KEY", "POLICY_SERVER_LOG_FORMAT"])
def test_dotenv_line_that_cannot_be_read_is_refused(name: str) -> None:
    Path(".env").write_text(f"POLICY_SERVER_LOG_FORMAT=json\n{name}: json\n")

    with pytest.raises(
        SettingsError, match=rf"^\.env: line 2: {name} can't be read; expected NAME="
    ):
        read_settings()
    assert find_log_format() == "json"


def test_dotenv_that_is_a_named_pipe_is_one_line() -> None:
    os.mkfifo(".env")

    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert find_log_format() == "auto"
    assert caught.value.message == (
        ".env: can't be read: it is a named pipe; expected a file; mend it or remove it"
    )


def test_dotenv_that_is_a_folder_is_one_line() -> None:
    Path(".env").mkdir()

    with pytest.raises(
        SettingsError, match=r"^\.env: can't be read: it is a folder; expected a fi"
    ):
        read_settings()


ORIGINS = {
    "one": ("https://app.example.com", ("https://app.example.com",)),
    "all": ("*", ("*",)),
    "commas": ("https://a.example, http://b.example:3000", ("https://a.example", "http://b.example:3000")),
    "spaces": (" https://a.example  http://b.example ", ("https://a.example", "http://b.example")),
    "JSON": ('["https://a.example", "http://b.example"]', ("https://a.example", "http://b.example")),
    "as a person writes it": ("HTTPS://App.Example.com/", ("https://app.example.com",)),
    "usual ports": ("https://a.example:443,http://b.example:80", ("https://a.example", "http://b.example")),
    "address": ("http://[::1]:3000,http://127.0.0.1:80", ("http://[::1]:3000", "http://127.0.0.1")),
    "an app's": ("capacitor://localhost", ("capacitor://localhost",)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "origins"), ORIGINS.values(), ids=ORIGINS)
def test_origins_are_read_as_browsers_write_them(
    text: str, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_CORS_ORIGINS", text)

    assert read_settings().cors_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        *("app.example.com", "https://app.example.com/page", "https://*.example.com", "https://"),
        *(
            "true",
            "null",
            "https://a.example;https://b.example/x",
            "https://me@a.example",
            "https:///",
        ),
    ],
)
def test_origin_that_no_browser_sends_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_CORS_ORIGINS", text)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert caught.value.message == (
        "POLICY_SERVER_CORS_ORIGINS: expected origins such as https://app.example.com, separated "
        f"by commas, or * for all, got {text!r}"
    )


def test_words_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOG_LEVEL": "debug", "LOG_FORMAT": "JSON", "BACKEND": "Local"}.items():
        monkeypatch.setenv(f"{ENV_PREFIX}{name}", value)

    settings = read_settings()

    assert (settings.log_level, settings.log_format, settings.backend) == ("DEBUG", "json", "local")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("POLICY_SERVER_APIKEY", "did you mean POLICY_SERVER_API_KEY?"),
        ("POLICY_SERVER_KEY", "did you mean POLICY_SERVER_API_KEY?"),
        ("policy_server_log_leve", "did you mean POLICY_SERVER_LOG_LEVEL?"),
        ("POLICY_SERVER_METRIC_PORT", "did you mean POLICY_SERVER_METRICS_PORT?"),
        ("POLICY_SERVER_PORT", "uvicorn's --port or UVICORN_PORT says where it listens"),
        ("POLICY_SERVER_COLOUR", "docs/settings.md lists them"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_name_that_is_no_setting_is_refused_without_its_value(
    name: str, remedy: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == ".env":
        Path(".env").write_text(f"{name}=hunter2\n")
    else:
        monkeypatch.setenv(name, "hunter2")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    prefix = ".env: " if place == ".env" else ""
    assert caught.value.message == f"{prefix}{name}: is no setting; {remedy}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POLICY_SERVER_URL", "http://127.0.0.1:8000"),
        ("POLICY_SERVER_SERVICE_HOST", "10.0.0.1"),
        ("POLICY_SERVER_SERVICE_PORT", "8000"),
        ("POLICY_SERVER_SERVICE_PORT_HTTP", "8000"),
        ("POLICY_SERVER_PORT", "tcp://10.0.0.1:8000"),
        ("POLICY_SERVER_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("POLICY_SERVER_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("POLICY_SERVER_CANARY_SERVICE_HOST", "10.0.0.1"),
        ("POLICY_SERVER_CANARY_PORT", "udp://10.0.0.1:8000"),
        ("POLICY_SERVER_CANARY_PORT_53_UDP_PROTO", "udp"),
        # Services that are named as a setting is.
        ("POLICY_SERVER_METRICS_PORT", "tcp://10.0.0.1:9000"),
        ("POLICY_SERVER_DASHBOARD_PORT", "tcp://10.0.0.1:9000"),
        ("POLICY_SERVER_FLUENTD_PORT", "tcp://10.0.0.1:9000"),
        ("POLICY_SERVERS", "2"),
    ],
)
def test_variable_of_clients_and_of_kubernetes_passes(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    assert read_settings() == Settings(metrics_port=8080)


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://redis:6379/0",
        "redis://:p%40ss%2Fword@[::1]:6380/15",
        "rediss://user:pass@redis.example.com?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis/redis.sock",
        "unix://:pass@/run/redis.sock?db=3",
    ],
)
def test_address_of_the_sessions_is_taken_and_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_SESSIONS_URL", url)

    settings = read_settings()

    assert settings.sessions_url is not None
    assert settings.sessions_url.get_secret_value() == url
    assert url not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "http://:hunter2@redis:6379",
        "redis://:hunter2@",
        "redis://:hunter2@redis:port",
        "redis://:hunter2@redis:70000",
        "redis://:hunter2@redis:6379/first",
        "redis://:hunter2@redis/0?db=1",
        "redis://:hunter2@redis?decode_responses=True",
        "rediss://:hunter2@redis?ssl_nonsense=1",
        "redis://:hunter2/3@redis:6379",
        "redis://:hunter2#3@redis:6379",
        "redis://:hunter2?3@redis:6379",
        "redis://:hunter2 3@redis:6379",
        "unix://:hunter2@",
        "unix://hunter2",
        "unix://host/run/redis.sock?password=hunter2",
    ],
)
def test_address_of_the_sessions_that_is_none_is_refused_without_being_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_SESSIONS_URL", url)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert caught.value.message.startswith("POLICY_SERVER_SESSIONS_URL: expected a URL such as ")
    assert "hunter2" not in caught.value.message
