"""Rendezvous and heartbeats of ranks: silent, ended, late and foreign processes are detected and named."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kdtrain.cli.launch import shared_facts
from kdtrain.cluster.heartbeat import Address, Heartbeat, PeerLoss
from kdtrain.cluster.launch import _free_port
from kdtrain.cluster.rendezvous import Facts, join_group
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.experiment.settings.config import FitConfig

FACTS = {"--epochs": "3"}
Meeting = Callable[..., "Future[Heartbeat]"]


@pytest.fixture
def address() -> Address:
    return "127.0.0.1", _free_port()


@pytest.fixture
def come(address: Address) -> Iterator[Meeting]:
    """Has a process come to the meeting, here a thread."""
    came: list[Future[Heartbeat]] = []
    with ThreadPoolExecutor() as threads:

        def come(
            rank: int, size: int = 2, facts: Facts = FACTS, limit: float = 10, silence: float = 0.4
        ) -> Future[Heartbeat]:
            came.append(threads.submit(join_group, rank, size, address, facts, limit=limit, silence=silence))
            return came[-1]

        yield come
    for one in came:
        with contextlib.suppress(KdtrainError):
            one.result().close()


@pytest.fixture
def pair(come: Meeting) -> tuple[Heartbeat, Heartbeat]:
    first, second = come(0), come(1)
    return first.result(), second.result()


def loss_of(heartbeat: Heartbeat, beating: tuple[Heartbeat, ...] = (), seconds: float = 3) -> PeerLoss | None:
    """Listens until a peer is lost, while others beat; returns the loss."""
    deadline = time.monotonic() + seconds
    while heartbeat.peer_loss is None and time.monotonic() < deadline:
        for one in beating:
            one.beat()
        heartbeat.receive()
        time.sleep(0.01)
    return heartbeat.peer_loss


def connection(address: Address) -> socket.socket:
    """Connects as a stranger would, as soon as somebody listens."""
    for _ in range(200):
        with contextlib.suppress(ConnectionRefusedError):
            connected = socket.create_connection(address, timeout=5)
            if connected.getsockname() != connected.getpeername():
                return connected
            connected.close()  # with nobody listening, the kernel may connect a port to itself
        time.sleep(0.01)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_all_find_each_other_in_any_order(come: Meeting, order: tuple[int, ...]) -> None:
    futures = []
    for rank in order:
        futures.append(come(rank, size=3))
        time.sleep(0.05)
    ranks = {one.rank: [peer.rank for peer in one.peers] for one in (future.result() for future in futures)}
    assert ranks == {0: [1, 2], 1: [0], 2: [0]}


def test_after_the_rendezvous_its_port_is_free(pair: tuple[Heartbeat, Heartbeat], address: Address) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as oneflow does
        listener.bind(address)
        listener.listen()


def test_a_peer_with_heartbeats_is_not_lost(
    pair: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdtrain.cluster.heartbeat._BEAT", 0.1)
    assert loss_of(pair[0], beating=(pair[1],), seconds=1) is None


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_peer_is_named(pair: tuple[Heartbeat, Heartbeat], silent: int) -> None:
    loss = loss_of(pair[1 - silent], beating=(pair[1 - silent],))
    assert loss is not None
    assert f"process {silent}" in loss.text
    assert "0.4 seconds" in loss.text


def test_a_beat_arrives_by_either_way(
    pair: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a cut TCP waits for long before it sends again; and some networks let no datagram through."""
    monkeypatch.setattr("kdtrain.cluster.heartbeat._BEAT", 0.1)
    listening, beating = pair
    home, beating.peers[0].home = beating.peers[0].home, None
    assert loss_of(listening, beating=(beating,), seconds=0.7) is None
    beating.peers[0].home = home
    with socket.socket() as nowhere:
        line, beating.peers[0].line = beating.peers[0].line, nowhere
        assert loss_of(listening, beating=(beating,), seconds=0.7) is None
        beating.peers[0].line = line


@pytest.mark.parametrize("closed", [0, 1])
def test_a_closed_peer_is_named_at_once(pair: tuple[Heartbeat, Heartbeat], closed: int) -> None:
    pair[closed].close()
    loss = loss_of(pair[1 - closed], seconds=0.3)
    assert loss is not None
    assert f"process {closed} has ended" in loss.text


def test_the_message_of_a_peers_end_is_received(pair: tuple[Heartbeat, Heartbeat]) -> None:
    pair[1].send_end("lost", "failed: no more \x1b[31m" + "x" * 10_000, code=2)
    loss = loss_of(pair[0])
    assert loss is not None
    assert loss.text.startswith("process 1 failed: no more ")
    assert len(loss.text) < 1000
    assert loss.code == 2
    assert not pair[0].all_closed
    pair[1].send_end("closed")
    time.sleep(0.1)
    pair[0].receive()
    assert pair[0].all_closed


def test_a_peer_with_a_planned_end_is_not_lost(pair: tuple[Heartbeat, Heartbeat]) -> None:
    pair[1].send_end("done")
    pair[1].close()
    assert loss_of(pair[0], seconds=0.7) is None
    assert pair[0].all_closed


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\x00\n", b"[1]\n", b'{"end": ["done"], "text": {}}\n', b"[" * 3000 + b"\n", b"\n" * 4000],
)
def test_garbage_from_a_peer_means_nothing(pair: tuple[Heartbeat, Heartbeat], garbage: bytes) -> None:
    pair[1].peers[0].line.send(garbage)
    assert loss_of(pair[0], seconds=0.2) is None


def test_a_peer_that_never_ends_its_line_is_lost(pair: tuple[Heartbeat, Heartbeat]) -> None:
    pair[1].peers[0].line.send(b"x" * 20_000)
    assert loss_of(pair[0], seconds=0.3) is not None


def test_foreign_datagrams_are_no_heartbeats(pair: tuple[Heartbeat, Heartbeat], address: Address) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        deadline = time.monotonic() + 2
        while pair[0].peer_loss is None and time.monotonic() < deadline:
            for data in (b"", bytes(16) + b"\0\0\0\1", b"x" * 1400):
                stranger.sendto(data, address)
            pair[0].receive()
            time.sleep(0.01)
    assert pair[0].peer_loss is not None
    assert pair[0].peers[0].home is None


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\n", b'{"rank": "1"}\n', b"x" * 200_000, b""]
)
def test_foreign_connections_do_not_disturb_the_rendezvous(
    come: Meeting, address: Address, garbage: bytes
) -> None:
    first = come(0)
    with connection(address) as stranger, connection(address):  # the second one says nothing at all
        with contextlib.suppress(OSError):  # the other side may have closed the connection already
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1000) == b""
        come(1).result()
        assert [peer.rank for peer in first.result().peers] == [1]


def test_many_foreign_connections_are_closed(come: Meeting, address: Address) -> None:
    first = come(0)
    with contextlib.ExitStack() as opened:
        oldest = opened.enter_context(connection(address))
        for _ in range(40):
            opened.enter_context(connection(address))
        assert oldest.recv(1) == b""
    come(1).result()
    first.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_connect_is_named_in_time(come: Meeting, address: Address, rank: int) -> None:
    with pytest.raises(KdtrainError, match=f"process {1 - rank} .*{address[0]}:{address[1]} within 0.3 s"):
        come(rank, limit=0.3).result(5)


def test_connected_processes_are_sent_the_rank_that_is_missing(come: Meeting) -> None:
    first, second = come(0, size=3, limit=0.5), come(1, size=3)
    for future in (first, second):
        with pytest.raises(KdtrainError, match="process 2"):
            future.result(5)


def test_unequal_settings_are_refused_on_both_sides(come: Meeting) -> None:
    first, second = come(0), come(1, facts={"--epochs": "4", "--lr": "1"})
    with pytest.raises(UsageError, match="--epochs is 3 in process 0, and 4 in process 1"):
        first.result()
    with pytest.raises(KdtrainError, match="--epochs is 3 in process 0, and 4 in process 1"):
        second.result()


def test_files_may_lie_elsewhere_on_another_machine() -> None:
    def facts(folder: str, **settings: Any) -> Facts:
        plugin, data = f"{folder}/focal.py:Focal,gamma=2", f"folder:{folder}"
        where: dict[str, Any] = {"plugin": (plugin,), "dataset": data, "data_dir": Path(folder)}
        return shared_facts(FitConfig(mode="student", logdir=Path(folder), **where, **settings))

    assert facts("/data/one") == facts("two")
    assert facts("one") != facts("one", seed=1)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (1, 3)])
def test_a_wrong_number_is_refused_on_both_sides(come: Meeting, rank: int, size: int) -> None:
    for future in (come(0), come(rank, size=size)):
        with pytest.raises(KdtrainError, match=f"process {rank} of {size}"):
            future.result(5)


def test_the_same_number_twice_is_refused(come: Meeting) -> None:
    first, second = come(0, size=3), come(1, size=3)
    time.sleep(0.3)
    third = come(1, size=3)
    for future in (first, second, third):
        with pytest.raises(KdtrainError, match="process 1 connected twice"):
            future.result(5)


def test_a_process_that_ended_may_be_started_again(come: Meeting, address: Address) -> None:
    first = come(0, size=3)
    hello = json.dumps({"rank": 1, "size": 3, "facts": FACTS}).encode() + b"\n"
    with connection(address) as killed:
        killed.sendall(hello)
        time.sleep(0.3)
    futures = [first, come(1, size=3), come(2, size=3)]
    assert [future.result().rank for future in futures] == [0, 1, 2]


def test_a_taken_port_is_named(come: Meeting, address: Address) -> None:
    with (
        socket.create_server(address),
        pytest.raises(UsageError, match=f"{address[1]} .*Address already in use"),
    ):
        come(0).result()


@pytest.mark.parametrize("host", ["203.0.113.9", "no.such.host.invalid"])
def test_an_unusable_address_is_named(host: str) -> None:
    with pytest.raises(UsageError, match=host):
        join_group(0, 2, (host, 29500), FACTS, limit=0.3)


def test_another_service_at_the_port_is_named(come: Meeting, address: Address) -> None:
    with socket.create_server(address) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(1000)
                line.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                line.recv(1000)

        service = threading.Thread(target=answer)
        service.start()
        with pytest.raises(KdtrainError, match=f"{address[1]} is not kdtrain"):
            come(1).result(5)
        service.join()
