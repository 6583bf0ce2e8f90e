"""The unit that is written: sound, hardened, and with the paths of this installation."""

import shutil
import subprocess
from pathlib import Path

import pytest

from spl.cli.service import unit_of
from tests.cli.conftest import Run


def test_the_unit_of_the_machine_is_hardened(tmp_path: Path) -> None:
    path = tmp_path / "spl.service"
    path.write_text(unit_of("/usr/bin/true", "", system=True))
    assert shutil.which("systemd-analyze"), "systemd-analyze is not installed"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("system", [True, False])
def test_both_units_have_the_form_that_systemd_reads(tmp_path: Path, system: bool) -> None:
    path = tmp_path / "spl.service"
    path.write_text(unit_of("/usr/bin/true", "/home/some body/50%", system=system))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True)
    assert "Unknown" not in done.stderr, done.stderr
    assert "spl.service:" not in done.stderr, done.stderr
    if not system:
        assert 'Environment="SYNCROPEL_HOME=/home/some body/50%%"' in path.read_text()


def test_it_is_written_and_explained(spl: Run, tmp_path: Path) -> None:
    done = spl("install-service", env={"XDG_CONFIG_HOME": str(tmp_path)})
    path = tmp_path / "systemd/user/spl.service"
    assert (done.code, str(path) in done.out) == (0, True)
    assert "systemctl --user daemon-reload && systemctl --user enable --now spl" in done.out
    assert path.read_text() == spl("install-service", "--print").out
    assert spl("install-service", "--user", "--system").code == 2
