# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _xml
from ansible_collections.hypervisor.storage.plugins.module_utils._model import Pool, PoolSource
from ansible_collections.hypervisor.storage.plugins.module_utils._xml import DiskDef, SnapshotDisk, SourceRef, VolumeDef

UUID = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"


# -- pools -----------------------------------------------------------------------------------------

POOLS = [
    (
        """<pool type='dir'>
          <name>default</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <capacity unit='bytes'>270553174016</capacity>
          <allocation unit='bytes'>187383066624</allocation>
          <available unit='bytes'>83170107392</available>
          <source>
          </source>
          <target>
            <path>/var/lib/libvirt/images</path>
            <permissions><mode>0711</mode><owner>0</owner><group>0</group></permissions>
          </target>
        </pool>""",
        Pool(
            "default", UUID, "dir", "/var/lib/libvirt/images", True, 270553174016, 187383066624, 83170107392
        ),
        ("file", True, "qcow2"),
    ),
    (
        """<pool type='fs'>
          <name>data &amp; more</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <capacity unit='bytes'>0</capacity>
          <allocation unit='bytes'>0</allocation>
          <available unit='bytes'>0</available>
          <source><device path='/dev/vdb1'/><format type='xfs'/></source>
          <target><path>/srv/a &lt;b&gt;</path></target>
        </pool>""",
        Pool("data & more", UUID, "fs", "/srv/a <b>"),
        ("file", True, "qcow2"),
    ),
    (
        """<pool type='netfs'>
          <name>nfs</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <source><host name='nas.example.org'/><dir path='/export'/><format type='nfs'/></source>
          <target><path>/mnt/nfs</path></target>
        </pool>""",
        Pool("nfs", UUID, "netfs", "/mnt/nfs"),
        ("file", True, "qcow2"),
    ),
    (
        """<pool type='logical'>
          <name>vg0</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <capacity unit='bytes'>10733223936</capacity>
          <allocation unit='bytes'>4294967296</allocation>
          <available unit='bytes'>6438256640</available>
          <source><device path='/dev/vdb'/><name>vg0</name><format type='lvm2'/></source>
          <target><path>/dev/vg0</path></target>
        </pool>""",
        Pool("vg0", UUID, "logical", "/dev/vg0", True, 10733223936, 4294967296, 6438256640, PoolSource("vg0")),
        ("block", False, "raw"),
    ),
    (
        """<pool type='rbd'>
          <name>ceph</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <capacity unit='bytes'>1073741824</capacity>
          <allocation unit='bytes'>6</allocation>
          <available unit='bytes'>1072693248</available>
          <source>
            <host name='mon.example.org' port='6789'/><name>libvirt-pool</name>
            <auth type='ceph' username='libvirt'><secret uuid='2ec115d7-3a88-3ceb-bc12-0ac909a6fd87'/></auth>
          </source>
        </pool>""",
        Pool(
            "ceph", UUID, "rbd", None, True, 1073741824, 6, 1072693248,
            PoolSource("libvirt-pool", ("mon.example.org:6789",), "libvirt", ("uuid", "2ec115d7-3a88-3ceb-bc12-0ac909a6fd87")),
        ),  # fmt: skip
        ("network", False, "raw"),
    ),
    (
        """<pool type='rbd' xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'>
          <name>ceph</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <source>
            <host name='mon1.example.org'/><host name='2001:db8::1' port='6789'/><name>images</name>
            <auth type='ceph' username='admin'><secret usage='client.admin secret'/></auth>
          </source>
          <rbd:config_opts><rbd:option name='client_mount_timeout' value='45'/></rbd:config_opts>
        </pool>""",
        Pool(
            "ceph", UUID, "rbd", None,
            source=PoolSource(
                "images", ("mon1.example.org", "[2001:db8::1]:6789"), "admin", ("usage", "client.admin secret"),
                (("client_mount_timeout", "45"),),
            ),
        ),  # fmt: skip
        ("network", False, "raw"),
    ),
    (
        """<pool type='zfs'>
          <name>tank</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <capacity unit='bytes'>68182605824</capacity>
          <allocation unit='bytes'>3145728000</allocation>
          <available unit='bytes'>65036877824</available>
          <source><name>tank</name></source>
          <target><path>/dev/zvol/tank</path></target>
        </pool>""",
        Pool("tank", UUID, "zfs", "/dev/zvol/tank", True, 68182605824, 3145728000, 65036877824, PoolSource("tank")),
        ("block", False, "raw"),
    ),
    (
        """<pool type='iscsi-direct'>
          <name>target</name>
          <uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
          <source>
            <host name='iscsi.example.org'/><device path='iqn.2013-06.com.example:iscsi-pool'/>
            <initiator><iqn name='iqn.2013-06.com.example:iscsi-initiator'/></initiator>
          </source>
        </pool>""",
        Pool("target", UUID, "iscsi-direct", None),
        ("network", False, "raw"),
    ),
]


@pytest.mark.parametrize(("text", "expected", "nature"), POOLS, ids=[pool.type for _text, pool, _nature in POOLS])
def test_pools_of_every_type(text: str, expected: Pool, nature: tuple[str, bool, str]) -> None:
    pool = _xml.parse_pool(text)
    assert pool == expected
    assert (pool.volume_type, pool.stores_files, pool.default_format) == nature


def test_a_pool_that_is_not_active() -> None:
    assert not _xml.parse_pool(POOLS[0][0], active=False).active


# -- volumes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            """<volume type='file'>
              <name>web &lt;1&gt;</name>
              <key>/pool/web &lt;1&gt;</key>
              <capacity unit='bytes'>10737418240</capacity>
              <allocation unit='bytes'>200704</allocation>
              <physical unit='bytes'>196768</physical>
              <target>
                <path>/pool/web &lt;1&gt;</path>
                <format type='qcow2'/>
                <permissions><mode>0600</mode><owner>0</owner><group>0</group></permissions>
                <timestamps><atime>1714559412.1</atime></timestamps>
                <compat>1.1</compat><clusterSize unit='B'>65536</clusterSize><features/>
              </target>
              <backingStore>
                <path>/pool/base</path><format type='raw'/>
                <permissions><mode>0644</mode></permissions>
              </backingStore>
            </volume>""",
            VolumeDef(
                "web <1>", "/pool/web <1>", "/pool/web <1>", "file", "qcow2", 10737418240, 200704,
                "/pool/base", "raw", False,
            ),
        ),
        (
            """<volume type='block'>
              <name>lv1</name><key>aXcfbE-M4tc-Opsz-DXtK-0c6d-0W8x-xYzZ1a</key>
              <source><device path='/dev/vdb'><extent start='0' end='4194304'/></device></source>
              <capacity unit='bytes'>4194304</capacity><allocation unit='bytes'>4194304</allocation>
              <target><path>/dev/vg0/lv1</path></target>
            </volume>""",
            VolumeDef(
                "lv1", "aXcfbE-M4tc-Opsz-DXtK-0c6d-0W8x-xYzZ1a", "/dev/vg0/lv1", "block", None, 4194304, 4194304,
                None, None, False,
            ),
        ),
        (
            """<volume type='network'>
              <name>web</name><key>libvirt-pool/web</key>
              <capacity unit='bytes'>1048576</capacity><allocation unit='bytes'>0</allocation>
              <target><path>libvirt-pool/web</path><format type='raw'/></target>
            </volume>""",
            VolumeDef(
                "web", "libvirt-pool/web", "libvirt-pool/web", "network", "raw", 1048576, 0, None, None, False
            ),
        ),
        (
            """<volume type='file'>
              <name>secret</name><key>/pool/secret</key>
              <capacity unit='bytes'>512</capacity><allocation unit='bytes'>0</allocation>
              <target>
                <path>/pool/secret</path><format type='qcow2'/>
                <encryption format='luks'>
                  <secret type='passphrase' uuid='2ec115d7-3a88-3ceb-bc12-0ac909a6fd87'/>
                </encryption>
              </target>
              <backingStore><path>/pool/base</path></backingStore>
            </volume>""",
            VolumeDef(
                "secret", "/pool/secret", "/pool/secret", "file", "qcow2", 512, 0, "/pool/base", None, True
            ),
        ),
    ],
    ids=["overlay", "logical", "rbd", "encrypted"],
)  # fmt: skip
def test_volumes(text: str, expected: VolumeDef) -> None:
    assert _xml.parse_volume(text) == expected


NASTY_NAMES = [
    "web", "-", "--help", "a b", " a ", "<a>", "&amp;", "]]>", "<![CDATA[", "<!--", "'", '"', "a'b\"c", "%s", "${x}",
    "nbd:x", "json:{}", "日本語", "é", "e\u0301", "🐧", "\u00a0", "\u2028", "\ufeff", "\ufffd", "x" * 255,
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY_NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("image_format", ["qcow2", None])
def test_any_name_comes_back_from_the_document_that_carried_it(name: str, image_format: str | None) -> None:
    text = _xml.build_volume(name=name, capacity=2**63 - 512, allocation=0, format=image_format)
    # Encoded as libvirt's C strings carry it.
    definition = _xml.parse_volume(text.encode().decode())
    assert (definition.name, definition.format) == (name, image_format)
    assert (definition.capacity, definition.allocation) == (2**63 - 512, 0)


def test_capacity_and_allocation_are_always_sent_in_bytes() -> None:
    root = ET.fromstring(_xml.build_volume(name="web", capacity=1024, allocation=512, format="raw"))
    assert [(e.tag, e.get("unit"), e.text) for e in root][1:3] == [
        ("capacity", "bytes", "1024"), ("allocation", "bytes", "512")
    ]  # fmt: skip


# -- domains ---------------------------------------------------------------------------------------


def domain(devices: str, os_part: str = "") -> str:
    return f"""<domain type='kvm' id='3'>
      <name>vm1</name><uuid>{UUID}</uuid><memory unit='KiB'>65536</memory>
      <os><type arch='x86_64'>hvm</type>{os_part}<boot dev='hd'/></os>
      <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
        <interface type='network'><source network='default'/><target dev='vnet0'/></interface>
        <serial type='pty'><source path='/dev/pts/1'/><target port='0'/></serial>
      </devices>
    </domain>"""


def disk(**changes: Any) -> DiskDef:
    fields: dict[str, Any] = {
        "target": "vda", "bus": "virtio", "readonly": False, "format": "qcow2",
        "source": SourceRef("file", path="/pool/web"),
    }  # fmt: skip
    return DiskDef(**{**fields, **changes})


def file(path: str) -> SourceRef:
    return SourceRef("file", path=path)


DISKS = {
    "file with a chain": (
        """<disk type='file' device='disk'>
          <driver name='qemu' type='qcow2' cache='none'/>
          <source file='/pool/web' index='3'/>
          <backingStore type='file' index='2'>
            <format type='qcow2'/><source file='/pool/middle'/>
            <backingStore type='block' index='1'>
              <format type='raw'/><source dev='/dev/vg0/base'/><backingStore/>
            </backingStore>
          </backingStore>
          <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
        </disk>""",
        [disk(layers=(file("/pool/middle"), SourceRef("block", path="/dev/vg0/base")))],
    ),
    "end of a chain": (
        """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/pool/web'/>
          <backingStore/><target dev='vda' bus='virtio'/></disk>""",
        [disk()],
    ),
    "block": (
        """<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg0/web'/>
          <target dev='sda' bus='scsi'/></disk>""",
        [disk(target="sda", bus="scsi", format="raw", source=SourceRef("block", path="/dev/vg0/web"))],
    ),
    "volume of a pool": (
        """<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='default' volume='w&amp;b'/>
          <target dev='vda' bus='virtio'/></disk>""",
        [disk(source=SourceRef("volume", pool="default", volume="w&b"))],
    ),
    "network": (
        """<disk type='network' device='disk'><driver name='qemu' type='raw'/>
          <auth username='libvirt'><secret type='ceph' uuid='2ec115d7-3a88-3ceb-bc12-0ac909a6fd87'/></auth>
          <source protocol='rbd' name='libvirt-pool/web'><host name='mon.example.org' port='6789'/></source>
          <target dev='vda' bus='virtio'/></disk>""",
        [disk(format="raw", source=SourceRef("network", path="libvirt-pool/web", protocol="rbd"))],
    ),
    "no stated format is raw": (
        "<disk type='file'><source file='/pool/web'/><target dev='hda'/></disk>",
        [disk(target="hda", bus=None, format="raw")],
    ),
    "no type is a file": (
        "<disk><driver name='qemu'/><source file='/pool/web'/><target dev='vda' bus='virtio'/></disk>",
        [disk(format="raw")],
    ),
    "running block copy": (
        """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/pool/web'/><backingStore/>
          <mirror type='file' file='/pool/copy' format='qcow2' job='copy' ready='yes'>
            <format type='qcow2'/><source file='/pool/copy'/>
            <backingStore type='file'><format type='raw'/><source file='/pool/below copy'/></backingStore>
          </mirror>
          <target dev='vda' bus='virtio'/></disk>""",
        [disk(layers=(file("/pool/below copy"),), mirrors=(file("/pool/copy"),))],
    ),
    "data file": (
        """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='/pool/web'>
            <dataStore type='block'><format type='raw'/><source dev='/dev/vg0/data'/></dataStore>
          </source>
          <target dev='vda' bus='virtio'/></disk>""",
        [disk(layers=(SourceRef("block", path="/dev/vg0/data"),))],
    ),
    "cdrom": (
        """<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/debian.iso'/>
          <target dev='sda' bus='sata'/><readonly/></disk>""",
        [disk(target="sda", bus="sata", readonly=True, format="raw", source=file("/iso/debian.iso"))],
    ),
    "cdrom without a readonly element": (
        """<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/debian.iso'/>
          <target dev='sda' bus='sata'/></disk>""",
        [disk(target="sda", bus="sata", readonly=True, format="raw", source=file("/iso/debian.iso"))],
    ),
    "empty cdrom": (
        """<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
           <disk type='file' device='cdrom'><source startupPolicy='optional'/><target dev='sdb' bus='sata'/></disk>
           <disk type='block' device='floppy'><source dev=''/><target dev='fda' bus='fdc'/></disk>""",
        [],
    ),
    "shared and read-only": (
        """<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/pool/web'/>
          <target dev='vda' bus='virtio'/><shareable/></disk>
           <disk type='file' device='lun'><driver name='qemu' type='raw'/><source file='/pool/two'/>
          <target dev='vdb' bus='virtio'/><readonly/></disk>""",
        [disk(format="raw"), disk(target="vdb", format="raw", readonly=True, source=file("/pool/two"))],
    ),
    "directory as a disk": (
        "<disk type='dir' device='floppy'><source dir='/srv/floppy'/><target dev='fda'/></disk>",
        [],
    ),
    "file systems": (
        """<filesystem type='mount'><source dir='/srv/share'/><target dir='share'/></filesystem>
           <filesystem type='file'><driver type='loop'/><source file='/pool/fs'/><target dir='/'/></filesystem>
           <filesystem type='block'><source dev='/dev/vg0/fs'/><target dir='/data'/><readonly/></filesystem>""",
        [
            disk(target="/", bus=None, format=None, source=file("/pool/fs"), is_disk=False),
            disk(target="/data", bus=None, format=None, readonly=True, source=file("/dev/vg0/fs"), is_disk=False),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DISKS)
def test_disks_of_domains(case: str) -> None:
    devices, expected = DISKS[case]
    assert list(_xml.parse_domain_disks(domain(devices))) == expected


@pytest.mark.parametrize(
    ("os_part", "expected"),
    [
        (
            "<loader readonly='yes' type='pflash'>/fw/OVMF_CODE.fd</loader>"
            "<nvram template='/fw/OVMF_VARS.fd'>/pool/vm1_VARS.fd</nvram>",
            [("loader", True, "/fw/OVMF_CODE.fd"), ("nvram", False, "/pool/vm1_VARS.fd")],
        ),
        (
            "<nvram type='file' template='/fw/OVMF_VARS.fd'><source file='/pool/vars'/></nvram>",
            [("nvram", False, "/pool/vars")],
        ),
        ("<nvram type='block'><source dev='/dev/vg0/vars'/></nvram>", [("nvram", False, "/dev/vg0/vars")]),
        ("<nvram type='network'><source protocol='rbd' name='ceph/vars'/></nvram>", [("nvram", False, "ceph/vars")]),
        ("<varstore template='/fw/vars.json' path='/pool/vars.json'/>", [("varstore", False, "/pool/vars.json")]),
        ("<varstore/>", []),
        ("<nvram template='/fw/OVMF_VARS.fd'/>", []),
        (
            "<kernel>/boot/vmlinuz</kernel><initrd>\n/boot/initrd\n</initrd><cmdline>root=/dev/vda</cmdline><dtb>/boot/dtb</dtb>",
            [("kernel", True, "/boot/vmlinuz"), ("initrd", True, "/boot/initrd"), ("dtb", True, "/boot/dtb")],
        ),
        ("<loader>hvmloader</loader>", []),
    ],
)
def test_firmware_and_kernels(os_part: str, expected: list[tuple[str, bool, str]]) -> None:
    found = _xml.parse_domain_disks(domain("", os_part))
    assert all((each.is_disk, each.format, each.bus, each.layers) == (False, None, None, ()) for each in found)
    assert [(each.target, each.readonly, each.source.path) for each in found] == expected


@pytest.mark.parametrize(("device", "expected"), [
    ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='file' path='/pool/tpm'/></backend></tpm>",
     [("tpm", "/pool/tpm")]),
    ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", []),
    ("<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", []),
    ("<memory model='nvdimm' access='shared'><source><path>/pool/pmem</path></source><target><size>1</size></target></memory>",
     [("memory", "/pool/pmem")]),
    ("<memory model='dimm'><target><size unit='KiB'>524287</size></target></memory>", []),
    ("<pstore backend='acpi-erst'><path>/pool/erst</path><size unit='KiB'>8</size></pstore>", [("pstore", "/pool/erst")]),
])  # fmt: skip
def test_what_devices_keep_in_files(device: str, expected: list[tuple[str, str]]) -> None:
    found = _xml.parse_domain_disks(domain(device))
    assert [(each.target, each.source.path) for each in found] == expected
    assert not any(each.is_disk or each.readonly for each in found)


def test_the_memory_that_a_snapshot_keeps_in_a_file() -> None:
    found = _xml.parse_snapshot("<domainsnapshot><name>s</name><memory snapshot='external' file='/pool/s.mem'/></domainsnapshot>")
    assert [(each.target, each.source, each.is_disk) for each in found.domain_disks] == [("memory", file("/pool/s.mem"), False)]


# -- snapshots -------------------------------------------------------------------------------------

INNER = """<domain type='kvm'><name>vm1</name><os><type>hvm</type></os><devices>
  <disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>
    <target dev='vda' bus='virtio'/></disk>
  <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/pool/scratch'/>
    <target dev='vdb' bus='virtio'/></disk></devices></domain>"""
SCRATCH = disk(target="vdb", format="raw", source=file("/pool/scratch"))


def test_an_external_snapshot() -> None:
    found = _xml.parse_snapshot(
        f"""<domainsnapshot>
          <name>before &amp; after</name><state>disk-snapshot</state><parent><name>s0</name></parent>
          <creationTime>1714559412</creationTime><memory snapshot='no'/>
          <disks>
            <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/pool/web.s1'/></disk>
            <disk name='vdb' snapshot='no'/>
            <disk name='vdc' snapshot='external' type='block'><driver type='qcow2'/><source dev='/dev/vg0/s1'/></disk>
          </disks>
          {INNER.format(format="raw", path="/pool/web")}
          <cookie><cpu mode='custom'/></cookie>
        </domainsnapshot>"""
    )
    assert (found.name, found.created) == ("before & after", 1714559412)
    assert found.disks == (
        SnapshotDisk("vda", "external", file("/pool/web.s1")),
        SnapshotDisk("vdb", "no", None),
        SnapshotDisk("vdc", "external", SourceRef("block", path="/dev/vg0/s1")),
    )
    assert found.domain_disks == (disk(format="raw"), SCRATCH)


def test_a_snapshot_whose_overlay_is_half_merged() -> None:
    (found,) = _xml.parse_snapshot(
        """<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>
          <source file='/pool/web.s1'/><snapshotDeleteInProgress/></disk></disks></domainsnapshot>"""
    ).disks
    assert found == SnapshotDisk("vda", "external", file("/pool/web.s1"), half_merged=True)


def test_an_internal_snapshot() -> None:
    found = _xml.parse_snapshot(
        f"""<domainsnapshot><name>1714559412</name><state>shutoff</state><creationTime>1714559412</creationTime>
          <memory snapshot='no'/>
          <disks><disk name='vda' snapshot='internal'/><disk name='vdb' snapshot='manual'/></disks>
          {INNER.format(format="qcow2", path="/pool/web")}
        </domainsnapshot>"""
    )
    assert found.disks == (SnapshotDisk("vda", "internal", None), SnapshotDisk("vdb", "manual", None))
    assert found.domain_disks == (disk(), SCRATCH)


def test_a_snapshot_of_a_running_domain_tells_its_persistent_definition_too() -> None:
    inactive = INNER.replace("<domain ", "<inactiveDomain ").replace("</domain>", "</inactiveDomain>")
    found = _xml.parse_snapshot(
        f"""<domainsnapshot><name>s</name><state>running</state><memory snapshot='internal'/>
          <disks><disk name='vda' snapshot='internal'/></disks>
          {INNER.format(format="qcow2", path="/pool/live")}{inactive.format(format="qcow2", path="/pool/defined")}
        </domainsnapshot>"""
    )
    assert found.domain_disks == (
        disk(source=file("/pool/live")), SCRATCH, disk(source=file("/pool/defined")), SCRATCH
    )  # fmt: skip
    assert found.created == 0


def test_a_snapshot_of_an_old_libvirt_has_no_disks() -> None:
    found = _xml.parse_snapshot("<domainsnapshot><name>s</name><domain><uuid>x</uuid></domain></domainsnapshot>")
    assert (found.disks, found.domain_disks) == ((), ())
