"""Consoles: a site's and a server's folder with something to see, users, and a browser without a screen."""

from __future__ import annotations

import html as entities
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import httpx
from argon2 import PasswordHasher
from builders.runs import Sites, trained
from builders.runs import study_of as run_study_of
from builders.sites import write_patients
from starlette.testclient import TestClient

from wardround.records.audit_events import ReplyReleased, Started
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.study.load import Study, parse_study
from wardround.web.accounts import users
from wardround.web.accounts.users import User, add_user
from wardround.web.app import WebConsole, build
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site.budget import cap_of_site
from wardround_client.studies.approvals import approve
from wardround_client.studies.proposals import receive
from wardround_server.operations.folder import found
from wardround_server.runs.folder import create_run

users._hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)  # tests sign in often

SITE = """\
name = "north"
[privacy]
epsilon_cap = 8.0
delta_cap = 1e-4
[server]
address = "fed.example.org:9092"
ca_sha256 = "{}"
"""
PASSWORD = "correct horse battery staple"
READER = User(login="rosa", person="Rosa Reader")
APPROVER = User(login="marie", person="Dr. Marie Curie", roles=("read", "approve"))
OPERATOR = User(login="otto", person="Otto Operator", roles=("read", "operate"))


def proposed_study(name: str = "lung-nodules", epsilon: float = 3.0) -> Study:
    return parse_study(
        {
            "study": {"name": name, "rounds": 5, "spare_rounds": 1},
            "data": {"labels": ["benign", "malignant"], "image_size": 64},
            "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 10},
            "aggregation": {"nominal_sites": 3, "min_sites": 2},
        }
    )


def add_users(folder: Path, *chosen: User) -> None:
    for user in chosen or (READER, APPROVER, OPERATOR):
        add_user(folder, user, PASSWORD)


def site_folder(folder: Path) -> Path:
    """Write a site with data, one study that trained two rounds, and one that was proposed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.toml").write_text(SITE.format("0" * 64))
    write_patients(folder, "p")
    quality = {
        "schema": 1, "site": "north", "files": 31, "images": 24, "patients": 12, "unlabelled": 0,
        "classes": {"benign": {"images": 12, "patients": 6}, "malignant": {"images": 12, "patients": 6}},
        "quarantined": {"unreadable": 4, "two_patients": 2}, "remarks": {"few_of_class": 1, "image_left_out": 1},
        "notes": [],
        "accounted": {"used": 24, "put_aside": 6, "left_out": 1},
    }  # fmt: skip
    (folder / "cohort" / "quality.json").write_text(json.dumps(quality))
    log = AuditLog(folder / AUDIT_FILE)
    log.append(Started(program="wardround-site", version="0.1.0"))
    study, cap, ledger = proposed_study("breast-density", epsilon=2.0), cap_of_site(folder), _ledger(folder)
    sha256 = approve(folder, study, "Ada Lovelace", ledger, cap, 1, "agreed by the data protection officer")
    plan = plan_from_study(study)
    ledger.hold(sha256, "breast-1", plan, cap)
    for round_ in (1, 2):
        reply = f"{round_}" * 64
        ledger.settle(ledger.reserve(sha256, "breast-1", round_, "w" * 64, cap=cap), reply)
        named = {"study": sha256, "run": "breast-1", "round": round_, "purpose": "train"}
        log.append(ReplyReleased(reply=reply, epsilon=ledger.spent(cap.delta), **named))
    ledger.close()
    receive(folder, proposed_study())
    return folder


def _ledger(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite3")


def server_folder(folder: Path) -> Path:
    """Write a server with a finished run that missed a site in a round, and a run that was proposed."""
    found(folder, "127.0.0.1", "fed", 9092, None, datetime.now(UTC))
    codes = {(2, "north"): "late"}
    trained(create_run(folder, run_study_of("first", figures=1.0)), Sites(codes=codes))
    create_run(folder, run_study_of("second"))
    return folder


class Browser:
    """A browser that keeps cookies and sends the forms of the pages that it got."""

    def __init__(self, console: WebConsole, address: str = "127.0.0.1", base: str | None = None) -> None:
        base = base or f"http://127.0.0.1:{console.config.port}"
        self.client = TestClient(
            build(console), base_url=base, client=(address, 50000), follow_redirects=False,
            raise_server_exceptions=False,
        )  # fmt: skip
        self.base = base

    def get(self, path: str, **options) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, fields: dict[str, object], **options) -> httpx.Response:
        headers = {"origin": self.base, "sec-fetch-site": "same-origin", **options.pop("headers", {})}
        return self.client.post(path, data={name: str(value) for name, value in fields.items()}, headers=headers)

    def sign_in(self, user: User, password: str = PASSWORD) -> httpx.Response:
        form = hidden(self.get("/login").text)
        return self.post("/login", {**form, "login": user.login, "password": password})

    def csrf(self) -> str:
        return hidden(self.get("/account").text)["csrf"]


def hidden(html: str) -> dict[str, str]:
    """Return the hidden fields of a page's last form."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html))


def text_of(html: str) -> str:
    """Return a page's text in one line, as it is read."""
    return " ".join(entities.unescape(re.sub(r"<[^>]+>", " ", html)).split())
