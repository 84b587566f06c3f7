"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.auth.hosts import is_loopback
from gateway.settings import Settings, SettingsError
from gateway.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 << 20),
        ("24GiB", 24 << 30),
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("1.5G", 3 << 29),
        ("2GB", 2_000_000_000),
        ("4096", 4096),
        (" 1 KiB ", 1024),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "much", "12Q", "-1G", "0", "1e9"])
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="512MiB"):
        parse_size(text)


def test_an_empty_environment_gives_a_local_server() -> None:
    settings = Settings.from_env({"XDG_DATA_HOME": "/data", "TRIDENT_PORT": " "})
    assert (settings.host, settings.port, settings.devices) == ("127.0.0.1", 8000, 3)
    assert settings.data_dir == Path("/data/tridentserve")
    assert not settings.keys
    assert (settings.warm_up_degree, settings.step_batch) == (1, 1)


def test_every_variable_is_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# staff\nacme:sk-acme-1234 # main\n\nglobex:sk-globex-1\n")
    settings = Settings.from_env(
        {
            "TRIDENT_MODEL": "/m/a:/m/b",
            "TRIDENT_DEVICE": "cuda",
            "TRIDENT_DEVICE_MEMORY": "24GiB",
            "TRIDENT_HOST_MEMORY": "64GiB",
            "TRIDENT_HANDOFF_MEMORY": "2GiB",
            "TRIDENT_THREADS_PER_DEVICE": "2",
            "TRIDENT_HOST": "0.0.0.0",  # noqa: S104
            "TRIDENT_API_KEYS_FILE": str(keys),
            "TRIDENT_API_KEYS": "sk-plain-1",
            "TRIDENT_PUBLIC_BASE_URL": "https://x.example/",
            "TRIDENT_CORS_ORIGINS": "https://a.example, https://b.example",
            "TRIDENT_SLO_SCALE": "1.5",
            "TRIDENT_VIDEO_TIMEOUT_S": "7200",
            "TRIDENT_STEP_BATCH": "4",
            "TRIDENT_SOLVER": "ilp",
            "TRIDENT_SWITCHES": "preempt=off; scale-up=on;weights=acme:2,globex:1;least_gain=0.9",
        }
    )
    assert settings.solver == "ilp"
    assert settings.switches == {
        "preempt": False,
        "scale-up": True,
        "weights": {"acme": 2.0, "globex": 1.0},
        "least_gain": 0.9,
    }
    assert settings.video_timeout_s == 7200.0
    assert (settings.warm_up_degree, settings.step_batch) == (8, 4)
    assert settings.models == (Path("/m/a"), Path("/m/b"))
    assert (settings.devices, settings.device_memory_bytes) == (1, 24 << 30)
    assert (settings.host_memory_bytes, settings.handoff_memory_bytes) == (64 << 30, 2 << 30)
    assert [key.tenant for key in settings.keys.keys] == ["default", "acme", "globex"]
    assert settings.public_base_url == "https://x.example"
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.slo_scale == 1.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRIDENT_PORT", "http"),
        ("TRIDENT_PORT", "70000"),
        ("TRIDENT_DEVICES", "0"),
        ("TRIDENT_DEVICE", "tpu"),
        ("TRIDENT_DEVICE_MEMORY", "lots"),
        ("TRIDENT_SLO_SCALE", "-1"),
        ("TRIDENT_SLO_SCALE", "nan"),
        ("TRIDENT_LOG_FORMAT", "xml"),
        ("TRIDENT_ROLE", "king"),
        ("TRIDENT_DATABASE", "mysql://host/db"),
        ("TRIDENT_LEASE_S", "0"),
        ("TRIDENT_SOLVER", "simplex"),
        ("TRIDENT_SWITCHES", "preempt"),
        ("TRIDENT_SWITCHES", "least_gain=nan"),
        ("TRIDENT_SWITCHES", "step-batch=4"),
        ("TRIDENT_API_KEYS", "acme:short"),
        ("TRIDENT_API_KEYS_FILE", "/does/not/exist"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name.removesuffix("_FILE")):
        Settings.from_env({name: value})


def test_printing_settings_shows_no_key() -> None:
    shown = repr(Settings.from_env({"TRIDENT_API_KEYS": "acme:sk-acme-1234"}))
    assert "sk-acme" not in shown
    assert "KeyRing(1 keys)" in shown
    url = "postgresql://trident:hunter2@db.example/trident"
    assert "hunter2" not in repr(Settings.from_env({"TRIDENT_DATABASE": url}))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback_is_this_machine_only(host: str, *, local: bool) -> None:
    assert is_loopback(host) is local
