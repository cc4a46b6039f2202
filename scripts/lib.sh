# Sourced by the other scripts: where we are, a virtual environment, and a stopwatch.
# shellcheck shell=bash

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
cd "$ROOT"

die() {
    echo "error: $*" >&2
    exit 1
}

now() { # seconds since some moment, with tenths where this bash knows them
    echo "${EPOCHREALTIME:-$(date +%s)}"
}

seconds_since() {
    LC_ALL=C awk -v from="${1/,/.}" -v to="$(now)" 'BEGIN { sub(",", ".", to); printf "%.1f", to - from }'
}

find_python() { # prints the first Python that is new enough and works
    local candidate
    for candidate in ${ZMESH_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "zmesh needs Python 3.11 or newer: apt-get install python3 python3-venv (or set ZMESH_PYTHON to one)"
}

make_venv() {
    local python
    python="$(find_python)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            die "$python cannot make virtual environments: apt-get install python3-venv"
        fi
        echo "installing python3-venv …" >&2
        { apt-get update && apt-get install -y --no-install-recommends python3-venv; } >/dev/null 2>&1 || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python still cannot make virtual environments: apt-get install python3-venv"
    fi
    "$python" -m venv "$ROOT/.venv" || die "could not make $ROOT/.venv"
}

# ensure_venv [extra,extra]: .venv holds zmesh from this checkout, with these extras, as constraints.txt says.
# Costs nothing when it already does: .venv/zmesh-stamp has a line per set of extras.
ensure_venv() {
    local extras="${1:-}" sum stamp="$ROOT/.venv/zmesh-stamp"
    "$PYTHON" -c "import pip" 2>/dev/null || make_venv
    sum="$({ echo "$ROOT"; cat pyproject.toml constraints.txt; } | cksum | tr ' ' '-')"
    if grep -qxF "$sum [$extras]" "$stamp" 2>/dev/null; then
        return
    fi
    echo "installing zmesh${extras:+ with $extras} into .venv …" >&2
    "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}" ||
        die "pip could not install what zmesh needs (see above)"
    { grep -F "$sum " "$stamp" 2>/dev/null || true; echo "$sum [$extras]"; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

# step NAME COMMAND…: one line when it works, all of its output when it does not.
step() {
    local name="$1" from output
    shift
    from="$(now)"
    output="$(mktemp)"
    if ! "$@" >"$output" 2>&1; then
        cat "$output"
        rm -f "$output"
        die "$name failed: $*"
    fi
    rm -f "$output"
    printf '%-28s ok %6s s\n' "$name" "$(seconds_since "$from")"
}
