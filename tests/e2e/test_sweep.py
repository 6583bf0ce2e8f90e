"""The description of the routes, swept by schemathesis against a real daemon: no fault, and nothing undeclared."""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Make

LEFT_OUT = (
    "/v1/identity/rotate",  # would end what the token rests on
    "/v1/threads/restore",  # takes lines only, which the tool does not write
    "/v1/records/search",  # always 503: this daemon embeds nothing
)
NOT_CHECKED = "positive_data_acceptance"  # bodies are described as objects without a closer form
SWEPT_MIN = 80


def test_every_operation_keeps_to_its_description(make: Make, tmp_path: Path) -> None:
    """Streams too: each is read until its first event, which must have the form that the description gives it."""
    daemon = make("alice").start()
    known = daemon.get("/v1/openapi.json").json["paths"]
    assert set(LEFT_OUT) <= set(known)
    (tmp_path / "schemathesis.toml").write_text("max-stream-events = 1\n")
    command = [
        Path(sys.executable).with_name("schemathesis"), "run", f"{daemon.url}v1/openapi.json",
        "-H", f"Authorization: Bearer {daemon.token}", "--checks", "all", "--exclude-checks", NOT_CHECKED,
        "--phases", "coverage,fuzzing", "--max-examples", "3", "--generation-deterministic", "--no-color",
        "--request-timeout", "60", "--max-redirects", "0", "--continue-on-failure",
        "--suppress-health-check", "all", "--warnings", "off",
        *(word for path in LEFT_OUT for word in ("--exclude-path", path)),
    ]  # fmt: skip
    environment = {**daemon.environment(), "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None, done.stdout[-2000:]
    assert int(tested[1]) >= SWEPT_MIN
    assert daemon.get("/health/ready").status == 200
