"""The file names of a server's folder.

    server.toml             the operator's settings                                   operations/config.py
    ca/ca.crt  ca/ca.key    the federation's CA; the key of a hospital group's own CA is not kept here
    tls/server.crt  .key    the server's certificate and private key                  operations/folder.py
    registry.sqlite3        the enrolled sites                                        sites/registry.py
    ledger_heads.json       the last ledger head seen of each site                    sites/ledger_heads.py
    software/NAME.json      each site's software as of its last reply                 sites/software.py
    audit.jsonl             decisions and replies; with audit.head                    wardround/records/audit_log.py
    runs/RUN_ID/            one run; its file names are in runs/paths.py              runs/folder.py
    flower/                 Flower's database and the files of its processes          flower/superlink.py
    flower/nodes.json       the node id that Flower gave to each key                  sites/flower_nodes.py
    console/                the console's users, and the secret of its proxy          wardround/web/accounts/users.py
    logs/server.log         the daemon's log; logs/RUN_ID.log is the log of a run     wardround/operations/logs.py

Each name is relative to the server's folder. The names of lock files begin with a dot; the presence of a lock file does
not mean that the lock is held.
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
