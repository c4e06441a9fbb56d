-- The rights of every function, table, view and sequence in `public` and `private` of a database that holds these
-- migrations and nothing else. Rules, not lists: they hold for later migrations, too.
-- Run by `supabase test db` (Docker), or by pg_prove: `make database-check`.

begin;
create extension if not exists pgtap with schema extensions;
select * from no_plan();

create temporary view our_functions as
  select p.oid, p.oid::regprocedure::text as name, n.nspname as schema, p.proname, p.prosecdef, p.proconfig, p.proowner
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname in ('public', 'private')
    and not exists (select from pg_depend d
                    where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e');

create temporary view our_relations as
  select c.oid, n.nspname || '.' || c.relname as name, c.relkind, c.relrowsecurity, c.reloptions
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    and not exists (select from pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e');

create temporary view strangers (role) as
  values ('public'), ('anon'), ('authenticated'), ('authenticator'), ('supabase_auth_admin');

-- ---------------------------------------------------------------------------------------------- functions

select ok((select count(*) from our_functions where schema = 'public') >= 20, 'there are functions to look at');

-- Security Advisor 0028 and 0029, which the CLI's advisors lack.
select is_empty(format('select name from our_functions where has_function_privilege(%L, oid, ''execute'')', role),
                role || ' may execute none of our functions')
from strangers;

select is_empty($$ select name from our_functions
                   where schema = 'public' and not has_function_privilege('service_role', oid, 'execute') $$,
                'service_role may execute every function of the API');
select is_empty($$ select name from our_functions
                   where schema = 'private' and has_function_privilege('service_role', oid, 'execute') $$,
                'service_role may execute no private function');
select is_empty($$ select name from our_functions where schema = 'public' and not prosecdef $$,
                'every function of the API runs with its owner''s rights');
select is_empty($$ select name from our_functions where not coalesce(proconfig @> array['search_path=""'], false) $$,
                'every function has an empty search_path of its own');
select is_empty($$ select name from our_functions where pg_get_userbyid(proowner) <> 'postgres' $$,
                'every function belongs to postgres');
-- private.apply_rights goes by this mark.
select is_empty($$ select name from our_functions
                   where coalesce(obj_description(oid, 'pg_proc'), '') !~ '^Call dispatcher[^:]*: ' $$,
                'every function bears the mark of the product in its comment');
select is_empty($$ select name from our_relations where relkind <> 'S'
                   and coalesce(obj_description(oid, 'pg_class'), '') !~ '^Call dispatcher[^:]*: ' $$,
                'so does every table and view');
select is_empty($$ select proname from our_functions where schema = 'public' group by proname having count(*) > 1 $$,
                'no function of the API is overloaded: the Data API could not tell them apart');

select is_empty(format('select 1 where has_schema_privilege(%L, ''private'', ''usage, create'')', role),
                role || ' may not enter private')
from (table strangers union all values ('service_role')) roles;

-- ---------------------------------------------------------------------------------------------- relations

select ok((select count(*) from our_relations where relkind = 'r') >= 7, 'there are tables to look at');
select is_empty($$ select name from our_relations where relkind in ('r', 'p') and not relrowsecurity $$,
                'every table has row level security');
select is_empty($$ select polname from pg_policy where polrelid in (select oid from our_relations) $$,
                'and no policy lets anybody through it');
select is_empty($$ select name from our_relations where relkind = 'v'
                   and not coalesce(reloptions && array['security_invoker=on', 'security_invoker=true'], false) $$,
                'every view reads with its reader''s rights');
select is_empty($$ select name from our_relations where relkind in ('m', 'f') $$,
                'there is no materialized view and no foreign table: row level security does not hold for them');

-- Security Advisor 0026 and 0027 (what pg_graphql shows) among the rest.
select is_empty(format(
  $$ select name from our_relations
     where case when relkind = 'S' then has_sequence_privilege(%1$L, oid, 'usage, select, update')
                else has_table_privilege(%1$L, oid, 'select, insert, update, delete, truncate, references, trigger')
                     or has_any_column_privilege(%1$L, oid, 'select, insert, update, references') end $$, role),
  role || ' may do nothing with any table, column, view or sequence')
from strangers;

select is_empty(
  $$ select name from our_relations
     where case when relkind = 'S' then has_sequence_privilege('service_role', oid, 'usage, select, update')
                else has_table_privilege('service_role', oid, 'insert, update, delete, truncate, references, trigger')
                     or has_any_column_privilege('service_role', oid, 'update, references') end $$,
  'service_role changes nothing but through functions');
select is_empty($$ select name from our_relations where name like 'private.%' and relkind <> 'S'
                   and has_any_column_privilege('service_role', oid, 'select, insert') $$,
                'service_role does not look into private');
select is(
  (select string_agg(r.name || '.' || a.attname, ' ' order by r.name, a.attname)
   from our_relations r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
   where r.relkind <> 'S' and has_column_privilege('service_role', r.oid, a.attnum, 'insert')),
  'public.outbound_call_jobs.dedupe_key public.outbound_call_jobs.due_at public.outbound_call_jobs.first_name '
  || 'public.outbound_call_jobs.metadata public.outbound_call_jobs.phone_number public.outbound_call_jobs.signup_mode '
  || 'public.outbound_call_jobs.user_id',
  'but for a plain insert of a job, without a word on how it stands');
select is_empty($$ select rolname from pg_roles
                   where rolname in ('anon', 'authenticated', 'authenticator', 'supabase_auth_admin')
                     and (rolsuper or rolbypassrls) $$,
                'none of them passes row level security by');

select * from finish();
rollback;
