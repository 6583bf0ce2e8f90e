"""`spl sink`: records of named namespaces into a stream engine, or into a program."""

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..client.calls import quote
from ..core.errors import count
from ..core.value import Json
from .command import PAIR, Command, Group, Shell, arg

SINKS: Final = "/v1/sinks"

_CONCEPT: Final = (
    "A sink sends the records of namespaces into a stream engine (NATS JetStream), where any number of readers take\n"
    "them, or into a program. It is a grant of these namespaces, in full, to everyone who can read what it fills."
)


def _add(args: Namespace, shell: Shell) -> int:
    body: Json = {"name": args.name or _name_of(args.url), "url": args.url, "namespaces": args.namespace}
    body |= {"subjects": args.subjects, "from": getattr(args, "from")}
    body |= {name: os.path.abspath(path) for name in ("creds", "ca") if (path := getattr(args, name))}
    found = shell.ctl.post(SINKS, body)
    if not shell.printed("spl.sink/1", found):
        shell.out.line(f"{found['name']}  added: {', '.join(found['namespaces'])} -> {found['url']}")
        shell.out.note("everyone who can read what it fills reads these namespaces in full")
        shell.out.note(f"next: spl sink test {found['name']}")
    return 0


def _name_of(url: str) -> str:
    """Return the name of a sink that was given none: the first words of what it fills."""
    words = "".join(char if char.isascii() and char.isalnum() else " " for char in url.lower()).split()
    return "-".join(word for word in words if word not in ("nats", "tls", "exec"))[:32].strip("-") or "sink"


def _list(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.items(SINKS)
    if not shell.printed("spl.sinks/1", found):
        rows = [
            (
                str(item["name"]), _state(item), ",".join(item["namespaces"]), _lag(item), str(item["sent_records"]),
                str(item["url"]), str(item["finding"] or "-"),
            )
            for item in found
        ]  # fmt: skip
        shell.out.table(
            ("SINK", "STATE", "NAMESPACES", "WAITING", "SENT", "URL", "FINDING"), rows,
            keep=("SINK", "STATE", "WAITING", "FINDING"),
            none="no sinks: spl sink add nats://127.0.0.1:4222 --namespace default",
        )  # fmt: skip
    return 0


def _show(args: Namespace, shell: Shell) -> int:
    _print(shell.ctl.get(f"{SINKS}/{quote(args.name)}"), shell)
    return 0


def _act(action: str, args: Namespace, shell: Shell) -> int:
    _print(shell.ctl.post(f"{SINKS}/{quote(args.name)}/{action}", {}), shell)
    return 0


def _pause(args: Namespace, shell: Shell) -> int:
    return _act("pause", args, shell)


def _resume(args: Namespace, shell: Shell) -> int:
    return _act("resume", args, shell)


def _remove(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post(f"{SINKS}/{quote(args.name)}/remove", {})
    if not shell.printed("spl.sink/1", found):
        shell.out.line(f"{found['name']}  removed; nothing more is sent")
        shell.out.note("what was sent stays where it is, and its readers keep it")
        for reader in found.get("readers", ()):  # an older daemon tells none
            shell.out.note(f"remove the user of {reader} from {found['url']}, if it has one")
    return 0


def _print(found: Mapping[str, Any], shell: Shell) -> None:
    if shell.printed("spl.sink/1", found):
        return
    out = shell.out
    out.line(f"{found['name']}  {_state(found)}")
    rows = {
        "url": found["url"], "namespaces": ", ".join(found["namespaces"]), "waiting": _lag(found),
        "sent": f"{found['sent_records']:,} since the daemon started", "last ack": found["last_acked_at"] or "none yet",
        "stream": found["stream"] or "-", "subjects": ", ".join(found["filters"]) or "-",
        "credentials": found["creds"] or "none", "server": found["server"] or "-",
    }  # fmt: skip
    for name, text in rows.items():
        out.line(f"  {name:<12} {text}")
    _warn(found, shell)


def _warn(found: Mapping[str, Any], shell: Shell) -> None:
    """Print what is wrong with a sink now."""
    if found.get("finding"):  # an older daemon says none in a test
        said = f": {found['said']}" if found.get("said") else ""
        shell.out.warn(f"! {found['error']} [{found['finding']}]{said}")
        shell.out.warn(f"  fix       {str(found['fix']).replace('NAME', found['name'])}")


def _state(item: Mapping[str, Any]) -> str:
    if item["state"] != "active":
        return str(item["state"])
    return "open" if item["open"] else "failing" if item["finding"] else "connecting"


def _lag(item: Mapping[str, Any]) -> str:
    return f"{item['lag_records']:,}" if item["lag_records"] is not None else "-"


def _test(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.post(f"{SINKS}/{quote(args.name)}/test", {})
    if shell.printed("spl.sink_test/1", found):
        return 0
    out = shell.out
    if "program" in found:
        out.line(f"{args.name}  the program is {found['program']}; it was not run")
        _warn(found, shell)
        return 0
    out.line(f"{args.name}  {found['server']} takes the credentials")
    state = found["state"]
    text = f"{count(state['messages'], 'message')}, {state['bytes']:,} bytes" if state else "not made yet"
    out.line(f"  stream       {found['stream']}: {text}")
    out.line(f"  max_payload  {found['max_payload_bytes']:,} bytes")
    if not found["takes_every_record"]:
        out.warn("! larger records go as a pointer {id, thread, namespace, bytes}; set max_payload: 2MB to send all")
    _warn(found, shell)
    return 0


def _acl(args: Namespace, shell: Shell) -> int:
    found = shell.ctl.get(f"{SINKS}/{quote(args.name)}/acl", [("pair", args.pair)])
    if shell.printed("spl.sink_acl/1", found):
        return 0
    out = shell.out
    out.line("permissions: {")
    for verb in ("publish", "subscribe"):
        out.line(f"  {verb}: {{ allow: [")
        for subject in found[verb]:
            out.line(f'    "{subject}"')
        out.line("  ] }")
    out.line("}")
    out.note(f"for the server's user of {found['pair_id']}, whose inbox prefix is {found['subscribe'][0][:-2]}")
    out.note("revoking the pair does not revoke this user: remove it from the server then")
    return 0


_NAME: Final = arg("name", metavar="NAME", help="the sink's name")

TREE: Final = (
    Group(
        "sink",
        _CONCEPT,
        "spl sink list",
        (
            Command(
                "sink add",
                "Begins to send the records of namespaces, all that they hold first.\n"
                "Messages are the signed envelopes, in the order of the log, at least once; they go into a stream of\n"
                "this instance, which is made if the server has none. TLS is verified; without it only a server on\n"
                "this machine is used. exec:COMMAND gives a program one envelope a line: it confirms a record, and\n"
                "all before it, by the line `$SPL_CONFIRM ID`, or all that it was given by ending with status 0.",
                "spl sink add nats://127.0.0.1:4222 --namespace default --name fan",
                _add,
                (
                    arg("url", metavar="URL", help="nats://HOST:PORT, tls://HOST:PORT or exec:COMMAND"),
                    arg("--namespace", action="append", required=True, metavar="N",
                        help="a namespace whose records to send; repeatable"),
                    arg("--name", metavar="NAME", help="a name for the sink (default: made of the URL, and printed)"),
                    arg("--subjects", choices=("shard", "thread"), default="shard",
                        help="64 subjects a namespace, or one a thread (default: shard)"),
                    arg("--from", choices=("0", "now"), default="0",
                        help="0: from the first record; now: only what is written from now on (default: 0)"),
                    arg("--creds", metavar="FILE", help="the user's .creds or nkey seed file, read at each connection"),
                    arg("--ca", metavar="FILE", help="certificates of a private authority (default: the system's)"),
                ),
            ),
            Command(
                "sink list",
                "Lists the sinks with what waits and what is wrong.\nWAITING counts records in the log.",
                "spl sink list",
                _list,
            ),
            Command(
                "sink show",
                "Shows one sink: its stream, subjects and what waits.\nOf one that fails, also why and what to do.",
                "spl sink show fan",
                _show,
                (_NAME,),
            ),
            Command(
                "sink test",
                "Asks the server of a sink now: credentials, stream, largest message.\n"
                "A sink that waits after a failure tries again. A program is looked for, and not run.",
                "spl sink test fan",
                _test,
                (_NAME,),
            ),
            Command(
                "sink acl",
                "Prints the server's permissions that bind a reader to what a pair shares, as nats-server reads them.\n"
                "The reader's durable consumer has the pair's id as its name.",
                "spl sink acl fan bob",
                _acl,
                (_NAME, PAIR),
            ),
            Command(
                "sink pause",
                "Stops sending until it is resumed.\nNothing is lost: the log keeps what waits.",
                "spl sink pause fan",
                _pause,
                (_NAME,),
            ),
            Command(
                "sink resume",
                "Goes on after a pause, or tries a failing sink again now.\n"
                "After sink-foreign it passes over the message that is not ours.",
                "spl sink resume fan",
                _resume,
                (_NAME,),
            ),
            Command(
                "sink remove",
                "Ends a sink before the next message.\nThe stream and what is in it stay on the server.",
                "spl sink remove fan",
                _remove,
                (_NAME,),
            ),
        ),
    ),
)  # fmt: skip
