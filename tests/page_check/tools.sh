#!/usr/bin/env bash
# Gets the tools of tests/page_check: Playwright's Python package into .venv, pinned by hash; axe-core and twilio-node, by npm,
# pinned by hash, into .venv/page-check; and, as root on Debian, Chromium. Never fails: what could not be had is said here, and
# the tests that need it are skipped with that reason. Each step has an end. Playwright's own browsers are not downloaded.
set -uo pipefail
cd "$(dirname "$0")"
venv=$(cd ../../.venv && pwd) || exit 1
packages=$venv/page-check

say() { echo "page-check: $*"; }
is_debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
install() { # as apt-get may: no questions, no waiting for ever behind another apt
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$venv/apt.log" 2>&1
}

if command -v chromium >/dev/null; then
  say "Chromium is there"
elif ! is_debian_root; then
  say "no Chromium: it is installed as root on Debian only"
else
  [ -n "$(apt-cache policy chromium 2>/dev/null | grep -v 'Candidate: (none)' | grep Candidate)" ] || timeout 120 apt-get update -qq
  if install chromium; then say "installed Debian's Chromium"; else say "Chromium could not be installed: $(tail -1 "$venv/apt.log")"; fi
fi

if cmp -s requirements.txt "$packages/requirements.txt"; then
  say "Playwright is there"
elif timeout 300 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt </dev/null >"$venv/pip.log" 2>&1; then
  mkdir -p "$packages" && cp requirements.txt "$packages"
  say "installed Playwright"
else
  say "Playwright could not be installed: $(tail -1 "$venv/pip.log")"
fi

if cmp -s package-lock.json "$packages/package-lock.json" && [ -d "$packages/node_modules/axe-core" ]; then
  say "axe-core and twilio-node are there"
else
  if ! command -v npm >/dev/null && is_debian_root; then
    install npm || say "npm could not be installed: $(tail -1 "$venv/apt.log")"
  fi
  if ! command -v npm >/dev/null; then
    say "no axe-core, no twilio-node: there is no npm"
  else
    mkdir -p "$packages" && cp package.json package-lock.json "$packages"
    if (cd "$packages" && timeout 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >npm.log 2>&1); then
      say "installed axe-core and twilio-node"
    else
      rm -f "$packages/package-lock.json"
      say "axe-core and twilio-node could not be installed: $(grep -m 1 . "$packages/npm.log")"
    fi
  fi
fi
exit 0
