#!/usr/bin/env bash
# Gets the tools of tests/database_check: the Supabase CLI, by npm, pinned by hash, into .venv/supabase-cli; and, as root on
# Debian, plpgsql_check, pgTAP and pg_cron for its Postgres. Never fails: what could not be had is said here, and the tests that
# need it are skipped with that reason. Each step has an end.
set -uo pipefail
cd "$(dirname "$0")"
venv=$(cd ../../.venv && pwd) || exit 1
cli=$venv/supabase-cli

say() { echo "database-check: $*"; }
is_debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
install() { # as apt-get may: no questions, no waiting for ever behind another apt
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$venv/apt.log" 2>&1
}

major=$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -1)
if [ -f "/usr/share/postgresql/${major:-none}/extension/plpgsql_check.control" ] &&
   [ -f "/usr/share/postgresql/$major/extension/pgtap.control" ] && [ -f "/usr/share/postgresql/$major/extension/pg_cron.control" ] &&
   command -v pg_prove >/dev/null; then
  say "Debian's Postgres $major has plpgsql_check, pgTAP and pg_cron"
elif ! is_debian_root; then
  say "no plpgsql_check, pgTAP or pg_cron: they are installed as root on Debian only"
else
  [ -n "$(apt-cache policy postgresql 2>/dev/null | grep -v 'Candidate: (none)' | grep Candidate)" ] || timeout 120 apt-get update -qq
  major=${major:-$(apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')}
  # No server of Debian's own: the tests start theirs.
  mkdir -p /etc/postgresql-common/createcluster.d
  [ -d "/usr/lib/postgresql/${major:-none}" ] || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/database-check.conf
  if install "postgresql-${major:-}" "postgresql-${major:-}"-{plpgsql-check,pgtap,cron} libtap-parser-sourcehandler-pgtap-perl; then
    say "installed plpgsql_check, pgTAP and pg_cron for Debian's Postgres $major"
  else
    say "Debian's packages could not be installed: $(tail -1 "$venv/apt.log")"
  fi
fi

if cmp -s package-lock.json "$cli/package-lock.json" && [ -x "$cli/node_modules/@supabase/cli-linux-x64/bin/supabase" ]; then
  say "the Supabase CLI is there"
elif [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  say "no Supabase CLI: the one that is pinned here runs on Linux on x86-64"
else
  if ! command -v npm >/dev/null && is_debian_root; then
    install npm || say "npm could not be installed: $(tail -1 "$venv/apt.log")"
  fi
  if ! command -v npm >/dev/null; then
    say "no Supabase CLI: there is no npm"
  else
    mkdir -p "$cli" && cp package.json package-lock.json "$cli"
    if (cd "$cli" && timeout 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >npm.log 2>&1); then
      say "installed the Supabase CLI"
    else
      rm -f "$cli/package-lock.json"
      say "the Supabase CLI could not be installed: $(grep -m 1 . "$cli/npm.log")"
    fi
  fi
fi
exit 0
