"""What the URLs of Redis and of the queue say of TLS: refused at the start when it cannot be used, now or later."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_adapters.redis_options import check_redis
from sandbox_adapters.settings import Settings, SettingsError
from tests.certificates import self_signed

PLACES = [
    pytest.param("rediss://:s3cret@h", "ssl_ca_certs", "REDIS_URL", id="state"),
    pytest.param("rediss://:s3cret@h", "ssl_ca_certs", "SANDBOX_QUEUE_URL", id="redis"),
    pytest.param("tls://u:s3cret@h", "ssl_ca_certs", "SANDBOX_QUEUE_URL", id="nats"),
    pytest.param("amqps://u:s3cret@h/", "cafile", "SANDBOX_QUEUE_URL", id="rabbitmq"),
]


def settings_of(variable: str, url: str) -> Settings:
    given = {"redis_url": "redis://localhost"}
    given["redis_url" if variable == "REDIS_URL" else "queue_url"] = url
    return Settings.model_validate(given)


@pytest.mark.parametrize(("url", "option", "variable"), PLACES)
def test_an_authority_that_can_be_read_is_taken(url: str, option: str, variable: str, tmp_path: Path) -> None:
    check_redis(settings_of(variable, f"{url}?{option}={self_signed(tmp_path, 'ca')}"))


@pytest.mark.parametrize(("url", "option", "variable"), PLACES)
def test_one_that_is_missing_or_is_none_is_refused(url: str, option: str, variable: str, tmp_path: Path) -> None:
    (empty := tmp_path / "empty.pem").touch()
    for path, reason in ((tmp_path / "missing.pem", "No such file or directory"), (empty, "TLS fails: ")):
        with pytest.raises(SettingsError, match=f"^{variable}: a file for TLS cannot be used: {reason}") as refused:
            check_redis(settings_of(variable, f"{url}?{option}={path}"))
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=never", "ssl_min_version=3", "ssl_keyfile=/etc/hostname"])
@pytest.mark.parametrize("variable", ["REDIS_URL", "SANDBOX_QUEUE_URL"])
def test_a_value_that_is_none_is_refused(option: str, variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}: an option for TLS has a value that cannot be used"):
        check_redis(settings_of(variable, f"rediss://:s3cret@h?{option}"))
