-- What a Supabase project holds before its first migration, as far as this product can touch it: roles, grants, auth.users.
-- Sources: supabase/postgres (migrations/db), supabase/cli (globals.sql, start.go), supabase/auth (migrations).
--
-- Two parts are stand-ins and not the real thing, for the real ones are C extensions: `net` for pg_net 0.20 (queues; somebody
-- else must post) and `vault` for supabase_vault 0.3 (stores secrets in PLAIN TEXT). Names, signatures and rights are theirs.
--
-- Runs as the superuser supabase_admin, in one transaction, once per database. Roles belong to the whole server, so they
-- may be there already. Reads two settings: sandbox.password (of every role that may log in) and
-- sandbox.old_default_grants (on: as projects were before 2026-05-30 / 2026-10-30).

-- ------------------------------------------------------------------------------------------------ roles

do $$
declare
  v_role text;
begin
  foreach v_role in array array['postgres', 'anon', 'authenticated', 'service_role', 'authenticator', 'supabase_auth_admin'] loop
    if not exists (select from pg_roles where rolname = v_role) then
      execute format('create role %I', v_role);
    end if;
  end loop;
  foreach v_role in array array['postgres', 'authenticator', 'supabase_auth_admin'] loop
    execute format('alter role %I login password %L', v_role, current_setting('sandbox.password'));
  end loop;
  -- Owner of the database, as on the hosted platform: so it may create schemas and trusted extensions.
  execute format('alter database %I owner to postgres', current_database());
end
$$;

-- The hosted `postgres` is no superuser: migrations that need one fail here as they would there.
alter role postgres nosuperuser createdb createrole replication bypassrls;
alter role anon nologin noinherit;
alter role authenticated nologin noinherit;
alter role service_role nologin inherit bypassrls;
alter role authenticator noinherit;
alter role supabase_auth_admin noinherit createrole;

grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role to postgres;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;
alter role supabase_auth_admin set search_path = auth;

-- ------------------------------------------------------------------------------------------------ schemas and grants

create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role;
grant all on schema extensions to postgres;

grant all on schema public to postgres;
grant usage on schema public to anon, authenticated, service_role;

alter default privileges for role postgres in schema public
  grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on functions to postgres, anon, authenticated, service_role;

-- The platform's own statements, no more: truncate, references and trigger on tables, and update on sequences, stay granted.
do $$
begin
  if not current_setting('sandbox.old_default_grants')::boolean then
    alter default privileges for role postgres in schema public
      revoke select, insert, update, delete on tables from anon, authenticated, service_role;
    alter default privileges for role postgres in schema public
      revoke usage, select on sequences from anon, authenticated, service_role;
    alter default privileges for role postgres in schema public
      revoke execute on functions from anon, authenticated, service_role;
  end if;
end
$$;

-- ------------------------------------------------------------------------------------------------ auth

create schema auth;
grant all on schema auth to supabase_auth_admin;
-- Since 2025-04-21 nobody else may create anything here; triggers on auth.users and keys to it are allowed.
grant usage on schema auth to postgres, anon, authenticated, service_role;

create table auth.users (
  instance_id                 uuid,
  id                          uuid primary key,
  aud                         varchar(255),
  role                        varchar(255),
  email                       varchar(255),
  encrypted_password          varchar(255),
  email_confirmed_at          timestamptz,
  invited_at                  timestamptz,
  confirmation_token          varchar(255),
  confirmation_sent_at        timestamptz,
  recovery_token              varchar(255),
  recovery_sent_at            timestamptz,
  email_change_token_new      varchar(255),
  email_change                varchar(255),
  email_change_sent_at        timestamptz,
  last_sign_in_at             timestamptz,
  raw_app_meta_data           jsonb,
  raw_user_meta_data          jsonb,
  is_super_admin              boolean,
  created_at                  timestamptz,
  updated_at                  timestamptz,
  phone                       text unique default null,
  phone_confirmed_at          timestamptz,
  phone_change                text default '',
  phone_change_token          varchar(255) default '',
  phone_change_sent_at        timestamptz,
  confirmed_at                timestamptz generated always as (least(email_confirmed_at, phone_confirmed_at)) stored,
  email_change_token_current  varchar(255) default '',
  email_change_confirm_status smallint default 0 check (email_change_confirm_status between 0 and 2),
  banned_until                timestamptz,
  reauthentication_token      varchar(255) default '',
  reauthentication_sent_at    timestamptz,
  is_sso_user                 boolean not null default false,
  deleted_at                  timestamptz,
  is_anonymous                boolean not null default false
);
create unique index users_email_partial_key on auth.users (email) where not is_sso_user;
create index users_instance_id_idx on auth.users (instance_id);
create index users_instance_id_email_idx on auth.users (instance_id, lower(email));
create index users_is_anonymous_idx on auth.users (is_anonymous);

alter table auth.users owner to supabase_auth_admin;
alter table auth.users enable row level security;
grant all on auth.users to postgres;  -- the right to create triggers among them
grant select on auth.users to postgres with grant option;

-- A claim of the request's token, in PostgREST's newer or older way of handing it over.
create function auth.jwt() returns jsonb
language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim', true), ''),
                  nullif(current_setting('request.jwt.claims', true), ''))::jsonb
$$;

create function auth.uid() returns uuid
language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
                  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;

create function auth.role() returns text
language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''),
                  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
$$;

create function auth.email() returns text
language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.email', true), ''),
                  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email')
$$;

alter function auth.jwt() owner to supabase_auth_admin;
alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
alter function auth.email() owner to supabase_auth_admin;

-- ------------------------------------------------------------------------------------------------ net: a stand-in for pg_net

create schema net;

-- Unlogged like pg_net's: a crash of the server empties both.
create unlogged table net.http_request_queue (
  id                   bigserial,
  method               text not null,
  url                  text not null,
  headers              jsonb,
  body                 bytea,
  timeout_milliseconds int not null
);

create unlogged table net._http_response (
  id           bigint,
  status_code  int,
  content_type text,
  headers      jsonb,
  content      text,
  timed_out    boolean,
  error_msg    text,
  created      timestamptz not null default now()
);
create index on net._http_response (created);

create function net._urlencode(p_text text) returns text
language sql immutable strict set search_path = '' as $$
  select coalesce(string_agg(
    case when c ~ '^[A-Za-z0-9._~-]$' then c
         else upper(regexp_replace(encode(convert_to(c, 'UTF8'), 'hex'), '(..)', '%\1', 'g')) end, '' order by n), '')
  from regexp_split_to_table(p_text, '') with ordinality as t(c, n)
$$;

-- Queues a request, and says so to whoever listens on the channel "pg_net": at commit, as the real one wakes its worker.
-- Errors (P0001): a content type other than application/json, a null body.
create function net.http_post(
  url                  text,
  body                 jsonb default '{}',
  params               jsonb default '{}',
  headers              jsonb default '{"Content-Type": "application/json"}',
  timeout_milliseconds int default 5000
) returns bigint
language plpgsql as $$
declare
  v_type  text;
  v_query text;
  v_id    bigint;
begin
  select h.value into v_type from jsonb_each_text(coalesce(headers, '{}')) h where lower(h.key) = 'content-type' limit 1;
  if v_type is null then
    headers := headers || '{"Content-Type": "application/json"}';
  elsif v_type <> 'application/json' then
    raise exception 'Content-Type header must be "application/json"';
  end if;
  if body is null then
    raise exception 'body must not be null';
  end if;
  select string_agg(net._urlencode(p.key) || '=' || net._urlencode(p.value), '&') into v_query
  from jsonb_each_text(params) p;
  insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)
  values ('POST',
          http_post.url || coalesce(case when position('?' in http_post.url) > 0 then '&' else '?' end || v_query, ''),
          http_post.headers, convert_to(http_post.body::text, 'UTF8'), http_post.timeout_milliseconds)
  returning id into v_id;
  perform pg_notify('pg_net', '');
  return v_id;
end
$$;

-- Since 0.12 it runs with the caller's rights, so every role holds these: what is sent through pg_net, every role can read.
grant usage on schema net to public;
grant all on all tables in schema net to public;
grant all on all sequences in schema net to public;

-- ------------------------------------------------------------------------------------------------ vault: a stand-in, plain text

create schema vault;

create table vault.secrets (
  id          uuid primary key default gen_random_uuid(),
  name        text,
  description text not null default '',
  secret      text not null,  -- the real one holds ciphertext here
  key_id      uuid,
  nonce       bytea,
  created_at  timestamptz not null default now(),
  updated_at  timestamptz not null default now()
);
comment on table vault.secrets is 'A stand-in: these secrets are stored in plain text.';
create unique index on vault.secrets (name) where name is not null;

create view vault.decrypted_secrets as
  select id, name, description, secret, secret as decrypted_secret, key_id, nonce, created_at, updated_at
  from vault.secrets;

create function vault.create_secret(
  new_secret text, new_name text default null, new_description text default '', new_key_id uuid default null
) returns uuid
language sql security definer set search_path = '' as $$
  insert into vault.secrets (secret, name, description) values (new_secret, new_name, new_description) returning id
$$;

create function vault.update_secret(
  secret_id uuid, new_secret text default null, new_name text default null, new_description text default null,
  new_key_id uuid default null
) returns void
language sql security definer set search_path = '' as $$
  update vault.secrets
  set secret = coalesce(new_secret, secret), name = coalesce(new_name, name),
      description = coalesce(new_description, description), updated_at = now()
  where id = secret_id
$$;

revoke all on all functions in schema vault from public;
grant usage on schema vault to postgres with grant option;
grant select, delete on vault.secrets, vault.decrypted_secrets to postgres with grant option;
grant execute on all functions in schema vault to postgres with grant option;
grant usage on schema vault to service_role;
grant select, delete on vault.secrets, vault.decrypted_secrets to service_role;
grant execute on all functions in schema vault to service_role;
