"""The tasks that a study can name, one package each. A new task is one more line here and its folder.

`registry.py` says which modules a task's package has, and loads each of them when it is first needed.
"""

TASKS = {
    "classification": "wardround.tasks.classification",
    "synthesis": "wardround.tasks.synthesis",
    "reconstruction": "wardround.tasks.reconstruction",
}
