# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only file that knows AnsibleModule: parameters in, one result out, and the one gate between plan and deed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from . import _libvirt, _process
from ._errors import Exchanged, StorageError, ToolMissing, told_as_changed
from ._inventory import Host
from ._model import Volume
from ._os_errors import explain
from ._requests import warn_of_blanks

if TYPE_CHECKING:
    from ._lifecycle import LifecycleTask, PlanT

#: How often a run decides anew because others changed what it had looked at.
_SECOND_LOOKS = 4


class _Module(AnsibleModule):  # type: ignore[misc]  # ansible-core has no type information
    """Failures of the argument spec carry a reason too, and text that isn't UTF-8 comes as far as our own checks."""

    def _log_invocation(self) -> None:
        with contextlib.suppress(UnicodeEncodeError):  # halves of surrogate pairs
            super()._log_invocation()

    def log(self, msg: str, log_args: dict[str, Any] | None = None) -> None:
        super().log(msg.replace("\0", "\\0"), log_args)  # since Python 3.13 the system's log refuses it, and Ansible the run

    def exit_json(self, **facts: Any) -> NoReturn:
        _process.end()
        super().exit_json(**_clean(facts))
        raise SystemExit(0)

    def fail_json(self, msg: str, **facts: Any) -> NoReturn:
        facts.setdefault("reason", "invalid_option")
        _process.end()
        super().fail_json(msg=_clean(msg), **_clean(facts))
        raise SystemExit(1)


def run_lifecycle(
    *, argument_spec: dict[str, Any], make_task: Callable[[Mapping[str, Any]], LifecycleTask[PlanT]]
) -> None:
    """Run a module that changes volumes: look, decide, act once (not in check mode), report."""
    module = _start(argument_spec)
    with _failures(module):
        task = make_task(module.params)
        with _libvirt.connect(module.params["uri"]) as connection:
            host = Host(connection)
            host.assert_may_change()
            with contextlib.nullcontext() if module.check_mode else task.guard(host):
                plan, volumes = _look_and_act(task, host, for_real=not module.check_mode)
        for warning in [*warn_of_blanks(task.names), *plan.warnings, *(text for planned in plan.volumes for text in planned.warnings)]:
            module.warn(_clean(warning))
        module.exit_json(**_report(task, plan, volumes))


def _look_and_act(
    task: LifecycleTask[PlanT], host: Host, *, for_real: bool
) -> tuple[PlanT, Sequence[Volume | None]]:
    """Decide and, for real, act; both anew when the ground moved under a decision before anything was done.

    Other runs and other programs may delete or exchange a template, a source or the volume itself at any moment.
    What fails for that fails for a reason that never was, until it is looked at once more.
    """
    looks = _SECOND_LOOKS
    while True:
        try:
            plan = task.decide(host)
            if not plan.changed or not for_real:
                return plan, [planned.result for planned in plan.volumes]
            plan = task.carry_out(host, plan) or plan
            with told_as_changed(plan.changed):
                return plan, task.describe(host)
        except StorageError as error:
            outdated = isinstance(error, Exchanged) or host.is_outdated()
            if not looks or not outdated or error.facts.get("changed"):
                raise
        looks -= 1
        host.forget()


def run_lookup(
    *, argument_spec: dict[str, Any], collect: Callable[[Mapping[str, Any], Host], tuple[dict[str, Any], list[str]]]
) -> None:
    """Run a module that only looks."""
    module = _start(argument_spec)
    with _failures(module):
        with _libvirt.connect(module.params["uri"]) as connection:
            result, warnings = collect(module.params, Host(connection))
        for warning in warnings:
            module.warn(_clean(warning))
        module.exit_json(changed=False, **result)


def _report(task: LifecycleTask[PlanT], plan: PlanT, volumes: Sequence[Volume | None]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "changed": plan.changed,
        "actions": plan.actions,
        "volumes": [volume.to_result() if volume else None for volume in volumes],
        "diff": {"before": plan.before, "after": plan.after},
    }
    result.update(task.extra_result(plan))
    notes = dict.fromkeys(note for planned in plan.volumes for note in planned.notes)
    if notes:
        result["msg"] = " ".join(notes)
    if len(task.names) == 1:
        result["volume"] = result["volumes"][0]
    result["volumes"] = [volume for volume in result["volumes"] if volume is not None]
    return result


def _start(argument_spec: dict[str, Any]) -> _Module:
    _process.start()
    module = _Module(argument_spec=argument_spec, supports_check_mode=True)
    if not _libvirt.is_installed():
        _find_libvirt(module)
    return module


def _find_libvirt(module: _Module) -> None:
    """Start anew in an interpreter of this host that has libvirt's binding (distributions ship it with theirs)."""
    # Here, since hardly any run needs it.
    from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

    if not has_respawned():
        candidates = ["/usr/bin/python3", "/usr/libexec/platform-python", "/usr/bin/python"]
        interpreter = probe_interpreters_for_module(candidates, "libvirt")
        if interpreter:
            respawn_module(interpreter)
    error = ToolMissing(
        "The Python binding of libvirt is not on this host, neither for this interpreter nor for the system's. Install "
        "'python3-libvirt' (Debian, Ubuntu, Fedora, RHEL and their kin), or 'libvirt-python' with pip for this interpreter.",
        tool="libvirt-python",
    )
    module.fail_json(msg=error.msg, reason=error.reason, **error.facts)


class _failures:
    """End the module with ``msg`` and ``reason`` for what a user or a host can cause."""

    def __init__(self, module: _Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            # Met while looking, where a disk that fails may refuse anything; what is done to volumes is explained where it is done.
            about = f" with {error.filename!r}" if error.filename else ""
            error = explain(error, f"go on{about}")
        if isinstance(error, StorageError):
            self._module.fail_json(msg=error.msg, reason=error.reason, **error.facts)


def _clean(value: Any) -> Any:
    """Text that JSON and terminals can carry: bytes of file names that are no UTF-8 are shown as question marks."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
