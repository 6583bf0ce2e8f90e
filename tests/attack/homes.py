"""Homes as `spl init` leaves them: each made once in a process of tests and by label, then copied."""

import functools
import shutil
import tempfile
from pathlib import Path

from tests.e2e.harness import Instance


def settle(instance: Instance, config: str = "") -> None:
    """Give an instance a home with identity and token, and this configuration file."""
    shutil.copytree(_made(instance.name), instance.home)
    if config:
        instance.configure(config)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="attacked-")


@functools.cache
def _made(label: str) -> Path:
    """Return a home that `spl init` made with this label, which no daemon has used."""
    pattern = Instance(label, Path(_folder().name) / label / "home")
    pattern.home.mkdir(parents=True, mode=0o700)
    pattern.run("init", "--label", label)
    return pattern.home
