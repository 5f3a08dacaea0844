# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What prepare_hypervisor chooses for distributions that the tests don't run on, and what becomes of a fresh Debian by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.machines import Machine
from support.runs import environment

BIN = Path(sys.executable).parent


def recorded(distribution, version, family="RedHat", architecture="x86_64"):
    """As ``ansible.builtin.setup`` tells it on such a host."""
    return {"distribution": distribution, "distribution_version": version, "os_family": family, "architecture": architecture,
            "distribution_major_version": version.split(".")[0], "env": {}}


HOSTS = {
    "debian12": recorded("Debian", "12.11", "Debian"),
    "debian13": recorded("Debian", "13.1", "Debian"),
    "debian13arm": recorded("Debian", "13.1", "Debian", "aarch64"),
    "ubuntu2204": recorded("Ubuntu", "22.04", "Debian"),
    "ubuntu2404": recorded("Ubuntu", "24.04", "Debian"),
    "rocky9": recorded("Rocky", "9.6"),
    "alma9": recorded("AlmaLinux", "9.6"),
    "rhel9": recorded("RedHat", "9.4"),
    "rhel10": recorded("RedHat", "10.0"),
    "alma10": recorded("AlmaLinux", "10.0"),
    "centos10": recorded("CentOS", "10"),
    "fedora42": recorded("Fedora", "42"),
    "rhel8": recorded("RedHat", "8.10"),
    "suse15": recorded("openSUSE Leap", "15.6", "Suse"),
}
DEBIAN = ["libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "qemu-utils", "python3-libvirt", "python3-lxml"]
DEBIAN_UNITS = ["libvirtd.socket", "libvirtd.service"]
REDHAT = ["libvirt-daemon-kvm", "libvirt-client", "qemu-kvm", "qemu-img", "python3-libvirt", "python3-lxml"]
REDHAT_UNITS = ["virtqemud.socket", "virtqemud.service", "virtstoraged.socket", "virtstoraged.service", "virtlogd.socket"]


def run(*arguments, **env):
    collections = os.environ.get("ANSIBLE_COLLECTIONS_PATH") or environment()["ANSIBLE_COLLECTIONS_PATH"]
    done = subprocess.run(
        [str(BIN / "ansible-playbook"), *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False,
        env=environment(ANSIBLE_COLLECTIONS_PATH=collections, **env))
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """Per host what was chosen, or why it was refused."""
    place = tmp_path_factory.mktemp("decided")
    inventory = {"all": {"hosts": {name: {"recorded": facts} for name, facts in HOSTS.items()},
                         "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}}
    (place / "inventory.json").write_text(json.dumps(inventory))
    chosen = "{{ {'packages': __prepare_hypervisor_packages, 'services': __prepare_hypervisor_services} }}"
    report = "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'chosen'))) | to_json }}"
    facts = {name: "{{ recorded." + name + " }}" for name in HOSTS["rhel9"]}
    (place / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [
        {"ansible.builtin.set_fact": {**facts, "cacheable": True}},
        {"block": [
            {"ansible.builtin.include_role": {"name": "hypervisor.storage.prepare_hypervisor", "tasks_from": "decide"},
             "vars": {"prepare_hypervisor_libguestfs": True}},
            {"ansible.builtin.set_fact": {"chosen": chosen}}],
         "rescue": [{"ansible.builtin.set_fact": {"chosen": "{{ ansible_failed_result.msg }}"}}]},
        {"ansible.builtin.copy": {"dest": str(place / "out.json"), "content": report, "mode": "0600"}, "run_once": True}]}]))
    code, said = run("-i", place / "inventory.json", place / "play.yml")
    assert code == 0, said
    return json.loads((place / "out.json").read_text())


@pytest.mark.parametrize("host", ["debian12", "debian13", "ubuntu2204", "ubuntu2404"])
def test_debian_and_ubuntu(decided, host):
    assert decided[host] == {"packages": [*DEBIAN, "libguestfs-tools"], "services": DEBIAN_UNITS}


@pytest.mark.parametrize("host", ["rocky9", "alma9", "rhel9", "rhel10", "alma10", "centos10", "fedora42"])
def test_red_hat_and_its_kin(decided, host):
    assert decided[host] == {"packages": [*REDHAT, "guestfs-tools"], "services": REDHAT_UNITS}


def test_the_emulator_is_that_of_the_architecture(decided):
    assert "qemu-system-arm" in decided["debian13arm"]["packages"]
    assert "qemu-system-x86" not in decided["debian13arm"]["packages"]


@pytest.mark.parametrize(("host", "named"), [("rhel8", "RedHat 8.10"), ("suse15", "openSUSE Leap 15.6")])
def test_unknown_systems_are_refused_with_what_helps(decided, host, named):
    assert named in decided[host] and "prepare_hypervisor_packages" in decided[host] and "Nothing was done" in decided[host]


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """A fresh Debian 13, on which systemd runs."""
    machine = Machine(tmp_path_factory.mktemp("machines") / "debian", "trixie")
    try:
        machine.boot()
        yield machine
    finally:
        machine.remove()


def test_a_fresh_debian(debian, tmp_path):
    """The packages, systemd, libvirt and the pool are real."""
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": {"debian": debian.host()}}}))
    wishes = json.dumps({"target": "debian", "prepare_hypervisor_pool": "made", "prepare_hypervisor_pool_path": "/srv/made"})

    def prepare(*more):
        """What the playbook says, and what the role's result calls done."""
        code, said = run("-i", tmp_path / "inventory.json", "hypervisor.storage.prepare_hypervisor", "-e", wishes, *more,
                         ANSIBLE_SHOW_CUSTOM_STATS="1")
        assert code == 0, said
        stats = said[said.index('{ "prepare_hypervisor_result"'):]
        return said, json.JSONDecoder().raw_decode(stats)[0]["prepare_hypervisor_result"]

    _said, told = prepare("--check")
    assert (told["changed"], told["done"], told["pool"]["path"]) == (True, ["packages", "services", "pool"], "/srv/made"), told
    assert debian.says("sh", "-c", "command -v qemu-img; ls -d /srv/made 2>/dev/null") == ""

    said, told = prepare()
    assert told["changed"] and told["done"] == ["packages", "services", "pool"], said
    assert debian.says("systemctl", "is-enabled", *DEBIAN_UNITS) == "enabled\nenabled"
    assert debian.says("systemctl", "--failed", "--plain", "--no-legend", "libvirt*", "virt*") == ""

    # As after two minutes in which nobody needed it: that its socket starts it anew is no change.
    debian.says("systemctl", "stop", "libvirtd.service")
    said, told = prepare()
    assert "changed=0" in said and not told["changed"], said

    debian.power_off()
    debian.boot()
    assert debian.says("virsh", "-q", "pool-list", "--autostart").split() == ["made", "active", "yes"]
