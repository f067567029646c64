from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sandbox_adapters import secrets_file
from sandbox_adapters.egress.operator_secrets import Injection, OperatorSecrets
from sandbox_adapters.secrets_file import load_secrets
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_core.domain.ids import Principal
from tests.unit.egress.authorities import Made, make_authority

VALUE = "s3cret-value"
ALICE, BOB = Principal("alice"), Principal("bob")
GOOD: dict[str, Any] = {"value": VALUE, "domains": ["api.test"]}

Load = Callable[..., OperatorSecrets]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write the file, load it."""

    def run(
        given: Any, *, mode: int = 0o600, environment: dict[str, str] | None = None, **settings: Any
    ) -> OperatorSecrets:
        path = tmp_path / "secrets.json"
        path.write_text(given if isinstance(given, str) else json.dumps(given))
        path.chmod(mode)
        settings.setdefault("egress_ca_cert", "auto")
        return load_secrets(Settings(secrets_file=path, **settings), environment or {})

    return run


def sent(found: Injection, host: str) -> dict[str, str]:
    assert found.interception is not None
    return dict(found.interception.inject_headers(host, 443))


def test_without_a_file_nothing_is_added() -> None:
    loaded = load_secrets(Settings())
    assert loaded.for_principal(ALICE) == Injection()
    assert loaded.trust_bundle() is None
    assert loaded.environment() == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"Authorization": f"Bearer {VALUE}"}),
        ({"header": "authorization"}, {"authorization": f"Bearer {VALUE}"}),
        ({"header": "X-Api-Key"}, {"X-Api-Key": VALUE}),
        ({"header": "X-Api-Key", "format": "key={};v=1"}, {"X-Api-Key": f"key={VALUE};v=1"}),
        ({"format": "Basic {base64}", "value": "user:word"}, {"Authorization": "Basic dXNlcjp3b3Jk"}),
    ],
)
def test_a_secret_becomes_a_header_of_its_domains(load: Load, given: dict[str, Any], expected: dict[str, str]) -> None:
    found = load({"one": {**GOOD, **given}}).for_principal(ALICE)
    assert sent(found, "api.test") == expected
    assert sent(found, "sub.api.test") == sent(found, "api.test.evil.example") == sent(found, "192.0.2.1") == {}
    assert found.inject_headers is not None
    assert found.inject_headers("api.test", 80) == {}


def test_plain_http_gets_a_secret_only_when_it_says_so(load: Load) -> None:
    found = load({"one": {**GOOD, "plain_http": True}}, egress_ca_cert=None).for_principal(None)
    assert found.interception is None
    assert found.inject_headers is not None
    assert found.inject_headers("api.test", 80) == {"Authorization": f"Bearer {VALUE}"}
    assert load({"one": {**GOOD, "plain_http": True}}, egress_ca_cert=None).trust_bundle() is None


def test_a_wildcard_does_not_match_its_apex(load: Load) -> None:
    found = load({"one": {**GOOD, "domains": ["*.api.test"]}}).for_principal(ALICE)
    assert sent(found, "a.b.api.test")
    assert not sent(found, "api.test")


def test_each_principal_gets_its_own_and_nobody_gets_anothers(load: Load) -> None:
    loaded = load(
        {
            "a": {"value": "for-alice", "domains": ["api.test"], "principals": ["alice"]},
            "b": {"value": "for-bob", "domains": ["*.test"], "principals": ["bob"]},
            "all": {"value": "for-all", "domains": ["api.test"], "header": "X-All"},
        }
    )
    assert sent(loaded.for_principal(ALICE), "api.test") == {"Authorization": "Bearer for-alice", "X-All": "for-all"}
    assert sent(loaded.for_principal(BOB), "api.test") == {"Authorization": "Bearer for-bob", "X-All": "for-all"}
    for nobody in (None, Principal("eve")):
        assert sent(loaded.for_principal(nobody), "api.test") == {"X-All": "for-all"}
    only_alice = load({"a": {**GOOD, "principals": ["alice"]}})
    assert only_alice.for_principal(BOB) == Injection()


def test_values_come_from_a_file_beside_it_or_from_the_environment(load: Load, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{VALUE}\n")
    (tmp_path / "token").chmod(0o400)
    one = {"value_file": "token", "domains": ["api.test"]}
    other = {"value_env": "TOKEN", "domains": ["other.test"]}
    found = load({"one": one, "other": other}, environment={"TOKEN": "from-the-environment"}).for_principal(ALICE)
    assert sent(found, "api.test") == {"Authorization": f"Bearer {VALUE}"}
    assert sent(found, "other.test") == {"Authorization": "Bearer from-the-environment"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "is not JSON"),
        (f'{{"one": {VALUE}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must be a JSON object like"),
        (f'["{VALUE}"]', "must be a JSON object like"),
        (f'{{"one": {{"value": "{VALUE}", "value": "x"}}}}', "the name 'value' is given twice"),
        ({"one": VALUE}, "the secret 'one': it: "),
        ({"one": {**GOOD, "colour": VALUE}}, "colour: Extra inputs are not permitted"),
        ({"one": {"domains": ["api.test"]}}, "exactly one of value, value_file and value_env"),
        ({"one": {**GOOD, "value_env": "X"}}, "exactly one of value, value_file and value_env"),
        ({"one": {"value_env": "X", "domains": ["api.test"]}}, "the environment has no 'X'"),
        ({"one": {"value_file": "missing", "domains": ["api.test"]}}, "cannot be read: No such file"),
        ({"one": {**GOOD, "value": ""}}, "its value is empty"),
        ({"one": {**GOOD, "value": "x" * 8193}}, "over 8192 bytes"),
        ({"one": {**GOOD, "value": f"{VALUE}\r\nX: 1"}}, "value: must be visible ASCII"),
        ({"one": {**GOOD, "value": f"{VALUE}\u00e9"}}, "value: must be visible ASCII"),
        ({"one": {**GOOD, "value": [VALUE]}}, "value: Input should be a valid string"),
        ({"one": {"value": VALUE}}, "domains: Field required"),
        ({"one": {**GOOD, "domains": []}}, "domains: "),
        ({"one": {**GOOD, "domains": ["*"]}}, "domains: '*' is not"),
        ({"one": {**GOOD, "domains": ["api.*.test"]}}, "domains: "),
        ({"one": {**GOOD, "domains": ["https://api.test"]}}, "domains: "),
        ({"one": {**GOOD, "header": "Host"}}, "header: Host frames or routes"),
        ({"one": {**GOOD, "header": "content-length"}}, "frames or routes"),
        ({"one": {**GOOD, "header": "Proxy-Authorization"}}, "frames or routes"),
        ({"one": {**GOOD, "header": "X Y"}}, "is not the name of a header field"),
        ({"one": {**GOOD, "header": "X:"}}, "is not the name of a header field"),
        ({"one": {**GOOD, "header": ""}}, "is not the name of a header field"),
        ({"one": {**GOOD, "format": "Bearer"}}, "format: must have {}"),
        ({"one": {**GOOD, "format": "{} {}"}}, "format: must have {}"),
        ({"one": {**GOOD, "format": "{} {base64}"}}, "format: must have {}"),
        ({"one": {**GOOD, "format": "{}\n"}}, "value: must be visible ASCII"),
        ({"one": {**GOOD, "principals": []}}, "principals: is empty"),
        ({"one": {**GOOD, "principals": ["a b"]}}, "must be 1 to 128 characters"),
        ({"one": {**GOOD, "plain_http": "yes"}}, "plain_http: "),
        ({"one": GOOD, "two": {**GOOD, "header": "AUTHORIZATION", "domains": ["*.test"]}}, "'one' and 'two' both set"),
        ({"one": {**GOOD, "principals": ["alice"]}, "two": GOOD}, "'one' and 'two' both set"),
        ({"one": {**GOOD, "domains": ["192.0.2.1"]}, "two": {**GOOD, "domains": ["192.0.2.1"]}}, "both set"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_showing_a_value(load: Load, given: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(given)
    [problem] = caught.value.problems
    assert problem.startswith("SANDBOX_SECRETS_FILE: ")
    assert said in problem
    assert VALUE not in problem
    assert caught.value.__cause__ is None
    assert len(problem) < 500


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_file_open_to_others_is_refused(load: Load, mode: int) -> None:
    with pytest.raises(SettingsError, match=r"open to others than its owner \(mode .*chmod 600"):
        load({"one": GOOD}, mode=mode)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_the_owner_alone_is_taken(load: Load, mode: int) -> None:
    assert load({"one": GOOD}, mode=mode).for_principal(None) != Injection()


def test_a_value_file_open_to_others_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(VALUE)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(SettingsError, match="token' is open to others"):
        load({"one": {"value_file": "token", "domains": ["api.test"]}})


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "secrets.json")
    with pytest.raises(SettingsError, match="is not a file"):
        load_secrets(Settings(secrets_file=tmp_path / "secrets.json", egress_ca_cert="auto"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_file_is_refused(load: Load, tmp_path: Path) -> None:
    load({"one": GOOD})
    os.chown(tmp_path / "secrets.json", 12345, 12345)
    with pytest.raises(SettingsError, match="belongs to another user"):
        load({"one": GOOD})


def test_a_file_that_sandboxes_can_be_shown_is_refused(load: Load, tmp_path: Path) -> None:
    linked = tmp_path.parent / f"{tmp_path.name}-link"
    linked.symlink_to(tmp_path)
    for settings in (
        {"read_only_paths": (tmp_path,)},
        {"read_only_paths": (linked,)},
        {"ceiling": {"filesystem": {"allow_write": [str(tmp_path.parent)]}}},
    ):
        with pytest.raises(SettingsError, match="which sandboxes can be shown"):
            load({"one": GOOD}, **settings)
    assert load({"one": GOOD}, read_only_paths=(tmp_path / "elsewhere",)).for_principal(None) != Injection()


def test_a_file_that_the_ceiling_denies_inside_its_grants_is_taken(load: Load, tmp_path: Path) -> None:
    rules = {"allow_write": [str(tmp_path.parent)], "deny_read": [str(tmp_path)]}
    assert load({"one": GOOD}, ceiling={"filesystem": rules}).for_principal(None) != Injection()
    rules["allow_read"] = [str(tmp_path / "secrets.json")]
    with pytest.raises(SettingsError, match="which sandboxes can be shown"):
        load({"one": GOOD}, ceiling={"filesystem": rules})


def test_relative_paths_of_the_ceiling_start_at_the_workspace(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"one": GOOD}, ceiling={"filesystem": {"allow_write": ["."]}}).for_principal(None) != Injection()
    with pytest.raises(SettingsError, match="which sandboxes can be shown"):
        load({"one": GOOD}, ceiling={"filesystem": {"allow_read": [f"..{tmp_path}"]}})
    denied = {"allow_read": [str(tmp_path.parent)], "deny_read": ["."]}
    with pytest.raises(SettingsError, match="which sandboxes can be shown"):
        load({"one": GOOD}, ceiling={"filesystem": denied})


def test_a_directory_that_is_the_sandboxs_own_inside_shows_no_file_of_the_host(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ceiling names /tmp as the built-in one does."""
    monkeypatch.setattr(secrets_file, "PRIVATE", (str(tmp_path),))
    ceiling = {"filesystem": {"allow_write": [".", str(tmp_path)]}}
    assert load({"one": GOOD}, ceiling=ceiling).for_principal(None) != Injection()


def test_the_local_runner_gets_no_secrets(load: Load) -> None:
    with pytest.raises(SettingsError, match="the local runner isolates nothing"):
        load({"one": GOOD}, runner="local")


def test_a_secret_that_could_never_be_sent_is_refused(load: Load) -> None:
    with pytest.raises(SettingsError, match="'two' could never be sent: set SANDBOX_EGRESS_CA_CERT"):
        load({"one": {**GOOD, "plain_http": True}, "two": {**GOOD, "domains": ["b.test"]}}, egress_ca_cert=None)


def test_an_authority_without_secrets_is_refused() -> None:
    for given in ({"egress_ca_cert": "auto"}, {"egress_ca_key": "/key.pem"}):
        with pytest.raises(SettingsError, match="SANDBOX_EGRESS_CA_CERT: without SANDBOX_SECRETS_FILE"):
            load_secrets(Settings.model_validate(given))


def test_the_bundle_has_our_authority_and_the_systems_and_no_key(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = make_authority("The system's")
    (tmp_path / "system.pem").write_bytes(system.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    loaded = load({"one": GOOD})
    bundle = loaded.trust_bundle()
    assert bundle is not None
    assert b"PRIVATE" not in bundle
    names = [item.subject.rfc4514_string() for item in x509.load_pem_x509_certificates(bundle)]
    assert names == ["CN=The system's", "CN=Sandbox egress proxy"]
    assert "SSL_CERT_FILE" in loaded.environment()


def files(folder: Path, made: Made) -> dict[str, Any]:
    (folder / "ca.pem").write_bytes(made.pem)
    (folder / "ca.key").write_bytes(made.key_pem)
    (folder / "ca.key").chmod(0o600)
    return {"egress_ca_cert": str(folder / "ca.pem"), "egress_ca_key": folder / "ca.key"}


def test_the_operators_authority_is_taken(load: Load, tmp_path: Path) -> None:
    made = make_authority("Ours")
    bundle = load({"one": GOOD}, **files(tmp_path, made)).trust_bundle()
    assert bundle is not None
    assert bundle.endswith(made.pem)


def test_an_authoritys_key_open_to_others_is_refused(load: Load, tmp_path: Path) -> None:
    given = files(tmp_path, make_authority("Ours"))
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(SettingsError, match=r"SANDBOX_EGRESS_CA_KEY: .* open to others"):
        load({"one": GOOD}, **given)


def test_half_an_authority_is_refused(load: Load, tmp_path: Path) -> None:
    given = files(tmp_path, make_authority("Ours"))
    for cert, key, said in (
        (given["egress_ca_cert"], None, "set SANDBOX_EGRESS_CA_KEY"),
        (None, given["egress_ca_key"], "of use only with SANDBOX_EGRESS_CA_CERT"),
        ("auto", given["egress_ca_key"], "makes a key of its own"),
        (str(tmp_path / "missing"), given["egress_ca_key"], "cannot be read"),
        (given["egress_ca_cert"], tmp_path / "missing", "cannot be read"),
    ):
        with pytest.raises(SettingsError, match=said):
            load({"one": GOOD}, egress_ca_cert=cert, egress_ca_key=key)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (make_authority("Ours", is_authority=False), "not one of an authority"),
        (make_authority("Ours", expired=True), "is not valid now"),
        (make_authority("Ours", key_of_another=True), "not the key of the first"),
        (Made(make_authority("Ours").pem, b"nonsense"), "no private key in PEM form"),
        (Made(b"nonsense", make_authority("Ours").key_pem), "no certificate in PEM form"),
        (
            Made(
                make_authority("Ours").pem,
                ec.generate_private_key(ec.SECP256R1()).private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"word"),
                ),
            ),
            "has a password",
        ),
        (
            Made(
                make_authority("Ours").pem,
                ed25519.Ed25519PrivateKey.generate().private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
            ),
            "neither RSA nor elliptic curve",
        ),
        (make_authority("Ours", without_root=True), "not a chain up to a root"),
    ],
)
def test_an_authority_that_cannot_sign_is_refused(load: Load, tmp_path: Path, made: Made, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load({"one": GOOD}, **files(tmp_path, made))
    assert caught.value.__cause__ is None
