"""A packet of the wire as Flower's record, which both sides send."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from wardround.wire.packets import Packet


def record_of(packet: Packet) -> RecordDict:
    """A packet as Flower carries it. Arrays are raw bytes under a type of our own, which Flower never decodes."""
    arrays = {name: Array(tensor.dtype, tensor.shape, "raw", tensor.data) for name, tensor in packet.tensors.items()}
    return RecordDict({"header": ConfigRecord(dict(packet.header)), "tensors": ArrayRecord(arrays)})
