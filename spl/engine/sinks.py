"""A sink as a value: where records of which namespaces go; a record on `th_consent` holds it, the newest one counts.

A sink is a grant to everybody who can read what it fills, so it stands beside the grants of the pairs: it names its
namespaces, and it ends with the record that withdraws it.  Credentials are a path, never a text.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from ..core.consent import KIND_SINK
from ..core.record import namespace
from ..core.value import dataclass, replace
from .nats import endpoint_of
from .protocol import EngineError
from .subjects import SHARD, THREAD

EXEC: Final = "exec:"
ACTIVE: Final = "active"
PAUSED: Final = "paused"
REMOVED: Final = "removed"
PHASES: Final = (ACTIVE, PAUSED, REMOVED)
NAMESPACES_MAX: Final = 64  # as many as a pair may share
COMMAND_CHARS_MAX: Final = 1024  # it is shown in one row
PATH_CHARS_MAX: Final = 1024  # less than the 4,096 of the system; it is shown in one row

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Sink:
    """Where records go; `after`: the line of the log after which it begins in an empty stream.

    `passed`: up to which sequence of the stream the operator knows of messages that are not ours.
    """

    name: str
    url: str
    namespaces: tuple[str, ...]
    subjects: str = SHARD
    after: int = 0
    born: int = 0
    """The last line of the log when it was added: what tells it from an earlier one of its name."""
    creds: str = ""
    ca: str = ""
    phase: str = ACTIVE
    passed: int = 0
    at: str = ""

    @property
    def is_program(self) -> bool:
        """Whether a program takes the records, and not a server."""
        return self.url.startswith(EXEC)

    @property
    def place_name(self) -> str:
        """The name under which its position stands in the log; no pair has such an id."""
        return f"sink {self.name} {self.born}"

    def body(self) -> dict[str, Any]:
        """Return the record's body, without its kind."""
        return {
            "name": self.name, "url": self.url, "namespaces": list(self.namespaces), "subjects": self.subjects,
            "after": self.after, "born": self.born, "creds": self.creds, "ca": self.ca, "phase": self.phase,
            "passed": self.passed, "at": self.at,
        }  # fmt: skip

    def in_phase(self, phase: str, at: str, passed: int | None = None) -> "Sink":
        """Return it after the operator's word."""
        return replace(self, phase=phase, at=at, passed=self.passed if passed is None else passed)


def checked(sink: Sink) -> Sink:
    """Return the sink if it is well formed; raise EngineError "sink-invalid", NamespaceError "bad-field"."""
    if not _NAME.fullmatch(sink.name):
        raise EngineError("sink-invalid", "the name is up to 32 of a-z, 0-9 and -")
    if not 0 < len(sink.namespaces) <= NAMESPACES_MAX or len(set(sink.namespaces)) != len(sink.namespaces):
        raise EngineError("sink-invalid", f"a sink names 1 to {NAMESPACES_MAX} namespaces, each once")
    for each in sink.namespaces:
        namespace.check_name(each)
    if sink.subjects not in (SHARD, THREAD):
        raise EngineError("sink-invalid", f"subjects is {SHARD} or {THREAD}")
    for path in (sink.creds, sink.ca):
        if path and (not path.startswith("/") or len(path) > PATH_CHARS_MAX or not path.isprintable()):
            raise EngineError("sink-invalid", "files are named by their absolute path")
    if sink.is_program:
        command = sink.url.removeprefix(EXEC)
        if not command.strip() or len(command) > COMMAND_CHARS_MAX or not command.isprintable():
            raise EngineError("sink-invalid", f"exec: is followed by a command of up to {COMMAND_CHARS_MAX} characters")
    else:
        endpoint_of(sink.url)
    return sink


def read(body: Mapping[str, Any]) -> Sink | None:
    """Return the sink of a record body, None if it is not usable."""
    texts = {name: body.get(name) for name in ("name", "url", "subjects", "creds", "ca", "phase", "at")}
    numbers = {name: body.get(name) for name in ("after", "born", "passed")}
    names = body.get("namespaces")
    if body.get("kind") != KIND_SINK or not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        return None
    if not all(isinstance(each, str) for each in texts.values()) or texts["phase"] not in PHASES:
        return None
    if not all(type(each) is int and 0 <= each < 2**63 for each in numbers.values()):
        return None
    try:
        return checked(Sink(**texts, **numbers, namespaces=tuple(names)))  # type: ignore[arg-type]
    except (EngineError, namespace.NamespaceError):
        return None
