"""Converts a packet of the wire to Flower's record; both sides send it."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from wardround.wire.packets import Packet


def record_of(packet: Packet) -> RecordDict:
    """Return a packet as a Flower record. Arrays are raw bytes under our own type, which Flower never decodes."""
    arrays = {name: Array(tensor.dtype, tensor.shape, "raw", tensor.data) for name, tensor in packet.tensors.items()}
    return RecordDict({"header": ConfigRecord(dict(packet.header)), "tensors": ArrayRecord(arrays)})
