# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A volume group where the kernel has no device-mapper: LVM itself keeps the books, loop devices stand in for mapped ones.

What LVM parses, rounds, refuses and prints is real. A new volume holds what its extents held before, as in life.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .images import MIB, sh

_STAND_IN = """#!/bin/bash
# Stands at /usr/sbin/lvm, to which lvs, lvcreate and all others are links.
root=@root@ group=@group@
real() { "$root/real/$1" --config '@config@' "${@:2}"; }
follow() { # one loop device for each volume that LVM knows, by its UUID; one run at a time
    local listed name uuid size file loop lock tries=50 seen=" "
    exec {lock}>"$root/lock"
    flock "$lock"
    # What LVM did not list would be taken for removed.
    until listed=$(real lvs --noheadings --units b --nosuffix --options lv_name,lv_uuid,lv_size "$group" 2>>"$root/log"); do
        ((tries--)) || return 5
        sleep 0.1
    done
    while read -r name uuid size; do
        [[ $name ]] || continue
        file=$root/data/$uuid seen+="$uuid "
        [[ -e $file ]] || head -c "$size" /dev/zero | tr '\\0' '\\356' >"$file"
        truncate -s "$size" "$file"
        if [[ -e $root/loops/$uuid ]]; then
            loop=$(<"$root/loops/$uuid")
            losetup --set-capacity "$loop"
        else
            loop=$(losetup --find --show "$file")
            echo "$loop" >"$root/loops/$uuid"
        fi
        [[ -L /dev/$group/$name ]] || rm -f $(find "/dev/$group" -lname "$loop")
        ln -sfn "$loop" "/dev/$group/$name"
    done <<<"$listed"
    for file in "$root"/data/*; do
        [[ -e $file && $seen != *" ${file##*/} "* ]] || continue
        loop=$(<"$root/loops/${file##*/}")
        rm -f $(find "/dev/$group" -lname "$loop") "$file" "$root/loops/${file##*/}"
        losetup --detach "$loop"
    done
    exec {lock}>&-
}
case ${0##*/} in
    vgscan | vgchange | lvchange) ;;
    lvs) real lvs "$@" | sed 's/-XX----$/-a-----/' ;;
    lvcreate) real lvcreate --zero n --wipesignatures n "$@" && follow ;;
    lvremove | lvrename | lvextend) real "${0##*/}" "$@" && follow ;;
    *) real "${0##*/}" "$@" ;;
esac
"""


class VolumeGroup:
    """Made on construction, gone with its devices after ``stop``; ``prefix`` is for commands that are to see it."""

    def __init__(self, root: Path, name: str, size: int = 160 * MIB) -> None:
        self.root, self.name = root, name
        self.devices = Path("/dev", name)
        for directory in (root / "real", root / "data", root / "loops"):
            directory.mkdir(parents=True)
        shutil.copy(os.path.realpath("/usr/sbin/lvm"), root / "real" / "lvm")
        for tool in ("lvs", "vgs", "pvs", "lvcreate", "lvremove", "lvrename", "lvextend", "pvcreate", "vgcreate"):
            (root / "real" / tool).symlink_to("lvm")
        with (root / "disk").open("wb") as file:
            file.truncate(size)
        self._disk = sh("losetup", "--find", "--show", root / "disk").strip()
        config = (
            f'global {{ activation = 0 locking_dir = "{root}" }} backup {{ backup = 0 archive = 0 }} '
            f'devices {{ use_devicesfile = 0 filter = [ "a|^{self._disk}$|", "r|.*|" ] }}')
        script = root / "lvm"
        script.write_text(
            _STAND_IN.replace("@root@", str(root)).replace("@group@", name).replace("@config@", config))
        script.chmod(0o755)
        self.prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c",
                       f'mount --bind {script} /usr/sbin/lvm && exec "$@"', "sh"]
        self.run("pvcreate", "--quiet", self._disk)
        self.run("vgcreate", "--quiet", name, self._disk)
        self.devices.mkdir()

    def run(self, *argv: str) -> str:
        """One of LVM's commands, as an administrator types it."""
        return sh(*self.prefix, *argv)

    def volumes(self) -> dict[str, int]:
        """All volumes with their sizes in bytes, as LVM knows them."""
        listed = self.run("lvs", "--noheadings", "--units", "b", "--nosuffix", "--options", "lv_name,lv_size", self.name)
        return {name: int(size) for name, size in (line.split() for line in listed.splitlines())}

    def content(self, volume: str) -> bytes:
        return (self.devices / volume).read_bytes()

    def clear(self) -> None:
        for volume in self.volumes():
            self.run("lvremove", "--force", f"{self.name}/{volume}")

    def stop(self) -> None:
        self.clear()
        subprocess.run(["losetup", "--detach", self._disk], check=True)
        self.devices.rmdir()
