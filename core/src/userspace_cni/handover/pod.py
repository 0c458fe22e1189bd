"""The hand-over through a Kubernetes pod: its volume and its annotations.

The annotations are those of the first plugin, see :mod:`.legacy`. ``userspace/configuration-data``
is a JSON list with an entry for each interface of the pod, and ``userspace/mapped-dir`` is the
directory of the sockets in the container. The manifest is written by the pod's author, so it is
checked before it is used.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

from attrs import define, frozen

from userspace_cni.api import Attachment, Handoff, Kernel, Pod
from userspace_cni.cni.errors import CniError, Code, InvalidConfig
from userspace_cni.cni.request import is_name
from userspace_cni.config import NetConf
from userspace_cni.handover import legacy
from userspace_cni.handover.document import ABSTRACT
from userspace_cni.kubernetes.client import Client, Conflict, NoSuchPod
from userspace_cni.log import logger

#: The number of attempts after conflicts: the kubelet often updates the status of a pod while it
#: starts.
_TRIES = 10
_PAUSE = 0.05  # seconds; longer each time

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_POD = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")

#: The annotation of a static pod's mirror pod with the UID that the runtime uses for the pod.
_STATIC = "kubernetes.io/config.hash"

_Annotations = Mapping[str, str]
#: Returns the annotations to set, or None for those to remove, given all annotations.
_Change = Callable[[_Annotations], Mapping[str, str | None]]


@frozen(kw_only=True)
class Volume:
    """The pod's volume for the shared directory; the paths are empty if it has none."""

    #: The path on the node.
    directory: str = ""
    #: The path at which the container mounts it.
    container_dir: str = ""


@define
class KubernetesPod:
    """A pod as the API server describes it."""

    _kubeconfig: str
    _client: Client
    _pod: Pod
    _manifest: Mapping[str, Any]

    @classmethod
    def read(cls, kubeconfig: str, pod: Pod) -> KubernetesPod:
        """Ask the API server of *kubeconfig* for *pod*.

        Raises:
            CniError: 4 for an invalid name; 11 when the server cannot be reached, the pod does not
                exist, or another pod has its name; 7 when *kubeconfig* is invalid.

        """
        patterns = (("NAMESPACE", _NAMESPACE), ("NAME", _POD), ("UID", _UID))
        values = (pod.namespace, pod.name, pod.uid)
        for (key, pattern), value in zip(patterns, values, strict=True):
            if not pattern.fullmatch(value) and (value or key != "UID"):
                raise CniError(
                    Code.INVALID_ENVIRONMENT,
                    f"CNI_ARGS: K8S_POD_{key}: no pod has {value!r}",
                    "the runtime sets it; a network without kubeconfig does not ask for the pod",
                )
        client = Client(kubeconfig)
        self = cls(kubeconfig, client, pod, client.get_pod(pod.namespace, pod.name))
        self._require_same()
        return self

    # -- the volume

    def volume(self, conf: NetConf, kubelet_dir: Path, shared_base: Path) -> Volume:
        """Return the volume that *conf* names, if the pod has it.

        An emptyDir is below *kubelet_dir*. A hostPath must be directly below *shared_base*, because
        the author of a pod must not be able to choose where we write on the node.

        Raises:
            CniError: 7 when the pod has the volume, but it cannot be used.

        """
        spec = _object(self._manifest.get("spec"))
        name = conf.shared_volume
        found = [volume for volume in _objects(spec.get("volumes")) if volume.get("name") == name]
        if not found:
            return Volume()
        (volume, *_) = found
        if "emptyDir" in volume:
            directory = kubelet_dir / "pods" / self._uid() / "volumes" / "kubernetes.io~empty-dir"
            return Volume(directory=str(directory / name), container_dir=self._mount(spec, name))
        if "hostPath" not in volume:
            kinds = ", ".join(sorted(map(str, volume.keys() - {"name"})))
            raise self._unusable(name, f"is a {kinds}, expected an emptyDir or a hostPath")
        path = _object(volume["hostPath"]).get("path")
        base, _, last = path.rstrip("/").rpartition("/") if isinstance(path, str) else ("", "", "")
        if base != str(shared_base) or not is_name(last):
            raise self._unusable(
                name,
                f"is the hostPath {path!r}, expected a directory directly below {shared_base}",
                "that is the network's sharedDir; or let the volume be an emptyDir",
            )
        return Volume(directory=f"{base}/{last}", container_dir=self._mount(spec, name))

    def _uid(self) -> str:
        uid = self._pod.uid or _object(self._manifest.get("metadata")).get("uid")
        if not isinstance(uid, str) or not _UID.fullmatch(uid):
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"the API server says that {self._name} has the uid {uid!r}, which no pod can have",
                "see: kubectl get pod -o yaml; is the server of kubeconfig the cluster's?",
            )
        return uid

    def _mount(self, spec: Mapping[str, Any], name: str) -> str:
        """Return the path at which the first container mounts the volume *name*."""
        for container in (*_objects(spec.get("containers")), *_objects(spec.get("initContainers"))):
            for mount in _objects(container.get("volumeMounts")):
                # A mount of a part of the volume does not tell where the rest is.
                if mount.get("name") == name and not {"subPath", "subPathExpr"} & mount.keys():
                    path = mount.get("mountPath")
                    if not _is_directory(path):
                        raise self._unusable(
                            name, f"is mounted at {path!r}, expected an absolute path"
                        )
                    return str(path).rstrip("/")
        raise self._unusable(name, "is mounted by no container", "mount it whole, without subPath")

    def _unusable(self, name: str, problem: str, details: str = "") -> CniError:
        return InvalidConfig("sharedVolume", f"volume {name} of {self._name} {problem}", details)

    # -- the annotations

    def publish(
        self, attachment: Attachment, handoff: Handoff, conf: NetConf, engine: str, undo: ExitStack
    ) -> None:
        """Describe *handoff*, which container engine *engine* prepared, in the annotations.

        Kernel interfaces need no annotation.

        Raises:
            CniError: 7 when other interfaces have their sockets in another directory of the
                container, or the server refuses; 11 when the server cannot be reached.

        """
        if isinstance(handoff.port, Kernel):
            return
        entry = legacy.describe(attachment, handoff, engine)
        # Programs that concatenate paths need the slash.
        mapped_dir = (conf.container_dir or attachment.directory.path).rstrip("/") + "/"
        # Pushed before the call: if the answer is lost, the call may have been carried out.
        undo.callback(partial(withdraw, self._kubeconfig, self._pod, _key(entry)))
        self._change(partial(self._with, entry, mapped_dir))

    def withdraw(self, key: tuple[str, ...]) -> None:
        """Remove the entry of *key*, and both annotations with the last entry."""
        self._change(partial(_without, key))

    def _with(
        self, entry: Mapping[str, Any], mapped_dir: str, there: _Annotations
    ) -> Mapping[str, str | None]:
        # All attachments of a pod have the container id of its sandbox. Entries with another id
        # belong to a sandbox that no longer exists.
        others = [
            other
            for other in _entries(there)
            if other.get("containerId") == entry["containerId"] and _key(other) != _key(entry)
        ]
        if any(map(_has_path, others)):
            if not _has_path(entry):
                mapped_dir = there.get(legacy.MAPPED_DIR, "")
            elif there.get(legacy.MAPPED_DIR) != mapped_dir:
                raise CniError(
                    Code.INVALID_NETWORK_CONFIG,
                    f"{self._name} has the sockets of other interfaces in "
                    f"{there.get(legacy.MAPPED_DIR)!r}, and that of {entry['ifName']} in "
                    f"{mapped_dir!r}: the annotation {legacy.MAPPED_DIR} can name one directory",
                    "give the pod a volume called as sharedVolume says, or its networks one "
                    "containerDir",
                )
        return {
            legacy.CONFIGURATION_DATA: json.dumps([*others, entry]),
            legacy.MAPPED_DIR: mapped_dir,
        }

    def _change(self, change: _Change) -> None:
        """Patch the annotations with *change*; retry after a conflict."""
        for attempt in range(1, _TRIES + 1):
            metadata = _object(self._manifest.get("metadata"))
            there = _object(metadata.get("annotations"))
            wanted = change(there)
            if all(there.get(key) == value for key, value in wanted.items()):
                return
            patch = {"resourceVersion": metadata.get("resourceVersion"), "annotations": wanted}
            try:
                self._manifest = self._client.patch_pod(
                    self._pod.namespace, self._pod.name, {"metadata": patch}
                )
            except Conflict:
                sleep(random.uniform(0, attempt * _PAUSE))  # noqa: S311  no secret
                self._manifest = self._client.get_pod(self._pod.namespace, self._pod.name)
                self._require_same()
            else:
                return
        raise CniError(
            Code.TRY_AGAIN_LATER,
            f"the annotations of {self._name} cannot be set: others changed the pod {_TRIES} times "
            "meanwhile",
            "the next try may do; kubectl get pod -o yaml --show-managed-fields tells who else "
            "changes it",
        )

    def _require_same(self) -> None:
        """Raise CniError 11 unless the manifest belongs to our pod."""
        metadata = _object(self._manifest.get("metadata"))
        told = (metadata.get("namespace"), metadata.get("name"))
        if told != (self._pod.namespace, self._pod.name):
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"asked for {self._name}, the API server told of {told!r}",
                "is the server of kubeconfig the cluster's own, with nothing in between?",
            )
        # For a static pod, the runtime passes the UID from the kubelet, and the API server has the
        # mirror pod, which has another UID.
        known = (metadata.get("uid"), _object(metadata.get("annotations")).get(_STATIC))
        if self._pod.uid and self._pod.uid not in known:
            raise NoSuchPod(
                Code.TRY_AGAIN_LATER,
                f"{self._name} has the uid {metadata.get('uid')!r}, the runtime says "
                f"{self._pod.uid!r}",
                "another pod of that name has taken its place",
            )

    @property
    def _name(self) -> str:
        return f"pod {self._pod.namespace}/{self._pod.name}"


def withdraw(kubeconfig: str, pod: Pod, key: tuple[str, ...]) -> None:
    """Remove the entry of *key* (container id, CNI_IFNAME, network) from *pod*'s annotations.

    Failures are only logged: the pod's next sandbox removes an entry that stays.
    """
    try:
        KubernetesPod.read(kubeconfig, pod).withdraw(key)
    except NoSuchPod:
        return
    except CniError as error:
        logger.warning(
            "the annotations of pod %s/%s are left as they are: %s", pod.namespace, pod.name, error
        )


def _without(key: tuple[str, ...], there: _Annotations) -> Mapping[str, str | None]:
    entries = _entries(there)
    left = [entry for entry in entries if _key(entry) != key]
    if len(left) == len(entries):
        return {}
    if left:
        return {legacy.CONFIGURATION_DATA: json.dumps(left)}
    return {legacy.CONFIGURATION_DATA: None, legacy.MAPPED_DIR: None}


def _entries(annotations: _Annotations) -> list[dict[str, Any]]:
    """Return the entries in the annotation; none if it cannot be parsed."""
    try:
        return _objects(json.loads(annotations.get(legacy.CONFIGURATION_DATA, "[]")))
    except (TypeError, ValueError, RecursionError):
        return []


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key)) for key in ("containerId", "ifName", "name"))


def _has_path(entry: Mapping[str, Any]) -> bool:
    """Return whether the socket of an interface is a file."""
    config = _object(entry.get("config"))
    names = [
        _object(config.get(kind)).get(key)
        for kind, key in (("memif", "socketfile"), ("vhost", "socketfile"), ("port", "socket"))
    ]
    return any(name and not str(name).startswith(ABSTRACT) for name in names)


def _is_directory(path: object) -> bool:
    return (
        isinstance(path, str)
        and path.startswith("/")
        and path.strip("/") != ""
        and path.isprintable()
        and len(os.fsencode(path)) < os.pathconf("/", "PC_PATH_MAX")
        and ":" not in path
        and not {".", ".."} & {*path.split("/")}
    )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
