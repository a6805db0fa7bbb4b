#!/usr/bin/env bash
# Finds a Python that has this repository's packages, or makes one in .venv, once.
#
#   ./setup.sh          get ready for training and evaluation
#   ./setup.sh --dev    the same, with what the tests need
#   ./setup.sh --lock   write requirements.lock anew: what it names stays, as far as the requirements allow
#
# The other scripts source this file for its functions. The Python that is chosen is, in order: the one
# that STORM_PYTHON names; the active environment's, if it has the packages; that of .venv. With CI=true
# it is always a new .venv.

STORM_ROOT=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
OLDEST_PYTHON="3.10"
LOCKED_PYTHON="3.11" # the version that requirements.lock was made with

say() { printf 'setup: %s\n' "$*" >&2; }

# Say what is wrong in one line and exit as for every user error.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The words of a list, which white space or commas separate, with commas.
with_commas() {
  local words
  read -r -d '' -a words <<<"${1//,/ }"
  local IFS=,
  printf '%s' "${words[*]-}"
}

# has_packages PYTHON REQUIREMENTS_FILE [PACKAGE ...]: whether it is a Python with every requirement in a
# wanted version, and with the packages.
has_packages() {
  "$1" - "$STORM_ROOT/$2" "${@:3}" 2>/dev/null <<'PY' | grep -qx "it has them"
import pathlib
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

SAME = {"opencv-python-headless": ["opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"]}


def is_met(requirement):
    for name in [requirement.name, *SAME.get(requirement.name, [])]:
        try:
            return requirement.specifier.contains(version(name), prereleases=True)
        except PackageNotFoundError:
            pass
    return False


def requirements(path):
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from requirements(path.parent / line[3:].strip())
        elif line:
            yield Requirement(line)


wanted = [item for item in requirements(pathlib.Path(sys.argv[1])) if not item.marker or item.marker.evaluate()]
wanted += map(Requirement, sys.argv[2:])
if sys.version_info >= (3, 10) and all(map(is_met, wanted)):
    print("it has them")
PY
}

is_locked_python() { "$1" -c "import sys; sys.exit(sys.version_info[:2] != (${LOCKED_PYTHON/./, }))"; }

active_python() {
  if [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && command -v python; then return; fi
  command -v python3
}

# A Python that is new enough to make .venv with.
base_python() {
  local name
  for name in "$(active_python)" python3 python3.11 python3.13 python3.12 python3.10; do
    "$name" -c "import sys; sys.exit(sys.version_info < (${OLDEST_PYTHON/./, }))" 2>/dev/null || continue
    command -v "$name"
    return
  done
  fail "no Python $OLDEST_PYTHON or newer found: install one, or name it with STORM_PYTHON=/path/to/python"
}

# One set-up at a time: the lock belongs to descriptor 9, which this shell keeps open until release_lock.
take_lock() {
  exec 9>"$STORM_ROOT/.venv.lock" || fail "cannot write to $STORM_ROOT: make it writable to set up .venv"
  "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  say "waiting for another set-up of $STORM_ROOT/.venv"
  "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

release_lock() { exec 9>&-; }

# .venv.unfinished stands beside .venv while it is being filled, so that half of one is never taken.
install_packages() {
  local python=$1 requirements=$2 pins=() fresh=() is_new=
  [[ "${CI:-}" == true || -e "$STORM_ROOT/.venv.unfinished" ]] && fresh=(--clear)
  [[ ${#fresh[@]} -gt 0 || ! -x "$STORM_ROOT/.venv/bin/python" ]] && is_new=yes
  touch "$STORM_ROOT/.venv.unfinished"
  if [[ $is_new ]]; then
    "$python" -m venv ${fresh[@]+"${fresh[@]}"} "$STORM_ROOT/.venv" ||
      fail "$python cannot make $STORM_ROOT/.venv: see above (on Debian and Ubuntu: apt install python3-venv)"
  fi
  python="$STORM_ROOT/.venv/bin/python"
  is_locked_python "$python" && pins=(-c "$STORM_ROOT/requirements.lock")
  say "installing $requirements into $STORM_ROOT/.venv, once; this takes some minutes"
  "$python" -m pip install -qq --disable-pip-version-check \
    -r "$STORM_ROOT/$requirements" -e "$STORM_ROOT" ${pins[@]+"${pins[@]}"} >&2 || {
    [[ $is_new ]] || rm -f "$STORM_ROOT/.venv.unfinished" # what was there still works: pip, if it lives, undoes its own
    fail "installing $requirements into $STORM_ROOT/.venv failed: see pip's message above, then run this again"
  }
  rm -f "$STORM_ROOT/.venv.unfinished"
}

is_ready() {
  [[ ! -e "$STORM_ROOT/.venv.unfinished" ]] && has_packages "$STORM_ROOT/.venv/bin/python" "$1" git-storm
}

# set_up REQUIREMENTS_FILE: leaves the interpreter's path in STORM_PYTHON, for this shell and its children.
set_up() {
  local requirements=$1 python
  if [[ -n "${STORM_PYTHON:-}" ]]; then
    [[ "$STORM_PYTHON" == [!/]*/* ]] && export STORM_PYTHON=$PWD/$STORM_PYTHON # scripts change the folder
    has_packages "$STORM_PYTHON" "$requirements" ||
      fail "STORM_PYTHON=$STORM_PYTHON: is no Python or lacks packages: run '$STORM_PYTHON -m pip install -r $requirements'"
    return
  fi
  python=$(active_python)
  if [[ "${CI:-}" == true ]] || ! has_packages "$python" "$requirements"; then
    make_venv "$requirements"
    python="$STORM_ROOT/.venv/bin/python"
  fi
  export STORM_PYTHON=$python
  if [[ "$STORM_PYTHON" == "$STORM_ROOT/.venv/bin/python" && "${VIRTUAL_ENV:-}" != "$STORM_ROOT/.venv" ]]; then
    say "using $STORM_ROOT/.venv; to type python commands yourself: source $STORM_ROOT/.venv/bin/activate"
  else
    say "using $STORM_PYTHON"
  fi
}

make_venv() {
  local requirements=$1 base
  if [[ "${CI:-}" != true ]] && is_ready "$requirements"; then return; fi
  base=$(base_python) || exit 2
  take_lock "$base"
  if [[ "${CI:-}" == true ]] || ! is_ready "$requirements"; then
    install_packages "$base" "$requirements"
  fi
  release_lock
}

write_lock() {
  local lock="$STORM_ROOT/requirements.lock" versions print_versions='
import json, sys
found = [each["metadata"] for each in json.load(sys.stdin)["install"]]
for each in sorted(found, key=lambda each: each["name"].lower()):
    print(each["name"] + "==" + each["version"].split("+")[0])'
  is_locked_python "$STORM_PYTHON" || fail "$lock is made with Python $LOCKED_PYTHON: name one with STORM_PYTHON"
  versions=$("$STORM_PYTHON" -m pip install --quiet --dry-run --ignore-installed --report - -c "$lock" \
    -r "$STORM_ROOT/requirements-dev.txt" -r "$STORM_ROOT/requirements-sweep.txt" |
    "$STORM_PYTHON" -c "$print_versions") ||
    fail "$lock contradicts the requirements, see above: remove such lines and try again"
  printf '%s\n' "$(head -n 1 "$lock")" "$versions" >"$lock"
}

# Says in one line, with exit code 2, that there is an NVIDIA card that PyTorch cannot use.
check_card() {
  command -v nvidia-smi >/dev/null || [[ -e /proc/driver/nvidia/version ]] || return 0
  (cd -- "$STORM_ROOT" && "$STORM_PYTHON" -c \
    'import utils; utils.run_cli(lambda arguments: print("setup: training will use", utils.resolve_device("auto")))')
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  set -uo pipefail
  case "$*" in
    "") set_up requirements.txt ;;
    --dev) set_up requirements-dev.txt ;;
    --lock)
      set_up requirements.txt
      write_lock
      exit
      ;;
    *) fail "usage: ./setup.sh [--dev | --lock]" ;;
  esac
  check_card
fi
