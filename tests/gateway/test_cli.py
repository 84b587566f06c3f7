"""The command: what is wrong is said in one sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway import cli
from gateway.settings import Settings
from tests.support.fake_engine import spec_of, video_spec_of

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
TEXT = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
INDEX = {
    "_class_name": "FluxPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    **{key: ["transformers", "Any"] for key in TEXT},
}


@pytest.fixture(autouse=True)
def environment_kept() -> Iterator[None]:
    """Take back what a command tells its server processes by variables."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = "MODEL HOST PORT API_KEYS DEVICE DEVICES DEVICE_MEMORY DATABASE ROLE ARTIFACTS"
    names += " POLICY SOLVER SWITCHES TRACE_FILE"
    for name in names.split():
        monkeypatch.setenv(f"TRIDENT_{name}", "")
    monkeypatch.setenv("TRIDENT_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that can be opened, with files of no weights."""
    folder = tmp_path / "tiny"
    for part in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        weights = folder / part / "model.safetensors"
        weights.write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        (folder / part).mkdir()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    (folder / "vae/config.json").write_text(json.dumps({"block_out_channels": [8, 8]}))
    (folder / "transformer/config.json").write_text(json.dumps({"patch_size": 2}))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["serve", *arguments])


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.output.startswith("Error: ")
    assert all(word in result.output for word in words)
    assert "Traceback" not in result.output


def test_a_wrong_model_path_is_named() -> None:
    assert_refused(serve("--model", "/does/not/exist"), "/does/not/exist", "model folder")


def test_a_wrong_size_is_named() -> None:
    assert_refused(serve("--model", "/m", "--device-memory", "plenty"), "'plenty'", "512MiB")


def test_devices_that_hold_no_stage_are_refused_with_what_they_would_need() -> None:
    models = [flag for name in ("shapes", "motion") for flag in ("--model", str(MODELS / name))]
    refused = serve(*models, "--device-memory", "20MiB")
    assert_refused(refused, "20 MiB", "model motion", "stage diffuse", "--device-memory")


BROKEN = [
    ("model_index.json", '{"_class_name": "Flux', "model_index.json cannot be read as JSON"),
    ("model_index.json", "[]", "model_index.json must hold a JSON object"),
    ("model_index.json", '{"_class_name": "WanPipeline"}', "'WanPipeline', which is not served"),
    ("model_index.json", '{"_class_name": "FluxPipeline"}', "names no tokenizer, text_encoder"),
    ("vae/config.json", "{", "vae/config.json cannot be read as JSON"),
    ("text_encoder/config.json", "{", "text_encoder/config.json cannot be read as JSON"),
    ("transformer/config.json", "{", "transformer/config.json cannot be read as JSON"),
    ("transformer/config.json", None, "transformer/config.json is missing"),
]


@pytest.mark.parametrize(("file", "content", "complaint"), BROKEN)
def test_a_broken_model_folder_is_refused_naming_the_file(
    model: Path, file: str, content: str | None, complaint: str
) -> None:
    if content is None:
        (model / file).unlink()
    else:
        (model / file).write_text(content)
    assert_refused(serve("--model", str(model)), complaint)


def test_a_profile_of_another_version_of_the_model_is_refused(tmp_path: Path) -> None:
    profile = msgspec.json.decode((ROOT / "benchmarks/results/profile_shapes.json").read_bytes())
    profile["models"]["shapes"]["fingerprint"] = "of another"
    (tmp_path / "profile.json").write_bytes(msgspec.json.encode(profile))
    refused = serve("--model", str(MODELS / "shapes"), "--profile", str(tmp_path / "profile.json"))
    assert_refused(refused, "another version of model shapes", "trident profile")


@pytest.mark.parametrize("file", ["traces.jsonl", "afile/traces.jsonl", "afile/sub/traces.jsonl"])
def test_a_trace_file_that_cannot_be_written_is_refused(
    model: Path, tmp_path: Path, file: str
) -> None:
    (tmp_path / "traces.jsonl").mkdir()
    (tmp_path / "afile").touch()
    refused = serve("--model", str(model), "--trace-file", str(tmp_path / file))
    assert_refused(refused, f"Cannot write {tmp_path / file}")


@pytest.mark.parametrize("version", ["3, 9", "3, 11"])
def test_make_refuses_a_python_that_is_too_old_before_it_makes_anything(
    tmp_path: Path, version: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
case "$1" in
-c) {sys.executable} -c "import sys; sys.version_info = ({version}); $2" ;;
*) mkdir -p .venv/bin; touch .venv/bin/python; exit 1 ;;
esac
""")
    python.chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), ".venv/bin/python", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert ("needs Python 3.11 or newer" in done.stderr) is (version == "3, 9")
    assert not (tmp_path / ".venv").exists()


def test_an_open_server_for_everyone_is_refused_until_there_is_a_key(model: Path) -> None:
    everyone = ("--model", str(model), "--host", "0.0.0.0", "--port", "1")  # noqa: S104
    assert_refused(serve(*everyone), "TRIDENT_API_KEYS", "trident keys create")
    made = keys("create", "--tenant", "acme")
    assert made.exit_code == 0, made.output
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refused(serve(*everyone[:-1], port), f"port {port}")


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["keys", *arguments])


def test_keys_are_made_listed_and_revoked_and_shown_once(tmp_path: Path) -> None:
    made = keys("create", "--tenant", "acme", "--name", "staff")
    secret = made.stdout.strip()
    assert secret.startswith("sk-trident-")
    assert str(tmp_path / "data/trident.db") in made.stderr  # whoever serves from elsewhere sees it
    listed = keys("list").output
    identifier = listed.split()[0]
    assert f"{identifier}  active   acme  ...{secret[-4:]}" in listed
    assert listed.rstrip().endswith("staff")
    assert secret not in listed
    assert secret.encode() not in (tmp_path / "data/trident.db").read_bytes()
    assert keys("revoke", identifier).exit_code == 0
    assert f"{identifier}  revoked  acme" in keys("list").output
    assert_refused(keys("revoke", identifier), identifier, "keys list")


def test_a_malformed_tenant_is_named() -> None:
    assert_refused(keys("create", "--tenant", "a b"), "'a b'")


def test_a_wrong_artifact_store_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_ARTIFACTS", "gopher://x/y")
    assert_refused(serve("--model", str(model)), "TRIDENT_ARTIFACTS")


def test_a_taken_port_is_named(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refused(serve("--model", str(model), "--port", port), port, "--port")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--switch", "warp=on"), ("no switch 'warp'", "preempt", "scale_up")),
        (("--switch", "preempt"), ("NAME=on",)),
        (("--switch", "preempt=3"), ("wrong value", "preempt")),
        (("--switch", "considered=0"), ("considered is too small",)),
        (("--switch", "step-batch=4"), ("--step-batch",)),
        (("--policy", "b3", "--switch", "spill=off"), ("b3 has no switches", "trident")),
        (("--policy", "b3", "--solver", "ilp"), ("b3 has no switches", "ilp")),
    ],
)
def test_a_switch_or_solver_that_the_policy_lacks_is_refused_before_the_start(
    model: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(serve("--model", str(model), *options), *words)


def test_switches_and_solver_reach_the_server_process(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Settings] = []
    monkeypatch.setattr(cli, "_need_port", lambda _host, _port: None)
    monkeypatch.setattr(cli, "_serve", lambda *_args, **_kwargs: began.append(Settings.from_env()))
    options = ("--solver", "ilp", "--switch", "preempt=off", "--switch", "weights=acme:2,b:1")
    result = serve("--model", str(model), *options)
    assert result.exit_code == 0, result.output
    (settings,) = began
    assert settings.solver == "ilp"
    assert settings.switches == {"preempt": False, "weights": {"acme": 2.0, "b": 1.0}}


def test_two_models_of_one_name_are_refused(model: Path) -> None:
    assert_refused(serve("--model", str(model), "--model", str(model)), "rename one")


def test_without_the_engines_packages_the_hint_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.machine.find_spec", lambda _: None)
    assert_refused(serve("--model", str(model)), "pip install 'tridentserve[engine]'")
    made = CliRunner().invoke(cli.main, ["model", "new", "somewhere"])
    assert_refused(made, "pip install 'tridentserve[engine]'")


def test_the_greeting_has_the_url_and_a_line_to_try(tmp_path: Path) -> None:
    settings = Settings(models=(), data_dir=tmp_path, port=8123)
    text = cli.greeting(settings, [video_spec_of("motion"), spec_of("shapes")])
    assert "models: motion, shapes" in text
    assert "curl -s http://127.0.0.1:8123/v1/images/generations" in text
    assert '"model": "shapes"' in text
    assert "OPEN: No API key is set" in text
    assert "OPEN" not in cli.greeting(settings, [spec_of("shapes")], has_keys=True)


def test_a_server_runs_on_the_loop_that_it_can_be_stopped_on_whatever_else_is_installed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, object] = {}

    class Server:
        def __init__(self, _target: str, **options: object) -> None:
            wanted.update(options)

        def on_startup(self, greet: object) -> None: ...

        def serve(self) -> None: ...

    monkeypatch.setattr(cli, "_Server", Server)
    monkeypatch.setattr(cli, "need_engine", lambda: None)
    monkeypatch.setattr(cli, "_need_port", lambda _host, _port: None)
    result = serve("--model", str(model))
    assert result.exit_code == 0, result.output
    assert wanted["loop"] == "asyncio"


def test_the_greeting_of_a_server_that_only_makes_videos_shows_a_video(tmp_path: Path) -> None:
    settings = Settings(models=(), data_dir=tmp_path, port=8123)
    text = cli.greeting(settings, [video_spec_of("motion")])
    assert "curl -s http://127.0.0.1:8123/v1/videos" in text


def test_the_api_process_never_imports_torch() -> None:
    code = (
        "import sys, gateway.app, gateway.cli; "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null"])
def test_a_data_folder_that_cannot_be_used_is_named(model: Path, folder: str) -> None:
    assert_refused(serve("--model", str(model), "--data-dir", folder), folder, "--data-dir")


def test_more_gpus_than_there_are_are_refused(model: Path) -> None:
    result = serve("--model", str(model), "--device", "cuda", "--devices", "64")
    assert_refused(result, "GPUs", "64", "--device cpu")


def test_a_new_model_does_not_overwrite_what_is_there(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    made = CliRunner().invoke(cli.main, ["model", "new", str(tmp_path)])
    assert_refused(made, str(tmp_path), "name a new one")
    assert precious.read_text() == "mine"


def test_a_file_system_without_a_write_ahead_log_is_refused(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "trident.db"  # SQLite has no such log where it locks by files, either
    url = f"sqlite:///file:{place}?vfs=unix-dotfile&uri=true"
    refused = serve("--model", str(model), "--database", url)
    assert_refused(refused, "write-ahead log", "--data-dir")
