"""The names of the files and folders in a simulation's output folder, each defined once.

    run.json                the run's study and data, written first                 run/preflight.py
    sites/NAME/             a hospital's folder                                     wardround_client/site/paths.py
    test-sites/NAME/        the same for a hospital of the external test set
    log/                    logs of the engine's processes                          engine/flower.py
    report.html             the report                                              report/report.py
    example/                one held-out phantom, predicted and explained           run/example.py
    attack.json             results of the attacks; the report shows them too       attack/run.py
    comparison.jsonl        one line for each finished part of a comparison         compare/compare.py
    comparison.json         all rows of a finished comparison
    .lock                   locked by the process that works in the folder

The study, checkpoints, metrics, model and result have the same names as in a run's folder on a server; see
`wardround_server/runs/paths.py`.
"""

from __future__ import annotations

CLAIM_FILE, OUT_LOCK = "run.json", ".lock"
SITES, TEST_SITES, LOG = "sites", "test-sites", "log"
EXAMPLE, EXAMPLE_PAGE = "example", "example/explanation-1.html"
REPORT_PAGE, ATTACK_FILE = "report.html", "attack.json"
COMPARISON_LOG, COMPARISON_FILE = "comparison.jsonl", "comparison.json"
