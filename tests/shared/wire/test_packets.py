"""Packets arrive over the network bit for bit, or are refused with a code."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wardround.errors import WireError
from wardround.wire.packets import (
    Answer,
    Broadcast,
    LedgerHead,
    Packet,
    Tensor,
    check_update,
    pack_answer,
    pack_broadcast,
    pack_refusal,
    unpack_answer,
    unpack_broadcast,
    weights_sha256,
)

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4), elements=FINITE)


def a_broadcast(weights=None):
    weights = weights or {"head.weight": np.float32([[0, 1, 2], [3, 4, 5]]), "head.bias": np.zeros(2, np.float32)}
    return Broadcast(study_sha256="a" * 64, run_id="run-1", round=3, weights=weights, architecture_sha256="b" * 64)


HEAD = LedgerHead(entries=57, sha256="d" * 64)


def an_answer(weights):
    return Answer(weights=weights, head=HEAD, recent="c" * 8 + "d" * 8)


def refused_with(code, call, *arguments):
    with pytest.raises(WireError) as caught:
        call(*arguments)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.]{0,9}", fullmatch=True), ARRAYS, min_size=1, max_size=4))
def test_the_round_trip_is_bitwise_in_both_directions(weights):
    broadcast = a_broadcast(weights)
    arrived = unpack_broadcast(pack_broadcast(broadcast))
    answered, code = unpack_answer(pack_answer(broadcast, an_answer(arrived.weights)), broadcast)
    assert code is None and answered.head == HEAD
    for name, array in weights.items():
        for copy in (arrived.weights[name], answered.weights[name]):
            assert copy.shape == array.shape and copy.dtype == np.float32
            assert copy.tobytes() == array.tobytes()
    assert replace(arrived, weights={}) == replace(broadcast, weights={})


def test_a_strided_array_arrives_as_it_looks():
    strided = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))[:, ::2]
    arrived = unpack_broadcast(pack_broadcast(a_broadcast({"w": strided})))
    np.testing.assert_array_equal(arrived.weights["w"], strided)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("protocol", 1, "protocol"),
        ("protocol", 4, "protocol"),
        ("protocol", "3", "protocol"),
        ("kind", "answer", "header"),
        ("study_sha256", "A" * 64, "header"),
        ("study_sha256", 5, "header"),
        ("run_id", "../../etc", "header"),
        ("run_id", "x" * 65, "header"),
        ("round", 0, "header"),
        ("round", True, "header"),
        ("round", 10**9, "header"),
        ("architecture_sha256", "", "header"),
        ("surprise", "x", "header"),
    ],
)
def test_a_broadcast_with_a_wrong_header_is_refused(field, value, code):
    packet = pack_broadcast(a_broadcast())
    refused_with(code, unpack_broadcast, Packet(header={**packet.header, field: value}, tensors=packet.tensors))


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({}, "names"),
        ({"a b": Tensor("float32", (1,), b"\0" * 4)}, "names"),
        ({"../x": Tensor("float32", (1,), b"\0" * 4)}, "names"),
        ({"w": Tensor("float64", (1,), b"\0" * 8)}, "dtype"),
        ({"w": Tensor("object", (1,), b"\0" * 8)}, "dtype"),
        ({"w": Tensor("float32", (-1,), b"")}, "shape"),
        ({"w": Tensor("float32", (1,) * 9, b"\0" * 4)}, "shape"),
        ({"w": Tensor("float32", (2**30, 2**30), b"\0" * 4)}, "size"),
        ({"w": Tensor("float32", (2,), b"\0" * 4)}, "size"),
        ({"w": Tensor("float32", (1,), b"\0" * 5)}, "size"),
        ({"w": Tensor("float32", (1,), np.float32("nan").tobytes())}, "not-finite"),
        ({"w": Tensor("float32", (1,), np.float32("-inf").tobytes())}, "not-finite"),
    ],
)
def test_a_broadcast_with_wrong_tensors_is_refused(tensors, code):
    header = pack_broadcast(a_broadcast()).header
    refused_with(code, unpack_broadcast, Packet(header=header, tensors=tensors))


def test_an_answer_with_other_names_shapes_or_dtypes_is_refused():
    broadcast = a_broadcast()
    good = pack_answer(broadcast, an_answer(broadcast.weights))
    bias = good.tensors["head.bias"]
    wrong = {
        "names": {"head.bias": bias},
        "shape": {**good.tensors, "head.weight": good.tensors["head.weight"]._replace(shape=(3, 2))},
        "dtype": {**good.tensors, "head.bias": bias._replace(dtype="float16")},
        "size": {**good.tensors, "head.bias": bias._replace(data=b"")},
    }
    for code, tensors in wrong.items():
        refused_with(code, unpack_answer, Packet(header=good.header, tensors=tensors), broadcast)
    extra = {**good.tensors, "extra": bias}
    refused_with("names", unpack_answer, Packet(header=good.header, tensors=extra), broadcast)
    for name, weights in (("names", {}), ("shape", {**broadcast.weights, "head.bias": np.zeros(3, np.float32)})):
        refused_with(name, pack_answer, broadcast, an_answer(weights))


def test_an_answer_to_another_round_or_run_is_stale():
    broadcast = a_broadcast()
    packet = pack_answer(broadcast, an_answer(broadcast.weights))
    for change in ({"round": 4}, {"run_id": "run-2"}, {"study_sha256": "c" * 64}):
        refused_with("stale", unpack_answer, packet, replace(broadcast, **change))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ledger_entries", 0),
        ("ledger_entries", -1),
        ("ledger_entries", True),
        ("ledger_entries", "57"),
        ("ledger_entries", 2**60),
        ("ledger_head", ""),
        ("ledger_head", "D" * 64),
        ("ledger_head", "d" * 63),
        ("ledger_head", 5),
        ("ledger_recent", "d" * 7),
        ("ledger_recent", "d" * 8 * 58),
        ("ledger_recent", "D" * 8),
        ("ledger_recent", "c" * 8),
        ("ledger_recent", "d" * 8 * 1025),
        ("ledger_recent", 5),
    ],
)
def test_an_answer_without_a_proper_head_of_the_ledger_is_refused(field, value):
    broadcast = a_broadcast()
    packet = pack_answer(broadcast, an_answer(broadcast.weights))
    changed = Packet(header={**packet.header, field: value}, tensors=packet.tensors)
    refused_with("header", unpack_answer, changed, broadcast)
    without = Packet(header={k: v for k, v in packet.header.items() if k != field}, tensors=packet.tensors)
    refused_with("header", unpack_answer, without, broadcast)


def test_a_refusal_arrives_as_its_code_and_carries_no_free_text():
    broadcast = a_broadcast()
    assert unpack_answer(pack_refusal(broadcast, "budget"), broadcast) == (None, "budget")
    assert unpack_answer(pack_refusal(None, "wire-header"), broadcast) == (None, "wire-header")
    refused_with("code", pack_refusal, broadcast, "Cannot read /data/CANARY^ANNA")
    header = {**pack_refusal(broadcast, "failed").header, "code": "CANARY^ANNA was not found"}
    refused_with("code", unpack_answer, Packet(header=header), broadcast)
    tensors = pack_answer(broadcast, an_answer(broadcast.weights)).tensors
    with_tensors = Packet(header={**header, "code": "failed"}, tensors=tensors)
    refused_with("code", unpack_answer, with_tensors, broadcast)


def test_the_update_norm_is_the_euclidean_norm_over_all_tensors_and_is_bounded():
    before = {"a": np.ones((2, 2), np.float32), "b": np.zeros((), np.float32)}
    after = {"a": np.full((2, 2), 3, np.float32), "b": np.float32(3) * np.ones((), np.float32)}
    assert check_update(after, before, max_norm=5.0) == 5.0
    refused_with("norm", check_update, after, before, 4.999)
    huge = {**after, "b": np.full((), 1e30, np.float32)}
    refused_with("norm", check_update, huge, before, 1e3)
    refused_with("not-finite", check_update, {**after, "b": np.full((), np.nan, np.float32)}, before, 1e3)
    refused_with("dtype", check_update, {**after, "b": np.zeros(())}, before, 1e3)


def test_the_norm_of_a_tensor_larger_than_a_slice_is_exact():
    size = (1 << 20) + 3
    before, after = {"w": np.zeros(size, np.float32)}, {"w": np.full(size, 0.5, np.float32)}
    assert check_update(after, before, max_norm=1e6) == pytest.approx(0.5 * size**0.5, rel=1e-12)


def test_the_hash_sees_every_bit_every_name_and_every_shape():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(1, np.float32)}
    same = {"b": np.ones(1, np.float32), "a": np.asfortranarray(np.zeros((2, 3), np.float32))}
    assert weights_sha256(base) == weights_sha256(same)
    assert weights_sha256(base) == weights_sha256({**base, "a": base["a"].astype(">f4")})
    others = [
        {**base, "a": -base["a"]},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].astype(np.float64)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    hashes = {weights_sha256(weights) for weights in [base, *others]}
    assert len(hashes) == 1 + len(others)
