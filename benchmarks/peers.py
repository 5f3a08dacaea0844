# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection is measured against, as programs of their own: python3 peers.py WHAT ARGUMENT..."""

from __future__ import annotations

import os
import struct
import sys
from xml.etree import ElementTree
from pathlib import Path


def create(uri: str, pool_name: str, template: str, count: str) -> None:
    """Overlays through libvirt's Python binding, as short as it can be said."""
    import libvirt

    pool = libvirt.open(uri).storagePoolLookupByName(pool_name)
    for number in range(int(count)):
        pool.createXML(overlay_xml(f"v{number:02}", template), 0)


def clone(uri: str, pool_name: str, source: str, document: str) -> None:
    """A copy through libvirt's Python binding."""
    import libvirt

    pool = libvirt.open(uri).storagePoolLookupByName(pool_name)
    pool.createXMLFrom(document, pool.storageVolLookupByName(source), 0)


def listing(uri: str, pool_name: str) -> None:
    """All volumes' names, paths, sizes and backing files through libvirt's Python binding."""
    import libvirt

    pool = libvirt.open(uri).storagePoolLookupByName(pool_name)
    pool.refresh(0)
    found = []
    for volume in pool.listAllVolumes(0):
        root = ElementTree.fromstring(volume.XMLDesc(0))
        found.append([root.findtext(path) for path in ("name", "target/path", "capacity", "allocation", "backingStore/path")])


def scan(directory: str) -> None:
    """The header of every image, straight from the directory."""
    found = []
    for entry in os.scandir(directory):
        with open(entry.path, "rb", buffering=0) as image:
            head = image.read(4096)
            found.append((entry.name, struct.unpack_from(">Q", head, 24)[0], os.fstat(image.fileno()).st_blocks))


def copy_header(directory: str, template: str, count: str) -> None:
    """One overlay by qemu-img, its bytes written again for all further ones."""
    import subprocess

    first = Path(directory, "v00")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", template, "-F", "qcow2", first], check=True)
    header = first.read_bytes()
    for number in range(1, int(count)):
        Path(directory, f"v{number:02}").write_bytes(header)


def overlay_xml(name: str, template: str) -> str:
    return (
        f"<volume><name>{name}</name><capacity>{1 << 30}</capacity><target><format type='qcow2'/><compat>1.1</compat></target>"
        f"<backingStore><path>{template}</path><format type='qcow2'/></backingStore></volume>")


def copy_xml(name: str, image_format: str, capacity: int) -> str:
    return (
        f"<volume><name>{name}</name><capacity>{capacity}</capacity><allocation>0</allocation>"
        f"<target><format type='{image_format}'/></target></volume>")


if __name__ == "__main__":
    {"create": create, "clone": clone, "list": listing, "scan": scan, "copy-header": copy_header}[sys.argv[1]](*sys.argv[2:])
