"""Records into programs: those that confirm, those that only end, and those that fail."""

import shlex
import sys
from pathlib import Path

import pytest

from spl.home.writes import Arrive
from tests.engine.servers import caught_up, failing, logged, serving
from tests.nodes import Node

CONFIRMING = """
import json, os, sys
out = open(sys.argv[1], "ab")
for line in sys.stdin.buffer:
    out.write(line); out.flush()
    print(os.environ["SPL_CONFIRM"], json.loads(line)["id"], flush=True)
    if len(sys.argv) > 2: sys.exit(3)
"""


def program(folder: Path, text: str, *arguments: object) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return "exec:" + shlex.join([sys.executable, str(path), *map(str, arguments)])


def received(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


async def test_a_program_that_confirms_gets_each_record_once(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(300):
        node.emit(str(number))
    fields = {"name": "fan", "namespaces": ("default",), "url": program(tmp_path, CONFIRMING, out)}
    async with serving(node) as service:
        await service.add(fields, from_now=False)
        await caught_up(service)
    assert received(out) == logged(node)
    node.emit("a process later")
    async with serving(node) as service:
        await caught_up(service)
    assert received(out) == logged(node), "the saved position was not used"


async def test_a_program_that_only_ends_confirms_by_its_status(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields = {"name": "fan", "namespaces": ("default",), "url": f"exec:tee -a {out}.1 {out}"}
    node.emit("x" * 70_000)
    async with serving(node) as service:
        await service.add({**fields, "url": f"exec:dd of={out} oflag=append conv=notrunc status=none"}, from_now=False)
        await caught_up(service)
        node.emit("two")
        await caught_up(service)
    assert received(out) == logged(node)


async def test_a_program_that_fails_is_named_and_gets_the_rest_again(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spl.engine.pump.BACKOFF_BASE_S", 0.01)
    out = tmp_path / "out"
    for number in range(5):
        node.emit(str(number))
    async with serving(node) as service:
        url = program(tmp_path, CONFIRMING, out, "dies after one")
        await service.add({"name": "fan", "namespaces": ("default",), "url": url}, from_now=False)
        await failing(service, "sink-refused")
        (tmp_path / "program.py").write_text(CONFIRMING.replace("sys.exit(3)", "pass"))
        await caught_up(service)
    assert list(dict.fromkeys(received(out))) == logged(node)


async def test_a_confirmation_of_what_two_namespaces_hold_passes_nothing_between_them(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run confirms the first record that it is given, and dies."""
    monkeypatch.setattr("spl.engine.pump.BACKOFF_BASE_S", 0.01)
    out = tmp_path / "out"
    made = node.emit("in both")
    node.emit("between")
    node.write(Arrive(made, "music", "pair_x"))
    node.emit("behind")
    async with serving(node) as service:
        url = program(tmp_path, CONFIRMING, out, "dies after one")
        await service.add({"name": "fan", "namespaces": ("default", "music"), "url": url}, from_now=False)
        await caught_up(service)
    assert received(out) == logged(node, "default", "music")


async def test_what_two_namespaces_hold_goes_to_a_program_that_confirms_for_both(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "out"
    node.emit("after this it is known to confirm")
    async with serving(node) as service:
        url = program(tmp_path, CONFIRMING, out)
        await service.add({"name": "fan", "namespaces": ("default", "music"), "url": url}, from_now=False)
        await caught_up(service)
        for number in range(5):
            made = node.emit(str(number))
            node.write(Arrive(made, "music", "pair_x"))
        await caught_up(service)
    assert received(out) == logged(node, "default", "music")


async def test_no_text_of_a_record_confirms_another(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the ids that records name, and ends before it has stored the last one."""
    monkeypatch.setattr("spl.engine.pump.BACKOFF_BASE_S", 0.01)
    out = tmp_path / "out"
    text = """
import json, sys
lines = sys.stdin.buffer.readlines()
for line in lines:
    print(json.loads(line)["id"], flush=True)
if len(sys.argv) > 2: sys.exit(3)
open(sys.argv[1], "ab").writelines(lines)
"""
    for number in range(3):
        node.emit(str(number))
    async with serving(node) as service:
        url = program(tmp_path, text, out, "dies before it stores them")
        await service.add({"name": "fan", "namespaces": ("default",), "url": url}, from_now=False)
        sink = await failing(service, "sink-refused")
        assert (sink["sent_records"], sink["position_seq"]) == (0, 0)
        (tmp_path / "program.py").write_text(text.replace("sys.exit(3)", "pass"))
        await caught_up(service)
    assert received(out) == logged(node)


@pytest.mark.parametrize("flood", ["yes ''", "yes 0123456789", "cat /dev/zero"])
async def test_a_program_that_prints_without_end_is_named_and_holds_up_nobody(
    node: Node, monkeypatch: pytest.MonkeyPatch, flood: str
) -> None:
    monkeypatch.setattr("spl.engine.program_target.PRINTED_MAX", 256 * 1024)
    for number in range(20):
        node.emit(str(number))
    async with serving(node) as service:
        fields = {"name": "fan", "namespaces": ("default",), "url": f"exec:{flood}"}
        await service.add(fields, from_now=False)
        sink = await failing(service, "sink-refused")
    assert (sink["sent_records"], "for one batch" in sink["error"]) == (0, True)


async def test_a_program_may_print_many_lines_for_each_record(node: Node, tmp_path: Path) -> None:
    text = """
import json, os, sys
for line in sys.stdin:
    value = json.loads(line)
    print(json.dumps(value, indent=8).replace(",", ",\\n" * 20))
    print(os.environ["SPL_CONFIRM"], value["id"], flush=True)
"""
    for number in range(100):
        node.emit(str(number))
    async with serving(node) as service:
        fields = {"name": "fan", "namespaces": ("default",), "url": program(tmp_path, text)}
        await service.add(fields, from_now=False)
        assert (await caught_up(service))["sent_records"] == 100


async def test_the_environment_has_no_secrets(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPL_TOKEN", "secret")
    out = tmp_path / "env"
    text = "import os, sys; sys.stdin.read(); open(sys.argv[1], 'w').write(' '.join(os.environ))"
    node.emit("one")
    async with serving(node) as service:
        url = program(tmp_path, text, out)
        await service.add({"name": "fan", "namespaces": ("default",), "url": url}, from_now=False)
        await caught_up(service)
    assert (
        {"SPL_CONFIRM", "PATH"} <= set(out.read_text().split()) <= {"SPL_CONFIRM", "PATH", "HOME", "LANG", "LC_CTYPE"}
    )
