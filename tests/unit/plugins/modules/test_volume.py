# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common import respawn

from ansible_collections.hypervisor.storage.plugins.module_utils import _image_locks, _libvirt, _pool_tools, _staging
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import InsufficientSpace
from ansible_collections.hypervisor.storage.plugins.modules import volume
from ansible_collections.hypervisor.storage.tests.unit.fake_hypervisor import Hypervisor, disk

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1024**2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hypervisor:
    return Hypervisor(tmp_path, monkeypatch, capsys)


def names(lab: Hypervisor) -> list[str]:
    return sorted(os.listdir(lab.directory))


# -- one volume's life -----------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_present_again_grow_absent(lab: Hypervisor, image_format: str) -> None:
    def run(**params: object) -> dict[str, Any]:
        return lab.predict_and_run(volume, name="web", format=image_format, **params)

    made = run(size="1M", mode="0640")
    assert made["changed"]
    assert (lab.directory / "web").stat().st_mode & 0o777 == 0o640
    assert made["diff"]["before"] == {"web": {"state": "absent"}}
    assert made["diff"]["after"]["web"]["capacity"] == made["volume"]["capacity"] == MIB
    assert made["volumes"] == [made["volume"]]
    assert made["volume"]["allocation"] > 0
    assert lab.connection.known("default") == ["web"]

    again = run(size="1M", mode="0600")
    assert not again["changed"]
    assert again["actions"] == []
    assert again["volume"] == made["volume"]
    assert not run(size="1 KB")["changed"]

    grown = run(size="2 MiB")
    assert grown["changed"]
    assert (grown["volume"]["capacity"], grown["volume"]["uuid"]) == (2 * MIB, made["volume"]["uuid"])
    assert not run(size="2M")["changed"]
    assert not run(size="1M")["changed"]

    gone = lab.predict_and_run(volume, name="web", state="absent")
    assert gone["changed"]
    assert (gone["volume"], gone["volumes"]) == (None, [])
    assert gone["diff"]["after"] == {"web": {"state": "absent"}}
    assert names(lab) == lab.connection.known("default") == []
    assert not lab.predict_and_run(volume, name="web", state="absent")["changed"]


def test_the_prediction_of_check_mode_comes_true(lab: Hypervisor) -> None:
    foretold = lab.run(volume, check=True, name="web", size="1M", cluster_size="4K")["volume"]
    made = lab.run(volume, name="web", size="1M", cluster_size="4K")["volume"]
    foretold["allocation"] = made["allocation"]
    assert foretold == made


def test_a_wiped_volume_is_gone(lab: Hypervisor, tmp_path: Path) -> None:
    lab.run(volume, name="web", format="raw", size="1M")
    with (lab.directory / "web").open("r+b") as file:
        file.write(b"secret")
    with (lab.directory / "web").open("rb") as watched:
        lab.predict_and_run(volume, name="web", state="absent", wipe=True)
        assert names(lab) == lab.connection.known("default") == []
        assert watched.read() == bytes(MIB)


def test_data_under_another_name_is_not_wiped(lab: Hypervisor, tmp_path: Path) -> None:
    lab.run(volume, name="web", format="raw", size="1M")
    (lab.directory / "web").write_bytes(b"secret" * 1000)
    os.link(lab.directory / "web", tmp_path / "other")
    assert lab.predict_and_run(volume, name="web", state="absent", wipe=True)["reason"] == "unsupported"
    assert lab.predict_and_run(volume, name="web", state="absent")["changed"]
    assert (tmp_path / "other").read_bytes() == b"secret" * 1000


@pytest.mark.parametrize("name", ["-", "--help", "a b", "'\"", "<x>", "nbd:x", "json:{}", "日本語", "x" * 255])
def test_nasty_names_live_and_die(lab: Hypervisor, name: str) -> None:
    for params in ({"size": "1M"}, {"size": "2M"}, {"state": "absent", "wipe": True}):
        result = lab.predict_and_run(volume, name=[name], **params)
        assert result["changed"], result
    assert names(lab) == []


# -- from something --------------------------------------------------------------------------------


def content(path: Path, image_format: str) -> bytes:
    argv = ["qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(path.parent.parent / "seen")]
    subprocess.run(argv, check=True)
    seen = path.parent.parent / "seen"
    try:
        return seen.read_bytes()
    finally:
        seen.unlink()


@pytest.fixture
def template(lab: Hypervisor) -> Path:
    path = lab.image("base")
    subprocess.run(["qemu-io", "-c", "write -P 7 0 64k", str(path)], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize(
    ("params", "image_format", "backed"),
    [
        ({}, "qcow2", True),
        ({"clone_mode": "backing", "size": "2M"}, "qcow2", True),
        ({"clone_mode": "full"}, "qcow2", False),
        ({"clone_mode": "full", "preallocation": "falloc", "size": "2M"}, "qcow2", False),
        ({"format": "raw", "size": "2M"}, "raw", False),
    ],
)
def test_from_a_template(
    lab: Hypervisor, template: Path, params: dict[str, Any], image_format: str, backed: bool
) -> None:
    for chosen in ("base", str(template)):
        made = lab.predict_and_run(volume, name="web", template=chosen, **params)
        assert made["changed"]
        found = made["volume"]
        assert (found["format"], found["capacity"]) == (image_format, 2 * MIB if "size" in params else MIB)
        assert (found["backing"] or {}).get("path") == (str(template) if backed else None)
        seen = content(lab.directory / "web", image_format)
        assert seen[: 64 * 1024] == b"\7" * 64 * 1024
        assert seen.count(0) == found["capacity"] - 64 * 1024
        assert not lab.predict_and_run(volume, name="web", template=chosen, **params)["changed"]
        lab.run(volume, name="web", state="absent")
    assert names(lab) == ["base"]


def test_from_an_internal_snapshot(lab: Hypervisor, template: Path) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "before", str(template)], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 9 0 64k", str(template)], check=True, stdout=subprocess.DEVNULL)
    digest = template.read_bytes()
    params = {"name": "restored", "snapshot": "before", "snapshot_volume": "base"}
    assert lab.predict_and_run(volume, **params)["changed"]
    assert content(lab.directory / "restored", "qcow2")[: 64 * 1024] == b"\7" * 64 * 1024
    assert template.read_bytes() == digest
    assert not lab.predict_and_run(volume, **params)["changed"]
    missing = lab.predict_and_run(volume, name="other", snapshot="gone", snapshot_volume="base")
    assert (missing["reason"], missing["snapshots"]) == ("snapshot_not_found", ["before"])


# -- several names ---------------------------------------------------------------------------------


def test_a_list_is_done_in_its_order(lab: Hypervisor) -> None:
    made = lab.predict_and_run(volume, name=["c", "a", "b", "a"], size="1M")
    assert [found["name"] for found in made["volumes"]] == ["c", "a", "b"]
    assert len(made["actions"]) == 3
    assert "volume" not in made
    assert sorted(made["diff"]["after"]) == ["a", "b", "c"]
    more = lab.predict_and_run(volume, name="a,b,c,d", size="1M")
    assert [found["name"] for found in more["volumes"]] == ["a", "b", "c", "d"]
    assert more["actions"] == ["create blank qcow2 volume 'd' of 1048576 bytes (1 MiB) in pool 'default'"]


def test_if_one_is_refused_nothing_is_done_to_any(lab: Hypervisor) -> None:
    lab.image("b", fmt="raw")
    result = lab.predict_and_run(volume, name=["a", "b", "c"], size="1M")
    assert result["reason"] == "volume_mismatch"
    assert names(lab) == ["b"]


def test_a_failure_half_way_tells_what_is_done(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    give_name = _staging._give_name

    def full_at_b(staged: Any, name: str, directory_fd: int) -> None:
        if name == "b":
            raise InsufficientSpace("The disk is full.")
        give_name(staged, name, directory_fd)

    monkeypatch.setattr(_staging, "_give_name", full_at_b)
    result = lab.run(volume, name=["a", "b", "c"], size="1M")
    assert (result["failed"], result["reason"], result["changed"]) == (True, "insufficient_space", True)
    assert (result["done"], result["not_done"]) == (["a"], ["b", "c"])
    assert result["actions"] == ["create blank qcow2 volume 'a' of 1048576 bytes (1 MiB) in pool 'default'"]
    assert names(lab) == lab.connection.known("default") == ["a"]

    monkeypatch.setattr(_staging, "_give_name", give_name)
    finished = lab.predict_and_run(volume, name=["a", "b", "c"], size="1M")
    assert len(finished["actions"]) == 2
    assert names(lab) == ["a", "b", "c"]


def test_overlays_and_their_base_go_together(lab: Hypervisor, template: Path) -> None:
    del template
    lab.run(volume, name=["web1", "web2"], template="base")
    refused = lab.predict_and_run(volume, name=["base", "web1", "web2"], state="absent")
    assert refused["reason"] == "volume_has_dependents"
    assert [found["name"] for found in refused["dependents"]] == ["web1", "web2"]
    assert lab.predict_and_run(volume, name=["web1", "web2", "base"], state="absent")["changed"]
    assert names(lab) == []


# -- refusals: the same in check mode, and nothing touched ---------------------------------------------

PARAMS: list[tuple[dict[str, Any], str]] = [
    ({"name": "web"}, "invalid_option"),
    ({"name": "a/b", "size": "1M"}, "invalid_name"),
    ({"name": [""], "size": "1M"}, "invalid_name"),
    ({"name": ["ok", ".."], "state": "absent"}, "invalid_name"),
    ({"name": "web", "size": "-1G"}, "invalid_size"),
    ({"name": "web", "size": "1X"}, "invalid_size"),
    ({"name": "web", "size": 0}, "invalid_size"),
    ({"name": "web", "size": "1M", "cluster_size": "3K"}, "invalid_option"),
    ({"name": "web", "size": "1M", "cluster_size": "x"}, "invalid_size"),
    ({"name": "web", "size": "1M", "pool": "gone"}, "pool_not_found"),
    ({"name": "web", "size": "1M", "pool": "idle"}, "pool_inactive"),
    ({"name": "web", "size": "1M", "pool": "nowhere"}, "pool_inactive"),
    ({"name": "web", "size": "1M", "owner": "no such user"}, "invalid_option"),
    ({"name": "web", "size": "1M", "group": "no such group"}, "invalid_option"),
    ({"name": "web", "size": "1M", "mode": "999"}, "invalid_option"),
    ({"name": "web", "size": "1M", "format": "vmdk"}, "invalid_option"),
    ({"name": "web", "size": "1M", "state": "latest"}, "invalid_option"),
    ({"name": "web", "size": "1M", "colour": "red"}, "invalid_option"),
    ({"size": "1M"}, "invalid_option"),
    ({"name": "web", "template": "gone"}, "template_not_found"),
    ({"name": "web", "template": "/nowhere/gone"}, "template_not_found"),
    ({"name": "web", "template": "a/b"}, "invalid_name"),
    ({"name": "web", "template": "base", "template_pool": "gone"}, "pool_not_found"),
    ({"name": "web", "template": "base", "size": "512K"}, "shrink_refused"),
    ({"name": "web", "template": "base", "format": "raw", "clone_mode": "backing"}, "invalid_option"),
    ({"name": "web", "template": "base", "snapshot": "s", "snapshot_volume": "base"}, "invalid_option"),
    ({"name": "web", "snapshot": "s", "snapshot_volume": "gone"}, "volume_not_found"),
    ({"name": "web", "snapshot": "s", "snapshot_volume": "base"}, "snapshot_not_found"),
    ({"name": "web", "size": "2G", "format": "raw"}, "insufficient_space"),
    ({"name": "web", "size": "2G", "overcommit": False}, "insufficient_space"),
    ({"name": "base", "size": "1M", "format": "raw"}, "volume_mismatch"),
    ({"name": "base", "template": "other"}, "volume_mismatch"),
    ({"name": "directory", "size": "1M"}, "unsupported"),
    ({"name": "directory", "state": "absent"}, "unsupported"),
    ({"name": "fifo", "size": "1M"}, "unsupported"),
    ({"name": "used", "state": "absent"}, "volume_in_use"),
    ({"name": "base", "state": "absent"}, "volume_has_dependents"),
]


@pytest.mark.parametrize(("params", "reason"), PARAMS)
def test_refused_alike_in_check_mode(lab: Hypervisor, params: dict[str, Any], reason: str) -> None:
    lab.image("base")
    lab.image("other")
    lab.image("overlay", "-b", lab.directory / "base", "-F", "qcow2")
    lab.connection.add_domain("vm1", disk(lab.image("used")))
    os.mkfifo(lab.directory / "fifo")
    (lab.directory / "directory").mkdir()
    lab.image("another")  # made last: libvirt has seen all before
    lab.connection.add_pool("idle", lab.directory, active=False)
    lab.connection.add_pool("nowhere", lab.directory / "nowhere")
    result = lab.predict_and_run(volume, **params)
    assert result.get("failed"), result
    assert result["reason"] == reason, result["msg"]
    assert "Traceback" not in str(result)


def test_a_remote_hypervisor_is_refused(lab: Hypervisor) -> None:
    lab.connection.remote = True
    assert lab.predict_and_run(volume, name="web", size="1M")["reason"] == "unsupported"


def test_attachments_are_told(lab: Hypervisor) -> None:
    lab.connection.add_domain("vm1", disk(lab.image("web")), live=True)
    result = lab.predict_and_run(volume, name="web", state="absent")
    assert result["attachments"] == [
        {
            "domain": "vm1", "domain_uuid": "uuid-vm1", "state": "running", "target": "vda", "bus": "virtio",
            "live": True, "readonly": False, "via": "disk",
        }
    ]  # fmt: skip
    lab.connection.remove_domain("vm1")
    assert lab.predict_and_run(volume, name="web", state="absent")["changed"]


def test_a_running_domain_grows_its_disk(lab: Hypervisor) -> None:
    lab.connection.add_domain("vm1", disk(lab.image("web")), live=True)
    grown = lab.predict_and_run(volume, name="web", size="2M")
    assert grown["actions"][0].endswith("online through vm1 (vda)")
    assert ("block_resize", "uuid-vm1", "vda", 2 * MIB) in lab.connection.calls
    assert grown["volume"]["capacity"] == 2 * MIB


@pytest.mark.parametrize("params", [{"state": "absent"}, {"size": "2M"}])
def test_a_process_that_libvirt_does_not_know(lab: Hypervisor, params: dict[str, Any]) -> None:
    path = lab.image("web")
    with subprocess.Popen(["qemu-io", str(path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as stranger:
        try:
            until(lambda: _image_locks.image_users(str(path)) == "writing")
            assert lab.predict_and_run(volume, name="web", **params)["reason"] == "volume_in_use"
        finally:
            stranger.kill()
    assert lab.predict_and_run(volume, name="web", **params)["changed"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_disk_that_looks_like_an_overlay_stays_raw(lab: Hypervisor, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * 1024)
    forged = lab.image("forged", "-b", tmp_path / "secret", "-F", "raw")
    lab.connection.add_domain("vm1", disk(forged, fmt="raw"))
    refused = lab.predict_and_run(volume, name="web", template="forged", clone_mode="full")
    assert refused["reason"] == "unsafe_image"
    assert "a domain uses it as raw" in refused["msg"]


def test_a_header_that_would_hang_libvirt_stops_the_run(lab: Hypervisor) -> None:
    lab.image("evil", "-u", "-b", "/proc/kmsg", "-F", "raw")
    refused = lab.predict_and_run(volume, name="web", size="1M")
    assert refused["reason"] == "unsafe_image"
    assert "'evil'" in refused["msg"]
    assert lab.connection.calls == []


# -- promises, leftovers, stale views --------------------------------------------------------------


def test_a_promise_beyond_the_free_space_is_a_warning(lab: Hypervisor) -> None:
    result = lab.predict_and_run(volume, name="web", size="2G")
    assert result["changed"]
    assert "'web' may come to take 2147" in str(result["warnings"])


def test_leftovers_of_killed_runs_are_cleared(lab: Hypervisor) -> None:
    (lab.directory / ".hypervisor.storage-partial-0123").write_bytes(b"half")
    lab.run(volume, check=True, name="web", size="1M")
    assert names(lab) == [".hypervisor.storage-partial-0123"]
    lab.run(volume, name="web", size="1M")
    assert names(lab) == ["web"]


def test_libvirts_view_is_set_right(lab: Hypervisor) -> None:
    web = lab.image("web")
    shutil.copy(web, lab.directory / "db")
    assert not lab.run(volume, name="db", size="1M")["changed"]
    assert lab.connection.known("default") == ["db", "web"]
    web.unlink()
    assert not lab.run(volume, name="web", state="absent")["changed"]
    assert lab.connection.known("default") == ["db"]


def test_a_pool_without_files(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.connection.add_pool("vg0", Path("/dev/vg0"), pool_type="logical")
    monkeypatch.setattr(_pool_tools, "granularity", lambda pool_type, source: 4 << 20)
    monkeypatch.setattr(_pool_tools, "rename", lambda pool_type, path, name: lab.connection.rename("vg0", path, name))
    made = lab.predict_and_run(volume, name="web", pool="vg0", size="1M")
    assert (made["volume"]["format"], made["volume"]["type"]) == ("raw", "block")
    assert not lab.predict_and_run(volume, name="web", pool="vg0", size="1M")["changed"]
    assert lab.predict_and_run(volume, name="web", pool="vg0", state="absent", wipe=True)["changed"]
    done = lab.connection.calls
    hidden = done[1][2]
    assert hidden.startswith(".hypervisor.storage-doomed-"), "it loses its name before its data"
    assert done == [("create", "vg0", "web"), ("rename", "web", hidden), ("wipe", "vg0", hidden), ("delete", "vg0", hidden)]


@pytest.mark.parametrize("pool_type", ["disk", "gluster", "iscsi", "iscsi-direct", "mpath", "scsi", "sheepdog"])
@pytest.mark.parametrize("wish", [{"size": "1M"}, {"state": "absent"}, {"template": "base"}])
def test_pools_that_are_only_listed(lab: Hypervisor, pool_type: str, wish: dict[str, str]) -> None:
    lab.connection.add_pool("san", Path("/dev/disk/by-path"), pool_type=pool_type)
    result = lab.predict_and_run(volume, name="web", pool="san", **wish)
    assert result["reason"] == "unsupported" and pool_type in result["msg"]
    assert lab.connection.calls == []


# -- without libvirt's binding ---------------------------------------------------------------------


@pytest.fixture
def bare(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> Hypervisor:
    monkeypatch.setattr(_libvirt, "is_installed", lambda: False)
    monkeypatch.setattr(respawn, "has_respawned", lambda: False)
    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: None)
    return lab


def test_without_the_binding_its_package_is_named(bare: Hypervisor) -> None:
    result = bare.predict_and_run(volume, name="web", size="1M")
    assert (result["failed"], result["reason"], result["tool"]) == (True, "tool_missing", "libvirt-python")
    assert "python3-libvirt" in result["msg"]


def test_an_interpreter_that_has_the_binding_takes_over(bare: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def probe(paths: list[str], name: str) -> str:
        asked.append((paths[0], name))
        return "/usr/bin/python3"

    def start_anew(interpreter: str) -> None:
        asked.append(interpreter)
        print("{}")
        raise SystemExit(0)

    monkeypatch.setattr(respawn, "probe_interpreters_for_module", probe)
    monkeypatch.setattr(respawn, "respawn_module", start_anew)
    assert bare.run(volume, name="web", size="1M") == {}
    assert asked == [("/usr/bin/python3", "libvirt"), "/usr/bin/python3"]


def test_who_has_respawned_does_not_do_so_again(bare: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respawn, "has_respawned", lambda: True)
    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: pytest.fail("it was asked"))
    assert bare.run(volume, name="web", size="1M")["reason"] == "tool_missing"


@pytest.mark.parametrize("what", ["directory", "volume"])
def test_deleting_while_another_pool_cannot_be_read(lab: Hypervisor, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What can't be read may be built on the volume."""
    other = lab.add_pool("other")
    lab.run(volume, name="a", size="1M")
    lab.run(volume, name="b", pool="other", size="1M")
    broken = str(other if what == "directory" else other / "b")
    name = "scandir" if what == "directory" else "open"
    real = getattr(os, name)

    def fails(path: object, *args: object, **kwargs: object) -> object:
        if path == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, name, fails)
    result = lab.predict_and_run(volume, name="a", state="absent")
    assert result["failed"] and result["reason"] == "tool_failed"
    assert "whether others are built on it can't be told" in result["msg"] and "Input/output error" in result["msg"]
    assert (repr(broken) if what == "directory" else "'b' of pool 'other'") in result["msg"]
    assert lab.run(volume, name="c", size="1M")["changed"], "what harms nobody goes on"
    monkeypatch.setattr(os, name, real)
    assert lab.run(volume, name="a", state="absent")["changed"]
