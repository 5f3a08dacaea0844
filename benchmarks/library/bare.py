# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The least that a module can be, on demand with libvirt's binding imported: the floor of a task."""

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"binding": {"type": "bool", "default": False}})
    if module.params["binding"]:
        import libvirt  # noqa: F401
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
