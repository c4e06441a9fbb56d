-- Outcomes of a request to Twilio, and of the call it made. Each is fenced by (attempt, state), so late workers,
-- sweeps, callbacks and polls may come in any order and any number of times.

create function private.call_rank(p_status text) returns int language plpgsql immutable set search_path = '' as $$
begin
  return case p_status when 'queued' then 0 when 'initiated' then 1 when 'ringing' then 2 when 'in-progress' then 3
                       when 'completed' then 4 when 'busy' then 4 when 'no-answer' then 4 when 'failed' then 4
                       when 'canceled' then 4 end;
end $$;
comment on function private.call_rank is 'Call dispatcher: a call moves only forward; its first final status (4) wins.';

create function private.is_stopped() returns boolean language plpgsql stable set search_path = '' as $$
begin
  return (select paused_by = 'hand' and paused_until > private.clock() from private.call_settings);
end $$;
comment on function private.is_stopped is
  'Call dispatcher: whether calls are paused by hand. Then calls in Twilio''s queue are canceled, too.';

create function private.retry_or_fail(
  p_job public.outbound_call_jobs, p_delays_s double precision[], p_code text, p_reason text default null
) returns void language plpgsql set search_path = '' as $$
declare
  v_due_at constant timestamptz := private.clock() + make_interval(secs => p_delays_s[p_job.attempts]);
begin
  perform private.move_job(
    p_job, case when v_due_at is null then 'failed' else 'queued' end, v_due_at, p_code, p_reason);
end $$;
comment on function private.retry_or_fail is
  'Call dispatcher: an attempt failed: queue its locked job again, or end it. p_delays_s: how long to wait after the'
  ' first attempt, after the second, and so on; when no delay is left, the attempts are spent.';

create function private.bind_call(p_attempt uuid, p_sid text, p_ask_s double precision) returns text
language plpgsql set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  -- Twilio's list may have bound this SID to another attempt of the number. That attempt's row then counts.
  v_locked  constant private.locked_attempt := private.lock_attempt(
    coalesce((select a.id from public.outbound_call_attempts a where a.call_sid = p_sid), p_attempt));
  v_job     public.outbound_call_jobs := v_locked.job;
  v_attempt constant public.outbound_call_attempts := v_locked.attempt;
begin
  if v_attempt.id is null then
    return 'unknown';
  end if;
  if v_attempt.call_sid is distinct from p_sid
     and exists (select from public.outbound_call_attempts a where a.call_sid = p_sid) then
    return private.bind_call(p_attempt, p_sid, p_ask_s);  -- it was bound while this one waited for the lock
  end if;

  if v_attempt.call_sid = p_sid then
    return case when v_attempt.state = 'duplicate' or v_job.cancel_requested then 'end' else 'keep' end;
  end if;
  begin
    if v_attempt.call_sid is not null then  -- one request, two calls: keep the second as a row of its own, and end it
      insert into public.outbound_call_attempts
        (id, job_id, number, phone_e164, from_e164, state, call_sid, call_status, started_at, accepted_at, end_due_at)
      values (gen_random_uuid(), v_job.id, v_attempt.number, v_attempt.phone_e164, v_attempt.from_e164, 'duplicate',
              p_sid, 'queued', v_attempt.started_at, v_now, v_now);
      return 'end';
    end if;

    -- Open; or late truth: it was believed absent, and is the job's call after all.
    if v_attempt.state in ('started', 'in_doubt')
       or (v_attempt.state = 'absent' and v_attempt.phone_e164 is not null
           and (v_job.status = 'queued'
                or v_job.status = 'failed' and v_job.reason_code in ('absent', 'gave_up'))) then
      update public.outbound_call_attempts
      set state = 'accepted', call_sid = p_sid, call_status = 'queued', accepted_at = v_now, closed_at = null
      where id = p_attempt;
      -- opt_out and the claim both missed a person who opted out between the claim and now: stop means stop.
      -- If calls were stopped meanwhile, this one may still wait in Twilio's queue, and the sweep looks at once.
      update public.outbound_call_jobs
      set status = 'calling',
          due_at = case when cancel_requested or o.opted_out or private.is_stopped() then v_now
                        else v_now + make_interval(secs => p_ask_s) end,
          finished_at = null, reason_code = null, reason = null,
          cancel_requested = cancel_requested or o.opted_out,
          cancel_code = case when o.opted_out and not cancel_requested then 'opted_out' else cancel_code end
      from (select exists (select from public.call_opt_outs where phone_e164 = v_attempt.phone_e164) as opted_out) o
      where id = v_job.id
      returning cancel_requested into v_job.cancel_requested;
      return case when v_job.cancel_requested then 'end' else 'keep' end;
    end if;
  exception when unique_violation then
    if exists (select from public.outbound_call_attempts a where a.call_sid = p_sid) then
      return private.bind_call(p_attempt, p_sid, p_ask_s);  -- the list has just bound this SID to another attempt
    end if;
    -- Otherwise another attempt has the number by now.
  end;

  -- The job has gone on, or is over, or the number has another open attempt: this call is one too many.
  begin
    update public.outbound_call_attempts
    set state = 'duplicate', call_sid = p_sid, call_status = 'queued', accepted_at = v_now, closed_at = null,
        end_due_at = v_now
    where id = p_attempt;
  exception when unique_violation then
    return private.bind_call(p_attempt, p_sid, p_ask_s);
  end;
  return 'end';
end $$;
comment on function private.bind_call is
  'Call dispatcher: a SID is truth: bind it to its attempt, at any time and any number of times. Locks the attempt''s'
  ' job. -> keep: the call is wanted · end: one too many, or not wanted · unknown: no such attempt (end it, too)';

create function private.call_answer(p_then text, p_sid text) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    (select jsonb_build_object(
       'then', p_then, 'state', a.state, 'call_status', a.call_status, 'by_machine', private.is_by_machine(a),
       'later_at', a.later_at,
       'job', jsonb_build_object('id', j.id, 'status', j.status, 'first_name', j.first_name,
                                 'signup_mode', j.signup_mode, 'metadata', private.readable(j.metadata),
                                 'phone_e164', a.phone_e164,
                                 'laters', (select count(*) from public.outbound_call_attempts b
                                            where b.job_id = j.id and b.id <> a.id and b.later_at is not null)))
     from public.outbound_call_attempts a join public.outbound_call_jobs j on j.id = a.job_id
     where a.call_sid = p_sid),
    jsonb_build_object('then', p_then, 'state', null, 'call_status', null, 'job', null));
end $$;
comment on function private.call_answer is 'Call dispatcher: the answer to the dispatcher about a live call.';

create function public.accept_call(p_attempt uuid, p_call_sid text, p_ask_s double precision) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_then constant text := private.bind_call(p_attempt, p_call_sid, p_ask_s);
begin
  -- Twilio takes our calls, so the cause of a halt is mended.
  update private.call_settings
  set halts = 0, probe_until = null, paused_until = null, paused_by = null, pause_reason = null
  where only_row and halts > 0 and (paused_until is null or paused_until <= private.clock());
  return private.call_answer(v_then, p_call_sid);
end $$;
comment on function public.accept_call is
  'Call dispatcher: Twilio has answered with a SID. Works from started, in_doubt and absent, any number of times. ->'
  ' {"then": "keep" | "end" (the call) | "unknown", "state", "call_status", "by_machine", "later_at", "job"}';

create function public.refuse_call(
  p_attempt uuid, p_code text, p_reason text, p_error_code text default null, p_slot_s double precision default 0
) returns boolean language plpgsql security definer set search_path = '' as $$
declare
  v_locked  constant private.locked_attempt := private.lock_attempt(p_attempt);
  v_job     constant public.outbound_call_jobs := v_locked.job;
  v_attempt constant public.outbound_call_attempts := v_locked.attempt;
begin
  if v_attempt.state is null or v_attempt.state not in ('started', 'in_doubt') then
    return false;
  end if;
  update public.outbound_call_attempts
  set state = 'refused', closed_at = private.clock(),
      error_code = coalesce(p_error_code, p_code), error_message = p_reason
  where id = p_attempt;
  perform private.retry_or_fail(v_job, '{}', p_code, p_reason);
  update private.call_settings set probe_until = null where only_row and probe_until = v_job.due_at;  -- of a probe
  perform private.give_back_slot(p_slot_s, v_attempt.started_at);
  return true;
end $$;
comment on function public.refuse_call is
  'Call dispatcher: Twilio, or our own screening, refuses this call for good. Counts only from started and in_doubt.'
  ' p_slot_s: as in release_call_job. -> true if it counted';

create function public.put_off_call(p_attempt uuid, p_not_before timestamptz, p_code text, p_reason text)
returns boolean language plpgsql security definer set search_path = '' as $$
declare
  v_locked  constant private.locked_attempt := private.lock_attempt(p_attempt);
  v_job     constant public.outbound_call_jobs := v_locked.job;
  v_attempt constant public.outbound_call_attempts := v_locked.attempt;
begin
  if v_attempt.state is distinct from 'accepted' or v_attempt.call_status <> 'queued' or v_job.cancel_requested then
    return false;
  end if;
  update public.outbound_call_attempts
  set put_off_until = p_not_before, error_code = p_code, error_message = p_reason where id = p_attempt;
  update public.outbound_call_jobs set due_at = private.clock(), reason_code = p_code, reason = p_reason
  where id = v_job.id;
  return true;
end $$;
comment on function public.put_off_call is
  'Call dispatcher: a call waited in Twilio''s queue until it may not ring any more (its hours). The caller cancels it'
  ' at Twilio, and the sweep repeats that; then the job is due at p_not_before, the attempt unspent. Counts only while'
  ' the call is in the queue, as far as Twilio told us. -> true if it counted';

create function public.doubt_call(p_attempt uuid, p_code text, p_reason text, p_ask_s double precision) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_locked  constant private.locked_attempt := private.lock_attempt(p_attempt);
  v_attempt constant public.outbound_call_attempts := v_locked.attempt;
begin
  if v_attempt.state is distinct from 'started' then
    return false;
  end if;
  update public.outbound_call_attempts
  set state = 'in_doubt', doubted_at = v_now, error_code = p_code, error_message = p_reason where id = p_attempt;
  update public.outbound_call_jobs
  set status = 'in_doubt', due_at = v_now + make_interval(secs => p_ask_s), reason_code = p_code, reason = p_reason
  where id = v_attempt.job_id;
  return true;
end $$;
comment on function public.doubt_call is
  'Call dispatcher: the request may or may not have made a call: nobody dials until that is settled. p_ask_s: when to'
  ' ask Twilio first. Counts only from started. -> true if it counted';

create function public.record_call_status(
  p_attempt uuid, p_call_sid text, p_call_status text, p_ask_s double precision, p_redial_delays_s double precision[],
  p_answered_by text default null, p_duration_s int default null, p_sip_code int default null,
  p_error_code text default null, p_machine_counts_as text default 'reached'
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_then    text := private.bind_call(p_attempt, p_call_sid, p_ask_s);
  v_final   constant boolean := private.call_rank(p_call_status) = 4;
  v_attempt public.outbound_call_attempts;
  v_job     public.outbound_call_jobs;
  v_moved   boolean;
  v_ends_job      boolean;
  v_was_machine   boolean;
  v_put_off_until timestamptz;
begin
  perform private.raise_if(p_machine_counts_as not in ('reached', 'missed'),
                           'p_machine_counts_as must be reached or missed');
  if v_then = 'unknown' then
    return private.call_answer(v_then, p_call_sid) || '{"moved": false}';
  end if;
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;
  v_put_off_until := v_attempt.put_off_until;
  v_was_machine := private.is_by_machine(v_attempt);
  -- An attempt that was given up as outcome_unknown keeps its job as it is, for every later status.
  v_ends_job := v_final and v_attempt.state = 'accepted';
  if p_answered_by <> coalesce(v_attempt.answered_by, '') then  -- asynchronous detection comes at any time
    update public.outbound_call_attempts set answered_by = p_answered_by where call_sid = p_call_sid;
    -- The final status may have come first: the job stays as it is, and only its summary changes.
    update public.outbound_call_jobs set qualification = private.qualification(id)
    where id = v_attempt.job_id and finished_at is not null and phone_number <> 'erased';
  end if;
  update public.outbound_call_attempts
  set call_status = p_call_status,
      state       = case when v_final and state = 'accepted' then 'ended' else state end,
      closed_at   = case when v_final then v_now else closed_at end,
      put_off_until = case when p_call_status in ('queued', 'initiated', 'ringing', 'canceled') then put_off_until end,
      end_due_at  = case when not v_final then end_due_at end,
      duration_s  = coalesce(p_duration_s, duration_s),
      sip_code    = coalesce(p_sip_code, sip_code),
      error_code  = coalesce(p_error_code, error_code)
  where call_sid = p_call_sid and private.call_rank(p_call_status) > private.call_rank(call_status);
  v_moved := found;
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;

  -- Answered after calls were stopped: nobody speaks. A call that was answered before goes on.
  if v_moved and p_call_status = 'in-progress' and v_attempt.state = 'accepted' and private.is_stopped() then
    update public.outbound_call_jobs
    set cancel_requested = true, cancel_code = coalesce(cancel_code, 'paused'), due_at = v_now
    where id = v_attempt.job_id and not cancel_requested;
    v_then := 'end';
  end if;

  if v_moved and v_ends_job then
    select * into v_job from public.outbound_call_jobs where id = v_attempt.job_id;
    if v_attempt.later_at is not null then
      perform private.give_back_job(v_job, v_attempt.later_at, 'asked_for_later');
    elsif p_call_status = 'canceled' and v_put_off_until is not null then  -- it never rang
      perform private.give_back_job(v_job, v_put_off_until, v_job.reason_code, v_job.reason);
    elsif p_call_status = 'completed' and p_machine_counts_as = 'missed' and private.is_by_machine(v_attempt) then
      perform private.retry_or_fail(v_job, p_redial_delays_s, 'machine', 'a machine picked up');
    elsif p_call_status = 'completed' then
      perform private.move_job(v_job, 'completed', null, null);
    elsif p_call_status = 'canceled' then
      perform private.move_job(v_job, 'canceled', null, 'call_canceled', 'the call was canceled at Twilio');
    else
      perform private.retry_or_fail(v_job, p_redial_delays_s, p_call_status,
                                    private.in_words(p_call_status) || coalesce(' (SIP ' || p_sip_code || ')', ''));
    end if;
  end if;
  return private.call_answer(case when v_final then 'keep' else v_then end, p_call_sid) || jsonb_build_object(
    'moved', v_moved, 'now', v_now,
    'machine_now', v_attempt.state = 'accepted' and not v_was_machine and private.is_by_machine(v_attempt));
end $$;
comment on function public.record_call_status is
  'Call dispatcher: record a call''s status from Twilio, in any order. Binds the SID first. p_redial_delays_s: as in'
  ' retry_or_fail, for a person who was not reached. p_answered_by may come with a p_call_status that is not new.'
  ' p_machine_counts_as: a call that a machine answered was "reached" or "missed" (then it is tried again). -> as'
  ' accept_call; "moved": this status was new, "machine_now": a machine was detected, "now"';

select private.apply_rights();
