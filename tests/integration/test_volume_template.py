# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes from templates: copy-on-write and full copies, from pools and paths, and what is refused."""

from __future__ import annotations

import pytest
from support.hypervisors import disk
from support.images import (
    GIB,
    MIB,
    blank,
    content,
    digest,
    encrypted,
    file_sha,
    held_by_qemu_io,
    make,
    noise,
    overlay,
    sh,
    sha,
    used,
    write,
)
from support.images import (
    info as image_info,
)


@pytest.fixture
def template(pool):
    """A qcow2 of 4 MiB with known content, in the pool."""
    return make(pool / "template")


def test_default_is_copy_on_write(created, pool, template):
    before = file_sha(template)
    made = created(name="a", template="template")
    assert (made["format"], made["capacity"]) == ("qcow2", 4 * MIB)
    assert made["backing"] == {"path": str(template), "format": "qcow2", "name": "template", "pool": pool.name,
                               "chain": [str(template)]}
    seen = image_info(pool / "a")
    assert seen["full-backing-filename"] == str(template) and seen["backing-filename-format"] == "qcow2"
    assert digest(pool / "a") == digest(template)
    assert used(pool / "a") < MIB
    assert file_sha(template) == before


def test_template_knows_its_dependents(created, info, pool, template):
    created(name="a", template="template")
    found = info(name="template", pool=pool.name)["volumes"][0]
    assert found["dependents"] == [{"pool": pool.name, "name": "a", "path": str(pool / "a")}]


@pytest.mark.parametrize("source", ["qcow2", "raw"])
@pytest.mark.parametrize("wanted", ["qcow2", "raw"])
def test_full_copy_is_independent(created, pool, source, wanted):
    template = make(pool / "template", source)
    expected = digest(template, source)
    made = created(name="a", template="template", clone_mode="full", format=wanted)
    assert (made["format"], made["capacity"], made["backing"]) == (wanted, 4 * MIB, None)
    template.unlink()
    assert image_info(pool / "a", wanted)["format"] == wanted
    assert digest(pool / "a", wanted) == expected


def test_copy_on_write_of_a_raw_template(created, pool):
    template = make(pool / "template", "raw")
    made = created(name="a", template="template")
    assert made["backing"]["format"] == "raw" and image_info(pool / "a")["backing-filename-format"] == "raw"
    assert digest(pool / "a") == digest(template, "raw")


def test_raw_gets_a_full_copy_by_default(created, pool, template):
    made = created(name="a", template="template", format="raw")
    assert made["format"] == "raw" and made["backing"] is None
    assert digest(pool / "a", "raw") == digest(template)


def test_raw_cannot_be_copy_on_write(refused, template):
    refused("invalid_option", name="a", template="template", format="raw", clone_mode="backing")


@pytest.mark.parametrize("wish", [{}, {"clone_mode": "full"}, {"clone_mode": "full", "format": "raw"}])
def test_from_another_pool(created, make_pool, wish):
    images = make_pool()
    template = make(images / "template")
    made = created(name="a", template="template", template_pool=images.name, **wish)
    assert (made["backing"] or {"pool": images.name})["pool"] == images.name
    assert digest(template) == sha(noise(2 * MIB) + bytes(2 * MIB))


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_absolute_path_of_a_volume_in_a_pool(created, pool, template, mode):
    made = created(name="a", template=str(template), clone_mode=mode)
    assert (made["backing"] is None) == (mode == "full")
    assert digest(pool / "a") == digest(template)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_full_copy_of_a_file_outside_all_pools(created, pool, outside, fmt):
    template = make(outside / "image", fmt)
    made = created(name="a", template=str(template), clone_mode="full")
    assert made["backing"] is None
    assert image_info(pool / "a")["virtual-size"] == 4 * MIB
    assert digest(pool / "a") == digest(template, fmt)


def test_copy_on_write_of_a_file_outside_all_pools(refused, outside):
    template = make(outside / "image")
    refused("unsafe_image", name="a", template=str(template), clone_mode="backing")


def test_full_copy_from_outside_whose_backing_file_is_outside_too(refused, outside):
    overlay(outside / "top", make(outside / "base"))
    refused("unsafe_image", name="a", template=str(outside / "top"), clone_mode="full")


def test_full_copy_from_outside_whose_backing_file_is_in_a_pool(created, pool, template, outside):
    overlay(outside / "top", template)
    assert created(name="a", template=str(outside / "top"), clone_mode="full")["backing"] is None
    assert digest(pool / "a") == digest(template)


@pytest.mark.parametrize(
    "wish", [{"clone_mode": "backing"}, {"clone_mode": "full"}, {"clone_mode": "full", "format": "raw"}]
)
def test_larger_than_the_template(created, pool, template, wish):
    made = created(name="a", template="template", size="6M", **wish)
    fmt = made["format"]
    assert made["capacity"] == image_info(pool / "a", fmt)["virtual-size"] == 6 * MIB
    data = content(pool / "a", fmt)
    assert sha(data[:4 * MIB]) == digest(template) and not any(data[4 * MIB:])


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_never_smaller_than_the_template(refused, template, mode):
    refused("shrink_refused", name="a", template="template", size="3M", clone_mode=mode)


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_that_has_a_backing_file_itself(created, pool, template, mode):
    middle = overlay(pool / "middle", template)
    write(middle, 0x77, offset=3 * MIB)
    made = created(name="a", template="middle", clone_mode=mode)
    assert digest(pool / "a") == digest(middle) != digest(template)
    if mode == "backing":
        assert made["backing"]["chain"] == [str(middle), str(template)]
    else:
        assert made["backing"] is None


def test_many_layers(created, pool, template):
    below = template
    for depth in range(12):
        below = overlay(pool / f"layer{depth}", below)
    assert len(created(name="a", template=below.name)["backing"]["chain"]) == 13
    created(name="b", template="a", clone_mode="full")
    assert digest(pool / "b") == digest(template)


def test_full_copy_with_options(created, pool, template):
    made = created(name="a", template="template", clone_mode="full", cluster_size="4K", preallocation="full",
                   owner="nobody", group="nogroup", mode="0600")
    st = (pool / "a").stat()
    assert (made["cluster_size"], st.st_uid, oct(st.st_mode & 0o7777)) == (4096, 65534, "0o600")
    assert used(pool / "a") >= 4 * MIB
    assert digest(pool / "a") == digest(template)


def test_copy_on_write_with_options(created, pool, template):
    made = created(name="a", template="template", cluster_size="4K", owner="nobody", group="daemon", mode="0640")
    st = (pool / "a").stat()
    assert (made["cluster_size"], image_info(pool / "a")["cluster-size"]) == (4096, 4096)
    assert (st.st_uid, st.st_gid, oct(st.st_mode & 0o7777)) == (65534, 1, "0o640")


def test_full_raw_copy_reserves_its_space(created, pool, template):
    created(name="a", template="template", clone_mode="full", format="raw")
    assert used(pool / "a") >= 4 * MIB
    created(name="b", template="template", clone_mode="full", format="raw", preallocation="off")
    assert used(pool / "b") < 3 * MIB


@pytest.mark.parametrize("options", [
    "compat=0.10", "extended_l2=on,cluster_size=128k", "compression_type=zstd", "cluster_size=2M", "lazy_refcounts=on",
])
def test_every_kind_of_qcow2_is_a_template(volume, pool, options):
    template = make(pool / "template", options=options)
    for mode in ("backing", "full"):
        assert volume(name=mode, template="template", clone_mode=mode)["changed"]
        assert digest(pool / mode) == digest(template)


@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_full_copy_with_every_preallocation(volume, refused, pool, template, fmt, preallocation):
    wish = {"name": "a", "template": "template", "clone_mode": "full", "format": fmt, "preallocation": preallocation}
    if (fmt, preallocation) == ("raw", "metadata"):
        refused("invalid_option", **wish)
        return
    assert volume(**wish)["changed"]
    assert digest(pool / "a", fmt) == digest(template)
    assert (used(pool / "a") >= 4 * MIB) == (preallocation in ("falloc", "full"))


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_copy_on_write_reserves_nothing(refused, template, preallocation):
    """Preallocated clusters would hide the template's data."""
    refused("invalid_option", name="a", template="template", preallocation=preallocation)


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_encrypted_template(refused, pool, mode):
    encrypted(pool / "secret")
    refused("unsupported", name="a", template="secret", clone_mode=mode)


def test_internal_snapshots_of_the_template_do_not_confuse(created, pool, template):
    sh("qemu-img", "snapshot", "-c", "old", template)
    write(template, 0x11)
    created(name="a", template="template", clone_mode="full")
    assert digest(pool / "a") == digest(template)


def test_second_run_after_the_template_is_gone(volume, pool, template):
    volume(name="a", template="template", clone_mode="full")
    template.unlink()
    again = volume(name="a", template="template", clone_mode="full")
    assert not again.get("failed") and not again["changed"], again


def test_another_backing_file_is_a_mismatch(volume, refused, pool, template):
    make(pool / "other", seed="other")
    volume(name="a", template="template")
    result = refused("volume_mismatch", name="a", template="other")
    assert "template" in result["msg"] and "other" in result["msg"]


def test_a_blank_volume_is_not_a_copy_on_write_one(volume, refused, template):
    volume(name="a", size="4M")
    refused("volume_mismatch", name="a", template="template", clone_mode="backing")


def test_copy_on_write_volume_is_grown(volume, created, pool, template):
    volume(name="a", template="template")
    assert created(name="a", template="template", size="5M")["capacity"] == 5 * MIB
    assert digest(pool / "a", length=4 * MIB) == digest(template)
    assert image_info(template)["virtual-size"] == 4 * MIB


def test_list_from_a_template(checked, pool, template):
    result = checked(name=["a", "b", "c"], template="template", size="5M")
    assert [v["capacity"] for v in result["volumes"]] == [5 * MIB] * 3
    assert {digest(pool / n, length=4 * MIB) for n in "abc"} == {digest(template)}


@pytest.mark.parametrize("template", ["nowhere", "/nowhere/at/all"])
@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_that_is_not_there(refused, template, mode):
    assert template in refused("template_not_found", name="a", template=template, clone_mode=mode)["msg"]


def test_template_pool_that_is_not_there(refused):
    refused("pool_not_found", name="a", template="t", template_pool="nowhere")


def test_a_volume_is_not_its_own_template(refused, pool, template):
    refused("volume_mismatch", name="template", template="template")
    refused("volume_mismatch", name=["a", "template"], template="template")


def test_an_overlay_is_not_a_full_copy(volume, refused, template):
    volume(name="a", template="template")
    refused("volume_mismatch", name="a", template="template", clone_mode="full")


def test_backing_file_is_compared_by_what_it_is_not_by_its_path(volume, checked, pool, template, outside):
    volume(name="a", template="template")
    (outside / "dir").symlink_to(pool.path)
    assert not checked(name="a", template=str(outside / "dir" / "template"), clone_mode="backing")["changed"]


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_that_a_running_domain_writes_to(refused, pool, template, domain, mode):
    domain(disk(template), name="writer")
    result = refused("volume_in_use", name="a", template="template", clone_mode=mode)
    assert result["attachments"][0]["domain"] == "writer"


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_of_a_domain_that_is_shut_off(created, pool, template, domain, mode):
    domain(disk(template), running=False)
    created(name="a", template="template", clone_mode=mode)
    assert digest(pool / "a") == digest(template)


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_that_a_running_domain_only_reads(created, pool, template, domain, mode):
    domain(disk(template, target="hda", device="cdrom", readonly=True))
    created(name="a", template="template", clone_mode=mode)
    assert digest(pool / "a") == digest(template)


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_below_a_running_domain(created, pool, template, domain, mode):
    domain(disk(overlay(pool / "running", template)))
    created(name="a", template="template", clone_mode=mode)
    assert digest(pool / "a") == digest(template)


@pytest.mark.parametrize("mode", ["backing", "full"])
def test_template_that_a_foreign_process_writes_to(refused, template, mode):
    with held_by_qemu_io(template):
        refused("volume_in_use", name="a", template="template", clone_mode=mode)


def test_full_copy_that_does_not_fit(refused, make_pool, small):
    images = make_pool()
    template = blank(images / "template", 200 * MIB)
    sh("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 60M", template)
    result = refused("insufficient_space", name="a", template="template", template_pool=images.name, pool=small.name,
                     clone_mode="full")
    assert 60 * MIB <= result["required"] < 80 * MIB, "what must be written is measured, not the virtual size"
    assert 0 < result["available"] < 60 * MIB
    refused(
        "insufficient_space", name="a", template="template", template_pool=images.name, pool=small.name, format="raw"
    )
    assert list(small.path.iterdir()) == []


def test_copy_on_write_beyond_the_space(volume, refused, make_pool, small):
    images = make_pool()
    blank(images / "template", GIB)
    wish = {"name": "a", "template": "template", "template_pool": images.name, "pool": small.name}
    refused("insufficient_space", **wish, overcommit=False)
    result = volume(**wish)
    assert result["changed"] and len(result["warnings"]) == 1


@pytest.mark.parametrize(
    "name", ["-rf", "a b", "a,b", "nbd:host:1", "q\"u'o<t>e&s", "json:{}", "日本 é", "%2e%s", "a=b"]
)
def test_nasty_template_names(volume, pool, name):
    template = make(pool / name, size=MIB)
    expected = digest(template)
    for mode in ("backing", "full"):
        made = volume(name=[f"{mode} {name}"], template=name, clone_mode=mode)
        assert made["changed"], made
        assert digest(pool / f"{mode} {name}") == expected
