"""The names in a server's folder, each once.

    server.toml             what the operator sets                                    operations/config.py
    ca/ca.crt  ca/ca.key    the federation's CA; with a hospital group's own CA its key is not kept here
    tls/server.crt  .key    what the server shows to sites                            operations/folder.py
    registry.sqlite3        who may take part                                         sites/registry.py
    ledger_heads.json       how far each site's ledger had come                       sites/ledger_heads.py
    software/NAME.json      what each site said that it runs                          sites/software.py
    audit.jsonl             what was decided and counted; audit.head                  wardround/records/audit_log.py
    runs/RUN_ID/            one run; its own names are in runs/paths.py               runs/folder.py
    flower/                 Flower's database, and what its processes need            flower/superlink.py
    flower/nodes.json       which number Flower gave to each key                      sites/flower_nodes.py
    logs/server.log         the daemon's log; logs/RUN_ID.log: that of a run          wardround/operations/logs.py

Each name is relative to the server's folder. Lock files begin with a dot; one that lies there says nothing about
whether it is held.
"""

from __future__ import annotations

CONFIG_FILE = "server.toml"

CA, TLS = "ca", "tls"
CA_CERTIFICATE, CA_KEY = f"{CA}/ca.crt", f"{CA}/ca.key"
SERVER_CERTIFICATE, SERVER_KEY = f"{TLS}/server.crt", f"{TLS}/server.key"

REGISTRY_FILE = "registry.sqlite3"
HEADS_FILE, HEADS_LOCK = "ledger_heads.json", ".ledger_heads.lock"
SOFTWARE_FOLDER = "software"

RUNS = "runs"
FLOWER = "flower"
EXECUTOR_SECRET, NODES_FILE = f"{FLOWER}/executor.secret", f"{FLOWER}/nodes.json"
LOGS = "logs"
SERVER_LOG = f"{LOGS}/server.log"
