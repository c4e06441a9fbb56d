-- The guards that the promises rest on are there: triggers, constraints, and the indexes that keep a claim's cost flat.
-- Run by `supabase test db` (Docker), or by pg_prove: `make database-check`.

begin;
create extension if not exists pgtap with schema extensions;
select * from no_plan();

-- ---------------------------------------------------------------------------------------------- triggers

select trigger_is(t.schema, t.on_table, t.name, 'private', t.function, t.schema || '.' || t.on_table || ' has ' || t.name)
from (values
  ('auth',   'users',              'on_auth_user_created_onboarding',         'on_auth_user_created'),
  ('auth',   'users',              'on_auth_user_phone_confirmed_onboarding', 'on_auth_user_created'),
  ('auth',   'users',              'on_auth_user_deleted_onboarding',         'on_auth_user_deleted'),
  ('auth',   'users',              'on_auth_user_marked_deleted_onboarding',  'on_auth_user_deleted'),
  ('public', 'outbound_call_jobs', 'complete_call_job',                       'complete_call_job'),
  ('public', 'outbound_call_jobs', 'keep_open_call_job',                      'keep_open_call_job'),
  ('public', 'outbound_call_jobs', 'on_outbound_call_job_created',            'on_outbound_call_job_created')
) as t (schema, on_table, name, function);

select is_empty($$ select tgname from pg_trigger where not tgisinternal and tgenabled <> 'O'
                   and tgrelid in ('auth.users'::regclass, 'public.outbound_call_jobs'::regclass) $$, 'and every trigger is on');

-- A sign-up waits half a second for us, not longer, and asks nobody for rights.
select is_definer('private', f.name, array[]::text[], f.name || ' runs with its owner''s rights')
from (values ('on_auth_user_created'), ('on_auth_user_deleted'), ('on_outbound_call_job_created')) as f (name);
select ok(p.proconfig @> array['lock_timeout=500ms'], p.proname || ' waits for no lock longer than half a second')
from pg_proc p where p.pronamespace = 'private'::regnamespace
  and p.proname in ('on_auth_user_created', 'on_auth_user_deleted', 'on_outbound_call_job_created');

-- ---------------------------------------------------------------------------------------------- constraints

select ok(exists (select from pg_constraint where conname = c.name and conrelid = c.on_table::regclass and contype = c.kind and convalidated),
          c.on_table || ' has ' || c.name)
from (values
  ('public.outbound_call_jobs',     'one_job_per_key_and_hour',          'x'),
  ('public.outbound_call_jobs',     'final_jobs_are_finished',           'c'),
  ('public.outbound_call_jobs',     'open_jobs_are_due',                 'c'),
  ('public.outbound_call_jobs',     'a_call_needs_a_number',             'c'),
  ('public.outbound_call_jobs',     'a_call_needs_an_attempt',           'c'),
  ('public.outbound_call_jobs',     'queued_jobs_are_canceled_at_once',  'c'),
  ('public.outbound_call_attempts', 'open_attempts_have_a_number',       'c'),
  ('public.outbound_call_attempts', 'open_attempts_are_not_closed',      'c'),
  ('public.outbound_call_attempts', 'a_taken_call_has_a_sid',            'c'),
  ('public.outbound_call_attempts', 'a_doubt_has_a_time',                'c')
) as c (on_table, name, kind);

select col_is_pk('public', 'outbound_call_jobs', 'id', 'a job has an id');
select col_is_pk('public', 'outbound_call_attempts', 'id', 'an attempt has an id');
select col_is_pk('public', 'call_opt_outs', 'phone_e164', 'a number opts out once');
select col_is_unique('public', 'outbound_call_attempts', array['call_sid'], 'a SID belongs to one attempt');
select fk_ok('public', 'outbound_call_attempts', 'job_id', 'public', 'outbound_call_jobs', 'id', 'an attempt belongs to a job');
select is_empty($$ select conname from pg_constraint where contype = 'f' and confrelid = 'auth.users'::regclass
                   and conrelid in (select oid from pg_class where relnamespace in ('public'::regnamespace, 'private'::regnamespace)) $$,
                'nothing of ours refers to auth.users: no sign-up and no deletion waits for us');

-- ---------------------------------------------------------------------------------------------- indexes

select matches(coalesce((select pg_get_indexdef(to_regclass(i.name))), 'no such index'), i.definition, i.name || ' serves ' || i.what)
from (values
  ('public.outbound_call_jobs_to_dial',                     '\(due_at, id\) WHERE \(status = ''queued''',              'the claim to dial, in its order'),
  ('public.outbound_call_jobs_open',                        '\(due_at, id\) WHERE .*dialing.*in_doubt.*calling',       'the claim to look after, in its order'),
  ('public.outbound_call_jobs_open_number',                 '\(phone_e164\) WHERE \(finished_at IS NULL\)',            'opt_out'),
  ('public.outbound_call_jobs_finished',                    '\(finished_at\) WHERE \(finished_at IS NOT NULL\)',       'prune_call_jobs'),
  ('public.outbound_call_jobs_user',                        '\(user_id\)$',                                            'the deletion of a user'),
  ('public.outbound_call_attempts_one_open_per_number',     '^CREATE UNIQUE INDEX .*\(phone_e164\) WHERE .*started.*in_doubt.*accepted', 'the fence: one open attempt per number'),
  ('public.outbound_call_attempts_one_open_per_job',        '^CREATE UNIQUE INDEX .*\(job_id\) WHERE .*started.*in_doubt.*accepted',     'one open attempt per job'),
  ('public.outbound_call_attempts_job',                     '\(job_id, number\)$',                                     'the foreign key'),
  ('public.outbound_call_attempts_per_number',              '\(phone_e164, started_at\) WHERE',                        'the cap per number'),
  ('public.outbound_call_attempts_per_prefix',              'left.*phone_e164.*started_at\) WHERE',                    'the cap per prefix'),
  ('public.outbound_call_attempts_per_day',                 '\(started_at\) WHERE',                                    'the cap per day'),
  ('public.outbound_call_attempts_to_end',                  '\(end_due_at\) WHERE .*duplicate',                        'the calls that are one too many')
) as i (name, definition, what);

select is_empty($$ select indexrelid::regclass::text from pg_index where not indisvalid or not indisready $$, 'no index is half built');

select * from finish();
rollback;
