"""RabbitOptions: what one URL says of RabbitMQ, and what of it may be shown."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from sandbox_adapters.rabbitmq_options import RabbitOptions


def options(url: str, prefix: str = "") -> RabbitOptions:
    return RabbitOptions(SecretStr(url), prefix=prefix)


def test_user_password_and_virtual_host_are_decoded_and_the_password_is_shown_nowhere() -> None:
    given = options("amqp://us%40er:p%2Fs%3As@One:4333/a%2Fb")
    assert (given.user, given.password, given.virtual_host) == ("us@er", "p/s:s", "a/b")
    assert (given.host, given.port, given.wants_tls) == ("one", 4333, False)
    assert given.address == "one:4333, virtual host a/b"
    assert "p%2Fs" not in repr(given)
    assert "p/s" not in repr(given)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://one", "one:5672, virtual host /"),
        ("amqp://one/", "one:5672, virtual host /"),
        ("amqps://one/%2F", "one:5671, virtual host /"),
        ("amqp://[::1]:5/v", "[::1]:5, virtual host v"),
    ],
)
def test_what_the_url_leaves_out_is_as_usual(url: str, address: str) -> None:
    assert options(url).address == address
    assert (options(url).user, options(url).password) == ("guest", "guest")


def test_only_tls_has_options() -> None:
    given = options("amqps://u:p@one/v?cafile=/etc/ca.pem&certfile=/c&keyfile=/k")
    assert given.wants_tls
    assert given.tls_files == {"cafile": "/etc/ca.pem", "certfile": "/c", "keyfile": "/k"}
    assert options("amqps://one").tls_files == {}


@pytest.mark.parametrize(
    "url",
    [
        "amqp://", "amqp:///v", "redis://one", "amqp://one:x", "amqp://one:0", "amqp://one/a/b", "amqp://u:p/w@one",
        "amqp://u:p@w@one", "amqp://one#x", "amqp://one?heartbeat=0", "amqp://one?cafile=/x", "amqps://one?no_verify_ssl=1",
        "amqps://one?cafile=", "amqps://one?cafile", "one:5672", "",
    ],
)  # fmt: skip
def test_what_is_no_url_of_rabbitmq_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(is not an AMQP URL|has an option|bad query field|Port )") as caught:
        _ = options(url).address
    assert "p@w" not in str(caught.value)
    assert "p/w" not in str(caught.value)


def test_the_prefix_is_in_the_names() -> None:
    assert options("amqp://one", "a:b").base == "sandbox.a:b"
    assert options("amqp://one").base == "sandbox"
