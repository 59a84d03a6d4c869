from __future__ import annotations

import base64
import json
from typing import Any

import pytest

import roost
from roost.session import CallState, Opened, SessionState, open_session
from roost.wire import new_reader
from roost_crdt.token import Claims, claims_to_json


def token(turn: int, epoch: int = 1, home: str = "eu-1", standby: str | None = "us-1") -> str:
    claims = Claims(
        sid="s1",
        home=home,
        standby=standby,
        epoch=(epoch, home),
        turn=turn,
        path=((epoch, home, 0, turn),) if turn else (),
        aud="prod",
        iss=home,
        iat=1,
        exp=2,
    )
    payload = base64.urlsafe_b64encode(claims_to_json(claims)).rstrip(b"=").decode()
    return f"e30.{payload}.c2ln"


def state(turn: int = 0) -> SessionState:
    return SessionState(Opened("s1", token(turn), "eu-1", "us-1", 1, turn))


def resp_map(fields: dict[str, Any]) -> Any:
    """The reply as a connection would parse it from RESP3."""
    out = b"%%%d\r\n" % len(fields)
    for name, value in fields.items():
        out += b"$%d\r\n%b\r\n" % (len(name), name.encode())
        if value is None:
            out += b"_\r\n"
        elif isinstance(value, bool):
            out += b"#t\r\n" if value else b"#f\r\n"
        elif isinstance(value, int):
            out += b":%d\r\n" % value
        else:
            raw = value.encode()
            out += b"$%d\r\n%b\r\n" % (len(raw), raw)
    reader = new_reader()
    reader.feed(out)
    return reader.gets()


def test_opens_by_token_by_sid_or_anew() -> None:
    assert open_session(None, None).commands == (("ROOST.OPEN",),)
    assert open_session(None, "my-sid").commands == (("ROOST.OPEN", "my-sid"),)
    known = token(3)
    assert open_session(known, None).commands == (("ROOST.OPEN", known),)
    reply = resp_map(
        {"sid": "s1", "token": known, "home": "eu-1", "standby": None, "epoch": 2, "turn": 3}
    )
    opened = open_session(None, None).answer([reply])
    assert opened == Opened("s1", known, "eu-1", None, 2, 3)


def test_refuses_bad_names_before_sending() -> None:
    with pytest.raises(roost.BadRequest):
        open_session(token(1), "s1")
    with pytest.raises(roost.BadRequest):
        open_session(None, "x" * 121)
    with pytest.raises(roost.BadRequest):
        open_session(None, "")
    for bad in ("", "x" * 3000, "no dots", "a.b", "é.é.é", 7):
        with pytest.raises(roost.BadToken):
            open_session(bad, None)  # type: ignore[arg-type]


def test_follows_its_token() -> None:
    session = state()
    session.follow(token(4))
    assert (session.turn, session.epoch, session.home) == (4, 1, "eu-1")
    session.follow(token(2))  # a slow reply of another thread
    assert session.turn == 4
    session.follow(token(3, epoch=2, home="us-1", standby=None))
    assert (session.turn, session.epoch, session.home, session.standby) == (3, 2, "us-1", None)
    kept = session.token
    session.follow("")
    session.follow("not a token")
    assert session.token == kept


def test_commits_messages_as_they_are() -> None:
    session = state()
    messages = [{"role": "user", "content": "né", "x": {"b": 1, "a": [1.5, None]}}]
    request = session.commit_request(messages, "t1", 0, {"kv_cache_index": {"gpu": None}}, "append")
    name, sent, body = request.commands[0]
    assert (name, sent) == ("ROOST.TURN", session.token)
    assert isinstance(body, bytes)
    assert json.loads(body) == {
        "turn_id": "t1",
        "messages": messages,
        "base": 0,
        "put": {"kv_cache_index": {"gpu": None}},
        "on_conflict": "append",
    }
    assert '{"role":"user","content":"né","x":{"b":1,"a":[1.5,null]}}'.encode() in body
    assert request.repeat
    assert request.details == {"request_id": "t1", "turn_id": "t1"}
    reply = resp_map(
        {
            "sid": "s1",
            "token": token(1),
            "turn": 1,
            "stale_turns": 0,
            "protected": True,
            "served_by": "forwarded",
        }
    )
    turn = request.answer([reply])
    assert (turn.number, turn.stale_turns, turn.protected) == (1, 0, True)
    assert (turn.served_by, turn.turn_id, turn.token) == ("forwarded", "t1", session.token)
    assert session.turn == 1


def test_each_commit_has_an_id_of_its_own() -> None:
    session = state()
    ids = set()
    for _ in range(3):
        body = session.commit_request([], None, None, None, "reject").commands[0][2]
        assert isinstance(body, bytes)
        ids.add(json.loads(body)["turn_id"])
    assert len(ids) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ({"role": "user"}, None, None, None, "reject"),
        ("text", None, None, None, "reject"),
        (["text"], None, None, None, "reject"),
        ([{"x": float("nan")}], None, None, None, "reject"),
        ([{"x": b"bytes"}], None, None, None, "reject"),
        ([], "", None, None, "reject"),
        ([], None, -1, None, "reject"),
        ([], None, None, {"p": 3}, "reject"),
        ([], None, None, [1], "reject"),
        ([], None, None, None, "merge"),
    ],
)
def test_refuses_bad_turns_before_sending(arguments: Any) -> None:
    with pytest.raises(roost.BadRequest):
        state().commit_request(*arguments)


def test_reads_turns_and_fields() -> None:
    session = state()
    request = session.turns_request(2)
    assert request.commands == (("ROOST.TURNS", session.token, 2),)
    reply = resp_map(
        {
            "messages_json": '[{"role":"user","content":"a"}]',
            "turn": 5,
            "stale_turns": 1,
            "served_by": "replica",
            "lag_ms": 40,
            "token": token(5),
            "home": "eu-1",
        }
    )
    turns = request.answer([reply])
    assert turns == roost.Turns([{"role": "user", "content": "a"}], 5, 1, "replica", 40)
    assert session.turn == 5
    with pytest.raises(roost.BadRequest):
        session.turns_request(-1)
    view = resp_map({"fields_json": '{"kv":{"a":[1],"b":null}}', "token": token(6)})
    assert session.field_request("kv", "a").answer([view]) == [1]
    assert session.turn == 6
    for policy, name in (("kv", "b"), ("kv", "c"), ("other", "a")):
        assert session.field_request(policy, name).answer([view]) is None
    receipts = resp_map({"receipts_json": '[{"node":"eu-1"}]'})
    assert session.erase_request().answer([receipts]) == [{"node": "eu-1"}]


def test_a_call_is_named_by_tool_arguments_and_turn() -> None:
    session = state(4)
    key = CallState(session, "search", {"q": "x", "n": 1}, None, None).key
    assert key == CallState(session, "search", {"n": 1, "q": "x"}, None, None).key
    assert key == CallState(state(4), "search", {"n": 1, "q": "x"}, None, None).key
    others = {
        CallState(session, "fetch", {"q": "x", "n": 1}, None, None).key,
        CallState(session, "search", {"q": "x", "n": 2}, None, None).key,
        CallState(session, "search", {"q": "x", "n": 1}, None, "t9").key,
        CallState(state(5), "search", {"q": "x", "n": 1}, None, None).key,
    }
    assert len(others | {key}) == 5
    assert CallState(session, "search", {}, "mine", None).key == "mine"


def test_steps_of_a_call() -> None:
    session = state()
    call = CallState(session, "search", {"q": 1}, "c1", None)
    request = call.begin_request()
    body = request.commands[0][2]
    assert isinstance(body, bytes)
    assert json.loads(body) == {
        "call": "c1",
        "status": "begun",
        "tool": "search",
        "args": {"q": 1},
    }
    request.answer([resp_map({"status": "fresh", "token": token(1)})])
    assert (call.status, call.result, session.turn) == ("fresh", None, 1)
    request = call.end_request("finished", {"hits": [1]})
    body = request.commands[0][2]
    assert isinstance(body, bytes)
    assert json.loads(body)["result"] == {"hits": [1]}
    assert request.repeat
    request.answer([resp_map({"status": "finished", "result_json": '{"hits":[1]}'})])
    assert (call.status, call.result) == ("finished", {"hits": [1]})
    call.begin_request().answer([resp_map({"status": "begun", "token": token(2)})])
    assert call.status == "in_doubt"
    retry = call.begin_request(retry=True)
    body = retry.commands[0][2]
    assert isinstance(body, bytes)
    assert json.loads(body)["retry"] is True
    assert not retry.repeat
    for bad in (
        lambda: CallState(session, "", {}, None, None),
        lambda: call.end_request("finished", float("inf")),
    ):
        with pytest.raises(roost.BadRequest):
            bad()
