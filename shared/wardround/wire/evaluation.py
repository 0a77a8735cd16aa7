"""The records of the federated test: a site's noised histogram of scores, and its validation on arrival.

The request is a `Broadcast` of the released weights whose round is one after the last, in a message of its own type.
The reply contains one tensor of int64 counts, with negatives in row 0 and positives in row 1, or it is a refusal as for
any broadcast. Counts may be negative because they contain noise.

    server  Broadcast, round R + 1 --pack_broadcast--> --unpack_broadcast-->                        site
    site    ScoreRelease or code   --pack_release----> --unpack_release---> ScoreRelease or code    server
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.errors import WireError
from wardround.study.load import Study
from wardround.wire.packets import (
    LEDGER_KEYS,
    PROTOCOL_VERSION,
    Broadcast,
    LedgerHead,
    Packet,
    Tensor,
    pack_ledger,
    unpack_answer,
    unpack_ledger,
)

COUNTS = "counts"
MAX_COUNT = 10_000_000  # exceeds the number of patients, and the noise, of any hospital


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRelease:
    """A site's noised counts, int64 (2, B).

    `per_site` is whether the site allows figures of its own to be shown; `head` and `recent` describe its ledger as in
    `wire.packets.Answer`.
    """

    counts_2B: np.ndarray
    per_site: bool
    head: LedgerHead
    recent: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteRelease:
    """The outcome of one site in the federated test: its `release`, or the `code` of the reason why there is none."""

    site: str
    release: ScoreRelease | None
    code: str | None
    bytes_up: int


def evaluation_round(study: Study) -> int:
    """Return the round number of the federated test: one after the last round of training."""
    return study.study.rounds + 1


def pack_release(question: Broadcast, release: ScoreRelease) -> Packet:
    """Build the packet of a site's noised counts. Raises `WireError` if they are not int64 (2, B)."""
    counts_2B = release.counts_2B
    if counts_2B.dtype != np.int64 or counts_2B.ndim != 2 or len(counts_2B) != 2:
        raise WireError("shape", "a release contains int64 counts of two labels")
    data = counts_2B.astype("<i8", copy=False).tobytes()
    header = _header(question, release.per_site) | pack_ledger(release.head, release.recent)
    return Packet(header=header, tensors={COUNTS: Tensor("int64", counts_2B.shape, data)})


def unpack_release(packet: Packet, question: Broadcast, bins: int) -> tuple[ScoreRelease | None, str | None]:
    """Validate a reply to `question`, with counts of shape (2, `bins`); return (release, None) or (None, code).

    Raises `WireError` with "protocol", "header", "stale" (a reply to another request), "names", "dtype", "shape",
    "size", "range" (a count beyond `MAX_COUNT`) or "code".
    """
    if packet.header.get("kind") == "answer":
        weights, code = unpack_answer(packet, question)
        if weights is not None:
            raise WireError("header", "weights were sent instead of counts")
        return None, code
    per_site = packet.header.get("per_site")
    expected = _header(question, per_site == 1)
    if packet.header.get("protocol") != PROTOCOL_VERSION:
        raise WireError("protocol", f"the peer does not use protocol {PROTOCOL_VERSION}")
    if set(packet.header) != {*expected, *LEDGER_KEYS} or type(per_site) is not int or per_site not in (0, 1):
        raise WireError("header", "the message is not a well-formed release of counts")
    if packet.header["kind"] != expected["kind"]:
        raise WireError("header", "the message is not a release of counts")
    if any(packet.header[name] != value for name, value in expected.items()):
        raise WireError("stale", "the counts belong to a different study, run or request")
    head, recent = unpack_ledger(packet.header)
    return ScoreRelease(counts_2B=_counts(packet, bins), per_site=per_site == 1, head=head, recent=recent), None


def _counts(packet: Packet, bins: int) -> np.ndarray:
    if set(packet.tensors) != {COUNTS}:
        raise WireError("names", "a release contains one tensor, the counts")
    dtype, shape, data = packet.tensors[COUNTS]
    if dtype != "int64":
        raise WireError("dtype", "the counts are not int64")
    if tuple(shape) != (2, bins) or any(type(size) is not int for size in shape):
        raise WireError("shape", f"the counts are not of two labels and the study's {bins} bins")
    if len(data) != 8 * 2 * bins:
        raise WireError("size", "the counts have a number of bytes that does not match their shape")
    counts_2B = np.frombuffer(data, dtype="<i8").reshape(2, bins)
    if (counts_2B > MAX_COUNT).any() or (counts_2B < -MAX_COUNT).any():
        raise WireError("range", f"a count is larger than {MAX_COUNT}")
    return counts_2B


def _header(question: Broadcast, per_site: bool) -> dict[str, str | int]:
    return {
        "protocol": PROTOCOL_VERSION,
        "kind": "release",
        "study_sha256": question.study_sha256,
        "run_id": question.run_id,
        "round": question.round,
        "per_site": int(per_site),
    }
