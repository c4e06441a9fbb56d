#!/usr/bin/env bash
# Gets the tools of tests/database_check: the Supabase CLI, by npm, into .venv/supabase-cli; and, as root on Debian,
# plpgsql_check, pgTAP and pg_cron for its Postgres.
cd "$(dirname "$0")"
. ../tools.sh

major=$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -1)
if [ -f "/usr/share/postgresql/${major:-none}/extension/plpgsql_check.control" ] &&
   [ -f "/usr/share/postgresql/$major/extension/pgtap.control" ] && [ -f "/usr/share/postgresql/$major/extension/pg_cron.control" ] &&
   command -v pg_prove >/dev/null; then
  say "Debian's Postgres $major has plpgsql_check, pgTAP and pg_cron"
elif ! is_debian_root; then
  say "no plpgsql_check, pgTAP or pg_cron: they are installed as root on Debian only"
else
  update_if_unknown postgresql
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

if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
  npm_packages "the Supabase CLI" "$venv/supabase-cli" @supabase/cli-linux-x64/bin/supabase
else
  say "no Supabase CLI: the one that is pinned here runs on Linux on x86-64"
fi
exit 0
