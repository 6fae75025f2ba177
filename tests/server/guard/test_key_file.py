"""Keys in TOML: what they mean, and what is wrong with them in words that hold no secret."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.key_file import parse
from ternvl.server.guard.key_store import KeyStore
from ternvl.server.guard.keys import Key, Keys, digest_of

SECRET = "tell-nobody"
FULL = f"""
[[key]]
name = "team-a"
key = "{SECRET}"
roles = ["use", "metrics"]
expires = 2030-01-31T12:00:00+02:00
requests_per_minute = 60
tokens_per_minute = 100_000
adapters = ["french"]

[[key]]
name = "ops"
sha256 = "{hashlib.sha256(b"hidden").hexdigest()}"
roles = ["admin"]
expires = 2030-01-31
"""


def test_every_field() -> None:
    first, second = parse(FULL, "keys")
    assert first == Key(
        "team-a",
        hashlib.sha256(SECRET.encode()).digest(),
        frozenset({"use", "metrics"}),
        datetime(2030, 1, 31, 10, tzinfo=UTC),
        60,
        100_000,
        frozenset({"french"}),
    )
    assert second.expires == datetime(2030, 1, 31, tzinfo=UTC)
    assert second.digest == hashlib.sha256(b"hidden").digest()
    assert (second.adapters, second.tokens_per_minute) == (None, None)
    assert all(second.has_role(role) for role in ("use", "metrics", "admin"))
    assert not first.has_role("admin")
    (plain,) = parse('[[key]]\nname = "a"\nkey = "b"', "keys")
    assert plain.roles == {"use"}
    assert SECRET not in repr(first)
    assert first.digest.hex() not in repr(first)


def test_the_documented_file() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/security.md").read_text(encoding="utf-8")
    keys = parse(page.partition("```toml\n")[2].partition("```")[0], "docs/security.md")
    assert [(key.name, sorted(key.roles)) for key in keys] == [
        ("team-a", ["use"]),
        ("prometheus", ["metrics"]),
        ("operator", ["admin"]),
    ]
    assert Keys(keys).find(b"a third long random text") is keys[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        ("key = 3", "has no key"),
        ("[key]\nname = 'a'", "has no key"),
        ("[[key]", "not TOML.*line 1"),
        ("[[keys]]\nname = 'a'", "'keys'"),
        ("x = " + "[" * 2000, "not TOML"),
        ("x = " + "9" * 5000, "not TOML"),
        ("[[key]]\nkey = 'tell-nobody'", "key 1: name"),
        ("[[key]]\nname = 'a b'\nkey = 'tell-nobody'", "key 1: name"),
        ("[[key]]\nname = 'a'", "needs either key or sha256"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nsha256 = 'b'", "needs either"),
        ("[[key]]\nname = 'a'\nsha256 = 'tell-nobody'", "64 hexadecimal"),
        ("[[key]]\nname = 'a'\nkey = ''", "key must be a text"),
        ("[[key]]\nname = 'a'\nkey = ' tell-nobody'", "spaces at its ends"),
        ('[[key]]\nname = "a"\nkey = "tell-\\nnobody"', "control characters"),
        ("[[key]]\nname = 'a'\nkey = 5", "key must be a text"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nrole = 'use'", "unknown field 'role'.*roles"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nroles = 'use'", "use, metrics, admin"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nroles = []", "use, metrics, admin"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nroles = ['root']", "use, metrics, admin"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nexpires = '2030-01-31'", "without quotes"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nexpires = 2030-01-31T10:00:00", "with its zone"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nrequests_per_minute = 0", "requests_per_minute is 0"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\ntokens_per_minute = true", "tokens_per_minute is True"),
        ("[[key]]\nname = 'a'\nkey = 'tell-nobody'\nadapters = 'french'", "adapters"),
    ],
)
def test_what_is_wrong_is_named_without_the_secret(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        parse(text, "keys.toml")
    assert str(refusal.value).startswith("keys.toml")
    assert "tell" not in str(refusal.value)


def test_names_and_secrets_are_unique() -> None:
    with pytest.raises(ConfigError, match="name a"):
        Keys([Key("a", digest_of(b"1")), Key("a", digest_of(b"2"))])
    with pytest.raises(ConfigError, match="a and b are the same"):
        Keys([Key("a", digest_of(b"1")), Key("b", digest_of(b"1"))])


def test_a_key_is_found_by_its_secret_alone() -> None:
    keys = Keys(Key(name, digest_of(name.encode())) for name in "abc")
    assert [key.name for name in "abc" if (key := keys.find(name.encode()))] == ["a", "b", "c"]
    assert keys.find(b"d") is keys.find(b"") is keys.find(digest_of(b"a")) is None


def test_a_key_expires_at_its_moment() -> None:
    now = datetime.now(UTC)
    assert Key("a", b"", expires=now).has_expired
    assert not Key("a", b"", expires=now + timedelta(hours=1)).has_expired


def test_keys_come_from_all_sources(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FULL)
    config = ServerConfig(
        api_key="one", admin_key="two", api_keys="[[key]]\nname = 'env'\nkey = 'three'", api_key_file=path
    )
    store = KeyStore(config)
    assert [key.name for key in store.keys.all] == ["api-key", "admin-key", "env", "team-a", "ops"]
    assert "three" not in repr(config)
    path.write_text("[[key]]\nname = 'env'\nkey = 'four'")
    with pytest.raises(ConfigError, match="Two keys have the name env"):
        store.reload()
    assert len(store.keys.all) == 5, "the old keys stay"
    path.write_text("[[key]]\nname = 'next'\nkey = 'four'")
    assert store.reload() == "4 keys are in force"


def test_files_that_hold_no_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"\xe4")
    (tmp_path / "large").write_bytes(b" " * 1_000_001)
    for name, says in (
        ("absent", "No such file"),
        ("fifo", "not a regular file"),
        ("latin", "UTF-8"),
        ("large", "more than 1000000 bytes"),
        ("", "not a regular file"),
    ):
        with pytest.raises(ConfigError, match=says):
            KeyStore(ServerConfig(api_key_file=tmp_path / name))


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {"key": None, "metrics": None, "admin": None}),
        ({"api_key": "a"}, {"key": "use", "metrics": "metrics", "admin": "use"}),
        ({"admin_key": "a"}, {"key": None, "metrics": None, "admin": "admin"}),
        ({"api_key": "a", "admin_key": "b"}, {"key": "use", "metrics": "metrics", "admin": "admin"}),
        ({"api_key": "a", "metrics_access": "open"}, {"key": "use", "metrics": None, "admin": "use"}),
        (
            {"api_keys": "[[key]]\nname = 'a'\nkey = 'b'"},
            {"key": "use", "metrics": "metrics", "admin": "admin"},
        ),
    ],
)
def test_the_role_that_an_access_needs(options: dict[str, str], roles: dict[str, str | None]) -> None:
    store = KeyStore(ServerConfig(**options))  # type: ignore[arg-type]
    assert {access: store.role_for(access) for access in roles} == roles
    assert store.role_for("open") is None
