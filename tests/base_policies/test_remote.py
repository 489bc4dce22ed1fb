"""A served policy computes what the policy itself does; a server that is none of ours is refused in one line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from remote_worlds import Served, Worded, counts, halving_facts, honest, strange_server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.remote_connection import Address
from dsrl_offpolicy.base_policies.remote_wire import pack, unpack
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("kind", ["shortcut_flow", "dppo"])
def test_encode_decode_and_invert_are_those_of_the_policy_to_the_bit(kind, tiny_base):
    spec = str(tiny_base) if kind == "shortcut_flow" else f"dppo:{GOLDEN / 'dppo' / 'plain_mlp_hist2'}"
    local = load_base_policy(spec)
    with Served(spec) as server:
        remote = load_base_policy(server.spec, timeout=900)  # an inversion of DPPO takes its time
        assert remote.info == local.info and remote.fingerprint() == local.fingerprint() and remote.critic is None
        for rows in (1, 5):
            obs = torch.randn(rows, local.info.obs_horizon, local.info.state_dim)
            latent = torch.randn(rows, *local.info.latent_shape)
            there, here = remote.encode(obs), local.encode(obs)
            assert torch.equal(there.features, here.features) and there.context is None
            chunk = local.decode(here, latent)
            assert torch.equal(remote.decode(there, latent), chunk)
            assert torch.equal(remote.decode(Encoding(here.features), latent), chunk)  # features say it all
            for one, other in zip(remote.invert(there, chunk), local.invert(here, chunk), strict=True):
                assert torch.equal(one, other)
        status, said = server.stop()
    assert status == 0 and "Traceback" not in said
    # The trial at loading: 1 encode and 3 decodes of 2 rows; then 4 requests of 1 and of 5 rows.
    assert counts(said) == {
        "requests": 12, "connections": 1, "batches": 12, "rows": 32, "refused": 0, "undelivered": 0,
    }  # fmt: skip


def test_a_policy_of_images_texts_and_a_context():
    local, rows = Worded(), 3
    with Served("remote_worlds:Worded") as server:
        remote = load_base_policy(server.spec)
        example = remote.example_observation(rows)
        assert example["instruction"] == ["go left"] * rows and example["rgb"].shape == (rows, 1, 4, 5, 3)
        obs = {
            "state": torch.randn(rows, 1, 2),
            "rgb": torch.randint(0, 256, (rows, 1, 4, 5, 3), dtype=torch.uint8),
            "instruction": ["go", "stop there", "ü"],
        }
        latent = torch.randn(rows, 4, 2)
        there, here = remote.encode(obs), local.encode(obs)
        assert torch.equal(there.features, here.features)
        assert torch.equal(remote.decode(there, latent), local.decode(here, latent))
        with pytest.raises(NotImplementedError, match="cannot be inverted"):
            remote.invert(there, torch.zeros(rows, 4, 1))
        with pytest.raises(InputError, match="features alone came"):
            remote.decode(Encoding(there.features), latent)
        with pytest.raises(
            InputError, match=r"rgb: expected \[B, 1, 4, 5, 3\] of uint8, got \[3, 1, 4, 5, 3\] of float32"
        ):
            remote.encode({**obs, "rgb": obs["rgb"].float()})
        with pytest.raises(InputError, match="can be called 'noise'"):
            remote.encode({**obs, "noise": obs["state"]})
        assert torch.equal(remote.decode(there, latent), local.decode(here, latent))  # and it serves on


def test_what_is_too_long_for_one_message_goes_in_several(tiny_base):
    local = load_base_policy(tiny_base)
    rows = 5000  # more than the 4096 of one request
    obs = torch.randn(rows, local.info.obs_horizon, local.info.state_dim)
    with Served(tiny_base, "--max_message", 1) as server:
        remote = load_base_policy(server.spec)
        assert torch.allclose(remote.encode(obs).features, local.encode(obs).features, atol=1e-6)
        assert remote.counts.requests == 4 + 2  # of 4096 rows and of 904: 39 numbers make .6 MiB of 4096
        with pytest.raises(
            InputError, match=r"takes messages of 1 MiB, one observation makes 1\.5; .*--max_message"
        ):
            remote.encode({"state": obs[:1], "lidar": torch.zeros(1, 400_000)})


def test_requests_of_several_clients_share_a_batch():
    with Served("remote_worlds:Slow", "--batch_wait", 4000) as server:
        policies = []
        for _ in range(3):
            policies.append(load_base_policy(server.spec))
            policies[-1].connection.close()  # a client that is connected and idle is waited for
        barrier, found = threading.Barrier(3), [False] * 3

        def ask(i: int) -> None:
            encoding, latent = Encoding(torch.full((i + 1, 4), float(i))), torch.full((i + 1, 4, 1), float(i))
            policies[i].decode(encoding, latent)  # connects
            barrier.wait()
            found[i] = all(torch.equal(policies[i].decode(encoding, latent), 0.5 * latent) for _ in range(5))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 3
        left = counts(server.stop()[1])
    # Each client's trial takes 4 batches of 2 rows, their first requests 1 to 3 batches. After that 5 times 3
    # requests of 1, 2 and 3 rows wait for each other.
    assert left["requests"] == 3 * 4 + 3 + 15 and left["rows"] == 3 * 4 * 2 + 6 * (1 + 2 + 3)
    assert 3 * 4 + 1 + 5 <= left["batches"] <= 3 * 4 + 3 + 5


def test_with_batches_of_one_nobody_shares_a_call():
    with Served("remote_worlds:Slow", "--max_batch", 1, "--batch_wait", 1000) as server:
        policies = [load_base_policy(server.spec) for _ in range(2)]
        threads = [
            threading.Thread(target=policy.decode, args=(Encoding(torch.zeros(2, 4)), torch.ones(2, 4, 1)))
            for policy in policies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = counts(server.stop()[1])
    assert left["batches"] == left["requests"] == 2 * 4 + 2


def test_nothing_is_computed_for_clients_that_have_left():
    with Served("remote_worlds:Slow", "--max_batch", 1, "--batch_wait", 0) as server:
        request = pack({**MARKED, "features": FEATURES, "noise": NOISE})
        clients = [connect(f"ws://127.0.0.1:{server.port}").__enter__() for _ in range(30)]
        for client in clients:
            client.recv()
        for client in clients:
            client.send(request)
        for client in clients:
            client.close()
        assert load_base_policy(server.spec).counts.requests == 4
        left = counts(server.stop()[1])
    # Each takes .1 s, closing them all much less: most are still in the queue when their clients go.
    assert left["requests"] >= 4 and left["undelivered"] > 0 and left["batches"] < 30 + 4


def test_a_request_that_fails_costs_others_nothing():
    with Served("remote_worlds:Touchy", "--batch_wait", 300) as server:
        good, bad = load_base_policy(server.spec), load_base_policy(server.spec)
        latent, errors = torch.ones(1, 4, 1), []

        def fail() -> None:
            try:
                bad.decode(Encoding(torch.full((1, 4), 13.0)), latent)
            except InputError as error:
                errors.append(str(error))

        thread = threading.Thread(target=fail)
        thread.start()
        assert torch.equal(good.decode(Encoding(torch.zeros(1, 4)), latent), 0.5 * latent)
        thread.join()
        assert len(errors) == 1 and "an unlucky number" in errors[0] and "remote_worlds.py, line" in errors[0]
        left = counts(server.stop()[1])
    assert (left["refused"], left["requests"]) == (1, 2 * 4 + 1)


def test_clients_of_openpi_are_answered_one_observation_at_a_time():
    local = Worded()
    obs = {"state": np.ones(2), "rgb": np.full((4, 5, 3), 7, np.uint8), "instruction": "go left"}
    noise = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    with Served("remote_worlds:Worded") as server, connect(f"ws://127.0.0.1:{server.port}") as client:
        assert "dsrl" in unpack(client.recv(), "metadata")

        def infer(message: dict[str, Any]) -> dict[str, Any]:
            client.send(pack(message))
            return unpack(client.recv(), "answer")

        found = infer({**obs, "noise": noise})
        batched = {
            "state": torch.ones(1, 1, 2),
            "rgb": torch.full((1, 1, 4, 5, 3), 7, dtype=torch.uint8),
            "instruction": ["go left"],
        }
        chunk = local.decode(local.encode(batched), torch.from_numpy(noise)[None])
        assert np.array_equal(found["actions"], chunk[0, 1:3].numpy())  # the rows to execute
        assert np.array_equal(found["noise"], noise) and found["features"].shape == (3,)
        assert found["server_timing"]["infer_ms"] > 0
        drawn, again = infer(obs), infer(obs)  # openpi's own clients bring no noise
        assert drawn["noise"].shape == (4, 2) and not np.array_equal(drawn["noise"], again["noise"])
        assert np.array_equal(infer({**obs, "noise": drawn["noise"]})["actions"], drawn["actions"])


def test_a_web_browser_can_ask_whether_it_lives():
    from urllib.request import urlopen

    with Served("tiny_worlds:HalvingPolicy") as server:
        assert urlopen(f"http://127.0.0.1:{server.port}/healthz").read() == b"OK\n"


MARKED = {"dsrl": {"version": 1}}
FEATURES, NOISE = np.zeros((2, 4), np.float32), np.zeros((2, 4, 1), np.float32)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", ["binary frame", "text"]),
        (b"\x93", ["expected msgpack"]),
        ({"state": np.zeros((3, 2), np.float32)}, ["state: expected [B, 2, 2], got [1, 3, 2]"]),
        ({"state": [0.0] * 4}, ["state: expected an array, or a text per row, got list"]),
        ({"instruction": "go"}, ["state: expected [B, 2, 2], got none"]),
        ({"dsrl": {"version": 2}, "features": FEATURES, "noise": NOISE}, ["version 1", "got 2"]),
        ({"dsrl": 1, "features": FEATURES, "noise": NOISE}, ["version 1"]),
        ({**MARKED}, ["either an observation or its features"]),
        ({**MARKED, "features": FEATURES}, ["noise to decode or actions to invert"]),
        ({**MARKED, "features": FEATURES, "noise": NOISE[:1]}, ["noise: expected 2 rows", "got 1"]),
        ({**MARKED, "features": FEATURES, "noise": NOISE[:, :2]}, ["noise: expected [B, 4, 1]", "[2, 2, 1]"]),
        ({**MARKED, "features": FEATURES, "noise": NOISE.astype(int)}, ["of float", "int64"]),
        ({**MARKED, "features": FEATURES[:0], "noise": NOISE[:0]}, ["features: expected [B, 4]", "[0, 4]"]),
        ({**MARKED, "features": FEATURES, "actions": NOISE}, ["can be inverted"]),
        ({**MARKED, "state": NOISE, "features": FEATURES}, ["either an observation or its features"]),
        (
            {**MARKED, "state": np.zeros((2, 2, 2)), "more": np.zeros(3)},
            ["more: expected 1 to 4096 rows", "got 3"],
        ),
        ({**MARKED, "state": np.float32(1)}, ["state: expected an array"]),
    ],
)
def test_a_wrong_request_is_one_line_and_the_next_one_is_answered(halving_server, message, words):
    with connect(f"ws://127.0.0.1:{halving_server.port}") as client:
        client.recv()
        client.send(message if isinstance(message, str | bytes) else pack(message))
        said = client.recv()
        assert isinstance(said, str) and "\n" not in said and "Traceback" not in said
        assert all(word in said for word in words), said
        client.send(pack({**MARKED, "features": FEATURES, "noise": NOISE + 1}))
        assert np.array_equal(unpack(client.recv(), "answer")["actions"], 0.5 * (NOISE + 1))


@pytest.fixture(scope="module")
def halving_server():
    with Served("tiny_worlds:HalvingPolicy") as server:
        yield server


def test_messages_of_any_size_and_strangers_do_not_end_a_server():
    with Served("tiny_worlds:HalvingPolicy", "--max_message", 1) as server:
        with connect(f"ws://127.0.0.1:{server.port}", compression=None) as client:
            client.recv()
            with contextlib.suppress(ConnectionClosed):
                client.send(b"\0" * 2**21)
            with pytest.raises(ConnectionClosed, match="1009"):
                client.recv()
        with socket.create_connection(("127.0.0.1", server.port)) as stranger:
            stranger.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
            stranger.recv(100)
        with socket.create_connection(("127.0.0.1", server.port)):
            pass
        assert load_base_policy(server.spec).counts.requests == 4
        status, said = server.stop()
    assert status == 0 and "Traceback" not in said and counts(said)["requests"] == 4


def without_noise(message):
    return {name: part for name, part in honest(message).items() if name != "noise"}


def deaf(message):
    return honest(message | {"noise": np.zeros_like(message["noise"])} if "noise" in message else message) | {
        "noise": message.get("noise", FEATURES)
    }


def moody(message):
    said = honest(message)
    return said | {"actions": said["actions"] + np.float32(time.perf_counter() % 1)} if "actions" in said else said


def echoes_another(message):
    return honest(message) | {"noise": NOISE}


@pytest.mark.parametrize(
    ("answer", "first", "words"),
    [
        (without_noise, None, ["drops `noise`", "dsrl serve"]),
        (echoes_another, None, ["drops `noise`"]),
        (deaf, None, ["two different latents decoded to the same actions", "cannot be steered"]),
        (moody, None, ["the same latent decoded to actions"]),
        (lambda _: "RuntimeError:\n no GPU", None, ["RuntimeError: no GPU"]),
        (lambda _: b"\x93", None, ["answer: expected msgpack"]),
        (lambda _: {}, None, ["answer: features: expected [2, 4] of float32, got none"]),
        (lambda m: honest(m) | {"features": FEATURES.astype(float)}, None, ["of float32, got [2, 4] of float64"]),
        (lambda m: honest(m) | {"features": FEATURES * np.nan}, None, ["features of encode", "finite"]),
        (honest, {}, ["does not say what it serves", "dsrl serve"]),
        (honest, {"action_horizon": 50}, ["does not say what it serves"]),
        (honest, halving_facts(version=7).metadata(), ["version 7", "version 1", "install the same"]),
        (honest, "hello", ["metadata: expected a binary frame"]),
        (honest, b"\x93", ["metadata: expected msgpack"]),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_steered_is_refused_when_loaded(answer, first, words):
    with strange_server(answer, first) as port, pytest.raises(InputError) as error:
        load_base_policy(f"remote:127.0.0.1:{port}")
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"base: remote:127.0.0.1:{port}: "), message
    assert all(word in message for word in words), message


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_listens():
    port = free_port()
    with pytest.raises(
        InputError, match=rf"^base: remote:127.0.0.1:{port}: no policy server answers .*dsrl serve"
    ):
        load_base_policy(f"remote:127.0.0.1:{port}")
    with pytest.raises(InputError, match="no policy server answers"):
        load_base_policy("remote:no-such-host.invalid:80")


def test_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(InputError, match="no policy server answers there"):
            load_base_policy(f"remote:127.0.0.1:{port}?timeout=0.3")

        def web() -> None:
            accepted, _ = silent.accept()  # the one above, which has gone
            accepted.close()
            accepted, _ = silent.accept()
            accepted.recv(4096)
            accepted.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            accepted.close()

        thread = threading.Thread(target=web)
        thread.start()
        with pytest.raises(InputError, match=r"no websocket server \(.*404"):
            load_base_policy(f"remote:127.0.0.1:{port}")
        thread.join()


@pytest.mark.parametrize(
    ("argument", "uri", "waits"),
    [
        ("box:9000", "ws://box:9000", (60, 120)),
        ("box", "ws://box:8000", (60, 120)),
        ("[::1]:9000?timeout=2", "ws://[::1]:9000", (2, 120)),
        ("ws://box:9000?patience=5&timeout=1.5", "ws://box:9000", (1.5, 5)),
        ("wss://box.org/policy", "wss://box.org/policy", (60, 120)),
    ],
)
def test_addresses(argument, uri, waits):
    address = Address.parse(argument, "base")
    assert (address.uri, address.timeout, address.patience) == (uri, *waits)


@pytest.mark.parametrize(
    "argument",
    ["box:port", "box:99999", ":8000", "http://box:80", "a@box:80", "box:80?tiemout=3", "box:80?timeout=0",
     "box:80?patience=soon", "box:80?timeout=", "box:80#x", "[::1"],
)  # fmt: skip
def test_what_is_no_address_is_one_line(argument):
    with pytest.raises(InputError, match=r"^base: ") as error:
        Address.parse(argument, "base")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"act_horizon": 3}, "act_horizon: expected 2 as remote:"),
        ({"weights": "ema"}, "weights: is chosen where the policy is served"),
        ({"timeout": 0}, "timeout: expected seconds above 0"),
    ],
)
def test_options_that_do_not_fit(halving_server, options, words):
    with pytest.raises(InputError, match=words):
        load_base_policy(halving_server.spec, **options)
    same = load_base_policy(halving_server.spec, obs_horizon=2, pred_horizon=4, act_horizon=2, patience=3)
    assert same.connection.address.patience == 3
