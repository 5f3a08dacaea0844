# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Storage that changes what was written to it: a copy is spoiled right before qemu-img looks at it."""

from __future__ import annotations

from pathlib import Path

# The copy is the last image that is named, and inherited as an open descriptor.
_SCRIPT = """#!/usr/bin/python3 -I
import os, re, sys
if sys.argv[1] in ("compare", "check"):
    found = re.search("/proc/self/fd/([0-9]+)", sys.argv[-1])
    if found:
        fd = int(found[1])
    else:
        fd = next(n for n in range(3, 999) if os.path.exists(f"/proc/self/fd/{n}")
                  and os.readlink(f"/proc/self/fd/{n}") == sys.argv[-1])
    if sys.argv[1] == "check":  # its first level table leads to nowhere
        place, garbage = int.from_bytes(os.pread(fd, 8, 40), "big"), bytes([128, 0, 0, 127, 0, 0, 0, 0])
    else:  # a byte of its data
        place = 1 << 20
        garbage = bytes([os.pread(fd, 1, place)[0] ^ 255])
    os.pwrite(fd, garbage, place)
os.execv("/usr/bin/qemu-nbd", ["qemu-img", *sys.argv[1:]])
"""


def with_spoiled_copies(directory: Path) -> list[str]:
    """A prefix that runs a module on such storage; the file for it is put into the directory."""
    script = directory / "spoiling-qemu-img"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    # The real one goes where a confined tool may still find it.
    mounts = f"mount --bind /usr/bin/qemu-img /usr/bin/qemu-nbd && mount --bind {script} /usr/bin/qemu-img"
    return ["unshare", "-m", "--propagation", "private", "bash", "-c", f'{mounts} && exec "$@"', "bash"]
