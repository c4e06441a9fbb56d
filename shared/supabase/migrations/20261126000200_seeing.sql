-- Seeing what goes on, and saying by hand what should: statistics for the sweep's log and for people, clear errors, and a comment
-- on each function where Studio shows it.

set local lock_timeout = '2s';  -- rather fail, and be pushed again, than let sign-ups and callbacks wait behind us

-- What call_stats_by_hour reads of the calls that no cap counts; the others have outbound_call_attempts_per_day.
create index outbound_call_attempts_uncounted on public.outbound_call_attempts (started_at)
  where state in ('refused', 'absent') or put_off_until is not null;
create index call_opt_outs_recent on public.call_opt_outs (opted_out_at);

-- What is going on, for the sweep's log and for whoever is on call. Reads what is open and what began or ended within 24 hours,
-- by their indexes; never the rest. "calls" are counted as CALLS_PER_DAY counts them: those that rang, may ring or may have rung;
-- "answered" by a person, as far as Twilio could tell.
create or replace function public.call_job_stats() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_now constant timestamptz := private.clock();
begin
  return (select jsonb_build_object(
    'queued',          (select count(*) from public.outbound_call_jobs where status = 'queued'),
    'dialing',         (select count(*) from public.outbound_call_jobs where status = 'dialing'),
    'in_doubt',        (select count(*) from public.outbound_call_jobs where status = 'in_doubt'),
    'calling',         (select count(*) from public.outbound_call_jobs where status = 'calling'),
    'completed_24h',   f.completed,
    'failed_24h',      f.failed,
    'canceled_24h',    f.canceled,
    'failures_24h',    (select coalesce(jsonb_object_agg(coalesce(r.reason_code, 'unknown'), r.jobs), '{}')
                        from (select reason_code, count(*) as jobs from public.outbound_call_jobs
                              where status = 'failed' and finished_at > v_now - interval '24 hours' group by reason_code) r),
    'due',             (select count(*) from public.outbound_call_jobs where status = 'queued' and due_at <= v_now),
    -- A job may be inserted as due long ago; it has not waited longer than it is there.
    'oldest_due_s',    coalesce((select greatest(0, round(extract(epoch from v_now - greatest(due_at, created_at))))
                                 from public.outbound_call_jobs where status = 'queued' and due_at <= v_now order by due_at, id limit 1), 0),
    'oldest_doubt_s',  (select greatest(0, round(extract(epoch from v_now - min(doubted_at)))) from public.outbound_call_attempts
                        where state = 'in_doubt'),
    'live_duplicates', (select count(*) from public.outbound_call_attempts where state = 'duplicate' and closed_at is null),
    'duplicates_24h',  c.duplicates,
    'calls_1h',        c.calls_1h,
    'answered_1h',     c.answered_1h,
    'calls_24h',       c.calls,
    'answered_24h',    c.answered,
    'opt_outs_24h',    (select count(*) from public.call_opt_outs where opted_out_at > v_now - interval '24 hours'),
    'held_by_prefix',  (select count(*) from public.outbound_call_jobs where status = 'queued' and reason_code = 'calls_per_prefix_per_hour'),
    'missed_signups',  (select count(*) from private.missed_signups),
    'paused',          coalesce(s.paused_until > v_now, false),
    'paused_by',       case when s.paused_until > v_now then
                         case when s.stopped then 'hand' when s.pause_reason = 'CALLS_PER_DAY is reached' then 'calls_per_day' else 'halt' end end,
    'paused_until',    case when s.paused_until > v_now then s.paused_until end,
    'pause_reason',    case when s.paused_until > v_now then s.pause_reason end,
    'halts',           s.halts)
  from private.call_settings s,
    (select count(*) as calls,
            count(*) filter (where in_hour) as calls_1h,
            count(*) filter (where answered) as answered,
            count(*) filter (where answered and in_hour) as answered_1h,
            count(*) filter (where state = 'duplicate') as duplicates
     from (select state, started_at > v_now - interval '1 hour' as in_hour,
                  call_status in ('in-progress', 'completed') and coalesce(answered_by, 'human') !~ '^(machine|fax)' as answered
           from public.outbound_call_attempts
           where state not in ('refused', 'absent') and put_off_until is null and started_at > v_now - interval '24 hours') t) c,
    (select count(*) filter (where status = 'completed') as completed,
            count(*) filter (where status = 'failed') as failed,
            count(*) filter (where status = 'canceled') as canceled
     from public.outbound_call_jobs where finished_at > v_now - interval '24 hours') f
  );
end
$$;

-- The attempts that began in each of the last p_hours hours (UTC), this one first. calls: Twilio took them; they are
-- answered + not_reached + put_off + under_way + duplicates.
create function public.call_stats_by_hour(p_hours int default 48)
returns table (hour timestamptz, calls bigint, answered bigint, not_reached bigint, put_off bigint, under_way bigint, duplicates bigint,
               in_doubt bigint, refused bigint, absent bigint)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_this  constant timestamptz := date_trunc('hour', private.clock(), 'UTC');
  v_first constant timestamptz := v_this - make_interval(hours => p_hours - 1);
begin
  if p_hours is null or p_hours not between 1 and 2160 then
    raise exception 'p_hours must be between 1 and 2160';
  end if;
  return query
  select h,
         count(a.call_sid),
         count(*) filter (where a.kind = 'answered'),
         count(*) filter (where a.kind = 'not_reached'),
         count(*) filter (where a.kind = 'put_off'),
         count(*) filter (where a.kind = 'under_way'),
         count(*) filter (where a.kind = 'duplicate'),
         count(*) filter (where a.kind = 'in_doubt'),
         count(*) filter (where a.kind = 'refused'),
         count(*) filter (where a.kind = 'absent')
  from generate_series(v_this, v_first, interval '-1 hour') h
  left join (
    select date_trunc('hour', t.started_at, 'UTC') as began, t.call_sid,
           case when t.state not in ('accepted', 'ended') then t.state
                when t.call_status in ('in-progress', 'completed') and coalesce(t.answered_by, 'human') !~ '^(machine|fax)' then 'answered'
                when t.state = 'accepted' then 'under_way'
                when t.put_off_until is not null then 'put_off'
                else 'not_reached' end as kind
    from (select * from public.outbound_call_attempts
          where state not in ('refused', 'absent') and put_off_until is null and started_at >= v_first
          union all
          select * from public.outbound_call_attempts
          where (state in ('refused', 'absent') or put_off_until is not null) and started_at >= v_first) t
  ) a on a.began = h
  group by h order by h desc;
end
$$;

-- paused_until is text, because not every client can read the time 'infinity'.
create view public.call_stats with (security_invoker = true) as
select s.* from jsonb_to_record(public.call_job_stats()) as s (
  queued int, due int, oldest_due_s int, dialing int, calling int, in_doubt int, oldest_doubt_s int,
  live_duplicates int, duplicates_24h int, paused boolean, paused_by text, paused_until text, pause_reason text, halts int,
  calls_1h int, answered_1h int, calls_24h int, answered_24h int,
  completed_24h int, failed_24h int, failures_24h jsonb, canceled_24h int, opt_outs_24h int, held_by_prefix int, missed_signups int);
comment on view public.call_stats is 'What is going on now: call_job_stats() as one row.';

create view public.call_stats_per_hour with (security_invoker = true) as
select * from public.call_stats_by_hour(48);
comment on view public.call_stats_per_hour is 'The attempts that began in each of the last 48 hours, and what became of them.';

-- --- by hand ---

-- As before; what is missing or odd is named instead of left to a constraint of the table.
create or replace function public.enqueue_call_job(
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
  if p_user_id is null then
    raise exception 'p_user_id must be given: it says who is called, and once';
  end if;
  if nullif(btrim(p_phone_number), '') is null or length(p_phone_number) > 64 then
    raise exception 'p_phone_number must be given, in at most 64 characters';
  end if;
  if length(p_signup_mode) not between 1 and 64 then
    raise exception 'p_signup_mode must have 1 to 64 characters';
  end if;
  if length(p_first_name) > 100 then
    raise exception 'p_first_name must have at most 100 characters';
  end if;
  if jsonb_typeof(p_metadata) <> 'object' then
    raise exception 'p_metadata must be a JSON object';
  end if;
  if not isfinite(p_not_before) then
    raise exception 'p_not_before must be a moment, not infinity';
  end if;
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

-- As before; a missing id is named.
create or replace function public.cancel_call_job(p_job_id bigint) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.outbound_call_jobs;
begin
  if p_job_id is null then
    raise exception 'p_job_id must be given';
  end if;
  select * into v_job from public.outbound_call_jobs where id = p_job_id for update;
  if not found then
    raise exception 'there is no call job %', p_job_id;
  end if;
  if v_job.finished_at is not null then
    raise exception 'call job % is % already: there is nothing to cancel', p_job_id, v_job.status;
  end if;
  update public.outbound_call_jobs
  set status           = case when status = 'queued' then 'canceled' else status end,
      cancel_requested = status <> 'queued',
      due_at           = case status when 'queued' then null when 'dialing' then due_at else private.clock() end,
      finished_at      = case when status = 'queued' then private.clock() end,
      reason_code      = case when status = 'queued' then 'canceled' else reason_code end,
      reason           = case when status = 'queued' then 'canceled by hand' else reason end
  where id = p_job_id
  returning * into v_job;
  return v_job.status;
end
$$;

-- Dial a failed or canceled job once more, at the next sweep, whatever attempts it has spent. Refused where the person would be
-- called twice: by a newer job of the same user, or right after a call to the same number that is still open. -> "queued"
create or replace function public.retry_call_job(p_job_id bigint) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_job   public.outbound_call_jobs;
  v_other public.outbound_call_jobs;
begin
  if p_job_id is null then
    raise exception 'p_job_id must be given';
  end if;
  select * into v_job from public.outbound_call_jobs where id = p_job_id for update;
  if not found then
    raise exception 'there is no call job %', p_job_id;
  end if;
  if v_job.status not in ('failed', 'canceled') then
    raise exception 'call job % is %: only failed and canceled jobs can be retried', p_job_id, v_job.status;
  end if;
  if v_job.phone_number = 'erased' then
    raise exception 'call job % cannot be retried: its user was deleted', p_job_id;
  end if;
  if exists (select from public.call_opt_outs o where o.phone_e164 = v_job.phone_e164) then
    raise exception 'call job % cannot be retried: its number has opted out of calls', p_job_id;
  end if;
  select * into v_other from public.outbound_call_jobs j
  where j.user_id = v_job.user_id and j.id > p_job_id and j.finished_at is null order by j.id desc limit 1;
  if found then
    raise exception 'call job % cannot be retried: its user has a newer one, %, which is %', p_job_id, v_other.id, v_other.status;
  end if;
  select j.* into v_other from public.outbound_call_attempts a join public.outbound_call_jobs j on j.id = a.job_id
  where a.phone_e164 = v_job.phone_e164 and a.state in ('started', 'in_doubt', 'accepted');
  if found then
    raise exception 'call job % cannot be retried yet: a call to its number is under way, of job %, which is %', p_job_id, v_other.id, v_other.status;
  end if;
  if exists (select from public.outbound_call_attempts a
             where a.phone_e164 = v_job.phone_e164 and a.state = 'duplicate' and a.closed_at is null) then
    raise exception 'call job % cannot be retried yet: a call too many to its number is being ended', p_job_id;
  end if;
  update public.outbound_call_jobs
  set status = 'queued', due_at = private.clock(), finished_at = null, cancel_requested = false, cancel_code = null,
      reason_code = 'retried', reason = 'retried by hand'
  where id = p_job_id;
  return 'queued';
end
$$;

-- A number as people paste it, as E.164, or null. Spaces, dashes, dots, brackets, slashes and the invisible marks of address books
-- go. The country code must be there: national numbers mean another phone in each country. And "(0)" must not: it is dialed in Italy
-- and not in Britain, and a wrong guess would stop nothing.
create function private.e164(p_typed text) returns text
language sql immutable set search_path = '' as $$
  select case when bare ~ '^\+[1-9][0-9]{6,14}$' and typed !~ '\(\s*0\s*\)' then bare end
  from (select normalize(p_typed, NFKC) as typed) t,
       regexp_replace(typed, '[\s().\-/\u00ad\u200b-\u200f\u2010-\u2015\u202a-\u202e\u2060\u2066-\u2069\u2212\ufeff]', '', 'g') as bare
$$;

-- As before; reads the number as people paste it.
create or replace function public.opt_out(p_phone_number text, p_how text default 'by hand', p_attempt uuid default null) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now      constant timestamptz := private.clock();
  v_phone    constant text := private.e164(p_phone_number);
  v_canceled int;
  v_ending   int;
begin
  if v_phone is null then
    raise exception 'p_phone_number must be a number in E.164 form, such as +14155550100, without (0)';
  end if;
  insert into public.call_opt_outs (phone_e164, opted_out_at, how) values (v_phone, v_now, coalesce(p_how, 'by hand'))
  on conflict do nothing;
  -- In one order, the job of p_attempt among them: two that opt the same number out once more must not wait for each other.
  perform from public.outbound_call_jobs j where j.phone_e164 = v_phone and j.finished_at is null order by j.id for update;
  -- A claim that holds one of these jobs is waited for, and its call is ended; one that comes later sees the opt-out.
  with jobs as (
    update public.outbound_call_jobs j
    set status           = case when j.status = 'queued' then 'canceled' else j.status end,
        cancel_requested = j.status <> 'queued',
        cancel_code      = case when j.status <> 'queued' then 'opted_out' end,
        due_at           = case j.status when 'queued' then null when 'dialing' then j.due_at else v_now end,
        finished_at      = case when j.status = 'queued' then v_now end,
        reason_code      = case when j.status = 'queued' then 'opted_out' else j.reason_code end,
        reason           = case when j.status = 'queued' then private.why_canceled('opted_out') else j.reason end
    where j.phone_e164 = v_phone and j.finished_at is null
      and not exists (select from public.outbound_call_attempts a where a.id = p_attempt and a.job_id = j.id)
    returning j.status)
  select count(*) filter (where status = 'canceled'), count(*) filter (where status <> 'canceled') into v_canceled, v_ending from jobs;
  return jsonb_build_object('canceled', v_canceled, 'ending', v_ending);
end
$$;

-- As before; these three say what holds now, because in Studio an empty answer looks like none.
drop function public.pause_calls(text, timestamptz);
create function public.pause_calls(p_reason text, p_until timestamptz default 'infinity') returns text
language plpgsql security definer set search_path = '' as $$
begin
  if nullif(btrim(p_reason), '') is null then
    raise exception 'p_reason must say why: it is what everybody will see';
  end if;
  if p_until <= private.clock() then
    raise exception 'p_until must be in the future';
  end if;
  if p_until >= '9999-01-01' and isfinite(p_until) then  -- a slip of the finger, and a year that not every client can read
    raise exception 'p_until must be before the year 9999, or left out';
  end if;
  update private.call_settings
  set paused_until = coalesce(p_until, 'infinity'), pause_reason = p_reason, stopped = true where only_row;
  -- Whoever holds one of these is telling us about it just now; the sweep comes round to it in its time.
  update public.outbound_call_jobs set due_at = private.clock()
  where id in (select j.id from public.outbound_call_jobs j join public.outbound_call_attempts a on a.job_id = j.id
               where j.status = 'calling' and a.state = 'accepted' and a.call_status = 'queued'
               for update of j skip locked);
  return 'calls are paused until ' || case when isfinite(p_until) then p_until::text else 'somebody calls resume_calls()' end;
end
$$;

drop function public.resume_calls();
create function public.resume_calls() returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_was private.call_settings;
begin
  select * into v_was from private.call_settings where only_row for update;
  update private.call_settings
  set paused_until = null, pause_reason = null, stopped = false, halts = 0, probe_until = null
  where only_row;
  return case when v_was.paused_until > private.clock() then 'calls go on; they were paused: ' || v_was.pause_reason
              when v_was.halts > 0 then 'calls go on; after a halt one was to go first'
              else 'calls were not paused' end;
end
$$;

drop function public.require_verified_phones(boolean);
create function public.require_verified_phones(p_required boolean default true) returns text
language plpgsql security definer set search_path = '' as $$
begin
  if p_required is null then
    raise exception 'p_required must be true or false';
  end if;
  update private.call_settings set verified_phones_only = p_required where only_row;
  return case when p_required then 'a sign-up is called when its phone is confirmed'
              else 'a sign-up is called at once, confirmed or not' end;
end
$$;

revoke all on function private.e164(text) from public, anon, authenticated, service_role;
revoke all on function public.call_stats_by_hour(int) from public, anon, authenticated;
revoke all on function public.pause_calls(text, timestamptz) from public, anon, authenticated;
revoke all on function public.resume_calls() from public, anon, authenticated;
revoke all on function public.require_verified_phones(boolean) from public, anon, authenticated;
grant execute on function public.call_stats_by_hour(int) to service_role;
grant execute on function public.pause_calls(text, timestamptz) to service_role;
grant execute on function public.resume_calls() to service_role;
grant execute on function public.require_verified_phones(boolean) to service_role;
revoke all on public.call_stats, public.call_stats_per_hour from public, anon, authenticated, service_role;
grant select on public.call_stats, public.call_stats_per_hour to service_role;

-- What Studio shows beside each function.
comment on function public.enqueue_call_job(uuid, text, text, text, jsonb, timestamptz, text) is
  'By hand or by code: have one person called. Within an hour of another job with the same key it makes none. -> {"job_id", "created"}';
comment on function public.cancel_call_job(bigint) is
  'By hand: cancel one job. A call under way is ended by the next sweep, and then the job is canceled. -> the job''s status now';
comment on function public.retry_call_job(bigint) is
  'By hand: dial a failed or canceled job once more, at the next sweep. Refused where the person would be called twice. -> queued';
comment on function public.opt_out(text, text, uuid) is
  'By hand: never call this number again; queued calls are canceled, open ones ended. -> {"canceled": jobs, "ending": jobs}. Undone only by the owner: delete from call_opt_outs.';
comment on function public.pause_calls(text, timestamptz) is
  'By hand: stop all dialing at once, until resume_calls() or p_until; the reason is what everybody will see. -> what holds now';
comment on function public.resume_calls() is
  'By hand: end any pause, by hand, by a halt or by CALLS_PER_DAY (which pauses again at the next claim while it is reached). -> what held before';
comment on function public.require_verified_phones(boolean) is
  'By hand: call sign-ups only when their phone is confirmed (true), or at once (false, as at first). -> what holds now';
comment on function public.call_job_stats() is
  'What is going on now, as JSON; call_stats is the same as one row. Logged by each sweep.';
comment on function public.call_stats_by_hour(int) is
  'Attempts by the hour in which they began, newest first, and what became of them; call_stats_per_hour is the last 48.';
comment on function public.claim_call_job(uuid, double precision, double precision, double precision, bigint, int, int, int, text) is
  'For the dispatcher: take one due job, alone, and write its attempt. By hand it would leave a job that waits for its lease.';
comment on function public.set_call_number(bigint, text, text, text, text) is 'For the dispatcher: write down a number as E.164.';
comment on function public.release_call_job(uuid, double precision, text, text, double precision, timestamptz, double precision) is
  'For the dispatcher: give a job back, its attempt unspent.';
comment on function public.accept_call(uuid, text, double precision) is 'For the dispatcher: Twilio has taken the call.';
comment on function public.refuse_call(uuid, text, text, text, double precision) is 'For the dispatcher: the call is refused for good.';
comment on function public.doubt_call(uuid, text, text, double precision) is 'For the dispatcher: Twilio may or may not have taken the call.';
comment on function public.put_off_call(uuid, timestamptz, text, text) is
  'For the dispatcher: a call that waits in Twilio''s queue must not ring now.';
comment on function public.record_call_status is
  'For the dispatcher: what Twilio says about a call, in any order.';
comment on function public.claim_open_call(double precision, double precision, double precision) is
  'For the sweep: the next call in doubt, without news or one too many.';
comment on function public.settle_call(uuid, timestamptz, jsonb, double precision, double precision, double precision, double precision[], boolean) is
  'For the sweep: what Twilio''s list says of a call in doubt.';
comment on function public.heal_onboarding_calls(int) is 'For the sweep: queue the calls that a sign-up could not.';
comment on function public.prune_call_jobs(int, int) is 'For the sweep: forget who is gone and what is old.';
