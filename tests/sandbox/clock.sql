-- The sandbox's clock: private.clock() plus an offset that PUT /_sandbox/clock sets. Run as supabase_admin, after the migrations.
create schema sandbox;
create table sandbox.clock (offset_by interval not null);
insert into sandbox.clock values ('0');
grant usage on schema sandbox to postgres;
grant select on sandbox.clock to postgres;

set role postgres;
create or replace function private.clock() returns timestamptz
language sql stable set search_path = '' as $$ select now() + (select offset_by from sandbox.clock) $$;
reset role;
