from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from sandbox_adapters.redis_connection import RedisOptions
from sandbox_adapters.redis_options import check_redis, redis_secrets
from sandbox_adapters.settings import (
    Settings,
    SettingsError,
    check_exposure,
    unknown_variables,
    variable_name,
)


def test_the_guide_s_variables_have_the_guide_s_defaults() -> None:
    settings = Settings()
    assert settings.redis_url is None
    assert settings.auth_token is None
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.max_concurrent, settings.max_per_session) == (10, 5)
    assert settings.timeout == 300
    assert settings.log_file == "sandbox_server.log"
    assert settings.ttl_seconds == 3600
    assert settings.max_queued == 100


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("SANDBOX_HOST", "::1", "host", "::1"),
        ("SANDBOX_PORT", "0", "port", 0),
        ("SANDBOX_MAX_CONCURRENT", "3", "max_concurrent", 3),
        ("SANDBOX_TIMEOUT", "1.5", "timeout", 1.5),
        ("SANDBOX_LOG_FILE", "", "log_file", ""),
        ("SANDBOX_LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("SANDBOX_RUNNER", "local", "runner", "local"),
        ("SANDBOX_ALLOW_UNAUTHENTICATED", "true", "allow_unauthenticated", True),
        ("SANDBOX_MAX_PER_PRINCIPAL", "", "max_per_principal", None),
        ("SANDBOX_READ_ONLY_PATHS", "/opt, /srv", "read_only_paths", (Path("/opt"), Path("/srv"))),
        ("SANDBOX_READ_ONLY_PATHS", '["/a,b"]', "read_only_paths", (Path("/a,b"),)),
        ("SANDBOX_ALLOWED_HOSTS", "a.example,b.example:81", "allowed_hosts", ("a.example", "b.example:81")),
        ("SANDBOX_CEILING", '{"maxOutputBytes": 5}', "ceiling", {"maxOutputBytes": 5}),
        ("SANDBOX_DEFAULTS", "", "defaults", {}),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: Any
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), field) == value


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_PORT", "9000")
    monkeypatch.setenv("REDIS_URL", "redis://localhost")
    settings = Settings(port=9001, redis_url=None)
    assert settings.port == 9001
    assert settings.redis_url is None


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SANDBOX_PORT", "http"),
        ("SANDBOX_PORT", "65536"),
        ("SANDBOX_PORT", "-1"),
        ("SANDBOX_PORT", ""),
        ("SANDBOX_HOST", "no host"),
        ("SANDBOX_HOST", ""),
        ("SANDBOX_MAX_CONCURRENT", "0"),
        ("SANDBOX_MAX_CONCURRENT", "9" * 5000),
        ("SANDBOX_TIMEOUT", "nan"),
        ("SANDBOX_TIMEOUT", "inf"),
        ("SANDBOX_TIMEOUT", "0"),
        ("SANDBOX_RUNNER", "docker"),
        ("SANDBOX_STATE", "disk"),
        ("SANDBOX_AUTH_TOKEN", ""),
        ("SANDBOX_AUTH_TOKEN", "two words"),
        ("SANDBOX_AUTH_TOKEN", "schlüssel"),
        ("SANDBOX_ALLOW_UNAUTHENTICATED", "perhaps"),
        ("SANDBOX_READ_ONLY_PATHS", "opt"),
        ("SANDBOX_READ_ONLY_PATHS", "[oops"),
        ("SANDBOX_CEILING", "{"),
        ("SANDBOX_CEILING", "[]"),
        ("SANDBOX_CEILING", '{"netwrk": {}}'),
        ("SANDBOX_DEFAULTS", '{"filesystem": {"deny_read": ["/etc"]}}'),
        ("SANDBOX_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_value_is_refused_by_the_variable_s_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{variable}: ")


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_PORT", "x")
    monkeypatch.setenv("SANDBOX_TIMEOUT", "x")
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["SANDBOX_PORT", "SANDBOX_TIMEOUT"]


def test_an_unknown_argument_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"prot is not a setting \(did you mean port\?\)"):
        Settings(prot=1)  # type: ignore[call-arg]  # a misspelt argument is what is tested


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_AUTH_TOKEN", "s3cret")
    monkeypatch.setenv("REDIS_URL", "redis://user:s3cret@host/0")
    settings = Settings()
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)
    monkeypatch.setenv("SANDBOX_AUTH_TOKEN", "s3cret with a space")
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_redis_url_puts_the_state_into_redis_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().state == "memory"
    assert Settings.model_validate({"redis_url": "redis://localhost"}).state == "redis"
    monkeypatch.setenv("REDIS_URL", "redis://localhost")
    assert Settings().state == "redis"
    assert Settings(redis_url=None).state == "memory"
    assert Settings(state="memory").state == "memory"
    monkeypatch.setenv("REDIS_URL", "")
    assert Settings().state == "memory"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gopher://:s3cret@x",
        "redis://:s3cret@h:port",
        "s3cret",
        "redis://s3cret@[::1/0",
        "redis://:one@s3cret/two@localhost:6379/0",
        "redis://:6@s3cret@localhost/0",
        "redis://user:1?s3cret@localhost/0",
        "redis://user:1#s3cret@localhost/0",
        "redis://localhost/s3cret",
        "redis://localhost/0?s3cret=1",
        "redis://localhost/0?ssl_ca_certs=/s3cret",
        "rediss://localhost/0?ssl_ca_cert=/s3cret",
        "redis://localhost/0?socket_timeout=s3cret",
        "unix://:one@two@/s3cret",
    ],
)
def test_what_is_no_redis_is_refused_without_showing_it(url: str) -> None:
    settings = Settings.model_validate({"redis_url": url, "state": "redis"})
    with pytest.raises(SettingsError, match="REDIS_URL") as caught:
        check_redis(settings)
    assert "s3cret" not in f"{caught.value}{caught.value.__cause__}"


def test_the_passwords_of_redis_are_known_to_the_log() -> None:
    settings = Settings.model_validate(
        {"redis_url": "rediss://u:a%2Fb@h:1/0", "redis_sentinel_password": "c", "redis_sentinels": "h:1,[::1]:2"}
    )
    assert redis_secrets(settings) == ["a%2Fb", "a/b", "c"]
    assert settings.redis_sentinels == ("h:1", "[::1]:2")
    assert redis_secrets(Settings.model_validate({"redis_url": "redis://[s3cret"})) == []
    by_option = Settings.model_validate({"redis_url": "unix:///run/redis.sock?db=1&password=a%2Fb+c"})
    assert {"a%2Fb+c", "a/b c"} <= set(redis_secrets(by_option))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", "localhost:6379, database 0"),
        ("REDIS://user:p%40ss:word%2F@redis-1.example.com:6380/12", "redis-1.example.com:6380, database 12"),
        ("rediss://[::1]:6379/1?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=required", "::1:6379, database 1"),
        ("unix://:secret@/run/redis.sock?db=3", "/run/redis.sock, database 3"),
        ("redis://:s p,e;c!i$a*l@127.0.0.1/", "127.0.0.1:6379, database 0"),
    ],
)
def test_a_redis_url_is_read(url: str, address: str) -> None:
    assert RedisOptions(SecretStr(url)).address == address


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_a_misspelt_variable_is_named() -> None:
    sentences = unknown_variables({"SANDBOX_MAX_CONCURENT": "3", "sandbox_port": "1", "SANDBOX_ZZZ": "", "HOME": "/"})
    assert sentences == [
        "SANDBOX_MAX_CONCURENT is not a setting (did you mean SANDBOX_MAX_CONCURRENT?); it is ignored.",
        "SANDBOX_ZZZ is not a setting; it is ignored.",
    ]


def test_every_field_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    assert variable_name("redis_url") == "REDIS_URL"
    assert variable_name("port") == "SANDBOX_PORT"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "sandbox.example", "localhost.example"])
def test_another_address_needs_a_token_or_the_operator_s_word(host: str) -> None:
    with pytest.raises(SettingsError, match="SANDBOX_AUTH_TOKEN"):
        check_exposure(Settings(host=host))
    check_exposure(Settings.model_validate({"host": host, "auth_token": "abc"}))
    check_exposure(Settings(host=host, allow_unauthenticated=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queue_url": "redis://localhost"}, "SANDBOX_QUEUE_URL is set, and the state is in memory"),
        ({"local_runner": False}, "SANDBOX_LOCAL_RUNNER is false, and without SANDBOX_QUEUE_URL"),
        ({"local_runner": False, "redis_url": "redis://localhost"}, "without SANDBOX_QUEUE_URL"),
        ({"redis_url": "redis://localhost", "queue_url": "redis://localhost:x"}, "SANDBOX_QUEUE_URL is not a Redis"),
        ({"redis_url": "redis://localhost", "queue_url": "nats://localhost:x"}, "SANDBOX_QUEUE_URL is not a NATS"),
        (
            {"redis_url": "redis://localhost", "queue_url": "nats://localhost?replicas=2"},
            "no option but replicas and ssl_ca_certs",
        ),
        ({"queue_url": "nats://localhost"}, "SANDBOX_QUEUE_URL is set, and the state is in memory"),
        ({"queue_url": "amqp://localhost"}, "SANDBOX_QUEUE_URL is set, and the state is in memory"),
        ({"redis_url": "redis://localhost", "queue_url": "amqp://localhost:x"}, "SANDBOX_QUEUE_URL is not a RabbitMQ"),
        ({"redis_url": "redis://localhost", "queue_url": "amqp://localhost?verify=no"}, "no options but those of TLS"),
    ],
)
def test_a_queue_that_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_redis(Settings.model_validate(given))


@pytest.mark.parametrize("url", ["kafka://guest@localhost", "localhost:6379", "http://["])
def test_another_engine_for_the_queue_is_refused_without_showing_the_url(url: str) -> None:
    with pytest.raises(SettingsError, match="SANDBOX_QUEUE_URL: must begin with one of redis://") as caught:
        Settings(queue_url=SecretStr(url), redis_url=SecretStr("redis://localhost"))
    assert url not in str(caught.value)


def test_the_password_of_the_queue_is_a_secret() -> None:
    settings = Settings(redis_url=SecretStr("redis://localhost"), queue_url=SecretStr("redis://:p%40ss@localhost"))
    assert redis_secrets(settings) == ["p%40ss", "p@ss"]


def test_a_queue_in_nats_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(redis_url=SecretStr("redis://localhost"), queue_url=SecretStr("nats://u:p@localhost"))
    check_redis(settings)
    monkeypatch.setattr("sandbox_adapters.redis_options.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install sandbox-mcp\[nats\]"):
        check_redis(settings)


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("nats://u:p%40ss@one:4222,tls://two", ["p%40ss", "p@ss"]),
        ("nats://one,nats://v:other@two", ["other"]),
        ("tls://t%2Fken@one", ["t%2Fken", "t/ken"]),
        ("nats://one", []),
        ("amqps://u:p%40ss@one/v", ["p%40ss", "p@ss"]),
    ],
)
def test_the_password_and_the_token_for_nats_are_secrets(url: str, secrets: list[str]) -> None:
    settings = Settings(redis_url=SecretStr("redis://localhost"), queue_url=SecretStr(url))
    assert redis_secrets(settings) == secrets
