# For the tools.sh of database_check and page_check, which source it in their own folders. Nothing here fails: what could not be
# had is said, and the tests that need it are skipped with that reason. Each step has an end.
set -uo pipefail
venv=$(cd ../../.venv && pwd) || exit 1

say() { echo "$(basename "$PWD" | tr _ -): $*"; }
is_debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
install() { # as apt-get may: no questions, no waiting for ever behind another apt
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$venv/apt.log" 2>&1
}
update_if_unknown() { # new machines have no list of packages
  [ -n "$(apt-cache policy "$1" 2>/dev/null | grep -v 'Candidate: (none)' | grep Candidate)" ] || timeout 120 apt-get update -qq
}
npm_packages() { # NAME FOLDER CHECK: the packages of ./package-lock.json, pinned by hash, into FOLDER; CHECK is a path in it
  if cmp -s package-lock.json "$2/package-lock.json" && [ -e "$2/node_modules/$3" ]; then
    say "there: $1"
    return
  fi
  if ! command -v npm >/dev/null && is_debian_root; then
    install npm || say "npm could not be installed: $(tail -1 "$venv/apt.log")"
  fi
  if ! command -v npm >/dev/null; then
    say "missing: $1: there is no npm"
    return
  fi
  mkdir -p "$2" && cp package.json package-lock.json "$2"
  if (cd "$2" && timeout 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >npm.log 2>&1); then
    say "installed: $1"
  else
    rm -f "$2/package-lock.json"
    say "could not be installed: $1: $(grep -m 1 . "$2/npm.log")"
  fi
}
