"""The manifests for KubeRay: rendered as kustomize does it, held to KubeRay's fields and to what the jobs need.

No cluster and no network. `kubectl`, where there is one, renders the same by itself and must agree.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # a requirement of ray
import pytest
import yaml

from hse_dist.config import load_config

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
OVERLAYS = ("local-kind", "gpu", "gpu-large")
BUILDS = [f"overlays/{name}/{what}" for name in OVERLAYS for what in ("cluster", "job")]
STORAGE = ["storage", "overlays/local-kind/storage"]
WORDS = {"apiVersion", "kind", "resources", "components", "patches", "images", "replacements", "transformers"}
UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def quantity(text: str) -> float:
    """A number of cores, bytes or devices as Kubernetes writes it."""
    number = text.rstrip("mKGi" if not text.endswith("Mi") else "Mi")
    return float(number) * UNITS[text[len(number) :]]


def documents(path: Path) -> list[dict[str, Any]]:
    """What a file holds; an anchor's copies are copies, so that a patch of one leaves the others."""
    found = yaml.load_all(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return json.loads(json.dumps([document for document in found if document]))


def point(document: Any, path: str) -> tuple[Any, str | int]:
    """What holds the place that a JSON pointer names, and its key there."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document, last if isinstance(document, dict) or last == "-" else int(last)


def patch(document: dict[str, Any], operations: list[dict[str, Any]]) -> None:
    """RFC 6902, as far as the overlays use it; replacing what is not there raises."""
    for operation in operations:
        assert operation.keys() == {"op", "path", "value"}
        holder, key = point(document, operation["path"])
        if key == "-":
            assert operation["op"] == "add"
            holder.append(operation["value"])
            continue
        assert operation["op"] in ("add", "replace")
        if operation["op"] == "replace":
            holder[key]  # raises where there is nothing
        holder[key] = operation["value"]


def only(resources: list[dict[str, Any]], target: dict[str, str]) -> dict[str, Any]:
    (found,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (target["kind"], target["name"])]
    return found


def set_images(node: Any, images: list[dict[str, str]]) -> None:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        set_images(value, images)
    for container in node.get("containers", []) if isinstance(node, dict) else ():
        for image in images:
            name, tag = container["image"].split(":")
            if name == image["name"]:
                container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def render(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize FOLDER` would print; unknown words of a kustomization raise."""
    return json.loads(rendered(folder))


@cache
def rendered(folder: Path) -> str:
    return json.dumps(build_on([], folder))


def build_on(resources: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    (rules,) = documents(folder / "kustomization.yaml")
    assert rules.keys() <= WORDS
    for name in rules.get("resources", []):
        path = folder / name
        resources += documents(path) if path.is_file() else render(path.resolve())
    for name in rules.get("components", []):
        build_on(resources, (folder / name).resolve())
    for rule in rules.get("patches", []):
        text = (folder / rule["path"]).read_text(encoding="utf-8") if "path" in rule else rule["patch"]
        patch(only(resources, rule["target"]), yaml.safe_load(text))
    for rule in rules.get("replacements", []):
        source = only(resources, rule["source"])[rule["source"]["fieldPath"]]
        for target in rule["targets"]:
            (path,) = target["fieldPaths"]
            holder, key = point(only(resources, target["select"]), "/" + path.replace(".", "/"))
            holder[key] = copy.deepcopy(source)
    set_images(resources, rules.get("images", []))
    for name in rules.get("transformers", []):
        (transformer,) = documents(folder / name)
        assert yaml.safe_load(transformer["patch"])["$patch"] == "delete"
        resources.remove(only(resources, transformer["target"]))
    return resources


@cache
def schema(kind: str) -> jsonschema.Draft202012Validator:
    (pinned,) = documents(Path(__file__).parent / "kuberay-fields.yaml")
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": pinned["$defs"]})


def check(resource: dict[str, Any]) -> None:
    schema(resource["kind"]).validate(resource)


def cluster_spec(build: str) -> dict[str, Any]:
    (resource,) = render(KUBERAY / build)
    return resource["spec"]["rayClusterSpec"] if resource["kind"] == "RayJob" else resource["spec"]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def yaml_files() -> list[Path]:
    return sorted(KUBERAY.rglob("*.yaml"))


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(KUBERAY)))
def test_every_file_parses_and_is_named_by_a_kustomization(path):
    assert documents(path)
    if path.name != "kustomization.yaml":
        (rules,) = documents(path.parent / "kustomization.yaml")
        named = [*rules.get("resources", []), *rules.get("transformers", [])]
        assert path.name in named + [rule.get("path") for rule in rules.get("patches", [])]


@pytest.mark.parametrize("build", [*BUILDS, *STORAGE])
def test_what_is_built_has_the_fields_of_kuberay(build):
    (resource,) = render(KUBERAY / build)
    check(resource)
    expected = {"cluster": "RayCluster", "job": "RayJob", "storage": "PersistentVolumeClaim"}
    assert resource["kind"] == expected[build.split("/")[-1]]


@pytest.mark.parametrize(
    "path, value",
    [
        (("workerGroupSpecs", 0, "minReplica"), 2),
        (("workerGroupSpecs", 0, "minReplicas"), "2"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 2),
        (("headGroupSpec", "template", "spec", "containers", 0, "readynessProbe"), {}),
        (("autoscalerOptions", "upscalingMode"), "Careful"),
    ],
)
def test_the_pinned_fields_refuse_mistakes(path, value):
    (resource,) = render(KUBERAY / "base")
    holder = resource["spec"]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(resource)


@pytest.mark.parametrize("build", [build for build in BUILDS if "job" in build] + STORAGE[1:])
def test_kubectl_renders_the_same(build):
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    command = ["kubectl", "kustomize", str(KUBERAY / build)]
    done = subprocess.run(
        command, env={**os.environ, "KUBECONFIG": os.devnull}, capture_output=True, text=True, timeout=30, check=True
    )
    assert list(yaml.safe_load_all(done.stdout)) == render(KUBERAY / build)


@pytest.mark.parametrize("build", BUILDS)
def test_nothing_runs_as_root_or_writes_to_its_image(build):
    spec = cluster_spec(build)
    contexts = [container["securityContext"] for pod in pods(spec) for container in pod["containers"]]
    for context in [*contexts, spec["autoscalerOptions"]["securityContext"]]:
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for pod in pods(spec):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert "emptyDir" in mounts["/tmp"] and mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
            assert (
                mounts["/data"]["persistentVolumeClaim"]["claimName"]
                == render(KUBERAY / "storage")[0]["metadata"]["name"]
            )
            assert {"name": "HOME", "value": "/tmp"} in container["env"]
    # the user of the image
    assert "--uid 1000 ray" in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert not any(pod.get("automountServiceAccountToken", True) for pod in pods(spec)[1:])


@pytest.mark.parametrize("build", BUILDS)
def test_images_and_ray_are_pinned_and_the_token_is_a_secret(build):
    spec, project = cluster_spec(build), (ROOT / "hse_dist" / "__init__.py").read_text(encoding="utf-8")
    version = project.split('__version__ = "')[1].split('"')[0]
    device = "cpu" if "kind" in build else "cuda"
    assert {c["image"] for pod in pods(spec) for c in pod["containers"]} == {f"hse-dist:{version}-{device}"}
    constraints = (ROOT / "deploy" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={spec['rayVersion']}" in constraints
    assert spec["authOptions"]["mode"] == "token" and spec["authOptions"]["secretName"]
    params = [group["rayStartParams"].keys() for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert set().union(*params) == {"num-cpus", "num-gpus", "dashboard-host"}
    assert "kind: Secret" not in "".join(path.read_text(encoding="utf-8") for path in yaml_files())


@pytest.mark.parametrize("build", BUILDS)
def test_pods_ask_for_what_they_need_and_say_when_they_are_ready(build):
    for pod in pods(cluster_spec(build)):
        for container in pod["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert requests["memory"] == limits["memory"]
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")
            (shm,) = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm"]
            assert quantity(shm) <= quantity(limits["memory"]) / 4  # what lies there is the container's memory
            assert container["readinessProbe"]["httpGet"]["path"] == "/api/healthz"
    worker = pods(cluster_spec(build))[1]
    (spread,) = worker["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    (group,) = cluster_spec(build)["workerGroupSpecs"]
    assert spread["labelSelector"]["matchLabels"] == {"ray.io/group": group["groupName"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_job_names_what_exists_and_fits_the_smallest_cluster(name):
    (job,) = render(KUBERAY / f"overlays/{name}/job")
    assert job["spec"]["rayClusterSpec"] == cluster_spec(f"overlays/{name}/cluster")
    python, script, file, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    for path in (script, file):
        # the Dockerfile copies jobs and configs to /app
        assert (ROOT / Path(path).relative_to("/app")).is_file()
    config = load_config(ROOT / Path(file).relative_to("/app"), overrides)
    assert config.run.folder.startswith("/data/") and config.data.folder.startswith("/data/")

    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
    limits = pods(job["spec"]["rayClusterSpec"])[1]["containers"][0]["resources"]["limits"]
    devices = quantity(limits.get("nvidia.com/gpu", "0"))
    assert (config.cluster.device == "cuda") == (devices > 0)
    # a pod holds whole workers, and the fewest pods hold all of them: hse_dist.cluster refuses less at once
    fit = int(quantity(limits["cpu"]) // config.cluster.cpus_per_worker)
    fit = min(fit, int(devices)) if devices else fit
    assert group["minReplicas"] * fit >= config.cluster.workers


def test_a_deleted_job_or_cluster_leaves_the_claim():
    for build in BUILDS:
        assert "PersistentVolumeClaim" not in json.dumps(render(KUBERAY / build)).replace("persistentVolumeClaim", "")
