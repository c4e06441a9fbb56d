-- The sandbox's clock: the database's own, off by as much as we like. Replaces private.clock(), which is now() in production
-- and the one source of time of all SQL. Runs as superuser, after the migrations.

create schema sandbox;

create table sandbox.clock (
  only_row  boolean primary key default true check (only_row),
  offset_by interval not null
);
insert into sandbox.clock (offset_by) values ('0');

-- Whoever may ask production's clock may ask this one, no matter whose rights the call runs with.
grant usage on schema sandbox to public;
grant select on sandbox.clock to public;

-- `replace` keeps what the migration decided: the owner, and who may execute it.
create or replace function private.clock() returns timestamptz
language sql stable set search_path = '' as 'select now() + (select offset_by from sandbox.clock)';
