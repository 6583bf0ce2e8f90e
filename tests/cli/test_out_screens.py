"""What a person sees: commands on a real pseudo-terminal of 100, 80, 60 and 40 columns, with and without colours.

Each command has a file in `screens/`.  It holds what appears at each width, with colours as <green>…</>, and what is
the same at two widths once.  Without colours the same text must appear.  After a wanted change:

    SPL_SCREENS=write python -m pytest tests/cli/test_out_screens.py
"""

import fcntl
import io
import os
import re
import shlex
import struct
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from spl.cli import fit
from spl.cli import main as cli
from spl.core.when import ms_of
from tests.cli import test_aitl as aitl
from tests.cli import test_doctor as doctor
from tests.cli import test_federation as federation
from tests.cli import test_grants as grants
from tests.cli import test_grants_projections as projections
from tests.cli import test_identity as identity
from tests.cli import test_namespaces as namespaces
from tests.cli import test_pair as pair
from tests.cli import test_pair_page as pair_page
from tests.cli import test_rules as rules
from tests.cli import test_status as status
from tests.cli import test_storage as storage
from tests.cli import test_threads as threads
from tests.cli import test_tokens as tokens
from tests.cli import test_verify as verify
from tests.cli.conftest import BOB, NOW, Daemon, chunked, error, listed

FOLDER: Final = Path(__file__).parent / "screens"
WIDTHS: Final = (100, 80, 60, 40)
COLOURS: Final = {"32": "green", "33": "yellow", "31": "red", "2": "dim"}
SGR: Final = re.compile(r"\x1b\[([0-9]*)m")
LONG: Final = "the fence is up since Tuesday, it is green, it is long, and nobody knows why it is that long at all"

RECORDS: Final = listed(
    threads.a_record(7),
    threads.a_record(8, body={"text": LONG}, actor="did:sync:user:somebody-with-a-long-name"),
    threads.a_record(12, body={"kind": "garden.bed.note", "at": {"bed": 4, "row": 17}, "tags": ["dry", "cold"]}),
)
TOKEN: Final = {"scopes": ["admin"], "namespaces": [], "pair_id": "", "label": "init", "state": "live",
                "created_at": "2026-11-22T06:00:00.000Z", "expires_at": "2036-11-20T06:00:00.000Z"}  # fmt: skip
SYNC_TOKEN: Final = {
    **TOKEN, "token_id": "tok_4416713a", "scopes": ["federation:sync", "federation:subscribe"],
    "namespaces": ["default", "projects/music"], "pair_id": "pair_a1b2c3d4",
    "peer_did": f"did:sync:instance:bob-{7:024x}", "label": "pair with did:sync:instance:bob",
    "created_at": "2026-11-23T05:59:00.000Z", "expires_at": "2027-02-21T05:59:00.000Z",
}  # fmt: skip
STATS: Final = {
    "records_count": 33_180, "lines_count": 33_400, "projections_count": 0, "log_bytes": 41_200_000,
    "segments_count": 1, "free_bytes": 18_200_000_000, "sync_p50_ms": 3.2, "sync_p99_ms": 12.9, "readonly": "",
    "full": "41.2 MB are free on the disk of the store, and 67.1 are to stay free",
    "opened": {"took_ms": 10, "lines_read": 1, "unclean": True, "damaged": [{"segment": 1, "offset": 117}]},
}  # fmt: skip
SETTINGS: Final = listed(
    {"key": "port", "value": 9100, "source": "default"},
    {"key": "public_url", "value": "https://alice.example", "source": "config.toml:4"},
    {"key": "http.allowed_hosts", "value": ["alice.example", "alice.lan", "alice.local"], "source": "config.toml:9"},
    {"key": "federation.poll_interval", "value": 300_000, "source": "default"},
)
FOLD_RULE: Final = {"name": "spent", "threads": ["th_orders*"], "fold": "sum", "field": "order.total", "priority": 0}
DIFFERS: Final = {
    **verify.EQUAL, "equal": False, "namespaces": [verify.ROW], "missing_here": verify.ids(1),
    "missing_there": verify.ids(2, refused="scope-violation"),
}  # fmt: skip
LOG: Final = "\n".join(
    f"ts=2026-11-23T05:{at}:00.000Z level={level} target=syncropel_engine::{target} event={event} {facts}"
    for at, level, target, event, facts in (
        ("10", "info", "federation", "pair.activated", f'pair=pair_a1b2c3d4 peer={BOB} state=active msg="pair active"'),
        ("58", "warning", "federation", "sync.failed",
         f'pair=pair_a1b2c3d4 peer={BOB} code=connect url=https://bob.example/v1/sync/changes msg="sync failed"'),
        ("59", "error", "store", "store.damage_found", 'seq=17 msg="store damage found"'),
    )
)  # fmt: skip

Answers = dict[tuple[str, str], Any]
PAIRS: Final = "/v1/federation/pairs"

SCREENS: Final[dict[str, Answers]] = {
    "aitl approve bob": {
        ("GET", "/v1/aitl/bob"): aitl.REQUEST,
        ("POST", f"/v1/aitl/{aitl.ID}/decide"): {**aitl.REQUEST, "agrees": aitl.AGREES},
    },
    "config add-permission-rule x --resource '*' --action deny --expression 'a && '": {
        ("POST", rules.PERMISSION): (400, error(
            "rule-syntax", "a value is missing, at 1:6", at="1:6", source="a && ", caret="     ^",
        )),
    },
    "consent list bob": {("GET", "/v1/consent/grants?pair=bob"): listed()},
    "federation lst": {},
    "namespace create music": {("POST", "/v1/namespaces"): {**namespaces.MADE, "shared": False}},
    "store stats": {("GET", "/v1/store/stats"): STATS},
    "thread show th_r": {
        ("GET", "/v1/records?thread=th_r&since=0&limit=500"): RECORDS,
        ("GET", "/v1/records?thread=th_r&since=12&limit=500"): listed(),
    },
    "token info tok_91ab03cd": {("GET", "/v1/tokens/tok_91ab03cd"): {**tokens.MINTED, "label": "dash"}},
    "token list -v": {("GET", "/v1/tokens"): listed()},
    "token revoke tok_1": {("DELETE", "/v1/tokens/tok_1"): {**tokens.MINTED, "pair_id": "pair_1", "state": "revoked"}},
    "aitl list": {("GET", "/v1/aitl"): listed(aitl.REQUEST)},
    "aitl list --all": {("GET", "/v1/aitl?all=1"): listed()},
    "aitl show bob": {("GET", "/v1/aitl/bob"): {**aitl.REQUEST, "agrees": aitl.AGREES}},
    "config list-aitl-rules": {("GET", rules.AITL): listed(rules.FAMILY)},
    "config list-fold-rules": {("GET", rules.FOLD): listed()},
    "config list-permission-rules": {("GET", rules.PERMISSION): listed(rules.LOCK)},
    "config show": {("GET", "/v1/config"): SETTINGS},
    "consent list": {("GET", "/v1/consent/grants"): listed(
        grants.GRANT,
        {**grants.GRANT, "namespace": "default", "maps": ["default", "default"], "granted": "L0", "level": "L0"},
        {**grants.GRANT, "direction": "in", "maps": ["x", "music"], "granted": "L2", "level": "none", "version": 2,
         "missing": "namespace music does not exist or is not active here", "fix": "spl namespace create music"},
    )},
    "doctor": {("GET", "/v1/doctor"): {**doctor.REPORT, "pair_id": None, "problems": [], "explained": 0}},
    "doctor bob": {("GET", "/v1/doctor/bob"): doctor.REPORT},
    "federation list": {("GET", PAIRS): federation.three()},
    "federation pair https://bob.example/": {
        pair.STREAM: chunked(*pair.head(202), pair.waiting(252_000), *pair.tail()),
    },
    "federation projections bob": {
        ("GET", f"{PAIRS}/bob/projections?after=0&limit=500"): {**listed(projections.ONE, projections.HIDDEN),
                                                                "next_after": None},
    },
    "federation revoke bob": {("POST", f"{PAIRS}/bob/revoke"): (409, error("pair-revoked", "the pair is revoked"))},
    "federation show bob": {("GET", f"{PAIRS}/bob"): federation.a_pair(**pair_page.DETAIL)},
    "federation verify bob": {("POST", f"{PAIRS}/bob/verify"): DIFFERS},
    "health": {("GET", "/health/ready"): {"status": "ok"}},
    "identity show": {("GET", identity.ROUTE): identity.IDENTITY},
    "know 'the fence is up' --thread th_r --actor did:sync:user:ann": {("POST", "/v1/records"): threads.a_record(7)},
    "logs": {},
    "logs level=critical": {},
    "namespace --help": {},
    "namespace list": {("GET", "/v1/namespaces"): listed(namespaces.MUSIC, {**namespaces.MUSIC, "name": "default"})},
    "namespace show music": {("GET", "/v1/namespaces/music"): {
        **namespaces.MUSIC, "unusable": None, "pairs": [namespaces.PAIR], "tokens": [namespaces.TOKEN],
    }},
    "status": {("GET", "/v1/status"): status.STATUS},
    "store check": {
        ("POST", "/v1/store/check"): chunked(storage.DAMAGE, {**storage.DONE, "damaged": 1, "lost_lines": 1}),
    },
    "sync": {("POST", "/v1/sync"): listed(
        {"pair_id": "pair_1", "records": 1}, {"pair_id": "pair_2", "records": 0, "error": error("connect", "refused")},
    )},
    "thread list": {("GET", "/v1/threads?limit=500"): listed(
        {"thread": "th_garden", "records": 1240, "last_at": "2026-11-23T05:59:00.000Z"},
        {"thread": "th_" + "ab" * 32, "records": 1, "last_at": None},
    ), ("GET", f"/v1/threads?limit=500&after=th_{'ab' * 32}"): listed()},
    "thread list --reserved": {("GET", "/v1/threads?limit=500&reserved=1"): listed()},
    "thread records th_r --limit 3": {("GET", "/v1/records?thread=th_r&since=0&limit=3"): RECORDS},
    "thread state th_r": {("GET", "/v1/threads/th_r/state"): {**threads.STATE, "value": {"text": LONG, "n": 1}}},
    "token list": {("GET", "/v1/tokens"): listed({**TOKEN, "token_id": "tok_a5043a15"}, SYNC_TOKEN)},
    "token mint --scopes records:read": {("POST", "/v1/tokens"): (201, tokens.MINTED)},
}  # fmt: skip


class Terminal:
    """A pseudo-terminal of so many columns; what is written is read in a thread, for it holds little."""

    def __init__(self, columns: int) -> None:
        self._master, self._slave = os.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self._seen: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def stream(self) -> io.TextIOWrapper:
        return open(os.dup(self._slave), "w", encoding="utf-8", newline="\n")

    def close(self) -> str:
        """Return what was written, with the ends of lines as they were."""
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)
        return b"".join(self._seen).decode().replace("\r\n", "\n")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # nobody has the other side open
                return
            if not data:
                return
            self._seen.append(data)


Show = Callable[..., str]


@pytest.fixture
def show(home: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Return what a command line shows on a terminal of so many columns."""
    monkeypatch.setattr(cli, "now_ms", lambda: ms_of(NOW))
    (home / "logs").mkdir()
    (home / "logs" / "spl.log").write_text(LOG + "\n")

    def shown(words: str, columns: int, **env: str) -> str:
        terminal = Terminal(columns)
        with terminal.stream() as stdout, terminal.stream() as stderr:
            environ = {"SYNCROPEL_HOME": str(home), "HOME": str(home.parent), "TERM": "xterm-256color", **env}
            cli.run(shlex.split(words), environ, io.BytesIO(), stdout, stderr)
        return terminal.close().replace(str(home), "HOME")

    return shown


def tagged(text: str) -> str:
    """Return a text whose colours and redrawn lines can be read."""
    named = SGR.sub(lambda found: "</>" if found[1] == "0" else f"<{COLOURS[found[1]]}>", text)
    return re.sub(r"\r\x1b\[K|\x1b\[([0-9])A\r\x1b\[J", lambda found: f"<redraw{found[1] or ''}>", named)


@pytest.mark.parametrize("words", SCREENS)
def test_a_screen(show: Show, daemon: Daemon, words: str) -> None:
    daemon.answers.update(SCREENS[words])
    pages: dict[str, list[int]] = {}
    for columns in WIDTHS:
        coloured = show(words, columns)
        assert show(words, columns, NO_COLOR="1") == SGR.sub("", coloured)
        pages.setdefault(tagged(coloured), []).append(columns)
    text = f"$ spl {words}\n"
    for page, widths in pages.items():
        text += f"\n== {', '.join(map(str, widths))} columns\n{page}"
    file = FOLDER / (re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:60] + ".txt")
    if os.environ.get("SPL_SCREENS") == "write":
        file.write_text(text)
    assert text == file.read_text(), "SPL_SCREENS=write writes it anew, then look at the difference"


def test_every_file_is_of_a_screen() -> None:
    names = {re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:60] + ".txt" for words in SCREENS}
    assert {file.name for file in FOLDER.iterdir()} == names
    assert len(names) == len(SCREENS)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_state_of_a_pair_is_shown_at_any_width(show: Show, daemon: Daemon, columns: int) -> None:
    """And no row of a list is wider than the terminal."""
    for words in ("federation list", "token list", "consent list", "thread records th_r --limit 3", "thread list"):
        daemon.answers.update(SCREENS[words])
        lines = [line for line in show(words, columns, NO_COLOR="1").splitlines() if not line.startswith(("!", "cont"))]
        assert max(map(len, lines)) <= columns, words
        assert "STATE" in lines[0] or words.split()[0] not in ("federation", "token")
    assert "did:sync" not in show("federation list", 60), "labels are enough"


@pytest.mark.parametrize("columns", WIDTHS)
def test_many_pairs_and_wide_characters_keep_their_columns(show: Show, daemon: Daemon, columns: int) -> None:
    """Fifty pairs with long labels; names of threads in scripts whose characters are wide, or run from the right."""
    dids = [f"did:sync:instance:{'a-very-long-label-of-' + str(n):.32}-{n:024x}" for n in range(50)]
    pairs = [federation.a_pair(pair_id=f"pair_{n:08x}", peer_did=did) for n, did in enumerate(dids)]
    daemon.answers["GET", federation.PAIRS] = listed(*pairs)
    lines = show("federation list", columns, NO_COLOR="1").splitlines()
    assert len(lines) == 51
    assert len({fit.columns_of(line) for line in lines}) <= 2
    assert [line.split()[0] for line in lines[1:]] == [pair["pair_id"] for pair in pairs]
    names = ["\u5ead\u306e\u8a08\u753b" * 20, "\u05d2\u05d9\u05e0\u05d4" * 20, "e\u0301tage", "th_short"]
    threads_ = [{"thread": name, "records": 7, "last_at": None} for name in names]
    daemon.answers["GET", "/v1/threads?limit=500"] = listed(*threads_)
    daemon.answers["GET", f"/v1/threads?limit=500&after={names[-1]}"] = listed()
    rows = show("thread list", columns, NO_COLOR="1").splitlines()
    assert max(map(fit.columns_of, rows)) <= columns
    places = {fit.columns_of(row[: row.rindex(" 7 ")]) for row in rows[1:]}
    assert len(places) == 1, "the second column begins in the same place in each row"
