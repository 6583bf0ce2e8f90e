"""`spl install-service`: the unit that runs the daemon under systemd, with every setting explained in it."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Final

from ..core.errors import SplError
from .command import Command, Shell, arg, write_file

SYSTEM_FOLDER: Final = "/etc/systemd/system"
USER_FOLDER: Final = "systemd/user"
UNIT: Final = "spl.service"

_COMMON: Final = """\
[Service]
# The daemon says when it serves, when it reads its configuration again, and that it lives.
Type=notify
NotifyAccess=main
ExecStartPre=@SPL@ init
ExecStart=@SPL@ serve
ExecReload=/bin/kill -HUP $MAINPID
# No sign of life for so long, from the loop or from the thread that writes, ends in a restart.
WatchdogSec=60
Restart=on-failure
RestartSec=2
# Another daemon has this home (11), its log is damaged (12), or a setting is wrong (78): a restart would not help.
RestartPreventExitStatus=11 12 78
UMask=0077
NoNewPrivileges=yes
"""
_SYSTEM: Final = """\
# A user of its own, whose only folder is /var/lib/spl.  Commands find the daemon there:
#   sudo SYNCROPEL_HOME=/var/lib/spl spl status
DynamicUser=yes
StateDirectory=spl
RuntimeDirectory=spl
Environment=SYNCROPEL_HOME=%S/spl
# It sees nothing else of the machine, and may do nothing but read, write and use the network.
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
ProcSubset=pid
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
CapabilityBoundingSet=
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
RemoveIPC=yes
"""


def unit_of(spl: str, home: str, *, system: bool) -> str:
    """Return the text of the unit; `spl` is the command with its path, `home` that of a user's own daemon."""
    own = _SYSTEM if system else f"Environment={_quoted(f'SYNCROPEL_HOME={home}')}\n"
    head = "[Unit]\nDescription=Syncropel daemon\nWants=network-online.target\nAfter=network-online.target\n\n"
    wanted = "multi-user.target" if system else "default.target"
    return f"{head}{_COMMON.replace('@SPL@', spl)}{own}\n[Install]\nWantedBy={wanted}\n"


def _quoted(text: str) -> str:
    """Return a word as systemd.syntax(7) has it."""
    escaped = text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if " " in escaped or escaped != text else text


def _install(args: Namespace, shell: Shell) -> int:
    out, env = shell.out, shell.env
    spl = _command(sys.argv[0])
    text = unit_of(spl, shell.home, system=args.system)
    if args.print:
        out.lines(text.rstrip("\n"))
        return 0
    own = Path(env.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    folder = Path(SYSTEM_FOLDER) if args.system else own / USER_FOLDER
    if args.system and spl.startswith(("/home/", "/root/")):
        raise SplError(
            "config-invalid",
            f"a service of the system cannot see {spl}",
            hint="install spl outside of home folders, as in /opt/spl; for your user alone: spl install-service --user",
        )
    path = folder / UNIT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    except OSError as exc:
        hint = "sudo spl install-service --system; for your user alone: spl install-service --user"
        raise SplError("output-failed", f"{path}: {exc.strerror}", hint=hint) from exc
    ctl = "sudo systemctl" if args.system else "systemctl --user"
    out.line(f"wrote {path}; each setting is explained in it")
    out.line(f"start it now and at each boot:  {ctl} daemon-reload && {ctl} enable --now spl")
    if not args.system:
        out.line("keep it running while you are logged out:  loginctl enable-linger")
    out.line(f"see that it runs:  {ctl} status spl")
    return 0


def _command(word: str) -> str:
    """Return the command that runs as this one does, with its whole path."""
    path = os.path.abspath(word)
    is_script = os.access(path, os.X_OK) and not path.endswith(".py")
    return _quoted(path) if is_script else f"{_quoted(sys.executable)} -m spl"


TREE: Final = (
    Command(
        "install-service",
        "Writes the unit that runs the daemon under systemd, for this user or for the whole machine, and says how\n"
        "to start it. The unit explains each of its settings; nothing is started.",
        "spl install-service --user --print",
        _install,
        (
            arg("--user", action="store_true", choice="whose", help="one of this user, over its own home (default)"),
            arg("--system", action="store_true", choice="whose", help=f"one of the machine, in {SYSTEM_FOLDER}"),
            arg("--print", action="store_true", help="print the unit instead of writing it"),
        ),
        result=False,
        whose="home",
    ),
)
