"""The manifests and the page's examples match the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kubernetes_api import NAMESPACE, POD, TOKEN, Authority, KubernetesApi
from userspace_cni import config, registry
from userspace_cni.agent import command
from userspace_cni.agent.sources import ANNOTATIONS, DIRECTORY
from userspace_cni.api import Pod
from userspace_cni.cni.request import Target
from userspace_cni.config.settings import Settings
from userspace_cni.handover import device_info, legacy
from userspace_cni.handover.pod import KubernetesPod
from userspace_cni.kubernetes import kubeconfig
from userspace_cni.kubernetes.client import Client

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy/kubernetes"
PAGE = ROOT / "docs/kubernetes.md"


def _manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()))


def _network(name: str) -> config.NetConf:
    (manifest,) = _manifests(name)
    assert manifest["kind"] == "NetworkAttachmentDefinition"
    network = json.loads(manifest["spec"]["config"])
    assert manifest["metadata"]["name"] == network["name"]
    return config.load(
        Target(
            network=network["name"],
            config=network,
        )
    )


def _require_engines(conf: config.NetConf) -> None:
    info = registry.host_engine(config.engine_name(conf, "host")).info
    host = config.engine_conf(conf.host, "host", info, {})
    container = registry.container_engine(config.engine_name(conf, "container", info)).info
    defaults = {"iftype": host.iftype, "netType": "interface"}
    config.engine_conf(conf.container, "container", container, defaults)


@pytest.mark.parametrize("name", sorted(path.stem for path in MANIFESTS.glob("network*.yaml")))
def test_a_network_is_one(name: str) -> None:
    conf = _network(name)
    _require_engines(conf)
    assert conf.capabilities == {"CNIDeviceInfoFile": True}


def test_the_pod_fits_its_network(tmp_path: Path, api: KubernetesApi) -> None:
    conf = _network("network")
    (pod,) = _manifests("pod")
    api.create()["spec"] = pod["spec"]
    path = api.kubeconfig(tmp_path / "kubeconfig")
    seen = KubernetesPod.read(str(path), Pod(namespace=NAMESPACE, name=POD))
    volume = seen.volume(conf, Settings().kubelet_dir, Path("/nowhere"))
    assert volume.directory.startswith("/var/lib/kubelet/pods/")
    assert volume.container_dir == DIRECTORY
    networks = json.loads(pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"])
    assert [network["interface"] for network in networks] == ["net1", "net2"]
    (wait,) = pod["spec"]["initContainers"]
    program, *arguments = wait["command"]
    assert program == "userspace-cni-agent"
    options = command._parser().parse_args(arguments)
    assert (options.wait, options.interface) == (True, ["net1", "net2"])
    for container in (wait, *pod["spec"]["containers"]):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["podnetinfo"] == str(Path(ANNOTATIONS).parent)
        assert mounts["shared-dir"] == DIRECTORY


def test_the_kubeconfig_can_be_used_where_it_is_put(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text((MANIFESTS / "kubeconfig.yaml").read_text())
    (tmp_path / "ca.crt").write_bytes(authority.path("ca.crt").read_bytes())
    (tmp_path / "token").write_text(TOKEN)
    access = kubeconfig.load(str(path))
    assert (access.host, access.port, access.token) == ("kubernetes.example", 6443, TOKEN)


def test_the_role_allows_what_is_asked_and_no_more(api: KubernetesApi, tmp_path: Path) -> None:
    client = Client(str(api.kubeconfig(tmp_path / "kubeconfig")))
    pod = client.get_pod(NAMESPACE, POD)
    version = pod["metadata"]["resourceVersion"]
    client.patch_pod(NAMESPACE, POD, {"metadata": {"resourceVersion": version, "annotations": {}}})
    verbs = {"GET": "get", "PATCH": "patch"}
    asked = {(verbs[method], resource) for method, resource in api.resources}
    account, role, binding, secret = _manifests("rbac")
    allowed = {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    assert asked == allowed
    name = account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [name]
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] == name


def test_what_the_page_shows_is_in_the_manifests() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    network, volumes = map(yaml.safe_load, blocks)
    assert [network] == _manifests("network")
    (pod,) = _manifests("pod")
    assert all(volume in pod["spec"]["volumes"] for volume in volumes["spec"]["volumes"])


def test_every_key_of_a_kubeconfig_is_on_the_page() -> None:
    text = PAGE.read_text()
    for key in kubeconfig._CLUSTER | kubeconfig._USER:
        assert f"`{key}`" in text, key
    for file in MANIFESTS.iterdir():
        assert f"deploy/kubernetes/{file.name}" in text, file


def test_the_policy_is_for_the_account_and_leaves_it_what_is_written() -> None:
    account, *_ = _manifests("rbac")
    policy, binding = _manifests("policy")
    assert policy["apiVersion"] == binding["apiVersion"] == "admissionregistration.k8s.io/v1"
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Deny"]
    spec = policy["spec"]
    metadata = account["metadata"]
    user = f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}"
    assert [user in condition["expression"] for condition in spec["matchConditions"]] == [True]
    variables = {variable["name"]: variable["expression"] for variable in spec["variables"]}
    assert json.loads(variables["own"].replace("'", '"')) == [
        legacy.CONFIGURATION_DATA,
        legacy.MAPPED_DIR,
    ]
    used = re.findall(r"variables\.(\w+)", str(spec["validations"]))
    assert {*used} == variables.keys()
    for expression in (*variables.values(), *(rule["expression"] for rule in spec["validations"])):
        for pair in ("()", "[]", "{}"):
            assert expression.count(pair[0]) == expression.count(pair[1]), expression


def _as_multus_calls(network: dict[str, Any], selected: dict[str, Any], path: Path) -> Any:
    """Return the configuration that Multus derives from a *network* that a pod has *selected*."""
    if device := selected.get("deviceID"):
        network |= {"deviceID": device, "pciBusID": device}
        if network.get("capabilities", {}).get("CNIDeviceInfoFile"):
            network["runtimeConfig"] = {"CNIDeviceInfoFile": str(path)}
    return network


def test_the_pods_of_the_docs_are_told_of_their_ports(tmp_path: Path) -> None:
    page = (ROOT / "docs/agent.md").read_text()
    shown = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    pods = [*map(yaml.safe_load, shown), *_manifests("pod")]
    selections = [
        selected
        for pod in pods
        for selected in json.loads(pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"])
    ]
    assert len(selections) == 3
    for selected in selections:
        for name in ("network", "network-abstract"):
            (manifest,) = _manifests(name)
            network = json.loads(manifest["spec"]["config"])
            config_ = _as_multus_calls(network, selected, tmp_path / "info")
            conf = config.load(Target(network=name, config=config_))
            assert device_info.path_of(conf.runtime_config) == str(tmp_path / "info")
