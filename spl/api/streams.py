"""Long answers are shared out: how many a token or pair may have under way, and how many all tokens have together.

An answer that streams or waits keeps its connection at work, and such a connection gives way to no other
(net/admission.py).  Without a share, one token that may only read held every connection from a few addresses, and
peers and health checks were refused for as long as it liked.  Answers of pairs count by themselves, so tokens take
nothing from them.  The operator's own socket is not counted.

Each piece of an answer needs the credential that it was asked with, or the thief of a token that is revoked could read
a snapshot of everything to its end, as slowly as it likes.  The connection is then cut, so that no client takes the
answer for whole.  An event stream checks by itself, because it says why it ends.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final

from ..core.errors import SplError
from ..core.value import replace
from ..net.routes import Response
from ..net.sse import MEDIA_TYPE
from .answers import Permit
from .auth import Kind, Principal

PER_TOKEN: Final = 64
PER_PAIR: Final = 8
"""A peer has one stream or one long poll, and a few pages while it begins again."""
RETRY_S: Final = 1

Make = Callable[[], Response | Awaitable[Response]]


class LongAnswers:
    """The long answers that are under way on the TCP listeners."""

    def __init__(self, connections: int) -> None:
        """Of `connections` in all, tokens may keep half at work."""
        self._tokens_most = max(1, connections // 2)
        self._held: Counter[str] = Counter()
        self._by_tokens = 0

    def counted(self, principal: Principal, make: Make, permit: Permit) -> Awaitable[Response]:
        """Return the answer, which counts until it has been sent, and is cut when `permit` ends.

        It is made once it is awaited: a client may be gone before.  Raises SplError "rate-limited" then if the
        principal has its share.
        """
        return _Unmade(partial(self._counted, principal, make, permit))

    async def _counted(self, principal: Principal, make: Make, permit: Permit) -> Response:
        is_peer = principal.kind == Kind.PEER
        who = principal.who
        if self._held[who] >= (PER_PAIR if is_peer else PER_TOKEN):
            raise SplError("rate-limited", "long answers of this token are under way", retry_after_s=RETRY_S)
        if not is_peer and self._by_tokens >= self._tokens_most:
            raise SplError("rate-limited", "too many long answers are under way", retry_after_s=RETRY_S)
        held = _Held(self, who, not is_peer)
        try:
            answer = make()
            found = answer if isinstance(answer, Response) else await answer
        except BaseException:
            held.release()
            raise
        if isinstance(found.body, bytes):
            held.release()
            return found
        says_why = found.content_type == MEDIA_TYPE
        return replace(found, body=_CountedBody(found.body, held, None if says_why else permit))

    def take(self, who: str, count: int, *, by_token: bool) -> None:
        """Count one answer more, or with -1 one less."""
        self._held[who] += count
        self._by_tokens += count if by_token else 0
        if not self._held[who]:
            del self._held[who]


class _Unmade:
    """An answer that nothing is done for, and nothing is left of, unless it is awaited."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[[], Coroutine[Any, Any, Response]]) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, Any, Response]:
        return self._run().__await__()


class _Held:
    """One place, given back once."""

    __slots__ = ("_answers", "_by_token", "_who")

    def __init__(self, answers: LongAnswers, who: str, by_token: bool) -> None:
        self._answers: LongAnswers | None = answers
        self._who, self._by_token = who, by_token
        answers.take(who, 1, by_token=by_token)

    def release(self) -> None:
        """Give the place back; again is harmless."""
        if self._answers is not None:
            self._answers.take(self._who, -1, by_token=self._by_token)
            self._answers = None


class _CountedBody:
    """The body of a counted answer.  No generator: one that was never begun would not give its place back."""

    __slots__ = ("_body", "_held", "_permit")

    def __init__(self, body: AsyncIterator[bytes], held: _Held, permit: Permit | None) -> None:
        self._body, self._held, self._permit = body, held, permit

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._permit is not None:
            self._permit.check()
        return await anext(self._body)

    async def aclose(self) -> None:
        """End the answer, whether it was begun or not."""
        self._held.release()
        close = getattr(self._body, "aclose", None)
        if close is not None:
            await close()
