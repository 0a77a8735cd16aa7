"""The files of deploy/ fit the programs: hardened units that systemd accepts, and examples that the schemas accept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pydantic
import pytest
import typer.main
from paths import ROOT

from wardround_client.cli.main import app
from wardround_client.site.config import SiteConfig, load_site_config
from wardround_server.cli.main import app as server_app
from wardround_server.operations.config import ServerConfig, config_text, load_server_config

DEPLOY = ROOT / "deploy"
UNITS = ("server", "site")
CONSOLES = ("server-console", "site-console")
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
EXPOSURE = 20  # of 100, in tenths of what `systemd-analyze security` prints; an unhardened service has 96
PROGRAMS = {"wardround-site": typer.main.get_command(app), "wardround-server": typer.main.get_command(server_app)}


def unit(name: str) -> str:
    return (DEPLOY / "systemd" / f"wardround-{name}.service").read_text(encoding="utf-8")


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def installed(name: str, folder: Path) -> Path:
    """The unit with the program of this checkout in it, which systemd looks for."""
    program = f"wardround-{name.removesuffix('-console')}"
    path = folder / f"wardround-{name}.service"
    path.write_text(
        unit(name).replace(f"/opt/wardround/.venv/bin/{program}", str(Path(sys.executable).parent / program))
    )
    return path


def accepted(path: Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", [*UNITS, *CONSOLES])
def test_systemd_accepts_the_unit_without_a_word_and_finds_it_hardened(name: str, tmp_path: Path) -> None:
    path = installed(name, tmp_path)
    done = accepted(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    path.write_text(path.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in accepted(path).stderr, "a key that does not exist would not be noticed"


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardened_and_starts_a_command_that_exists(name: str) -> None:
    found = settings(unit(name))
    wanted = {
        "User": f"wardround-{name}", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "CapabilityBoundingSet": "",
        "Restart": "always", "RestartPreventExitStatus": "2", "StartLimitIntervalSec": "0", "KillMode": "mixed",
        "UMask": "0077", "LimitCORE": "0", "StateDirectoryMode": "0700", "ReadWritePaths": f"/var/lib/wardround-{name}",
    }  # fmt: skip
    assert {key: found.get(key) for key in wanted} == {key: [value] for key, value in wanted.items()}
    program, *words = found["ExecStart"][0].split()
    command = PROGRAMS[Path(program).name].commands[words[0]]
    command.make_context(words[0], words[1:])
    quiet = re.search(r"^export (FLWR\S+ .*)$", (ROOT / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert quiet is not None
    environment = " ".join(found["Environment"])
    assert [one for one in quiet[1].split() if one not in environment] == []


@pytest.mark.parametrize("name", CONSOLES)
def test_the_unit_of_a_console_is_hardened_as_its_daemon_and_answers_this_machine_only(name: str) -> None:
    found, daemon = settings(unit(name)), settings(unit(name.removesuffix("-console")))
    assert found["IPAddressDeny"] == ["any"] and found["IPAddressAllow"] == ["localhost"]
    own = {
        "Description",
        "After",
        "Wants",
        "StartLimitIntervalSec",
        "ExecStart",
        "KillMode",
        "TimeoutStopSec",
        "RemoveIPC",
    }
    assert {key: value for key, value in daemon.items() if key not in own} == {
        key: value for key, value in found.items() if key not in own | {"IPAddressDeny", "IPAddressAllow"}
    }
    program, group, *words = found["ExecStart"][0].split()
    PROGRAMS[Path(program).name].commands[group].make_context(group, words)


def keys_of(model: type[pydantic.BaseModel]) -> set[str]:
    """Every key of a config, as it stands in a file: `epsilon_cap` of [privacy] and so on."""
    keys = set()
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)]
        keys |= set().union(*(keys_of(part) for part in parts)) if parts else {name}
    return keys


@pytest.mark.parametrize(("name", "model"), [("site.toml", SiteConfig), ("server.toml", ServerConfig)])
def test_the_example_has_every_key_of_the_schema_with_a_word_and_nothing_else(name: str, model) -> None:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    shown = {match[1]: at for at, line in enumerate(lines) if (match := re.match(r"(?:# )?([a-z_0-9]+) = ", line))}
    assert set(shown) == keys_of(model)
    said = [lines[at - 1] for at in shown.values()]
    assert [line for line in said if not line.startswith("#") and line.split(" ")[0] not in shown] == []


def test_the_examples_are_read_by_the_programs(tmp_path: Path) -> None:
    config = load_site_config(DEPLOY / "site.toml")
    assert config.privacy.allow_no_privacy is False and config.release.evaluation == "off"
    assert load_server_config(DEPLOY).server.fleet_port == 9092
    text = (DEPLOY / "server.toml").read_text(encoding="utf-8")
    assert text == config_text("lung-north", ("federation.example.org",), 9092), "as `init` writes it"
    assert tomllib.loads(text)["server"]["control_port"] == 9093


# Containers


def services() -> dict[str, dict]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]


def test_containers_run_without_root_without_capabilities_and_on_a_read_only_root() -> None:
    for service in services().values():
        assert service["user"] == "10001:10001" and service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert services()["server"]["ports"] == ["9092:9092"] and "ports" not in services()["site"]
    assert all(volume.endswith(":ro") for volume in services()["site"]["volumes"] if "IMAGES" in volume)


def test_the_dockerfile_copies_what_exists_starts_what_exists_and_ends_as_no_root() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {name for names in copied for name in names} <= {line[1:] for line in ignored if line.startswith("!")}
    assert re.findall(r"^USER (.*)$", text, flags=re.MULTILINE) == ["10001"]
    assert text.index("USER 10001") < text.index("AS server") < text.index("AS site")
    for entry, words in re.findall(r'ENTRYPOINT \["([\w-]+)"\]\nCMD \[(.*)\]', text):
        name, *rest = re.findall(r'"([^"]+)"', words)
        PROGRAMS[entry].commands[name].make_context(name, rest)
    for words in re.findall(r"HEALTHCHECK .* CMD \[(.*)\]", text):
        program, name, *rest = re.findall(r'"([^"]+)"', words)
        PROGRAMS[program].commands[name].make_context(name, rest)


def test_the_base_image_is_named_by_its_digest_or_nothing_is_built() -> None:
    """No default and no tag: the Dockerfile refuses what is no digest, compose what is not set."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG PYTHON_IMAGE.*$", text, flags=re.MULTILINE) == ["ARG PYTHON_IMAGE"] * 2
    froms = re.findall(r"^FROM (\S+) AS (\w+)$", text, flags=re.MULTILINE)
    assert froms == [("${PYTHON_IMAGE}", "install"), ("${PYTHON_IMAGE}", "base"), ("base", "server"), ("base", "site")]
    (check,) = re.findall(r"^RUN (case .*esac)$", text, flags=re.MULTILINE)
    for image, accepted_by_it in (("python@sha256:" + "0" * 64, True), ("python:3.11-slim", False), ("", False)):
        done = subprocess.run(["sh", "-c", check], env={"PYTHON_IMAGE": image}, capture_output=True, text=True)
        assert (done.returncode == 0) is accepted_by_it and len(done.stderr.splitlines()) == (not accepted_by_it)
    for service in services().values():
        assert service["build"]["args"]["PYTHON_IMAGE"].startswith("${PYTHON_IMAGE:?")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: its package is for x86-64 only")
def test_hadolint_has_nothing_to_say() -> None:
    command = [str(HADOLINT), str(DEPLOY / "docker" / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


# What is installed


INSTALLED = ("python", "torch", "torch-cpu", "cuda", "build", "test")
LOCKS = (*INSTALLED, "mlflow")  # mlflow: for `[tracking]` of server.toml, by hand


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """The entries of a lock file: package -> its version, its hashes. Nothing else may stand in it."""
    found = {}
    text = re.sub(r"^#.*\n", "", (ROOT / "lock" / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for entry in text.replace("\\\n", " ").splitlines():
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ; [^\\]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", entry)
        assert match, f"lock/{name}.txt: {entry[:80]}"
        found[match[1]] = (match[2], match[3].split())
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_agrees_with_the_versions_and_has_a_hash_for_each_file() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wanted = {
        normal(line.split("==")[0]): line.split("==")[1]
        for line in text.splitlines()
        if "==" in line[:60] and line[0] != "#"
    }
    entries = [(name, *entry) for lock in LOCKS for name, entry in locked(lock).items()]
    assert {name for name, _, _ in entries} == set(wanted)
    assert [one for one in entries if one[1].removesuffix("+cpu") != wanted[one[0]]] == []
    assert all(len(set(hashes)) == len(hashes) for _, _, hashes in entries)
    product = {**locked("python"), **locked("torch")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {normal(re.match(r"[\w-]+", one)[0]) for one in project["project"]["dependencies"]}
    assert needed <= set(product), "call lock/make.py"
    tests = {normal(re.match(r"[\w-]+", one)[0]) for one in project["project"]["optional-dependencies"]["test"]}
    assert tests <= set(locked("test"))
    assert project["build-system"]["requires"] == [f"hatchling=={locked('build')['hatchling'][0]}"]


def test_what_is_installed_comes_from_the_lock_alone() -> None:
    """Each call of pip in `run` and in the Dockerfile wants hashes, builds nothing and follows no dependency; the one
    that installs this package builds it with the locked tools.
    """
    run = (ROOT / "run").read_text(encoding="utf-8")
    assert re.findall(r"-m pip (?!check)(.*)", run) == [
        'install --quiet --disable-pip-version-check --no-deps "$@" >&2'
    ]
    calls = re.findall(r"(?:^|&& )\s*(pip --.*?)(?: &&.*)?$", run, flags=re.MULTILINE)
    assert calls == [
        'pip --require-hashes --only-binary :all: -r "$home/lock/$1.txt"',
        'pip --no-build-isolation -e "$home"',
    ]
    assert set(re.findall(r"from_lock ([\w-]+)", run)) == set(INSTALLED)
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    assert re.search(r"^ENV .*PIP_NO_DEPS=1 PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all:$", text, flags=re.MULTILINE)
    installs = re.findall(r"pip (?:install|wheel) ([^;&\n]*)", text)
    assert sorted(set(re.findall(r"-r lock/([\w-]+)\.txt", text))) == ["build", "cuda", "python", "torch", "torch-cpu"]
    assert [one.strip() for one in installs if "-r lock/" not in one] == [
        "--no-build-isolation -w /tmp/wheel .", "/tmp/wheel/wardround-*.whl"
    ]  # fmt: skip
    assert "extra-index-url" not in run + text.lower().replace("_", "-")


def test_pip_refuses_a_file_whose_hash_is_not_in_the_lock(tmp_path: Path) -> None:
    """`run` itself, with a lock of one small package that lies on this disk."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    (tmp_path / "lock").mkdir()
    text = (ROOT / "run").read_text(encoding="utf-8")
    functions = "".join(re.findall(r"^(?:pip|from_lock)\(\) \{\n.*?^\}\n", text, flags=re.MULTILINE | re.DOTALL))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    script = f"set -eu\nhome={tmp_path} venv={tmp_path / 'venv'}\n{functions}\nfrom_lock tiny\n"
    environment = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    for altered in (True, False):
        sha256 = hashlib.sha256(wheel.read_bytes() + b"x" * altered).hexdigest()
        (tmp_path / "lock" / "tiny.txt").write_text(f"tiny==1.0 --hash=sha256:{sha256}\n")
        done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode != 0) is altered, done.stderr
        assert ("DO NOT MATCH THE HASHES" in done.stderr) is altered
