-- The guards that the promises rest on are there, and these lists are complete: what a migration adds must be listed.
-- Run by `supabase test db` (Docker), or by pg_prove: `make database-check`.

begin;
create extension if not exists pgtap with schema extensions;
select * from no_plan();

create temporary view our_tables as
  select oid from pg_class
  where relnamespace in ('public'::regnamespace, 'private'::regnamespace) and relkind in ('r', 'p')
    and obj_description(oid, 'pg_class') like 'Call dispatcher%';

-- ---------------------------------------------------------------------------------------------- triggers

create temporary view our_triggers as
  select t.tgrelid::regclass::text as on_table, t.tgname::text as name, p.proname::text as function, t.tgenabled
  from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where not t.tgisinternal and (p.pronamespace = 'private'::regnamespace or t.tgrelid in (select oid from our_tables));

select set_eq('select on_table, name, function from our_triggers', $$ values
  ('auth.users',         'on_auth_user_created_onboarding',         'on_auth_user_changed'),
  ('auth.users',         'on_auth_user_phone_changed_onboarding',   'on_auth_user_changed'),
  ('auth.users',         'on_auth_user_deleted_onboarding',         'on_auth_user_deleted'),
  ('auth.users',         'on_auth_user_marked_deleted_onboarding',  'on_auth_user_deleted'),
  ('outbound_call_jobs', 'complete_call_job',                       'complete_call_job'),
  ('outbound_call_jobs', 'finish_call_job',                         'finish_call_job'),
  ('outbound_call_jobs', 'keep_open_call_job',                      'keep_open_call_job'),
  ('outbound_call_jobs', 'note_call_result',                        'note_call_result'),
  ('call_opt_outs',      'note_opt_out_result',                     'note_opt_out_result'),
  ('outbound_call_jobs', 'on_outbound_call_job_created',            'on_outbound_call_job_created'),
  ('outbound_call_jobs', 'remember_call_job',                       'remember_call_job'),
  ('private.call_settings', 'remember_pause',                       'remember_pause') $$,
  'these are our triggers');
select is_empty($$ select name from our_triggers where tgenabled <> 'O' $$, 'every trigger is on');
select is_empty($$ select proname from pg_proc
                   where pronamespace = 'private'::regnamespace and prorettype = 'trigger'::regtype
                     and proname not in (select function from our_triggers) $$,
                'every trigger function has its trigger');
select is_empty($$ select proname from pg_proc where pronamespace = 'private'::regnamespace
                   and prorettype = 'trigger'::regtype and not prosecdef $$,
                'every trigger function runs with its owner''s rights');
-- A sign-up waits half a second for us, not longer.
select is_empty($$ select p.proname from pg_proc p join our_triggers t on t.function = p.proname
                   where (t.on_table = 'auth.users' or t.name = 'on_outbound_call_job_created')
                     and not coalesce(p.proconfig @> array['lock_timeout=500ms'], false) $$,
                'no trigger of a sign-up waits for a lock longer than half a second');

-- ---------------------------------------------------------------------------------------------- constraints

-- Those with a name of their own; c: check, x: exclusion, p: primary key, u: unique, f: foreign key.
select set_eq($$ select conrelid::regclass::text, conname::text, contype::text from pg_constraint
                 where conrelid in (select oid from our_tables) and contype <> 'n'
                   and (contype <> 'c' or conname !~ ('^' || split_part(conrelid::regclass::text, '.', -1) || '_')) $$,
              $$ values
  ('outbound_call_jobs',     'outbound_call_jobs_pkey',            'p'),
  ('outbound_call_jobs',     'one_job_per_key_and_hour',           'x'),
  ('outbound_call_jobs',     'final_jobs_are_finished',            'c'),
  ('outbound_call_jobs',     'open_jobs_are_due',                  'c'),
  ('outbound_call_jobs',     'a_call_needs_a_number',              'c'),
  ('outbound_call_jobs',     'a_call_needs_an_attempt',            'c'),
  ('outbound_call_jobs',     'queued_jobs_are_canceled_at_once',   'c'),
  ('outbound_call_attempts', 'outbound_call_attempts_pkey',        'p'),
  ('outbound_call_attempts', 'outbound_call_attempts_job_id_fkey', 'f'),
  ('outbound_call_attempts', 'outbound_call_attempts_call_sid_key', 'u'),
  ('outbound_call_attempts', 'open_attempts_have_a_number',        'c'),
  ('outbound_call_attempts', 'open_attempts_are_not_closed',       'c'),
  ('outbound_call_attempts', 'a_taken_call_has_a_sid',             'c'),
  ('outbound_call_attempts', 'a_doubt_has_a_time',                 'c'),
  ('outbound_call_answers',  'outbound_call_answers_pkey',         'p'),
  ('outbound_call_answers',  'outbound_call_answers_job_id_fkey',  'f'),
  ('call_opt_outs',          'call_opt_outs_pkey',                 'p'),
  ('private.calling_codes',  'calling_codes_pkey',                 'p'),
  ('private.call_settings',  'call_settings_pkey',                 'p'),
  ('private.call_settings',  'a_pause_has_a_cause',                'c'),
  ('private.call_results',   'call_results_pkey',                  'p'),
  ('private.call_results',   'due_results_have_not_ended',         'c'),
  ('private.missed_signups', 'missed_signups_pkey',                'p'),
  ('private.call_counts',    'call_counts_pkey',                   'p'),
  ('private.call_history',   'call_history_pkey',                  'p'),
  ('private.call_history',   'call_history_job_id_fkey',           'f'),
  ('private.deleted_calls',  'deleted_calls_pkey',                 'p'),
  ('private.deleted_users',  'deleted_users_pkey',                 'p') $$,
  'these are our constraints');
select is_empty($$ select conname from pg_constraint
                   where conrelid in (select oid from our_tables) and not convalidated $$,
                'every constraint holds for every row');
select is_empty($$ select conname from pg_constraint where contype = 'f' and confrelid = 'auth.users'::regclass
                   and conrelid in (select oid from our_tables) $$,
                'nothing of ours refers to auth.users: no sign-up and no deletion waits for us');

-- ---------------------------------------------------------------------------------------------- indexes

create temporary table wanted (name text, definition text, purpose text);
insert into wanted values
  ('outbound_call_jobs_to_dial', '\(due_at, id\) WHERE \(status = ''queued''', 'the claim to dial, in its order'),
  ('outbound_call_jobs_open', '\(due_at, id\) WHERE .*dialing.*in_doubt.*calling', 'the claim to follow up'),
  ('outbound_call_jobs_number', '\(phone_e164\)', 'opt_out'),
  ('outbound_call_jobs_finished', '\(finished_at\) WHERE \(finished_at IS NOT NULL\)', 'prune_call_jobs'),
  ('outbound_call_jobs_user', '\(user_id\)$', 'the deletion of a user'),
  ('outbound_call_attempts_one_open_per_number',
   '^CREATE UNIQUE INDEX .*\(phone_e164\) WHERE .*started.*in_doubt.*accepted', 'one open attempt per number'),
  ('outbound_call_attempts_one_open_per_job',
   '^CREATE UNIQUE INDEX .*\(job_id\) WHERE .*started.*in_doubt.*accepted', 'one open attempt per job'),
  ('outbound_call_attempts_job', '\(job_id, number\)$', 'the foreign key'),
  ('outbound_call_attempts_per_number', '\(phone_e164, started_at\) WHERE', 'the cap per number'),
  ('outbound_call_attempts_per_prefix', 'left.*phone_e164.*started_at\) WHERE', 'the cap per prefix'),
  ('outbound_call_attempts_per_day', '\(started_at\) WHERE', 'the cap per day'),
  ('outbound_call_attempts_uncounted', '\(started_at\) WHERE', 'the statistics of calls that no cap counts'),
  ('outbound_call_attempts_in_doubt', '\(doubted_at\) WHERE .*in_doubt', 'the statistics of doubts'),
  ('outbound_call_attempts_to_end', '\(end_due_at\) WHERE .*duplicate', 'the calls that are one too many'),
  ('call_opt_outs_recent', '\(opted_out_at\)$', 'the statistics'),
  ('private.call_results_due', '\(due_at, seq\) WHERE .*due', 'the claim to tell, in its order'),
  ('private.call_results_order', '\(subject, seq\) WHERE .*due', 'the order of a subject''s events'),
  ('private.call_results_state', '\(state, created_at\)$', 'prune_call_jobs and the statistics'),
  ('private.call_results_user', '\(user_id\)$', 'the deletion of a user'),
  ('private.call_history_job', '\(job_id, id\)$', 'the story of a job');

select matches(coalesce((select pg_get_indexdef(to_regclass(name))), 'no such index'), definition,
               name || ' serves ' || purpose) from wanted;
select set_eq($$ select i.indexrelid::regclass::text from pg_index i
                 where i.indrelid in (select oid from our_tables)
                   and not exists (select from pg_constraint c where c.conindid = i.indexrelid and c.contype <> 'f') $$,
              'select name from wanted', 'these are our indexes');
select is_empty($$ select indexrelid::regclass::text from pg_index where not indisvalid or not indisready $$,
                'no index is half built');

select * from finish();
rollback;
