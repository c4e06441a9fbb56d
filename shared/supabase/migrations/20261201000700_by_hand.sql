-- By hand, from the SQL editor or any client with the service key: cancel, retry, opt out, pause, resume.

create function private.cancel_job(p_job public.outbound_call_jobs, p_code text) returns text
language sql set search_path = '' as $$
  update public.outbound_call_jobs
  set status           = case when status = 'queued' then 'canceled' else status end,
      cancel_requested = status <> 'queued',
      cancel_code      = coalesce(case when status <> 'queued' then p_code end, cancel_code),
      due_at           = case status when 'queued' then null when 'dialing' then due_at else private.clock() end,
      finished_at      = case when status = 'queued' then private.clock() end,
      reason_code      = case when status = 'queued' then coalesce(p_code, 'canceled') else reason_code end,
      reason           = case when status = 'queued' then private.in_words(coalesce(p_code, 'canceled')) else reason end
  where id = p_job.id and phone_e164 is not distinct from p_job.phone_e164 and finished_at is null
  returning status
$$;
comment on function private.cancel_job is
  'Call dispatcher: cancel a job, or end its call, unless its number changed meanwhile. -> its status';

create function public.cancel_call_job(p_job_id bigint) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.outbound_call_jobs;
begin
  perform private.raise_if(p_job_id is null, 'p_job_id must be given');
  select * into v_job from public.outbound_call_jobs where id = p_job_id for update;
  perform private.raise_if(not found, format('there is no call job %s', p_job_id));
  perform private.raise_if(v_job.finished_at is not null,
    format('call job %s is %s already: there is nothing to cancel', p_job_id, v_job.status));
  return private.cancel_job(v_job, null);
end $$;
comment on function public.cancel_call_job is
  'Call dispatcher, by hand: cancel one job. The next sweep ends a call under way, and then the job is canceled. -> the'
  ' job''s status now: canceled, or the same as before, with cancel_requested set';

create function public.retry_call_job(p_job_id bigint) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.outbound_call_jobs;
  v_why text;
begin
  perform private.raise_if(p_job_id is null, 'p_job_id must be given');
  select * into v_job from public.outbound_call_jobs where id = p_job_id for update;
  perform private.raise_if(not found, format('there is no call job %s', p_job_id));
  perform private.raise_if(v_job.status not in ('failed', 'canceled'),
    format('call job %s is %s: only failed and canceled jobs can be retried', p_job_id, v_job.status));
  v_why := coalesce(
    case when v_job.phone_number = 'erased' then ': its user was deleted' end,
    (select ': its number has opted out of calls' from public.call_opt_outs o where o.phone_e164 = v_job.phone_e164),
    (select format(': its user has a newer one, %s, which is %s', j.id, j.status) from public.outbound_call_jobs j
     where j.user_id = v_job.user_id and j.id > p_job_id and j.finished_at is null order by j.id desc limit 1),
    (select format(' yet: a call to its number is under way, of job %s, which is %s', j.id, j.status)
     from public.outbound_call_attempts a join public.outbound_call_jobs j on j.id = a.job_id
     where a.phone_e164 = v_job.phone_e164 and a.state in ('started', 'in_doubt', 'accepted')),
    (select ' yet: a call too many to its number is being ended' from public.outbound_call_attempts a
     where a.phone_e164 = v_job.phone_e164 and a.state = 'duplicate' and a.closed_at is null limit 1));
  perform private.raise_if(v_why is not null, format('call job %s cannot be retried%s', p_job_id, v_why));
  update public.outbound_call_jobs
  set status = 'queued', due_at = private.clock(), finished_at = null, cancel_requested = false, cancel_code = null,
      reason_code = 'retried', reason = 'retried by hand'
  where id = p_job_id;
  return 'queued';
end $$;
comment on function public.retry_call_job is
  'Call dispatcher, by hand: dial a failed or canceled job once more, at the next sweep, even if its attempts are'
  ' spent. Refused while a newer job of the user, or a call to the number, is open: that would call twice. -> queued';

create function private.stop_calls_to(p_phone_e164 text, p_how text, p_attempt uuid) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now    constant timestamptz := private.clock();
  v_phones constant text[] := private.spellings(p_phone_e164);
begin
  insert into public.call_opt_outs (phone_e164, opted_out_at, how)
  select phone, v_now, coalesce(p_how, 'by hand') from unnest(v_phones) phone order by phone on conflict do nothing;
  -- In one order, p_attempt's job included: two opt-outs of the same number must not deadlock.
  perform from public.outbound_call_jobs j where j.phone_e164 = any (v_phones) and j.finished_at is null
  order by j.id for update;
  -- This waits for a claim that holds one of these jobs, and ends its call. A later claim sees the opt-out.
  return (
    select jsonb_build_object('canceled', count(*) filter (where status = 'canceled'),
                              'ending', count(*) filter (where status <> 'canceled'))
    from (select private.cancel_job(j, 'opted_out') as status from public.outbound_call_jobs j
          where j.phone_e164 = any (v_phones) and j.finished_at is null
            and not exists (select from public.outbound_call_attempts a where a.id = p_attempt and a.job_id = j.id)) s);
end $$;
comment on function private.stop_calls_to is
  'Call dispatcher: note the opt-out of this E.164 number, in every spelling of its phone, and stop its calls.'
  ' p_attempt: the call in which the person asked for it ends by itself, after confirming. -> {"canceled", "ending"}';

create function public.opt_out(p_phone_number text, p_how text default 'by hand', p_attempt uuid default null)
returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_phone   constant text := private.read_number(p_phone_number);
  v_stopped jsonb;
begin
  if v_phone is null then
    raise exception 'p_phone_number cannot be read as one certain number: nothing was stopped'
      using hint = coalesce('Was it ' || private.nearest_number(p_phone_number) || '? Then repeat the call with that.',
                            'Write + and the country code, then the number as it is dialed from abroad, without'
                            ' letters, extension or trunk 0, such as +14155550100.');
  end if;
  v_stopped := private.stop_calls_to(v_phone, p_how, p_attempt);  -- it may wait for a claim, whose call counts
  return v_stopped || (
    select jsonb_build_object(
      'jobs', (select count(*) from public.outbound_call_jobs where phone_e164 = any (spellings)),
      'calls', (select count(*) from private.counted_calls where phone_e164 = any (spellings)))
    from private.spellings(v_phone) as spellings);
end $$;
comment on function public.opt_out is
  'Call dispatcher, by hand: never call this number again, for any user: queued calls are canceled, open ones ended. A'
  ' number that the dispatcher would read otherwise, or not at all, is refused. p_attempt: the call in which the person'
  ' asked for it; it ends by itself. Undone only by the owner: delete from call_opt_outs. -> {"canceled": jobs,'
  ' "ending": jobs, "jobs", "calls": how many that number has ever had here}';

create function public.pause_calls(p_reason text, p_until timestamptz default 'infinity') returns text
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_if(nullif(btrim(p_reason), '') is null, 'p_reason must say why: everybody will see it');
  perform private.raise_if(p_until <= private.clock(), 'p_until must be in the future');
  -- A typing error, and a year that not every client can read.
  perform private.raise_if(p_until >= '9999-01-01' and isfinite(p_until),
                           'p_until must be before the year 9999, or left out');
  update private.call_settings
  set paused_until = coalesce(p_until, 'infinity'), paused_by = 'hand', pause_reason = p_reason where only_row;
  -- A locked job is being reported on just now; the sweep comes to it in its time.
  update public.outbound_call_jobs set due_at = private.clock()
  where id in (select j.id from public.outbound_call_jobs j join public.outbound_call_attempts a on a.job_id = j.id
               where j.status = 'calling' and a.state = 'accepted' and a.call_status = 'queued'
               for update of j skip locked);
  return 'calls are paused until ' || case when isfinite(p_until) then p_until::text
                                           else 'somebody calls resume_calls()' end;
end $$;
comment on function public.pause_calls is
  'Call dispatcher, by hand: stop all dialing at once, until resume_calls() or p_until; everybody will see the reason.'
  ' Once this has committed, no claim succeeds. The next sweep cancels the calls that wait in Twilio''s queue, and they'
  ' are made later; conversations in progress continue. -> until when';

create function public.resume_calls() returns text language plpgsql security definer set search_path = '' as $$
declare
  v_was private.call_settings;
begin
  select * into v_was from private.call_settings where only_row for update;
  update private.call_settings
  set paused_until = null, paused_by = null, pause_reason = null, halts = 0, probe_until = null where only_row;
  return case when v_was.paused_until > private.clock() then 'calls go on; they were paused: ' || v_was.pause_reason
              when v_was.halts > 0 then 'calls go on; after a halt one was to go first'
              else 'calls were not paused' end;
end $$;
comment on function public.resume_calls is
  'Call dispatcher, by hand: end any pause. CALLS_PER_DAY pauses again while it is reached. -> the state before';

create function public.confirm_restore() returns text language plpgsql security definer set search_path = '' as $$
declare
  v_here constant text := private.database_id();
  v_jobs bigint;
begin
  select count(*) into v_jobs from public.outbound_call_jobs where status = 'queued' and database_id <> v_here;
  if v_jobs = 0 then
    return 'no waiting job was queued in another database: nothing to confirm';
  end if;
  update private.call_settings set confirmed_id = v_here where only_row;
  update private.call_settings set paused_until = null, paused_by = null, pause_reason = null
  where paused_by = 'restore';
  return format('calls go on; Twilio is asked about %s jobs that were queued before, each before it is dialed', v_jobs);
end $$;
comment on function public.confirm_restore is
  'Call dispatcher, by hand: this database was restored from a backup, and it is the one that calls. Before each job'
  ' that was queued earlier, Twilio is asked whether its number was called since. Not in a copy. -> the new state';

select private.apply_rights();
