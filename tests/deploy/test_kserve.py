"""The KServe files: the pods in them are checked with the Kubernetes schemas, the other fields with those of KServe 0.21."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

# The KServe fields in use. A pod's fields may be next to them.
RUNTIME_FIELDS = {"supportedModelFormats", "protocolVersions"}
MODEL_FIELDS = {"modelFormat", "runtime", "protocolVersion", "storageUri"}
PREDICTOR_FIELDS = {"minReplicas", "maxReplicas", "model"}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}}


def read(deploy: Path, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((deploy / "kserve" / f"{name}.yaml").read_text())
    return manifest


def without(fields: set[str], spec: dict[str, Any]) -> dict[str, Any]:
    """The other fields, which must be those of a pod or a container. Checks that all of ``fields`` exist."""
    assert fields <= set(spec)
    return {name: value for name, value in spec.items() if name not in fields}


def test_the_runtime(deploy: Path, versions: dict[str, str]) -> None:
    runtime = read(deploy, "servingruntime")
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    pod = without(RUNTIME_FIELDS, runtime["spec"])
    kubernetes_validate.validate({**POD, "spec": pod}, "1.37", strict=True)
    (container,) = pod["containers"]
    assert container["name"] == "kserve-container"  # KServe looks for this name
    assert container["image"] == f"rcnn-triton:{versions['RCNN_VERSION']}-gpu"
    context = container["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] == 1000 and context["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_the_service_fits_the_runtime(deploy: Path) -> None:
    runtime, service = read(deploy, "servingruntime"), read(deploy, "inferenceservice")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service["spec"]) == {"predictor"}
    model = service["spec"]["predictor"]["model"]
    pod = without(PREDICTOR_FIELDS, service["spec"]["predictor"])
    container = {"name": "kserve-container", **without(MODEL_FIELDS, model)}
    kubernetes_validate.validate({**POD, "spec": {**pod, "containers": [container]}}, "1.37", strict=True)
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
