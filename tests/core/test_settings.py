"""The node's settings file."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import field, frozen

from userspace_cni.api.sections import seconds
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.config import settings
from userspace_cni.config.settings import VARIABLE, DaemonSettings, IpamSettings, Settings


def _load(path: Path, text: str) -> Settings:
    path.write_text(text)
    return settings.load({VARIABLE: str(path)})


def test_every_key_is_read(tmp_path: Path) -> None:
    text = (
        'state_dir = "/a"\nrun_dir = "/b"\nkubelet_dir = "/k"\n'
        'log_file = "/c"\nlog_level = "debug"\ntimeout = 1.5\n'
        '[ipam]\nin_process = ["static"]\n'
        '[engines.vpp]\napi_socket = "/d"\n[engines.ovs]\n'
        '[daemon]\nsocket = "/e"\nhttp = "[::1]:9469"\nworkers = 4\ndeadline = 2\n'
        "watch_interval = 0.5\nreconcile_interval = 0\ngrace = 0\n"
    )
    assert _load(tmp_path / "config.toml", text) == Settings(
        state_dir=Path("/a"),
        run_dir=Path("/b"),
        kubelet_dir=Path("/k"),
        log_file=Path("/c"),
        log_level="debug",
        timeout=1.5,
        ipam=IpamSettings(in_process=("static",)),
        engines={"vpp": {"api_socket": "/d"}, "ovs": {}},
        daemon=DaemonSettings(
            socket=Path("/e"),
            http="[::1]:9469",
            workers=4,
            deadline=2,
            watch_interval=0.5,
            reconcile_interval=0,
            grace=0,
        ),
    )


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path / "config.toml", "") == Settings()
    assert str(Settings().state_dir) == "/var/lib/cni/userspace"
    assert str(Settings().run_dir) == "/run/userspace-cni"
    assert str(Settings().kubelet_dir) == "/var/lib/kubelet"


def test_the_daemon_socket_lies_in_the_run_directory_unless_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert _load(path, 'run_dir = "/b"').socket == Path("/b/daemon.sock")
    assert _load(path, 'run_dir = "/b"\n[daemon]\nsocket = "/e"').socket == Path("/e")


def test_without_the_default_file_there_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    monkeypatch.setattr(settings, "DEFAULT_PATH", path)
    assert settings.load({}) == settings.load({VARIABLE: ""}) == Settings()
    path.write_text("timeout = 7\n")
    assert settings.load({}).timeout == 7


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("x = 1", "x", "unknown"),
        ("[engine.linux]", "engine", "unknown"),
        ("state_dir = 1", "state_dir", "1"),
        ("run_dir = 'run'", "run_dir", '"run"'),
        ('log_file = ""', "log_file", '""'),
        (r'state_dir = "/a\u0000b"', "state_dir", r'"/a\u0000b"'),
        ("log_level = 'loud'", "log_level", '"loud"'),
        ("log_level = ['info']", "log_level", '["info"]'),
        ("timeout = 0", "timeout", "0"),
        ("timeout = -1.5", "timeout", "-1.5"),
        ("timeout = true", "timeout", "true"),
        ("timeout = '60'", "timeout", '"60"'),
        ("timeout = 2026-11-25", "timeout", '"2026-11-25"'),
        ("timeout = inf", "timeout", "inf"),
        ("timeout = nan", "timeout", "nan"),
        ("timeout = 1e300", "timeout", "1e+300"),
        ("daemon = 1", "daemon", "1"),
        ("daemon.x = 1", "daemon.x", "unknown"),
        ("daemon.socket = 'x'", "daemon.socket", '"x"'),
        ("daemon.http = '9469'", "daemon.http", "'9469'"),
        ("daemon.http = '::1:9469'", "daemon.http", "'::1:9469'"),
        ("daemon.workers = 0", "daemon.workers", "0"),
        ("daemon.workers = true", "daemon.workers", "true"),
        ("daemon.deadline = 0", "daemon.deadline", "0"),
        ("daemon.watch_interval = '5'", "daemon.watch_interval", '"5"'),
        ("daemon.grace = -1", "daemon.grace", "-1"),
        ("engines = []", "engines", "[]"),
        ("engines.linux = 1", "engines", "got 1 for linux"),
        ("file = '/x'", "file", "unknown"),
        ("state_dir = ", "TOML", "Invalid value"),
        ("\x00", "TOML", "line 1"),
    ],
)
def test_an_error_names_file_key_and_value(tmp_path: Path, text: str, key: str, value: str) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(CniError) as caught:
        _load(path, text)
    assert caught.value.code == Code.INVALID_NETWORK_CONFIG
    for words in (str(path), key, value):
        assert words in caught.value.msg


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(CniError) as caught:
        _load(tmp_path / "config.toml", "timeout = 0\nx = 1\n[daemon]\nworkers = 0\n")
    for words in ("timeout: ", "x: unknown key", "daemon.workers: "):
        assert words in caught.value.msg


@frozen(kw_only=True)
class _OfEngine:
    api_socket: Path = Path("/s")
    timeout: float = field(default=10.0, validator=seconds)
    db: str = ""


def test_the_settings_of_an_engine_are_of_its_class(tmp_path: Path) -> None:
    text = '[engines.e]\napi_socket = "/x"\ntimeout = 3\n[engines.empty]\n'
    node = _load(tmp_path / "config.toml", text)
    assert node.of_engine("e", _OfEngine) == _OfEngine(api_socket=Path("/x"), timeout=3.0)
    assert node.of_engine("other", _OfEngine) == node.of_engine("empty", _OfEngine) == _OfEngine()
    assert node.of_engine("other", None) is node.of_engine("empty", None) is None


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ("apiSocket = '/x'", _OfEngine, 'engines.e.apiSocket: unknown key with value "/x"'),
        ("apiSocket = '/x'", _OfEngine, 'did you mean "api_socket"?'),
        ("api_socket = 'x'", _OfEngine, 'engines.e.api_socket: expected an absolute path, got "x"'),
        ("timeout = 0", _OfEngine, "engines.e.timeout: expected a number of seconds above 0"),
        ("db = 1", _OfEngine, "engines.e.db: expected a string, got 1"),
        ("db = 1", None, "engines.e: the engine 'e' has no settings"),
    ],
)
def test_an_error_in_an_engines_table_names_file_key_and_value(
    tmp_path: Path, line: str, kind: type | None, says: str
) -> None:
    path = tmp_path / "config.toml"
    node = _load(path, f"[engines.e]\n{line}\n")
    with pytest.raises(CniError) as caught:
        node.of_engine("e", kind)
    assert caught.value.code == Code.INVALID_NETWORK_CONFIG
    assert caught.value.msg.startswith(f"node settings {path}: ")
    assert says in caught.value.msg


@pytest.mark.parametrize("kind", ["missing", "directory", "not UTF-8"])
def test_a_file_that_is_named_must_be_readable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "not UTF-8":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(CniError) as caught:
        settings.load({VARIABLE: str(path)})
    assert caught.value.code == Code.INVALID_NETWORK_CONFIG
    assert str(path) in caught.value.msg
