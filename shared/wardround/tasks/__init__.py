"""The tasks that a study can name, one package each.

A new task needs one more line here and a folder. `registry.py` defines the modules of a task's package, and imports
each of them when it is first needed.
"""

TASKS = {
    "classification": "wardround.tasks.classification",
    "synthesis": "wardround.tasks.synthesis",
    "reconstruction": "wardround.tasks.reconstruction",
    "early-warning": "wardround.tasks.early_warning",
}
