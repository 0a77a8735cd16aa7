"""The names in the folders of a server and of a run are fixed, so that a server of an earlier version can continue."""

from __future__ import annotations

from wardround_server.operations import paths as server
from wardround_server.runs import paths as run

SERVER = {
    "CONFIG_FILE": "server.toml",
    "CA_CERTIFICATE": "ca/ca.crt",
    "CA_KEY": "ca/ca.key",
    "SERVER_CERTIFICATE": "tls/server.crt",
    "SERVER_KEY": "tls/server.key",
    "REGISTRY_FILE": "registry.sqlite3",
    "HEADS_FILE": "ledger_heads.json",
    "SOFTWARE_FOLDER": "software",
    "NODES_FILE": "flower/nodes.json",
    "RUNS": "runs",
    "SERVER_LOG": "logs/server.log",
}
RUN = {
    "STUDY_FILE": "study.json",
    "APPROVALS_FILE": "approvals.json",
    "START_FILE": "start.safetensors",
    "CHECKPOINTS": "checkpoints",
    "METRICS_FILE": "metrics.jsonl",
    "PROBLEM_FILE": "problem.json",
    "STOPPED_FILE": "stopped",
    "MODEL_FILE": "model.safetensors",
    "RESULT_FILE": "result.json",
}


def test_the_folders_of_an_earlier_version_are_found_under_their_names() -> None:
    assert {name: getattr(server, name) for name in SERVER} == SERVER
    assert {name: getattr(run, name) for name in RUN} == RUN
    assert run.ROUND_CHECKPOINT.format(7) == "round-000007.safetensors"
