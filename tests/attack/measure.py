"""A daemon as its machine sees it: bytes of its log, of its memory, lines that it wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import Instance

MIB = 1024 * 1024


@dataclass
class Victim(Instance):
    """An instance, and what an attack on it costs."""

    @property
    def log_bytes(self) -> int:
        """The size of its store's log, as it says itself."""
        return int(self.api("GET", "/v1/store/stats").json["log_bytes"])

    @property
    def rss_bytes(self) -> int:
        """The memory that its process has now."""
        return self._status("VmRSS")

    @property
    def peak_bytes(self) -> int:
        """The most memory that its process had since it started, or since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> int:
        """Reset `peak_bytes` and return the memory held now."""
        assert self.process is not None
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.rss_bytes

    def again(self) -> "Victim":
        """Stop the daemon and start it as it was."""
        assert self.stop() == 0, self.output()
        self.start()
        return self

    def reserved(self, thread: str, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of one kind in a reserved thread."""
        bodies = [dict(item["body"]) for item in self.records(thread)]
        return [body for body in bodies if str(body.get("kind", "")).endswith(kind)]

    def waiting(self) -> list[dict[str, Any]]:
        """Return the requests that wait for the operator."""
        return list(self.api("GET", "/v1/aitl").json["data"])

    def log_text(self) -> str:
        """Return everything in its log files and everything it printed."""
        files = [*sorted((self.home / "logs").glob("spl.log*")), self.home.parent / f"{self.name}.out"]
        return "".join(file.read_bytes().decode(errors="replace") for file in files)

    def log_lines(self) -> list[str]:
        """Return the lines of its present log file."""
        return (self.home / "logs" / "spl.log").read_text(errors="replace").split("\n")

    def _status(self, name: str) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} of {self.name}")
