"""What a worker's death tells those who wait for its replies."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import WorkerLostError
from engine.executors.mailbox import Mailbox


async def test_only_what_a_worker_has_begun_with_may_be_why_it_died() -> None:
    mailbox = Mailbox()
    began, queued = (mailbox.expect(key, queued=True) for key in ("began", "queued"))
    load = mailbox.expect("load")
    mailbox.began("began")
    mailbox.lose_all("SIGKILL")
    for future, has_begun in ((began, True), (queued, False), (load, True)):
        with pytest.raises(WorkerLostError, match="SIGKILL") as error:
            await future
        assert error.value.began is has_begun
    await asyncio.sleep(0)
    assert not mailbox.is_waited_for
