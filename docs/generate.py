"""Write docs/commands.md from the --help of the three programs, and docs/extending.md from a task that a test trains:
`.venv/bin/python docs/generate.py`. A test fails when a page is stale.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

PAGE = Path(__file__).with_name("commands.md")
EXTENDING = Path(__file__).with_name("extending.md")
TASK = Path(__file__).parents[1] / "tests" / "grading_task"  # the task that extending.md shows
TASK_MODULES = ("study", "networks", "objective", "release", "assess")
WIDTH = 100
INTRODUCTION = """\
# Commands

Written by `python docs/generate.py` from the commands' own help; do not edit by hand.

`./run simulate ARGS` is `wardround-sim run ARGS`, `./run compare ARGS` and `./run federation ARGS` are the commands of
`wardround-sim` with these names, `./run sim COMMAND ARGS` is any command of `wardround-sim`, `./run site COMMAND ARGS`
any of `wardround-site`, and `./run server COMMAND ARGS` any of `wardround-server`. Each sets up `.venv` first, once.
`./run check` checks format, lint, imports and types, `./run test` runs the tests (`--slow`: the long ones too), and
`./run bench` the benchmarks.

Exit codes: 0 done · 1 failed · 2 a wrong option, file or field · 3 refused by policy or budget · 130 stopped with
Ctrl-C. An error is one line: what is wrong, where, what to do. `--json` prints the result for machines, and nothing
else.
"""


EXTENDING_INTRODUCTION = """\
# Extending

Written by `python docs/generate.py` from `tests/grading_task`; do not edit by hand. `tests/whole/test_new_task.py`
trains this task.

## A new task

A task is one package in `shared/wardround/tasks/` and one line in `shared/wardround/tasks/__init__.py`:

```python
TASKS = {
    ...
    "grading": "wardround.tasks.grading",
}
```

`shared/wardround/tasks/registry.py` names the modules of a package and the functions of each, with their types. The
training loop of a site (`client/wardround_client/training/train.py`) draws patients, clips, adds noise, steps and
accounts for every task; a task only describes its loss. Two rules keep the privacy guarantee:

1. `loss_per_row` gives one loss for each row, and each loss depends on its own row alone. The loop proves the
   clipping on synthetic rows before it reads a patient.
2. `after_noise` and `after_round` of an objective read weights, public numbers and random draws, and no patient.

Layers must be layers of torch that `HYPER_PARAMETERS` in `shared/wardround/networks/fingerprint.py` lists, or of the
package itself, without statistics of a batch: the fingerprint that sites and server compare must describe them.

The rest of this page is a complete task, *grading*: the labels of a study are grades in ascending order, and the
network predicts the grade as a number. A study of it:

"""

EXTENDING_END = """\
## A new network for a task

Write the network in the task's package (or in `shared/wardround/networks/` if several tasks use it), add its name to
`NETWORKS` in the task's `study.py`, and build it in `networks.py`. `tests/shared/networks/test_build.py` and
`tests/client/clipping/test_hostile_weights.py` run over the networks that they name: add it there, and run the second
one with `./run test --slow`. A layer without a rule in `client/wardround_client/clipping/layer_rules.py` is clipped
by the loop over patients, which is correct and slower.

## A new source

A source turns a hospital's folder into a cohort: one array of rows of any shape and dtype, one table (patient, label,
hold-out rank and the source's own columns) and one seal. There are two, images and patients' records. A task names its
source in `study.py` (`SOURCE`). A new source is one line in `shared/wardround/sources/__init__.py` and two folders of
its name:

- in `shared/wardround/sources`, `study.py` has the section `[data]` of its studies, and says in plain words what
  such a study reads (`SourceStudy` in `sources/registry.py` there).
- in `client/wardround_client/sources`, `source.py` has the functions of `Source` in `sources/registry.py` there:
  finding the sites in a folder, reading one, the shape and dtype of a row, whether a cohort fits a study, and what to
  remove when a patient objects. It reads the hospital's files under `claimed_cohort` (`sources/claim.py`), puts aside
  what cannot be used, and calls `write_cohort` (`sources/cohort.py`).

Nothing after the cohort depends on the source: drawing patients, clipping, holding out and forgetting use rows, labels
and pseudonyms.
"""


def extending_page() -> str:
    """The whole page docs/extending.md."""
    test = (TASK.parent / "whole" / "test_new_task.py").read_text(encoding="utf-8")
    study = re.search(r'STUDY = """\n(.*?)"""', test, re.DOTALL)
    if study is None:
        raise SystemExit("tests/whole/test_new_task.py has no STUDY")
    parts = [EXTENDING_INTRODUCTION + f"```toml\n{study.group(1)}```\n"]
    for name in TASK_MODULES:
        code = (TASK / f"{name}.py").read_text(encoding="utf-8")
        parts.append(f"### {name}.py\n\n```python\n{code}```\n")
    return "\n".join([*parts, EXTENDING_END])


def help_texts() -> Iterator[tuple[str, str]]:
    """(command, its --help) of the whole program and of every command, at a fixed width."""
    os.environ["COLUMNS"] = str(WIDTH)
    import typer.main
    from click.testing import CliRunner

    from wardround_client.cli import main
    from wardround_server.cli import main as server
    from wardround_simulation.cli import main as simulation

    programs = (("wardround-sim", simulation.app), ("wardround-site", main.app), ("wardround-server", server.app))
    for name, app in programs:
        program = typer.main.get_command(app)
        for words in every_command(program):
            done = CliRunner().invoke(program, [*words, "--help"], prog_name=name, terminal_width=WIDTH)
            if done.exit_code != 0:
                raise SystemExit(f"{name} {' '.join(words)} --help failed: {done.output}")
            yield " ".join([name, *words]), done.output.strip()


def every_command(command: click.Command) -> Iterator[list[str]]:
    """The words of a program, of each of its groups and of each of their commands: [], [group], [group, command]."""
    yield []
    for name, part in getattr(command, "commands", {}).items():
        yield from ([name, *words] for words in every_command(part))


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    parts += [f"## {command}\n\n```\n{text}\n```\n" for command, text in help_texts()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    EXTENDING.write_text(extending_page(), encoding="utf-8")
