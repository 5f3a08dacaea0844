# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.hypervisor.storage.plugins.module_utils import _domains
from ansible_collections.hypervisor.storage.plugins.module_utils._domains import DomainMap
from ansible_collections.hypervisor.storage.plugins.module_utils._libvirt import DomainFacts
from ansible_collections.hypervisor.storage.plugins.module_utils._model import Attachment, Ident
from ansible_collections.hypervisor.storage.plugins.module_utils._xml import SourceRef

#: What lies below an image, by its path, where a format other than raw is stated.
CHAINS = {"/pool/web": ["/pool/middle", "/pool/base"], "/pool/middle": ["/pool/base"]}


def ident(path: str) -> Ident:
    return ("file", 1, path)


def locate(source: SourceRef) -> tuple[Ident, str] | None:
    if source.kind == "volume":
        return (ident(f"/{source.pool}/{source.volume}"), f"/{source.pool}/{source.volume}") if source.pool else None
    if source.kind == "network":
        return ("network", source.path, ""), str(source.path)
    return ident(str(source.path)), str(source.path)


def below(path: str, stated: str | None) -> Iterable[Ident]:
    return [ident(layer) for layer in CHAINS.get(path, ())] if stated not in (None, "raw") else []


def disk(path: str = "/pool/web", *, target: str = "vda", fmt: str = "qcow2", more: str = "") -> str:
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{fmt}'/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/>{more}</disk>"
    )


def document(*disks: str, tag: str = "domain", os_part: str = "") -> str:
    return f"<{tag}><name>vm1</name><os>{os_part}</os><devices>{''.join(disks)}</devices></{tag}>"


def snapshot(name: str, disks: str, *documents: str) -> str:
    return f"<domainsnapshot><name>{name}</name><disks>{disks}</disks>{''.join(documents)}</domainsnapshot>"


def domain(
    live: str | None = None, persistent: str | None = None, *snapshots: str, name: str = "vm1", state: str | None = None
) -> DomainFacts:
    return DomainFacts(name, f"uuid-{name}", state or ("running" if live else "shutoff"), live, persistent, snapshots)


def build(*domains: DomainFacts) -> DomainMap:
    return _domains.build(domains, locate=locate, below=below)


def uses(found: DomainMap, path: str) -> list[tuple[str, str | None, str, bool, bool]]:
    return [
        (use.domain, use.target, use.via, use.live, use.readonly) for use in found.attachments(ident(path))
    ]  # fmt: skip


def test_nothing_is_attached_to_nobody() -> None:
    found = build(domain(document(), document()))
    assert found.attachments(ident("/pool/web")) == ()
    assert found.formats(ident("/pool/web")) == frozenset()


def test_a_transient_domain_has_it_live_only() -> None:
    found = build(domain(document(disk()), None, state="paused"))
    assert found.attachments(ident("/pool/web")) == (
        Attachment("vm1", "uuid-vm1", "paused", "vda", "virtio", live=True, readonly=False, via="disk"),
    )


def test_a_stopped_domain_has_it_persistently_only() -> None:
    found = build(domain(None, document(disk())))
    assert found.attachments(ident("/pool/web")) == (
        Attachment("vm1", "uuid-vm1", "shutoff", "vda", "virtio", live=False, readonly=False, via="disk"),
    )


def test_live_and_persistent_are_one_attachment() -> None:
    found = build(domain(document(disk()), document(disk())))
    assert uses(found, "/pool/web") == [("vm1", "vda", "disk", True, False)]


def test_a_disk_that_is_unplugged_live_is_still_defined() -> None:
    found = build(domain(document(), document(disk())))
    assert uses(found, "/pool/web") == [("vm1", "vda", "disk", False, False)]


def test_a_disk_that_is_plugged_in_live_only() -> None:
    found = build(domain(document(disk(target="vdb")), document(disk("/pool/other"))))
    assert uses(found, "/pool/web") == [("vm1", "vdb", "disk", True, False)]
    assert uses(found, "/pool/other") == [("vm1", "vda", "disk", False, False)]


def test_uses_are_sorted_by_domain_and_target() -> None:
    found = build(
        domain(document(disk(target="vdb"), disk()), None, name="vm2"),
        domain(None, document(disk(target="sda")), name="vm1"),
    )
    assert [use[:2] for use in uses(found, "/pool/web")] == [("vm1", "sda"), ("vm2", "vda"), ("vm2", "vdb")]


def test_every_layer_below_is_in_use() -> None:
    found = build(domain(document(disk())))
    for path in ("/pool/middle", "/pool/base"):
        assert uses(found, path) == [("vm1", "vda", "backing", True, True)]
        assert found.formats(ident(path)) == frozenset()


def test_nothing_is_below_a_raw_disk() -> None:
    found = build(domain(document(disk(fmt="raw"))))
    assert uses(found, "/pool/middle") == []


def test_layers_that_only_libvirt_lists() -> None:
    listed = "<backingStore type='file'><format type='raw'/><source file='/pool/listed'/><backingStore/></backingStore>"
    mirror = "<mirror type='file' job='copy'><format type='raw'/><source file='/pool/copy'/></mirror>"
    found = build(domain(document(disk("/pool/new", more=listed + mirror))))
    assert uses(found, "/pool/listed") == [("vm1", "vda", "backing", True, True)]
    assert uses(found, "/pool/copy") == [("vm1", "vda", "disk", True, False)]


# -- of several uses by one disk, the strongest counts ---------------------------------------------


def test_a_disk_is_stronger_than_a_layer() -> None:
    # Defined as the disk, live as a layer: after an external snapshot of the running domain alone.
    found = build(domain(document(disk()), document(disk("/pool/base", fmt="raw"))))
    assert uses(found, "/pool/base") == [("vm1", "vda", "disk", False, False)]
    assert uses(found, "/pool/web") == [("vm1", "vda", "disk", True, False)]


def test_live_is_stronger_than_defined() -> None:
    for live, persistent in ((disk(), disk(more="<readonly/>")), (disk(more="<readonly/>"), disk())):
        (use,) = build(domain(document(live), document(persistent))).attachments(ident("/pool/web"))
        assert use.live
        assert use.readonly == ("readonly" in live)


def test_definitions_are_stronger_than_snapshots() -> None:
    taken = snapshot("s", "<disk name='vda' snapshot='internal'/>", document(disk()))
    (use,) = build(domain(None, document(disk()), taken)).attachments(ident("/pool/web"))
    assert (use.via, use.snapshot) == ("disk", None)


def test_each_disk_of_a_domain_counts_for_itself() -> None:
    found = build(domain(document(disk(), disk("/pool/base", target="vdb", fmt="raw"))))
    assert uses(found, "/pool/base") == [("vm1", "vda", "backing", True, True), ("vm1", "vdb", "disk", True, False)]


# -- sources ---------------------------------------------------------------------------------------


def test_volumes_of_pools_and_networks() -> None:
    volume = "<disk type='volume'><driver type='qcow2'/><source pool='pool' volume='web'/><target dev='vda'/></disk>"
    network = "<disk type='network'><source protocol='rbd' name='ceph/web'/><target dev='vdb' bus='virtio'/></disk>"
    lost = "<disk type='volume'><source volume='web'/><target dev='vdc'/></disk>"
    found = build(domain(document(volume, network, lost)))
    assert uses(found, "/pool/web") == [("vm1", "vda", "disk", True, False)]
    assert uses(found, "/pool/base") == [("vm1", "vda", "backing", True, True)]
    assert [use.target for use in found.attachments(("network", "ceph/web", ""))] == ["vdb"]


def test_firmware_and_kernels_are_attachments_without_a_format() -> None:
    found = build(
        domain(None, document(os_part="<nvram template='/fw/vars'>/pool/vars</nvram><kernel>/pool/web</kernel>"))
    )
    assert uses(found, "/pool/vars") == [("vm1", "nvram", "disk", False, False)]
    assert uses(found, "/pool/web") == [("vm1", "kernel", "disk", False, True)]
    assert found.formats(ident("/pool/web")) == frozenset()
    assert uses(found, "/pool/base") == []


# -- formats ---------------------------------------------------------------------------------------


def test_formats_are_those_that_definitions_state() -> None:
    found = build(
        domain(document(disk()), document(disk(fmt="raw"))),
        domain(None, document(disk("/pool/other").replace("type='qcow2'", "")), name="vm2"),
    )
    assert found.formats(ident("/pool/web")) == {"qcow2", "raw"}
    assert found.formats(ident("/pool/other")) == {"raw"}


# -- snapshots -------------------------------------------------------------------------------------

EXTERNAL = "<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/pool/web.s1'/></disk>"


def test_an_external_snapshot_needs_the_frozen_layer_and_the_overlay() -> None:
    # Reverted or redefined since: no definition mentions the overlay or the layer any more.
    found = build(domain(None, document(), snapshot("s1", EXTERNAL, document(disk()))))
    for path in ("/pool/web", "/pool/web.s1", "/pool/middle", "/pool/base"):
        (use,) = found.attachments(ident(path))
        assert (use.via, use.live, use.snapshot, use.target) == ("backing", False, "s1", "vda")
    assert found.formats(ident("/pool/web")) == frozenset()


def test_what_a_snapshot_says_of_formats_is_history() -> None:
    found = build(domain(document(disk()), None, snapshot("s1", EXTERNAL, document(disk(fmt="raw")))))
    assert found.formats(ident("/pool/web")) == {"qcow2"}


def test_the_definition_that_a_live_snapshot_keeps_for_later_counts_too() -> None:
    inactive = document(disk("/pool/defined", target="vdb", fmt="raw"), tag="inactiveDomain")
    found = build(domain(None, document(), snapshot("s1", "", document(disk("/pool/live", fmt="raw")), inactive)))
    assert [use.snapshot for path in ("/pool/live", "/pool/defined") for use in found.attachments(ident(path))] == [
        "s1", "s1"
    ]  # fmt: skip


def test_snapshots_are_listed_with_their_domains() -> None:
    taken = [snapshot(name, EXTERNAL, document(disk())) for name in ("s1", "s2")]
    found = build(domain(None, document(), *taken), domain(None, document(), taken[0], name="vm2"))
    assert [(each.domain, each.snapshot.name) for each in found.snapshots] == [
        ("vm1", "s1"), ("vm1", "s2"), ("vm2", "s1")
    ]  # fmt: skip
    assert {use.domain for use in found.attachments(ident("/pool/web"))} == {"vm1", "vm2"}


def test_disks_that_a_snapshot_left_out_have_no_overlay() -> None:
    left_out = "<disk name='vda' snapshot='no'/><disk name='vdb' snapshot='internal'/>"
    found = build(domain(None, None, snapshot("s1", left_out, document(disk(fmt="raw")))))
    assert uses(found, "/pool/web") == [("vm1", "vda", "backing", False, False)]
    assert uses(found, "None") == []
