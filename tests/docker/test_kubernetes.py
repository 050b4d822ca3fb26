"""The manifests in docker/kubernetes fit Kubernetes' schemas, each other, the image and the service.

The schemas come with the package kubernetes-validate. What kustomize makes of the files is made by `kubectl kustomize`,
which needs no cluster; where there is no kubectl, those tests are skipped and the files themselves are still checked.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from serving import ROOT

from app.main import LAST_CALL, create_app
from app.metrics import Metrics
from app.settings import Settings, SettingsError, load_settings

FOLDER = ROOT / "docker" / "kubernetes"
OVERLAYS = [".", "complete", "gpu"]
NO_MANIFESTS = {FOLDER / "autoscaling" / "prometheus-adapter.yaml"}  # a chart's values
OLDEST = "1.30"  # the first that has `preStop.sleep` without a switch
GIB = 2**30
UNITS = {"Mi": 2**20, "Gi": GIB}

Manifest = dict[str, Any]

# From the CustomResourceDefinition of prometheus-operator 0.84: the fields that somebody is likely to use here.
DURATION = {"type": "string", "pattern": r"^(0|([0-9]+m)?([0-9]+s)?)$"}
SERVICE_MONITOR = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["endpoints", "selector"],
            "additionalProperties": False,
            "properties": {
                "jobLabel": {"type": "string"},
                "namespaceSelector": {"type": "object"},
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "matchExpressions": {"type": "array"},
                    },
                },
                "endpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},  # by name; a number is `targetPort`'s
                            "path": {"type": "string"},
                            "interval": DURATION,
                            "scrapeTimeout": DURATION,
                            "authorization": {"type": "object"},
                            "relabelings": {"type": "array"},
                            "metricRelabelings": {"type": "array"},
                        },
                    },
                },
            },
        },
    },
}


def read(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def build(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl, whose kustomize puts the files together")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture(params=["files", *OVERLAYS])
def manifests(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    """By kind, of which there is one each: the files as they are, or what an overlay makes of them."""
    if request.param == "files":
        paths = [path for part in ("base", "autoscaling", "monitoring") for path in (FOLDER / part).glob("*.yaml")]
        documents = [document for path in paths if path not in NO_MANIFESTS for document in read(path)]
        documents = [document for document in documents if document["kind"] not in ("Kustomization", "Component")]
    else:
        documents = build(FOLDER / request.param)
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def pod(manifests: dict[str, Manifest]) -> Manifest:
    template: Manifest = manifests["Deployment"]["spec"]["template"]
    return template


def container(manifests: dict[str, Manifest]) -> Manifest:
    (only,) = pod(manifests)["spec"]["containers"]
    return only


def environment(manifests: dict[str, Manifest]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container(manifests)["env"]}


def count_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def check(manifest: Manifest, version: str) -> None:
    if manifest["kind"] == "ServiceMonitor":
        Draft202012Validator(SERVICE_MONITOR).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_manifest_fits_the_schemas(manifests: dict[str, Manifest], version: str) -> None:
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= manifests.keys()
    for manifest in manifests.values():
        check(manifest, version)


def test_a_slip_does_not_fit_the_schemas() -> None:
    (deployment,) = read(FOLDER / "base" / "deployment.yaml")
    spec = deployment["spec"]["template"]["spec"]
    spec["containers"][0]["readynessProbe"] = spec["containers"][0].pop("readinessProbe")
    with pytest.raises(ValidationError, match="readynessProbe"):
        check(deployment, OLDEST)
    (monitor,) = read(FOLDER / "monitoring" / "servicemonitor.yaml")
    monitor["spec"]["endpoints"][0]["port"] = 8000
    with pytest.raises(ValidationError, match="8000 is not of type 'string'"):
        check(monitor, OLDEST)


def test_kustomizations_name_every_file() -> None:
    named = set()
    for path in FOLDER.rglob("kustomization.yaml"):
        (kustomization,) = read(path)
        patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        for name in [*kustomization.get("resources", []), *kustomization.get("components", []), *patches]:
            file = (path.parent / name).resolve()
            named.add(file / "kustomization.yaml" if file.is_dir() else file)
    there = set(FOLDER.rglob("*.yaml"))
    assert named <= there
    assert there - named == NO_MANIFESTS | {FOLDER / overlay / "kustomization.yaml" for overlay in OVERLAYS}


def test_selectors_choose_these_pods_and_this_service(manifests: dict[str, Manifest]) -> None:
    labels = pod(manifests)["metadata"]["labels"].items()
    selectors = {
        "Deployment": manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        "Service": manifests["Service"]["spec"]["selector"],
        "PodDisruptionBudget": manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        "spread": pod(manifests)["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    }
    for name, selector in selectors.items():
        assert selector, name
        assert selector.items() <= labels, name


def test_ports_are_the_one_that_the_service_listens_on(manifests: dict[str, Manifest]) -> None:
    own = container(manifests)
    (port,) = own["ports"]
    assert str(port["containerPort"]) == environment(manifests)["POSE_PORT"] == str(Settings().port)
    (served,) = manifests["Service"]["spec"]["ports"]
    (admitted,) = (entry for rule in manifests["NetworkPolicy"]["spec"]["ingress"] for entry in rule["ports"])
    probes = [own[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {served["targetPort"], admitted["port"], *probes} == {port["name"]}


def test_probes_ask_routes_that_exist_and_the_right_ones(manifests: dict[str, Manifest]) -> None:
    paths = {name: container(manifests)[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe")}
    assert set(paths.values()) == {"/readyz"}
    alive = container(manifests)["livenessProbe"]["httpGet"]["path"]
    assert alive == "/healthz"  # /readyz would have a draining pod killed
    assert {*paths.values(), alive} <= create_app(Settings()).openapi()["paths"].keys()


def test_settings_exist_and_have_values_that_fit(manifests: dict[str, Manifest]) -> None:
    settings = load_settings(environment(manifests))
    assert settings.host == "0.0.0.0"
    assert not settings.api_keys  # they come from a Secret, and none stands in a file
    assert "Secret" not in manifests


def test_no_variable_of_kubernetes_is_taken_for_a_setting(manifests: dict[str, Manifest]) -> None:
    prefix = manifests["Service"]["metadata"]["name"].upper()
    with pytest.raises(SettingsError, match=r"POSE_SERVICE_HOST is no setting[\s\S]*POSE_PORT='tcp"):
        load_settings({f"{prefix}_PORT": "tcp://10.0.0.1:80", f"{prefix}_SERVICE_HOST": "10.0.0.1"})
    assert pod(manifests)["spec"]["enableServiceLinks"] is False


def test_a_pod_has_time_to_drain(manifests: dict[str, Manifest]) -> None:
    drain = load_settings(environment(manifests)).drain_timeout
    before = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(manifests)["spec"]["terminationGracePeriodSeconds"] >= before + drain + LAST_CALL + 5


def test_the_memory_limit_holds_the_most_that_the_settings_admit(manifests: dict[str, Manifest]) -> None:
    settings = load_settings(environment(manifests))
    resources = container(manifests)["resources"]
    pictures = settings.queue_size * settings.max_pixels * 3
    assert count_bytes(resources["limits"]["memory"]) >= pictures + GIB
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"]  # threads fit the limit


def test_pods_fit_the_restricted_security_standard_and_the_image(manifests: dict[str, Manifest]) -> None:
    spec, own = pod(manifests)["spec"], container(manifests)["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(manifests)["volumeMounts"]}
    assert mounts.keys() == {"/tmp", "/var/cache/pose"}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in mounts.values())


def test_user_port_and_tags_are_those_of_the_dockerfile(manifests: dict[str, Manifest]) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    user = pod(manifests)["spec"]["securityContext"]["runAsUser"]
    assert set(re.findall(r"^USER (\d+)", dockerfile, re.MULTILINE)) == {str(user)}
    assert re.findall(r"^EXPOSE (\d+)", dockerfile, re.MULTILINE) == [environment(manifests)["POSE_PORT"]]
    name, _, tag = container(manifests)["image"].partition(":")
    assert name == "pose-server"
    assert re.search(rf"^FROM \S+ AS {tag}$", dockerfile, re.MULTILINE)


def test_nothing_goes_out_and_only_the_port_lets_in(manifests: dict[str, Manifest]) -> None:
    spec = manifests["NetworkPolicy"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["egress"] == []
    assert all(rule["ports"] for rule in spec["ingress"])  # a rule without ports admits all of them


def test_prometheus_scrapes_this_service_under_the_name_that_the_rules_go_by() -> None:
    (monitor,), (service,) = read(FOLDER / "monitoring" / "servicemonitor.yaml"), read(FOLDER / "base" / "service.yaml")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["path"] in create_app(Settings()).openapi()["paths"]
    (prometheus,) = read(ROOT / "docker" / "prometheus" / "prometheus.yml")
    assert labels[monitor["spec"]["jobLabel"]] in [job["job_name"] for job in prometheus["scrape_configs"]]


def test_the_autoscaler_goes_by_a_metric_that_there_is() -> None:
    (scaler,), (deployment,) = (read(FOLDER / part) for part in ("autoscaling/autoscaler.yaml", "base/deployment.yaml"))
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert scaler["spec"]["minReplicas"] == deployment["spec"]["replicas"]
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in [family.name for family in Metrics().registry.collect()]
    assert int(metric["pods"]["target"]["averageValue"]) == Settings().max_batch
    (values,) = read(FOLDER / "autoscaling" / "prometheus-adapter.yaml")
    (rule,) = values["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == name
    for placeholder in ("<<.GroupBy>>", "<<.Series>>", "<<.LabelMatchers>>"):
        assert placeholder in rule["metricsQuery"]


def test_overlays_change_what_they_say() -> None:
    plain, complete, gpu = (build(FOLDER / overlay) for overlay in OVERLAYS)
    kinds = {manifest["kind"] for manifest in plain}
    assert {manifest["kind"] for manifest in complete} == kinds | {"HorizontalPodAutoscaler", "ServiceMonitor"}
    (scaled,) = (manifest for manifest in complete if manifest["kind"] == "Deployment")
    assert "replicas" not in scaled["spec"]  # the autoscaler's business
    (deployment,) = (manifest for manifest in gpu if manifest["kind"] == "Deployment")
    (own,) = deployment["spec"]["template"]["spec"]["containers"]
    assert own["image"] == "pose-server:gpu"
    assert own["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "POSE_DEVICE", "value": "cuda"} in own["env"]
    assert {"name": "POSE_PORT", "value": "8000"} in own["env"]  # the patch adds to the list


def test_a_kustomization_of_ones_own_joins_the_parts(tmp_path: Path) -> None:
    parts = {part: os.path.relpath(FOLDER / part, tmp_path.resolve()) for part in ("gpu", "monitoring", "autoscaling")}
    own = {
        "resources": [parts["gpu"]],
        "components": [parts["monitoring"], parts["autoscaling"]],
        "namespace": "vision",
        "images": [{"name": "pose-server", "newName": "registry.example/pose-server", "newTag": "1"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    made = {manifest["kind"]: manifest for manifest in build(tmp_path)}
    assert {manifest["metadata"]["namespace"] for manifest in made.values()} == {"vision"}
    assert container(made)["image"] == "registry.example/pose-server:1"
    assert made.keys() >= {"HorizontalPodAutoscaler", "ServiceMonitor"}
    for manifest in made.values():
        check(manifest, OLDEST)
