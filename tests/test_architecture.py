"""The rules of the code that no linter expresses, and proof that the contracts of importlinter.toml find violations.

The permitted imports between packages, and the modules that may import each large dependency, are defined in
importlinter.toml and checked by `./run check`. The rules here are checked on the syntax trees, so that an import inside
a function counts as much as one at the top. Each rule and each contract is also tried on code that breaks it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import requires
from pathlib import Path

import grimp
import pytest
from paths import ROOT

from wardround.tasks import TASKS

ROOMS = {
    "shared": "wardround",
    "client": "wardround_client",
    "server": "wardround_server",
    "simulation": "wardround_simulation",
}
CLIENT, SERVER, SHARED, SIM = (f"{folder}/{package}" for folder, package in (
    ("client", "wardround_client"), ("server", "wardround_server"),
    ("shared", "wardround"), ("simulation", "wardround_simulation"),
))  # fmt: skip
UNPICKLES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml")
CALLS_OUT = ("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp")
# For `doctor`, who answers, and which port is free; and for `pull`, the hospital's own archive.
MAY_CALL_OUT = {
    f"{SHARED}/operations/tls_probe.py": {"socket", "ssl"},
    f"{CLIENT}/pacs/node.py": {"ssl"},
    f"{CLIENT}/pacs/storage_server.py": {"socket", "ssl"},
    f"{CLIENT}/pacs/web/client.py": {"requests", "socket"},  # the latter to cut a connection
    f"{CLIENT}/pacs/web/errors.py": {"requests"},
    f"{CLIENT}/pacs/web/services.py": {"requests"},
}
CALLS_THAT_RUN_TEXT = (
    "eval", "exec", "compile", "__import__", "os.system", "os.popen",
    "torch.load", "torch.jit.load", "torch.hub.load", "importlib.import_module",
)  # fmt: skip
# of the tasks and sources that tasks/__init__.py and sources/__init__.py list
MAY_IMPORT_BY_NAME = (
    f"{SHARED}/tasks/registry.py",
    f"{SHARED}/sources/registry.py",
    "client/wardround_client/sources/registry.py",
)
LONGEST_FILE = 350
# Longer files, up to `AT_MOST` lines, and why each is one file.
AT_MOST = 400
LONGER = {
    f"{CLIENT}/ledger/ledger.py": "one class: each charge is read, decided and written in one transaction",
    f"{CLIENT}/sources/cohort.py": "what a cohort's files hold: writing, sealing, opening and selecting agree",
    f"{CLIENT}/clipping/select.py": "one decision, engine by engine, each proved before it is used",
    f"{SERVER}/rounds/loop.py": "the round loop with what it saves and resumes",
    f"{SHARED}/wire/packets.py": "packing and checking of each message side by side",
    f"{SIM}/attack/checks.py": "the named checks of a run, one function each",
    f"{SIM}/cli/main.py": "the commands with their options and help texts",
    f"{SIM}/run/run.py": "one run from its data to its report, step by step",
}
MOST_FILES = 12


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
    """Every Python file of the four rooms; those of this repository are read once."""
    return list(our_modules()) if root == ROOT else read_modules(root)


@cache
def our_modules() -> tuple[Module, ...]:
    return tuple(read_modules(ROOT))


def read_modules(root: Path) -> list[Module]:
    paths = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    texts = [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return [Module(path=path, text=text, tree=ast.parse(text)) for path, text in texts]


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, without those that only a type checker sees."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"):
            yield from executed(node)


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports; `from a import b` gives both `a` and `a.b`."""
    for node in executed(module.tree):
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
            allowed = MAY_IMPORT_BY_NAME if name == "importlib.import_module" else ()
            if name in CALLS_THAT_RUN_TEXT and module.path not in allowed:
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


def tasks_by_name(root: Path) -> list[str]:
    """Code that asks which task a study is for. It belongs behind `tasks/registry.py`."""
    return [
        f"{module.path}:{node.lineno} compares with a task's name"
        for module in modules(root)
        if not module.path.startswith(f"{SHARED}/tasks/")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if dotted(side).endswith(".task") or (isinstance(side, ast.Constant) and side.value in TASKS)
    ]


def long_files(root: Path) -> list[str]:
    """A file above 350 lines needs a reason here; a reason that no file needs any more is removed."""
    lengths = {module.path: len(module.text.splitlines()) for module in modules(root)}
    long = {path for path, lines in lengths.items() if lines > LONGEST_FILE}
    over = [
        f"{path} has {lengths[path]} lines" for path in sorted(long) if path not in LONGER or lengths[path] > AT_MOST
    ]
    return over + [f"{path} needs no reason" for path in sorted(set(LONGER) & set(lengths) - long)]


def full_rooms(root: Path) -> list[str]:
    """A room with more files than one takes in at a glance holds two ideas."""
    count = Counter(
        module.path.rpartition("/")[0] for module in modules(root) if not module.path.endswith("/__init__.py")
    )
    return sorted(f"{room} has {files} files" for room, files in count.items() if files > MOST_FILES)


RULES: dict[str, Callable[[Path], list[str]]] = {
    "nothing is unpickled, evaluated or handed to a shell": dangerous_code,
    "a site draws from secret randomness only": guessable_randomness,
    "no file is longer than 350 lines without a reason": long_files,
    "no room has more than 12 files": full_rooms,
    "no code outside tasks/ asks which task a study is for": tasks_by_name,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule: str) -> None:
    assert modules(ROOT), "no source was found"
    assert RULES[rule](ROOT) == []


@pytest.mark.parametrize(
    "rule, path, text",
    [
        (dangerous_code, f"{SERVER}/x.py", "import pickle"),
        (dangerous_code, f"{SHARED}/x.py", "import torch\ntorch.load('f')"),
        (dangerous_code, f"{SHARED}/x.py", "from torch import load"),
        (dangerous_code, f"{CLIENT}/x.py", "eval('1')"),
        (dangerous_code, f"{CLIENT}/x.py", "exec('1')"),
        (dangerous_code, f"{CLIENT}/x.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
        (dangerous_code, f"{CLIENT}/x.py", "import numpy as np\nnp.load('f', allow_pickle=True)"),
        (dangerous_code, f"{SIM}/x.py", "from urllib.request import urlopen"),
        (dangerous_code, f"{SERVER}/x.py", "def f():\n    import socket"),
        (dangerous_code, f"{SHARED}/operations/tls_probe.py", "import ssl, http.client"),
        (dangerous_code, f"{SHARED}/x.py", "assert 1"),
        (dangerous_code, f"{SHARED}/x.py", "import importlib\nimportlib.import_module(name)"),
        (guessable_randomness, f"{CLIENT}/privacy/x.py", "import torch\ntorch.randn(3)"),
        (guessable_randomness, f"{CLIENT}/privacy/x.py", "import numpy as np\nnp.random.default_rng(1).normal()"),
        (guessable_randomness, f"{CLIENT}/training/x.py", "import random"),
        (guessable_randomness, f"{CLIENT}/training/x.py", "noise = tensor.normal_()"),
        (tasks_by_name, f"{SIM}/x.py", "def f(study):\n    return study.study.task == 'synthesis'"),
        (tasks_by_name, f"{SERVER}/x.py", "def f(task):\n    return task in ('a', 'b') or task != 'synthesis'"),
        (full_rooms, f"{SIM}/x.py", None),
        (long_files, f"{SIM}/x.py", "\n" * 401),
    ],
)  # fmt: skip
def test_each_rule_finds_what_breaks_it(tmp_path: Path, rule, path: str, text: str) -> None:
    for room, package in ROOMS.items():
        (tmp_path / room / package).mkdir(parents=True)
    assert rule(tmp_path) == []
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        for number in range(MOST_FILES + 1):
            planted.with_name(f"x{number}.py").write_text("")
    else:
        planted.write_text(text + "\n")
    assert rule(tmp_path)


# What breaks each contract of importlinter.toml: (the contract's first words, file, its text).
BREAKS = [
    ("client and server never meet", f"{CLIENT}/sources/x.py", "def f():\n    from wardround_server import rounds"),
    ("client and server never meet", f"{SERVER}/x1.py", "import wardround_client.sources.cohort"),
    ("client and server never meet", f"{SERVER}/x2.py", "from wardround_simulation.run.run import run"),
    ("client and server never meet", f"{SHARED}/x1.py", "import wardround_client.site.site"),
    ("client and server never meet", f"{SHARED}/networks/x.py", "from wardround_simulation import run"),
    ("the server reaches nothing that reads", f"{SERVER}/x3.py", "import torch"),
    ("the server reaches nothing that reads", f"{SERVER}/x4.py", "def f():\n    from wardround.networks import build"),
    ("flwr is", f"{SERVER}/rounds/x.py", "from flwr.app import Message"),
    ("ray is", f"{SIM}/run/x1.py", "import ray"),
    ("opacus is", f"{CLIENT}/training/x1.py", "from opacus.accountants import RDPAccountant"),
    ("pydicom is", f"{CLIENT}/sources/x1.py", "def f():\n    import pydicom.uid"),
    ("pyarrow is", f"{CLIENT}/sources/x2.py", "def f():\n    import pyarrow.csv"),
    ("orjson is", f"{CLIENT}/sources/x3.py", "import orjson"),
    ("PIL is", f"{SHARED}/x2.py", "from PIL import Image"),
    ("sqlite3 is", f"{CLIENT}/x.py", "import sqlite3"),
    ("cryptography is", f"{SIM}/x.py", "from cryptography import x509"),
    ("matplotlib is", f"{SIM}/run/x2.py", "import matplotlib.pyplot"),
    ("typer is", f"{CLIENT}/training/x2.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import typer"),
    ("highdicom is", f"{CLIENT}/rounds/x3.py", "from highdicom import sr"),
    ("onnx and onnxruntime are", f"{CLIENT}/predict/x.py", "import onnxruntime"),
    ("pynetdicom, dicomweb_client and", f"{CLIENT}/predict/x2.py", "from pynetdicom import AE"),
    ("grpc is", f"{CLIENT}/rounds/x.py", "import grpc"),
    ("grpc_health is", f"{SERVER}/operations/x.py", "from grpc_health.v1 import health"),
    ("mlflow is", f"{SERVER}/rounds/x2.py", "def f():\n    from mlflow.tracking import MlflowClient"),
    ("the web framework is", f"{SERVER}/operations/x2.py", "from fastapi import FastAPI"),
    ("the web framework is", f"{CLIENT}/flower/x2.py", "def f():\n    import uvicorn"),
    ("argon2 is", f"{SHARED}/web/x.py", "from argon2 import PasswordHasher"),
    ("prometheus_client is", f"{SERVER}/runs/x4.py", "import prometheus_client"),
    ("jinja2 is", f"{CLIENT}/console/x.py", "from jinja2 import Environment"),
]


def contracts() -> dict[str, dict]:
    """The contracts of importlinter.toml by name."""
    document = tomllib.loads((ROOT / "importlinter.toml").read_text(encoding="utf-8"))
    return {contract["name"]: contract for contract in document["tool"]["importlinter"]["contracts"]}


@pytest.fixture(scope="module")
def broken_contracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What lint-imports reports, by contract, of the product with every file of BREAKS planted in it."""
    root = tmp_path_factory.mktemp("broken")
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    for _, path, text in BREAKS:
        assert not (root / path).exists()
        (root / path).write_text(text + "\n")
    done = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/lint-imports", "--no-cache", "--no-logo", str(ROOT / "importlinter.toml")],
        cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOMS), "COLUMNS": "200"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    _, *parts = re.split(r"^(.*)\n-+\n", done.stdout.partition("Broken contracts")[2], flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("contract, path, text", BREAKS)
def test_each_import_contract_finds_what_breaks_it(
    broken_contracts: dict[str, str], contract: str, path: str, text: str
) -> None:
    (report,) = [report for name, report in broken_contracts.items() if name.startswith(contract)]
    planted = path.split("/", 1)[1].removesuffix(".py").replace("/", ".")
    assert re.search(rf"\b{planted} -> ", report)


def test_every_import_contract_is_broken_once() -> None:
    names = list(contracts())
    assert [name for name in names if not any(name.startswith(contract) for contract, _, _ in BREAKS)] == []


def test_the_import_contracts_see_every_file() -> None:
    graph = grimp.build_graph(*ROOMS.values(), cache_dir=None)
    assert {module.name for module in modules(ROOT)} - graph.modules == set()


def test_no_test_file_imports_another() -> None:
    """What several test files need is in tests/builders/."""
    named = re.compile(r"^\s*(?:from|import)\s+(?:tests\.|(?:[\w.]+\.)?test_\w+)", re.MULTILINE)
    found = [path.name for path in (ROOT / "tests").rglob("*.py") if named.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_importing_the_server_loads_nothing_that_can_read_an_image() -> None:
    (forbidden,) = [
        one["forbidden_modules"] for name, one in contracts().items() if name.startswith("the server reaches")
    ]
    names = ", ".join(module.name for module in modules(ROOT) if module.room == "server")
    code = f"import sys, {names}; print([n for n in {forbidden!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["wardround_client", "wardround_server", "wardround_simulation"])
def test_a_program_begins_without_a_heavy_library(package: str) -> None:
    """`--help`, mistakes and what only reads a folder answer at once; a command imports what it needs."""
    heavy = ("torch", "flwr", "ray", "scipy", "matplotlib", "opacus", "pydicom", "grpc")
    code = f"import sys, {package}.cli.main; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_imported_is_declared() -> None:
    """No dependency comes in by the back door: what another package happens to bring may go with its next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[=<> ]", line)[0].lower() for line in project["dependencies"]}
    declared |= {"mlflow"} if project["optional-dependencies"]["mlflow"] == ["mlflow-skinny"] else set()
    declared |= {"grpc"} if "grpcio" in declared else set()
    declared |= {name.replace("-", "_") for name in declared}
    declared |= {"grpc_health"} if "grpcio-health-checking" in declared else set()
    declared |= {"pil"} if "pillow" in declared else set()
    declared |= {"argon2"} if "argon2-cffi" in declared else set()
    declared |= {"prometheus_client"} if "prometheus-client" in declared else set()
    declared |= {"sklearn"} if "scikit-learn" in declared else set()
    for name, owner in (
        ("ray", "flwr"),
        ("markupsafe", "jinja2"),
        ("starlette", "fastapi"),
        ("urllib3", "requests"),
    ):  # parts of what their owners promise
        declared |= {name} if any(line.lower().startswith(name) for line in requires(owner) or []) else set()
    ours = {*ROOMS.values(), "", "__future__"}
    found = {
        (top(name), module.path)
        for module in modules(ROOT)
        for _, name in imported(module)
        if top(name) not in sys.stdlib_module_names and top(name) not in ours
    }
    assert sorted(place for place in found if place[0].lower() not in declared) == []
