"""Eventually-global state of real regions: all write at once, links end, all read alike."""

from __future__ import annotations

import asyncio
from typing import Any

from .conftest import Start
from .faulty_daemon import POLICIES
from .speaker import Speaker

CALM = "[session]\ntakeover_after_ms = 4000\n"
"""A busy machine is not taken for a lost region; but one is lost at the end."""
LINE = (("eu", "us"), ("us", "ap"))
ROUNDS = 30


async def write_everything(speaker: Speaker, region: str, count: int = ROUNDS) -> None:
    """Every type of key, under names that all regions share."""
    for n in range(count):
        await asyncio.gather(
            speaker.put(region, f"model_router_weights:{n % 7}", {"by": region, "n": n}),
            speaker.patch(region, f"visits:{n % 3}", incr=1),
            speaker.patch(region, "tags:all", put=[f"{region}-{n}"]),
            speaker.patch(region, "tags:all", drop=[f"{region}-{n - 5}"]),
            speaker.patch(region, "profile:all", put={f"f{n % 9}": [region, n]}),
            speaker.patch(region, f"rate_limits:{n % 2}", incr=1),
        )


async def read_everything(speaker: Speaker, region: str) -> dict[str, Any]:
    names = [f"model_router_weights:{n}" for n in range(7)]
    names += [f"visits:{n}" for n in range(3)] + ["tags:all", "profile:all"]
    values = await asyncio.gather(*(speaker.value(region, name) for name in names))
    return dict(zip(names, values, strict=True))


async def check_alike(speaker: Speaker, visits: int) -> None:
    await speaker.converged()
    seen = [await read_everything(speaker, name) for name in speaker.regions.names]
    assert seen[0] == seen[1] == seen[2]
    assert sum(seen[0][f"visits:{n}"] for n in range(3)) == visits


async def test_regions_in_a_line_converge_and_serve_each_other(start: Start) -> None:
    regions = await start("eu", "us", "ap", pairs=LINE, policies=POLICIES, settings=CALM)
    speaker = Speaker(regions, patient=True)
    await speaker.linked()
    await asyncio.gather(*(write_everything(speaker, name) for name in regions.names))
    await check_alike(speaker, 3 * ROUNDS)

    # The middle is away while the ends write, and brings them together again.
    await regions.kill("us")
    await asyncio.gather(write_everything(speaker, "eu"), write_everything(speaker, "ap"))
    await regions.launch("us")
    await speaker.linked()
    await check_alike(speaker, 5 * ROUNDS)

    # A session of one end is used at the other: found, read, continued there.
    opened = await speaker.open("eu", "line")
    done = await speaker.commit("eu", "line", "one", opened.token)
    far = await speaker.turns("ap", "line", done.token)
    assert far["served_by"] == "forwarded"
    assert far["stale_turns"] == 0
    again = await speaker.turns("ap", "line", far.token)
    assert again["served_by"] == "replica"
    two = await speaker.commit("ap", "line", "two", again.token)
    assert two["served_by"] == "forwarded"
    assert await speaker.texts("ap", "line", two.token) == ["one", "two"]
    assert await speaker.texts("eu", "line", two.token) == ["one", "two"]
    assert (await speaker.show("ap", "line"))["home"] == "eu-1"

    # Erased at one end: the other is reached through the middle.
    opened = await speaker.open("ap", "gone")
    assert (await speaker.turns("eu", "gone", opened.token))["turn"] == 0
    done = await speaker.ask("eu", "DELETE", "/v1/sessions/gone", token=opened.token)
    assert {receipt["node"] for receipt in done["receipts"]} == {"eu-1", "us-1", "ap-1"}

    # The tokens of a node that is gone still verify at the far end.
    await regions.kill("eu")
    await speaker.until(lambda: reads(speaker, two.token), "us did not take over")
    await speaker.close()


async def reads(speaker: Speaker, token: str | None) -> bool:
    """Whether the turns are read; "three" may be there from an attempt whose answer was lost."""
    return (await speaker.texts("ap", "line", token))[:2] == ["one", "two"] and (
        await speaker.commit("ap", "line", "three", token)
    )["turn"] == 3
