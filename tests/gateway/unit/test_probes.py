"""Readiness: stores are tried for whoever asks, but not more often because many ask."""

from __future__ import annotations

import asyncio

from gateway.api.health import RETRY_S, Probes


class Store:
    def __init__(self) -> None:
        self.tries, self.is_full = 0, False

    async def check(self) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if self.is_full:
            raise OSError("no space left")


def probes_of(store: Store, now: list[float]) -> Probes:
    return Probes(
        reasons=(), notices=lambda: (), writable=[("store", store.check)], now=lambda: now[0]
    )


async def test_many_who_ask_at_once_share_one_try() -> None:
    store = Store()
    probes = probes_of(store, [0.0])
    found = await asyncio.gather(*(probes.unmet() for _ in range(50)))
    assert (store.tries, set(found)) == (1, {()})


async def test_a_store_that_fills_up_is_told_within_a_second_and_so_is_its_recovery() -> None:
    store, now = Store(), [0.0]
    probes = probes_of(store, now)
    assert await probes.unmet() == ()
    store.is_full = True
    now[0] += RETRY_S / 2
    assert (await probes.unmet(), store.tries) == ((), 1)
    now[0] += RETRY_S / 2
    assert await probes.unmet() == ("The store cannot be written.",)
    store.is_full = False
    now[0] += RETRY_S
    assert await probes.unmet() == ()


async def test_who_asks_and_leaves_takes_no_answer_from_others() -> None:
    store = Store()
    probes = probes_of(store, [0.0])
    leaver = asyncio.create_task(probes.unmet())
    await asyncio.sleep(0)
    stayer = asyncio.create_task(probes.unmet())
    await asyncio.sleep(0)
    leaver.cancel()
    assert await stayer == ()
    assert store.tries == 1


async def test_a_store_that_hangs_is_not_tried_again_meanwhile() -> None:
    answers, now, tries = asyncio.Event(), [0.0], 0

    async def check() -> None:
        nonlocal tries
        tries += 1
        await answers.wait()

    writable = [("store", check)]
    probes = Probes(reasons=(), notices=lambda: (), writable=writable, now=lambda: now[0])
    asked = []
    for _ in range(5):
        asked.append(asyncio.create_task(probes.unmet()))
        await asyncio.sleep(0)
        now[0] += 2 * RETRY_S
    answers.set()
    assert await asyncio.gather(*asked) == [()] * 5
    assert tries == 1
