"""A small client of the Container Runtime Interface, which a kubelet uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from lab.images import BUSYBOX, WAIT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from google.protobuf.descriptor import ServiceDescriptor

_PROTO = Path(__file__).with_name("cri.proto")


def compile_proto(directory: Path) -> ServiceDescriptor:
    """Compile cri.proto to descriptors, which need no generated module."""
    out = directory / "cri.desc"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{_PROTO.parent}", f"-o{out}", _PROTO.name],
        check=True,
        cwd=_PROTO.parent,
    )
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        pool.Add(file)
    service: ServiceDescriptor = pool.FindServiceByName("runtime.v1.RuntimeService")
    return service


@attrs.frozen
class Condition:
    """A condition of the runtime: RuntimeReady or NetworkReady."""

    status: bool
    message: str


@attrs.frozen
class Sandbox:
    """A pod sandbox and its configuration, which the requests for its containers repeat."""

    id: str
    config: dict[str, Any]


@attrs.frozen
class Output:
    """Exit status and output of a program in a container."""

    exit_code: int
    stdout: str
    stderr: str


class Cri:
    """A gRPC client; its methods raise grpc.RpcError."""

    def __init__(self, socket: Path, service: ServiceDescriptor, cgroup: str) -> None:
        """Connect at the first call; `cgroup` is the parent of all sandboxes."""
        self._channel = grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
        )
        self._service = service
        self._cgroup = cgroup

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: str, request: dict[str, Any], timeout: float = 60) -> Any:
        found = self._service.methods_by_name[method]
        output = message_factory.GetMessageClass(found.output_type)
        message = message_factory.GetMessageClass(found.input_type)()
        json_format.ParseDict(request, message)
        call = self._channel.unary_unary(
            f"/{self._service.full_name}/{method}",
            request_serializer=type(message).SerializeToString,
            response_deserializer=output.FromString,
        )
        return call(message, timeout=timeout)

    def status(self) -> dict[str, Condition]:
        """Return the runtime's conditions by type."""
        answer = self._call("Status", {})
        return {c.type: Condition(c.status, c.message) for c in answer.status.conditions}

    def run_sandbox(
        self,
        name: str,
        *,
        ports: Sequence[Mapping[str, Any]] = (),
        annotations: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Sandbox:
        """Start a pod's sandbox; the runtime gives it its network (ADD)."""
        config = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "lab"},
            "hostname": name,
            "port_mappings": list(ports),
            "annotations": dict(annotations or {}),
            "linux": {"cgroup_parent": self._cgroup},
        }
        answer = self._call("RunPodSandbox", {"config": config}, timeout)
        return Sandbox(answer.pod_sandbox_id, config)

    def sandbox_ip(self, sandbox: Sandbox) -> str:
        """Return the address that the runtime reports, from the CNI result."""
        answer = self._call("PodSandboxStatus", {"pod_sandbox_id": sandbox.id})
        return str(answer.status.network.ip)

    def stop_sandbox(self, sandbox: Sandbox) -> None:
        """Stop a sandbox (DEL)."""
        self._call("StopPodSandbox", {"pod_sandbox_id": sandbox.id})

    def remove_sandbox(self, sandbox: Sandbox) -> None:
        """Remove a sandbox (another DEL)."""
        self._call("RemovePodSandbox", {"pod_sandbox_id": sandbox.id})

    def start_container(self, sandbox: Sandbox, command: Sequence[str] = WAIT) -> str:
        """Create and start a busybox container; return its id."""
        config = {
            "metadata": {"name": "main"},
            "image": {"image": BUSYBOX},
            "command": list(command),
        }
        request = {
            "pod_sandbox_id": sandbox.id,
            "config": config,
            "sandbox_config": sandbox.config,
        }
        container = str(self._call("CreateContainer", request).container_id)
        self._call("StartContainer", {"container_id": container})
        return container

    def execute(self, container: str, command: Sequence[str]) -> Output:
        """Run a program in a container."""
        request = {"container_id": container, "cmd": list(command), "timeout": 20}
        answer = self._call("ExecSync", request)
        return Output(answer.exit_code, answer.stdout.decode(), answer.stderr.decode())
