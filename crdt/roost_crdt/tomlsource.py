"""TOML text whose faults can be shown: the parsed data and the line of each key.

`tomllib` tells the line of a syntax error only. A refused value must be shown with its place
too, so the text is walked once more for the lines of its tables and keys. The walk relies on
`tomllib` having accepted the text: it looks for places, it does not validate.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from typing import Any

from roost_crdt.errors import ConfigError

Path = tuple[str | int, ...]
"""Where a value is: table names, keys, and the index within an array of tables."""

TEXT_CHARS_MAX = 1_048_576

_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|'
    r"'''.*?'{3,5}(?!')|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'",
    re.DOTALL,
)


class TomlSource:
    """Parsed TOML that remembers where it was written.

    `data` is what `tomllib` gives. `line(path)` is 1-based; an unknown path gives the line of
    its nearest known parent, 0 where there is none.
    """

    __slots__ = ("_lines", "data", "file")

    def __init__(self, text: str, file: str) -> None:
        """Raise ConfigError, with the line, for text that is not TOML."""
        self.file = file
        if len(text) > TEXT_CHARS_MAX:
            raise ConfigError(f"longer than {TEXT_CHARS_MAX} characters", file=file)
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = _AT_LINE.search(str(error))
            line = int(found.group(1)) if found else text.count("\n") + 1
            what = _AT_LINE.sub("", str(error)).strip()
            raise ConfigError(f"not TOML: {what}", file=file, line=line) from None
        except RecursionError:
            raise ConfigError("not TOML: nested too deep", file=file) from None
        self._lines = _Walk(text.replace("\r\n", "\n")).lines

    def line(self, path: Path) -> int:
        """The line on which `path`, or the nearest table around it, begins."""
        for length in range(len(path), 0, -1):
            found = self._lines.get(path[:length])
            if found is not None:
                return found
        return 0

    def error(self, path: Path, message: str) -> ConfigError:
        """A ConfigError that points at `path`."""
        return ConfigError(message, file=self.file, line=self.line(path))

    def unknown_key(self, path: Path, known: Iterable[str]) -> ConfigError:
        """The error for a key (the last part of `path`) that nobody reads."""
        *parents, key = path
        table = ".".join(str(part) for part in parents if isinstance(part, str))
        where = f" in [{table}]" if table else ""
        return self.error(path, f'unknown key "{key}"{where}{nearest(str(key), known)}')


def nearest(word: str, known: Iterable[str]) -> str:
    """A tail for an error: the known word nearest to `word`, else all of them."""
    words = sorted(known)
    close = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(words)}" if words else ""


class _Walk:
    """One pass over accepted TOML text that notes the line of each table and key."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line_no = 1
        self.line_at = 0
        self.lines: dict[Path, int] = {}
        self.array_sizes: dict[Path, int] = {}
        self.table: Path = ()
        while self._skip(_BLANK) < len(text):
            if text[self.at] == "[":
                self._header()
            else:
                self._pair()

    def _skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return self.at

    def _note(self, path: Path, at: int) -> None:
        self.line_no += self.text.count("\n", self.line_at, at)
        self.line_at = at
        self.lines.setdefault(path, self.line_no)

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            bare = _BARE_KEY.match(self.text, self.at)
            if bare is not None:
                parts.append(bare.group())
                self.at = bare.end()
            else:
                quoted = _STRING.match(self.text, self.at)
                assert quoted is not None
                parts.append(tomllib.loads(f"k = {quoted.group()}")["k"])
                self.at = quoted.end()
            self._skip(_SPACE)
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def _header(self) -> None:
        start = self.at
        is_array = self.text.startswith("[[", start)
        self.at += 2 if is_array else 1
        key = self._key()
        self.at += 2 if is_array else 1
        path: Path = ()
        for index, part in enumerate(key):
            path = (*path, part)
            is_last = index == len(key) - 1
            if is_last and is_array:
                self._note(path, start)
                self.array_sizes[path] = self.array_sizes.get(path, 0) + 1
            if path in self.array_sizes:
                path = (*path, self.array_sizes[path] - 1)
        self.table = path
        self._note(path, start)

    def _pair(self) -> None:
        start = self.at
        key = self._key()
        path = self.table
        for part in key:
            path = (*path, part)
            self._note(path, start)
        assert self.text[self.at] == "="
        self.at += 1
        self._value()

    def _value(self) -> None:
        """Move behind a value; a newline ends it unless brackets are open."""
        depth = 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in "\"'":
                self._skip(_STRING)
                continue
            if char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
                continue
            if char == "\n" and depth == 0:
                return
            depth += (char in "[{") - (char in "]}")
            self.at += 1
