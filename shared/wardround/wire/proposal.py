"""The records of a proposal: the server sends a study as JSON, and the site replies with its decision.

The reply to a proposal is one of the states in `State`. The server repeats the proposal until it learns of an approval,
which may take a hospital days. Both records are accompanied by the sender's software versions (`versions`), which
people can compare. Both sides read records only through `unpack_proposal` and `unpack_state`.

    server  Study --pack_proposal--> {"proposal": ...} --unpack_proposal--> Study    site
    site    state --pack_state-----> {"decision": ...} --unpack_state-----> state    server
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal, get_args

from wardround.errors import StudyError, WireError
from wardround.study.load import Study, study_from_json
from wardround.wire.packets import PROTOCOL_VERSION
from wardround.wire.versions import SOFTWARE, ours

MAX_STUDY_BYTES = 256 * 1024

State = Literal["proposed", "approved", "refused", "revoked"]
Record = dict[str, str | int]


def pack_proposal(study: Study) -> dict[str, Record]:
    """Build the records of a proposed study."""
    text = study.to_json()
    proposal: Record = {"protocol": PROTOCOL_VERSION, "study_sha256": study.sha256(), "study": text}
    return {"proposal": proposal, SOFTWARE: asdict(ours())}


def unpack_proposal(content: Mapping[str, Mapping]) -> Study:
    """Validate a proposal and return its study.

    Raises `WireError` "protocol", "header", "size", "study" (not a study), "hash" (the study does not match the claimed
    hash) or "file" (its initial weights are a file: a peer must not name paths on this machine).
    """
    record = _record(content, "proposal", {"protocol", "study_sha256", "study"})
    text = record["study"]
    if not isinstance(text, str) or len(text.encode("utf-8", "replace")) > MAX_STUDY_BYTES:
        raise WireError("size", f"a proposed study has more than {MAX_STUDY_BYTES} bytes, or is not text")
    try:
        study = study_from_json(text, source="the proposal")
    except StudyError as error:
        raise WireError("study", f"this version does not support the proposed study: {error}") from None
    except (RecursionError, ValueError):
        raise WireError("study", "the proposal is not valid JSON") from None
    if study.model.init not in ("phantom", "random"):
        raise WireError(
            "file", "the study starts from a model file, so it cannot be proposed; send it with its file by other means"
        )
    if study.sha256() != record["study_sha256"]:
        raise WireError("hash", "the proposed study does not have the hash that it claims")
    return study


def pack_state(study_sha256: str, state: State) -> dict[str, Record]:
    """Build the records of a site's decision on a study."""
    decision: Record = {"protocol": PROTOCOL_VERSION, "study_sha256": study_sha256, "state": state}
    return {"decision": decision, SOFTWARE: asdict(ours())}


def unpack_state(content: Mapping[str, Mapping], study_sha256: str) -> State:
    """Validate a site's reply to a proposal and return the state.

    Raises `WireError` "protocol", "header", "stale" (another study) or "state" (unknown state).
    """
    record = _record(content, "decision", {"protocol", "study_sha256", "state"})
    if record["study_sha256"] != study_sha256:
        raise WireError("stale", "the decision belongs to a different study")
    state = record["state"]
    if state not in get_args(State):
        raise WireError("state", "this version does not support the decision")
    return state


def _record(content: Mapping[str, Mapping], name: str, keys: set[str]) -> dict:
    if set(content) - {SOFTWARE} != {name}:
        raise WireError("header", f"the message does not have the parts of a {name}")
    record = dict(content[name])
    if record.get("protocol") != PROTOCOL_VERSION:
        raise WireError("protocol", f"the peer does not use protocol {PROTOCOL_VERSION}")
    if set(record) != keys:
        raise WireError("header", f"the message is not a well-formed {name}")
    return record
