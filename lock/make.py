"""Write the lock files: the SHA-256 of every file that may be installed. Run after each change of a version.

    .venv/bin/python lock/make.py

Versions come from constraints.txt and pyproject.toml, hashes from PyPI through uv, which Flower brings with it. All
wheels of a version are listed, for every platform. The lock is split by who needs what:

    python.txt     what the programs need, except PyTorch
    torch.txt      PyTorch as on PyPI: with CUDA on Linux, without on macOS
    cuda.txt       what the CUDA build of PyTorch needs besides, on Linux
    torch-cpu.txt  PyTorch without CUDA for Linux: edited by hand, since PyPI does not have it
    build.txt      what builds this package
    test.txt       what the tests need besides
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

LOCK = Path(__file__).resolve().parent
ROOT = LOCK.parent
CUDA = re.compile(r"(nvidia|cuda)-|triton$")  # the names of such packages
HEADER = "# Written by lock/make.py from constraints.txt and pyproject.toml. Do not edit by hand.\n"


def compiled(*arguments: str, stdin: str = "") -> dict[str, str]:
    """The locked entries by package name, each with its marker and its hashes."""
    command = [
        *(f"{sysconfig.get_path('scripts')}/uv", "pip", "compile", *arguments, "--constraints", "constraints.txt"),
        *("--universal", "--python-version", "3.11", "--only-binary", ":all:", "--generate-hashes"),
        *("--no-config", "--no-header", "--no-annotate", "--quiet"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "UV_OFFLINE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, input=stdin, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit("lock/make.py: uv found no set of versions, or did not reach PyPI; its lines above say why")
    return {re.split(r"[=\s]", entry)[0]: entry for entry in re.split(r"\n(?=\S)", done.stdout.strip())}


def main() -> None:
    product = compiled("pyproject.toml")
    tested = compiled("pyproject.toml", "--extra", "test")
    tracked = compiled("pyproject.toml", "--extra", "mlflow")
    (build,) = re.findall(r'^requires = \["(hatchling==[^"]+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    version = product["torch"].split()[0]
    if f"\n{version}+cpu " not in (LOCK / "torch-cpu.txt").read_text():
        sys.exit(f"lock/make.py: torch-cpu.txt does not hold {version}+cpu; bring it up to date by hand")
    cuda = [name for name in product if CUDA.match(name)]
    files = {
        "python.txt": [entry for name, entry in product.items() if name not in {*cuda, "torch"}],
        "torch.txt": [product["torch"]],
        "cuda.txt": [product[name] for name in cuda],
        "build.txt": list(compiled("-", stdin=build).values()),
        "mlflow.txt": [entry for name, entry in tracked.items() if name not in product],
        "test.txt": [entry for name, entry in tested.items() if name not in product],
    }
    for name, entries in files.items():
        (LOCK / name).write_text(HEADER + "\n".join(entries) + "\n")


if __name__ == "__main__":
    main()
