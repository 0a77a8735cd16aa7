"""The records that cross the network between server and site, and their validation on arrival, in both directions.

A packet is a flat header plus named raw tensors. Its content is never unpickled, imported or evaluated, and free text
from a peer is never shown to a user: a site without weights sends a code in a fixed alphabet as the reason. Both sides
read packets only through `unpack_broadcast` and `unpack_answer`, which raise `WireError` with a code for every fault.
Two adapters carry packets over Flower (`server/wardround_server/flower/exchange.py`,
`client/wardround_client/flower/client_app.py`).

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

PROTOCOL_VERSION = 3  # 2 added the head of the site's ledger to an answer; 3 added the hashes of its last entries
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
_CHUNK = 1 << 20  # values converted at once, to avoid a float64 copy of a large tensor


class Tensor(NamedTuple):
    """One tensor on the wire: `data` is little-endian, C order, `shape` in elements."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Packet:
    """The payload of a Flower message: a flat header and raw tensors by name."""

    header: Mapping[str, str | int]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def payload_bytes(self) -> int:
        """Total bytes of all tensors, without the header."""
        return sum(len(tensor.data) for tensor in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """The server's request of one round, with the weights to start from (float32, the exchanged parameters only)."""

    study_sha256: str
    run_id: str
    round: int
    weights: dict[str, np.ndarray]
    architecture_sha256: str


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """The head of a site's ledger: the number of entries, and the hash that chains them all.

    It contains no information about a patient, and the hash reveals nothing about the entries (the first contains a
    secret number). It lets the server detect that a site restored an old copy of its ledger: the head then has fewer
    entries than before, or belongs to another history.
    """

    entries: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A site's answer to a broadcast: its trained weights (float32), and its ledger's head after settling the round.

    `recent` contains the first `RECENT_DIGITS` hexadecimal digits of the hashes of the ledger's last `RECENT_ENTRIES`
    entries, in their order. It shows that an earlier head is part of this ledger, which is not the case for a restored
    copy to which new entries were added.
    """

    weights: dict[str, np.ndarray]
    head: LedgerHead
    recent: str = ""


@dataclass(frozen=True, kw_only=True)
class SiteReply:
    """The outcome of one site in one round: `weights`, or the `code` of the reason why there are none.

    `code` is "late", "failed", "unreachable" (no message could be delivered), "refused:<code>" (the site refused) or
    "invalid:<code>" (the server rejected the reply). `seconds` is the time from the broadcast to the reply; `bytes_up`
    is the size of the received tensors. `ledger_head` and `ledger_recent` are present if `weights` are.
    """

    site: str
    weights: dict[str, np.ndarray] | None
    code: str | None
    seconds: float
    bytes_up: int
    ledger_head: LedgerHead | None = None
    ledger_recent: str = ""


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 in hex of the sorted names, dtypes, shapes and little-endian bytes of a set of tensors.

    Two sets have the same hash only if they are bit-identical (0.0 and -0.0 differ).
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
    """Return the bytes of a set of weights on the wire (float32), without the header."""
    return sum(array.size * 4 for array in weights.values())


def pack_broadcast(broadcast: Broadcast) -> Packet:
    """Build the packet of a broadcast. Raises `WireError` if its weights are not finite float32."""
    header = {"protocol": PROTOCOL_VERSION, "kind": "broadcast", **_identity(broadcast)}
    header["architecture_sha256"] = broadcast.architecture_sha256
    return Packet(header=header, tensors=_pack_tensors(broadcast.weights))


def unpack_broadcast(packet: Packet) -> Broadcast:
    """Validate the packet of a broadcast and return the broadcast.

    The arrays are read-only views of the packet's bytes. Raises `WireError` with one of the codes "protocol", "header",
    "names", "shape", "dtype", "size", "not-finite".
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
    """Build the packet of a site's answer to `broadcast`.

    Raises `WireError` if the answer's weights have other names or shapes than the broadcast's, or are not finite
    float32.
    """
    check_names_and_shapes(answer.weights, broadcast.weights)
    header = {"protocol": PROTOCOL_VERSION, "kind": "answer", **_identity(broadcast), "code": ""}
    return Packet(header=header | pack_ledger(answer.head, answer.recent), tensors=_pack_tensors(answer.weights))


def pack_refusal(broadcast: Broadcast | None, code: str) -> Packet:
    """Build the packet of a site that has no weights to send.

    `broadcast` is None if the broadcast itself could not be read. Raises `WireError` "code" for an invalid code.
    """
    if not _CODE.fullmatch(code):
        raise WireError("code", "a refusal's code may contain only lower-case letters, digits and _:.-")
    nothing = {"study_sha256": "", "run_id": "", "round": 0}
    identity: Mapping[str, Any] = _identity(broadcast) if broadcast else nothing
    header = {"protocol": PROTOCOL_VERSION, "kind": "answer", **identity, "code": code}
    return Packet(header={**header, "ledger_entries": 0, "ledger_head": "", "ledger_recent": ""})


def unpack_answer(packet: Packet, broadcast: Broadcast) -> tuple[Answer | None, str | None]:
    """Validate a reply to `broadcast`; return (answer, None), or (None, code) if the site sent a code.

    The norm of the update is checked later, when the update is folded (`check_update`). Raises `WireError` with the
    codes of `unpack_broadcast`, "stale" for an answer to another broadcast, and "code" for a malformed code.
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
        raise WireError("stale", "the reply belongs to a different study, run or round")
    _match_names(packet.tensors, broadcast.weights)
    for name, tensor in packet.tensors.items():
        if tuple(tensor.shape) != broadcast.weights[name].shape:
            raise WireError("shape", f"tensor {name} has a different shape than the one sent out")
    head, recent = unpack_ledger(header)
    return Answer(weights=_unpack_tensors(packet.tensors), head=head, recent=recent), None


def pack_ledger(head: LedgerHead, recent: str) -> dict[str, str | int]:
    """Return the header fields about the site's ledger; see `Answer`."""
    return dict(zip(LEDGER_KEYS, (head.entries, head.sha256, recent), strict=True))


def unpack_ledger(header: Mapping[str, str | int]) -> tuple[LedgerHead, str]:
    """Invert `pack_ledger`. Raises `WireError` "header" if the fields are malformed or inconsistent."""
    head = LedgerHead(
        entries=_number(header, "ledger_entries", MAX_LEDGER_ENTRIES),
        sha256=_matching(header, "ledger_head", _SHA256),
    )
    recent = _matching(header, "ledger_recent", _RECENT)
    if not head.sha256.startswith(recent[-RECENT_DIGITS:]) or len(recent) > RECENT_DIGITS * head.entries:
        raise WireError("header", "ledger_recent does not end with the ledger's head")
    return head, recent


def check_names_and_shapes(weights: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """Raise `WireError` unless `weights` are float32 arrays with exactly the names and shapes of `reference`."""
    _match_names(weights, reference)
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise WireError("dtype", f"tensor {name} is not float32")
        if array.shape != reference[name].shape:
            raise WireError("shape", f"tensor {name} has a different shape than the one sent out")


def check_update(weights: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], max_norm: float) -> float:
    """Validate a site's weights and return the Euclidean norm of their change from `reference` over all tensors.

    `weights` and `reference` are float32 arrays by name. Raises `WireError` with "names", "dtype", "shape",
    "not-finite", or "norm" if the norm exceeds `max_norm`. The sum of squares is accumulated in float64 over slices of
    about a million (2^20) values.
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
            raise WireError("not-finite", f"tensor {name} contains NaN or infinity")
    norm = math.sqrt(total)
    if norm > max_norm:
        raise WireError("norm", f"the update's norm {norm:.3g} is above the study's max_update_norm {max_norm:.3g}")
    return norm


def packet_from(record: Mapping[str, Mapping]) -> Packet:
    """Extract the packet from the records of a message, whose names, number and types the peer chose.

    The values of `record["tensors"]` should have the attributes `dtype`, `shape` and `data`, like Flower's arrays.
    Raises `WireError` "header" if the records are not those of a packet; all other checks are made by
    `unpack_broadcast` and `unpack_answer`.
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
    """Return whether a text is a valid code: a lower-case letter, then up to 63 lower-case letters, digits and _:.-"""
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
            raise WireError("not-finite", f"tensor {name} contains NaN or infinity")
        tensors[name] = Tensor("float32", tuple(array.shape), array.astype("<f4", copy=False).tobytes())
    return tensors


def _unpack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    if not tensors:
        raise WireError("names", "no tensor was sent")
    if len(tensors) > MAX_TENSORS:
        raise WireError("size", f"more than {MAX_TENSORS} tensors were sent")
    weights, total = {}, 0
    for name in sorted(tensors):
        if not isinstance(name, str) or not _TENSOR_NAME.fullmatch(name):
            raise WireError("names", "a tensor's name may contain only letters, digits and _./-")
        dtype, shape, data = tensors[name]
        if dtype != "float32":
            raise WireError("dtype", f"tensor {name} is not float32")
        if len(shape) > 8 or any(type(size) is not int or not 0 <= size < 2**31 for size in shape):
            raise WireError("shape", f"tensor {name} has an impossible shape")
        total += len(data)
        if len(data) != 4 * math.prod(shape) or total > MAX_PAYLOAD_BYTES:
            raise WireError(
                "size",
                f"tensor {name} does not have the bytes of its shape, or all tensors together are too large",
            )
        array = np.frombuffer(data, dtype="<f4").reshape(shape)
        if not _all_finite(array):
            raise WireError("not-finite", f"tensor {name} contains NaN or infinity")
        weights[name] = array
    return weights


def _all_finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[start : start + _CHUNK]).all()) for start in range(0, flat.size, _CHUNK))


def _match_names(names: Iterable[str], expected: Iterable[str]) -> None:
    if set(names) != set(expected):
        raise WireError("names", "the tensors' names differ from those that were sent out")


def _checked_header(header: Mapping[str, str | int], kind: str, keys: tuple[str, ...]) -> dict[str, str | int]:
    version = header.get("protocol")
    if version != PROTOCOL_VERSION:
        shown = version if type(version) is int else "none"
        advice = "the older one must upgrade"
        raise WireError("protocol", f"the peer uses protocol {shown}, this side {PROTOCOL_VERSION}; {advice}")
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
        raise WireError("header", f"{key} is not a number of at least 1")
    return value
