"""DEL means gone, for the daemon too: what it does unasked undoes none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.disk import fill, small_disk
from lab.node import poll
from lab.node_lab import started

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

OFTEN = "watch_interval = 0.05\nreconcile_interval = 0.05\n"


def test_what_a_del_has_been_asked_for_is_not_put_back(lab: ExampleLab) -> None:
    daemon = started(lab, OFTEN)
    conf = lab.conf(ipam=lab.spy_ipam())
    with small_disk(lab.plugin) as disk:
        daemon.stop()  # it has the directory below open
        daemon.start()
        for container in ("goes", "stays"):
            lab.add(conf, container=container)
        ballast = fill(disk)
        assert lab.call("DEL", conf, container="goes").code == 11
        assert len(lab.leases()) == 2
        ballast.unlink()
        for port in lab.switch.glob("*.*"):
            port.unlink()
        poll(lambda: len(lab.ports()) == 1, "the other is put back")
        (port,) = lab.switch.glob("*.*")
        for _ in range(3):  # rounds, each of which would put both back
            port.unlink()
            poll(port.exists, "the other is put back again")
        assert len(lab.ports()) == 1
        lab.call("DEL", conf, container="goes").succeeded()
        assert lab.states() == {"stays": "attached"}
        lab.call("DEL", conf, container="stays").succeeded()
        lab.assert_clean()


def test_an_outage_leaves_nothing_when_it_is_over(lab: ExampleLab) -> None:
    started(lab, OFTEN)
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.switch_down()
    for container in ("c1", "c2", "c3"):
        assert lab.call("ADD", conf, container=container).code == 11
        lab.call("DEL", conf, container=container, environ={"CNI_PATH": ""}).succeeded()
    assert set(lab.states().values()) == {"unknown"}
    lab.switch_up()
    poll(lambda: lab.states() == {}, "all are removed")
    lab.assert_clean()
