"""What pyproject.toml cannot say: pages for man(1), made from the commands, and a source archive of the same bytes."""

import gzip
import importlib
import os
import sys
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
PAGES = "build/man1"
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))  # 1980, as tools/bundle


class ReproducibleSdist(sdist):
    """A source archive that depends on the names and contents of files alone."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):  # type: ignore[no-untyped-def]
        """Write BASE_NAME.tar.gz and return its name."""
        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", 9, file, mtime=EPOCH) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(each for each in Path(base_dir).rglob("*") if each.is_file()):
                info = archive.gettarinfo(name)
                info.mtime, info.uid, info.gid, info.uname, info.gname = EPOCH, 0, 0, "", ""
                info.mode = 0o755 if info.mode & 0o100 else 0o644
                with name.open("rb") as content:
                    archive.addfile(info, content)
        return path


class ReproducibleModules(build_py):
    """Modules and their data with the same mode whatever a checkout gave them: the wheel keeps it."""

    def run(self) -> None:
        """Copy them."""
        super().run()
        for path in Path(self.build_lib).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


os.umask(0o022)
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))
importlib.import_module("spl.cli.manpages").write(Path(PAGES), importlib.import_module("spl.cli.main"))
setup(
    cmdclass={"build_py": ReproducibleModules, "sdist": ReproducibleSdist},
    data_files=[("share/man/man1", sorted(str(page) for page in Path(PAGES).glob("*.1")))],
)
