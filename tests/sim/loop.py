"""The event loop of a simulation: its clock jumps to the next timer, and nothing in it depends on the machine.

What runs in a thread elsewhere runs here on the loop, after a delay drawn from the world's dice: so a simulation has
one thread, and a seed replays exactly.  Tasks hash by the order they were made in, because a TaskGroup keeps a set of
them and its order would otherwise follow addresses in memory.  Each task belongs to the node in whose context it was
made; the clock of a node, its disk and its end of a connection are found by that.
"""

import asyncio
import contextvars
import gc
import itertools
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from functools import partial
from random import Random
from typing import Any, Final, Protocol

OWNER: "contextvars.ContextVar[str]" = contextvars.ContextVar("owner", default="")
"""The node, or the operator of one, that the running code belongs to."""

TURNS_MAX: Final = 400_000
"""Of the loop in one world: far beyond any healthy one, it ends one that spins."""
TURNS_PER_COLLECTION: Final = 4000
"""Garbage is collected at fixed places, because what is collected may call the loop."""
_TICK_S: Final = 1e-6
_DELAYS_S: Final = (0.0, 0.0, 0.0005, 0.004)


class Stuck(Exception):
    """Nothing is ready and no timer is set, or the loop spins."""


class Sockets(Protocol):
    """The network behind the loop's socket methods."""

    async def connect(self, sock: Any, address: tuple[str, int]) -> None:
        """Connect a socket that was dialled."""

    async def accept(self, sock: Any) -> tuple[Any, tuple[str, int]]:
        """Return the next connection to a listening socket."""

    async def attach(self, sock: Any, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Begin to speak over a connected socket."""


class NumberedTask(asyncio.Task):  # type: ignore[type-arg]
    """A task that hashes by its number."""

    numbers = itertools.count()

    def __init__(self, *args: Any, **named: Any) -> None:
        self.number = next(self.numbers)
        super().__init__(*args, **named)

    def __hash__(self) -> int:
        return self.number

    __eq__ = object.__eq__


class _Selector:
    """Waits by setting the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout_s: float | None) -> list[object]:
        self._turns += 1
        if timeout_s is None:
            raise Stuck("nothing is ready and no timer is set")
        if self._turns > TURNS_MAX:
            raise Stuck(f"{TURNS_MAX} turns of the loop")
        if self._turns % TURNS_PER_COLLECTION == 0:
            gc.collect()
        if timeout_s > 0:
            self._loop.now_s += timeout_s
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without a machine beneath it."""

    def __init__(self, dice: Random) -> None:
        super().__init__()
        self.now_s = 0.0
        self.dice = dice
        self.sockets: Sockets
        self.tasks: list[NumberedTask] = []
        self.broken: list[str] = []
        self._selector = _Selector(self)
        self._last_s: dict[int, float] = {}
        self._pools: list[Executor] = []
        NumberedTask.numbers = itertools.count()
        self.set_task_factory(self._task)
        self.set_exception_handler(self._break)

    def time(self) -> float:
        """Return virtual seconds since the world began."""
        return self.now_s

    def after(self, seconds: float, call: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call in the future, for the world itself."""
        context = contextvars.copy_context()
        context.run(OWNER.set, "")
        return self.call_later(seconds, call, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:
        """Run the function on the loop a little later; a pool of one thread keeps its order."""
        if executor is not None and getattr(executor, "_shutdown", False):
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: asyncio.Future[Any] = self.create_future()
        self.call_at(self._turn_of(executor), _settle, future, func, args)
        return future

    def submit(self, executor: Executor, func: Callable[..., Any], /, *args: Any, **named: Any) -> "Future[Any]":
        """Stand in for `ThreadPoolExecutor.submit`, which would begin a thread."""
        future: Future[Any] = Future()
        self.call_at(self._turn_of(executor), _settle, future, partial(func, **named), args)
        return future

    def _turn_of(self, executor: Executor | None) -> float:
        """Return when the next call of this pool begins."""
        when_s = self.now_s + self.dice.choice(_DELAYS_S)
        if executor is None or getattr(executor, "_max_workers", 1) > 1:
            return when_s
        if id(executor) not in self._last_s:
            self._pools.append(executor)  # its address stays its own
        when_s = max(when_s, self._last_s.get(id(executor), 0.0) + _TICK_S)
        self._last_s[id(executor)] = when_s
        return when_s

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connect through the world's network."""
        await self.sockets.connect(sock, address)

    async def sock_accept(self, sock: Any) -> Any:
        """Accept from the world's network."""
        return await self.sockets.accept(sock)

    async def create_connection(self, protocol_factory: Any, *args: Any, sock: Any = None, **named: Any) -> Any:
        """Speak over a socket that `sock_connect` connected."""
        protocol = protocol_factory()
        return await self.sockets.attach(sock, protocol), protocol

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **named: Any) -> Any:
        """Speak over a socket that `sock_accept` returned."""
        protocol = protocol_factory()
        return await self.sockets.attach(sock, protocol), protocol

    def _task(self, loop: Any, coro: Coroutine[Any, Any, Any], **named: Any) -> NumberedTask:
        task = NumberedTask(coro, loop=loop, **named)
        task.owner = OWNER.get()
        self.tasks.append(task)
        if len(self.tasks) > 4096:
            self.tasks = [each for each in self.tasks if not each.done()]
        return task

    def _break(self, loop: Any, context: dict[str, Any]) -> None:
        """Note what the loop would only log: an exception nobody awaits is a fault of the product."""
        exc = context.get("exception")
        self.broken.append(f"{context.get('message')}: {exc!r}")

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass


def _settle(future: "asyncio.Future[Any] | Future[Any]", func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except StopIteration as exc:
        future.set_exception(RuntimeError(repr(exc)))
    except BaseException as exc:  # noqa: BLE001 - the power may fail in there
        future.set_exception(exc)
    else:
        future.set_result(result)


def lend_socket(sock: Any) -> None:
    """Close a real socket that stands for nothing here."""
    if isinstance(sock, socket.socket):
        sock.close()
