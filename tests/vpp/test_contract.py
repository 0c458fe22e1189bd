"""The engine contract for the ``vpp`` engine, with the simulator and a real VPP if installed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from lab import vpp_lab
from lab.vpp_lab import KINDS
from userspace_cni.testing import Damage, EngineContract, Switch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lab.vpp_lab import VppLab
    from userspace_cni.api import Attachment, HostPort


class Vpp(Switch):
    """A VPP, simulated or real, in a network namespace that plays the host."""

    def __init__(self, lab: VppLab) -> None:
        self._lab = lab
        self._runs = True

    def start(self) -> None:
        if not self._runs:
            self._lab.call(self._lab.vpp.start)
            self._runs = True

    def kill(self) -> None:
        if self._runs:
            self._lab.vpp.kill()
            self._runs = False

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._lab.settings

    @property
    def netns(self) -> str:
        return self._lab.host.path

    def objects(self) -> Iterable[str]:
        for kind, names in self._lab.leftovers().items():
            yield from (f"{kind}: {name}" for name in names)

    def damages(self, attachment: Attachment, port: HostPort) -> Iterable[Damage]:  # noqa: ARG002
        switch = self._lab.switch
        (made,) = (one for one in switch.ports() if attachment.id in one.tag)

        def down() -> None:
            switch.api.call("sw_interface_set_flags", sw_if_index=made.index, flags=0)

        yield Damage("the interface is down", down)


@pytest.fixture(params=KINDS)
def vpp(request: pytest.FixtureRequest) -> Iterator[Vpp]:
    with contextmanager(vpp_lab.make)(request.param) as lab:
        yield Vpp(lab)


class VppContract(EngineContract):
    @pytest.fixture
    def switch(self, vpp: Vpp) -> Switch:
        return vpp


def _network(iftype: str, **more: Any) -> Mapping[str, Any]:
    bridge = {"bridgeName": "77", "bridgeId": 77}
    own = {"engine": "vpp", "iftype": iftype, "netType": "bridge", "bridge": bridge}
    return {"host": own | more}


class TestMemif(VppContract):
    network = _network("memif")


class TestAbstractMemif(VppContract):
    network = _network("memif", memif={"socket": "abstract"})


class TestRoutedMemif(VppContract):
    addresses = True
    network = {"host": {"engine": "vpp", "iftype": "memif", "netType": "interface"}}


class TestVhostUser(VppContract):
    network = _network("vhostuser")


class TestVeth(VppContract):
    network = _network("veth")
