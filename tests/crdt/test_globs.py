"""Globs against the obvious regular expressions."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.globs import glob_matches, globs_meet

GLOBS = st.text("ab*", max_size=6).map(str.encode)
KEYS = st.text("ab", max_size=7).map(str.encode)


def regex(glob: bytes) -> re.Pattern[bytes]:
    return re.compile(b".*".join(map(re.escape, glob.split(b"*"))), re.DOTALL)


@pytest.mark.parametrize(
    ("glob", "key", "matches"),
    [
        (b"*:tpm:*", b"d1:gpt-x:tpm:07-52", True),
        (b"*:tpm:*", b"d1:gpt-x:rpm:07-52", False),
        (b"*", b"", True),
        (b"a*a", b"a", False),
        (b"*", b"any\nthing", True),
        (b"a*b*c", b"a-c-b", False),
        (b"exact", b"exact", True),
        (b"exact", b"exactly", False),
    ],
)
def test_examples(glob: bytes, key: bytes, matches: bool) -> None:
    assert glob_matches(tuple(glob.split(b"*")), key) is matches


@given(GLOBS, KEYS)
def test_a_glob_matches_what_its_regex_matches(glob: bytes, key: bytes) -> None:
    assert glob_matches(tuple(glob.split(b"*")), key) == bool(regex(glob).fullmatch(key))


@given(GLOBS, GLOBS)
def test_globs_meet_if_some_key_is_matched_by_both(left: bytes, right: bytes) -> None:
    assert globs_meet(left, right) == globs_meet(right, left)
    # A shortest key of the meet is no longer than both globs together.
    keys = (
        bytes(key)
        for length in range(len(left) + len(right) + 1)
        for key in itertools.product(b"ab", repeat=length)
    )
    found = any(regex(left).fullmatch(key) and regex(right).fullmatch(key) for key in keys)
    assert globs_meet(left, right) == found


def test_many_stars_take_no_time() -> None:
    glob = b"*a" * 60 + b"*b"
    assert not glob_matches(tuple(glob.split(b"*")), b"a" * 200)
    assert globs_meet(glob, b"a*" * 60)
