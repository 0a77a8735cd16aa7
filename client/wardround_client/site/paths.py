"""Names of the files in a site's folder, each defined once.

    site.toml               the site's own rules                                      site/config.py
    keys/site_key           its identity towards the server; keys/site_key.pub        site/enrolment.py
    keys/pseudonym.key      the key of pseudonyms and hold-outs                       site/enrolment.py
    keys/ca.crt             the server's CA, pinned in site.toml                      site/enrolment.py
    NAME.enrol.json         the request to take part, for the operator                wardround/identity.py
    server.json             the server's software and clock, as last seen             site/server_info.py
    proposals/HASH.json     a study that was received and is not approved             studies/store.py
    studies/HASH.json       an approved study: the one that rounds read               studies/store.py
    decisions/HASH.json     who decided what about a study, when, for how many runs   studies/store.py
    asked/HASH.json         which server asked for a study first, and when            studies/store.py
    cohort/                 the prepared data and their quality report                sources/cohort.py
    pulled/                 what `pull --into cohort` has fetched and not finished    sources/images/ahead.py
    opt_out.txt             pseudonyms of patients who object                         sources/opt_out.py
    ledger.sqlite3          the privacy spent; ledger.head: its last known entry      ledger/file.py
    audit.jsonl             decisions, refusals and releases; audit.head              wardround/records/audit_log.py
    replies/                replies on disk, for rounds that are requested again      site/site.py
    personal/HASH/RUN/      the personalised model of a run, and how it tested here   rounds/personalisation.py
    evaluations/SHA/        for whom a model works here; SHA is that of its file        figures/page.py
    cache/                  frozen features, and the fastest clipping engine          training/features.py, clipping/
    flower/                 files of Flower's processes; a secret of each start       flower/daemon.py
    flower/proofs/          which clipping engines were proved since the start        flower/executor.py
    console/                the console's users, and the secret of its proxy          wardround/web/accounts/users.py
    logs/site.log           the daemon's log, rotated; logs/console.log               wardround/operations/logs.py

Each name is relative to the site's folder. Lock files begin with a dot; a lock file that exists is not necessarily
held.
"""

from __future__ import annotations

CONFIG_FILE = "site.toml"
KEYS = "keys"
SITE_KEY, PUBLIC_KEY = f"{KEYS}/site_key", f"{KEYS}/site_key.pub"
PSEUDONYM_KEY, CA_CERTIFICATE = f"{KEYS}/pseudonym.key", f"{KEYS}/ca.crt"
SERVER_FILE = "server.json"

PROPOSALS, STUDIES, DECISIONS, ASKED = "proposals", "studies", "decisions", "asked"
DECIDING_LOCK = f"{DECISIONS}/.deciding.lock"  # held around all steps of one decision
WRITING_LOCK = f"{DECISIONS}/.writing.lock"  # held during one change of a decision file, never around DECIDING_LOCK

COHORT = "cohort"
PULLED, PULL_MANIFEST, PULL_LOCK = "pulled", "pulled.pull.jsonl", ".pulled.pull.jsonl.lock"
OPT_OUT_FILE, OPT_OUT_LOCK, FORGET_LOCK = "opt_out.txt", ".opt_out.lock", ".forget.lock"

LEDGER_FILE = "ledger.sqlite3"
REPLIES, CACHE = "replies", "cache"
PERSONAL = "personal"  # models that never leave the site
EVALUATIONS = "evaluations"
ROUND_LOCK = ".round.lock"  # one process at a time trains for a site

FLOWER = "flower"
EXECUTOR_SECRET, PROOFS = f"{FLOWER}/executor.secret", f"{FLOWER}/proofs"
LOGS = "logs"
SITE_LOG = f"{LOGS}/site.log"
