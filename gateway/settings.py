"""What an operator can set: one frozen object, read once from `TRIDENT_*` and validated.

Command line flags set the same variables, because the server process builds its own `Settings`.
It knows nothing of models: whether a folder can be served is found out when it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from engine.node_keys import NodeSecret
from gateway.addresses import Address
from gateway.auth.keys import KeyRing, parse_keys
from gateway.db.url import DatabaseUrl
from gateway.node_settings import read_node_secret, read_nodes
from gateway.sizes import parse_size
from gateway.switches import parse_switches
from schedulers.policies import LIVE_POLICIES, SwitchValue

LogFormat = Literal["auto", "json", "console"]
Device = Literal["cpu", "cuda"]
Role = Literal["both", "gateway", "engine"]
_Choice = TypeVar("_Choice", bound=str)

_DEVICES: Final[tuple[Device, ...]] = ("cpu", "cuda")
_ROLES: Final[tuple[Role, ...]] = ("both", "gateway", "engine")
SOLVERS: Final = ("greedy", "ilp")
_LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("auto", "json", "console")
_MAX_PORT: Final = 65_535
_MAX_STEP_BATCH: Final = 64
# On a CPU the same seed gives the same bytes, so no team is formed unless somebody asks for it.
_WARM_UP_DEGREES: Final = {"cpu": 1, "cuda": 8}
# One device per stage on a CPU; all the devices there are is the executor's business on GPUs.
_DEFAULT_DEVICES: Final[Mapping[Device, int]] = {"cpu": 3, "cuda": 1}


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names the variable and says what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the server process is told from outside. Printing it shows no key."""

    models: tuple[Path, ...]
    data_dir: Path
    database: DatabaseUrl | None = None
    artifacts: str | None = None
    retention_s: float = 7 * 86_400.0
    history_s: float = 30 * 86_400.0
    role: Role = "both"
    lease_s: float = 30.0
    device: Device = "cpu"
    devices: int = 3
    nodes: tuple[Address, ...] = ()
    node_secret: NodeSecret | None = None
    device_memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    handoff_memory_bytes: int | None = None
    threads_per_device: int | None = None
    embedding_cache_bytes: int = 64 << 20
    save_every_steps: int = 5
    save_every_s: float = 5.0
    step_batch: int = 1
    warm_up_degree: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    keys: KeyRing = KeyRing()
    admin: KeyRing = KeyRing()
    public_base_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    url_ttl_s: int = 3600
    queue_limit: int = 256
    max_image_pixels: int = 1 << 25
    max_concurrent: int = 64
    request_timeout_s: float = 600.0
    video_timeout_s: float = 3600.0
    slo_scale: float = 2.5
    drain_s: float = 10.0
    log_format: LogFormat = "auto"
    trace_file: Path | None = None
    policy: str = "trident"
    solver: str | None = None
    switches: Mapping[str, SwitchValue] = {}
    profile: Path | None = None
    events_file: Path | None = None
    planner_window_s: float = 60.0

    @property
    def artifacts_place(self) -> str:
        """Where finished files are kept: in the data folder unless told otherwise."""
        return self.artifacts or str(self.data_dir / "artifacts")

    @property
    def database_url(self) -> DatabaseUrl:
        """Where jobs are kept: in the data folder unless told otherwise."""
        return self.database or DatabaseUrl.in_folder(self.data_dir)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Build settings from environment variables; an empty variable counts as unset."""
        read = _Reader(env)
        device = read.choice("TRIDENT_DEVICE", _DEVICES, "cpu")
        try:
            nodes, secret = read_nodes(env), read_node_secret(env)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        count_devices = read.count if nodes else read.integer
        return cls(
            models=read.paths("TRIDENT_MODEL"),
            data_dir=read.path("TRIDENT_DATA_DIR") or default_data_dir(env),
            database=read.database("TRIDENT_DATABASE"),
            artifacts=read.text("TRIDENT_ARTIFACTS"),
            retention_s=read.number("TRIDENT_RETENTION_S", 7 * 86_400.0),
            history_s=read.number("TRIDENT_HISTORY_S", 30 * 86_400.0),
            role=read.choice("TRIDENT_ROLE", _ROLES, "both"),
            lease_s=read.number("TRIDENT_LEASE_S", 30.0),
            device=device,
            devices=count_devices("TRIDENT_DEVICES", _DEFAULT_DEVICES[device]),
            nodes=nodes,
            node_secret=secret,
            device_memory_bytes=read.size("TRIDENT_DEVICE_MEMORY"),
            host_memory_bytes=read.size("TRIDENT_HOST_MEMORY"),
            handoff_memory_bytes=read.size("TRIDENT_HANDOFF_MEMORY"),
            save_every_steps=read.count("TRIDENT_SAVE_EVERY_STEPS", 5),
            save_every_s=read.number("TRIDENT_SAVE_EVERY_S", 5.0),
            step_batch=read.integer("TRIDENT_STEP_BATCH", 1, most=_MAX_STEP_BATCH),
            warm_up_degree=read.count("TRIDENT_WARM_UP_DEGREE", _WARM_UP_DEGREES[device]),
            embedding_cache_bytes=read.size_or_none_at_all("TRIDENT_EMBEDDING_CACHE", 64 << 20),
            threads_per_device=read.optional_integer("TRIDENT_THREADS_PER_DEVICE"),
            host=read.text("TRIDENT_HOST") or "127.0.0.1",
            port=read.integer("TRIDENT_PORT", 8000, most=_MAX_PORT),
            keys=read.keys(),
            admin=read.admin(),
            public_base_url=(read.text("TRIDENT_PUBLIC_BASE_URL") or "").rstrip("/") or None,
            cors_origins=read.words("TRIDENT_CORS_ORIGINS"),
            url_ttl_s=read.integer("TRIDENT_URL_TTL_S", 3600),
            queue_limit=read.integer("TRIDENT_QUEUE_LIMIT", 256),
            max_image_pixels=read.integer("TRIDENT_MAX_IMAGE_PIXELS", 1 << 25),
            max_concurrent=read.integer("TRIDENT_MAX_CONCURRENT", 64),
            request_timeout_s=read.number("TRIDENT_REQUEST_TIMEOUT_S", 600.0),
            video_timeout_s=read.number("TRIDENT_VIDEO_TIMEOUT_S", 3600.0),
            drain_s=read.number("TRIDENT_DRAIN_S", 10.0),
            slo_scale=read.number("TRIDENT_SLO_SCALE", 2.5),
            log_format=read.choice("TRIDENT_LOG_FORMAT", _LOG_FORMATS, "auto"),
            trace_file=read.path("TRIDENT_TRACE_FILE"),
            policy=read.choice("TRIDENT_POLICY", LIVE_POLICIES, "trident"),
            solver=read.optional_choice("TRIDENT_SOLVER", SOLVERS),
            switches=read.switches("TRIDENT_SWITCHES"),
            profile=read.path("TRIDENT_PROFILE"),
            events_file=read.path("TRIDENT_EVENTS"),
            planner_window_s=read.number("TRIDENT_PLANNER_WINDOW_S", 60.0),
        )


def default_data_dir(env: Mapping[str, str]) -> Path:
    """Return the user's data folder by the XDG rules."""
    base = env.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "tridentserve"


class _Reader:
    """Turns variables into values; every complaint names its variable."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str | None:
        return self._env.get(name, "").strip() or None

    def words(self, name: str) -> tuple[str, ...]:
        words = (word.strip() for word in (self.text(name) or "").split(","))
        return tuple(word for word in words if word)

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return None if text is None else Path(text).expanduser()

    def paths(self, name: str) -> tuple[Path, ...]:
        parts = (self.text(name) or "").split(os.pathsep)
        return tuple(Path(part).expanduser() for part in parts if part)

    def optional_integer(self, name: str, *, most: int | None = None) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
            upper = "" if most is None else f" and at most {most}"
            message = f"{name} must be a whole number of at least 1{upper}, not {text!r}."
            raise SettingsError(message)
        return int(text)

    def integer(self, name: str, default: int, *, most: int | None = None) -> int:
        value = self.optional_integer(name, most=most)
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        text = self.text(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            message = f"{name} must be a number above 0, not {text!r}."
            raise SettingsError(message)
        return value

    def size(self, name: str) -> int | None:
        text = self.text(name)
        try:
            return None if text is None else parse_size(text)
        except ValueError as error:
            message = f"{name}: {error}"
            raise SettingsError(message) from error

    def database(self, name: str) -> DatabaseUrl | None:
        """Complaints never quote the URL, because it may hold a password."""
        text = self.text(name)
        try:
            return None if text is None else DatabaseUrl.parse(text)
        except ValueError as error:
            message = f"{name}: {error}"
            raise SettingsError(message) from error

    def count(self, name: str, default: int) -> int:
        """Read a whole number that may be 0."""
        return 0 if self.text(name) == "0" else self.integer(name, default)

    def size_or_none_at_all(self, name: str, default: int) -> int:
        """Read a size that may be 0."""
        if self.text(name) == "0":
            return 0
        size = self.size(name)
        return default if size is None else size

    def switches(self, name: str) -> dict[str, SwitchValue]:
        """Read switches of the policy; which there are is found out when it is built."""
        try:
            found = parse_switches(self.text(name) or "")
        except ValueError as error:
            message = f"{name}: {error}"
            raise SettingsError(message) from error
        if any(one.replace("-", "_") == "step_batch" for one in found):
            message = (
                f"{name}: step_batch has a setting of its own, TRIDENT_STEP_BATCH (--step-batch)."
            )
            raise SettingsError(message)
        return found

    def choice(self, name: str, choices: tuple[_Choice, ...], default: _Choice) -> _Choice:
        found = self.optional_choice(name, choices)
        return default if found is None else found

    def optional_choice(self, name: str, choices: tuple[_Choice, ...]) -> _Choice | None:
        text = self.text(name)
        if text is None:
            return None
        for choice in choices:
            if choice == text:
                return choice
        message = f"{name} must be one of {', '.join(choices)}, not {text!r}."
        raise SettingsError(message)

    def admin(self) -> KeyRing:
        """Read the operator's own key; complaints never quote it."""
        try:
            return parse_keys(self._env.get("TRIDENT_ADMIN_KEY", ""))
        except ValueError as error:
            message = f"TRIDENT_ADMIN_KEY: {error}"
            raise SettingsError(message) from error

    def keys(self) -> KeyRing:
        """Join the keys of the variable and of the file; complaints never quote a key."""
        lines = [self._env.get("TRIDENT_API_KEYS", "")]
        if (path := self.path("TRIDENT_API_KEYS_FILE")) is not None:
            try:
                lines.append(path.read_text(encoding="utf-8"))
            except OSError as error:
                message = f"TRIDENT_API_KEYS_FILE {path} cannot be read: {error.strerror}."
                raise SettingsError(message) from error
        try:
            return parse_keys("\n".join(lines))
        except ValueError as error:
            message = f"TRIDENT_API_KEYS: {error}"
            raise SettingsError(message) from error
