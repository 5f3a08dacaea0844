# shellcheck shell=bash
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Sourced by ./dev: the tests, fast ones first. A failing step does not keep the later ones from running.
# shellcheck disable=SC2154  # repo, work, venv, collections, collection and python come from ./dev

passed=0
failed=0
begun=()
summary=()

run_tests() { # PART...
    local part parts=("$@")
    [[ ${#parts[@]} -gt 0 ]] || parts=(lint unit integration molecule sanity docs build)
    for part in "${parts[@]}"; do
        case $part in
            lint | unit | integration | molecule | sanity | docs | build) ;;
            *) fail "no such tests: $part" ;;
        esac
    done
    setup test
    use_checkout
    cd "$repo"
    rm -rf "$work/log"
    mkdir -p "$work/log"
    for part in "${parts[@]}"; do "test_$part"; done
    say "" "Summary" "${summary[@]}" ""
    say "$passed passed, $failed failed"
    [[ $failed -eq 0 ]]
}

# step NAME COMMAND...: the output is shown in full when it fails, its last line when it does not.
step() {
    printf '== %s\n' "$1"
    begun+=("$1")
    run_logged "$@"
    finish_steps
}

# begin_step NAME COMMAND...: in the background, beside others; finish_steps waits for all and tells how they ended.
begin_step() {
    printf '== %s\n' "$1"
    begun+=("$1")
    run_logged "$@" &
}

run_logged() { # NAME COMMAND...
    local log=$work/log/${1//[^A-Za-z0-9.]/-}.log began=$SECONDS
    shift
    # A subshell with errexit of its own: 'set -e' is off inside a command whose status is looked at.
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    printf '%s %s\n' $? $((SECONDS - began)) >"$log.end"
    set -e
}

finish_steps() {
    local name log status seconds
    # What runs in the background does not hear an interrupt.
    trap 'trap - TERM; kill 0; exit 130' INT
    wait
    trap - INT
    for name in "${begun[@]}"; do
        log=$work/log/${name//[^A-Za-z0-9.]/-}.log
        read -r status seconds <"$log.end"
        [[ ${#begun[@]} -eq 1 ]] || printf '== %s\n' "$name"
        if [[ $status -eq 0 ]]; then
            passed=$((passed + 1))
            grep -v '^[[:space:]]*$' "$log" | tail -n 1 || true
        else
            failed=$((failed + 1))
            tail -n 400 "$log"
        fi
        report "$([[ $status -eq 0 ]] && echo passed || echo FAILED)" "$name" "$seconds s"
    done
    begun=()
}

report() { # RESULT NAME REMARK
    summary+=("$(printf '  %-7s %-48s %s' "$@")")
    printf -- '-- %s %s (%s)\n' "$1" "$2" "$3"
}

test_lint() {
    begin_step "ansible-lint, production" check_playbooks
    begin_step shellcheck shellcheck -x dev .ci/run tools/*.sh
    begin_step ruff ruff check --no-cache .
    begin_step "mypy --strict" check_types
    finish_steps
}

check_types() {
    cd "$collections"
    mypy --config-file "$repo/pyproject.toml" --cache-dir "$work/mypy" ansible_collections/hypervisor/storage/plugins/module_utils
}

check_playbooks() {
    # The linter finds the collection's name by the directory it is in, and walks everything below.
    copy_collection "$work/lint"
    cd "$work/lint/ansible_collections/hypervisor/storage"
    ANSIBLE_COLLECTIONS_PATH=$work/lint:$collections ansible-lint --offline --profile production --strict
}

run_pytest() { # PYTHON TESTS...
    local interpreter=$1
    shift
    PYTHONPATH=$collections "$interpreter" -m pytest -q -ra "$@"
}

test_unit() {
    local interpreter
    step "unit, Python $(version_of "$python")" run_pytest "$venv/bin/python" -n 2 tests/unit
    step "faults at every place" run_pytest "$venv/bin/python" -n 2 tests/faults
    # The newest Python runs them with the newest ansible-core, in test_sanity.
    if interpreter=$(find_python 3.9); then
        step "unit, Python 3.9" unit_on 3.9 "$interpreter"
    else
        report skipped "unit, Python 3.9" "no such Python on this machine"
    fi
}

unit_on() { # VERSION PYTHON
    make_venv "$work/unit-$1" "$2" "$repo/tests/requirements/unit.txt" unit
    run_pytest "$work/unit-$1/bin/python" -n 2 tests/unit
}

test_integration() {
    # Each worker has a hypervisor of its own; a file stays with one worker, since its fixtures are shared.
    step integration run_pytest "$venv/bin/python" -n 2 --dist loadfile --no-loadscope-reorder --durations=100 --durations-min=4 tests/integration
}

test_molecule() {
    local scenario
    # What runs in the background does not hear an interrupt.
    trap 'trap - TERM; kill 0; exit 130' INT
    # Two at a time: each has hypervisors and a directory of its own, and waits most of the time for one process.
    for scenario in extensions/molecule/*/molecule.yml; do
        scenario=$(basename "$(dirname "$scenario")")
        while [[ $(jobs -rp | wc -l) -ge 2 ]]; do wait -n; done
        begin_step "molecule $scenario" run_molecule "$scenario"
    done
    finish_steps
    trap - INT
}

# run_molecule SCENARIO: with two private hypervisors and an empty directory of its own, all gone afterwards.
run_molecule() {
    local scenario=$1
    export MOLECULE_PLACE=$work/molecule/$scenario MOLECULE_EPHEMERAL_DIRECTORY=$work/molecule/$scenario/state
    clear_molecule "$scenario"
    # shellcheck disable=SC2064  # the name as it is now
    trap "clear_molecule '$scenario'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir -p "$MOLECULE_EPHEMERAL_DIRECTORY"
    LIBVIRT_DEFAULT_URI=$(start_hypervisor "$scenario-1")
    MOLECULE_SECOND_URI=$(start_hypervisor "$scenario-2")
    export LIBVIRT_DEFAULT_URI MOLECULE_SECOND_URI
    NO_COLOR=1 MOLECULE_COMMAND_BORDERS=0 "$venv/bin/molecule" test --scenario-name "$scenario"
}

clear_molecule() { # SCENARIO
    stop_hypervisor "$1-1"
    stop_hypervisor "$1-2"
    rm -rf "$work/molecule/$1"
}

# The newest ansible-core that a Python on this machine can run, and the oldest that the collection promises.
test_sanity() {
    local newest
    if newest=$(newest_python 3.12); then
        begin_step "ansible-test 2.21: sanity, units" ansible_test 2.21 "$newest"
    else
        say "!! No Python >= 3.12 on this machine: ansible-core 2.21 cannot run, 2.19 is the newest that can."
        begin_step "ansible-test 2.19: sanity, units" ansible_test 2.19 "$(version_of "$python")"
    fi
    begin_step "ansible-test 2.17: sanity, units" ansible_test 2.17 "$(newest_python 3.10 3.12)"
    finish_steps
}

ansible_test() { # CORE PYTHON-VERSION
    local core=$1 version=$2
    set_up_ansible_test "$core" "$version"
    (in_ansible_test "$core" sanity --color no -v)
    (in_ansible_test "$core" units --color no --python "$version" --requirements)
}

set_up_ansible_test() { # CORE PYTHON-VERSION
    local core=$1 interpreter place=$work/ansible-test/$1
    interpreter=$(find_python "$2")
    mkdir -p "$place/home/.config"
    make_venv "$place/venv" "$interpreter" "$repo/tests/requirements/core-$core.txt" core
    copy_collection "$place"
    # ansible-test keeps caches in the home directory: it gets one of its own, with the user's settings of pip.
    [[ ! -e ~/.config/pip ]] || ln -sfn ~/.config/pip "$place/home/.config/pip"
    provide_pip "$place"
}

# ansible-test fetches a bootstrap script for pip from a site of its own, unless the script is in its cache:
# put one there that installs the same pip from a wheel, so that the package index is the only site needed.
provide_pip() { # DIR
    local version cache=$1/home/.ansible/test/cache wheel
    mkdir -p "$cache"
    grep -ohE "pip='[0-9.]+'" "$1"/venv/lib/python3*/site-packages/ansible_test/_internal/python_requirements.py |
        grep -oE '[0-9.]+' | while read -r version; do
        wheel=$cache/pip-$version-py3-none-any.whl
        [[ -e $wheel ]] || "$venv/bin/python" -m pip download -q --no-deps --only-binary :all: -d "$cache" "pip==$version"
        cat >"$cache/get_pip_${version//./_}.py" <<END
import runpy
import sys

wheel = "$wheel"
sys.path.insert(0, wheel)
sys.argv[1:] = ["install", "--no-index", "--quiet", wheel]
runpy.run_module("pip", run_name="__main__")
END
    done
}

in_ansible_test() { # CORE ARGUMENT...
    local place=$work/ansible-test/$1
    shift
    cd "$place/ansible_collections/hypervisor/storage"
    # No paths of ours: ansible-test makes its own, and refuses some variables.
    env -u ANSIBLE_HOME -u ANSIBLE_COLLECTIONS_PATH -u PYTHONPATH -u PYTHONPYCACHEPREFIX \
        HOME="$place/home" PATH="$place/venv/bin:$(real_python_directories)$PATH" ansible-test "$@"
}

test_docs() {
    begin_step "README names what exists" check_readme
    begin_step "antsibull-changelog lint" antsibull-changelog lint
    begin_step "antsibull-docs lint" antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
    begin_step "docs site" "$venv/bin/python" tools/docsite.py "$work/docsite"
    finish_steps
}

# The README's table names the modules that are there, and no others.
check_readme() {
    local named
    # shellcheck disable=SC2016  # the backquotes are the README's
    named=$(sed -nE 's/^\|.*`hypervisor\.storage\.([a-z_]+)`.*/\1/p' README.md | sort -u)
    diff <(say "$named") <(basename -s .py plugins/modules/*.py | sort)
}

test_build() {
    step "build, install, ansible-doc" build_and_install
    step galaxy-importer import_as_galaxy
    step "the README's tour, from nothing" tour_from_nothing
}

# As on a fresh checkout, with a venv and a hypervisor of its own, of which nothing is left.
tour_from_nothing() {
    local copy=$work/tour/ansible_collections/hypervisor/storage
    rm -rf "$work/tour"
    copy_collection "$work/tour"
    env -u KEEP "$copy/dev" demo
    [[ -z $(find "$copy/.work/hypervisors" "$copy/.work/pools" -mindepth 1) ]] || fail "the tour left files"
    ! grep -las -f <(printf %s "$copy/.work") /proc/[0-9]*/cmdline || fail "the tour left processes"
    # The copy's files are all staged.
    [[ -z $(git -C "$copy" ls-files --modified --others --exclude-standard) ]] || fail "the tour changed the checkout"
    rm -rf "$work/tour"
}

build_and_install() {
    local module
    rm -rf "$work/build"
    ansible-galaxy collection build --output-path "$work/build"
    # Beside what it depends on, which could not be fetched offline, and not beside the checkout.
    mkdir -p "$work/build/installed/ansible_collections"
    cp -a "$collections/ansible_collections/community" "$work/build/installed/ansible_collections/"
    export ANSIBLE_COLLECTIONS_PATH=$work/build/installed
    ansible-galaxy collection install --offline "$work"/build/*.tar.gz
    for module in plugins/modules/*.py; do
        module=hypervisor.storage.$(basename "$module" .py)
        ansible-doc "$module" | grep -q EXAMPLES || fail "ansible-doc shows no examples for $module"
    done
    tar -tzf "$work"/build/*.tar.gz >"$work/build/files"
    ! grep -E '^(\.work|\.ci|dev|tools/|tests/output)' "$work/build/files" || fail "the tarball holds what only developers need"
    say "$(grep -vc '/$' "$work/build/files") files"
}

import_as_galaxy() {
    cd "$work/build"
    GALAXY_IMPORTER_CHECK_REQUIRED_TAGS=1 python -m galaxy_importer.main ./*.tar.gz 2>&1 | tee importer.log
    # It exits 0 also when it complains.
    grep -q 'Importer processing completed successfully' importer.log
    ! grep -E '^(ERROR|WARNING)' importer.log
}

# copy_collection DIR: what git has or would have, in DIR/ansible_collections/hypervisor/storage, as a repository.
copy_collection() {
    local copy=$1/ansible_collections/hypervisor/storage
    rm -rf "$1/ansible_collections"
    mkdir -p "$copy"
    (
        cd "$repo"
        # Listed and still there: a file may be deleted and not committed yet.
        git -c safe.directory="$repo" ls-files -z --cached --others --exclude-standard |
            while IFS= read -r -d '' file; do [[ ! -e $file && ! -L $file ]] || printf '%s\0' "$file"; done |
            xargs -0 cp -a --parents -t "$copy" --
    )
    git -C "$copy" init -q
    git -C "$copy" add -A
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Directories that hold real interpreters: pyenv's shims answer to every version and run few.
real_python_directories() {
    local directory
    for directory in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.{9,1[0-9]}*/bin; do
        [[ ! -x $directory/python3 ]] || printf '%s:' "$directory"
    done
}

find_python() { # VERSION; prints the interpreter
    local directory directories
    [[ -n $1 ]] || return 1
    IFS=: read -ra directories <<<"$(real_python_directories)/usr/local/bin:/usr/bin"
    for directory in "${directories[@]}"; do
        if [[ -x $directory/python$1 ]] && "$directory/python$1" -c 'import venv, ensurepip' 2>/dev/null; then
            say "$directory/python$1"
            return 0
        fi
    done
    return 1
}

newest_python() { # LOWEST [HIGHEST]; prints the version
    local minor
    local highest=${2:-3.14}
    for ((minor = ${highest#3.}; minor >= ${1#3.}; minor--)); do
        if find_python "3.$minor" >/dev/null; then
            say "3.$minor"
            return 0
        fi
    done
    return 1
}
