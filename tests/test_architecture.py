"""The walls of the house: who may import whom, the doors of each dependency, and what no product code may do.

Everything is read from the syntax trees, so that an import inside a function counts as much as one at the top. Each
rule is also tried on a small planted tree that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "shared": "wardround",
    "client": "wardround_client",
    "server": "wardround_server",
    "simulation": "wardround_simulation",
}
MAY_IMPORT = {
    "shared": {"shared"},
    "client": {"client", "shared"},
    "server": {"server", "shared"},
    "simulation": {"simulation", "client", "server", "shared"},
}
CLIENT, SERVER, SHARED, SIM = (f"{folder}/{package}" for folder, package in (
    ("client", "wardround_client"), ("server", "wardround_server"),
    ("shared", "wardround"), ("simulation", "wardround_simulation"),
))  # fmt: skip
DOORS = {
    "flwr": {
        f"{SERVER}/app.py", f"{SERVER}/federation_app.py", f"{SERVER}/fleet.py", f"{SIM}/engine.py",
        f"{CLIENT}/app.py", f"{CLIENT}/site_app.py", f"{CLIENT}/gate.py", f"{CLIENT}/executor.py", f"{CLIENT}/warm.py",
        f"{CLIENT}/supernode.py",
        f"{CLIENT}/link.py", f"{CLIENT}/intake.py", f"{SHARED}/inflation.py",
    },
    "ray": {f"{SIM}/engine.py", f"{SIM}/ray_cluster.py"},
    "opacus": {f"{SHARED}/accounting.py", f"{CLIENT}/privacy/noise.py"},
    "pydicom": {
        f"{CLIENT}/data/dicom.py", f"{CLIENT}/data/dicom_pixels.py", f"{CLIENT}/data/derived.py",
        f"{SIM}/phantom_dicom.py", f"{SIM}/synthetic_files.py",
    },
    "PIL": {
        f"{CLIENT}/data/derived.py", f"{CLIENT}/data/pictures.py", f"{CLIENT}/data/regions.py",
        f"{SIM}/plots.py", f"{SIM}/synthetic_files.py",
    },
    "sqlite3": {f"{CLIENT}/privacy/ledger_file.py", f"{SERVER}/registry.py", f"{SERVER}/backup.py"},
    "cryptography": {
        f"{CLIENT}/privacy/secret.py", f"{CLIENT}/enrolment.py", f"{CLIENT}/doctor.py", f"{CLIENT}/site_checks.py",
        f"{SERVER}/enrolment.py",
    },
    "matplotlib": {f"{SIM}/plots.py"},
    "typer": {
        *(f"{SHARED}/{name}.py" for name in ("command_line", "audit_commands", "health_commands")),
        *(
            f"{CLIENT}/cli_{name}.py"
            for name in ("data", "daemon", "enhance", "enrolment", "ledger", "logs", "status", "studies")
        ),
        *(f"{SERVER}/cli_{name}.py" for name in ("folder", "logs", "models", "runs", "sites")),
        f"{SIM}/cli.py", f"{SIM}/cli_federation.py", f"{SIM}/cli_models.py",
    },
    "grpc": {
        f"{SIM}/preflight.py",  # whether a Ray cluster answers where the user says there is one
        f"{SHARED}/health.py",
        f"{CLIENT}/link.py",  # what Flower's own connection lacks: it does not notice that it is dead
        f"{SERVER}/fleet.py", f"{CLIENT}/intake.py",  # how a call is refused
    },
    "grpc_health": {f"{SHARED}/health.py"},
}  # fmt: skip
READS_IMAGES = ("torch", "torchvision", "PIL", "pydicom", "gdcm", "openjpeg", "pylibjpeg", "matplotlib", "cv2")
UNPICKLES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml")
CALLS_OUT = ("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp")
MAY_CALL_OUT = {f"{SHARED}/handshake.py": {"socket", "ssl"}}  # for `doctor`: who answers, and which port is free
LONGEST_FILE = 400


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file of a room: its path under the root and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def name(self) -> str:
        return self.path.split("/", 1)[1].removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def modules(root: Path) -> list[Module]:
    """Every Python file of the four rooms."""
    paths = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    texts = [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return [Module(path=path, text=text, tree=ast.parse(text)) for path, text in texts]


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports; `from a import b` gives both `a` and `a.b`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def top(name: str) -> str:
    return name.split(".", 1)[0]


def dotted(node: ast.AST) -> str:
    """`torch.load` of the expression torch.load; of others what can be read of them."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# The rules: each takes the root of a tree and returns one line for each place that breaks it.


def crossed_walls(root: Path) -> list[str]:
    room_of = {package: room for room, package in ROOMS.items()}
    faults = []
    for module in modules(root):
        for line, name in imported(module):
            room = room_of.get(top(name))
            if room is not None and room not in MAY_IMPORT[module.room]:
                faults.append(f"{module.path}:{line} imports {name}")
    return sorted(set(faults))


def closed_doors(root: Path) -> list[str]:
    faults = []
    for module in modules(root):
        for line, name in imported(module):
            if top(name) in DOORS and module.path not in DOORS[top(name)]:
                faults.append(f"{module.path}:{line} imports {name}")
    return sorted(set(faults))


def server_that_reads_images(root: Path) -> list[str]:
    """Follows the server's imports through our own modules, also those inside functions."""
    by_name = {module.name: module for module in modules(root)}
    reached = {name: (name,) for name, module in by_name.items() if module.room == "server"}
    queue, faults = list(reached), []
    while queue:
        current = queue.pop()
        for _, name in imported(by_name[current]):
            if top(name) in READS_IMAGES:
                faults.append(f"{' -> '.join(reached[current])} imports {name}")
            if name in by_name and name not in reached:
                reached[name] = (*reached[current], name)
                queue.append(name)
    return sorted(set(faults))


def dangerous_code(root: Path) -> list[str]:
    """Deserialising and running what a peer or a file says; shells; talking to the network past Flower and Ray."""
    faults = []
    for module in modules(root):
        refused = {*UNPICKLES, *CALLS_OUT} - MAY_CALL_OUT.get(module.path, set())
        found = [(line, name) for line, name in imported(module) if top(name) in refused]
        found += [(line, name) for line, name in imported(module) if name in ("torch.load", "torch.hub", "os.system")]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Assert):
                found.append((node.lineno, "assert, which python -O removes"))
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen") or name in (
                "torch.load", "torch.jit.load", "torch.hub.load", "importlib.import_module"
            ):  # fmt: skip
                found.append((node.lineno, name))
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    found.append((node.lineno, f"{name}({keyword.arg}=...)"))
        faults += [f"{module.path}:{line} {what}" for line, what in found]
    return sorted(set(faults))


def guessable_randomness(root: Path) -> list[str]:
    """A site draws from `privacy.secret` only. Allowed: a generator with a written seed, for synthetic input."""
    faults = []
    for module in modules(root):
        if module.room != "client":
            continue
        found = [(line, name) for line, name in imported(module) if top(name) == "random" or name == "numpy.random"]
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            seeded = any(keyword.arg == "generator" for keyword in node.keywords)
            if name.startswith(("np.random.", "numpy.random.", "random.")) or name == "torch.manual_seed":
                found.append((node.lineno, name))
            if re.fullmatch(r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial)(_like)?", name):
                found += [] if seeded else [(node.lineno, name)]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("normal_", "uniform_", "bernoulli_"):
                found.append((node.lineno, node.func.attr))
        faults += [f"{module.path}:{line} {what}" for line, what in found]
    return sorted(set(faults))


def long_files(root: Path) -> list[str]:
    return [
        f"{module.path} has {lines} lines"
        for module in modules(root)
        if (lines := len(module.text.splitlines())) > LONGEST_FILE
    ]


RULES: dict[str, Callable[[Path], list[str]]] = {
    "client and server never meet, and shared knows neither": crossed_walls,
    "each dependency has its doors": closed_doors,
    "the server cannot read an image": server_that_reads_images,
    "nothing is unpickled, evaluated or handed to a shell": dangerous_code,
    "a site draws from secret randomness only": guessable_randomness,
    "no file is longer than 400 lines": long_files,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule: str) -> None:
    assert modules(ROOT), "no source was found"
    assert RULES[rule](ROOT) == []


@pytest.mark.parametrize(
    "rule, path, text",
    [
        (crossed_walls, f"{CLIENT}/data/x.py", "def f():\n    from wardround_server import rounds"),
        (crossed_walls, f"{SERVER}/x.py", "import wardround_client.data.cohort"),
        (crossed_walls, f"{SERVER}/x.py", "from wardround_simulation.run import run"),
        (crossed_walls, f"{SHARED}/x.py", "import wardround_client"),
        (crossed_walls, f"{SHARED}/models/x.py", "from wardround_simulation import phantom_crops"),
        (closed_doors, f"{SERVER}/rounds.py", "from flwr.app import Message"),
        (closed_doors, f"{SIM}/run.py", "import ray"),
        (closed_doors, f"{CLIENT}/round.py", "import grpc"),
        (closed_doors, f"{CLIENT}/tasks/x.py", "from opacus.accountants import RDPAccountant"),
        (closed_doors, f"{CLIENT}/data/ingest.py", "def f():\n    import pydicom.uid"),
        (server_that_reads_images, f"{SERVER}/x.py", "import torch"),
        (server_that_reads_images, f"{SERVER}/x.py", "def f():\n    from wardround.models import registry"),
        (dangerous_code, f"{SERVER}/x.py", "import pickle"),
        (dangerous_code, f"{SHARED}/x.py", "import torch\ntorch.load('f')"),
        (dangerous_code, f"{SHARED}/x.py", "from torch import load"),
        (dangerous_code, f"{CLIENT}/x.py", "eval('1')"),
        (dangerous_code, f"{CLIENT}/x.py", "exec('1')"),
        (dangerous_code, f"{CLIENT}/x.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
        (dangerous_code, f"{CLIENT}/x.py", "import numpy as np\nnp.load('f', allow_pickle=True)"),
        (dangerous_code, f"{SIM}/x.py", "from urllib.request import urlopen"),
        (dangerous_code, f"{SERVER}/x.py", "def f():\n    import socket"),
        (dangerous_code, f"{SHARED}/handshake.py", "import ssl, http.client"),
        (dangerous_code, f"{SHARED}/x.py", "assert 1"),
        (guessable_randomness, f"{CLIENT}/privacy/x.py", "import torch\ntorch.randn(3)"),
        (guessable_randomness, f"{CLIENT}/privacy/x.py", "import numpy as np\nnp.random.default_rng(1).normal()"),
        (guessable_randomness, f"{CLIENT}/tasks/x.py", "import random"),
        (guessable_randomness, f"{CLIENT}/tasks/x.py", "noise = tensor.normal_()"),
        (long_files, f"{SIM}/x.py", "\n" * 401),
    ],
)  # fmt: skip
def test_each_rule_finds_what_breaks_it(tmp_path: Path, rule, path: str, text: str) -> None:
    for room, package in ROOMS.items():
        (tmp_path / room / package).mkdir(parents=True)
    (tmp_path / SHARED / "models").mkdir()
    (tmp_path / SHARED / "models" / "registry.py").write_text("import torch\n")
    assert rule(tmp_path) == []
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text + "\n")
    assert rule(tmp_path)


def test_every_door_is_in_use() -> None:
    used = {(top(name), module.path) for module in modules(ROOT) for _, name in imported(module)}
    assert [(name, path) for name, paths in DOORS.items() for path in paths if (name, path) not in used] == []


def test_importing_the_server_loads_nothing_that_can_read_an_image() -> None:
    names = ", ".join(module.name for module in modules(ROOT) if module.room == "server")
    code = f"import sys, {names}; print([n for n in {READS_IMAGES!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_imported_is_declared() -> None:
    """No dependency comes in by the back door: what another package happens to bring may go with its next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[=<> ]", line)[0].lower() for line in project["dependencies"]}
    declared |= {"grpc"} if "grpcio" in declared else set()
    declared |= {"grpc_health"} if "grpcio-health-checking" in declared else set()
    declared |= {"pil"} if "pillow" in declared else set()
    for name, owner in (("ray", "flwr"), ("markupsafe", "jinja2")):  # parts of what their owners promise
        declared |= {name} if any(line.lower().startswith(name) for line in requires(owner) or []) else set()
    ours = {*ROOMS.values(), "", "__future__"}
    found = {
        (top(name), module.path)
        for module in modules(ROOT)
        for _, name in imported(module)
        if top(name) not in sys.stdlib_module_names and top(name) not in ours
    }
    assert sorted(place for place in found if place[0].lower() not in declared) == []
