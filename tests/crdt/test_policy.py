"""Policies: the derivation, the file's faults by line, claims by glob, reloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import ConfigError, NoPolicy
from roost_crdt.policy import (
    CONSISTENCIES,
    DEFAULT_POLICIES,
    GLOBS_MAX,
    POLICIES_MAX,
    READERS,
    STALE_READ_COSTS,
    TYPES,
    Policy,
    PolicyTable,
    derive_consistency,
    refuse_changes,
)

SESSION = 'readers = "single-session"\nstale_read_cost = "invisible"\n'
GLOBAL = 'readers = "cross-session"\nstale_read_cost = "annoying"\n'
STRICT = 'readers = "cross-session"\nstale_read_cost = "incorrect"\n'


def parse(text: str) -> PolicyTable:
    return PolicyTable.parse(text, "p.toml")


def fault(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value)


def one(text: str) -> Policy:
    (policy,) = parse(text).policies.values()
    return policy


@given(st.sampled_from(READERS), st.sampled_from(STALE_READ_COSTS))
def test_the_derivation(readers: str, cost: str) -> None:
    derived = derive_consistency(readers, cost)
    assert (derived == "linearizable") == (cost == "incorrect")
    if cost != "incorrect":
        assert (derived == "session-local") == (readers == "single-session")
    table = f'[k]\nreaders = "{readers}"\nstale_read_cost = "{cost}"\n'
    for stated in CONSISTENCIES:
        for type_ in TYPES[stated]:
            extra = {"rate": 'window = "1s"\n', "quota": 'limit = 1\nperiod = "day"\n'}.get(
                type_, ""
            )
            text = f'{table}consistency = "{stated}"\ntype = "{type_}"\n{extra}'
            if CONSISTENCIES.index(stated) < CONSISTENCIES.index(derived):
                assert "is weaker than" in fault(text)
                assert fault(text).startswith("p.toml:4: ")
            else:
                policy = one(text)
                assert (policy.consistency, policy.type) == (stated, type_)
                assert (policy.warning is None) == (stated == derived)
                assert stated in policy.why


def test_a_stronger_consistency_warns_of_its_price() -> None:
    table = parse(f'\n[w]\n{GLOBAL}type = "register"\nconsistency = "linearizable"\n')
    (warning,) = table.warnings
    assert warning == (
        "p.toml:2: [w] eventually-global would be right; linearizable costs more: every read and "
        "write takes a round trip to consensus, and none succeeds while consensus is out of reach"
    )


def test_every_field_is_read() -> None:
    text = f"""
[a]
{SESSION}type = "conversation"
ttl = "24h"
residency = ["eu", "us"]
on_loss = "recreate"
durability = "standby"
[b]
{GLOBAL}type = "rate"
window = "60s"
match = ["*:tpm:*"]
[c]
{GLOBAL}type = "counter"
float = true
[d]
{GLOBAL}type = "map"
fields = "counter"
[e]
{STRICT}type = "quota"
limit = 1_000
period = "24h"
[f]
{STRICT}type = "quota"
limit = 0
period = "month"
"""
    found = parse(text).policies
    assert (found["a"].ttl_ms, found["a"].residency) == (86_400_000, ("eu", "us"))
    assert parse(f'[k]\n{STRICT}type = "counter"\nttl = "1h"\n').policies["k"].ttl_ms == 3_600_000
    assert (found["a"].on_loss, found["a"].durability) == ("recreate", "standby")
    assert (found["b"].window_ms, found["b"].match) == (60_000, ("*:tpm:*",))
    assert found["c"].float_
    assert found["d"].counter_fields
    assert (found["e"].limit, found["e"].period, found["e"].period_ms) == (1_000, "24h", 86_400_000)
    assert (found["f"].limit, found["f"].period, found["f"].period_ms) == (0, "month", 0)
    assert [policy.row_type for policy in found.values()] == [0, 5, 2, 4, 0, 0]
    assert found["b"].line == 10


BASE = f'[k]\n{GLOBAL}type = "counter"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE + "tll = '1h'\n", 'p.toml:5: unknown key "tll" in [k]; did you mean "ttl"?'),
        (BASE + "ttl = '24hours'\n", 'p.toml:5: ttl: "24hours" has the unit "hours"'),
        (BASE + "ttl = 24\n", "p.toml:5: ttl: 24 has no unit"),
        (BASE + "float = 1\n", "p.toml:5: float is true or false, not 1"),
        (BASE + "window = '1s'\n", "p.toml:5: window does not fit"),
        (BASE + "limit = 3\n", "p.toml:5: limit does not fit"),
        (BASE + "period = 'day'\n", "p.toml:5: period does not fit"),
        (BASE + "fields = 'counter'\n", "p.toml:5: fields does not fit"),
        (BASE + "residency = ['eu']\n", "p.toml:5: residency does not fit"),
        (BASE + "on_loss = 'error'\n", "p.toml:5: on_loss does not fit"),
        (
            BASE + "durability = 'disc'\n",
            'p.toml:5: durability cannot be "disc"; did you mean "disk"?',
        ),
        (BASE + "durability = 3\n", 'p.toml:5: durability cannot be 3; use "disk" or "standby"'),
        (BASE + "match = '*'\n", "p.toml:5: match is a list of strings"),
        (BASE + "match = []\n", "p.toml:5: match is a list of strings"),
        (BASE + "match = ['a', 'a']\n", "p.toml:5: match holds at most"),
        (BASE + "match = ['a?']\n", 'p.toml:5: "a?": only * is special'),
        (BASE + f"match = ['{'a' * 201}']\n", "p.toml:5: a glob is at most 200 bytes"),
        (BASE + "match = ['a\\u0000']\n".replace("'", '"'), "p.toml:5: a glob is at most"),
        (f'[k]\n{GLOBAL}type = "rate"\n', 'p.toml:1: [k] lacks window, for example "60s"'),
        (f'[k]\n{GLOBAL}type = "rate"\nwindow = "1s"\nttl = "1s"\n', "a rate ends with its window"),
        (f"[k]\n{GLOBAL}", "p.toml:1: [k] lacks type; eventually-global has register or"),
        (f'[k]\n{GLOBAL}type = "conversation"\n', 'p.toml:4: type "conversation" is session-local'),
        (f'[k]\n{SESSION}type = "register"\n', "eventually-global or linearizable, but [k] is"),
        (f'[k]\n{GLOBAL}type = "registr"\n', 'unknown type "registr"; did you mean "register"?'),
        (f'[k]\n{GLOBAL}type = "zzz"\n', 'unknown type "zzz"; eventually-global has register'),
        (f"[k]\n{GLOBAL}type = 5\n", "p.toml:4: unknown type 5;"),
        (f'[k]\n{SESSION}type = "map"\nmatch = ["*"]\n', "p.toml:5: match does not fit"),
        (f'[k]\n{SESSION}type = "map"\nfields = "counter"\n', "p.toml:5: fields does not fit"),
        (f'[k]\n{STRICT}type = "meter"\nttl = "1h"\n', "p.toml:5: ttl does not fit"),
        (f'[k]\n{STRICT}type = "register"\ndurability = "disk"\n', "durability does not fit"),
        (f'[k]\n{STRICT}type = "quota"\nperiod = "day"\n', "p.toml:1: [k] lacks limit"),
        (f'[k]\n{STRICT}type = "quota"\nlimit = 1\n', "p.toml:1: [k] lacks period"),
        (
            f'[k]\n{STRICT}type = "quota"\nlimit = -1\nperiod = "day"\n',
            "p.toml:5: limit cannot be -1",
        ),
        (f'[k]\n{STRICT}type = "quota"\nlimit = true\nperiod = "day"\n', "limit cannot be True"),
        (f'[k]\n{STRICT}type = "quota"\nlimit = 1\nperiod = "week"\n', "p.toml:6: period is"),
        ('[k]\nreaders = "all"\n', 'p.toml:2: readers cannot be "all"; use "single-session" or'),
        ('[k]\nreaders = "cross-session"\n', "p.toml:1: [k] lacks stale_read_cost; it is"),
        ("k = 3\n", 'p.toml:1: "k" is not a table; a policy is written as [k]'),
        ("['9k']\n", 'p.toml:1: "9k" cannot name a policy'),
        ("['a:b']\n", 'p.toml:1: "a:b" cannot name a policy'),
        ("[k\n", "p.toml:1: not TOML: "),
    ],
)
def test_a_fault_is_named_with_its_line(text: str, said: str) -> None:
    assert said in fault(text)


def test_too_many_policies_and_globs() -> None:
    assert "more than 1000 policies" in fault("".join(f"[p{n}]\n" for n in range(POLICIES_MAX + 1)))
    globs = ", ".join(f'"g{n}*"' for n in range(GLOBS_MAX))
    assert "more than 1000 globs" in fault(
        f"{BASE}match = [{globs}]\n[other]\n{GLOBAL}type = 'set'\nmatch = ['x*']\n"
    )


def test_a_name_wins_then_the_longest_glob() -> None:
    table = parse(
        f'[short]\n{GLOBAL}type = "counter"\nmatch = ["*:tpm:*", "*"]\n'
        f'[long]\n{GLOBAL}type = "set"\nmatch = ["gpt*:tpm:*"]\n'
        f'[d1]\n{GLOBAL}type = "map"\n'
    )
    assert table.find(b"d1:gpt:tpm:07").name == "d1"
    assert table.find(b"d1").name == "d1"
    assert table.find(b"gpt-4:tpm:07").name == "long"
    assert table.find(b"x:tpm:07").name == "short"
    assert table.find(b"\xff\xfe").name == "short"
    assert 'the glob "gpt*:tpm:*" of the policy long claims it' in table.explain(b"gpt-4:tpm:07")
    assert "its first segment is the policy d1" in table.explain(b"d1:x")


def test_globs_of_one_length_that_can_both_match_are_refused() -> None:
    first = f'[a]\n{GLOBAL}type = "counter"\nmatch = ["x*"]\n'
    second = f'[b]\n{GLOBAL}type = "counter"\nmatch = ["*y"]\n'
    said = fault(first + second)
    assert said.startswith('p.toml:10: "*y" and "x*" of [a] have one length')
    assert len(parse(first + second.replace("*y", "y*")).policies) == 2
    assert len(parse(first.replace('"x*"', '"x*", "*y"')).policies) == 1


def test_a_key_without_a_policy_is_told_the_known_ones() -> None:
    table = parse(DEFAULT_POLICIES)
    with pytest.raises(NoPolicy) as caught:
        table.find(b"rate_limit:alice")
    assert "conversation_buffer, tool_call_ledger" in caught.value.message
    assert 'did you mean "rate_limits"?' in caught.value.message
    assert caught.value.details["known"] == list(table.policies)
    with pytest.raises(NoPolicy, match=r"known policies: none$"):
        parse("").find(b"x" * 500)
    many = parse("".join(f"[p{n}]\n{GLOBAL}type = 'set'\n" for n in range(30)))
    with pytest.raises(NoPolicy, match=r"p19 and 10 more$"):
        many.find(b"zzzzzzz")


def test_hashes_change_with_the_meaning_only() -> None:
    before = parse(BASE + "match = ['a*', 'b*']\n").hashes()
    assert before == parse("# moved\n" + BASE + "match = ['b*', 'a*']\n").hashes()
    assert all(len(digest) == 16 for digest in before.values())
    for change in ("ttl = '1h'\n", "float = true\n", "durability = 'standby'\n"):
        assert parse(BASE + "match = ['a*', 'b*']\n" + change).hashes() != before


def changed(old: str, new: str, with_keys: bool = True) -> str:
    try:
        refuse_changes(parse(old), parse(new), lambda _name: with_keys)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_reload_cannot_change_keys_that_exist() -> None:
    as_set = BASE.replace("counter", "set")
    said = changed(BASE, "\n" + as_set)
    assert said.startswith("p.toml:2: [k] would change from eventually-global counter to ")
    assert "float" in changed(BASE, BASE + "float = true\n")
    as_map = BASE.replace("counter", "map")
    assert "counter fields" in changed(as_map, as_map + "fields = 'counter'\n")
    assert changed(BASE, "").startswith("p.toml: [k] is gone but keys of it exist")
    assert changed(BASE, as_set, with_keys=False) == ""
    assert changed(BASE, BASE + "ttl = '1h'\n") == ""
    assert changed(BASE, BASE + f"[new]\n{GLOBAL}type = 'set'\n") == ""


def test_a_reload_cannot_let_another_policy_take_over_keys_of_a_glob() -> None:
    old = BASE + "match = ['*:tpm:*']\n"
    thief = f"[gpt]\n{GLOBAL}type = 'set'\n"
    said = changed(old, old + thief)
    assert said.startswith("p.toml:6: [gpt] (eventually-global set) could take over keys")
    longer = f"[other]\n{GLOBAL}type = 'set'\nmatch = ['gpt:tpm:*x']\n"
    assert "[other]" in changed(old, old + longer)
    assert changed(old + thief, old + thief) == ""
    assert changed(old, old + f"[same]\n{GLOBAL}type = 'counter'\n") == ""
    assert changed(old + longer, old + longer.replace("*x", "*y")) != ""
