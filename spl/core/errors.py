"""The one base error and the registry of every code the product can show.

A code is one word for one cause: kebab-case in the command line, the log and
`spl help CODE`; the same word in UPPER_SNAKE on the wire.  Codes, HTTP statuses
and exit codes are frozen once released; the text may change.

Exit codes: 1 unexpected, 2 usage, 3 found problems, 4 auth or scope, 5 daemon
down, 6 not found, 7 state conflict, 8 still pending, 9 peer or network (retry
may help), 10 verification failed (retry will not help), 11 store locked,
12 store damaged or newer, 78 configuration.
"""

import json
import re
from typing import Final, Self

from .value import Json, dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """What one code means: HTTP status, process exit code, meaning, next step."""

    status: int
    exit: int
    meaning: str
    fix: str
    """Steps that "; " divides, each a text, a command, or a text that ends with ": " and a command."""


CODES: Final[dict[str, Code]] = {
    # input
    "usage": Code(400, 2, "The command line or the request has the wrong form.", "spl help"),
    "bad-json": Code(400, 2, "The text is not strict JSON: malformed, duplicate keys, NaN, lone surrogates, too deep or an integer over 310 digits.", "send one JSON value, each key once"),
    "bad-field": Code(400, 2, "A field is missing, unknown, or has the wrong type or value.", "correct the field named in the message"),
    "ingest-failed": Code(400, 7, "The record cannot be taken: this actor already used this clock in this thread for other content.", "leave the clock out and the daemon gives the next free one"),
    "clock-exhausted": Code(400, 7, "The clock of this actor in this thread reached 2^63-1.", "continue in a new thread"),
    "record-too-large": Code(413, 2, "The record is over the size limit.", "store the payload elsewhere and put a reference into the body"),
    "reserved-thread": Code(403, 4, "Threads that the daemon keeps for itself take no records from clients.", "use another thread id"),
    "actor-refused": Code(403, 4, "An instance vouches for its local actors only, never for another instance.", "emit under an actor of your own"),
    "namespace-rejected": Code(403, 4, "The namespace, or one above it, does not exist or is archived.", "spl namespace create NAME"),
    "namespace-in-use": Code(409, 7, "The namespace holds records, has others below it, or is shared with a pair.", "spl namespace archive NAME"),
    "not-found": Code(404, 6, "Nothing here has this name or id.", "check the name or id; of an id a unique beginning is enough"),
    "ambiguous": Code(409, 6, "The prefix fits more than one.", "give more characters, or the whole id"),
    # records and signatures
    "record-id": Code(422, 10, "The id is not the SHA-256 of the record.", "the source is corrupted or dishonest: spl doctor"),
    "record-signature": Code(422, 10, "The record's signature does not verify.", "the source is corrupted or dishonest: spl doctor"),
    "signer-blocked": Code(403, 10, "The record's signer is blocked here.", "to lift that: spl federation pair URL"),
    "chain-unknown": Code(422, 10, "The signer's key chain is not known here.", "fetched automatically at the next sync"),
    "key-retired": Code(422, 10, "A key that its owner retired signed the record, and another instance brings it.", "pair with the signer, which may bring its old records; what your own retired keys signed: spl federation verify PAIR_ID --accept-retired"),
    "chain-broken": Code(422, 10, "The key chain does not lead from the DID's first key to the present one.", "on the peer: spl identity verify"),
    "chain-fork": Code(422, 10, "Two key chains of one DID contradict each other.", "ask the peer's operator for the six words of its key, by voice, then: spl federation pair URL --expect-key 'SIX WORDS'"),
    "snapshot-malformed": Code(422, 10, "The text is not a complete snapshot: header, count, digest and lines disagree.", "take it again: spl thread snapshot THREAD"),
    "snapshot-upload": Code(409, 7, "The restore chunks arrived out of order.", "spl thread restore FILE; records that are stored are skipped"),
    # HTTP
    "bad-request": Code(400, 2, "The bytes are not HTTP/1.1.", "check the client, or the proxy in between"),
    "bad-length": Code(400, 2, "Content-Length is not one run of digits.", "check the client, or the proxy in between"),
    "body-too-large": Code(413, 2, "The body is over the limit of its route.", "send less at once"),
    "head-too-large": Code(431, 2, "Request line and headers together are over 64 KiB.", "send fewer or shorter headers"),
    "uri-too-long": Code(414, 2, "The request target is too long.", "send parameters in the body"),
    "method-not-allowed": Code(405, 2, "This path does not answer this method.", "use one that it answers, as the Allow header says, too"),
    "media-type": Code(415, 2, "The route takes application/json only, without a Content-Encoding.", "send Content-Type: application/json"),
    "request-timeout": Code(408, 9, "The request did not arrive within its deadline.", "retry on a better connection"),
    "version-unsupported": Code(505, 9, "Only HTTP/1.1 and HTTP/1.0 are spoken here.", "use HTTP/1.1"),
    "expectation-failed": Code(417, 2, "The only expectation known is 100-continue.", "drop the Expect header"),
    "host-refused": Code(421, 4, "The Host header is not a name of this daemon.", "set public_url or http.allowed_hosts"),
    "origin-refused": Code(403, 4, "A browser page of a foreign origin may not write here.", "call the API from a program"),
    "rate-limited": Code(429, 9, "Too many requests in a short time.", "wait for the Retry-After seconds"),
    "too-many-connections": Code(503, 9, "The daemon has reached its connection limit.", "retry shortly"),
    "program-replaced": Code(503, 12, "The files of the program were replaced or moved while the daemon runs.", "stop the daemon, then: spl serve"),
    "overloaded": Code(503, 9, "The daemon's write queue is full.", "retry shortly"),
    "shutting-down": Code(503, 9, "The daemon is stopping.", "retry when it is back"),
    "internal": Code(500, 1, "The daemon has a defect; the log has the details.", "spl logs"),
    "task-dead": Code(503, 9, "A background task died and the daemon is restarting it; the log has the details.", "spl logs"),
    "output-failed": Code(500, 1, "The result cannot be written to standard output, so it is incomplete.", "free some space where the output goes, then run the command again"),
    "dependency-missing": Code(500, 78, "A Python package that spl needs is not installed.", "on Debian: apt install python3-nacl; with pip: pip install --force-reinstall syncropel-pair"),
    # access
    "auth-required": Code(401, 4, "The route needs a bearer token.", "send a token in the header Authorization: Bearer; to make one: spl token mint --scopes records:read"),
    "auth-invalid": Code(401, 4, "The bearer token is unknown, expired, revoked or lacks its proof of possession.", "which are valid: spl token list; to make one: spl token mint --scopes records:read"),
    "scope-forbidden": Code(403, 4, "The token does not hold the scope this needs.", "mint a token with the scope named in the message"),
    "permission-denied": Code(403, 4, "A permission rule denies this.", "spl config list-permission-rules"),
    "rule-syntax": Code(400, 2, "The expression does not parse.", "the language: spl help rules"),
    "rule-type": Code(400, 2, "The expression asks for a field that is missing, or treats a value as another type.", "guard the field with has(); to try it: spl config test-permission --help"),
    "rule-cost": Code(400, 2, "The expression costs more than an evaluation may.", "test fewer or shorter values"),
    "rule-unproved": Code(400, 2, "The rule would approve any peer that claims the right label or URL.", "name what a request proves: request.initiator_did == \"did:sync:instance:…\", request.words == \"…\" or request.peer.address.startsWith(\"10.1.\")"),
    "query-cost": Code(400, 2, "The query reads more than one query may.", "narrow it by thread, actor, namespace or clock, or leave out the sort and ask in pages"),
    "embeddings-disabled": Code(503, 2, "This daemon embeds no texts, so it cannot search records by their meaning.", "search by fields: POST /v1/records/query"),
    "token-scope-bound": Code(400, 2, "The scope is about the whole daemon, so no namespace can bind it.", "leave the namespace out, or mint a token of its own for the scopes that can be bound: records:read, records:write, federation:sync, federation:subscribe"),
    "token-in-query": Code(400, 4, "Tokens in query strings end up in logs and are refused.", "send it as a header"),
    # identity and manifest
    "identity-missing": Code(409, 7, "This daemon has no identity, so it can neither sign nor pair.", "spl identity generate"),
    "identity-exists": Code(409, 7, "There is an identity already.", "spl identity show"),
    "identity-damaged": Code(500, 12, "The identity file cannot be read or does not certify its own DID.", "restore it: spl identity import FILE"),
    "identity-cloned": Code(409, 7, "One identity is used by two daemons: by this one and at the peer's URL, or by a home and a copy of it.", "check the URL and its port; if a copy of a home runs, stop it"),
    "identity-backup": Code(409, 3, "The identity was never exported with its present key: if this disk fails, the DID and its pairs are lost.", "spl identity export --out FILE"),
    "did-invalid": Code(400, 10, "The DID is malformed or does not certify the key.", "ask the peer for: spl identity show"),
    "manifest-missing": Code(404, 10, "The peer publishes no manifest.", "on the peer: spl identity generate; it keeps the key if there is one, and publishes the manifest"),
    "manifest-malformed": Code(422, 10, "The manifest is not of the expected form.", "on the peer: spl identity generate; it keeps the key if there is one, and publishes the manifest"),
    "manifest-signature": Code(422, 10, "The manifest's signature does not verify against the DID it names.", "on the peer: spl identity generate; it keeps the key if there is one, and publishes the manifest; then retry"),
    "manifest-did-mismatch": Code(422, 10, "The manifest, its DID document or the pinned identity disagree.", "compare key words by voice, then: spl federation pair URL --expect-did DID"),
    "manifest-expired": Code(422, 10, "The manifest's validity is over, or not yet begun by our clock.", "set the clock that is wrong, here or there: timedatectl set-ntp true; only a new pair can skip this check: spl federation pair URL --no-strict"),
    "manifest-stale": Code(422, 10, "The manifest is older than the one accepted before, or its chain is shorter.", "a cache or an attacker replays it; check the network path"),
    "peer-version": Code(422, 10, "The peer speaks no federation protocol version that we speak.", "upgrade the older side"),
    # handshake and pairs
    "handshake-401": Code(401, 4, "The peer's permission rules refuse the handshake.", "on the peer: spl config list-permission-rules | grep federation"),
    "handshake-closed": Code(403, 4, "The peer takes no pair requests (federation.approval = closed).", "ask its operator"),
    "handshake-rejected": Code(403, 4, "The peer's operator rejected the request.", "ask its operator"),
    "handshake-pending": Code(202, 8, "The peer's operator has not decided yet; the daemon continues to ask.", "on the peer: spl aitl approve PAIR_ID"),
    "pair-completing": Code(202, 8, "The peer approved; the rest of the handshake and the first sync go on by themselves.", "wait for them: spl sync PAIR_ID"),
    "handshake-expired": Code(410, 7, "The request was not answered within 24 hours.", "spl federation pair URL"),
    "message-malformed": Code(400, 10, "The signed message is not of the expected form.", "upgrade the older side"),
    "message-signature": Code(401, 10, "The signature of the message does not verify.", "it was changed in transit, or its sender rotated its key: spl federation refresh PAIR_ID"),
    "message-audience": Code(403, 10, "The message is addressed to another instance.", "pair with the URL of the instance meant"),
    "message-replayed": Code(409, 10, "The nonce of the message was used before.", "send a new message"),
    "clock-skew": Code(400, 10, "Two clocks are more than 5 minutes apart, so what one side signs the other refuses.", "set the clock that is wrong, here or there: timedatectl set-ntp true; if chrony sets it: chronyc makestep"),
    "sealed-token": Code(422, 10, "The sealed token does not open, or was made for another message.", "spl federation pair URL"),
    "pair-request-seen": Code(410, 7, "This pair request was answered before; poll for the answer.", "spl federation pair URL"),
    "pair-id-taken": Code(409, 7, "The pair id is in use with another nonce.", "draw a new nonce"),
    "pair-exists": Code(409, 7, "There is a live pair with this peer.", "spl sync PAIR_ID; if that fails: spl federation refresh PAIR_ID; if the peer has moved: spl federation pair NEW-URL"),
    "pair-state-conflict": Code(409, 7, "The pair's state does not allow this.", "spl federation show PAIR_ID"),
    "mode-kept": Code(403, 4, "The peer keeps the mode in which it fetches from here: federation.follow_mode is off there, or it changed too often.", "on the peer: spl federation set-mode PAIR_ID MODE; on the peer, for this and later requests: spl config set federation.follow_mode true"),
    "pair-paused": Code(409, 7, "The pair is paused.", "spl federation resume PAIR_ID; on the peer, if it paused the pair: spl federation resume PAIR_ID"),
    "pair-revoked": Code(410, 7, "The pair is revoked; that is final.", "spl federation pair URL"),
    "pair-unknown": Code(404, 6, "There is no such pair here.", "spl federation list"),
    "pair-degraded": Code(503, 9, "The pair cannot sync at present.", "spl federation show PAIR_ID"),
    # sync
    "position-unknown": Code(400, 2, "The position in the log is not one that tokens of these namespaces are shown.", "begin again with since=0; a watch: without Last-Event-ID, with since_clock=0"),
    "cursor-invalid": Code(400, 9, "The cursor is not one of ours.", "start again without a cursor; records known are skipped"),
    "cursor-reset": Code(409, 9, "The log behind the cursor is another one.", "the consumer starts again by itself"),
    "push-position": Code(409, 9, "The push does not start at our saved position.", "it continues from the cursor in the answer by itself"),
    "home-set-back": Code(409, 3, "A home was replaced by an older copy of itself: its log lacks what the other side had read.", "spl federation verify PAIR_ID --repair; the finding ends once both sides are equal"),
    "peer-rewound": Code(502, 9, "The peer's log was rolled back more than three times within an hour.", "on the peer: spl store check"),
    "grant-conflict": Code(409, 7, "The namespace is shared with this pair under another name.", "spl consent list"),
    "consent-missing": Code(409, 3, "The grant is not in force yet: the other side does not hold it, or has not granted L0 in turn.", "spl consent list"),
    "namespace-unmapped": Code(409, 3, "The peer grants into a namespace that does not exist here, so what it sends is refused.", "spl namespace create NAME"),
    "consent-stale": Code(409, 10, "The peer's statement of consent is older than the one held.", "nothing: the newer one stays in force"),
    "scope-violation": Code(403, 10, "The record lies outside what this pair agreed to share.", "spl federation show PAIR_ID"),
    "answer-malformed": Code(502, 9, "The peer's answer is not of the expected form.", "spl federation refresh PAIR_ID; if that fails, upgrade the older side"),
    # sinks
    "sink-unknown": Code(404, 6, "There is no such sink here.", "spl sink list"),
    "sink-exists": Code(409, 7, "The sink cannot be added beside those that there are.", "spl sink list"),
    "sink-invalid": Code(400, 2, "The sink is not of the form that is accepted.", "spl sink add --help"),
    "sink-unreachable": Code(503, 9, "The server or program of a sink, or the engine of a pair, is out of reach; records wait in the log, and nothing is lost.", "start it, or correct the network path; then: spl sink resume NAME"),
    "sink-full": Code(507, 9, "The stream of a sink takes no more records; they wait in the log, and nothing is lost.", "raise its limits or free its disk; it goes on by itself"),
    "sink-foreign": Code(409, 3, "The stream of a sink holds what this instance did not write, so the sink stopped.", "take the right to publish from others; then: spl sink resume NAME"),
    "sink-auth": Code(401, 4, "The server of a sink or carrier does not take the credentials, or they cannot be read.", "correct the file that --creds named, or the user's permissions; then: spl sink resume NAME"),
    "sink-refused": Code(502, 9, "The server or program of a sink or carrier answers in a way that it cannot be used.", "see what it says: spl sink show NAME; correct it; then: spl sink resume NAME"),
    "engine-gap": Code(409, 9, "Records of the pair are missing in what the engine gives; they are fetched from the peer, and nothing is lost.", "spl sync PAIR_ID; what stays missing: spl federation verify PAIR_ID --repair"),
    # reach
    "dns": Code(502, 9, "The peer's name does not resolve.", "check the name and the resolver"),
    "connect": Code(502, 9, "The peer does not accept the connection.", "on the peer: spl serve; if it runs, open its port in the firewall"),
    "no-route": Code(502, 9, "There is no way from this machine to the peer's address: our own network is down or lacks a route, or that machine is off.", "look at this machine's network"),
    "foreign-answer": Code(502, 9, "A proxy or another server answers in the peer's place: the answer is not of the form of a daemon.", "check the URL; at the peer: let the proxy pass /.well-known/ and /v1/ as they are"),
    "timeout": Code(504, 9, "The peer did not answer in time.", "retry; check the network path"),
    "disconnected": Code(502, 9, "The connection ended before the answer was complete.", "retry; check the network path"),
    "tls-chain": Code(502, 10, "TLS does not come about: the certificate does not verify (self-signed ones are refused), or the port has no TLS.", "fix the chain, or trust a private CA with tls.ca_file"),
    "redirect": Code(502, 10, "The peer redirects to another URL.", "pair with the final URL"),
    "address-refused": Code(403, 10, "The address is one that is never dialled, or a private one that no operator typed.", "use the peer's public address; for a private one: spl federation refresh PAIR_ID --url URL; or set public_url here to an address in that network"),
    "http-plain": Code(403, 10, "Plain http is accepted to loopback only.", "use https; where nobody listens on the way: spl config set federation.allow_http true"),
    "peer-4xx": Code(502, 9, "The peer refused the request.", "see the peer's code in the message"),
    "peer-5xx": Code(502, 9, "The peer failed to answer.", "on the peer: spl doctor"),
    "url-invalid": Code(400, 2, "The URL is not an absolute http or https URL.", "spl federation pair https://peer.example/"),
    # home, store, configuration
    "daemon-down": Code(503, 5, "No daemon answers at this home's socket.", "spl serve"),
    "store-locked": Code(409, 11, "Another process holds this home.", "stop it, or use another SYNCROPEL_HOME"),
    "store-damaged": Code(500, 12, "A part of the store is damaged; everything else is served.", "spl store check --repair"),
    "store-missing": Code(500, 12, "The log is not in its place: a volume is not mounted, the home was moved, or the log is lost.", "mount the volume that holds store/, then: spl serve; if the log is lost, begin an empty one: spl init --new-log"),
    "store-newer": Code(500, 12, "The store was written by a newer version.", "upgrade spl"),
    "store-readonly": Code(503, 12, "A disk sync failed; nothing is acknowledged until the daemon restarts on a sound disk.", "check the disk, then restart"),
    "store-full": Code(503, 9, "The disk of the store has no room: no records are taken for now, reading goes on.", "free some space; writing goes on by itself"),
    "home-unusable": Code(500, 78, "The home folder cannot be created, read or written.", "check owner and mode of SYNCROPEL_HOME"),
    "config-invalid": Code(500, 78, "The configuration has an unknown key or a bad value.", "correct the line named in the message"),
    "listen-failed": Code(500, 78, "The address cannot be listened on.", "choose another with --host and --port"),
    # waiting
    "wait-timeout": Code(504, 8, "What was waited for did not happen in time.", "spl doctor PAIR_ID"),
    # findings of doctor and status
    "warming-up": Code(503, 9, "The daemon reads its log into the index and answers when that is done.", "wait; its output shows the progress"),
    "disk-low": Code(507, 3, "The disk of the store is nearly full; when it is full, the daemon accepts no more records.", "free some space, or move the home"),
    "loop-blocked": Code(503, 3, "The daemon's event loop runs late, so everything waits: the machine is overloaded.", "check its load: top, iostat"),
    "tls-expiry": Code(502, 3, "The peer's TLS certificate expires soon; after that no sync is possible.", "on the peer: renew the certificate"),
    "manifest-differs-outside": Code(502, 10, "The manifest that arrives differs from the one the daemon serves: a cache or a proxy is between.", "let the proxy pass /.well-known/ uncached and unchanged"),
    "reverse-unreachable": Code(502, 9, "The peer cannot reach us, so it cannot pull; we still pull from it.", "make public_url reachable from there: port, tunnel or DNS"),
    "one-way": Code(502, 9, "Only one side reaches the other now; until lately both did, or neither pushes instead.", "on both sides: spl doctor PAIR_ID"),
    "token-expiring": Code(401, 3, "A token of the pair expires soon, and the daemons have not been able to renew it.", "spl federation refresh PAIR_ID"),
    "token-withdrawn": Code(401, 3, "A token of the pair was revoked here, so the peer can read nothing from this instance.", "spl token rotate PAIR_ID; to end the pair: spl federation revoke PAIR_ID"),
    "token-expired": Code(401, 4, "A token of the pair has expired; cursors are kept and nothing is lost.", "spl federation refresh PAIR_ID"),
    "token-scope": Code(403, 4, "The peer's token lacks a scope: sync needs federation:sync and federation:subscribe.", "spl federation refresh PAIR_ID"),
    "peer-paused": Code(409, 7, "The peer paused the pair, and only the peer can resume it; nothing is lost.", "on the peer: spl federation resume PAIR_ID"),
    "peer-revoked": Code(410, 7, "The peer revoked the pair; that is final.", "spl federation pair URL"),
    "cursor-stalled": Code(504, 9, "Records wait on the peer and our position does not move; reading again is safe and skips known records.", "spl sync PAIR_ID"),
    "cursor-skip-suspect": Code(502, 9, "The peer counts more records than it serves, even after a restart: old sources skip records of equal clock.", "upgrade the peer, then: spl federation pause PAIR_ID && spl federation resume PAIR_ID"),
    "stream-buffering": Code(502, 9, "A proxy buffers the stream, so records arrive late and in bursts.", "switch off response buffering in the proxy before the peer"),
    "stream-flapping": Code(502, 9, "The stream breaks repeatedly; each time it resumes by its cursor and nothing is lost.", "raise the proxy's read timeout over 45 s; to do without the stream: spl federation set-mode PAIR_ID polling"),
    "intake-paused": Code(429, 9, "The peer brought in as many bytes as a pair may within a day; intake from it is paused, resumes by itself, and loses nothing.", "to allow another day's bytes at once: spl federation resume PAIR_ID"),
    "queue-high": Code(503, 3, "Records wait between network and store: they arrive faster than they are stored.", "check disk and processor of this machine"),
    "adapter-slow": Code(503, 3, "The listeners that run after each write are too slow for 37 records a second.", "check the load of this machine: top; for the slowest adapter: spl status -o json"),
    "records-withheld": Code(503, 3, "The way to the peer does not carry some records, so they wait here; what is behind them goes on.", "raise the body limit of the proxy before the peer (nginx: client_max_body_size 8m), then: spl federation verify PAIR_ID --repair"),
    "peer-behind": Code(503, 3, "The peer does not fetch the records that it is offered, or cannot store them.", "on the peer: spl doctor"),
    "auth-off": Code(503, 3, "The daemon answers without credentials, so every user of this machine is an administrator.", "spl config set auth.required true"),
    "poll-interval-long": Code(409, 3, "The pair polls rarely, so its records may be late.", "spl federation set-poll-interval PAIR_ID 5m"),
}
"""Every code; `tools/check.py` holds it against what the code raises."""


class SplError(Exception):
    """A refusal with a stable code, a reason and a next step.

    `message` is one sentence for people without secrets; `hint` overrides the
    registry's next step where more is known; `facts` are further members of the
    JSON error (names with units, never secrets).
    """

    def __init__(self, code: str, message: str = "", *, hint: str = "", **facts: object) -> None:
        entry = CODES[code]
        super().__init__(message or entry.meaning)
        self.code = code
        self.message = message or entry.meaning
        self.hint = hint or entry.fix
        self.facts = facts

    def bare(self) -> Self:
        """Return the same refusal without the frames that it came through: what they hold would live as long as it."""
        found = Exception.__new__(type(self), *self.args)
        found.__dict__.update(self.__dict__)
        return found

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return CODES[self.code].status

    @property
    def exit_code(self) -> int:
        """The process exit code of the code."""
        return CODES[self.code].exit

    def to_json(self) -> Json:
        """Return the error form of the wire: object, type, code, message, hint, facts."""
        kind = "invalid_request" if self.status < 500 else "api_error"
        return {
            "object": "error",
            "type": kind,
            "code": http_code(self.code),
            "message": printable(self.message),
            "hint": printable(self.hint),
            **self.facts,
        }


BLANKS: Final = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""For a class of a pattern: what shows nothing, or changes what is beside it, and is printable for some; U+2800 too."""
_BLANK: Final = re.compile(f"[{BLANKS}]")
_DIVIDES: Final = re.compile(r"""(?<!\w)'[^']*'|(?<!\w)"[^"]*"|; """)
"""The end of a step, or a text in quotes; an apostrophe within or after a word opens none."""


def printable(text: str) -> str:
    """Return the text with everything escaped, in the form of JSON, that a terminal would obey instead of show.

    That is what Python calls unprintable: C0 and C1 controls, line and paragraph separators, bidirectional and
    zero-width marks, lone surrogates; and BLANKS.  What a peer sent thus forges no line of a log, moves no cursor, and
    looks like no other name.
    """
    if text.isprintable() and (text.isascii() or not _BLANK.search(text)):
        return text
    return "".join(
        char if char.isprintable() and not _BLANK.match(char) else json.dumps(char)[1:-1] for char in text
    )


def steps(fix: str) -> list[str]:
    """Return the steps of a fix, each for a line of its own, so that the command at its end can be pasted.

    What a shell reads as one word in quotes, such as a path, stays whole.
    """
    return _DIVIDES.sub(lambda found: "\0" if found[0] == "; " else found[0], fix).split("\0")


def count(number: int, noun: str) -> str:
    """Return "1 record" or "1,240 records"."""
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """Return the noun as it follows the number: "record" after 1, otherwise "records"."""
    return noun if number == 1 else f"{noun}s"


def http_code(code: str) -> str:
    """Return the UPPER_SNAKE form of a kebab-case code."""
    return code.upper().replace("-", "_")


def cli_code(wire: str) -> str:
    """Return the kebab-case form of an UPPER_SNAKE code."""
    return wire.lower().replace("_", "-")
