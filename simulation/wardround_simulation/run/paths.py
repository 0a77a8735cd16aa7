"""The names in a simulation's output folder, each once.

    run.json                its study and data, written first                         run/preflight.py
    sites/NAME/             a hospital's folder                                     wardround_client/site/paths.py
    test-sites/NAME/        the same for hospitals that only test
    log/                    what the engine's processes logged                      engine/flower.py
    report.html             the report                                              report/report.py
    attack.json             what the attacks found, beside their page               attack/run.py
    comparison.jsonl        a line a finished piece of a comparison                 compare/compare.py
    comparison.json         all rows of a finished comparison
    .lock                   held by the process that works in the folder

The study, checkpoints, metrics, model and result are named as in a run's folder at a server, in
`wardround_server/runs/paths.py`.
"""

from __future__ import annotations

CLAIM_FILE, OUT_LOCK = "run.json", ".lock"
SITES, TEST_SITES, LOG = "sites", "test-sites", "log"
REPORT_PAGE, ATTACK_FILE = "report.html", "attack.json"
COMPARISON_LOG, COMPARISON_FILE = "comparison.jsonl", "comparison.json"
