"""Access to the pod of an attachment through the Kubernetes API."""

from __future__ import annotations

from attrs import evolve

from userspace_cni import config
from userspace_cni.api import Kernel
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Plan
from userspace_cni.runtime.shared import Shared
from userspace_cni.store import Record


def placed(plan: Plan, shared: Shared, places: Places) -> Plan:
    """Read the pod from the API server; return *plan* with the pod's volume and annotations.

    Without a kubeconfig or a pod, *plan* is returned unchanged.
    """
    conf, named = plan.conf, plan.asked.pod
    if conf.kubeconfig is None or named is None:
        return plan
    from userspace_cni.handover.pod import KubernetesPod

    with shared.phase("handover"):
        pod = KubernetesPod.read(conf.kubeconfig, named)
    volume = pod.volume(conf, shared.settings.kubelet_dir, places.base(conf.shared_dir))
    if volume.directory:
        conf = evolve(conf, container_dir=volume.container_dir)
    return evolve(plan, conf=conf, annotate=pod.publish, volume=volume.directory)


def withdraw(record: Record, shared: Shared) -> None:
    """Remove an attachment from its pod's annotations; errors do not fail the request."""
    kubeconfig, pod = record.conf.kubeconfig, config.pod_of(record.args)
    told = record.port is None or not isinstance(record.port.port, Kernel)
    if not kubeconfig or pod is None or not told:
        return
    from userspace_cni.handover import pod as pods

    with shared.phase("handover"):
        pods.withdraw(kubeconfig, pod, (record.container_id, record.ifname, record.network))
