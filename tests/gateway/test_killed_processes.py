"""Two gateways and two engines on one PostgreSQL; whichever is killed, whenever: nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from gateway.auth.principal import DEFAULT_TENANT
from gateway.db.session import Database
from gateway.jobs.record import JobId, job_of_video
from gateway.jobs.rows import JOB_COLUMNS, JOBS, jobs_of
from gateway.jobs.state import TERMINAL, JobStatus
from gateway.jobs.store import JobStore
from tests.support.server import free_port

LEASE_S = 2.0
ROLES = ("gateway", "gateway", "engine", "engine")


@dataclass
class Replica:
    """A process that is started again at once when it was killed."""

    role: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Deployment:
    """Four processes on one database.

    Attributes:
        killed: ids of the processes that were.
        kept: moments shortly before kills, and which stages of which jobs were written down then.
    """

    def __init__(self, database: Database, data_dir: Path, *, stage_s: float) -> None:
        self._data_dir, self._stage_s = data_dir, stage_s
        self._env = {
            **os.environ,
            "TRIDENT_DATABASE": database.url.text,
            "TRIDENT_DATA_DIR": str(data_dir),
            "TRIDENT_LEASE_S": str(LEASE_S),
            "TRIDENT_MAX_CONCURRENT": "8",
        }
        self.killed: set[int] = set()
        self.kept: list[tuple[float, frozenset[tuple[str, str]]]] = []
        self.replicas = [self._start(role, free_port()) for role in ROLES]

    def _start(self, role: str, port: int) -> Replica:
        command = [sys.executable, "-m", "tests.support.replica"]
        command += [str(self._data_dir / "painted"), str(self._stage_s)]
        env = {**self._env, "TRIDENT_ROLE": role, "TRIDENT_PORT": str(port)}
        return Replica(role, port, subprocess.Popen(command, env=env))

    @property
    def gateways(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.role == "gateway"]

    def kill(self, number: int) -> None:
        """Kill a process as nothing else can, and start another in its place."""
        victim = self.replicas[number]
        self.killed.add(victim.process.pid)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        self.replicas[number] = self._start(victim.role, victim.port)

    async def until_a_stage_ends(self) -> None:
        """Let work go on between kills, or they all hit processes that are only starting."""
        log = self._data_dir / "painted/stages.log"
        before, loop = _size(log), asyncio.get_running_loop()
        until_s = loop.time() + 60
        while _size(log) == before and loop.time() < until_s:
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        for replica in self.replicas:
            replica.process.kill()
            replica.process.wait()

    async def until_ready(self) -> None:
        async with asyncio.timeout(120), httpx.AsyncClient() as client:
            for replica in self.replicas:
                while await _status(client, f"{replica.url}/readyz") != 200:
                    assert replica.process.poll() is None, f"a {replica.role} did not start"
                    await asyncio.sleep(0.1)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


async def _status(client: httpx.AsyncClient, url: str) -> int:
    try:
        return (await client.get(url)).status_code
    except httpx.TransportError:
        return 0


@pytest.fixture
async def deploy() -> AsyncIterator[list[Deployment]]:
    """What a test puts here is stopped at its end, before its database goes."""
    running: list[Deployment] = []
    yield running
    for deployment in running:
        deployment.stop()


async def submit(deployment: Deployment, number: int) -> JobId:
    """Ask for a video at any gateway until one has answered, with one key for all tries."""
    async with asyncio.timeout(120), httpx.AsyncClient(timeout=10) as client:
        for attempt in range(10_000):
            gateway = deployment.gateways[(number + attempt) % 2]
            try:
                answer = await client.post(
                    f"{gateway.url}/v1/videos",
                    json={"prompt": f"clip {number}", "seed": number},
                    headers={"idempotency-key": f"clip-{number}"},
                )
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code == 200:
                job = job_of_video(answer.json()["id"])
                assert job is not None
                return job
            await asyncio.sleep(0.1)
    raise AssertionError


async def disturbed_run(
    deployment: Deployment, database: Database, *, jobs: int, kills: int, seed: int
) -> None:
    """Run `jobs` videos while `kills` processes die, and check what must hold afterwards."""
    rng = random.Random(seed)
    await deployment.until_ready()
    submissions = [asyncio.create_task(submit(deployment, n)) for n in range(jobs)]
    # Every kind of process dies at least once; the moments are anybody's guess.
    victims = [2, 0, 3, 1] + [rng.randrange(4) for _ in range(kills)]
    for victim in victims[:kills]:
        await deployment.until_a_stage_ends()
        await asyncio.sleep(rng.uniform(0.2, 1.5))
        kept = await stages_kept(database)
        deployment.kept.append((time.time(), kept))
        deployment.kill(victim)
    ids = await asyncio.gather(*submissions)
    store = JobStore(database)
    async with asyncio.timeout(600):
        while True:
            found = [await store.get(job, DEFAULT_TENANT) for job in ids]
            if all(job is not None and job.status in TERMINAL for job in found):
                break
            await asyncio.sleep(0.2)
    assert len(set(ids)) == jobs, "a job was made twice"
    for job in found:
        assert job is not None
        assert job.status is JobStatus.COMPLETED, (job.status, job.error)
        assert len(job.artifacts) == 1
        assert [timing.stage for timing in job.timeline] == ["encode", "diffuse", "decode"]


async def stages_kept(database: Database) -> frozenset[tuple[str, str]]:
    """Return which stages of unfinished jobs are written down in their rows, by job and stage."""
    wanted = select(*JOB_COLUMNS).where(JOBS.c.checkpoint.is_not(None))
    jobs = await database.read(lambda found: jobs_of(found, found.execute(wanted).all()))
    return frozenset((job.id, stage.node) for job in jobs for stage in job.kept)


def repeated_without_need(log: Path, deployment: Deployment) -> list[str]:
    """Return every stage that began again although its end was written down, or nobody died."""
    ends: dict[tuple[str, str], set[int]] = defaultdict(set)
    wrong = []
    for line in log.read_text().splitlines():
        job, stage, what, at, pid = line.split()
        if what == "ends":
            ends[job, stage].add(int(pid))
            continue
        was_kept = any(at_s < float(at) and (job, stage) in kept for at_s, kept in deployment.kept)
        if was_kept or ends[job, stage] - deployment.killed:
            wrong.append(f"{job} {stage}: ended in {ends[job, stage]}, began at {at} in {pid}")
    return wrong


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_no_kill_loses_or_doubles_a_job_or_repeats_what_was_done(
    database: Database, deploy: list[Deployment], tmp_path: Path
) -> None:
    deploy.append(Deployment(database, tmp_path, stage_s=0.4))
    await disturbed_run(deploy[0], database, jobs=10, kills=2, seed=1)
    assert repeated_without_need(tmp_path / "painted/stages.log", deploy[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("seed", range(5))
async def test_a_hundred_jobs_outlive_a_dozen_kills(
    database: Database, deploy: list[Deployment], tmp_path: Path, seed: int
) -> None:
    deploy.append(Deployment(database, tmp_path, stage_s=0.5))
    await disturbed_run(deploy[0], database, jobs=100, kills=12, seed=seed)
    assert any(kept for _, kept in deploy[0].kept)
    assert repeated_without_need(tmp_path / "painted/stages.log", deploy[0]) == []
