"""The records that cross the network between server and site, and their validation on arrival, in both directions.

A packet is a flat header and named raw tensors; nothing in it is ever unpickled, imported or evaluated, and no text
that a peer wrote is shown to anyone: a site says why it has no weights with a code of a fixed alphabet. Both sides take
packets in through `unpack_broadcast` and `unpack_answer` only, which raise `WireError` with a code for whatever is
wrong. The way Flower carries a packet is the business of the two adaptors
(`server/wardround_server/flower/exchange.py`, `client/wardround_client/flower/client_app.py`).

    server  Broadcast --pack_broadcast--> Packet --unpack_broadcast--> Broadcast        site
    site    Answer or code  --pack_answer--> Packet --unpack_answer--> Answer or code   server
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from wardround.errors import WireError

PROTOCOL_VERSION = 3  # 2: an answer carries the head of the site's ledger; 3: and the hashes of its last entries
MAX_TENSORS = 20_000
MAX_PAYLOAD_BYTES = 4 * 2**30
MAX_ROUND = 1_000_000
MAX_LEDGER_ENTRIES = 2**53
LEDGER_KEYS = ("ledger_entries", "ledger_head", "ledger_recent")
RECENT_ENTRIES, RECENT_DIGITS = 1024, 8  # a round adds two or three entries: hundreds of rounds may be missed

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECENT = re.compile(rf"(?:[0-9a-f]{{{RECENT_DIGITS}}}){{0,{RECENT_ENTRIES}}}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}")
_CODE = re.compile(r"[a-z][a-z0-9_:.-]{0,63}")
_CHUNK = 1 << 20  # values handled at once, so that a float64 copy of a large tensor never exists


class Tensor(NamedTuple):
    """One tensor on the wire: `data` is little-endian, C order, `shape` in elements."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Packet:
    """What Flower carries: a flat header and raw tensors by name."""

    header: Mapping[str, str | int]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tensors, without the header."""
        return sum(len(tensor.data) for tensor in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """The server's question of one round: these weights (float32, the exchanged parameters only), to be trained on."""

    study_sha256: str
    run_id: str
    round: int
    weights: dict[str, np.ndarray]
    architecture_sha256: str


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """How far a site's ledger has come: its number of entries, and the hash that chains them all.

    It says nothing of a patient, and the hash nothing of the entries (the first holds a secret number). Its use: a
    site that restores an old copy of its ledger shows a server fewer entries than before, or another history.
    """

    entries: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A site's answer to a broadcast: its trained weights (float32), and its ledger's head after they were settled.

    `recent`: the first `RECENT_DIGITS` digits of the hashes of the ledger's last `RECENT_ENTRIES` entries, in their
    order. It shows that an earlier head is part of this ledger: a copy that was put back and went on lacks it.
    """

    weights: dict[str, np.ndarray]
    head: LedgerHead
    recent: str = ""


@dataclass(frozen=True, kw_only=True)
class SiteReply:
    """What became of one site in one round: `weights`, or the `code` that says why there are none.

    `code` is "late", "failed", "unreachable" (no message could be brought to it), "refused:<code>" (the site said no)
    or "invalid:<code>" (the server did not take what came). `seconds` runs from the broadcast to the reply;
    `bytes_up` counts the tensors that came. `ledger_head` and `ledger_recent` come with weights.
    """

    site: str
    weights: dict[str, np.ndarray] | None
    code: str | None
    seconds: float
    bytes_up: int
    ledger_head: LedgerHead | None = None
    ledger_recent: str = ""


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 in hex over the sorted names, dtypes, shapes and little-endian bytes of a set of tensors.

    Two sets have the same hash only if they are the same bit for bit (0.0 and -0.0 differ).
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name])
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        head = f"{len(name)}:{name}|{little.dtype.str}|{','.join(map(str, array.shape))}|{array.nbytes};"
        digest.update(head.encode())
        digest.update(little.reshape(-1).data.cast("B") if little.size else b"")
    return digest.hexdigest()


def payload_bytes(weights: Mapping[str, np.ndarray]) -> int:
    """Bytes that a set of weights takes on the wire, without the header."""
    return sum(array.size * 4 for array in weights.values())


def pack_broadcast(broadcast: Broadcast) -> Packet:
    """The packet of a broadcast. Raises `WireError` when its weights are not finite float32."""
    header = {"protocol": PROTOCOL_VERSION, "kind": "broadcast", **_identity(broadcast)}
    header["architecture_sha256"] = broadcast.architecture_sha256
    return Packet(header=header, tensors=_pack_tensors(broadcast.weights))


def unpack_broadcast(packet: Packet) -> Broadcast:
    """Check a packet that should be a broadcast and return it; the arrays are read-only views of the packet's bytes.

    Raises `WireError` with one of the codes "protocol", "header", "names", "shape", "dtype", "size", "not-finite".
    """
    keys = ("protocol", "kind", "study_sha256", "run_id", "round", "architecture_sha256")
    header = _checked_header(packet.header, "broadcast", keys)
    return Broadcast(
        study_sha256=_matching(header, "study_sha256", _SHA256),
        run_id=_matching(header, "run_id", _RUN_ID),
        round=_number(header, "round", MAX_ROUND),
        architecture_sha256=_matching(header, "architecture_sha256", _SHA256),
        weights=_unpack_tensors(packet.tensors),
    )


def pack_answer(broadcast: Broadcast, answer: Answer) -> Packet:
    """The packet of a site's answer to `broadcast`. Raises `WireError` if its weights do not fit it."""
    check_names_and_shapes(answer.weights, broadcast.weights)
    header = {"protocol": PROTOCOL_VERSION, "kind": "answer", **_identity(broadcast), "code": ""}
    return Packet(header=header | pack_ledger(answer.head, answer.recent), tensors=_pack_tensors(answer.weights))


def pack_refusal(broadcast: Broadcast | None, code: str) -> Packet:
    """The packet of a site that has no weights to give; `broadcast` is None when that itself could not be read."""
    if not _CODE.fullmatch(code):
        raise WireError("code", "a refusal's code holds lower-case letters, digits and _:.- only")
    nothing = {"study_sha256": "", "run_id": "", "round": 0}
    identity: Mapping[str, Any] = _identity(broadcast) if broadcast else nothing
    header = {"protocol": PROTOCOL_VERSION, "kind": "answer", **identity, "code": code}
    return Packet(header={**header, "ledger_entries": 0, "ledger_head": "", "ledger_recent": ""})


def unpack_answer(packet: Packet, broadcast: Broadcast) -> tuple[Answer | None, str | None]:
    """Check a packet that should answer `broadcast`: the answer and None, or None and the site's code.

    The update's norm is checked where it is folded (`check_update`). Raises `WireError` with the codes of
    `unpack_broadcast`, and "stale" for an answer to another broadcast, "code" for a code outside the alphabet.
    """
    identity = ("study_sha256", "run_id", "round")
    keys = ("protocol", "kind", *identity, "code", *LEDGER_KEYS)
    header = _checked_header(packet.header, "answer", keys)
    code = header["code"]
    if code != "":
        if packet.tensors or not isinstance(code, str) or not _CODE.fullmatch(code):
            raise WireError("code", "a refusal carries a code of lower-case letters, digits and _:.- and no tensors")
        return None, code
    if any(header[key] != value for key, value in _identity(broadcast).items()):
        raise WireError("stale", "the answer belongs to another study, run or round")
    _match_names(packet.tensors, broadcast.weights)
    for name, tensor in packet.tensors.items():
        if tuple(tensor.shape) != broadcast.weights[name].shape:
            raise WireError("shape", f"tensor {name} has another shape than the one sent out")
    head, recent = unpack_ledger(header)
    return Answer(weights=_unpack_tensors(packet.tensors), head=head, recent=recent), None


def pack_ledger(head: LedgerHead, recent: str) -> dict[str, str | int]:
    """What a reply's header says of the site's ledger; see `Answer`."""
    return dict(zip(LEDGER_KEYS, (head.entries, head.sha256, recent), strict=True))


def unpack_ledger(header: Mapping[str, str | int]) -> tuple[LedgerHead, str]:
    """The inverse of `pack_ledger`. Raises `WireError` "header" where it is none."""
    head = LedgerHead(
        entries=_number(header, "ledger_entries", MAX_LEDGER_ENTRIES),
        sha256=_matching(header, "ledger_head", _SHA256),
    )
    recent = _matching(header, "ledger_recent", _RECENT)
    if not head.sha256.startswith(recent[-RECENT_DIGITS:]) or len(recent) > RECENT_DIGITS * head.entries:
        raise WireError("header", "ledger_recent does not end with the ledger's head")
    return head, recent


def check_names_and_shapes(weights: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """Raise `WireError` unless `weights` holds float32 arrays of exactly the names and shapes of `reference`."""
    _match_names(weights, reference)
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise WireError("dtype", f"tensor {name} is not float32")
        if array.shape != reference[name].shape:
            raise WireError("shape", f"tensor {name} has another shape than the one sent out")


def check_update(weights: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], max_norm: float) -> float:
    """Check what a site wants to change, and return the Euclidean norm of the change over all tensors.

    `weights` and `reference` hold float32 arrays. Raises `WireError` with "names", "dtype", "shape", "not-finite", or
    "norm" when the norm is above `max_norm`. The sum runs in float64 over slices of a million values.
    """
    check_names_and_shapes(weights, reference)
    total = 0.0
    for name in sorted(weights):
        after, before = weights[name].reshape(-1), reference[name].reshape(-1)
        for start in range(0, after.size, _CHUNK):
            change = after[start : start + _CHUNK].astype(np.float64)
            change -= before[start : start + _CHUNK]
            total += float(change @ change)
        if not math.isfinite(total):
            raise WireError("not-finite", f"tensor {name} holds NaN or infinity")
    norm = math.sqrt(total)
    if norm > max_norm:
        raise WireError("norm", f"the update's norm {norm:.3g} is above the study's max_update_norm {max_norm:.3g}")
    return norm


def packet_from(record: Mapping[str, Mapping]) -> Packet:
    """The packet in a message's records, of which the peer chose names, number and types.

    `record["tensors"]` should hold values with `dtype`, `shape` and `data`, as Flower's arrays are. Raises `WireError`
    "header" when the parts are not those of a packet; everything else is for `unpack_broadcast` and `unpack_answer`.
    """
    if set(record) != {"header", "tensors"}:
        raise WireError("header", "the message does not have the parts of a packet")
    tensors = {}
    for name, array in record["tensors"].items():
        shape, data = getattr(array, "shape", None), getattr(array, "data", None)
        if not isinstance(data, bytes) or not isinstance(shape, (tuple, list)):
            raise WireError("header", "a tensor has no bytes or no shape")
        tensors[name] = Tensor(str(getattr(array, "dtype", "")), tuple(shape), data)
    return Packet(header=dict(record["header"]), tensors=tensors)


def is_code(text: str) -> bool:
    """True for a text that may stand as a code on the wire: lower-case letters, digits and _:.- up to 64 characters."""
    return bool(_CODE.fullmatch(text))


def _identity(broadcast: Broadcast) -> dict[str, str | int]:
    return {"study_sha256": broadcast.study_sha256, "run_id": broadcast.run_id, "round": broadcast.round}


def _pack_tensors(weights: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    tensors = {}
    for name in sorted(weights):
        array = weights[name]
        if array.dtype != np.float32:
            raise WireError("dtype", f"tensor {name} is not float32")
        if not np.isfinite(array).all():
            raise WireError("not-finite", f"tensor {name} holds NaN or infinity")
        tensors[name] = Tensor("float32", tuple(array.shape), array.astype("<f4", copy=False).tobytes())
    return tensors


def _unpack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    if not tensors:
        raise WireError("names", "no tensor came")
    if len(tensors) > MAX_TENSORS:
        raise WireError("size", f"more than {MAX_TENSORS} tensors came")
    weights, total = {}, 0
    for name in sorted(tensors):
        if not isinstance(name, str) or not _TENSOR_NAME.fullmatch(name):
            raise WireError("names", "a tensor has a name of other characters than letters, digits and _./-")
        dtype, shape, data = tensors[name]
        if dtype != "float32":
            raise WireError("dtype", f"tensor {name} is not float32")
        if len(shape) > 8 or any(type(size) is not int or not 0 <= size < 2**31 for size in shape):
            raise WireError("shape", f"tensor {name} has an impossible shape")
        total += len(data)
        if len(data) != 4 * math.prod(shape) or total > MAX_PAYLOAD_BYTES:
            raise WireError("size", f"tensor {name} has not the bytes its shape asks for, or all are too many")
        array = np.frombuffer(data, dtype="<f4").reshape(shape)
        if not _all_finite(array):
            raise WireError("not-finite", f"tensor {name} holds NaN or infinity")
        weights[name] = array
    return weights


def _all_finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[start : start + _CHUNK]).all()) for start in range(0, flat.size, _CHUNK))


def _match_names(names: Iterable[str], expected: Iterable[str]) -> None:
    if set(names) != set(expected):
        raise WireError("names", "the tensors' names are not those that were sent out")


def _checked_header(header: Mapping[str, str | int], kind: str, keys: tuple[str, ...]) -> dict[str, str | int]:
    version = header.get("protocol")
    if version != PROTOCOL_VERSION:
        shown = version if type(version) is int else "none"
        mend = "the older one must upgrade"
        raise WireError("protocol", f"the peer speaks protocol {shown}, this side {PROTOCOL_VERSION}; {mend}")
    if header.get("kind") != kind or set(header) != set(keys):
        raise WireError("header", f"the message is not a well-formed {kind}")
    return dict(header)


def _matching(header: Mapping[str, str | int], key: str, pattern: re.Pattern[str]) -> str:
    value = header[key]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise WireError("header", f"{key} is malformed")
    return value


def _number(header: Mapping[str, str | int], key: str, largest: int) -> int:
    value = header[key]
    if type(value) is not int or not 1 <= value <= largest:
        raise WireError("header", f"{key} is not a number from 1 up")
    return value
