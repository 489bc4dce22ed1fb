"""Reach a server of a base policy, and ask again while it is gone. Imports websockets: the extra ``remote``."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.sync.client import ClientConnection, connect

from dsrl_offpolicy.base_policies.remote_wire import MARK, MIB, VERSION, ServedPolicy, pack, unpack
from dsrl_offpolicy.errors import InputError

DEFAULT_PORT = 8000
TIMEOUT, PATIENCE = 60.0, 120.0
"""Seconds for one answer, and seconds for which a server that is gone is asked again."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between attempts; each pause is twice the one before."""

LARGEST_REPLY = 1024 * MIB
LOST = (OSError, EOFError, WebSocketException)
"""What may be over in a moment: nobody listens, no answer in time, a connection that broke."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and how long to wait for it.

    Attributes:
        name: what the user wrote, for messages.
        uri: of the websocket.
        timeout: seconds for one answer.
        patience: seconds for which a server that is gone is asked again.
    """

    name: str
    uri: str
    timeout: float = TIMEOUT
    patience: float = PATIENCE

    @classmethod
    def parse(cls, argument: str, flag: str) -> Address:
        """Read ``HOST[:PORT][?timeout=S&patience=S]``, or the same with ``ws://`` or ``wss://`` before it.

        Raises:
            InputError: anything else.
        """
        scheme, colon, rest = argument.partition("://")
        try:
            parts = urlsplit(f"//{rest}" if colon else f"//{argument}")
            port, host = parts.port, parts.hostname
        except ValueError:
            port, host = None, None
        if not host or parts.username or parts.fragment or (colon and scheme not in ("ws", "wss")):
            raise InputError(f"{flag}: expected remote:HOST:PORT, got remote:{argument}")
        place = f"[{host}]" if ":" in host else host
        secure = colon and scheme == "wss"
        uri = f"{'wss' if secure else 'ws'}://{place}"
        if port is not None or not colon:
            uri += f":{DEFAULT_PORT if port is None else port}"
        seconds: dict[str, float] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in ("timeout", "patience"):
                raise InputError(f"{flag}: remote:{argument}: expected timeout or patience after ?, got {name!r}")
            seconds[name] = seconds_above_0(value, f"{flag}: remote:{argument}: {name}")
        return cls(f"remote:{argument}", uri + parts.path, **seconds)


def seconds_above_0(value: Any, where: str) -> float:
    """Return a setting of time.

    Raises:
        InputError: no number of seconds.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds <= 1e6:
        raise InputError(f"{where}: expected seconds above 0, got {value!r}")
    return seconds


@dataclass
class RemoteCounts:
    """What asking has taken so far.

    Attributes:
        requests: answered.
        retries: attempts beyond the first of a request.
        reconnects: connections beyond the first.
    """

    requests: int = 0
    retries: int = 0
    reconnects: int = 0


class Connection:
    """Ask a server, again if need be, until it answers: the answer to a request depends on the request alone.

    Requests go one at a time.

    Args:
        address: of the server.
        where: to name in an error.

    Raises:
        InputError: nobody listens there, or not a server of ours.
    """

    def __init__(self, address: Address, where: str) -> None:
        self.address, self.where = address, where
        self.counts = RemoteCounts()
        self._lock = threading.Lock()
        self._open: ClientConnection | None = None
        self._closing = contextlib.ExitStack()
        try:
            self.served = self._connect(address.timeout)
        except InvalidHandshake as error:
            raise InputError(f"{where}: what answers there is no websocket server ({_said(error)})") from error
        except LOST as error:
            raise InputError(
                f"{where}: no policy server answers there ({_said(error)}); start one with `dsrl serve --base ...`"
            ) from error

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            InputError: the server refuses the request, answers nonsense, serves another policy than before, or has
                been gone for longer than ``patience``.
        """
        data, began, attempts, pause = pack({MARK: {"version": VERSION}, **message}), 0.0, 0, FIRST_PAUSE
        if len(data) > self.served.max_message_bytes:
            raise InputError(
                f"{self.where}: the server takes messages of {self.served.max_message_bytes / MIB:g} MiB, one "
                f"observation makes {len(data) / MIB:.1f}; serve the policy with a larger --max_message"
            )
        with self._lock:
            while True:
                attempts += 1
                try:
                    reply = self._try(data)
                    break
                except LOST as error:
                    lost = error
                now = time.monotonic()
                if attempts == 1:
                    began = now
                    self._tell(f"is gone ({_said(lost)}); asking again for up to {self.address.patience:g} s")
                gone = now - began
                if gone + pause > self.address.patience:
                    raise InputError(
                        f"{self.where}: the server has not answered for {gone:.0f} s ({attempts} attempts, last: "
                        f"{_said(lost)}); start it again, then resume"
                    ) from lost
                time.sleep(pause)
                self.counts.retries += 1
                pause = min(2 * pause, LONGEST_PAUSE)
            if attempts > 1:
                self._tell(f"answers again after {time.monotonic() - began:.1f} s and {attempts} attempts")
            self.counts.requests += 1
        if isinstance(reply, str):
            raise InputError(f"{self.where}: {' '.join(reply.split())[:400]}")
        return unpack(reply, f"{self.where}: answer")

    def close(self) -> None:
        """Leave the server. The next request connects anew."""
        self._open = None
        self._closing.close()

    def _try(self, data: bytes) -> str | bytes:
        if self._open is None:
            served = self._connect(self.address.timeout)
            if not served.same_policy(self.served):
                raise InputError(f"{self.where}: the server serves another policy than before")
            self.counts.reconnects += 1
        assert self._open is not None
        with self._closed_unless_answered():
            self._open.send(data)
            return self._open.recv(timeout=self.address.timeout)

    def _connect(self, timeout: float) -> ServedPolicy:
        opening = connect(
            self.address.uri,
            compression=None,
            max_size=LARGEST_REPLY,
            open_timeout=timeout,
            close_timeout=1,
            proxy=None,
        )
        self._open = self._closing.enter_context(opening)
        with self._closed_unless_answered():
            said = self._open.recv(timeout=timeout)
            return ServedPolicy.from_metadata(unpack(said, f"{self.where}: metadata"), self.where)

    @contextlib.contextmanager
    def _closed_unless_answered(self) -> Iterator[None]:
        """A connection whose answer did not come must not be used again: it may come yet."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(*LOST):
                self.close()
            raise

    def _tell(self, news: str) -> None:
        print(f"note: {self.address.name} {news}", file=sys.stderr, flush=True)


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split())[:160] or type(error).__name__
