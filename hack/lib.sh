# What hack/try, hack/test and hack/bench have in common: packages and the environment. Sourced, not run.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*"; }

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "run it as root: a container runtime's work needs it"; }

# need_packages NAME…: install those Debian or Ubuntu packages that are missing
need_packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q '^install ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# find_python: the first system interpreter that is new enough, as $python
find_python() {
    local candidate
    for candidate in /usr/bin/python3 /usr/bin/python3.1[1-9]; do
        [ -x "$candidate" ] || continue
        "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { python=$candidate; return; }
    done
    need_packages python3.11 python3.11-venv python3.11-dev
    python=/usr/bin/python3.11
}

# need_environment EXTRA: an environment of our own in .venv with the package's dependencies and those of the extra;
# nothing is installed into the system's Python
need_environment() {
    local wanted stamp=.venv/.ocirt-$1
    need_packages python3-venv python3-dev gcc libc6-dev libcap-dev
    find_python
    wanted=$("$python" -I -V; sha256sum pyproject.toml)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "making the environment .venv"
    [ -x .venv/bin/python ] || "$python" -I -m venv .venv
    .venv/bin/python -I -m pip install --quiet --upgrade pip wheel
    "$python" -I - "$1" <<'EOF' | xargs -d '\n' .venv/bin/python -I -m pip install --quiet --use-pep517
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"].get(sys.argv[1], [])))
EOF
    printf '%s' "$wanted" > "$stamp"
}
