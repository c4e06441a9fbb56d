#!/usr/bin/env bash
# Gets the tools of tests/page_check: Playwright's Python package into .venv, pinned by hash; axe-core and twilio-node, by npm, into
# .venv/page-check; and, as root on Debian, Chromium. Playwright's own browsers are not downloaded.
cd "$(dirname "$0")"
. ../tools.sh
packages=$venv/page-check

if command -v chromium >/dev/null; then
  say "Chromium is there"
elif ! is_debian_root; then
  say "no Chromium: it is installed as root on Debian only"
else
  update_if_unknown chromium
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

npm_packages "axe-core and twilio-node" "$packages" axe-core
exit 0
