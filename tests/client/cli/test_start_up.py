"""What a command that does not train loads: none of the large libraries, so that it replies at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wardround.study.load import parse_study
from wardround_client.studies.store import store_approved

HEAVY = ("torch", "flwr", "ray", "opacus", "pandas", "matplotlib", "pydicom", "torchvision")
HELP_OF_ALL = """
import sys
import typer
from typer.testing import CliRunner
from {package}.cli.main import app

def walked(command, words):
    yield words
    for name, one in getattr(command, "commands", {{}}).items():
        yield from walked(one, [*words, name])

every = list(walked(typer.main.get_command(app), []))
failed = [words for words in every if CliRunner().invoke(app, [*words, "--help"]).exit_code]
print(len(every), failed, [name for name in {heavy} if name in sys.modules])
"""
ONE_COMMAND = """
import atexit, sys
atexit.register(lambda: print([name for name in {heavy} if name in sys.modules], file=sys.stderr))
sys.argv = ["wardround-site", *{words}]
from wardround_client.cli.main import main
main()
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with one approved study."""
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    study = {
        "study": {"name": "asked", "rounds": 5},
        "data": {"labels": ["benign", "malignant"]},
        "privacy": {"epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 10},
        "aggregation": {"nominal_sites": 1},
    }
    store_approved(tmp_path, parse_study(study))
    return tmp_path


@pytest.mark.parametrize("package", ["wardround_client", "wardround_server", "wardround_simulation"])
def test_no_help_text_loads_a_large_library(package: str) -> None:
    code = HELP_OF_ALL.format(package=package, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    number, rest = done.stdout.split(maxsplit=1)
    assert int(number) > 5 and rest.strip() == "[] []"


@pytest.mark.parametrize("words", [("studies", "list"), ("studies", "list", "--json")])
def test_a_command_that_only_reads_a_folder_loads_no_large_library(site: Path, words: tuple[str, ...]) -> None:
    assert loaded(site, words) == "[]"


def loaded(site: Path, words: tuple[str, ...]) -> str:
    """Run a command at a site and return the last line on stderr: which of `HEAVY` it has loaded."""
    code = ONE_COMMAND.format(heavy=HEAVY, words=(*words, "--site", str(site)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stderr.splitlines()[-1]
