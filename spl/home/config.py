"""Configuration: flag > environment > `<home>/config.toml` > default, each value with its source.

An unknown key, a wrong type or a value out of range is ConfigError "config-invalid" with the file's line.  The
environment name of a key is SPL_ and the key in capitals with "_" for ".": federation.approval is
SPL_FEDERATION_APPROVAL.  `[limits]` takes any bound of `core/limits`, downward only but for LIMITS_RAISED_MAX.
"""

import importlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, cast

from ..core import when
from ..core.errors import SplError
from ..core.limits import Limits
from ..core.value import Json, dataclass, field, replace

FILE_NAME: Final = "config.toml"
APPROVALS: Final = ("manual", "auto", "closed")
LOG_FORMATS: Final = ("logfmt", "json")
PRIVATE_ONLY: Final = "private"
"""Of `federation.allow_http`: plain http to the addresses of a local network, and to no others."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LIMITS_RAISED_MAX: Final = {"intake_day_bytes": 2**60}
"""The limits that may be raised over their default, and how far."""
_SAYS: Final = re.compile(r"^[ \t]*[^# \t\r\n]|\r(?!\n)|[^\t\n\r -\x7e\x80-\U0010ffff]", re.MULTILINE)
"""A line that is more than a comment, or has what no comment may have."""
_HEAD: Final = re.compile(r"\s*\[([^\]]+)\]")
RESTART: Final = ("host", "port", "public_url", "federation.poll_interval", "tls.listen", "tls.ca_file")
"""Keys that a daemon builds on at its start."""


class ConfigError(SplError):
    """The configuration has an unknown key or a bad value."""


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; `sources` says for each key its source."""

    host: str = "127.0.0.1"
    port: int = 9100
    public_url: str = ""
    auth_required: bool = True
    federation_approval: str = "manual"
    federation_allow_http: bool | Literal["private"] = False
    federation_poll_interval_ms: int = 300_000
    federation_follow_mode: bool = False
    http_allowed_hosts: tuple[str, ...] = ()
    http_allowed_origins: tuple[str, ...] = ()
    http_trusted_proxies: tuple[str, ...] = ()
    tls_listen: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_ca_file: str = ""
    log_format: str = "logfmt"
    log_level: str = "info"
    limits: Limits = Limits()
    sources: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[Json]:
        """Return [{key, value, source}] for people, in the order of the table; then the limits that the file sets."""
        rows: list[Json] = [
            {"key": key, "value": _shown(getattr(self, name)), "source": self.sources.get(key, "default")}
            for key, (name, _) in KEYS.items()
        ]
        limits = {name: getattr(self.limits, name) for name in Limits.__match_args__}
        return rows + [
            {"key": f"limits.{name}", "value": value, "source": FILE_NAME}
            for name, value in limits.items()
            if value != getattr(Limits(), name)
        ]


class Settings:
    """The configuration in force; `now` is replaced whole at a reload, so read it at each use.

    What only a start can change (RESTART, the limits) stays as it was until then.
    """

    def __init__(self, config: Config) -> None:
        self.now = config
        self.fault = ""
        """Why the last reload failed; the next start would not come up."""
        self.reads = 0
        """How many reloads there were, those that failed too."""

    def take(self, config: Config) -> tuple[list[str], list[str]]:
        """Put a newer configuration in force; return the keys that changed, and those that wait for a restart.

        Raises ConfigError "config-invalid" for one that would open this daemon to others, and keeps the one in force.
        """
        changed = [key for key, (name, _) in KEYS.items() if getattr(self.now, name) != getattr(config, name)]
        waiting = [key for key in changed if key in RESTART]
        kept = {KEYS[key][0]: getattr(self.now, KEYS[key][0]) for key in RESTART}
        sources = {**config.sources, **{key: self.now.sources[key] for key in waiting if key in self.now.sources}}
        if config.limits != self.now.limits:
            waiting.append("limits")
        newer = replace(config, **kept, limits=self.now.limits, sources=sources)
        check_open(newer)
        self.now = newer
        return [key for key in changed if key not in waiting], waiting


def check_open(config: Config, *, insecure: bool = False) -> None:
    """Refuse a daemon that requires no credential and listens beyond this machine.

    `insecure` stands for --insecure-localhost.  Raises ConfigError "config-invalid" with where the setting stands.
    """
    hosts = [config.host, *([config.tls_listen.rpartition(":")[0].strip("[]")] if config.tls_listen else [])]
    wide = [host or "every address" for host in hosts if not is_loopback(host)]
    if wide and insecure:
        raise ConfigError("config-invalid", f"--insecure-localhost serves loopback only, not {wide[0]}")
    if wide and not config.auth_required:
        place = config.sources.get("auth.required", FILE_NAME)
        text = f"auth.required = false with host {wide[0]} makes everybody on the network an administrator"
        raise ConfigError("config-invalid", f"{place}: {text}; it serves loopback only")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a listener on this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(text: str, environment: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """Return the configuration from the file's text, the environment and the flags that were given.

    `flags` maps keys to values; None means not given.  Raises ConfigError "config-invalid".
    """
    text = text.removeprefix("\ufeff")  # editors of some systems begin every file with a byte order mark
    values: dict[str, tuple[object, str]] = {}
    tables = _parsed(text)
    limits = _limits(tables.pop("limits", {}), text)
    for key, value in _flat(tables):
        line = _line_of(text, key)
        if key not in KEYS:
            raise ConfigError("config-invalid", f"{FILE_NAME}:{line}: unknown key {key!r}")
        values[key] = (_checked(key, value, f"{FILE_NAME}:{line}"), f"{FILE_NAME}:{line}")
    for key in KEYS:
        name = "SPL_" + key.upper().replace(".", "_")
        if name in environment:
            values[key] = (_checked(key, _from_text(key, environment[name]), name), name)
        if flags.get(key) is not None:
            values[key] = (_checked(key, flags[key], f"flag {key}"), "flag")
    chosen: dict[str, Any] = {KEYS[key][0]: value for key, (value, _) in values.items()}
    return Config(**chosen, limits=limits, sources={key: source for key, (_, source) in values.items()})


def with_setting(text: str, key: str, said: str) -> str:
    """Return the text of a configuration file with one key set, its value written as in the environment.

    Comments and all other lines stay.  Raises ConfigError "config-invalid" for an unknown key, a bad value, or a file
    in which the key does not stand on a line of its own.
    """
    table, _, name = key.rpartition(".")
    value = _said(key, said)
    literal = json.dumps(value, ensure_ascii=False)
    lines = text.removesuffix("\n").split("\n") if text else []
    at = _line_setting(text, key)
    heads = [number for number, line in enumerate(lines) if (found := _HEAD.match(line)) and found[1].strip() == table]
    if at is not None:
        lines[at - 1] = f"{key if key in lines[at - 1] else name} = {literal}"
    elif heads:
        lines.insert(heads[0] + 1, f"{name} = {literal}")
    elif table:
        lines += ["", f"[{table}]", f"{name} = {literal}"]
    else:
        first = next((number for number, line in enumerate(lines) if _HEAD.match(line)), len(lines))
        while first and not lines[first - 1].strip():
            first -= 1
        lines.insert(first, f"{name} = {literal}")
    changed = "\n".join(lines) + "\n"
    check_open(load(changed, {}, {}))
    if dict(_flat(_parsed(changed))) != {**dict(_flat(_parsed(text))), key: value}:
        raise ConfigError("config-invalid", f"{FILE_NAME}: {key} does not stand on a line of its own; edit the file")
    return changed


def _said(key: str, said: str) -> object:
    """Return the value of a key as the file has it; raise ConfigError "config-invalid" for one that does not fit."""
    table, _, name = key.rpartition(".")
    if table != "limits" and key not in KEYS:
        raise ConfigError("config-invalid", f"there is no key {key[:60]!r}", hint="the keys: spl config show")
    try:
        if table != "limits":
            value = _from_text(key, said)
            KEYS[key][1](value)
            return value
        number = int(said) if said.isascii() and said.isdigit() else said
        _limits({name: number}, "")
    except (ValueError, SplError) as exc:
        why = str(exc) if table != "limits" else str(exc).partition(": ")[2]  # without a line: there is none yet
        hint = "nothing was written; every key, and what it takes: spl help configuration"
        raise ConfigError("config-invalid", f"{key}: {why}", hint=hint) from exc
    return number


def _parsed(text: str) -> dict[str, Any]:
    if not _SAYS.search(text):
        return {}
    toml = importlib.import_module("tomllib")  # 570 KiB, for a file that most homes leave as `init` wrote it
    try:
        return cast(dict[str, Any], toml.loads(text))
    except toml.TOMLDecodeError as exc:
        raise ConfigError("config-invalid", f"{FILE_NAME}: {exc}") from exc


def _flat(tables: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in tables.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _limits(table: object, text: str) -> Limits:
    known = {name: getattr(Limits(), name) for name in Limits.__match_args__}
    if not isinstance(table, dict):
        raise ConfigError("config-invalid", f"{FILE_NAME}: limits is a table")
    for name, value in table.items():
        place = f"{FILE_NAME}:{_line_of(text, 'limits.' + name)}"
        if name not in known:
            raise ConfigError("config-invalid", f"{place}: unknown limit {name!r}")
        most = LIMITS_RAISED_MAX.get(name, known[name])
        if type(value) not in (int, float) or not 0 < value <= most or not type(known[name])(value):
            raise ConfigError("config-invalid", f"{place}: {name} is a number above 0 and at most {most}")
    return replace(Limits(), **{name: type(known[name])(value) for name, value in table.items()})


def _line_of(text: str, key: str) -> int:
    """Return the line that sets the key, or 1 if none is found."""
    return _line_setting(text, key) or 1


def _line_setting(text: str, key: str) -> int | None:
    table, _, name = key.rpartition(".")
    here = ""
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also count U+0085 and U+2028
        head = _HEAD.match(line)
        here = head[1].strip() if head else here
        set_here = name if here == table else key if not here else ""
        if set_here and re.match(rf"\s*{re.escape(set_here)}\s*=", line):
            return number
    return None


def _from_text(key: str, text: str) -> object:
    default = getattr(Config(), KEYS[key][0])
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(default, tuple):
        return [part for part in text.split(",") if part]
    if KEYS[key][1] is _port:
        return int(text) if text.isascii() and text.isdigit() else text
    return text


def _checked(key: str, value: object, place: str) -> object:
    try:
        return KEYS[key][1](value)
    except (ValueError, SplError) as exc:
        raise ConfigError("config-invalid", f"{place}: {key}: {exc}") from exc


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be a text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _allow_http(value: object) -> bool | str:
    if not isinstance(value, bool) and value != PRIVATE_ONLY:
        raise ValueError('must be true, false or "private"')
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 65535:
        raise ValueError("must be a port number, 0 to 65535")
    return value


def _interval_ms(value: object) -> int:
    found = when.duration_ms(_text(value))
    if found < 1000:
        raise ValueError("must be at least 1s")
    return found


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of texts")
    return tuple(_text(item) for item in value)


def _networks(value: object) -> tuple[str, ...]:
    found = _texts(value)
    for item in found:
        try:
            ipaddress.ip_network(item)
        except ValueError as exc:
            raise ValueError("must be addresses or networks, such as 127.0.0.1 or 10.0.0.0/8") from exc
    return found


def _host(value: object) -> str:
    return _text(value).removeprefix("[").removesuffix("]")


def _origins(value: object) -> tuple[str, ...]:
    found = _texts(value)
    if not all(re.fullmatch(r"https?://[a-z0-9.:\[\]_-]+", item) for item in found):
        raise ValueError("must be origins as browsers send them: http(s)://host[:port], in lower case")
    return found


def _one_of(choices: tuple[str, ...]) -> Callable[[object], object]:
    def rule(value: object) -> object:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return rule


def _url(value: object) -> str:
    text = _text(value)
    if text and not re.match(r"https?://[A-Za-z0-9.:\[\]_-]+\Z", text.rstrip("/")):
        raise ValueError("must be http(s)://host[:port] without a path")
    if re.search(r"\.(:[0-9]*)?/*\Z", text):
        raise ValueError("must name the host without a final dot")
    return text.rstrip("/")


KEYS: Final[dict[str, tuple[str, Callable[[object], object]]]] = {
    "host": ("host", _host),
    "port": ("port", _port),
    "public_url": ("public_url", _url),
    "auth.required": ("auth_required", _flag),
    "federation.approval": ("federation_approval", _one_of(APPROVALS)),
    "federation.allow_http": ("federation_allow_http", _allow_http),
    "federation.poll_interval": ("federation_poll_interval_ms", _interval_ms),
    "federation.follow_mode": ("federation_follow_mode", _flag),
    "http.allowed_hosts": ("http_allowed_hosts", _texts),
    "http.allowed_origins": ("http_allowed_origins", _origins),
    "http.trusted_proxies": ("http_trusted_proxies", _networks),
    "tls.listen": ("tls_listen", _text),
    "tls.certificate": ("tls_certificate", _text),
    "tls.key": ("tls_key", _text),
    "tls.ca_file": ("tls_ca_file", _text),
    "log.format": ("log_format", _one_of(LOG_FORMATS)),
    "log.level": ("log_level", _one_of(LOG_LEVELS)),
}
"""Key in the file -> (field of Config, rule that returns the checked value or raises ValueError)."""
