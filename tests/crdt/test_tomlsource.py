"""Where each key of a TOML text was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import ConfigError
from roost_crdt.tomlsource import TEXT_CHARS_MAX, TomlSource, nearest

TEXT = '''\
# a comment with [brackets] and = signs
top = 1

[node]  # a table
id = "eu-1"
"quoted key" = [
    1,  # ] in a comment
    "]", # "
]
text = """
[not.a.table]
id = 2
"""
after = 'x'

[[neighbour]]
id = "a"

[[neighbour]]
id = "b"
[neighbour.deep]
x = { y = 1, z = [1, 2] }
[resp . db]
3 = "litellm:"
a."b.c".d = true
'''


def test_lines_of_tables_keys_and_array_elements() -> None:
    source = TomlSource(TEXT, "roost.toml")
    lines = {
        ("top",): 2,
        ("node",): 4,
        ("node", "id"): 5,
        ("node", "quoted key"): 6,
        ("node", "text"): 10,
        ("node", "after"): 14,
        ("neighbour", 0): 16,
        ("neighbour", 0, "id"): 17,
        ("neighbour", 1, "id"): 20,
        ("neighbour", 1, "deep", "x"): 22,
        ("resp", "db"): 23,
        ("resp", "db", "3"): 24,
        ("resp", "db", "a", "b.c", "d"): 25,
    }
    assert {path: source.line(path) for path in lines} == lines
    assert source.data["neighbour"][1]["deep"]["x"]["z"] == [1, 2]


def test_an_unknown_path_has_the_line_of_its_parent_or_none() -> None:
    source = TomlSource(TEXT, "roost.toml")
    assert source.line(("node", "missing")) == 4
    assert source.line(("neighbour", 0, "url")) == 16
    assert source.line(("nowhere", "at", "all")) == 0


def test_windows_line_ends_count_once() -> None:
    source = TomlSource("a = 1\r\n\r\n[b]\r\nc = 2\r\n", "f")
    assert source.line(("b", "c")) == 4


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = = 2\n", 2), ("a = 1\na = 2\n", 2), ('a = 1\n\nb = "open', 3), ("[t]\n[t]\n", 2)],
)
def test_a_syntax_error_is_shown_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        TomlSource(text, "roost.toml")
    assert caught.value.line == line
    assert str(caught.value).startswith(f"roost.toml:{line}: not TOML: ")
    assert "(at " not in str(caught.value)[:-30]


def test_depth_and_length_are_bounded() -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        TomlSource("a = " + "[" * 5_000 + "]" * 5_000, "f")
    with pytest.raises(ConfigError, match="longer than"):
        TomlSource("#" * (TEXT_CHARS_MAX + 1), "f")


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    source = TomlSource(TEXT, "roost.toml")
    near = source.unknown_key(("node", "id"), ["ids", "region"])
    assert str(near) == 'roost.toml:5: unknown key "id" in [node]; did you mean "ids"?'
    far = source.unknown_key(("top",), ["region", "data"])
    assert str(far) == 'roost.toml:2: unknown key "top"; known: data, region'
    assert nearest("x", []) == ""


NAMES = st.text("abcxyz_-9", min_size=1, max_size=6)
VALUES = st.sampled_from(
    [
        "1",
        "true",
        '"a # b"',
        "'[x]'",
        '"""\n[no]\nk = 1\n"""',
        "'''\n''x\n'''",
        "[\n 1, # ]\n 2,\n]",
        '"\\"="',
        "{ a = 1, b = ']' }",
        "1979-05-27",
        '""',
        "''",
        '""""quoted" """',
    ]
)
BLANKS = st.sampled_from(["", "\n", "# [c]\n", "  \n\n"])


@given(
    st.lists(
        st.tuples(BLANKS, NAMES, st.lists(st.tuples(BLANKS, NAMES, VALUES), max_size=4)),
        max_size=5,
        unique_by=lambda table: table[1],
    )
)
def test_every_written_key_is_found_where_it_was_written(
    tables: list[tuple[str, str, list[tuple[str, str, str]]]],
) -> None:
    text, expected = "", {}
    for blank, table, pairs in tables:
        text += blank
        expected[(table,)] = text.count("\n") + 1
        text += f"[{table}]\n"
        for pair_blank, key, value in {pair[1]: pair for pair in pairs}.values():
            text += pair_blank
            expected[(table, key)] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    source = TomlSource(text, "f")
    assert {path: source.line(path) for path in expected} == expected


def test_a_last_line_without_its_newline() -> None:
    assert TomlSource("a = 1\nb = 2", "f").line(("b",)) == 2
    assert TomlSource("a = 1  # end", "f").line(("a",)) == 1
