"""Where a server finds nodes, where they listen, and the secret between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.node_keys import NodeSecret
from gateway.addresses import Address, parse_address
from gateway.node_settings import NodeSettings, read_node_secret, read_nodes
from gateway.settings import Settings, SettingsError

SECRET = "0123456789abcdef" * 2


def test_nodes_are_read_in_their_order_and_may_replace_the_devices_here() -> None:
    env = {"TRIDENT_NODES": "127.0.0.1:7410, [::1]:7411", "TRIDENT_DEVICES": "0"}
    settings = Settings.from_env(env)
    assert settings.nodes == (Address("127.0.0.1", 7410), Address("::1", 7411))
    assert [str(node) for node in settings.nodes] == ["127.0.0.1:7410", "[::1]:7411"]
    assert settings.devices == 0


def test_without_nodes_a_server_needs_a_device() -> None:
    with pytest.raises(SettingsError, match="TRIDENT_DEVICES"):
        Settings.from_env({"TRIDENT_DEVICES": "0"})


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:0", "host:99999", "::1:5", "a:b"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match="write HOST:PORT"):
        Settings.from_env({"TRIDENT_NODES": text})


def test_another_machine_needs_a_secret_on_either_side() -> None:
    with pytest.raises(ValueError, match="TRIDENT_NODE_TOKEN"):
        read_nodes({"TRIDENT_NODES": "10.0.0.2:7410"})
    with pytest.raises(ValueError, match="TRIDENT_NODE_TOKEN"):
        NodeSettings.from_env({"TRIDENT_LISTEN": "10.0.0.2:7410"})
    env = {"TRIDENT_LISTEN": "10.0.0.2:7410", "TRIDENT_NODE_TOKEN": SECRET}
    assert NodeSettings.from_env(env).listen == Address("10.0.0.2", 7410)


def test_hand_offs_are_served_on_the_next_port_unless_told_otherwise() -> None:
    assert NodeSettings.from_env({}).handoff_port == 7411
    assert NodeSettings.from_env({"TRIDENT_LISTEN": "[::1]:7420"}).handoff_port == 7421
    assert NodeSettings.from_env({"TRIDENT_HANDOFF_PORT": "9000"}).handoff_port == 9000
    with pytest.raises(ValueError, match="TRIDENT_HANDOFF_PORT"):
        NodeSettings.from_env({"TRIDENT_HANDOFF_PORT": "x"})


def test_a_node_is_named_once() -> None:
    with pytest.raises(SettingsError, match="twice"):
        Settings.from_env({"TRIDENT_NODES": "127.0.0.1:1,127.0.0.1:1"})


def test_a_secret_may_lie_in_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    env = {"TRIDENT_NODE_TOKEN_FILE": str(file)}
    assert (
        read_node_secret(env)
        == NodeSecret(SECRET)
        == read_node_secret({"TRIDENT_NODE_TOKEN": SECRET})
    )
    assert SECRET not in repr(Settings.from_env(env))
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.from_env({"TRIDENT_NODE_TOKEN_FILE": str(tmp_path / "none")})


def test_a_short_secret_is_refused_without_being_quoted() -> None:
    with pytest.raises(SettingsError, match="at least 32 characters") as error:
        Settings.from_env({"TRIDENT_NODE_TOKEN": "sesame"})
    assert "sesame" not in str(error.value)


def test_the_host_of_an_address_says_who_can_reach_it() -> None:
    near = [parse_address(text).is_loopback for text in ("127.0.0.1:1", "[::1]:1", "localhost:1")]
    far = [parse_address(text).is_loopback for text in ("10.0.0.2:1", "[fd00::2]:1", "gpu-2:1")]
    assert (near, far) == ([True] * 3, [False] * 3)
