# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wishes and surroundings that make no sense: a clear message, the right reason, no traceback, nothing on disk."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt
import pytest
from support.hypervisors import Hypervisor, Pool, disk
from support.images import MIB, blank, content, make, patch, sh
from support.runs import collections_path, environment, finish_module, run_adhoc, run_module, start_module

LEGAL_NAMES = [
    "-rf", "--help", "-", "a b", " leading", "trailing ", "it's", 'say "x"', "<xml>&amp;", "]]>", "a;b",
    "$(touch x)", "`id`", "a|b>c", "%s%n%2e", "a:b", "nbd:localhost:1", "json:{}", "file:x", "fat:rw:x", "a,b",
    "driver=raw,x", "ü", "u\u0308", "日本語", "😀", "\u202etxt", "a\u00a0b", "*", "?", "[a]", "a\\b", "#x", "@x",
    "{{ x }}", "{% raw %}", "~", "~root", "a=b", "null", "None", "true", "0", "1e3", "...", "..a", ".hidden",
    "CON", "x" * 255, "é" * 127, "x.qcow2", "!", "&", "\\n", "\U0010fffd",
]
BAD_NAMES = [
    "", ".", "..", "a/b", "/", "/abs", "../x", "a/", "./a", "a\0b", "\0", "a\nb", "\n", "a\tb", "a\rb",
    "\x1b[31m", "\x7f", "a\x85b", "\x01", "x" * 256, "é" * 128, "日" * 86, "x" * 5000, "\udc80", "a\udfff",
]
BAD_SIZES = [
    "", " ", "0", 0, "0G", "-1", -1, "-1G", "+10G", "+1", "NaN", "nan", "inf", "-inf", "Infinity", "1e3", "1E6",
    "0x10", "1,5G", "1.5.5G", "10X", "G", "K", ".", "10GG", "10 G B", "10BG", "10GiBs", "1_000", "1 000",
    "9223372036854775808", "18446744073709551616", "8192P", "8192PiB", "9224PB", "9" * 40, "9" * 5000, "٣G",
    "１０G", "²", "1/2G", "50%", "10%FREE", "ten", "None", "true", True, "{{ x }}", "1M;", "$(id)", "1M\0", "💾",
    "--help", "0.0", "10Mb/s", [], {"a": 1}, [1],
]


def test_legal_names(volume, info, pool):
    made = volume(name=LEGAL_NAMES, size="64K")
    assert made["changed"], made
    assert [v["name"] for v in made["volumes"]] == LEGAL_NAMES
    assert sorted(os.listdir(pool.path)) == sorted(LEGAL_NAMES)
    again = volume(name=LEGAL_NAMES, size="64K")
    assert not again.get("failed") and not again["changed"] and again["actions"] == []
    assert sorted(v["name"] for v in info(pool=[pool.name])["volumes"]) == sorted(LEGAL_NAMES)
    assert volume(name=LEGAL_NAMES, state="absent", check=True)["changed"]
    assert volume(name=LEGAL_NAMES, state="absent")["changed"]
    assert os.listdir(pool.path) == []


@pytest.mark.parametrize("name", ["-rf", "a:b", "it's \"x\" <&> %s", "日本語 😀", "x" * 255, "a,b"])
def test_a_legal_name_through_its_whole_life(created, checked, info, pool, name):
    created(name=[name], size="1M")
    created(name=[name], size="2M")
    assert info(name=name)["volumes"][0]["capacity"] == 2 * MIB
    created(name=["full"], template=name, clone_mode="full")
    checked(name=[name], state="absent", wipe=True)
    assert os.listdir(pool.path) == ["full"]


def side_by_side(function, cases):
    """Four at a time: most of a refused run is Python starting."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, cases))


def refused_alike(run, cases, reason):
    """Each case is refused for this reason, in check mode just as for real."""
    foretold = side_by_side(lambda case: run(case, check=True), cases)
    for case, *both in zip(cases, foretold, side_by_side(run, cases)):
        for result in both:
            assert result.get("failed") and result["reason"] == reason, (ascii(case), result)
            assert not result.get("changed")
        assert both[0]["msg"] == both[1]["msg"]


@pytest.mark.parametrize("wish", [{"size": "1M"}, {"state": "absent"}], ids=["present", "absent"])
def test_bad_names(volume, pool, wish):
    refused_alike(lambda name, **how: volume(name=["fine", name], **wish, **how), BAD_NAMES, "invalid_name")
    assert os.listdir(pool.path) == []


def test_bad_names_to_look_for(info, pool):
    refused_alike(lambda name, **how: info(name=name, pool=[pool.name], **how), BAD_NAMES, "invalid_name")


@pytest.mark.parametrize("wish", [
    {"pattern": ""}, {"format": ""}, {"pool": [""]}, {"pool": "a,,b"}, {"status": "lost"}, {"status": ""},
    {"size": "1M"}, {"state": "absent"},
], ids=str)
def test_values_no_option_of_info_has(refused, info, pool, wish):
    refused("invalid_option", fails=info, **wish)


@pytest.mark.parametrize("option", ["template", "snapshot_volume"])
@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "a\0b", "x" * 300], ids=ascii)
def test_bad_names_of_other_volumes(refused, pool, option, name):
    wish = {option: name, **({"snapshot": "s"} if option == "snapshot_volume" else {})}
    refused("invalid_name" if name else "invalid_option", name="a", **wish)


@pytest.mark.parametrize("pool_name", ["", "../x", "a\nb", "a\0b", "<x/>", "x" * 5000, "nowhere", "日本"], ids=ascii)
def test_bad_pool_names(hypervisor, pool_name):
    for module, wish in (
        ("volume", {"name": "a", "size": "1M", "pool": pool_name}),
        ("volume_info", {"pool": [pool_name]}),
    ):
        empty = module == "volume_info" and not pool_name
        result = run_module(module, {"uri": hypervisor.uri, **wish})
        assert result["failed"] and result["reason"] == ("invalid_option" if empty else "pool_not_found"), result


def test_bad_sizes(volume, pool):
    plain = [size for size in BAD_SIZES if not isinstance(size, (list, dict))]
    refused_alike(lambda size, **how: volume(name="a", size=size, **how), plain, "invalid_size")
    others = [size for size in BAD_SIZES if isinstance(size, dict)]  # Ansible itself refuses them, or makes text of them
    for result in side_by_side(lambda size: volume(name="a", size=size), others):
        assert result.get("failed"), result
    assert os.listdir(pool.path) == []


def test_there_are_enough():
    assert len(BAD_NAMES) + len(BAD_SIZES) >= 60 and len(LEGAL_NAMES) >= 40


@pytest.mark.parametrize(("fmt", "size", "reason"), [
    ("qcow2", "8191P", "invalid_size"), ("qcow2", "4096P", "invalid_size"), ("qcow2", "9223372036854775807", "invalid_size"),
    ("raw", "8191P", "insufficient_space"), ("raw", "4096P", "insufficient_space"), ("raw", "9223372036854775807", "invalid_size"),
])
def test_sizes_no_format_or_disk_can_hold(refused, small, fmt, size, reason):
    refused(reason, name="a", size=size, format=fmt, pool=small.name)


def test_raw_sizes_no_file_system_of_this_kind_can_hold(refused, volume, small):
    """ext4 has files of 16 TiB at most; what is reserved fails for want of space as ever."""
    wish = {"pool": small.name, "format": "raw"}
    assert volume(name="b", size="1M", **wish)["changed"]
    for name in ("a", "b"):
        assert "file system" in refused("invalid_size", name=name, size="17T", preallocation="off", **wish)["msg"]
    refused("insufficient_space", name="a", size="17T", **wish)


@pytest.mark.parametrize(("wish", "reason"), [
    ({"name": "\ud800", "size": "1M"}, "invalid_name"), ({"template": "\ud800"}, "invalid_name"),
    ({"template": "/\ud800"}, "template_not_found"), ({"template_pool": "\ud800", "template": "a"}, "pool_not_found"),
    ({"snapshot": "\ud800", "snapshot_volume": "there"}, "snapshot_not_found"),
    ({"snapshot": "a", "snapshot_volume": "\ud800"}, "invalid_name"), ({"size": "\ud800"}, "invalid_size"),
    ({"owner": "\ud800", "size": "1M"}, "invalid_option"), ({"pool": "\ud800", "size": "1M"}, "pool_not_found"),
    ({"uri": "\ud800", "size": "1M"}, "connection_failed"),
], ids=ascii)
def test_text_that_is_no_utf8(refused, pool, wish, reason):
    blank(pool / "there")
    refused(reason, **{"name": "a", **wish})


@pytest.mark.parametrize("wish", [
    {"format": "vmdk"}, {"format": "QCOW2"}, {"preallocation": "yes"}, {"clone_mode": "linked"}, {"state": "gone"},
    {"unknown": 1}, {"force": True}, {"name": {}}, {"mode": -1}, {"template": ""}, {"clone_mode": "full"},
    {"template_pool": "a"}, {"snapshot_pool": "a"}, {"cluster_size": "3K"}, {"format": "raw", "cluster_size": "64K"},
], ids=str)
def test_values_no_option_has(refused, pool, wish):
    refused("invalid_option", **{"name": "a", "size": "1M", **wish})


def test_neither_true_nor_false(volume, pool):
    result = volume(name="a", size="1M", overcommit="perhaps")
    assert result.get("failed") and result["reason"] == "invalid_option" and os.listdir(pool.path) == []


def test_no_names_are_nothing_to_do(checked, pool):
    assert not checked(name=[], size="1M")["changed"] and os.listdir(pool.path) == []


def test_name_is_required(hypervisor, pool):
    assert "name" in run_module("volume", {"uri": hypervisor.uri, "pool": pool.name, "size": "1M"})["msg"]


@pytest.mark.parametrize("wish", [{"size": "1M"}, {"state": "absent"}])
def test_unknown_pool(refused, wish):
    assert "nowhere" in refused("pool_not_found", name="a", pool="nowhere", **wish)["msg"]


@pytest.mark.parametrize("wish", [{"size": "1M"}, {"state": "absent"}])
def test_inactive_pool(refused, make_pool, wish):
    idle = make_pool(active=False)
    assert idle.name in refused("pool_inactive", name="a", pool=idle.name, **wish)["msg"]


def test_pool_whose_directory_is_gone(volume, info, own_hypervisor, make_pool):
    lost = make_pool(on=own_hypervisor)
    lost.path.rmdir()
    result = run_module("volume", {"uri": own_hypervisor.uri, "pool": lost.name, "name": "a", "size": "1M"})
    assert result["failed"] and result["reason"] == "pool_inactive", result
    assert lost.name in result["msg"] and str(lost.path) in result["msg"], result
    assert lost.virt.isActive()
    assert not run_module("volume_info", {"uri": own_hypervisor.uri}).get("changed")


@pytest.mark.parametrize("uri", [
    "qemu+unix:///system?socket=/nonexistent/sock", "qemu+tcp://127.0.0.1:1/system", "nonsense://x", "qemu:///nowhere",
    "qemu+unix:///system?socket=/dev/null", "not a uri", "qemu+ssh://no-such-host.invalid/system?command=/bin/false",
])
def test_nobody_answers(uri):
    for module, wish in (("volume", {"name": "a", "size": "1M"}), ("volume_info", {})):
        result = run_module(module, {"uri": uri, **wish}, timeout=30)
        assert result["failed"] and result["reason"] == "connection_failed", result
        assert uri in result["msg"]


def test_libvirtd_not_running(own_hypervisor, make_pool):
    pool = make_pool(on=own_hypervisor)
    own_hypervisor.halt()
    for check in (True, False):
        result = run_module(
            "volume", {"uri": own_hypervisor.uri, "pool": pool.name, "name": "a", "size": "1M"}, check=check
        )
        assert result["failed"] and result["reason"] == "connection_failed", result


def test_uri_from_the_environment(hypervisor, pool):
    env = environment(LIBVIRT_DEFAULT_URI=hypervisor.uri)
    assert run_module("volume_info", {"pool": [pool.name]}, env=env)["volumes"] == []


def test_uri_of_the_task_comes_before_the_environments(hypervisor, pool):
    env = environment(LIBVIRT_DEFAULT_URI="nonsense://x")
    assert run_module("volume_info", {"uri": hypervisor.uri, "pool": [pool.name]}, env=env)["volumes"] == []


@pytest.mark.parametrize(("module", "wish"), [("volume", {"name": "a", "size": "1M"}), ("volume_info", {})])
def test_uri_of_nobody_is_the_systems(module, wish):
    """Where no daemon runs, the message tells where it was looked for."""
    nowhere = ["unshare", "-m", "--propagation", "private", "sh", "-c",
               'mkdir -p /run/libvirt && mount -t tmpfs none /run/libvirt && exec "$@"', "sh"]
    result = finish_module(start_module(module, wish, prefix=nowhere))
    assert result["reason"] == "connection_failed" and "'qemu:///system'" in result["msg"], result


@pytest.mark.parametrize("wish", [{"name": "b", "size": "1M"}, {"name": "a", "size": "2M"}, {"name": "a", "state": "absent"}], ids=str)
def test_socket_for_those_who_may_only_look(refused, info, hypervisor, pool, wish):
    """Said before anything is made that libvirt then could not be told of; a look is fine."""
    blank(pool / "a")
    uri = f"{hypervisor.uri}-ro"
    assert "-ro" in refused("connection_failed", uri=uri, **wish)["msg"]
    assert [v["name"] for v in info(uri=uri)["volumes"]] == ["a"]


@pytest.fixture
def over_ssh(hypervisor, tmp_path):
    """A URI by which libvirt reaches this hypervisor as if it were on another host."""
    bridge = tmp_path / "ssh"
    bridge.write_text(f"""#!{sys.executable}
import os, socket, threading
far = socket.socket(socket.AF_UNIX)
far.connect({hypervisor.uri.partition("socket=")[2]!r})
def forth():
    while data := os.read(0, 65536):
        far.sendall(data)
    far.shutdown(socket.SHUT_WR)
threading.Thread(target=forth, daemon=True).start()
while data := far.recv(65536):
    os.write(1, data)
""")
    bridge.chmod(0o755)
    return f"qemu+ssh://elsewhere/system?command={bridge}&proxy=netcat"


@pytest.mark.parametrize(("module", "wish"), [
    ("volume", {"name": "b", "size": "1M"}), ("volume", {"name": "a", "state": "absent"}), ("volume_info", {}),
], ids=["create", "delete", "list"])
def test_hypervisor_of_another_host(over_ssh, pool, module, wish):
    """Its files aren't here, though a directory of the same name may be."""
    blank(pool / "a")
    where = {"pool": [pool.name]} if module == "volume_info" else {"pool": pool.name}
    for check in (True, False):
        result = run_module(module, {"uri": over_ssh, **where, **wish}, check=check)
        assert result.get("failed") and result["reason"] == "unsupported", result
        assert "delegate_to" in result["msg"]
    assert os.listdir(pool.path) == ["a"]


@pytest.mark.parametrize(("module", "wish"), [
    ("volume", {"name": "b", "size": "1M"}), ("volume", {"name": "a", "state": "absent"}), ("volume_info", {}),
], ids=["create", "delete", "list"])
def test_user_who_may_not(hypervisor, pool, module, wish):
    """Neither libvirt nor the pool's directory is for everybody: told with what helps."""
    blank(pool / "a")
    pool.path.chmod(0o700)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    where = {"pool": [pool.name]} if module == "volume_info" else {"pool": pool.name}
    with readable_by_all(collections_path(), hypervisor.root.parent, hypervisor.root, hypervisor.root / "run"):
        looks = "unsupported" if module == "volume_info" else "connection_failed"
        for uri, reason in ((hypervisor.uri, "connection_failed"), (f"{hypervisor.uri}-ro", looks)):
            result = finish_module(start_module(module, {"uri": uri, **where, **wish}, prefix=nobody))
            assert result.get("failed") and result["reason"] == reason, result
            assert "become: true" in result["msg"]
    assert os.listdir(pool.path) == ["a"]


@contextlib.contextmanager
def readable_by_all(*directories):
    before = [directory.stat().st_mode for directory in directories]
    for directory in directories:
        directory.chmod(0o755)
    try:
        yield
    finally:
        for directory, mode in zip(directories, before):
            directory.chmod(mode & 0o7777)


@pytest.fixture
def no_libvirt(tmp_path):
    """A command prefix under which libvirt's Python binding cannot be imported by any interpreter of the machine."""
    broken = tmp_path / "libvirt.py"
    broken.write_text("raise ImportError('no libvirt here')\n")
    return ["unshare", "-m", "--propagation", "private", "sh", "-c",
            f"mount --bind {broken} {libvirt.__file__}" + ' && exec "$@"', "sh"]


@pytest.mark.parametrize("module", ["volume", "volume_info"])
def test_missing_libvirt_python(hypervisor, pool, no_libvirt, module):
    wish = {"name": "a", "size": "1M", "pool": pool.name} if module == "volume" else {}
    # Ansible's own search for another interpreter lets those speak on stderr.
    result = finish_module(start_module(module, {"uri": hypervisor.uri, **wish}, prefix=no_libvirt), quiet=False)
    assert result["failed"] and result["reason"] == "tool_missing", result
    assert "python3-libvirt" in result["msg"]


def test_another_interpreter_that_has_libvirt_is_used(hypervisor, pool, tmp_path):
    """The play's own interpreter has no libvirt binding; the system's has."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = str(tmp_path / "bare" / "bin" / "python")
    assert subprocess.run([bare, "-c", "import libvirt"], capture_output=True, check=False).returncode != 0
    result = run_adhoc("volume", f"name=a size=1M pool={pool.name} uri={hypervisor.uri}", python=bare)
    assert result.get("changed"), result
    assert (pool / "a").exists()


def test_missing_qemu_img(volume, pool, tmp_path):
    """Only what libvirt or the tool is needed for fails, and says which package brings it."""
    hidden = tmp_path / "no"
    hidden.write_text("")
    qemu_img = Path("/usr/bin/qemu-img").resolve()
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c",
              f"mount --bind {hidden} {qemu_img}" + ' && exec "$@"', "sh"]
    params = {"uri": pool.hypervisor.uri, "pool": pool.name, "name": "a", "size": "1M"}
    result = finish_module(start_module("volume", params, prefix=prefix))
    assert result["failed"] and result["reason"] == "tool_missing" and "qemu-img" in result["msg"], result
    assert os.listdir(pool.path) == []


@pytest.mark.parametrize(("body", "seen_as"), [
    pytest.param(b"", "raw", id="empty"),
    pytest.param(b"QFI\xfb\0\0\0\x03" + b"\xff" * 600, "qcow2", id="ones"),
    pytest.param(b"QFI\xfb\0\0\0\x63" + bytes(600), "qcow2", id="version99"),
    pytest.param(b"# Disk DescriptorFile\nversion=1\n", "vmdk", id="vmdk"),
    pytest.param(b"KDMV" + b"\xff" * 600, "vmdk", id="vmdk3"),
    pytest.param(b"conectix" + b"\xff" * 504, "vpc", id="vpc"),
    pytest.param(b"vhdxfile" + b"\xff" * 600, "vhdx", id="vhdx"),
    pytest.param(b"QFI\xfb\0\0\0\x01" + b"\xff" * 100, "qcow", id="qcow1"),
])
def test_unreadable_images(refused, volume, info, pool, body, seen_as):
    (pool / "bad").write_bytes(body)
    blank(pool / "good")
    assert [(v["name"], v["format"]) for v in info(pool=[pool.name])["volumes"]] == [("bad", seen_as), ("good", "qcow2")]
    for mode in ("backing", "full"):
        assert "'bad'" in refused("unsafe_image", name="a", template="bad", clone_mode=mode)["msg"]
    assert volume(name="a", size="1M")["changed"], "one bad file does not stop other work in the pool"


def test_backing_file_named_in_bytes_that_are_no_text(volume, info, pool):
    """libvirt repeats them in its description of the volume."""
    blank(pool / "bad")
    subprocess.run(["qemu-img", "rebase", "-u", "-b", b"/nowhere/b\xbf", "-F", "raw", "-f", "qcow2", pool / "bad"], check=True)
    pool.refresh()
    assert [seen["name"] for seen in info(pool=[pool.name])["volumes"]] == ["bad"]
    assert volume(name="bad", state="absent")["changed"]


@pytest.fixture
def failing(place, tmp_path):
    """A hypervisor that sees a file system, and a file there that opens, but gives an input/output error when it is read."""
    (tmp_path / "content").mkdir()
    with (tmp_path / "content" / "bad").open("wb") as file:
        for number in range(12):  # so many pieces that the file system keeps a block of their places
            file.seek(number * 65536)
            file.write(b"x" * 4096)
    image, mount = tmp_path / "image", place / "failing"
    image.write_bytes(b"")
    os.truncate(image, 16 * MIB)
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^has_journal,^metadata_csum", "-d", tmp_path / "content", image)
    block = re.search(r"\(ETB0\):(\d+)", sh("debugfs", "-R", "stat /bad", image))
    patch(image, int(block[1]) * 1024, bytes(1024))
    mount.mkdir()
    sh("mount", "-o", "loop", image, mount)
    running = Hypervisor(place / "shaky")
    yield running, mount
    running.stop()
    sh("umount", mount)
    mount.rmdir()


@pytest.mark.parametrize("kind", ["failing disk", "link to the kernel"])
def test_file_over_which_libvirt_would_stop_the_pool(failing, kind):
    """At its next refresh libvirt would stop the pool, and could not start it again: nothing is done that needs one."""
    hypervisor, mount = failing
    pool = Pool(hypervisor, "shaky", mount / "pool")
    blank(pool / "a"), blank(pool / "c")
    pool.refresh()
    if kind == "failing disk":
        (mount / "bad").rename(pool / "bad")
        with pytest.raises(OSError, match="Input/output error"):
            (pool / "bad").read_bytes()
    else:
        (pool / "bad").symlink_to("/proc/self/mem")

    def both(**params):
        """The same in check mode as for real."""
        foretold, real = (
            run_module("volume", {"uri": hypervisor.uri, "pool": pool.name, **params}, check=check) for check in (True, False))
        for key in ("reason", "actions", "msg"):
            assert foretold.get(key) == real.get(key), (foretold, real)
        return real

    before = {entry.name: entry.lstat().st_mtime_ns for entry in pool.path.iterdir()}
    reason = "tool_failed" if kind == "failing disk" else "unsafe_image"
    for wish in ({"name": "b", "size": "1M"}, {"name": "a", "size": "2M"}):
        result = both(**wish)
        assert result["reason"] == reason and "'bad'" in result["msg"], result
    assert not both(name="a", size="1M")["changed"]
    assert {entry.name: entry.lstat().st_mtime_ns for entry in pool.path.iterdir()} == before and pool.virt.isActive()
    found = run_module("volume_info", {"uri": hypervisor.uri})
    if kind == "failing disk":
        assert any("'bad'" in text and "Input/output error" in text for text in found["warnings"])
        assert "whether others are built on it" in both(name="c", state="absent")["msg"]
    else:
        assert both(name="c", state="absent")["changed"]
    (pool / "bad").unlink()
    assert both(name="b", size="1M")["changed"]
    assert pool.virt.isActive() and set(pool.virt.listVolumes()) >= {"a", "b"}
    pool.forget()


@pytest.mark.parametrize("body", [b"QFI\xfb", b"\x7fELF" * 100, b"OOOO" + bytes(100), bytes(3)], ids=["magic", "elf", "lock", "3bytes"])
def test_what_is_no_image_is_raw(volume, info, pool, body):
    (pool / "odd").write_bytes(body)
    assert info(name="odd")["volumes"][0]["format"] == "raw"
    for mode in ("backing", "full"):
        assert volume(name=f"from-{mode}", template="odd", clone_mode=mode)["changed"]
        assert content(pool / f"from-{mode}")[: len(body)] == body


def test_image_whose_tables_lead_nowhere(refused, pool):
    """Its header is sound, so that qemu-img alone can find out."""
    path = make(pool / "t")
    tables = struct.unpack(">Q", path.read_bytes()[40:48])[0]
    patch(path, tables, struct.pack(">Q", 1 << 63 | 0x7FFFFFFF0200))
    result = refused("tool_failed", name="a", template="t", clone_mode="full")
    assert "template 't'" in result["msg"] and "qemu-img" in result["msg"] and result["rc"] == 1


def test_libvirt_refuses(volume, pool, domain):
    """A file that its file system lets nobody make longer, not even the running QEMU."""
    path = make(pool / "a", "raw")
    domain(disk(path, "raw"), name="vm")
    sh("chattr", "+a", path)
    try:
        result = volume(name="a", size="8M", format="raw", preallocation="off")
    finally:
        sh("chattr", "-a", path)
    assert result.get("failed") and result["reason"] == "libvirt_error" and not result["changed"], result
    assert all(word in result["msg"] for word in ("'a'", pool.name, "'vm'", "Operation not permitted")), result["msg"]
    assert path.stat().st_size == 4 * MIB


@pytest.mark.parametrize("wish", [{"size": "1M"}, {"size": "1M", "format": "raw"}, {"state": "absent"}], ids=str)
def test_a_link_to_nothing_takes_the_name(refused, pool, wish):
    (pool / "a").symlink_to("/nonexistent")
    assert "link" in refused("unsupported", name=["b", "a"], **wish)["msg"]
    assert (pool / "a").is_symlink() and os.listdir(pool.path) == ["a"]


def test_things_in_a_pool_that_are_no_images(refused, volume, info, pool):
    (pool / "dir").mkdir()
    (pool / "dir" / "inside").write_text("x")
    (pool / "broken-link").symlink_to("/nonexistent")
    (pool / "self").symlink_to("self")
    os.mkfifo(pool / "fifo")
    make(pool / "good", size=MIB)
    assert [v["name"] for v in info(pool=[pool.name])["volumes"]] == ["good"]
    for name in ("dir", "fifo", "broken-link", "self"):
        refused("unsupported", name=name, size="1M")
        refused("unsupported", name=name, state="absent")
        missing = name in ("broken-link", "self")
        refused("template_not_found" if missing else "unsafe_image", name="b", template=name, clone_mode="full")
    assert volume(name="a", size="1M")["changed"]
