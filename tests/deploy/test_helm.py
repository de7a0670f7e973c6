"""The chart, rendered by Helm's own library and checked with the Kubernetes schemas."""

import json
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import promql_parser
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

VALUE_SETS = ["minimal", "gpu-production", "cpu"]
OLDEST, NEWEST = "1.25", "1.37"  # Chart.yaml's kubeVersion, and the newest available schemas
CUSTOM = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}


@pytest.fixture(scope="module")
def chart(deploy: Path) -> helm.Chart:
    """deploy/helm/rcnn-triton."""
    return helm.Chart.load(deploy / "helm" / "rcnn-triton")


def read_values(deploy: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((deploy / "helm" / "values" / f"{name}.yaml").read_text())
    return values


def render(chart: helm.Chart, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifests by kind; the headless service has the key Headless."""
    chart.validate_schema(values)
    files = chart.render(values, name="detect", namespace="vision")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    manifests = [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
    return {"Headless" if each["spec"].get("clusterIP") else each["kind"]: each for each in manifests}


def pod_of(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_manifest_fits_its_schema(deploy: Path, chart: helm.Chart, name: str) -> None:
    values = read_values(deploy, name)
    report = helm.lint(deploy / "helm" / "rcnn-triton", values, strict=True)
    assert [message["error"] for message in report["messages"] if message["severity"] > 1] == []
    for manifest in render(chart, values).values():
        model = CUSTOM.get(manifest["kind"])
        if model is None:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(manifest, version, strict=True)
        else:  # these models accept unknown fields silently, so the output must equal the input
            parsed = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert json.dumps(parsed, sort_keys=True) == json.dumps(manifest, sort_keys=True)


def test_what_each_value_set_brings(deploy: Path, chart: helm.Chart) -> None:
    always = {"Deployment", "Service", "Headless", "NetworkPolicy", "PodDisruptionBudget"}
    extra = {"minimal": set(), "cpu": {"HorizontalPodAutoscaler"}, "gpu-production": set(CUSTOM)}
    gpus = {"minimal": 1, "cpu": None, "gpu-production": 1}
    for name in VALUE_SETS:
        manifests = render(chart, read_values(deploy, name))
        assert set(manifests) == always | extra[name]
        (server,) = pod_of(manifests)["containers"]
        assert server["resources"]["limits"].get("nvidia.com/gpu") == gpus[name]
        scaled = bool(extra[name])  # then only the autoscaler sets the number
        assert ("replicas" in manifests["Deployment"]["spec"]) != scaled


@pytest.mark.parametrize("name", VALUE_SETS)
def test_nothing_runs_as_root_or_writes_to_its_image(deploy: Path, chart: helm.Chart, name: str) -> None:
    pod = pod_of(render(chart, read_values(deploy, name)))
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_a_pod_has_the_time_it_needs(deploy: Path, chart: helm.Chart) -> None:
    manifests = render(chart, {**read_values(deploy, "minimal"), "startupSeconds": 3600})
    pod = pod_of(manifests)
    (server,) = pod["containers"]
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600
    assert startup["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    assert server["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert manifests["Deployment"]["spec"]["progressDeadlineSeconds"] > 3600
    assert {"name": "READY_TIMEOUT_S", "value": "3600"} in server["env"]
    assert pod["terminationGracePeriodSeconds"] >= 5 + 30 + 15  # preStop, tritonserver, the time to kill it


def test_selectors_and_ports_meet(deploy: Path, chart: helm.Chart) -> None:
    manifests = render(chart, read_values(deploy, "gpu-production"))
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (server,) = pod_of(manifests)["containers"]
    ports = {port["name"] for port in server["ports"]}
    for service in ("Service", "Headless"):
        assert manifests[service]["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in manifests[service]["spec"]["ports"]} <= ports
    for kind, key in [("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")]:
        assert manifests[kind]["spec"][key]["matchLabels"].items() <= labels.items()
    monitored = manifests["ServiceMonitor"]["spec"]
    assert monitored["selector"]["matchLabels"].items() <= manifests["Headless"]["metadata"]["labels"].items()
    allowed = {
        port["port"] for rule in manifests["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]
    }
    assert allowed == {"grpc", "metrics"}
    scaled = manifests["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    query = scaled["triggers"][0]["metadata"]["query"]
    promql_parser.parse(query)
    assert 'namespace="vision",pod=~"detect-rcnn-triton-.+"' in query


def test_the_adapter_makes_the_metric_that_the_autoscaler_asks_for(deploy: Path, chart: helm.Chart) -> None:
    metric = render(chart, read_values(deploy, "cpu"))["HorizontalPodAutoscaler"]["spec"]["metrics"][0]
    (rule,) = yaml.safe_load((deploy / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    filled = {"GroupBy": "pod", "Series": "nv_inference_queue_duration_us", "LabelMatchers": 'pod="a"'}
    query = rule["metricsQuery"]
    for name, value in filled.items():
        query = query.replace(f"<<.{name}>>", value)
    promql_parser.parse(query)
    promql_parser.parse(rule["seriesQuery"])


def test_versions_are_those_of_the_images(deploy: Path, chart: helm.Chart, versions: dict[str, str]) -> None:
    assert chart.metadata["appVersion"] == versions["RCNN_VERSION"]
    assert (
        chart.values["modelRepository"]["objectStore"]["image"]
        == f"rclone/rclone:{versions['RCLONE_VERSION']}"
    )
    (server,) = pod_of(render(chart, read_values(deploy, "cpu")))["containers"]
    assert server["image"] == f"rcnn-triton:{versions['RCNN_VERSION']}-cpu"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"device": "tpu"}, "device"),
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"gpu": {"count": "two"}}, "gpu/count"),
        ({"modelRepository": {"pvc": {"claimName": ""}}}, "claimName"),
        ({"modelRepository": {"type": "objectStore", "objectStore": {"url": "store:models"}}}, "secretName"),
        ({"modelRepository": {"type": "objectStore", "objectStore": {"url": "nowhere"}}}, "url"),
        ({"tls": {"enabled": True}}, "tls/secretName"),
        ({"auth": {"enabled": True}}, "auth/secretName"),
        ({"autoscaling": {"type": "keda"}}, "prometheusUrl"),
        ({"sharedMemory": "1 GB"}, "sharedMemory"),
        ({"terminationGracePeriodSeconds": 10}, "terminationGracePeriodSeconds"),
        ({"extraArgs": ["log-verbose=1"]}, "extraArgs"),
        ({"models": ["a b"]}, "models"),
    ],
)
def test_wrong_values_are_refused(deploy: Path, chart: helm.Chart, wrong: dict[str, Any], told: str) -> None:
    values = {**read_values(deploy, "minimal"), **wrong}
    with pytest.raises(helm.HelmValuesError) as caught:
        chart.validate_schema(values)
    assert told in str(caught.value).replace(".", "/")
