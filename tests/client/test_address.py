from __future__ import annotations

from typing import Any

import pytest

from roost.address import Address, parse_url
from roost_crdt.errors import BadRequest


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("unix:///run/roost/roost.sock", Address(path="/run/roost/roost.sock")),
        ("unix:///a%20b.sock?db=3", Address(path="/a b.sock", db=3)),
        ("unix:///a.sock?password=p", Address(path="/a.sock", password="p")),
        ("redis://localhost", Address(host="localhost", port=7667)),
        ("redis://eu-1.example:7000/2", Address(host="eu-1.example", port=7000, db=2)),
        (
            "redis://app:s%40cret@10.0.0.1:7000",
            Address(host="10.0.0.1", port=7000, username="app", password="s@cret"),
        ),
        ("redis://:secret@[::1]:7000/", Address(host="::1", port=7000, password="secret")),
    ],
)
def test_reads_urls(url: str, address: Address) -> None:
    assert parse_url(url, {}) == address


def test_falls_back_to_the_environment_and_the_default_path() -> None:
    assert parse_url(None, {"ROOST_URL": "redis://h:1"}) == Address(host="h", port=1)
    assert parse_url(None, {}) == Address(path="/run/roost/roost.sock")
    assert parse_url("unix:///x", {"ROOST_URL": "redis://h:1"}).path == "/x"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:7668",
        "roost.sock",
        "unix://relative/path.sock",
        "unix://",
        "redis:///3",
        "redis://host:notaport",
        "redis://host:99999",
        "redis://host/three",
        "redis://host/-1",
        "redis://host/99999999999999",
        "unix:///x?socket_timeout=3",
        "redis://[::1",
    ],
)
def test_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_url(url, {})
    assert caught.value.code == "BADREQUEST"


@pytest.mark.parametrize("url", [5, b"unix:///x"])
def test_refuses_what_is_no_text(url: Any) -> None:
    with pytest.raises(BadRequest, match="a URL is str"):
        parse_url(url, {})


@pytest.mark.parametrize(
    "url", ["http://app:hunter2@host", "redis://app:hunter2@host/x", "ftp:x?password=hunter2"]
)
def test_errors_keep_the_secret(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_url(url, {})
    assert "hunter2" not in str(caught.value)


def test_shows_the_endpoint_without_its_secret() -> None:
    assert str(parse_url("redis://app:hunter2@[::1]:1/2", {})) == "redis://[::1]:1"
    assert str(parse_url("unix:///a.sock?password=hunter2", {})) == "unix:///a.sock"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("unix:///a", True),
        ("redis://localhost", True),
        ("redis://127.3.0.1", True),
        ("redis://[::1]", True),
        ("redis://10.0.0.1", False),
        ("redis://eu-1.example", False),
    ],
)
def test_knows_what_is_on_this_machine(url: str, local: bool) -> None:
    assert parse_url(url, {}).is_local is local
