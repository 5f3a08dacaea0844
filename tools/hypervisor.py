# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start and stop private hypervisors: a libvirtd, its virtlogd and its QEMUs, living in one directory.

    hypervisor.py start DIR     start it (or find it running) and print its libvirt URI
    hypervisor.py restart DIR   replace its libvirtd, also a killed or wedged one; its guests go on running
    hypervisor.py stop DIR      end every process of it and remove DIR

A mount namespace puts DIR's own subdirectories over libvirt's fixed paths, so that the machine's libvirt, its
configuration and its networks stay untouched, and any number of hypervisors run side by side. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable
from urllib.parse import quote

MARKER = ".private-hypervisor"
MAX_SOCKET_PATH = 107  # bytes of sockaddr_un.sun_path, less the final NUL
START_SECONDS = 30.0
TERM_SECONDS = 5.0
KILL_SECONDS = 10.0
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

# Where libvirt keeps things, and the subdirectory that stands there inside the namespace.
PLACES = {
    "run": "/run/libvirt",
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}

# Written, not copied from the machine: its domains, pools and networks must not start here a second time.
CONFIG = {
    "qemu.conf": 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\n',
    "libvirtd.conf": 'auth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n'
                     'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n',
    "virtlogd.conf": "",
}

# Run in the new mount namespace with pairs of a source and a mount point, then "--" and the keeper's command.
BOOT = """
set -e
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


class HypervisorError(Exception):
    """The hypervisor could not be started or stopped; the message says why."""


def start(directory: Path) -> str:
    """Return the URI of the hypervisor in this directory, which answers."""
    root = directory.resolve()
    if os.geteuid() != 0:
        raise HypervisorError("a private hypervisor needs root")
    for tool in ("libvirtd", "virtlogd", "virsh", "unshare"):
        if shutil.which(tool, path=SEARCH_PATH) is None:
            raise HypervisorError(f"{tool} is not installed; './dev setup' installs it")
    if answers(root):
        return uri(root)
    if processes(root):
        raise HypervisorError(f"the hypervisor in {root} runs but does not answer; restart or stop it")
    lay_out(root)
    mounts = [text for name, place in PLACES.items() for text in (str((root / name).resolve()), place)]
    try:
        launch(root, ["unshare", "--mount", "--propagation", "slave", "sh", "-c", BOOT, "sh", *mounts, "--",
                      sys.executable, os.path.abspath(__file__), "keep", str(root)])
    except BaseException:  # also an interrupt must not leave half a hypervisor behind
        stop(directory)
        raise
    return uri(root)


def restart(directory: Path) -> str:
    """End libvirtd at once, as a crash would, and start it anew beside the guests that go on running."""
    root = directory.resolve()
    libvirtd = [pid for pid in processes(root) if name_of(pid) == "libvirtd"]
    end(lambda: [pid for pid in libvirtd if name_of(pid) == "libvirtd"], (signal.SIGKILL,))
    try:
        keeper = int((root / "keeper.pid").read_text())
    except FileNotFoundError:
        keeper = -1
    if keeper not in processes(root):
        raise HypervisorError(f"no hypervisor runs in {root}")
    former = started(root)
    os.kill(keeper, signal.SIGHUP)
    wait_until_ready(root, former=former)
    return uri(root)


def stop(directory: Path) -> None:
    """End all processes of the hypervisor and remove its directory; what is already gone is fine."""
    root = directory.resolve()
    if not root.exists():
        return
    if not (root / MARKER).exists():
        raise HypervisorError(f"{root} holds no private hypervisor")
    end(lambda: processes(root), (signal.SIGTERM, signal.SIGKILL))
    run = root / "run"
    if run.is_symlink():
        shutil.rmtree(run.resolve(), ignore_errors=True)
    shutil.rmtree(root)


def lay_out(root: Path) -> None:
    """Make the directories and configuration of a new hypervisor, or of one that was killed."""
    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).exists():
        raise HypervisorError(f"{root} is not empty and holds no private hypervisor")
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    for place in PLACES.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(root / "run") and len(os.fsencode(root / "run" / "libvirt-sock")) > MAX_SOCKET_PATH:
        (root / "run").symlink_to(tempfile.mkdtemp(prefix="hypervisor-", dir="/tmp"))
    for name in PLACES:
        (root / name).mkdir(exist_ok=True)
    for name, text in CONFIG.items():
        (root / "etc" / name).write_text(text)


def launch(root: Path, command: list[str]) -> None:
    """Run the keeper in its namespace as a daemon and wait until libvirtd answers."""
    for ended in (root / "started", *root.glob("ended-*")):
        ended.unlink(missing_ok=True)
    with (root / "log" / "start.log").open("ab") as log:
        daemon = subprocess.Popen(command, env=environment(), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                  start_new_session=True)
    wait_until_ready(root, daemon)


def wait_until_ready(root: Path, daemon: subprocess.Popen[bytes] | None = None, *, former: str = "") -> None:
    """Until libvirtd answers; ``former`` is one whose end is no news, though the keeper may hear of it late."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(root):
        latest = started(root)
        if (latest != former and (root / f"ended-{latest}").exists()) or (daemon is not None and daemon.poll() is not None):
            raise HypervisorError(f"libvirtd in {root} ended at once:\n{last_words(root)}")
        if time.monotonic() > deadline:
            raise HypervisorError(f"libvirtd in {root} does not answer:\n{last_words(root)}")
        time.sleep(0.05)


def started(root: Path) -> str:
    """The process number of the libvirtd that the keeper has started last."""
    try:
        return (root / "started").read_text()
    except FileNotFoundError:
        return ""


def keep(root: Path) -> None:
    """Run the daemons and reap their orphans, until all are gone; SIGHUP starts a new libvirtd.

    libvirt waits seconds for a QEMU that is dead but not reaped, and in a container process 1 may be slow to reap or
    never do it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libvirtd = 0

    def run_libvirtd(*_: object) -> None:
        nonlocal libvirtd
        libvirtd = spawn("libvirtd", "-f", "/etc/libvirt/libvirtd.conf", "-p", str(root / "libvirtd.pid"))
        (root / "started").write_text(str(libvirtd))

    signal.signal(signal.SIGHUP, run_libvirtd)
    (root / "keeper.pid").write_text(str(os.getpid()))
    spawn("virtlogd", "-f", "/etc/libvirt/virtlogd.conf", "-p", str(root / "virtlogd.pid"))
    run_libvirtd()
    with contextlib.suppress(ChildProcessError):
        while True:
            gone = os.wait()[0]
            if gone == libvirtd:  # a new one may be started right here
                (root / f"ended-{gone}").touch()


def spawn(*command: str) -> int:
    return os.posix_spawnp(command[0], command, os.environ)


def answers(root: Path) -> bool:
    """Whether libvirtd is up and its QEMU driver is ready."""
    if not (root / "run" / "libvirt-sock").exists():
        return False
    try:
        done = subprocess.run(["virsh", "--quiet", "--connect", uri(root), "version"], env=environment(),
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=START_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def uri(root: Path) -> str:
    return "qemu+unix:///system?socket=" + quote(str((root / "run").resolve() / "libvirt-sock"), safe="/")


def processes(root: Path) -> list[int]:
    """All living processes that see this hypervisor's run directory as /run/libvirt, QEMUs included."""
    try:
        ours = (root / "run").stat()
    except OSError:
        return []
    outside = os.readlink("/proc/self/ns/mnt")
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is a zombie
            if os.readlink(f"/proc/{entry}/ns/mnt") == outside:
                continue
            if os.path.samestat(os.stat(f"/proc/{entry}/root{PLACES['run']}"), ours):
                found.append(int(entry))
    return found


def end(living: Callable[[], list[int]], signals: tuple[signal.Signals, ...]) -> None:
    """Signal the processes until none is left; the list is taken anew because libvirtd may start more meanwhile."""
    for number in signals:
        deadline = time.monotonic() + (KILL_SECONDS if number == signal.SIGKILL else TERM_SECONDS)
        signalled: set[int] = set()
        while left := living():
            for pid in set(left) - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                signalled.add(pid)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise HypervisorError(f"processes that do not end: {' '.join(f'{pid} ({name_of(pid)})' for pid in living())}")


def name_of(pid: int) -> str | None:
    """The command's name, or None when the process has ended (also when nobody has reaped it yet)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return None if state in "ZX" else Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def environment() -> dict[str, str]:
    """What the daemons get: nothing that would lead libvirt elsewhere or translate its messages."""
    return {"PATH": SEARCH_PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}


def last_words(root: Path) -> str:
    lines = []
    for name in ("start.log", "libvirtd.log"):
        with contextlib.suppress(OSError):
            lines += (root / "log" / name).read_text(errors="replace").splitlines()[-10:]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("start", "restart", "stop", "keep"), metavar="start|restart|stop")
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    if args.action == "keep":
        keep(args.directory)
        return 0
    # A terminated start cleans up just as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.action == "stop":
            stop(args.directory)
        else:
            print((start if args.action == "start" else restart)(args.directory))
    except HypervisorError as error:
        print(f"hypervisor.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
