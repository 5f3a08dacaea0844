# shellcheck shell=bash
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Sourced by ./dev: installs what is missing, and is quick when nothing is.
# shellcheck disable=SC2154  # repo, work, venv, collection and python come from ./dev

demo_packages=(
    e2fsprogs libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system
    python3-libvirt python3-venv qemu-system-x86 qemu-utils
)
# libguestfs boots the cloud kernel: a small one, and a machine without any (a container) has none to offer.
test_packages=(
    bindfs btrfs-progs busybox-static cloud-guest-utils cpio dropbear-bin fdisk git guestfs-tools kmod libguestfs-tools
    linux-image-cloud-amd64 lvm2 mmdebstrap openssh-client parted python3-lxml qemu-guest-agent shellcheck supermin
    systemd-container xfsprogs
    ceph-common ceph-mgr ceph-mon ceph-osd libvirt-daemon-driver-storage-rbd qemu-block-extra
)
# What the roles and playbooks use of other collections.
foreign_collections=(awx/awx community/general community/libvirt)

setup() { # demo|test
    local level=$1
    case $level in
        demo) install_packages "${demo_packages[@]}" ;;
        test) install_packages "${demo_packages[@]}" "${test_packages[@]}" ;;
        *) fail "setup knows 'demo' and 'test', not '$level'" ;;
    esac
    mkdir -p "$(dirname "$collection")"
    ln -sfn "$repo" "$collection"
    # The test level holds all of the demo level's requirements, so a later demo must not take them back.
    if [[ $level == test || ! -e $venv/.stamp-test ]]; then
        make_venv "$venv" "$python" "$repo/tests/requirements/$level.txt" "$level" --system-site-packages
    fi
    [[ $level != test ]] || provide_collections
}

# Other collections come out of the Python package that bundles them, so that the package index is the only site needed.
provide_collections() {
    local requirements=$repo/tests/requirements/collections.txt stamp=$collections/.stamp want
    want=$(cat "$requirements"; say "${foreign_collections[@]}")
    [[ ! -e $stamp || $(<"$stamp") != "$want" ]] || return 0
    say "Fetching ${foreign_collections[*]}"
    rm -rf "$work/bundle" "${foreign_collections[@]/#/$collections/ansible_collections/}"
    "$venv/bin/python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: \
        -d "$work/bundle" -r "$requirements" >"$work/pip.log" 2>&1 || { tail -n 30 "$work/pip.log" >&2; fail "pip could not download ${requirements#"$repo"/}"; }
    "$venv/bin/python" - "$work"/bundle/*.whl "$collections" "${foreign_collections[@]}" <<'END'
import sys
import zipfile

wheel, target, *wanted = sys.argv[1:]
prefixes = tuple(f"ansible_collections/{name}/" for name in wanted)
with zipfile.ZipFile(wheel) as bundle:
    bundle.extractall(target, [name for name in bundle.namelist() if name.startswith(prefixes)])
END
    rm -rf "$work/bundle"
    printf '%s' "$want" >"$stamp"
}

install_packages() {
    local name missing=()
    command -v dpkg-query >/dev/null || { say "No dpkg here: expecting libvirt, QEMU and Python to be installed."; return; }
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) == *"ok installed" ]] || missing+=("$name")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    [[ $EUID -eq 0 ]] || fail "these packages are missing, and only root can install them: ${missing[*]}"
    say "Installing ${missing[*]}"
    mkdir -p "$work"
    keep_services_stopped
    # The package lists may be missing or out of date: fetch them only when they turn out to be.
    if ! apt_install "${missing[@]}" >"$work/apt.log" 2>&1; then
        if ! { apt-get update -q && apt_install "${missing[@]}"; } >"$work/apt.log" 2>&1; then
            tail -n 30 "$work/apt.log" >&2
            let_services_start
            fail "apt-get could not install: ${missing[*]}"
        fi
    fi
    let_services_start
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

# The machine's own libvirtd and its network are not ours to start.
policy=/usr/sbin/policy-rc.d
policy_is_ours=
keep_services_stopped() {
    [[ ! -e $policy ]] || return 0
    policy_is_ours=yes
    trap let_services_start EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}
let_services_start() {
    [[ -n $policy_is_ours ]] || return 0
    rm -f "$policy"
    policy_is_ours=
    trap - EXIT
}

# make_venv DIR PYTHON REQUIREMENTS STAMP [OPTION...]: made anew only when its Python or a requirement changed.
make_venv() {
    local directory=$1 interpreter=$2 requirements=$3 stamp=$1/.stamp-$4 want
    shift 4
    want=$({ "$interpreter" -V; realpath "$interpreter"; cat "$repo"/tests/requirements/*.txt "$repo/tests/unit/requirements.txt"; say "$*"; } | sha256sum)
    [[ ! -e $stamp || $(<"$stamp") != "$want" ]] || return 0
    say "Setting up ${directory#"$repo"/} from ${requirements#"$repo"/}"
    rm -rf "$directory"
    mkdir -p "$work"
    "$interpreter" -m venv "$@" "$directory"
    if ! "$directory/bin/python" -m pip install -q --disable-pip-version-check --no-input --root-user-action ignore \
        -r "$requirements" >"$work/pip.log" 2>&1; then
        tail -n 30 "$work/pip.log" >&2
        fail "pip could not install ${requirements#"$repo"/}"
    fi
    printf '%s' "$want" >"$stamp"
}
