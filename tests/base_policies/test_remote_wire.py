"""Messages: as openpi writes them, and never more than numbers of a size that was checked."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from dsrl_offpolicy.base_policies.remote_wire import MOST_ROWS, ServedPolicy, pack, unpack
from dsrl_offpolicy.errors import InputError

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    np.zeros((2, 0, 3), np.uint8),
    np.array(1.5),
    np.array([True, False]),
    np.arange(4, dtype=np.int64)[::2],
    np.linspace(-1, 1, 5, dtype=np.float16),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_arrays_come_back_as_they_were(array):
    back = unpack(pack({"x": array, "text": ["a", "ü"], "n": 3, "scalar": np.uint8(1)}), "test")
    assert back["x"].dtype == array.dtype and back["x"].shape == array.shape and np.array_equal(back["x"], array)
    assert back["x"].flags.writeable and back["text"] == ["a", "ü"] and back["n"] == 3
    assert back["scalar"] == 1 and back["scalar"].dtype == np.uint8


def test_bytes_on_the_wire_are_those_of_openpi():
    # msgpack_numpy.pack_array of openpi: keys are bytes, the shape is a tuple, the dtype numpy's own string.
    array = np.array([[1, 2]], np.float32)
    theirs = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": (1, 2)}
    assert pack({"actions": array}) == msgpack.packb({"actions": theirs})
    scalar = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f4"}
    assert pack({"x": np.float32(2.5)}) == msgpack.packb({"x": scalar})


def test_the_other_byte_order_is_read():
    back = unpack(pack({"x": np.array([1, 258], ">i4")}), "test")["x"]
    assert back.dtype == np.int32 and back.dtype.isnative and list(back) == [1, 258]


def ndarray(**changes: object) -> bytes:
    whole = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"x": {**whole, **{k.encode(): v for k, v in changes.items()}}})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ndarray(dtype="|O"), ["plain numbers", "'|O'"]),
        (ndarray(dtype="O"), ["plain numbers", "'O'"]),
        (ndarray(dtype="|V8"), ["plain numbers"]),
        (ndarray(dtype="<c8"), ["plain numbers"]),
        (ndarray(dtype="<U2"), ["plain numbers"]),
        (ndarray(dtype="<M8[s]"), ["plain numbers"]),
        (ndarray(dtype="f4,f4"), ["plain numbers"]),
        (ndarray(dtype="(2,)f4"), ["plain numbers"]),
        (ndarray(dtype=["a", "b"]), ["plain numbers"]),
        (ndarray(dtype=None), ["plain numbers"]),
        (ndarray(shape=[2**40, 2**40]), ["bytes for an array of shape [1099511627776, 1099511627776]", "got 8"]),
        (ndarray(shape=[3]), ["expected 12 bytes", "got 8"]),
        (ndarray(shape=[2**62, 0], data=b""), ["test"]),
        (ndarray(shape=[-2]), ["shape"]),
        (ndarray(shape=[True, 2]), ["shape"]),
        (ndarray(shape=[1.0, 2]), ["shape"]),
        (ndarray(shape=[1] * 8 + [2]), ["at most 8 axes"]),
        (ndarray(shape=2), ["shape"]),
        (ndarray(data="00000000"), ["expected 8 bytes", "got none"]),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}), ["a number", "str"]),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}), ["plain numbers"]),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1 << 63, b"dtype": "|i1"}}), ["test"]),
        (msgpack.packb([1, 2]), ["a mapping", "list"]),
        (msgpack.packb({b"state": 1}), ["names as keys"]),
        (msgpack.packb({1: 1}), ["msgpack"]),
        (msgpack.packb({"x": msgpack.ExtType(5, b"1")}), ["msgpack"]),
        (msgpack.packb({"x": [0] * (MOST_ROWS + 1)}), ["msgpack"]),
        (msgpack.packb({"x": [[[]] * 4000] * 2}), ["at most 4096 lists and mappings"]),
        (b"\x91" * 5000, ["msgpack"]),
        (b"\xdf\xff\xff\xff\xff", ["msgpack"]),  # a mapping of 4,294,967,295 entries
        (b"\xc6\xff\xff\xff\xff", ["msgpack"]),  # 4 GiB of bytes that do not follow
        (msgpack.packb({"x": 1}) + b"\0", ["msgpack"]),
        (b"\x81\xa1\xff\x01", ["msgpack"]),  # a key that is no UTF-8
        (b"", ["msgpack"]),
        (b"\x80\x04\x95pickle", ["msgpack"]),
        ("hello", ["binary frame", "text"]),
    ],
)
def test_what_no_client_of_ours_sends_is_one_line(data, words):
    with pytest.raises(InputError) as error:
        unpack(data, "test")
    message = str(error.value)
    assert "\n" not in message and message.startswith("test") and len(message) < 300
    assert all(word in message for word in words), message


@pytest.mark.parametrize("value", [np.array([None]), np.array(["a"]), np.array([1j]), object(), {1, 2}, 1 << 70])
def test_what_is_no_number_is_not_sent(value):
    with pytest.raises(InputError, match="a message to a remote policy"):
        pack({"x": value})


def test_what_a_server_says_comes_back_and_is_held_to_its_types():
    from remote_worlds import halving_facts

    served = halving_facts(example={"state": np.zeros((1, 2, 2), np.float32), "words": ["go"]})
    said = unpack(pack(served.metadata()), "test")
    back = ServedPolicy.from_metadata(said, "test")
    assert back.same_policy(served) and back.info == served.info and back.example["words"] == ["go"]
    assert not back.same_policy(halving_facts(fingerprint="another"))
    later = {"dsrl": {**said["dsrl"], "of_a_later_version": 1}}
    assert ServedPolicy.from_metadata(later, "test").info == served.info


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, ["version 2", "this client version 1"]),
        ({"version": None}, ["version None"]),
        ({"fingerprint": 3}, ["fingerprint"]),
        ({"fingerprint": ""}, ["fingerprint"]),
        ({"max_message_bytes": 10}, ["max_message_bytes"]),
        ({"info": {}}, ["info", "obs_horizon"]),
        ({"info": {"obs_horizon": 10**9}}, ["obs_horizon"]),
        ({"info": {"latent_shape": [4]}}, ["latent_shape"]),
        ({"info": {"executed_rows": "1:3"}}, ["executed_rows"]),
        ({"info": {"feature_dim": 2.5}}, ["feature_dim"]),
    ],
)
def test_what_a_server_cannot_say_is_one_line(changes, words):
    from remote_worlds import halving_facts

    said = unpack(pack(halving_facts().metadata()), "test")["dsrl"]
    if changes.get("info"):
        changes = {"info": {**said["info"], **changes["info"]}}
    with pytest.raises(InputError) as error:
        ServedPolicy.from_metadata({"dsrl": {**said, **changes}}, "base: remote:x")
    message = str(error.value)
    assert "\n" not in message and message.startswith("base: remote:x"), message
    assert all(word in message for word in words), message
