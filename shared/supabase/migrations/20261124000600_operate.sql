-- By hand, from the SQL editor or any client with the service key: cancel, retry, opt out, pause, resume, look.

-- Cancel one job. One that may be under way is canceled when its call has ended, and the next sweep ends it.
-- -> the job's status now: "canceled", or what it still is with cancel_requested set
create function public.cancel_call_job(p_job_id bigint) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.outbound_call_jobs;
begin
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

-- Dial a failed or canceled job once more, now, whatever attempts it has spent. -> its status, "queued"
create function public.retry_call_job(p_job_id bigint) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.outbound_call_jobs;
begin
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
  update public.outbound_call_jobs
  set status = 'queued', due_at = private.clock(), finished_at = null, cancel_requested = false, cancel_code = null,
      reason_code = 'retried', reason = 'retried by hand'
  where id = p_job_id;
  return 'queued';
end
$$;

-- Never call this number again, whoever's it is: cancel what is queued, end what is open. p_attempt: the call in which the person
-- said so; it is left to end by itself, so that it can say that it understood. -> {"canceled": jobs, "ending": jobs}
create function public.opt_out(p_phone_number text, p_how text default 'by hand', p_attempt uuid default null) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now      constant timestamptz := private.clock();
  v_phone    constant text := regexp_replace(p_phone_number, '[\s()./-]', '', 'g');
  v_canceled int;
  v_ending   int;
begin
  -- (0) is dialed in Italy and not in Britain: a guess would note a number that is never dialed, and stop nothing.
  if v_phone is null or v_phone !~ '^\+[1-9][0-9]{6,14}$' or p_phone_number ~ '\(\s*0\s*\)' then
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

-- Stop all dialing, until resume_calls or p_until. Once this has committed no claim to dial succeeds. What still waits in Twilio's
-- queue is canceled there by the next sweep, and called later; who is talking goes on.
create function public.pause_calls(p_reason text, p_until timestamptz default 'infinity') returns void
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
end
$$;

create function public.resume_calls() returns void
language sql security definer set search_path = '' as $$
  update private.call_settings
  set paused_until = null, pause_reason = null, stopped = false, halts = 0, probe_until = null
  where only_row
$$;

-- What is going on, for the sweep's log and for whoever is on call. Reads the two claim indexes only.
create function public.call_job_stats() returns jsonb
language sql stable security definer set search_path = '' as $$
  select jsonb_build_object(
    'queued',          (select count(*) from public.outbound_call_jobs where status = 'queued'),
    'dialing',         (select count(*) from public.outbound_call_jobs where status = 'dialing'),
    'in_doubt',        (select count(*) from public.outbound_call_jobs where status = 'in_doubt'),
    'calling',         (select count(*) from public.outbound_call_jobs where status = 'calling'),
    'oldest_due_s',    (select greatest(0, round(extract(epoch from private.clock() - min(due_at)))) from public.outbound_call_jobs
                        where status = 'queued' and due_at <= private.clock()),
    'live_duplicates', (select count(*) from public.outbound_call_attempts where state = 'duplicate' and closed_at is null),
    'held_by_prefix',  (select count(*) from public.outbound_call_jobs where status = 'queued' and reason_code = 'calls_per_prefix_per_hour'),
    'missed_signups',  (select count(*) from private.missed_signups),
    'paused_until',    (select paused_until from private.call_settings where paused_until > private.clock()),
    'pause_reason',    (select pause_reason from private.call_settings where paused_until > private.clock()))
$$;

revoke all on function public.cancel_call_job(bigint) from public, anon, authenticated;
revoke all on function public.retry_call_job(bigint) from public, anon, authenticated;
revoke all on function public.opt_out(text, text, uuid) from public, anon, authenticated;
revoke all on function public.pause_calls(text, timestamptz) from public, anon, authenticated;
revoke all on function public.resume_calls() from public, anon, authenticated;
revoke all on function public.call_job_stats() from public, anon, authenticated;
grant execute on function public.cancel_call_job(bigint) to service_role;
grant execute on function public.retry_call_job(bigint) to service_role;
grant execute on function public.opt_out(text, text, uuid) to service_role;
grant execute on function public.pause_calls(text, timestamptz) to service_role;
grant execute on function public.resume_calls() to service_role;
grant execute on function public.call_job_stats() to service_role;
