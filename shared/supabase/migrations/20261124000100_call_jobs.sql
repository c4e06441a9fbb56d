-- One polite onboarding call for each sign-up: never twice, never lost. The map of the whole design:
--
--   sign-up -> outbound_call_jobs -> signed webhook (a hint) -> claim -> one request to Twilio -> its outcome
--                                    sweep, each minute (the guarantee) --^
--
--   Tables     public.outbound_call_jobs       one person to be called; their sign-up, as they typed it
--              public.outbound_call_attempts   one try, from from_e164 to phone_e164; written with the claim, before Twilio is asked
--              public.outbound_call_answers    what they pressed, by question
--              public.call_opt_outs            numbers that are never called again
--              private.missed_signups          sign-ups whose job could not be written; the sweep heals them
--              private.deleted_calls           SIDs that Twilio still lists, of attempts that are gone
--              private.deleted_users           users that are gone, until their numbers are erased, too
--              private.call_settings           one row: paused or not, verified phones only or not, when the next call may go out
--   Views      public.outbound_call_overview   each job in one row, for the table editor
--              public.call_stats, call_stats_per_hour
--
--   A job      queued -> dialing -> calling -> completed | failed | canceled
--                           \-> in_doubt -^ \-> queued again, while attempts are left
--   An attempt started -> accepted -> ended
--              started -> refused
--              started -> in_doubt -> accepted | absent       any -> duplicate (a second live call: it is ended)
--              absent -> accepted, when it shows up after all and the job has not gone on
--              An attempt that was given back (release) is deleted: nothing came of it.
--
--   In the order of a job's life, with the file where each stands. Those marked * are made anew in a later file,
--   record_call_status in "answers", the others in "seeing".
--     on_auth_user_created_onboarding   on_auth_user_phone_confirmed_onboarding (triggers)
--     heal_onboarding_calls   require_verified_phones*                                         (signup)
--     enqueue_call_job*   complete_call_job, keep_open_call_job (triggers)                     (call_jobs)
--     on_outbound_call_job_created (trigger): the webhook                                      (signup)
--     claim_call_job   set_call_number   release_call_job                                      (claim)
--     accept_call   refuse_call   doubt_call   put_off_call   record_call_status*              (outcomes)
--     claim_open_call   settle_call                                                            (settle)
--     record_call_answer   summarize_call_job (trigger)                                        (answers)
--     cancel_call_job*   retry_call_job*   opt_out*   pause_calls*   resume_calls*             (operate)
--     call_job_stats*   call_stats_by_hour                                                     (operate, seeing)
--     on_auth_user_deleted_onboarding, on_auth_user_marked_deleted_onboarding (triggers)
--     prune_call_jobs                                                                          (forget)
--     check_call_setup: what the doctor asks                                                   (doctor)
--
--   Everywhere: one function is one step and one transaction; locks are taken in the order job, attempt, settings
--   (private.lock_attempt, which gives both rows as a private.locked_attempt); time is private.clock(); Python hands in durations
--   in seconds (p_..._s) and policy, SQL guards the facts.

do $$
begin
  if pg_catalog.to_regclass('public.outbound_call_jobs') is not null
     or exists (select from pg_catalog.pg_trigger
                where tgname = 'on_auth_user_created_onboarding' and tgrelid = pg_catalog.to_regclass('auth.users')) then
    raise exception 'this database still holds the table outbound_call_jobs, or the trigger on_auth_user_created_onboarding, of an earlier version: nothing was changed'
      using hint = 'Follow "Coming from the polling worker" in the README: stop the worker, set its table aside, push again, carry its rows over.';
  end if;
end
$$;

create extension if not exists btree_gist with schema extensions;  -- text in an exclusion constraint

create schema if not exists private;  -- yours may be there already

-- The only source of time in these functions. The sandbox replaces it; nothing else may.
create function private.clock() returns timestamptz
language sql stable set search_path = '' as $$ select now() $$;

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
  cancel_code      text,
  reason_code      text,
  reason           text,
  dedupe_key       text not null,
  dedupe_window    tstzrange not null,
  created_at       timestamptz not null,
  finished_at      timestamptz,
  constraint final_jobs_are_finished check ((finished_at is not null) = (status in ('completed', 'failed', 'canceled'))),
  constraint open_jobs_are_due check ((due_at is not null) = (finished_at is null)),
  constraint a_call_needs_a_number check (phone_e164 is not null or status not in ('dialing', 'in_doubt', 'calling')),
  constraint a_call_needs_an_attempt check (attempts > 0 or status not in ('dialing', 'in_doubt', 'calling')),
  constraint queued_jobs_are_canceled_at_once check (not (cancel_requested and status = 'queued')),
  -- A true sliding hour: 10:59 and 11:01 are the same hour. No race, and no lock that a sign-up could wait for.
  constraint one_job_per_key_and_hour exclude using gist (dedupe_key with =, dedupe_window with &&)
);

comment on table public.outbound_call_jobs is 'One person to be called. Insert (user_id, phone_number) and they are.';
comment on column public.outbound_call_jobs.phone_number is 'As it was typed; never dialed.';
comment on column public.outbound_call_jobs.phone_e164 is 'What is dialed, fenced and capped. Null until the dispatcher has parsed what was typed.';
comment on column public.outbound_call_jobs.due_at is 'When somebody must look at this job next: to dial it, at the end of a lease, or to ask Twilio.';
comment on column public.outbound_call_jobs.attempts is 'Attempts spent. Those that were given back are not among them.';
comment on column public.outbound_call_jobs.cancel_code is 'Who wants it canceled, if not somebody by hand: opted_out, user_deleted, paused.';
comment on column public.outbound_call_jobs.reason is 'Why it stands as it does, in words; reason_code is the stable form.';

-- The two claims, each with the index that serves it, in exactly its order: then a claim costs the same however many
-- finished and future rows there are. One index over all states, or another order, and it does not.
create index outbound_call_jobs_to_dial on public.outbound_call_jobs (due_at, id) where status = 'queued';
create index outbound_call_jobs_open on public.outbound_call_jobs (due_at, id) where status in ('dialing', 'in_doubt', 'calling');
create index outbound_call_jobs_user on public.outbound_call_jobs (user_id);
create index outbound_call_jobs_open_number on public.outbound_call_jobs (phone_e164) where finished_at is null;  -- for opt_out
create index outbound_call_jobs_finished on public.outbound_call_jobs (finished_at) where finished_at is not null;  -- for prune_call_jobs

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
  answered_by   text,
  duration_s    int,
  sip_code      int,
  error_code    text,
  error_message text,
  started_at    timestamptz not null,
  doubted_at    timestamptz,
  accepted_at   timestamptz,
  end_due_at    timestamptz,
  put_off_until timestamptz,
  closed_at     timestamptz,
  constraint open_attempts_have_a_number check (phone_e164 is not null or state not in ('started', 'in_doubt', 'accepted')),
  constraint open_attempts_are_not_closed check (state = 'duplicate' or (closed_at is null) = (state in ('started', 'in_doubt', 'accepted'))),
  constraint a_taken_call_has_a_sid check ((call_sid is not null) = (state in ('accepted', 'ended', 'duplicate'))),
  constraint a_doubt_has_a_time check (state <> 'in_doubt' or doubted_at is not null)
);

comment on table public.outbound_call_attempts is 'One try at a job. Its id travels in the URLs that Twilio calls.';
comment on column public.outbound_call_attempts.phone_e164 is 'Erased a day after its user was deleted.';
comment on column public.outbound_call_attempts.from_e164 is 'Our number. Where a call is in doubt, it is looked for among the calls from this one.';
comment on column public.outbound_call_attempts.put_off_until is
  'Of a call that still waits in Twilio''s queue and must not ring now: it is being, or was, canceled there; its job is due again then.';
comment on column public.outbound_call_attempts.end_due_at is 'Of a duplicate only: when the sweep must end it again.';

-- What makes a call in Twilio's list unambiguous, and a second ring impossible: one open attempt per number and per job.
create unique index outbound_call_attempts_one_open_per_number on public.outbound_call_attempts (phone_e164)
  where state in ('started', 'in_doubt', 'accepted');
create unique index outbound_call_attempts_one_open_per_job on public.outbound_call_attempts (job_id)
  where state in ('started', 'in_doubt', 'accepted');
create index outbound_call_attempts_job on public.outbound_call_attempts (job_id, number);

-- What the caps count: every call that rang, may ring or may have rung. Each with the index that a claim reads.
create index outbound_call_attempts_per_number on public.outbound_call_attempts (phone_e164, started_at)
  where state not in ('refused', 'absent') and put_off_until is null;
create index outbound_call_attempts_per_prefix on public.outbound_call_attempts (left(phone_e164, -4), started_at)
  where state not in ('refused', 'absent') and put_off_until is null;
create index outbound_call_attempts_per_day on public.outbound_call_attempts (started_at)
  where state not in ('refused', 'absent') and put_off_until is null;
create index outbound_call_attempts_to_end on public.outbound_call_attempts (end_due_at) where state = 'duplicate' and closed_at is null;

create table public.call_opt_outs (
  phone_e164   text primary key check (phone_e164 ~ '^\+[1-9][0-9]{6,14}$'),
  opted_out_at timestamptz not null,
  how          text not null
);
comment on table public.call_opt_outs is 'Numbers that are never called again. They outlive their users, their jobs and the retention. Written by opt_out.';

create table private.missed_signups (
  user_id  uuid primary key,
  error    text not null,
  noted_at timestamptz not null
);
comment on table private.missed_signups is 'Sign-ups whose job could not be written. heal_onboarding_calls, called by each sweep, tries again.';

create table private.deleted_calls (
  call_sid   text primary key,
  deleted_at timestamptz not null
);
comment on table private.deleted_calls is 'SIDs of deleted attempts, for two days: Twilio still lists the call, and it is no other attempt''s.';

create table private.deleted_users (
  user_id    uuid primary key,
  deleted_at timestamptz not null,
  forgotten  boolean not null  -- their jobs are canceled, names and metadata are gone; what is left are numbers
);
comment on table private.deleted_users is 'For a day or so: what they typed is gone at once, their numbers when no cap and no fence needs them any more.';

create table private.call_settings (
  only_row     boolean primary key default true check (only_row),
  paused_until timestamptz,
  pause_reason text,
  stopped      boolean not null default false,  -- paused by hand: what waits in Twilio's queue is canceled, too
  halts        int not null default 0,      -- in a row; each makes the next pause longer
  probe_until  timestamptz,                 -- after a halt one job goes first: nobody else until then
  next_call_at timestamptz not null default '-infinity',
  verified_phones_only boolean not null default false
);
insert into private.call_settings default values;
comment on table private.call_settings is 'What SQL must know on its own. Every claim to dial updates this row last, so a pause holds from the moment it commits.';

alter table public.outbound_call_jobs enable row level security;
alter table public.outbound_call_attempts enable row level security;
alter table private.missed_signups enable row level security;
alter table private.call_settings enable row level security;
alter table private.deleted_calls enable row level security;
alter table private.deleted_users enable row level security;
alter table public.call_opt_outs enable row level security;

-- New projects grant nothing by default and older ones grant everything: so revoke all, then grant what is meant.
revoke all on public.outbound_call_jobs, public.outbound_call_attempts, public.call_opt_outs from public, anon, authenticated, service_role;
revoke all on private.missed_signups, private.call_settings, private.deleted_calls, private.deleted_users from public, anon, authenticated, service_role;
revoke all on sequence public.outbound_call_jobs_id_seq from public, anon, authenticated, service_role;
grant select on public.outbound_call_jobs, public.outbound_call_attempts, public.call_opt_outs to service_role;
grant insert (user_id, phone_number, first_name, signup_mode, metadata, due_at, dedupe_key) on public.outbound_call_jobs to service_role;

-- Called before each insert, so that a plain insert of (user_id, phone_number) is enough. A number that already is E.164
-- is taken as it stands; what else was typed is parsed by the dispatcher.
create function private.complete_call_job() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  new.created_at := coalesce(new.created_at, private.clock());
  if new.status = 'queued' then
    new.due_at := coalesce(new.due_at, private.clock());
  end if;
  if new.phone_e164 is null and new.phone_number ~ '^\+[1-9][0-9]{6,14}$' then
    new.phone_e164 := new.phone_number;
  end if;
  new.dedupe_key := coalesce(new.dedupe_key, 'onboarding:' || new.user_id);
  new.dedupe_window := tstzrange(new.created_at, new.created_at + interval '1 hour');
  return new;
end
$$;

create trigger complete_call_job before insert on public.outbound_call_jobs
  for each row execute function private.complete_call_job();

-- Called before each delete. A call that is under way, or may be, is ended first: the delete becomes a request to cancel,
-- and the row stays until its attempt is closed.
create function private.keep_open_call_job() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if old.status in ('dialing', 'in_doubt', 'calling') then
    update public.outbound_call_jobs
    set cancel_requested = true, due_at = case when status = 'calling' then private.clock() else due_at end
    where id = old.id;
    raise warning 'call job % is %: it is being canceled and was not deleted', old.id, old.status;
    return null;
  end if;
  if exists (select from public.outbound_call_attempts where job_id = old.id and state = 'duplicate' and closed_at is null) then
    raise warning 'call job % has a second call that is being ended: it was not deleted', old.id;
    return null;
  end if;
  delete from private.deleted_calls where deleted_at < private.clock() - interval '2 days';
  insert into private.deleted_calls (call_sid, deleted_at)
  select call_sid, private.clock() from public.outbound_call_attempts
  where job_id = old.id and call_sid is not null and started_at > private.clock() - interval '2 days'
  on conflict do nothing;
  return old;
end
$$;

create trigger keep_open_call_job before delete on public.outbound_call_jobs
  for each row execute function private.keep_open_call_job();

-- Called by the user's own code: queue one call, politely. Within an hour of another job with the same key it makes none
-- and answers with that one. -> {"job_id", "created"}
create function public.enqueue_call_job(
  p_user_id      uuid,
  p_phone_number text,
  p_signup_mode  text default 'default',
  p_first_name   text default null,
  p_metadata     jsonb default '{}',
  p_not_before   timestamptz default null,
  p_dedupe_key   text default null
) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_id  bigint;
  v_key text := coalesce(p_dedupe_key, 'onboarding:' || p_user_id);
begin
  insert into public.outbound_call_jobs (user_id, phone_number, signup_mode, first_name, metadata, due_at, dedupe_key)
  values (p_user_id, p_phone_number, coalesce(p_signup_mode, 'default'), p_first_name, coalesce(p_metadata, '{}'), p_not_before, v_key)
  on conflict do nothing
  returning id into v_id;
  if found then
    return jsonb_build_object('job_id', v_id, 'created', true);
  end if;
  select j.id into v_id from public.outbound_call_jobs j
  where j.dedupe_key = v_key and j.dedupe_window && tstzrange(private.clock(), private.clock() + interval '1 hour')
  order by j.id desc limit 1;
  return jsonb_build_object('job_id', v_id, 'created', false);
end
$$;

revoke all on function private.clock(), private.complete_call_job(), private.keep_open_call_job() from public, anon, authenticated, service_role;
revoke all on function public.enqueue_call_job(uuid, text, text, text, jsonb, timestamptz, text) from public, anon, authenticated;
grant execute on function public.enqueue_call_job(uuid, text, text, text, jsonb, timestamptz, text) to service_role;
