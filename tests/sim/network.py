"""A network in memory: connections that are slow, stall, and are cut in the middle of a frame.

It stands behind the loop's socket methods, so client and server run as they are.  Bytes of one direction of one
connection arrive in order, in pieces, each after its own delay; connections overtake each other.  A blocked way loses
nothing, as TCP does not: its bytes wait, and go on when the way is free, unless the kernel gives the connection up
before.  A node that loses its power tells nobody: its peers' ends stand half open until they send, and its next life
resets them.
"""

import asyncio
import contextvars
import hashlib
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from .loop import OWNER, VirtualLoop, lend_socket

CONNECT_GIVEN_UP_S: Final = 120.0
GIVEN_UP_S: Final = 45.0
"""What nobody acknowledges for so long ends the connection: TCP_USER_TIMEOUT."""
WINDOW_BYTES: Final = 64 * 1024
_TICK_S: Final = 1e-6


class Sock:
    """What a server takes for a socket."""

    family = 2

    def __init__(self, end: "End | None" = None) -> None:
        self.end = end
        self.closed = False

    def setblocking(self, flag: bool) -> None:
        pass

    def setsockopt(self, *args: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        if self.end is not None and self.end.protocol is None:
            self.end.abort()


@dataclass
class Listening:
    """A listening socket, and the connections that nobody accepted yet."""

    sock: Sock
    owner: str
    waiting: "deque[tuple[Sock, tuple[str, int]]]" = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class End(asyncio.Transport):
    """One end of a connection; `other` is the far one."""

    def __init__(self, network: "Network", owner: str, peername: tuple[str, int]) -> None:
        super().__init__({"peername": peername})
        self.network, self.owner, self.machine = network, owner, network.node_of(owner)
        self.other: End
        self.far = owner == self.machine
        """Whether it leaves the machine; what an operator asks at home holds times that were measured."""
        self.protocol: asyncio.Protocol | None = None
        self.sock: Any = None
        self._inbox: deque[bytes] = deque()
        """Bytes that came; an empty text is the end of them."""
        self._held: deque[bytes] = deque()
        """Bytes of ours that wait for the way to be free."""
        self._paused = self._writing_paused = self._closing = self._ended = self.lost = False
        self._eof_sent = False
        self._high, self._unsent, self._last_s = WINDOW_BYTES, 0, 0.0

    # -- what protocols call

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = WINDOW_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def is_closing(self) -> bool:
        return self._closing or self.lost

    def is_reading(self) -> bool:
        return not self._paused

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.network.loop.call_soon(self._take)

    def write(self, data: Any) -> None:
        if self._closing or self.lost or not data:
            return
        data = bytes(data)
        self._unsent += len(data)
        for piece in self.network.pieces(data) if self.far and self.other.far else [data]:
            self._send(piece)
        if self._unsent > self._high and not self._writing_paused:
            self._writing_paused = True
            self.get_protocol().pause_writing()  # type: ignore[attr-defined]

    def write_eof(self) -> None:
        if not self._eof_sent and not self.lost:
            self._eof_sent = True
            self._send(b"")

    def close(self) -> None:
        if not self._closing and not self.lost:
            self.write_eof()
            self._closing = True
            if not self._unsent:
                self.network.loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self.lost:
            self._closing = True
            self.network.loop.call_soon(self._lose, None)
            self.network.reset_later(self.other)

    # -- what the network does

    def begin(self) -> None:
        """Hand over what came before the protocol was there."""
        self.get_protocol().connection_made(self)
        self.network.loop.call_soon(self._take)

    def reset(self) -> None:
        """End here as by a reset."""
        self._lose(ConnectionResetError(104, "Connection reset by peer"))

    def silence(self) -> None:
        """Be gone without a word: the machine lost its power."""
        self.lost = True
        self._inbox.clear()
        self._held.clear()
        if self.protocol is not None:  # what is left of the process there lets go of it
            self.network.loop.call_soon(self.protocol.connection_lost, None)

    def free(self) -> None:
        """Send what waited for the way."""
        held, self._held = self._held, deque()
        for piece in held:
            self._send(piece)

    def _send(self, piece: bytes) -> None:
        network = self.network
        if self._held or network.is_blocked(self.owner, self.other.owner):
            self._hold(piece)
            return
        self._last_s = max(self._last_s + _TICK_S, network.loop.time() + network.delay_s())
        network.loop.call_at(self._last_s, self._arrive, piece, context=network.context)

    def _hold(self, piece: bytes) -> None:
        if not self._held:
            self.network.loop.call_later(GIVEN_UP_S, self._give_up, piece, context=self.network.context)
        self._held.append(piece)

    def _give_up(self, piece: bytes) -> None:
        if self._held and self._held[0] is piece:
            self.reset()

    def _arrive(self, piece: bytes) -> None:
        other, network = self.other, self.network
        if network.is_blocked(self.owner, other.owner) or (other.lost and other.machine not in network.alive):
            self._hold(piece)
            return
        if other.lost:
            self.reset()
            return
        if self.far and other.far:
            network.saw(self, piece)
        if network.cuts(self, other):
            cut = piece[: network.dice.randint(0, len(piece))]
            if cut:
                other._inbox.append(cut)
                other._take()
            self.reset()
            other.reset()
            return
        other._inbox.append(piece)
        other._take()

    def _take(self) -> None:
        while self._inbox and not self._paused and self.protocol is not None and not self.lost:
            piece = self._inbox.popleft()
            if piece:
                OWNER.set(self.owner)
                self.protocol.data_received(piece)
                self.other._taken(len(piece))
            elif not self.protocol.eof_received():
                self.close()

    def _taken(self, count: int) -> None:
        self._unsent = max(0, self._unsent - count)
        if self._writing_paused and self._unsent <= self._high // 4:
            self._writing_paused = False
            if not self.lost and self.protocol is not None:
                self.network.loop.call_soon(self.protocol.resume_writing)  # type: ignore[attr-defined]
        if self._closing and not self._unsent:
            self._lose(None)

    def _lose(self, exc: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        if self._inbox:
            self.network.reset_later(self.other)
        self._inbox.clear()
        if self.sock is not None:
            lend_socket(self.sock)
        if self.protocol is not None:
            OWNER.set(self.owner)
            self.protocol.connection_lost(exc)


class Network:
    """All connections, and the weather."""

    def __init__(self, loop: VirtualLoop, dice: Random) -> None:
        self.loop, self.dice = loop, dice
        self.alive: set[str] = set()
        """Nodes whose machines are on; one that is off answers nothing."""
        self.addresses: dict[str, str] = {}
        self.blocked: set[tuple[str, str]] = set()
        self.delay_max_s = 0.002
        self.cut_share = 0.0
        self.context = contextvars.copy_context()
        self.trace = hashlib.sha256()
        self._listening: dict[tuple[str, int], Listening] = {}
        self._socks: dict[Sock, Listening] = {}
        self._dialled: dict[Any, End] = {}
        self._ends: list[End] = []

    def listen(self, owner: str, port: int) -> Sock:
        """Return a listening socket."""
        sock = Sock()
        self._socks[sock] = self._listening[self.addresses[owner], port] = Listening(sock, owner)
        return sock

    def node_of(self, owner: str) -> str:
        """Return the machine that an owner runs on: operators sit at their node."""
        return owner.partition("@")[2] or owner

    def is_blocked(self, one: str, two: str) -> bool:
        return bool(self.blocked) and (self.node_of(one), self.node_of(two)) in self.blocked

    def block(self, one: str, two: str) -> None:
        self.blocked.add((one, two))

    def free(self) -> None:
        """Free every way."""
        self.blocked.clear()
        for end in list(self._ends):
            end.free()

    def delay_s(self) -> float:
        return self.dice.random() * self.delay_max_s

    def pieces(self, data: bytes) -> list[bytes]:
        """Return the data as it travels: mostly whole, sometimes in two parts."""
        if len(data) > 1 and self.dice.random() < 0.1:
            at = self.dice.randint(1, len(data) - 1)
            return [data[:at], data[at:]]
        return [data]

    def cuts(self, one: End, two: End) -> bool:
        return one.far and two.far and self.dice.random() < self.cut_share

    def saw(self, end: End, piece: bytes) -> None:
        """Add what arrives to the trace."""
        self.trace.update(f"{self.loop.time():.6f} {end.owner} {end.other.owner} {len(piece)} ".encode() + piece)

    def reset_later(self, end: End) -> None:
        self.loop.call_later(self.delay_s(), end.reset, context=self.context)

    def died(self, node: str, *, power_lost: bool) -> None:
        """End a node's sockets; after a power loss nobody is told."""
        self.alive.discard(node)
        self._listening = {key: each for key, each in self._listening.items() if each.owner != node}
        for end in [end for end in self._ends if end.machine == node]:
            far_away = end.other.machine != node
            end.silence()
            if far_away and not power_lost:
                self.reset_later(end.other)
        self._ends = [end for end in self._ends if not end.lost]

    # -- behind the loop

    async def connect(self, sock: Any, address: tuple[str, int]) -> None:
        owner, host = OWNER.get(), self.node_of(OWNER.get())
        await asyncio.sleep(self.delay_s())
        target = next((name for name, found in self.addresses.items() if found == address[0]), "")
        if target not in self.alive or self.is_blocked(host, target) or self.is_blocked(target, host):
            await asyncio.sleep(CONNECT_GIVEN_UP_S)
            raise TimeoutError(110, "Connection timed out")
        listening = self._listening.get((address[0], address[1]))
        if listening is None or listening.sock.closed:
            raise ConnectionRefusedError(111, "Connection refused")
        near, far = End(self, owner, address), End(self, target, (self.addresses[host], 40000))
        near.other, far.other = far, near
        self._ends = [end for end in self._ends if not end.lost] + [near, far]
        self._dialled[sock] = near
        listening.waiting.append((Sock(far), (self.addresses[host], 40000)))
        listening.news.set()

    async def accept(self, sock: Sock) -> tuple[Sock, tuple[str, int]]:
        listening = self._socks[sock]
        while not listening.waiting:
            listening.news.clear()
            await listening.news.wait()
        return listening.waiting.popleft()

    async def attach(self, sock: Any, protocol: asyncio.Protocol) -> End:
        end = sock.end if isinstance(sock, Sock) else self._dialled.pop(sock)
        end.sock, end.protocol = sock, protocol
        end.begin()
        return end
