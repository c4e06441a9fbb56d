-- By hand, from the SQL editor or any client with the service key: cancel, retry, pause, resume, look.

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
  update public.outbound_call_jobs
  set status = 'queued', due_at = private.clock(), finished_at = null, cancel_requested = false,
      reason_code = 'retried', reason = 'retried by hand'
  where id = p_job_id;
  return 'queued';
end
$$;

-- Stop all dialing, until resume_calls or p_until. Once this has committed no claim to dial succeeds; calls under way go on.
create function public.pause_calls(p_reason text, p_until timestamptz default 'infinity') returns void
language sql security definer set search_path = '' as $$
  update private.call_settings set paused_until = coalesce(p_until, 'infinity'), pause_reason = p_reason where only_row
$$;

create function public.resume_calls() returns void
language sql security definer set search_path = '' as $$
  update private.call_settings
  set paused_until = null, pause_reason = null, halts = 0, probe_until = null
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
    'missed_signups',  (select count(*) from private.missed_signups),
    'paused_until',    (select paused_until from private.call_settings where paused_until > private.clock()),
    'pause_reason',    (select pause_reason from private.call_settings where paused_until > private.clock()))
$$;

revoke all on function public.cancel_call_job(bigint) from public, anon, authenticated;
revoke all on function public.retry_call_job(bigint) from public, anon, authenticated;
revoke all on function public.pause_calls(text, timestamptz) from public, anon, authenticated;
revoke all on function public.resume_calls() from public, anon, authenticated;
revoke all on function public.call_job_stats() from public, anon, authenticated;
grant execute on function public.cancel_call_job(bigint) to service_role;
grant execute on function public.retry_call_job(bigint) to service_role;
grant execute on function public.pause_calls(text, timestamptz) to service_role;
grant execute on function public.resume_calls() to service_role;
grant execute on function public.call_job_stats() to service_role;
