-- Following up calls that are, or may be, under way: expired leases, calls in doubt, calls whose end nobody reported.

create function private.open_call(
  p_attempt public.outbound_call_attempts, p_now timestamptz, p_end boolean, p_lease_expired boolean
) returns jsonb language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'outcome', 'ask', 'state', p_attempt.state, 'attempt', p_attempt.id, 'job_id', p_attempt.job_id,
    'call_sid', p_attempt.call_sid,
    'phone_e164', coalesce(p_attempt.phone_e164, ''),  -- of a duplicate it may be erased; it is ended by its SID
    'from_e164', p_attempt.from_e164, 'started_at', p_attempt.started_at,
    'asked_at', p_now, 'end', p_end, 'put_off', p_attempt.put_off_until is not null, 'lease_ran_out', p_lease_expired,
    'metadata', (select private.readable(j.metadata) from public.outbound_call_jobs j where j.id = p_attempt.job_id))
$$;
comment on function private.open_call is 'Call dispatcher: the answer of claim_open_call about one attempt.';

create function public.claim_open_call(
  p_hold_s double precision, p_ask_s double precision, p_give_up_s double precision
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_job     public.outbound_call_jobs;
  v_attempt public.outbound_call_attempts;
  v_expired boolean;
begin
  update public.outbound_call_attempts
  set closed_at = v_now, error_code = 'outcome_unknown', error_message = private.in_words('outcome_unknown')
  where id in (select a.id from public.outbound_call_attempts a
               where a.state = 'duplicate' and a.closed_at is null and v_now >= a.end_due_at
                 and a.accepted_at + make_interval(secs => p_give_up_s) < a.end_due_at for update skip locked);

  update public.outbound_call_attempts
  set end_due_at = v_now + make_interval(secs => p_hold_s)
  where id = (select a.id from public.outbound_call_attempts a
              where a.state = 'duplicate' and a.closed_at is null and a.end_due_at <= v_now
              order by a.end_due_at limit 1 for update skip locked)
  returning * into v_attempt;
  if found then
    return private.open_call(v_attempt, v_now, true, false);
  end if;

  loop
    select * into v_job from public.outbound_call_jobs
    where status in ('dialing', 'in_doubt', 'calling') and due_at <= v_now order by due_at, id limit 1
    for update skip locked;
    if not found then
      return jsonb_build_object('outcome', 'none');
    end if;
    select * into strict v_attempt from public.outbound_call_attempts
    where job_id = v_job.id and state in ('started', 'in_doubt', 'accepted') for update;

    -- due_at is after the limit, so Twilio was asked once more since then, even if nobody had swept for days.
    if v_job.status = 'calling' and v_attempt.accepted_at + make_interval(secs => p_give_up_s) < v_job.due_at then
      update public.outbound_call_attempts
      set state = 'ended', closed_at = v_now, error_code = 'outcome_unknown',
          error_message = private.in_words('outcome_unknown')
      where id = v_attempt.id;
      if v_attempt.later_at is not null then
        perform private.give_back_job(v_job, v_attempt.later_at, 'asked_for_later');
      else
        update public.outbound_call_jobs
        set status = case when cancel_requested then 'canceled' else 'failed' end, due_at = null, finished_at = v_now,
            reason_code = 'outcome_unknown', reason = 'Twilio took the call, and its end never became known'
        where id = v_job.id;
      end if;
      continue;
    end if;

    -- Calls are stopped: a call in Twilio's queue is canceled there, and its job is due again when they are resumed.
    if v_attempt.call_status = 'queued' and v_attempt.put_off_until is null and private.is_stopped() then
      update public.outbound_call_attempts
      set put_off_until = v_now, error_code = 'paused',
          error_message = 'all calls were paused while it waited in Twilio''s queue'
      where id = v_attempt.id returning * into v_attempt;
    end if;

    v_expired := v_job.status = 'dialing';
    if v_expired then
      update public.outbound_call_attempts
      set state = 'in_doubt', doubted_at = v_now, error_code = 'lease_ran_out',
          error_message = 'the dispatcher that held it never reported back'
      where id = v_attempt.id returning * into v_attempt;
    end if;
    update public.outbound_call_jobs
    set status      = case when v_expired then 'in_doubt' else status end,
        -- Of a call that the pause puts off; a reason that stands there holds, too.
        reason_code = case when v_expired or v_attempt.put_off_until is not null then v_attempt.error_code
                           else reason_code end,
        reason      = case when v_expired or v_attempt.put_off_until is not null then v_attempt.error_message
                           else reason end,
        due_at      = v_now + make_interval(secs => case when status = 'calling' then p_ask_s else p_hold_s end)
    where id = v_job.id;
    return private.open_call(v_attempt, v_now, v_job.cancel_requested, v_expired);
  end loop;
end $$;
comment on function public.claim_open_call is
  'Call dispatcher: for the sweep: the next call to look at, held for p_hold_s. Duplicates come first: they may be'
  ' ringing. A lease that ran out becomes a doubt here, never a queued job. A call whose end is unknown p_give_up_s'
  ' after it was taken is asked about once more, then closed. -> {"outcome": "ask", "state": "in_doubt" | "accepted" |'
  ' "duplicate", "attempt", "job_id", "call_sid", "phone_e164", "from_e164", "started_at", "asked_at", "end": the call'
  ' is not wanted, "put_off": it must not leave Twilio''s queue, "metadata", "lease_ran_out"} | {"outcome": "none"}';

create function public.settle_call(
  p_attempt uuid, p_asked_at timestamptz, p_calls jsonb, p_settling_s double precision, p_ask_s double precision,
  p_poll_s double precision, p_delays_s double precision[], p_gives_up boolean default false
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_now        constant timestamptz := private.clock();
  v_locked     constant private.locked_attempt := private.lock_attempt(p_attempt);
  v_job        constant public.outbound_call_jobs := v_locked.job;
  v_attempt    constant public.outbound_call_attempts := v_locked.attempt;
  v_settled_at constant timestamptz := v_attempt.doubted_at + make_interval(secs => p_settling_s);
  v_candidates jsonb;
  v_several    boolean;
begin
  if v_attempt.state is distinct from 'in_doubt' then
    return jsonb_build_object('outcome', 'settled');
  end if;
  perform private.raise_if(jsonb_typeof(p_calls) is distinct from 'array',
                           'p_calls must be a list; a missing list is not an empty one');
  -- Calls of other attempts are left out, under the lock.
  select coalesce(jsonb_agg(c), '[]') into v_candidates
  from (select distinct on (e ->> 'sid') e from jsonb_array_elements(p_calls) e) as once(c)
  where not exists (select from public.outbound_call_attempts a where a.call_sid = c ->> 'sid')
    and not exists (select from private.deleted_calls d where d.call_sid = c ->> 'sid');

  if jsonb_array_length(v_candidates) = 1 then
    return jsonb_build_object('outcome', 'found',
      'call_sid', v_candidates -> 0 ->> 'sid', 'call_status', v_candidates -> 0 ->> 'status',
      'then', private.bind_call(p_attempt, v_candidates -> 0 ->> 'sid', p_poll_s));
  end if;

  -- If cancellation was requested and all of several calls are over, no call is left to end.
  v_several := jsonb_array_length(v_candidates) > 1
    and not (v_job.cancel_requested and p_asked_at >= v_settled_at
             and not exists (select from jsonb_array_elements(v_candidates) c
                             where private.call_rank(c ->> 'status') is distinct from 4));
  if v_several or p_asked_at < v_settled_at then
    update public.outbound_call_jobs
    set due_at = case when p_asked_at < v_settled_at
                      then greatest(v_now, least(v_now + make_interval(secs => p_ask_s), v_settled_at))
                      else v_now + make_interval(secs => p_ask_s) end,
        reason_code = case when v_several then 'ambiguous' else reason_code end,
        reason      = case when v_several then 'several calls at Twilio may be this one: a person must look'
                           else reason end
    where id = v_job.id;
    if v_several then
      return jsonb_build_object('outcome', 'ambiguous', 'calls', jsonb_array_length(v_candidates));
    end if;
    return jsonb_build_object('outcome', 'not_yet');
  end if;

  update public.outbound_call_attempts set state = 'absent', closed_at = v_now where id = p_attempt;
  if v_attempt.error_code = 'restored' then  -- nothing was dialed: always once more, at once
    perform private.retry_or_fail(v_job, array_fill(0::double precision, array[v_job.attempts]), 'restored',
                                  'queued before the restore, and not called since');
  else
    perform private.retry_or_fail(v_job, case when p_gives_up then '{}' else p_delays_s end,
                                  case when p_gives_up then 'gave_up' else 'absent' end);
  end if;
  return jsonb_build_object('outcome', 'absent',
    'job_status', (select status from public.outbound_call_jobs where id = v_job.id));
end $$;
comment on function public.settle_call is
  'Call dispatcher: settle a doubt by Twilio''s list, every call from our number to theirs since the attempt began, as'
  ' [{"sid", "status"}, ...]. One call that no other attempt has is bound, and the sweep records its status next. None:'
  ' absent, if the ask began p_settling_s or more after the doubt; before that, ask again after p_ask_s. Several: none'
  ' is bound, and a person must look. p_delays_s: as in retry_or_fail. p_gives_up: an absent call ends the job instead'
  ' of being dialed again. -> {"outcome": "found", "call_sid", "call_status", "then"} | {"outcome": "absent",'
  ' "job_status"} | {"outcome": "not_yet"} | {"outcome": "ambiguous", "calls"} | {"outcome": "settled"}: meanwhile';

select private.apply_rights();
