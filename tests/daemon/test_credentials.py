"""Who may connect, and what each may do."""

from __future__ import annotations

import hashlib

import pytest

from roost_crdt.errors import ConfigError, NoAuth
from roostd.credentials import ANONYMOUS, Credentials, Principal


def entry(name: str, secret: str, extra: str = "", rights: str = "write") -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f'[{name}]\nsecret_sha256 = "{digest}"\nrights = "{rights}"\n{extra}'


def test_a_secret_is_found_with_and_without_its_name() -> None:
    table = Credentials.parse(entry("router", "s1") + entry("ops", "s2", rights="admin"), "c.toml")
    assert table.required
    assert table.authenticate("router", "s1").name == "router"
    assert table.authenticate(None, b"s2") == Principal("ops", "admin")
    assert table.authenticate("default", "s2").name == "ops"
    for name, secret in (("router", "s2"), ("nobody", "s1"), (None, "s3"), ("default", "x")):
        with pytest.raises(NoAuth, match="unknown name or wrong secret"):
            table.authenticate(name, secret)


def test_a_secret_can_be_changed_without_a_gap() -> None:
    both = [hashlib.sha256(secret).hexdigest() for secret in (b"old", b"new")]
    table = Credentials.parse(f'[ops]\nsecret_sha256 = {both}\nrights = "admin"\n', "c.toml")
    assert table.authenticate("ops", "old") == table.authenticate("ops", "new")


def test_without_credentials_everybody_is_admin() -> None:
    assert not Credentials.empty().required
    assert Credentials.empty().authenticate(None, "") is ANONYMOUS
    assert ANONYMOUS.may("admin", b"anything")


def test_rights_include_the_lower_ones() -> None:
    writer = Principal("w", "write")
    assert [writer.may(right) for right in ("read", "write", "admin")] == [True, True, False]
    assert not Principal("r", "read").may("write", b"k")


def test_keys_limit_what_a_right_is_for() -> None:
    table = Credentials.parse(
        entry("router", "s", 'keys = ["model_router_weights:*", "exact"]\n')
        + entry("litellm", "t", 'prefix = "litellm:"\n'),
        "c.toml",
    )
    router = table.authenticate("router", "s")
    assert router.may("write", b"model_router_weights:llama")
    assert router.may("read", b"exact")
    assert not router.may("read", b"exactly")
    assert not router.may("read", b"billing:x")
    litellm = table.authenticate("litellm", "t")
    assert litellm.prefix == "litellm:"
    assert litellm.may("write", b"litellm:a")
    assert not litellm.may("write", b"other:a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "c.toml: holds no credentials"),
        ("ops = 3\n", 'c.toml:1: "ops" is not a table'),
        (entry("ops", "s", "right = 1\n"), 'c.toml:4: unknown key "right" in [ops]; did you mean'),
        (entry("ops", "s", rights="all"), 'c.toml:3: [ops] rights are "read", "write" or "admin"'),
        ('[ops]\nrights = "read"\n', "c.toml:1: [ops] secret_sha256 is 64 hex digits"),
        ('[ops]\nsecret_sha256 = "plain"\nrights = "read"\n', "c.toml:2: [ops] secret_sha256"),
        (entry("ops", "s", "keys = 'x'\n"), "c.toml:4: keys is a list"),
        (entry("ops", "s", "prefix = 3\n"), "c.toml:4: a prefix is a text"),
        (entry("a", "s") + entry("b", "s"), "c.toml:5: [b] and [a] have the same secret"),
        ("[ops\n", "c.toml:1: not TOML"),
    ],
)
def test_a_fault_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Credentials.parse(text, "c.toml")
    assert said in str(caught.value)
    assert "plain" not in str(caught.value)
