"""Malformed requests and configurations: each error has its code and names the problem."""

from __future__ import annotations

import copy
import io
import json
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.plugin import respond

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.example_lab import ExampleLab
    from lab.plugin import Outcome

Paths = dict[str, Any]
GONE = object()

VALID: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "userspace",
    "host": {"engine": "example", "iftype": "note"},
}
#: A namespace that does not exist, so nothing is ever created.
NETNS = "/run/netns/there-is-no-such-namespace"
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": NETNS,
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nowhere",
}


@frozen
class Case:
    """A request that is valid except for one thing."""

    id: str
    code: int
    #: Texts that message and details must contain, above all the key and the value.
    says: tuple[str, ...]
    #: Changes to the configuration by path, or the whole standard input.
    stdin: Paths | bytes = field(factory=dict)
    environ: dict[str, str | None] = field(factory=dict)

    def config(self) -> object:
        if isinstance(self.stdin, bytes):
            return self.stdin
        config = copy.deepcopy(VALID)
        for path, value in self.stdin.items():
            *way, last = path.split("/")
            target = config
            for key in way:
                target = target.setdefault(key, {})
            target[last] = value
            if value is GONE:
                del target[last]
        return config

    def variables(self) -> dict[str, str]:
        merged = ENVIRON | self.environ
        return {key: value for key, value in merged.items() if value is not None}


def _command(name: str) -> dict[str, str | None]:
    return {"CNI_COMMAND": name}


def _linux(section: str, value: Any, **host: Any) -> Paths:
    return {"host": {"engine": "linux", "iftype": "veth", section: value, **host}}


LONG = "x" * 16
TEXT = "t" * 65
GC = "cni.dev/valid-attachments"
IPAM = {"type": "host-local"}

CASES = [
    # environment
    Case("command unknown", 4, ("CNI_COMMAND", "'PLUG'"), environ=_command("PLUG")),
    Case("command in lower case", 4, ("CNI_COMMAND", "'add'"), environ=_command("add")),
    Case("no container id", 4, ("CNI_CONTAINERID",), environ={"CNI_CONTAINERID": None}),
    Case("empty container id", 4, ("CNI_CONTAINERID",), environ={"CNI_CONTAINERID": ""}),
    Case("no ifname", 4, ("CNI_IFNAME",), environ={"CNI_IFNAME": None}),
    Case("no netns for ADD", 4, ("CNI_NETNS",), environ={"CNI_NETNS": None}),
    Case("no netns for CHECK", 4, ("CNI_NETNS",), environ=_command("CHECK") | {"CNI_NETNS": ""}),
    Case("DEL without ifname", 4, ("CNI_IFNAME",), environ=_command("DEL") | {"CNI_IFNAME": None}),
    Case(
        "all that is missing is named",
        4,
        ("CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",),
        environ={"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None},
    ),
    *(
        Case(
            f"container id {bad!r}",
            4,
            ("CNI_CONTAINERID", repr(bad)),
            environ={"CNI_CONTAINERID": bad},
        )
        for bad in ("-c1", ".c1", "a/b", "../x", "a b", "c1\n", "ü1")
    ),
    *(
        Case(f"ifname {bad!r}", 4, ("CNI_IFNAME", repr(bad)), environ={"CNI_IFNAME": bad})
        for bad in (".", "..", "a/b", "a:b", "a b", "eth0\n", LONG, "ä" * 8, "a\x01")
    ),
    Case("netns is missing", 4, ("CNI_NETNS", NETNS)),
    Case("netns is a file", 4, ("CNI_NETNS", "/etc/hosts"), environ={"CNI_NETNS": "/etc/hosts"}),
    Case("netns is a directory", 4, ("CNI_NETNS", "/etc"), environ={"CNI_NETNS": "/etc"}),
    Case(
        "netns is another kind of namespace",
        4,
        ("CNI_NETNS", "/proc/self/ns/uts"),
        environ={"CNI_NETNS": "/proc/self/ns/uts"},
    ),
    Case(
        "netns is the plugin's own",
        8,
        ("CNI_NETNS", "/proc/self/ns/net"),
        environ={"CNI_NETNS": "/proc/self/ns/net"},
    ),
    # CNI_ARGS
    Case("args without value", 4, ("CNI_ARGS", "'lonely'"), environ={"CNI_ARGS": "lonely"}),
    Case("args without key", 4, ("CNI_ARGS", "'=value'"), environ={"CNI_ARGS": "=value"}),
    Case("args unknown", 4, ("CNI_ARGS", "COLOUR"), environ={"CNI_ARGS": "COLOUR=red"}),
    Case(
        "args unknown, and not to be ignored",
        4,
        ("CNI_ARGS", "COLOUR"),
        environ={"CNI_ARGS": "IgnoreUnknown=0;COLOUR=red"},
    ),
    Case(
        "args MAC",
        7,
        ("CNI_ARGS MAC", "'beef'"),
        {"macFromArgs": True},
        environ={"CNI_ARGS": "MAC=beef"},
    ),
    # standard input
    Case("empty", 6, ("standard input is empty",), b""),
    Case("white space", 6, ("standard input is empty",), b" \n\t"),
    Case("cut off", 6, ("JSON", "char"), b'{"cniVersion": "1.1.0", "na'),
    Case("two objects", 6, ("JSON", "Extra data"), b"{}{}"),
    Case("not UTF-8", 6, ("JSON",), b'{"name": "\xff"}'),
    Case("NaN", 6, ("NaN",), b'{"mtu": NaN}'),
    Case("infinity", 6, ("-Infinity",), b'{"mtu": -Infinity}'),
    Case("list", 6, ("JSON object", "list"), b"[]"),
    Case("null", 6, ("JSON object", "NoneType"), b"null"),
    Case("number", 6, ("JSON object", "int"), b"7"),
    Case("nested too deeply", 6, ("nested too deeply",), b'{"a":' * 20000 + b"}" * 20000),
    Case(
        "nested deeply in a key",
        6,
        ("nested too deeply",),
        b'{"name":"n","x":' + b"[" * 900 + b"]" * 900 + b"}",
    ),
    Case("a number of 5000 digits", 6, ("JSON", "digits"), b'{"mtu": ' + b"1" * 5000 + b"}"),
    # versions
    Case("version of the future", 1, ("cniVersion", "'1.2.0'", "1.1.0"), {"cniVersion": "1.2.0"}),
    Case("version cut short", 1, ("cniVersion", "'1.1'"), {"cniVersion": "1.1"}),
    Case("version is a number", 6, ("cniVersion", "1.1"), {"cniVersion": 1.1}),
    Case("version is a list", 6, ("cniVersion", "['1.1.0']"), {"cniVersion": ["1.1.0"]}),
    Case("CHECK at 0.3.1", 1, ("CHECK", "0.3.1"), {"cniVersion": "0.3.1"}, _command("CHECK")),
    Case("CHECK without version", 1, ("CHECK", "0.1.0"), {"cniVersion": GONE}, _command("CHECK")),
    Case("GC at 1.0.0", 1, ("GC", "1.0.0"), {"cniVersion": "1.0.0"}, _command("GC")),
    Case("STATUS at 1.0.0", 1, ("STATUS", "1.0.0"), {"cniVersion": "1.0.0"}, _command("STATUS")),
    # the network's name
    Case("no name", 7, ("name", "missing"), {"name": GONE}),
    Case("empty name", 7, ("name", "missing"), {"name": ""}),
    *(
        Case(f"name {bad!r}", 7, ("name", repr(bad)), {"name": bad})
        for bad in ("../net", "a b", "-net", "net\n", 7, ["net"])
    ),
    # the configuration's own keys
    Case("unknown key", 2, ("mtuu", "1400", "mtu"), {"mtuu": 1400}),
    Case(
        "unknown keys are all named",
        2,
        ("colour", '"red"', "size", "1"),
        {"colour": "red", "size": 1},
    ),
    Case("no host", 7, ("host", "missing"), {"host": GONE}),
    Case("host is a string", 7, ("host", '"linux"'), {"host": "linux"}),
    Case("host is a list", 7, ("host", "[]"), {"host": []}),
    Case("container is a string", 7, ("container", '"vpp"'), {"container": "vpp"}),
    Case("type is a number", 7, ("type", "5"), {"type": 5}),
    Case("if0name is long", 7, ("if0name", LONG), {"if0name": LONG}),
    Case("if0name is empty", 7, ("if0name", "''"), {"if0name": ""}),
    Case("if0name is a path", 7, ("if0name", "a/b"), {"if0name": "a/b"}),
    Case("mtu is a string", 7, ("mtu", '"1500"'), {"mtu": "1500"}),
    Case("mtu is a boolean", 7, ("mtu", "true"), {"mtu": True}),
    Case("mtu is a fraction", 7, ("mtu", "1.5"), {"mtu": 1.5}),
    Case("mtu is small", 7, ("mtu", "67"), {"mtu": 67}),
    Case("mtu is big", 7, ("mtu", "65536"), {"mtu": 65536}),
    Case("mac is a number", 7, ("mac", "2"), {"mac": 2}),
    Case("mac is short", 7, ("mac", "02:00:00:00:00"), {"mac": "02:00:00:00:00"}),
    Case(
        "mac is multicast",
        7,
        ("mac", "multicast", "03:00:00:00:00:01"),
        {"mac": "03:00:00:00:00:01"},
    ),
    Case("mac is zero", 7, ("mac", "00:00:00:00:00:00"), {"mac": "00:00:00:00:00:00"}),
    Case("logFile is relative", 7, ("logFile", "log.txt"), {"logFile": "log.txt"}),
    Case("logFile has a NUL", 7, ("logFile", r"/tmp/a\x00b"), {"logFile": "/tmp/a\0b"}),
    Case("logFile is a number", 7, ("logFile", "1"), {"logFile": 1}),
    Case("logLevel is unknown", 7, ("logLevel", "loud"), {"logLevel": "loud"}),
    Case("logLevel is a list", 7, ("logLevel", '["debug"]'), {"logLevel": ["debug"]}),
    Case("disableCheck is a string", 7, ("disableCheck", '"yes"'), {"disableCheck": "yes"}),
    Case("capabilities is a list", 7, ("capabilities", '["mac"]'), {"capabilities": ["mac"]}),
    Case("several errors are all named", 7, ("mtu", '"x"', "mac", "'y'"), {"mtu": "x", "mac": "y"}),
    # engines
    Case("no engine", 7, ("host.engine", "missing"), {"host/engine": GONE}),
    Case("engine is a number", 7, ("host.engine", "7"), {"host/engine": 7}),
    Case("engine is empty", 7, ("host.engine", "''"), {"host/engine": ""}),
    Case("engine is unknown", 100, ("'nope'", "example"), {"host/engine": "nope"}),
    Case(
        "container engine is unknown",
        100,
        ("container engine 'none'",),
        {"container/engine": "none"},
    ),
    Case("container engine is a list", 7, ("container.engine", "[]"), {"container/engine": []}),
    Case("no iftype", 7, ("host.iftype", "missing", "note"), {"host/iftype": GONE}),
    Case("iftype is unknown", 7, ("host.iftype", "'memif'", "note"), {"host/iftype": "memif"}),
    Case("iftype is an object", 7, ("host.iftype", "{}"), {"host/iftype": {}}),
    Case("netType is unknown", 7, ("host.netType", "'bridge'"), {"host/netType": "bridge"}),
    Case("container netType", 7, ("container.netType", "'x'"), {"container/netType": "x"}),
    Case("unknown section", 2, ("host.memif", "a JSON object", "note"), {"host/memif": {"id": 1}}),
    Case("unknown section of the container", 2, ("container.vhost", "{}"), {"container/vhost": {}}),
    Case("unknown key in a section", 2, ("host.note.txt", '"a"', "text"), {"host/note/txt": "a"}),
    Case("section is a string", 7, ("host.note", '"hello"'), {"host/note": "hello"}),
    Case("section has a wrong type", 7, ("host.note.text", "5"), {"host/note/text": 5}),
    Case(
        "bandwidth of an engine that cannot limit",
        2,
        ("bandwidth", "'example'", "'note'", '"ingress_rate": 8000'),
        {"bandwidth": {"ingressRate": 8000}},
    ),
    Case("section's own rule", 7, ("host.note.text", "65"), {"host/note/text": TEXT}),
    # the Linux engine's sections
    Case("bridge is a string", 7, ("host.bridge", '"br0"'), _linux("bridge", "br0")),
    Case("bridge without name", 7, ("host.bridge.bridgeName", "missing"), _linux("bridge", {})),
    Case(
        "bridge's name is long",
        7,
        ("host.bridge.bridgeName", LONG),
        _linux("bridge", {"bridgeName": LONG}),
    ),
    Case(
        "vlanId is out of range",
        7,
        ("host.bridge.vlanId", "4095"),
        _linux("bridge", {"bridgeName": "br0", "vlanId": 4095}),
    ),
    Case(
        "vlanId is a string",
        7,
        ("host.bridge.vlanId", '"7"'),
        _linux("bridge", {"bridgeName": "br0", "vlanId": "7"}),
    ),
    Case(
        "unknown key of the bridge",
        2,
        ("host.bridge.vlan", "7", "vlanId"),
        _linux("bridge", {"bridgeName": "br0", "vlan": 7}),
    ),
    Case(
        "trunk is upside down",
        7,
        ("host.bridge.trunk[1]", "9 to 3"),
        _linux("bridge", {"bridgeName": "br0", "trunk": [{"id": 1}, {"minID": 9, "maxID": 3}]}),
    ),
    Case(
        "trunk's id is out of range",
        7,
        ("host.bridge.trunk[0].id", "0"),
        _linux("bridge", {"bridgeName": "br0", "trunk": [{"id": 0}]}),
    ),
    Case(
        "gateway is a string",
        7,
        ("host.bridge.gateway", '"10.0.0.1"'),
        _linux("bridge", {"bridgeName": "br0", "gateway": "10.0.0.1"}),
    ),
    Case(
        "tap's owner is a name",
        7,
        ("host.tap.owner", '"root"'),
        _linux("tap", {"owner": "root"}, iftype="tap"),
    ),
    Case(
        "macvlan's mode",
        7,
        ("host.macvlan.mode", '"fast"'),
        _linux("macvlan", {"mode": "fast"}, iftype="macvlan"),
    ),
    Case(
        "macvlan's master",
        7,
        ("host.macvlan.master", "a/b"),
        _linux("macvlan", {"master": "a/b"}, iftype="macvlan"),
    ),
    # ipam and dns
    Case("ipam is a string", 7, ("ipam", '"host-local"'), {"ipam": "host-local"}),
    Case("ipam without type", 7, ("ipam.type", "missing"), {"ipam": {"subnet": "10.0.0.0/8"}}),
    Case("ipam type is a number", 7, ("ipam.type", "5"), {"ipam": {"type": 5}}),
    Case("ipam type is a path", 7, ("ipam.type", "../x"), {"ipam": {"type": "../x"}}),
    Case("ipam type has a NUL", 7, ("ipam.type", r"a\x00b"), {"ipam": {"type": "a\0b"}}),
    Case("dns is a list", 7, ("dns", "[]"), {"dns": []}),
    Case("unknown key in dns", 2, ("dns.servers", '["a"]'), {"dns": {"servers": ["a"]}}),
    Case(
        "nameserver is a name",
        7,
        ("dns.nameservers", "ns.example"),
        {"dns": {"nameservers": ["10.0.0.1", "ns.example"]}},
    ),
    Case(
        "nameservers is a string",
        7,
        ("dns.nameservers", '"10.0.0.1"'),
        {"dns": {"nameservers": "10.0.0.1"}},
    ),
    Case("search holds a number", 7, ("dns.search[1]", "1"), {"dns": {"search": ["a", 1]}}),
    # args and runtimeConfig
    Case("args is a string", 7, ("args", '"MAC=x"'), {"args": "MAC=x"}),
    Case("args.cni is a string", 7, ("args.cni", "MAC=x"), {"args": {"cni": "MAC=x"}}),
    Case("args mac", 7, ("args.cni.mac", "'no'"), {"args": {"cni": {"mac": "no"}}}),
    Case("runtimeConfig is a list", 7, ("runtimeConfig", "[]"), {"runtimeConfig": []}),
    Case("runtimeConfig mac", 7, ("runtimeConfig.mac", "'no'"), {"runtimeConfig": {"mac": "no"}}),
    Case(
        "runtimeConfig mac is a list",
        7,
        ("runtimeConfig.mac", "['no']"),
        {"runtimeConfig": {"mac": ["no"]}},
    ),
    Case(
        "runtimeConfig ips without ipam",
        7,
        ("runtimeConfig.ips", '["10.0.0.5/24"]'),
        {"runtimeConfig": {"ips": ["10.0.0.5/24"]}},
    ),
    Case(
        "runtimeConfig that we do not have",
        2,
        ("runtimeConfig.portMappings", "8080"),
        {"runtimeConfig": {"portMappings": [{"hostPort": 8080}]}},
    ),
    Case(
        "runtimeConfig dns is a string",
        7,
        ("runtimeConfig.dns", "10.0.0.1"),
        {"runtimeConfig": {"dns": "10.0.0.1"}},
    ),
    Case(
        "runtimeConfig dns servers",
        7,
        ("runtimeConfig.dns.servers", '"10.0.0.1"'),
        {"runtimeConfig": {"dns": {"servers": "10.0.0.1"}}},
    ),
    Case(
        "runtimeConfig dns searches",
        7,
        ("runtimeConfig.dns.searches", "[7]"),
        {"runtimeConfig": {"dns": {"Searches": [7]}}},
    ),
    # prevResult
    Case("prevResult is a list", 7, ("prevResult", "[]"), {"prevResult": []}),
    Case(
        "prevResult's address",
        6,
        ("prevResult.ips[0].address", "10.0.0.1"),
        {"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1"}]}},
    ),
    Case(
        "prevResult's interfaces",
        6,
        ("prevResult.interfaces", "{}"),
        {"prevResult": {"interfaces": {}}},
    ),
    Case(
        "prevResult's version",
        1,
        ("prevResult.cniVersion", "'9.9.9'"),
        {"prevResult": {"cniVersion": "9.9.9"}},
    ),
    Case(
        "prevResult points at no interface",
        7,
        ("prevResult.ips[0].interface", "3"),
        {"prevResult": {"interfaces": [], "ips": [{"address": "10.0.0.1/8", "interface": 3}]}},
    ),
    Case("CHECK without prevResult", 7, ("prevResult", "missing"), environ=_command("CHECK")),
    # GC
    Case("GC without list", 7, (GC, "missing"), environ=_command("GC")),
    Case("GC with null", 7, (GC, "missing"), {GC.replace("/", "/"): None}, _command("GC")),
    Case(
        "GC list is an object",
        7,
        (GC, "{}"),
        b'{"cniVersion":"1.1.0","name":"n","%s":{}}' % GC.encode(),
        _command("GC"),
    ),
    Case(
        "GC entry is a string",
        7,
        (f"{GC}[0]", "'c1'"),
        b'{"cniVersion":"1.1.0","name":"n","%s":["c1"]}' % GC.encode(),
        _command("GC"),
    ),
    Case(
        "GC entry lacks the ifname",
        7,
        (f"{GC}[0]", "'c1'"),
        b'{"cniVersion":"1.1.0","name":"n","%s":[{"containerID":"c1"}]}' % GC.encode(),
        _command("GC"),
    ),
]


def test_no_two_cases_have_one_name() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names)) >= 60


@pytest.fixture(scope="module")
def outcomes(shared_lab: ExampleLab) -> Iterator[dict[str, Future[Outcome]]]:
    """The answer to each case; several are requested at once."""
    with ThreadPoolExecutor(4) as pool:
        yield {
            case.id: pool.submit(shared_lab.plugin.execute, case.config(), case.variables())
            for case in CASES
        }
    shared_lab.assert_clean()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input_is_told_by_code_key_and_value(
    outcomes: dict[str, Future[Outcome]], case: Case
) -> None:
    outcome = outcomes[case.id].result()
    assert (outcome.code, outcome.status) == (case.code, 1), outcome.body
    for words in case.says:
        assert words in outcome.text
    config = case.config()
    stated = config.get("cniVersion") if isinstance(config, dict) else None
    assert outcome.body["cniVersion"] == (stated if stated in SUPPORTED else "1.1.0")
    assert "Traceback" not in outcome.err


@pytest.mark.own_process("it is about the streams of a process")
@pytest.mark.parity
def test_a_closed_standard_input_is_code_5(shared_lab: ExampleLab) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" <&-', shared_lab.plugin.executable],
        env={**shared_lab.plugin.env, **ENVIRON},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 5


# -- every answer is exactly one JSON object


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a plugin that can only access a private directory."""
    directory: Path = tmp_path_factory.mktemp("fuzz")
    (directory / "switch").mkdir()
    config = directory / "config.toml"
    config.write_text(
        f'state_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n'
        f'[engines.example]\ndirectory = "{directory}/switch"\n'
    )
    return {"USERSPACE_CNI_CONFIG": str(config)}


def _served(environ: dict[str, str], stdin: bytes) -> tuple[int, str]:
    """Serve one request in this process."""
    answer = respond(environ, stdin, io.StringIO())
    return answer.status, answer.out


def _assert_orderly(status: int, out: str) -> None:
    if status == 0:
        assert out == "" or isinstance(json.loads(out), dict)
        return
    assert status == 1
    body = json.loads(out)
    assert body.keys() - {"details"} == {"cniVersion", "code", "msg"}
    assert isinstance(body["code"], int)
    assert 0 < body["code"] < 999, body
    assert isinstance(body["msg"], str)
    assert body["msg"]
    assert body["cniVersion"] in SUPPORTED
    assert "Traceback" not in out


_FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_TEXT = st.text(max_size=12) | st.sampled_from(["net", "1.1.0", "note", "a/b", "\0", "\ud800", ""])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT
_KEYS = _TEXT | st.sampled_from(
    ["engine", "iftype", "netType", "note", "text", "type", "cni", "mac", "dns", "ips", "servers"]
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_TOP = st.sampled_from(
    [
        *("cniVersion", "name", "host", "container", "if0name", "mtu", "mac", "ipam", "dns"),
        *("args", "capabilities", "runtimeConfig", "prevResult", "logLevel", "type", GC),
        *("disableCheck", "disableGC", "cni.dev/other"),
    ]
)
_PREVIOUS = {
    "interfaces": [{"name": "eth0", "sandbox": NETNS}],
    "ips": [{"address": "10.0.0.1/8", "interface": 0}],
}
_VALID = [
    VALID,
    VALID | {"prevResult": _PREVIOUS, GC: []},
    VALID | {"runtimeConfig": {"dns": {"servers": ["10.0.0.1"]}}, "args": {"cni": {}}},
]
_COMMANDS = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"])
_ENV_TEXT = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20
)
_ENVIRONS = st.fixed_dictionaries(
    {"CNI_COMMAND": _COMMANDS | _ENV_TEXT},
    optional={
        "CNI_CONTAINERID": st.just("c1") | _ENV_TEXT,
        "CNI_IFNAME": st.just("eth0") | _ENV_TEXT,
        "CNI_NETNS": st.just(NETNS),
        "CNI_ARGS": st.just("MAC=02:00:00:00:00:01") | _ENV_TEXT,
        "CNI_PATH": st.just("/nowhere"),
    },
)


@_FUZZ
@given(request=_ENVIRONS, stdin=st.binary(max_size=200) | _JSON.map(json.dumps).map(str.encode))
def test_any_bytes_are_answered_by_one_object(
    environ: dict[str, str], request: dict[str, str], stdin: bytes
) -> None:
    _assert_orderly(*_served(environ | request, stdin))


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """Return a valid configuration with a few values changed, added or removed at any depth."""
    config: Any = copy.deepcopy(draw(st.sampled_from(_VALID)))
    for _ in range(draw(st.integers(1, 3))):
        target, key = config, draw(_TOP)
        while (
            isinstance(target, dict)
            and isinstance(target.get(key), dict)
            and target[key]
            and draw(st.booleans())
        ):
            target = target[key]
            key = draw(st.sampled_from(sorted(target)) | _KEYS)
        if draw(st.integers(0, 5)):
            target[key] = draw(_JSON)
        else:
            target.pop(key, None)
    host = config.get("host")
    if isinstance(host, dict) and host.get("engine") == "linux":  # a real dataplane
        del host["engine"]
    return json.dumps(config).encode()


@_FUZZ
@given(command=_COMMANDS, stdin=_mutated())
def test_any_change_of_a_valid_configuration_is_answered_in_order(
    environ: dict[str, str], command: str, stdin: bytes
) -> None:
    _assert_orderly(*_served(environ | ENVIRON | {"CNI_COMMAND": command}, stdin))


@_FUZZ
@given(data=st.data(), command=_COMMANDS)
def test_any_damaged_byte_is_answered_in_order(
    environ: dict[str, str], data: st.DataObject, command: str
) -> None:
    stdin = bytearray(json.dumps(_VALID[1]).encode())
    position = data.draw(st.integers(0, len(stdin) - 1))
    stdin[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    status, out = _served(environ | ENVIRON | {"CNI_COMMAND": command}, bytes(stdin))
    _assert_orderly(status, out)
