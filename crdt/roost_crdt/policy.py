"""Policies: what a key promises, and which consistency that allows.

A key is `policy` or `policy:rest`; its first segment names the policy. A policy says who reads
the state and what a stale read costs, and the cheapest consistency that is still right follows:

    stale_read_cost = "incorrect"       -> linearizable
    else readers = "single-session"     -> session-local
    else                                -> eventually-global

A stated consistency may be stronger than the derived one (with a warning that names its price),
never weaker. Programs that bring key names of their own are claimed by globs in `match`, where
only `*` is special; an exact policy name wins, then the longest glob.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from roost_crdt.default_policies import DEFAULT_POLICIES
from roost_crdt.errors import ConfigError, NoPolicy
from roost_crdt.globs import glob_matches, globs_meet
from roost_crdt.tomlsource import TomlSource, nearest
from roost_crdt.units import duration_ms

__all__ = [
    "CONSISTENCIES",
    "DEFAULT_POLICIES",
    "EVENTUALLY_GLOBAL",
    "LINEARIZABLE",
    "POLICY_FIELDS",
    "SESSION_LOCAL",
    "TYPES",
    "Policy",
    "PolicyTable",
    "derive_consistency",
    "refuse_changes",
]

SESSION_LOCAL: Final = "session-local"
EVENTUALLY_GLOBAL: Final = "eventually-global"
LINEARIZABLE: Final = "linearizable"
CONSISTENCIES: Final = (SESSION_LOCAL, EVENTUALLY_GLOBAL, LINEARIZABLE)
"""Cheapest first, which is also weakest first."""

TYPES: Final = {
    SESSION_LOCAL: ("conversation", "ledger", "map"),
    EVENTUALLY_GLOBAL: ("register", "counter", "set", "map", "rate", "doc"),
    LINEARIZABLE: ("register", "counter", "quota", "meter"),
}

ROW_TYPES: Final = {"register": 1, "counter": 2, "set": 3, "map": 4, "rate": 5, "doc": 6}
"""Type bytes of stored rows (TYPE_* of `rows.layout`)."""

READERS: Final = ("single-session", "cross-session")
STALE_READ_COSTS: Final = ("invisible", "annoying", "incorrect")

POLICIES_MAX: Final = 1_000
GLOBS_MAX: Final = 1_000
GLOB_BYTES_MAX: Final = 200
REGIONS_MAX: Final = 100
LIMIT_MAX: Final = (1 << 63) - 1

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
POLICY_FIELDS: Final = (
    "consistency",
    "durability",
    "fields",
    "float",
    "limit",
    "match",
    "on_loss",
    "period",
    "readers",
    "residency",
    "stale_read_cost",
    "ttl",
    "type",
    "window",
)
_PRICES = {
    EVENTUALLY_GLOBAL: "every write is copied to every region instead of one standby",
    LINEARIZABLE: "every read and write takes a round trip to consensus, and none succeeds "
    "while consensus is out of reach",
}
_NAMES_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the keys of one policy promise.

    `ttl_ms`, `window_ms` and `limit` are 0 where not given; `period` is "" or as written
    ("day", "month", "24h"), `period_ms` its length, 0 for the calendar ones. `why` is one
    sentence saying where the consistency comes from.
    """

    name: str
    readers: str
    stale_read_cost: str
    type: str
    consistency: str
    why: str
    ttl_ms: int = 0
    window_ms: int = 0
    limit: int = 0
    period: str = ""
    period_ms: int = 0
    residency: tuple[str, ...] = ()
    on_loss: str = "error"
    durability: str = "disk"
    float_: bool = False
    counter_fields: bool = False
    match: tuple[str, ...] = ()
    warning: str | None = None
    line: int = 0

    @property
    def row_type(self) -> int:
        """The type byte of this policy's rows; 0 where its state is not kept as rows."""
        return ROW_TYPES[self.type] if self.consistency == EVENTUALLY_GLOBAL else 0

    @property
    def shape(self) -> tuple[object, ...]:
        """What stored keys depend on: it cannot change while there are any."""
        return (self.type, self.consistency, self.float_, self.counter_fields)

    def fingerprint(self) -> str:
        """16 hex digits over everything that nodes must agree on."""
        agreed = (
            *(self.readers, self.stale_read_cost, *self.shape, self.ttl_ms, self.window_ms),
            *(self.limit, self.period, sorted(self.residency), self.on_loss, self.durability),
            sorted(self.match),
        )
        return hashlib.blake2b(repr(agreed).encode(), digest_size=8).hexdigest()


def derive_consistency(readers: str, stale_read_cost: str) -> str:
    """The cheapest consistency that is right for such readers."""
    if stale_read_cost == "incorrect":
        return LINEARIZABLE
    return SESSION_LOCAL if readers == "single-session" else EVENTUALLY_GLOBAL


class PolicyTable:
    """The policies of a file, found by key.

    `policies` maps names to policies in the order of the file, `warnings` are lines for the
    operator, `text` is the source (it can be parsed again elsewhere).
    """

    __slots__ = ("_by_name", "_globs", "file", "policies", "text", "warnings")

    def __init__(self, policies: Mapping[str, Policy], *, text: str, file: str) -> None:
        self.policies = dict(policies)
        self.text = text
        self.file = file
        self.warnings = tuple(
            f"{file}:{policy.line}: {policy.warning}"
            for policy in self.policies.values()
            if policy.warning
        )
        self._by_name = {name.encode(): policy for name, policy in self.policies.items()}
        claims = [(glob.encode(), policy) for policy in policies.values() for glob in policy.match]
        claims.sort(key=lambda claim: (-len(claim[0]), claim[0]))
        self._globs = [(tuple(glob.split(b"*")), glob, policy) for glob, policy in claims]

    @classmethod
    def parse(cls, text: str, file: str) -> PolicyTable:
        """Read a policy file; ConfigError names file, line and what to write instead."""
        source = TomlSource(text, file)
        if len(source.data) > POLICIES_MAX:
            raise ConfigError(f"more than {POLICIES_MAX} policies", file=file)
        policies = {name: _Reader(source, name).policy() for name in source.data}
        _refuse_equal_globs(source, policies)
        return cls(policies, text=text, file=file)

    def find(self, key: bytes) -> Policy:
        """The policy of a key; NoPolicy lists the known ones."""
        policy = self._by_name.get(key.partition(b":")[0])
        if policy is not None:
            return policy
        for parts, _, policy in self._globs:
            if glob_matches(parts, key):
                return policy
        raise NoPolicy(self._no_policy(key), known=list(self.policies)[:_NAMES_SHOWN_MAX])

    def explain(self, key: bytes) -> str:
        """Why `key` has the consistency that it has, in one line."""
        policy = self.find(key)
        shown = key.decode("utf-8", "backslashreplace")
        if key.partition(b":")[0] == policy.name.encode():
            claim = f"its first segment is the policy {policy.name}"
        else:
            glob = next(
                glob
                for parts, glob, owner in self._globs
                if owner is policy and glob_matches(parts, key)
            )
            claim = f'the glob "{glob.decode()}" of the policy {policy.name} claims it'
        return f"{shown} is {policy.consistency}: {claim}; {policy.why}"

    def hashes(self) -> dict[str, str]:
        """Policy name -> 16 hex digits, for the greeting between neighbours."""
        return {name: policy.fingerprint() for name, policy in self.policies.items()}

    def claimed_by_glob(self, glob: str) -> list[Policy]:
        """Policies that may claim a key which `glob` matches, by name or by a glob of theirs."""
        wanted = glob.encode()
        found = [
            policy
            for name, policy in self._by_name.items()
            if globs_meet(wanted, name) or globs_meet(wanted, name + b":*")
        ]
        return found + [owner for _, other, owner in self._globs if globs_meet(wanted, other)]

    def _no_policy(self, key: bytes) -> str:
        shown = key[:80].decode("utf-8", "backslashreplace")
        names = list(self.policies)
        known = ", ".join(names[:_NAMES_SHOWN_MAX]) or "none"
        more = f" and {len(names) - _NAMES_SHOWN_MAX} more" if len(names) > _NAMES_SHOWN_MAX else ""
        close = difflib.get_close_matches(shown.partition(":")[0], names, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        return f'no policy claims the key "{shown}"; known policies: {known}{more}{hint}'


def refuse_changes(old: PolicyTable, new: PolicyTable, has_keys: Callable[[str], bool]) -> None:
    """Refuse a reload that would change what stored keys mean.

    `has_keys(name)` says whether keys of that old policy exist. Raises ConfigError pointing
    at the new file; the old table stays in force as a whole.
    """
    for name, before in old.policies.items():
        after = new.policies.get(name)
        changed = after is None or after.shape != before.shape
        rivals = [] if changed else _rivals(before, old, new)
        if not (changed or rivals) or not has_keys(name):
            continue
        if after is None:
            message = f"[{name}] is gone but keys of it exist; delete them first, or keep it"
            raise ConfigError(message, file=new.file)
        if changed:
            raise ConfigError(
                f"[{name}] would change from {_describe(before)} to {_describe(after)}, "
                "but keys of it exist; delete them first, or give the new one another name",
                file=new.file,
                line=after.line,
            )
        raise ConfigError(
            f"[{rivals[0].name}] ({_describe(rivals[0])}) could take over keys that exist under "
            f"[{name}] ({_describe(before)}); give it globs that do not meet those of [{name}]",
            file=new.file,
            line=rivals[0].line,
        )


def _rivals(policy: Policy, old: PolicyTable, new: PolicyTable) -> list[Policy]:
    """Policies of another shape that may newly claim keys which `policy` claims by a glob."""
    known = {owner.name: owner for glob in policy.match for owner in old.claimed_by_glob(glob)}
    return [
        owner
        for glob in policy.match
        for owner in new.claimed_by_glob(glob)
        if owner.shape != policy.shape
        and not (owner.name in known and known[owner.name].match == owner.match)
    ]


def _describe(policy: Policy) -> str:
    extra = " float" * policy.float_ + " with counter fields" * policy.counter_fields
    return f"{policy.consistency} {policy.type}{extra}"


def _refuse_equal_globs(source: TomlSource, policies: Mapping[str, Policy]) -> None:
    by_length: dict[int, list[tuple[str, str]]] = {}
    for policy in policies.values():
        for glob in policy.match:
            by_length.setdefault(len(glob.encode()), []).append((glob, policy.name))
    if sum(map(len, by_length.values())) > GLOBS_MAX:
        raise ConfigError(f"more than {GLOBS_MAX} globs", file=source.file)
    for claims in by_length.values():
        for index, (glob, name) in enumerate(claims):
            for other, owner in claims[:index]:
                if owner != name and globs_meet(glob.encode(), other.encode()):
                    raise source.error(
                        (name, "match"),
                        f'"{glob}" and "{other}" of [{owner}] have one length and can both '
                        "match; make one of them longer",
                    )


class _Reader:
    """Reads one table of a policy file, field by field."""

    def __init__(self, source: TomlSource, name: str) -> None:
        self.source = source
        self.name = name
        table = source.data[name]
        if not isinstance(table, dict):
            raise source.error((name,), f'"{name}" is not a table; a policy is written as [{name}]')
        if not _NAME.fullmatch(name):
            raise source.error(
                (name,),
                f'"{name}" cannot name a policy; it begins with a letter and has at most 64 of '
                "letters, digits, _ . -",
            )
        for key in table:
            if key not in POLICY_FIELDS:
                raise source.unknown_key((name, key), POLICY_FIELDS)
        self.table: dict[str, Any] = table

    def error(self, field: str, message: str) -> ConfigError:
        return self.source.error((self.name, field), message)

    def policy(self) -> Policy:
        readers = self.choice("readers", READERS)
        cost = self.choice("stale_read_cost", STALE_READ_COSTS)
        derived = derive_consistency(readers, cost)
        consistency, why, warning = self.consistency(derived, readers, cost)
        type_ = self.type(consistency)
        self.refuse_misplaced(type_, consistency)
        period, period_ms = self.period() if type_ == "quota" else ("", 0)
        return Policy(
            name=self.name,
            readers=readers,
            stale_read_cost=cost,
            type=type_,
            consistency=consistency,
            why=why,
            ttl_ms=self.duration("ttl"),
            window_ms=self.duration("window", required=type_ == "rate"),
            limit=self.limit() if type_ == "quota" else 0,
            period=period,
            period_ms=period_ms,
            residency=self.strings("residency", REGIONS_MAX),
            on_loss=self.choice("on_loss", ("error", "recreate"), "error"),
            durability=self.choice("durability", ("disk", "standby"), "disk"),
            float_=self.flag("float"),
            counter_fields=self.choice("fields", ("value", "counter"), "value") == "counter",
            match=self.globs(),
            warning=warning,
            line=self.source.line((self.name,)),
        )

    def choice(self, field: str, choices: tuple[str, ...], default: str | None = None) -> str:
        if field not in self.table and default is None:
            listed = " or ".join(f'"{choice}"' for choice in choices)
            raise self.error(field, f"[{self.name}] lacks {field}; it is {listed}")
        value = self.table.get(field, default)
        if isinstance(value, str) and value in choices:
            return value
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        hint = nearest(value, choices) if isinstance(value, str) else ""
        if not hint.startswith("; did"):
            hint = "; use " + " or ".join(f'"{choice}"' for choice in choices)
        raise self.error(field, f"{field} cannot be {shown}{hint}")

    def consistency(self, derived: str, readers: str, cost: str) -> tuple[str, str, str | None]:
        reason = (
            'a stale read is "incorrect"'
            if derived == LINEARIZABLE
            else f'readers are "{readers}" and a stale read is "{cost}"'
        )
        if "consistency" not in self.table:
            return derived, f"{reason}, so {derived} is the cheapest that is right", None
        stated = self.choice("consistency", CONSISTENCIES)
        if stated == derived:
            return derived, f"{reason}, and {derived} is stated as well", None
        if CONSISTENCIES.index(stated) < CONSISTENCIES.index(derived):
            raise self.error(
                "consistency",
                f'consistency "{stated}" is weaker than {reason} allows; leave it out for '
                f'"{derived}", or correct readers and stale_read_cost',
            )
        why = f"{reason}, so {derived} would be right, but {stated} is stated"
        warning = f"[{self.name}] {derived} would be right; {stated} costs more: {_PRICES[stated]}"
        return stated, why, warning

    def type(self, consistency: str) -> str:
        allowed = TYPES[consistency]
        value = self.table.get("type")
        if isinstance(value, str) and value in allowed:
            return value
        if value is None:
            raise self.error("type", f"[{self.name}] lacks type; {consistency} has {_or(allowed)}")
        homes = [name for name, types in TYPES.items() if value in types]
        if homes:
            raise self.error(
                "type",
                f'type "{value}" is {_or(homes)}, but [{self.name}] is {consistency} by its '
                f"readers and stale_read_cost; use {_or(allowed)}, or correct those",
            )
        every = sorted({type_ for types in TYPES.values() for type_ in types})
        hint = nearest(value, every) if isinstance(value, str) else ""
        if not hint.startswith("; did"):
            hint = f"; {consistency} has {_or(allowed)}"
        raise self.error("type", f"unknown type {_shown(value)}{hint}")

    def refuse_misplaced(self, type_: str, consistency: str) -> None:
        """Refuse fields that would have no effect: whoever wrote them expects one."""
        session_local = consistency == SESSION_LOCAL
        linearizable = consistency == LINEARIZABLE
        rules = (
            ("window", type_ == "rate", "only a rate has a window"),
            ("limit", type_ == "quota", "only a quota has a limit"),
            ("period", type_ == "quota", "only a quota has a period"),
            ("float", type_ == "counter", "only a counter can be float"),
            (
                "fields",
                type_ == "map" and not session_local,
                "only an eventually-global map has fields",
            ),
            ("ttl", type_ != "rate", "a rate ends with its window; leave ttl out"),
            ("ttl", type_ not in ("quota", "meter"), "quotas and meters never expire; omit it"),
            ("residency", session_local, "only session-local state has a residency"),
            ("on_loss", session_local, "only session-local state has on_loss"),
            ("durability", not linearizable, "linearizable keys are durable in consensus"),
            (
                "match",
                not session_local,
                "session-local keys name their session after the colon; a glob cannot claim them",
            ),
        )
        for field, fits, message in rules:
            if field in self.table and not fits:
                raise self.error(field, f"{field} does not fit a {consistency} {type_}: {message}")

    def duration(self, field: str, *, required: bool = False) -> int:
        if field not in self.table:
            if required:
                raise self.error(field, f'[{self.name}] lacks {field}, for example "60s"')
            return 0
        try:
            return duration_ms(self.table[field])
        except ValueError as error:
            raise self.error(field, f"{field}: {error}") from None

    def period(self) -> tuple[str, int]:
        value = self.table.get("period")
        if value in ("day", "month"):
            return str(value), 0
        if value is None:
            raise self.error(
                "period", f'[{self.name}] lacks period: "day", "month" or a duration such as "24h"'
            )
        try:
            return str(value), duration_ms(value)
        except ValueError as error:
            raise self.error("period", f'period is "day", "month" or a duration: {error}') from None

    def limit(self) -> int:
        value = self.table.get("limit")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LIMIT_MAX:
            return value
        what = f"[{self.name}] lacks limit" if value is None else f"limit cannot be {_shown(value)}"
        raise self.error("limit", f"{what}; it is a whole number from 0 to {LIMIT_MAX}")

    def flag(self, field: str) -> bool:
        value = self.table.get(field, False)
        if isinstance(value, bool):
            return value
        raise self.error(field, f"{field} is true or false, not {_shown(value)}")

    def strings(self, field: str, count_max: int) -> tuple[str, ...]:
        value = self.table.get(field)
        if value is None:
            return ()
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(item, str) and item for item in value)
        ):
            raise self.error(field, f'{field} is a list of strings such as ["eu", "us"]')
        if len(value) > count_max or len(set(value)) < len(value):
            raise self.error(field, f"{field} holds at most {count_max} strings, each once")
        return tuple(value)

    def globs(self) -> tuple[str, ...]:
        globs = self.strings("match", GLOBS_MAX)
        for glob in globs:
            if len(glob.encode()) > GLOB_BYTES_MAX or "\0" in glob:
                raise self.error("match", f"a glob is at most {GLOB_BYTES_MAX} bytes, without NUL")
            if any(char in glob for char in "?[]"):
                raise self.error("match", f'"{glob}": only * is special in a glob; ? [ ] are not')
        return globs


def _or(words: list[str] | tuple[str, ...]) -> str:
    return " or ".join(words)


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
