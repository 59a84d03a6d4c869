from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
from typing import Any

import pytest

import roost
from roost import aio

OK_GET = b"%3\r\n$5\r\nvalue\r\n:1\r\n$6\r\nlag_ms\r\n:0\r\n$6\r\nsource\r\n$4\r\nnode\r\n"
OK_ACK = b"%3\r\n$3\r\nseq\r\n:8\r\n$7\r\ndurable\r\n:1\r\n$5\r\nvalue\r\n:3\r\n"
LINEAR = b"%1\r\n$11\r\nconsistency\r\n$12\r\nlinearizable\r\n"
GLOBAL = b"%1\r\n$11\r\nconsistency\r\n$17\r\neventually-global\r\n"


def connected(recording: Any, **options: Any) -> roost.Client:
    return roost.connect(recording.url, mmap=False, **{"deadline_ms": 60_000, **options})


def test_connect_greets_and_says_who_is_there(recording: Any) -> None:
    with connected(recording) as client:
        assert client.node == "eu-1"
        assert recording.received[0][:2] == [b"HELLO", b"3"]


@pytest.mark.parametrize("url", ["unix:///nonexistent/roost.sock", "redis://127.0.0.1:1"])
def test_nobody_there_is_unavailable_at_once(url: str) -> None:
    started = time.monotonic()
    with pytest.raises(roost.Unavailable) as caught:
        roost.connect(url, deadline_ms=60_000)
    assert caught.value.details["connected"] is False
    assert caught.value.retry_after_ms
    assert time.monotonic() - started < 30


def test_uses_the_environment(recording: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_URL", recording.url)
    with roost.connect(mmap=False) as client:
        assert client.node == "eu-1"


def test_an_error_reply_leaves_the_connection_usable(recording: Any) -> None:
    recording.play(b"-NOPOLICY known ones: a, b\r\n", OK_GET)
    with connected(recording) as client:
        with pytest.raises(roost.NoPolicy):
            client.get("x")
        assert client.get("a:x").value == 1
        assert recording.connections == 1


def test_a_read_is_sent_again_after_a_loss(recording: Any) -> None:
    recording.play(None, OK_GET)
    with connected(recording) as client:
        assert client.get("k").value == 1
        assert recording.connections == 2


def test_a_read_fails_after_the_second_loss(recording: Any) -> None:
    recording.play(None, None, OK_GET)
    with connected(recording) as client:
        with pytest.raises(roost.Unavailable):
            client.get("k")
        assert client.get("k").value == 1


def test_a_spend_is_repeated_under_its_id(recording: Any) -> None:
    recording.play(None, b"%1\r\n$15\r\nremaining_local\r\n:4\r\n")
    with connected(recording) as client:
        assert client.spend("q", 1, request_id="r1").remaining_local == 4
    first, second = recording.commands()
    assert first == second == [b"ROOST.SPEND", b"q", b"1", b"r1"]


def test_a_write_without_id_is_not_repeated(recording: Any) -> None:
    recording.play(None)
    with connected(recording) as client:
        with pytest.raises(roost.UnknownOutcome):
            client.set("k", 1)
        assert len(recording.commands()) == 1


def test_an_increment_is_repeated_only_where_it_applies_once(recording: Any) -> None:
    recording.play(None, LINEAR, OK_ACK)
    with connected(recording) as client:
        assert client.incr("billing:x").value == 3
        sent = [command for command in recording.commands() if command[0] == b"ROOST.INCR"]
        assert len(sent) == 2
        assert sent[0] == sent[1]
        recording.play(None, GLOBAL)
        with pytest.raises(roost.UnknownOutcome) as caught:
            client.incr("counter:x", request_id="r7")
        assert caught.value.details["request_id"] == "r7"


def test_a_daemon_that_restarted_meanwhile_is_not_noticed(recording: Any) -> None:
    recording.play(OK_ACK, OK_ACK)
    with connected(recording) as client:
        client.set("k", 1)
        recording.drop()
        time.sleep(0.05)
        assert client.set("k", 2).seq == 8  # a write: sent once, on a fresh connection
        assert recording.connections == 2


def test_silence_ends_at_the_deadline(recording: Any) -> None:
    released = threading.Event()

    def silent() -> bytes:
        released.wait(60)
        return OK_GET

    recording.play(silent, silent, OK_GET)
    with connected(recording) as client:
        with connected(recording) as other:
            client.deadline_ms = other.deadline_ms = 150  # both are greeted
            started = time.monotonic()
            with pytest.raises(roost.Unavailable):
                client.get("k")
            with pytest.raises(roost.UnknownOutcome):
                other.incr("k")
            assert 0.25 < time.monotonic() - started < 30
        released.set()
        client.deadline_ms = 60_000
        assert client.get("k").value == 1  # never the late reply of the first


def test_a_busy_connection_ends_at_the_deadline_of_who_waits(recording: Any) -> None:
    released = threading.Event()

    def slow() -> bytes:
        released.wait(60)
        return OK_GET

    recording.play(slow, OK_GET)
    with connected(recording) as client:
        waiting = threading.Thread(target=lambda: client.get("a"))
        waiting.start()
        while not recording.commands():
            time.sleep(0.005)
        client.deadline_ms = 50
        with pytest.raises(roost.Unavailable, match="busy"):
            client.get("b")
        released.set()
        waiting.join()


def test_threads_share_one_connection(recording: Any) -> None:
    replies = [OK_GET.replace(b":1\r", b":%d\r" % n, 1) for n in range(200)]
    recording.play(*replies)
    seen: list[int] = []
    with connected(recording) as client:

        def read() -> None:
            seen.extend([client.get("k").value for _ in range(50)])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seen) == list(range(200))
    assert recording.connections == 1


def test_garbage_is_a_lost_connection(recording: Any) -> None:
    recording.play(b"?what\r\n", b"?what\r\n", OK_GET)
    with connected(recording) as client:
        with pytest.raises(roost.Unavailable):
            client.get("k")
        assert client.get("k").value == 1


def test_a_closed_client_says_so(recording: Any) -> None:
    client = connected(recording)
    client.close()
    with pytest.raises(roost.Unavailable, match="closed"):
        client.get("k")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_opens_its_own_connection(recording: Any) -> None:
    recording.play(OK_GET, OK_GET)
    with connected(recording) as client:

        def in_child(results: Any) -> None:
            results.put(client.get("k").value)

        context = multiprocessing.get_context("fork")
        results: Any = context.SimpleQueue()
        child = context.Process(target=in_child, args=(results,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert results.get() == 1
        assert client.get("k").value == 1
        assert recording.connections == 2


def test_a_lock_held_at_the_fork_does_not_block_the_child(recording: Any) -> None:
    recording.play(lambda: (time.sleep(0.3), OK_GET)[1], OK_GET)
    with connected(recording) as client:
        busy = threading.Thread(target=lambda: client.get("k"))
        busy.start()
        while not recording.commands():
            time.sleep(0.005)
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if client.get("k").value == 1 else 3)
            finally:
                os._exit(4)
        busy.join()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- asyncio ------------------------------------------------------------------------------------


async def test_aio_connects_in_every_way(recording: Any) -> None:
    recording.play(OK_GET, OK_GET, OK_GET)
    async with aio.connect(recording.url, mmap=False) as client:
        assert (await client.get("k")).value == 1
    client = await aio.connect(recording.url, mmap=False)
    assert client.node == "eu-1"
    assert (await client.get("k")).value == 1
    await client.close()
    client = aio.connect(recording.url, mmap=False)
    assert (await client.get("k")).value == 1
    await client.close()
    with pytest.raises(roost.Unavailable, match="closed"):
        await client.get("k")


async def test_aio_nobody_there() -> None:
    with pytest.raises(roost.Unavailable) as caught:
        await aio.connect("unix:///nonexistent/roost.sock")
    assert caught.value.details["connected"] is False


async def test_aio_pipelines_and_repeats(recording: Any) -> None:
    replies = [OK_GET.replace(b":1\r", b":%d\r" % n, 1) for n in range(50)]
    recording.play(*replies)
    async with aio.connect(recording.url, mmap=False) as client:
        read = await asyncio.gather(*(client.get("k") for _ in range(50)))
        assert [reading.value for reading in read] == list(range(50))
        assert recording.connections == 1
        recording.play(None, OK_GET)
        assert (await client.get("k")).value == 1
        recording.play(None)
        with pytest.raises(roost.UnknownOutcome):
            await client.set("k", 1)
        recording.play(None, LINEAR, OK_ACK)
        assert (await client.incr("k")).value == 3


async def test_aio_silence_ends_at_the_deadline(recording: Any) -> None:
    released = threading.Event()

    def silent() -> bytes:
        released.wait(60)
        return OK_GET

    recording.play(silent, OK_GET)
    async with aio.connect(recording.url, mmap=False, deadline_ms=60_000) as client:
        assert client.node == "eu-1", "it is greeted"
        client.deadline_ms = 100
        with pytest.raises(roost.UnknownOutcome):
            await client.delete("k")
        released.set()
        client.deadline_ms = 60_000
        assert (await client.get("k")).value == 1


async def test_aio_a_cancelled_request_leaves_the_others_alone(recording: Any) -> None:
    released = threading.Event()
    recording.play(
        lambda: OK_GET if released.wait(60) else None, OK_GET.replace(b":1\r", b":2\r", 1)
    )
    async with aio.connect(recording.url, mmap=False, deadline_ms=60_000) as client:
        cancelled = asyncio.create_task(client.get("a"))
        while not recording.commands():
            await asyncio.sleep(0.005)
        kept = asyncio.create_task(client.get("b"))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        released.set()
        assert (await kept).value == 2
        with pytest.raises(asyncio.CancelledError):
            await cancelled


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_aio_a_client_moves_to_another_loop(recording: Any) -> None:
    recording.play(OK_GET, OK_GET)
    client = aio.connect(recording.url, mmap=False)
    assert asyncio.run(client.get("k")).value == 1
    assert asyncio.run(client.get("k")).value == 1
    asyncio.run(client.close())
    gc.collect()  # the sockets of closed loops
