"""Networks whose addresses the daemon allocates itself, and those that executables serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from core.example_lab import make_venv, shell
from lab import plugin as lab_plugin
from lab.daemon_lab import daemon_of, started
from userspace_cni.api import IPAM_ENGINES

if TYPE_CHECKING:
    from pathlib import Path

    from core.example_lab import ExampleLab

GC = "cni.dev/valid-attachments"

_ENGINE = """
from pathlib import Path
from ipaddress import ip_interface
from attrs import frozen
from userspace_cni.api import IPConfig, IpamEngine, IpamInfo, Result

@frozen(kw_only=True)
class Section:
    type: str
    directory: str
    size: int = 4

class Acme(IpamEngine):
    info = IpamInfo(name="acme", api_version=(1, 0), summary="counts", section=Section)

    def _lease(self, request):
        return Path(request.section.directory, request.container_id)

    def add(self, request):
        if request.args.get("IP") == "no":
            raise LookupError("no such thing")
        self._lease(request).write_text(request.ifname)
        if request.args.get("IP") == "exit":
            raise SystemExit("enough")
        if request.args.get("IP") == "none":
            return None
        return Result(ips=(IPConfig(address=ip_interface("10.66.0.77/24")),))

    def delete(self, request):
        self._lease(request).unlink(missing_ok=True)

    def check(self, request):
        assert self._lease(request).exists()

    def gc(self, request, valid):
        names = {container_id for container_id, _ in valid()}
        for lease in Path(request.section.directory).iterdir():
            if lease.name not in names:
                lease.unlink()

    def status(self, request):
        pass
"""


def _spied(lab: ExampleLab) -> Path:
    """Note each call of host-local's executable; return the file of the notes."""
    called = lab.directory / "called"
    body = f"echo $CNI_COMMAND >> {shell(called)}\nexec {lab_plugin.REFERENCE_PLUGINS}/host-local"
    lab.script(body, "host-local", ("0.4.0", "1.0.0"))
    return called


def _address(result: dict[str, Any]) -> str:
    (ip,) = result["ips"]
    address: str = ip["address"]
    return address


def test_host_local_is_served_without_its_executable(lab: ExampleLab) -> None:
    called = _spied(lab)
    conf = lab.conf(ipam=lab.host_local())
    first = lab.add(conf)
    assert _address(first) == "10.66.0.2/24"
    assert _address(lab.add(conf, container="c2")) == "10.66.0.3/24"
    assert (lab.directory / "leases/net/10.66.0.2").read_bytes() == b"c1\r\neth0"
    assert lab.call("CHECK", {**conf, "prevResult": first}).status == 0
    assert lab.call("STATUS", conf, container="").status == 0
    assert lab.call("DEL", conf).status == 0
    assert lab.leases() == ["10.66.0.3"]
    assert lab.call("DEL", conf, container="c2").status == 0
    lab.assert_clean()
    assert not called.exists()


def test_static_is_served_in_the_daemon(lab: ExampleLab) -> None:
    (lab.plugin.bin_dir / "static").unlink()
    ipam = {"type": "static", "addresses": [{"address": "10.66.0.9/24"}]}
    assert _address(lab.add(lab.conf(ipam=ipam))) == "10.66.0.9/24"
    assert lab.call("DEL", lab.conf(ipam=ipam)).status == 0


@pytest.mark.parametrize(
    ("settings", "keys"),
    [("[ipam]\nin_process = []", {}), ('[ipam]\nin_process = ["static"]', {}), ("", {"newer": 1})],
    ids=["off", "another", "unknown key"],
)
def test_the_executable_serves_all_else(
    lab: ExampleLab, settings: str, keys: dict[str, Any]
) -> None:
    called = _spied(lab)
    daemon = started(lab, f"watch_interval = 3600\n{settings}")
    conf = lab.conf(ipam={**lab.host_local(), **keys})
    assert _address(lab.add(conf)) == "10.66.0.2/24"
    assert lab.call("DEL", conf).status == 0
    assert called.read_text().split() == ["ADD", "DEL"]
    lab.assert_clean()
    assert daemon.running


def test_what_nobody_can_read_is_told_with_its_path(lab: ExampleLab) -> None:
    (lab.plugin.bin_dir / "host-local").unlink()
    outcome = lab.call("ADD", lab.conf(ipam={**lab.host_local(), "ranges": [[{"subnet": "x"}]]}))
    assert outcome.code == 7
    assert "ipam.ranges[0][0].subnet: expected an address with a prefix length" in outcome.text
    lab.assert_clean()


def test_del_after_an_add_that_nobody_could_serve_succeeds(lab: ExampleLab) -> None:
    (lab.plugin.bin_dir / "host-local").unlink()
    conf = lab.conf(ipam={**lab.host_local(), "newer": 1})
    outcome = lab.call("ADD", conf)
    assert outcome.code == 2, outcome.text
    assert "ipam.newer" in outcome.text
    # Otherwise the runtime repeats it for ever.
    assert lab.call("DEL", conf).status == 0
    lab.assert_clean()


def test_gc_frees_leases_that_the_executable_left(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.host_local())
    lab.add(conf)
    lab.add(conf, container="c2")
    left = lab.directory / "leases/net/10.66.0.99"
    left.write_bytes(b"long-gone\r\neth0")
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    assert lab.call("GC", {**conf, GC: valid}, container="").status == 0
    assert lab.leases() == ["10.66.0.2"]
    assert lab.call("DEL", conf).status == 0
    lab.assert_clean()


def test_an_exhausted_range_is_told_by_status_and_add(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.host_local("10.66.0.0/30"))
    lab.add(conf)
    status = lab.call("STATUS", conf, container="")
    assert status.code == 50
    assert "ipam host-local: no address is left in the range set 10.66.0.1-10.66.0.2" in status.text
    outcome = lab.call("ADD", conf, container="c2")
    assert outcome.code == 105
    assert "no address is left" in outcome.text
    assert lab.call("DEL", conf).status == 0
    assert lab.call("STATUS", conf, container="").status == 0
    lab.assert_clean()


def test_an_engine_of_another_package_serves_its_own_type(lab: ExampleLab, tmp_path: Path) -> None:
    interpreter = make_venv(
        tmp_path / "venv", {"lab_acme": _ENGINE}, {IPAM_ENGINES: "acme = lab_acme:Acme"}
    )
    lab.plugin.interpreted_by(interpreter)
    store = tmp_path / "acme"
    store.mkdir()
    started(lab, 'watch_interval = 3600\n[ipam]\nin_process = ["acme", "missing"]')
    conf = lab.conf(ipam={"type": "acme", "directory": str(store)})
    added = lab.add(conf)
    assert _address(added) == "10.66.0.77/24"
    assert [path.name for path in store.iterdir()] == ["c1"]
    assert lab.call("CHECK", {**conf, "prevResult": added}).status == 0
    # What it should not raise is told, and undone.
    failed = lab.call("ADD", conf, container="c2", args="IP=no")
    assert failed.code == 999
    assert "ipam acme: internal error: LookupError: no such thing" in failed.text
    for how, what in (("exit", "SystemExit: enough"), ("none", "AttributeError")):
        failed = lab.call("ADD", conf, container="c2", args=f"IP={how}")
        assert f"ipam acme: internal error: {what}" in failed.text
        assert [path.name for path in store.iterdir()] == ["c1"]
        assert lab.states() == {"c1": "attached"}
    wrong = lab.call("ADD", lab.conf(ipam={"type": "acme"}), container="c2")
    assert wrong.code == 7
    assert "ipam.directory: missing" in wrong.text
    assert lab.call("DEL", conf).status == 0
    assert [*store.iterdir()] == []
    missing = lab.call("ADD", lab.conf(ipam={"type": "missing"}))
    assert "IPAM plugin 'missing' is not in any directory" in missing.text
    assert "ipam engine 'missing' is not installed" in daemon_of(lab).said()
