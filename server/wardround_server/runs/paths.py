"""The names in a run's folder, each once.

    study.json              what is run: written once, by `submit`
    approvals.json          what each site has said, and when: written by the process of a phase alone
    start.safetensors       the network before training
    checkpoints/            round-000001.safetensors and on: the last rounds          rounds/loop.py
    metrics.jsonl           a line a round and site                                   runs/metrics_log.py
    round.json              who is waited for, while a round is under way             runs/attendance.py
    problem.json            why the last phase ended without success; gone when the next one succeeds
    stopped                 the operator stopped the run
    .phase.lock             held by the process that works on the run
    model.safetensors       the released model
    result.json             written last: its presence says that the run is finished

A simulation's run has the same names for study, checkpoints, metrics, model and result.
"""

from __future__ import annotations

STUDY_FILE, APPROVALS_FILE, START_FILE = "study.json", "approvals.json", "start.safetensors"
CHECKPOINTS, ROUND_CHECKPOINT = "checkpoints", "round-{:06d}.safetensors"
ROUND_CHECKPOINTS = "round-*.safetensors"
METRICS_FILE, ROUND_FILE = "metrics.jsonl", "round.json"
PROBLEM_FILE, STOPPED_FILE, PHASE_LOCK = "problem.json", "stopped", ".phase.lock"
MODEL_FILE, RESULT_FILE = "model.safetensors", "result.json"
