from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from lab.attachments import attachment
from userspace_cni.api import Attachment
from userspace_cni.kernel import tags
from userspace_cni_linux.bridge import TAG

TAGS = tags.Tags("userspace-cni/1")

NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=400).map(
    lambda text: f"a{text}"
)
IFNAMES = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=15)


def make(network: str, container_id: str, ifname: str) -> Attachment:
    return attachment(
        network=network, container_id=container_id, ifname=ifname, interface="eth0", netns="/x"
    )


@given(NAMES, NAMES, IFNAMES)
def test_what_is_written_is_read(network: str, container_id: str, ifname: str) -> None:
    made = make(network, container_id, ifname)
    alias = TAGS.encode(made)
    assert len(alias.encode()) <= tags.MAX_LENGTH
    assert TAGS.parse(alias) == tags.Tag(made.id, tags.network_id(network))


@given(NAMES, NAMES)
def test_a_field_is_whole_or_absent(network: str, container_id: str) -> None:
    fields = TAGS.encode(make(network, container_id, "eth0")).split(" ")[3:]
    assert set(fields) <= {f"network={network}", f"container={container_id}", "ifname=eth0"}
    assert "ifname=eth0" in fields


@given(st.text())
def test_foreign_aliases_are_nobodys(text: str) -> None:
    assert TAGS.parse(text) is None


@given(st.sampled_from(["", " ", "\n", "x", " network", " network=", " Network=x"]))
def test_almost_a_tag_is_none(tail: str) -> None:
    alias = f"userspace-cni/1 {'a' * 16} {'b' * 16}"
    assert TAGS.parse(alias) == tags.Tag("a" * 16, "b" * 16)
    assert tail == "" or TAGS.parse(alias + tail) is None
    assert TAGS.parse("x" + alias) is None
    assert TAGS.parse(alias.replace("/1", "/2")) is None
    assert TAGS.parse(alias.replace("a", "A")) is None


def test_a_bridges_tag_is_no_attachments() -> None:
    assert TAGS.parse(TAG) is None


@given(NAMES)
def test_the_host_ends_name_is_an_interface_name(container_id: str) -> None:
    assert len(tags.short_name(make("blue", container_id, "eth0").id)) == 15
