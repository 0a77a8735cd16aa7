"""The file names of a run's folder.

    study.json              the study, written once by `submit`
    approvals.json          each site's decision on the study and its time, written only by the process of a phase
    start.safetensors       the network before training
    checkpoints/            round-000001.safetensors and so on: the last rounds       rounds/loop.py
    metrics.jsonl           one line per round and site                               runs/metrics_log.py
    round.json              the sites still to reply, while a round is under way      runs/attendance.py
    problem.json            why the last phase failed; deleted when the next one succeeds
    stopped                 present if the operator stopped the run
    .phase.lock             locked by the process that works on the run
    model.safetensors       the released model
    result.json             written last; the run is finished if it exists
    exports.jsonl           one line per export of the model: time, hash, whether it was forced    runs/handover.py
    tracking.json           what of the run is recorded in MLflow                     tracking/sink.py

A simulation's run uses the same names for study, checkpoints, metrics, model and result.
"""

from __future__ import annotations

STUDY_FILE, APPROVALS_FILE, START_FILE = "study.json", "approvals.json", "start.safetensors"
CHECKPOINTS, ROUND_CHECKPOINT = "checkpoints", "round-{:06d}.safetensors"
ROUND_CHECKPOINTS = "round-*.safetensors"
METRICS_FILE, ROUND_FILE = "metrics.jsonl", "round.json"
PROBLEM_FILE, STOPPED_FILE, PHASE_LOCK = "problem.json", "stopped", ".phase.lock"
TRACKING_FILE = "tracking.json"
MODEL_FILE, RESULT_FILE, EXPORTS_FILE = "model.safetensors", "result.json", "exports.jsonl"
