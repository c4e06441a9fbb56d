-- One polite onboarding call for each sign-up: never twice, never lost. The map of the whole design:
--
--   sign-up -> outbound_call_jobs -> signed webhook (a hint) -> claim -> one request to Twilio -> its outcome
--                                    sweep, each minute (the guarantee) --^
--
--   A job      queued -> dialing -> calling -> completed | failed | canceled
--                           \-> in_doubt -^ \-> queued again, while attempts are left
--   An attempt started -> accepted -> ended
--              started -> refused
--              started -> in_doubt -> accepted | absent       any -> duplicate (a second live call: it is ended)
--              absent -> accepted, if the call shows up later and the job has not gone on
--              A released attempt is deleted: Twilio was not asked, or took nothing.
--
--   Files, in the order of a job's life. A test holds this list to the database; triggers are marked (t), views (v).
--     tables      outbound_call_jobs  outbound_call_attempts  outbound_call_answers  call_opt_outs
--                 missed_signups  deleted_calls  deleted_users  call_settings  call_counts
--                 counted_calls (v)  complete_call_job (t)  finish_call_job (t)  keep_open_call_job (t)  apply_rights
--     numbers     calling_codes
--     signup      on_auth_user_created_onboarding (t)  on_auth_user_phone_changed_onboarding (t)
--                 heal_onboarding_calls  require_verified_phones  enqueue_call_job
--                 on_outbound_call_job_created (t): the webhook
--     claim       claim_call_job  set_call_number  release_call_job
--     outcomes    accept_call  refuse_call  doubt_call  put_off_call  record_call_status
--     follow_up   claim_open_call  settle_call
--     answers     record_call_answer
--     results     call_results  note_call_result (t)  note_opt_out_result (t)  claim_call_result  record_call_result
--                 retell
--     by_hand     cancel_call_job  retry_call_job  opt_out  pause_calls  resume_calls  confirm_restore
--     statistics  call_job_stats  call_stats_by_hour  call_stats (v)  call_stats_per_hour (v)
--                 outbound_call_overview (v)
--     explain     call_history  remember_call_job (t)  remember_pause (t)  explain_call_job  waiting_calls
--     privacy     on_auth_user_deleted_onboarding (t)  on_auth_user_marked_deleted_onboarding (t)  prune_call_jobs
--     doctor      check_call_setup
--
--   Everywhere: one function is one step and one transaction. Locks are taken in the order job, attempt, settings
--   (private.lock_attempt). Time is private.clock(). Python passes durations in seconds (p_..._s) and policy.
--   Every object of ours has a comment that begins with "Call dispatcher". Rights and removal go by that mark.

do $$
begin
  if pg_catalog.to_regclass('public.outbound_call_jobs') is not null
     or exists (select from pg_catalog.pg_trigger where tgname = 'on_auth_user_created_onboarding'
                                                     and tgrelid = pg_catalog.to_regclass('auth.users')) then
    raise exception 'this database still holds the table outbound_call_jobs, or the trigger'
                    ' on_auth_user_created_onboarding, of an earlier version: nothing was changed'
      using hint = 'Follow "Coming from the polling worker" (shared/docs/polling-worker.md): stop the worker, set its'
                   ' table aside, push again, carry its rows over.';
  end if;
end $$;

create extension if not exists btree_gist with schema extensions;  -- text in an exclusion constraint

create schema if not exists private;  -- the user's project may have it already

create function private.clock() returns timestamptz language sql stable set search_path = '' as $$ select now() $$;
comment on function private.clock is 'Call dispatcher: the only source of time here. The sandbox alone replaces it.';

create function private.raise_if(p_wrong boolean, p_message text) returns void
language plpgsql stable set search_path = '' as $$
begin
  if p_wrong then
    raise exception '%', p_message;
  end if;
end $$;
comment on function private.raise_if is 'Call dispatcher: the error of a function that is called with wrong arguments.';

create function private.database_id() returns text language plpgsql stable set search_path = '' as $$
begin
  return concat_ws('-', (pg_control_system()).system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
                   (select oid from pg_database where datname = current_database()),
                   'public.outbound_call_jobs'::regclass::oid);
exception when insufficient_privilege then
  return 'public.outbound_call_jobs'::regclass::oid;
end $$;
comment on function private.database_id is
  'Call dispatcher: which database this is. A dump that is loaded elsewhere, and pg_upgrade, change the system'
  ' identifier; each recovery from a backup the timeline; a copy within the cluster the ids of database and table.';

create table public.outbound_call_jobs (
  id               bigint generated always as identity primary key,
  user_id          uuid not null,
  phone_number     text not null check (length(phone_number) between 1 and 64),
  phone_e164       text check (phone_e164 ~ '^\+[1-9][0-9]{6,14}$'),
  first_name       text check (length(first_name) <= 100),
  signup_mode      text not null default 'default' check (length(signup_mode) between 1 and 64),
  metadata         jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
  status           text not null default 'queued'
                   check (status in ('queued', 'dialing', 'in_doubt', 'calling', 'completed', 'failed', 'canceled')),
  due_at           timestamptz,
  attempts         int not null default 0 check (attempts >= 0),
  cancel_requested boolean not null default false,
  cancel_code      text check (cancel_code in ('opted_out', 'user_deleted', 'paused')),
  reason_code      text, reason text,
  dedupe_key       text not null, dedupe_window tstzrange not null,
  created_at       timestamptz not null, finished_at timestamptz,
  qualification    jsonb,
  database_id      text not null,
  constraint final_jobs_are_finished
    check ((finished_at is not null) = (status in ('completed', 'failed', 'canceled'))),
  constraint open_jobs_are_due check ((due_at is not null) = (finished_at is null)),
  constraint a_call_needs_a_number check (phone_e164 is not null or status not in ('dialing', 'in_doubt', 'calling')),
  constraint a_call_needs_an_attempt check (attempts > 0 or status not in ('dialing', 'in_doubt', 'calling')),
  constraint queued_jobs_are_canceled_at_once check (not (cancel_requested and status = 'queued')),
  -- While the job is open, and a true sliding hour after it: 10:59 and 11:01 are the same hour. No race, and no lock
  -- that a sign-up could wait for.
  constraint one_job_per_key_and_hour exclude using gist (dedupe_key with =, dedupe_window with &&)
);
comment on table public.outbound_call_jobs is
  'Call dispatcher: one job is one person to call. A plain insert of (user_id, phone_number) is enough.';
comment on column public.outbound_call_jobs.phone_number is 'As it was typed; never dialed.';
comment on column public.outbound_call_jobs.phone_e164 is 'The number that is dialed; null until it is parsed.';
comment on column public.outbound_call_jobs.due_at is 'When to dial, the end of the lease, or when to ask Twilio next.';
comment on column public.outbound_call_jobs.attempts is 'Attempts spent. Released attempts do not count.';
comment on column public.outbound_call_jobs.cancel_code is 'opted_out, user_deleted, paused; null when by hand.';
comment on column public.outbound_call_jobs.reason is 'reason_code, which is the stable form, in words.';
comment on column public.outbound_call_jobs.database_id is 'Where it was queued. Elsewhere it needs confirm_restore().';
comment on column public.outbound_call_jobs.qualification is
  'Once the job is over, if its call was answered: {"answers": {"<question>": "<meaning>", ...}, "opted_out": true if'
  ' in the call, "answered_by": Twilio''s word, or null}';

-- Each claim has one index in exactly its order. Its cost then does not grow with finished and future rows.
create index outbound_call_jobs_to_dial on public.outbound_call_jobs (due_at, id) where status = 'queued';
create index outbound_call_jobs_open on public.outbound_call_jobs (due_at, id)
  where status in ('dialing', 'in_doubt', 'calling');
create index outbound_call_jobs_user on public.outbound_call_jobs (user_id);
create index outbound_call_jobs_number on public.outbound_call_jobs (phone_e164);  -- for opt_out
create index outbound_call_jobs_finished on public.outbound_call_jobs (finished_at) where finished_at is not null;

create table public.outbound_call_attempts (
  id            uuid primary key,
  job_id        bigint not null references public.outbound_call_jobs (id) on delete cascade,
  number        int not null check (number > 0),
  phone_e164    text check (phone_e164 ~ '^\+[1-9][0-9]{6,14}$'),
  from_e164     text,
  state         text not null default 'started'
                check (state in ('started', 'in_doubt', 'accepted', 'ended', 'refused', 'absent', 'duplicate')),
  call_sid      text unique,
  call_status   text check (call_status in ('queued', 'initiated', 'ringing', 'in-progress',
                                            'completed', 'busy', 'no-answer', 'failed', 'canceled')),
  answered_by   text, duration_s int, sip_code int,
  error_code    text, error_message text,
  started_at    timestamptz not null, doubted_at timestamptz, accepted_at timestamptz,
  end_due_at    timestamptz,
  put_off_until timestamptz,
  later_at      timestamptz,
  closed_at     timestamptz,
  constraint open_attempts_have_a_number
    check (phone_e164 is not null or state not in ('started', 'in_doubt', 'accepted')),
  constraint open_attempts_are_not_closed
    check (state = 'duplicate' or (closed_at is null) = (state in ('started', 'in_doubt', 'accepted'))),
  constraint a_taken_call_has_a_sid check ((call_sid is not null) = (state in ('accepted', 'ended', 'duplicate'))),
  constraint a_doubt_has_a_time check (state <> 'in_doubt' or doubted_at is not null)
);
comment on table public.outbound_call_attempts is
  'Call dispatcher: one try at a job, written with the claim, before Twilio is asked. Twilio''s URLs bear its id.';
comment on column public.outbound_call_attempts.phone_e164 is 'Erased a day after its user was deleted.';
comment on column public.outbound_call_attempts.from_e164 is 'Our number. A doubt looks among the calls from it.';
comment on column public.outbound_call_attempts.put_off_until is
  'Set when a call in Twilio''s queue must not ring now: it is canceled there, and its job is due again at this time.';
comment on column public.outbound_call_attempts.later_at is
  'Set when the person asked in this call for a later one: when the call ends, its job is due again at this time.';
comment on column public.outbound_call_attempts.end_due_at is 'Only for a duplicate: when the sweep ends it again.';

-- One open attempt per number and per job. It makes a call in Twilio's list unambiguous, and a second ring impossible.
create unique index outbound_call_attempts_one_open_per_number on public.outbound_call_attempts (phone_e164)
  where state in ('started', 'in_doubt', 'accepted');
create unique index outbound_call_attempts_one_open_per_job on public.outbound_call_attempts (job_id)
  where state in ('started', 'in_doubt', 'accepted');
create index outbound_call_attempts_job on public.outbound_call_attempts (job_id, number);

-- The caps count every call that rang, may ring or may have rung. Each cap has the index that a claim reads.
create index outbound_call_attempts_per_number on public.outbound_call_attempts (phone_e164, started_at)
  where state not in ('refused', 'absent') and put_off_until is null;
create index outbound_call_attempts_per_prefix on public.outbound_call_attempts (left(phone_e164, -4), started_at)
  where state not in ('refused', 'absent') and put_off_until is null;
create index outbound_call_attempts_per_day on public.outbound_call_attempts (started_at)
  where state not in ('refused', 'absent') and put_off_until is null;
create index outbound_call_attempts_uncounted on public.outbound_call_attempts (started_at)  -- for call_stats_by_hour
  where state in ('refused', 'absent') or put_off_until is not null;
create index outbound_call_attempts_in_doubt on public.outbound_call_attempts (doubted_at) where state = 'in_doubt';
create index outbound_call_attempts_to_end on public.outbound_call_attempts (end_due_at)
  where state = 'duplicate' and closed_at is null;

create view private.counted_calls with (security_invoker = true) as
select * from public.outbound_call_attempts where state not in ('refused', 'absent') and put_off_until is null;
comment on view private.counted_calls is 'Call dispatcher: calls that rang, may ring or may have rung, for the caps.';

create table public.outbound_call_answers (
  job_id      bigint not null references public.outbound_call_jobs (id) on delete cascade,
  question    text not null check (length(question) between 1 and 64),
  meaning     text not null check (length(meaning) between 1 and 100),
  digits      text check (digits ~ '^[0-9*#A-D]{1,32}$'),
  attempt_id  uuid not null,  -- no reference: each release of an attempt would have to look here
  answered_at timestamptz not null,
  heard       text check (length(heard) between 1 and 500),
  primary key (job_id, question)
);
comment on table public.outbound_call_answers is 'Call dispatcher: answers by question; the last one wins.';
comment on column public.outbound_call_answers.meaning is 'The key''s "means" in the script, or an agent''s word.';
comment on column public.outbound_call_answers.digits is 'The key; null for an agent''s answer.';
comment on column public.outbound_call_answers.heard is 'The words in place of the key; null for a pressed key.';

create table public.call_opt_outs (
  phone_e164   text primary key check (phone_e164 ~ '^\+[1-9][0-9]{6,14}$'),
  opted_out_at timestamptz not null,
  how          text not null
);
create index call_opt_outs_recent on public.call_opt_outs (opted_out_at);
comment on table public.call_opt_outs is 'Call dispatcher: numbers that are never called again, whatever is deleted.';

create table private.missed_signups (
  user_id   uuid primary key,
  error     text not null, noted_at timestamptz not null,
  phone_was text  -- of a change of the phone: the number before it
);
comment on table private.missed_signups is
  'Call dispatcher: sign-ups, and changes of a phone, that no job could follow yet. heal_onboarding_calls tries again.';

create table private.deleted_calls (call_sid text primary key, deleted_at timestamptz not null);
comment on table private.deleted_calls is
  'Call dispatcher: SIDs of deleted attempts, kept two days. Twilio still lists them; no other attempt may take them.';

create table private.deleted_users (
  user_id    uuid primary key,
  deleted_at timestamptz not null,
  forgotten  boolean not null  -- jobs are canceled, names and metadata are gone; only the numbers are left
);
comment on table private.deleted_users is
  'Call dispatcher: deleted users. Their text is erased at once, their numbers a day later, when no cap needs them.';

create table private.call_settings (
  only_row     boolean primary key default true check (only_row),
  paused_until timestamptz,
  paused_by    text check (paused_by in ('hand', 'halt', 'calls_per_day', 'restore')),
  pause_reason text,
  halts        int not null default 0,      -- in a row; each makes the next pause longer
  probe_until  timestamptz,                 -- after a halt one job goes first; the others wait until then
  next_call_at timestamptz not null default '-infinity',
  verified_phones_only boolean not null default false,
  confirmed_id text,                        -- database_id() at the last confirm_restore()
  lost_seen    bigint not null default 1,   -- the value of lost_signups at the last look through auth.users
  lost_after   uuid,                        -- during such a look: the last user that was looked at
  -- A number at which nobody has ever pressed a key is called at most so often in 7 days, over all jobs.
  calls_without_key int not null default 7 check (calls_without_key > 0),
  -- What an event of call_results may hold: {"number": "masked" or "full", "metadata": [keys]}. {}: none is written.
  results      jsonb not null default '{}' check (jsonb_typeof(results) = 'object'),
  constraint a_pause_has_a_cause check ((paused_until is null) = (paused_by is null))
);
insert into private.call_settings default values;
comment on table private.call_settings is
  'Call dispatcher: one row with the facts that SQL must know on its own. Each claim updates it last, to take a slot of'
  ' CALLS_PER_SECOND, so a pause holds from the moment it commits.';

create sequence private.lost_signups owned by private.call_settings.lost_seen;
comment on sequence private.lost_signups is
  'Call dispatcher: when a sign-up was last neither queued nor noted, in seconds since 1970: all tables were locked.';

create table private.call_counts (began timestamptz primary key, calls int not null) with (fillfactor = 50);
comment on table private.call_counts is 'Call dispatcher: calls by five minutes, for CALLS_PER_DAY. Kept two days.';

create function private.complete_call_job() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  new.created_at := coalesce(new.created_at, private.clock());
  if new.status = 'queued' then
    new.due_at := coalesce(new.due_at, private.clock());
  end if;
  if new.phone_e164 is null and private.is_e164(new.phone_number) then
    new.phone_e164 := new.phone_number;
  end if;
  new.signup_mode := coalesce(nullif(lower(btrim(new.signup_mode, E' \t\r\n')), ''), 'default');
  new.database_id := coalesce(new.database_id, private.database_id());
  new.dedupe_key := coalesce(new.dedupe_key, 'onboarding:' || new.user_id);
  new.dedupe_window := tstzrange(new.created_at, new.finished_at + interval '1 hour');
  return new;
end $$;
comment on function private.complete_call_job is
  'Call dispatcher: before each insert, fill in the rest. The dispatcher parses a number that is not E.164 yet.';

create trigger complete_call_job before insert on public.outbound_call_jobs
  for each row execute function private.complete_call_job();

create function private.finish_call_job() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  new.qualification := case when new.finished_at is not null and new.phone_number <> 'erased'
                            then private.qualification(new.id) end;  -- of answers
  if new.finished_at is null then
    -- A finished job goes on. A newer job that was made meanwhile keeps its own window.
    if not exists (select from public.outbound_call_jobs j
                   where j.id <> new.id and j.dedupe_key = new.dedupe_key
                     and j.dedupe_window && tstzrange(private.clock(), null)) then
      new.dedupe_window := tstzrange(private.clock(), null);
    end if;
  elsif upper_inf(old.dedupe_window) then
    new.dedupe_window := tstzrange(lower(old.dedupe_window),
                                   greatest(new.finished_at, lower(old.dedupe_window)) + interval '1 hour');
  end if;
  return new;
end $$;
comment on function private.finish_call_job is
  'Call dispatcher: when a job finishes, or goes on, write its summary (a deleted user has none) and the end of its'
  ' window. A window that has an end never grows over another job''s, so that no outcome is ever refused.';

create trigger finish_call_job before update on public.outbound_call_jobs
  for each row when ((old.finished_at is null) <> (new.finished_at is null))
  execute function private.finish_call_job();

create function private.keep_open_call_job() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if old.status in ('dialing', 'in_doubt', 'calling') then
    update public.outbound_call_jobs
    set cancel_requested = true, due_at = case when status = 'calling' then private.clock() else due_at end
    where id = old.id;
    raise warning 'call job % is %: it is being canceled and was not deleted', old.id, old.status;
    return null;
  elsif exists (select from public.outbound_call_attempts
                where job_id = old.id and state = 'duplicate' and closed_at is null) then
    raise warning 'call job % has a second call that is being ended: it was not deleted', old.id;
    return null;
  end if;
  delete from private.deleted_calls where deleted_at < private.clock() - interval '2 days';
  insert into private.deleted_calls (call_sid, deleted_at)
  select call_sid, private.clock() from public.outbound_call_attempts
  where job_id = old.id and call_sid is not null and started_at > private.clock() - interval '2 days'
  on conflict do nothing;
  return old;
end $$;
comment on function private.keep_open_call_job is
  'Call dispatcher: before each delete. It becomes a request to cancel while a call of the job may be under way.';

create trigger keep_open_call_job before delete on public.outbound_call_jobs
  for each row execute function private.keep_open_call_job();

create function private.apply_rights() returns void language plpgsql set search_path = '' as $$
declare
  v_mark constant text := '^Call dispatcher[^:]*: ';
  v_ours record;
begin
  for v_ours in
    select p.pronamespace::regnamespace::text as schema, 'function' as kind, p.oid::regprocedure::text as name,
           'execute' as api, false as unguarded
    from pg_catalog.pg_proc p where pg_catalog.obj_description(p.oid, 'pg_proc') ~ v_mark
    union all select c.relnamespace::regnamespace::text, case c.relkind when 'S' then 'sequence' else 'table' end,
           c.oid::regclass::text, case when c.relkind <> 'S' then 'select' end, c.relkind = 'r' and not c.relrowsecurity
    from pg_catalog.pg_class c
    -- The sequence of an identity column goes with its table.
    left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
                                        and d.deptype = 'i' and c.relkind = 'S'
    where c.relkind in ('r', 'v', 'S') and pg_catalog.obj_description(coalesce(d.refobjid, c.oid), 'pg_class') ~ v_mark
  loop
    execute format('revoke all on %s %s from public, anon, authenticated, service_role', v_ours.kind, v_ours.name);
    if v_ours.schema = 'public' and v_ours.api is not null then
      execute format('grant %s on %s %s to service_role', v_ours.api, v_ours.kind, v_ours.name);
    end if;
    if v_ours.unguarded then
      execute format('alter table %s enable row level security', v_ours.name);
    end if;
  end loop;
  grant insert (user_id, phone_number, first_name, signup_mode, metadata, due_at, dedupe_key)
    on public.outbound_call_jobs to service_role;
end $$;
comment on function private.apply_rights is
  'Call dispatcher: the one rule of rights; each migration ends with it. Only service_role may execute our functions in'
  ' public and read our tables and views there; nobody may use those in private. The mark "Call dispatcher" makes an'
  ' object ours; the user''s own objects in both schemas stay untouched.';

select private.apply_rights();
