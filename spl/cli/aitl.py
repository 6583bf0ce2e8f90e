"""`spl aitl`: requests that wait for a person's decision."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..client.calls import quote
from ..core.value import Json
from .command import Command, Group, Shell, arg
from .out import column, label_of
from .pair import map_text
from .paste import place_of

WHY: Final = {"private": "which is private", "missing": "which does not exist", "archived": "which is archived"}
"""Texts for the daemon's reasons to leave a namespace out."""
_STARTS: Final = {
    "beginning": "the peer also gets the records that these namespaces hold already",
    "present": "the peer gets new records only",
}


def _list(args: Namespace, shell: Shell) -> int:
    requests = shell.ctl.items("/v1/aitl", [("all", "1")] if args.all else [])
    if shell.printed("spl.aitl/1", requests):
        return 0
    out = shell.out
    names = out.dids(item["from"] for item in requests)
    rows = [
        [item["id"], names[item["from"]], out.ago(item["asked_at"]), _time_left(item, shell), item["status"]]
        for item in requests
    ]
    titles = ["ID", "FROM", "ASKED", "EXPIRES", *(["STATUS"] if args.all or out.wide else [])]
    out.table(
        titles,
        [row[: len(titles)] for row in rows],
        below=[f"key: {item['words']}" for item in requests],
        keep=("ID", "STATUS"),
        none="" if requests else f"nothing waits for a decision at {_asked(shell)}",
    )
    return 0


def _asked(shell: Shell) -> str:
    """Return which daemon was asked, for one who meant another."""
    return f"{label_of(shell.ctl.instance() or 'an instance without identity')} ({place_of(shell)})"


def _show(args: Namespace, shell: Shell) -> int:
    request = _get(args, shell)
    if not shell.printed("spl.aitl_request/1", request):
        shell.out.card(_facts(request, shell))
        if request["status"] == "pending":
            shell.out.hint(f"hint: compare the key words by voice, then: spl aitl approve {request['id']}")
            _hub(request, shell)
    return 0


def _approve(args: Namespace, shell: Shell) -> int:
    """Approve exactly the request that was read: its digest is sent too."""
    request = _get(args, shell)
    body: Json = {"decision": "approve", "digest": request["digest"]}
    if args.namespace:
        body["namespaces"] = args.namespace
    if args.without_maps:
        body["without_maps"] = True
    answer = shell.ctl.post(f"/v1/aitl/{quote(request['id'])}/decide", body)
    if not shell.printed("spl.aitl_request/1", answer):
        shell.out.line(f"{request['id']}  approved")
        shell.out.card(_terms({**request, "agrees": answer.get("agrees")}, shell))
        _hub(request, shell)
    return 0


def _reject(args: Namespace, shell: Shell) -> int:
    request = _get(args, shell)
    body = {"decision": "reject", "digest": request["digest"]}
    if args.reason:
        body["reason"] = args.reason
    answer = shell.ctl.post(f"/v1/aitl/{quote(request['id'])}/decide", body)
    if not shell.printed("spl.aitl_request/1", answer):
        shell.out.line(f"{request['id']}  rejected")
    return 0


def _get(args: Namespace, shell: Shell) -> dict[str, Any]:
    return shell.ctl.get(f"/v1/aitl/{quote(args.id)}")


def _facts(request: Mapping[str, Any], shell: Shell) -> list[tuple[str, str]]:
    return [
        ("id", request["id"]), ("asks for", request["kind"]), ("status", request["status"]), *_terms(request, shell),
        ("asked", shell.out.ago(request["asked_at"])), ("expires", _time_left(request, shell)),
        ("digest", request["digest"]),
    ]  # fmt: skip


def _terms(request: Mapping[str, Any], shell: Shell) -> list[tuple[str, str]]:
    """Return what an approval agrees to."""
    return [
        ("from", request["from"]), ("key", request["words"]), ("endpoint", str(request["endpoint"])),
        ("namespaces", ", ".join(request["namespaces"]) or "none"),
        ("maps", ", ".join(map_text(item) for item in request["maps"]) or "none"), ("mode", str(request["mode"])),
        *_agreed(request.get("agrees") or {}, shell),
    ]  # fmt: skip


def _agreed(agrees: Mapping[str, Any], shell: Shell) -> Iterator[tuple[str, str]]:
    """Yield what an approval shares or shared, and what it leaves out with the reason; nothing for {}."""
    if not agrees:
        return
    lost = agrees.get("unmapped") or []
    maps = [f"{map_text(item)} (L1)" for item in agrees["maps"] if item["local"] not in lost]
    yield "shares", ", ".join([*agrees["namespaces"], *maps]) or "nothing"
    if agrees.get("start"):
        yield "history", _STARTS.get(agrees["start"], str(agrees["start"]))
    left_out = [
        f"{item['namespace']}, {WHY[item['why']]}: {shell.out.pasted(item['fix'])}"
        if "why" in item
        else str(item["namespace"])
        for item in agrees["left_out"]
    ]
    yield from column("left out", left_out)
    needs = [f"{name}, named by a map: spl namespace create {name}; or approve --without-maps" for name in lost]
    yield from column("needs first", needs)


def _hub(request: Mapping[str, Any], shell: Shell) -> None:
    peer = label_of(request["from"])
    shell.out.hint(f"hint: instances that {peer} shares these namespaces with receive them as well")


def _time_left(request: Mapping[str, Any], shell: Shell) -> str:
    at = request.get("expires_at")
    return shell.out.left(at).removesuffix(" left").removeprefix("until ") if at else "-"


_ID: Final = arg("id", metavar="ID", help="request id, a unique prefix of one, or the peer's label or DID")

TREE: Final = (
    Group(
        "aitl",
        "AITL means approval in the loop: requests that wait until a person decides. `spl decisions` means the same.\n"
        "A pair request names the peer, the six words of its key and what would be shared.",
        "spl aitl list",
        (
            Command(
                "aitl list",
                "Lists the waiting requests, oldest first, with the six words of the requesting instance's key.\n"
                "A pair request expires after 24 hours and then counts as rejected.",
                "spl aitl list",
                _list,
                (arg("--all", action="store_true", help="list decided requests too"),),
            ),
            Command(
                "aitl show",
                "Shows what an approval would agree to: peer, key, namespaces, maps, mode and endpoint.\n"
                "The digest covers all of it, and an approval applies to this digest alone.",
                "spl aitl show bob",
                _show,
                (_ID,),
            ),
            Command(
                "aitl approve",
                "Agrees to the request as shown; for a pair this mints the peer's token and starts the sync.\n"
                "Compare the six words of the key with the peer's operator first. It shares those requested\n"
                "namespaces that are marked as shared here, or exactly those that --namespace names.",
                "spl aitl approve bob",
                _approve,
                (
                    _ID,
                    arg("--namespace", action="append", metavar="N",
                        help="agree to exactly this requested namespace, also a private one; repeatable (default: "
                             "the requested ones that are marked as shared here)"),
                    arg("--without-maps", action="store_true", help="agree to none of the maps, which `show` lists"),
                ),
            ),
            Command(
                "aitl reject",
                "Refuses the request for good; the peer learns it at its next poll.\n"
                "Nothing was shared before, so nothing has to be withdrawn.",
                "spl aitl reject bob --reason 'unknown key'",
                _reject,
                (_ID, arg("--reason", help="shown to the peer's operator")),
            ),
        ),
    ),
)  # fmt: skip
