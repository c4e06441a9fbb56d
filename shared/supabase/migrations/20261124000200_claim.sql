-- From a queued job to one request to Twilio: claim, and give back what was not dialed.

-- Called by claim_call_job with the gate's row locked, so that what is counted here holds over all instances: may this number
-- be called now, as far as how often is concerned? Null caps, and a prefix cap of 0, are none. p_attempt itself is not counted.
-- -> code null: yes · 'calls_per_day': all calls wait until v_until · else: this job waits until v_until
create function private.cap_in_the_way(
  p_attempt                   uuid,
  p_phone_e164                text,
  p_now                       timestamptz,
  p_calls_per_number_per_day  int,
  p_calls_per_prefix_per_hour int,
  p_calls_per_day             int,
  out code  text,
  out until timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_numbers int;
begin
  -- The n-th newest call of the day: when it is a day old, there is room for one more.
  select started_at + interval '24 hours' into until from public.outbound_call_attempts
  where state not in ('refused', 'absent') and put_off_until is null
    and phone_e164 = p_phone_e164 and started_at > p_now - interval '24 hours' and id <> p_attempt
  order by started_at desc offset p_calls_per_number_per_day - 1 limit 1;
  if found and p_calls_per_number_per_day is not null then
    code := 'calls_per_number_per_day';
    return;
  end if;

  -- Many different numbers that differ in their last four digits only are the mark of toll fraud. Held until the hour has passed.
  if p_calls_per_prefix_per_hour > 0 then
    select count(distinct phone_e164), max(started_at) + interval '1 hour' into v_numbers, until from public.outbound_call_attempts
    where state not in ('refused', 'absent') and put_off_until is null
      and left(phone_e164, -4) = left(p_phone_e164, -4) and started_at > p_now - interval '1 hour' and phone_e164 <> p_phone_e164;
    if v_numbers >= p_calls_per_prefix_per_hour then
      code := 'calls_per_prefix_per_hour';
      return;
    end if;
  end if;

  if p_calls_per_day is not null then
    select started_at + interval '24 hours' into until from public.outbound_call_attempts
    where state not in ('refused', 'absent') and put_off_until is null
      and started_at > p_now - interval '24 hours' and id <> p_attempt
    order by started_at desc offset p_calls_per_day - 1 limit 1;
    if found then
      code := 'calls_per_day';
    end if;
  end if;
end
$$;

-- What the dispatcher is told of the metadata: the texts and numbers that a script could say, or that name a time zone. Whoever
-- signs up writes the rest, too, and an answer that a client cannot read (a list in a list, a thousand deep; a number of 5,000
-- digits) would stop the sweep for everybody.
create function private.readable(p_metadata jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(p_metadata)
  where jsonb_typeof(value) in ('string', 'number', 'boolean') and length(value #>> '{}') <= 1000
$$;

-- Called by the webhook (with p_job_id) and by the sweep (without): take one due job, alone, and write down the attempt
-- before Twilio is asked. In one transaction, with locks in the order job, attempt, settings:
--   1. lock the job; one that another holds is passed over
--   2. insert the attempt; a number that has an open attempt puts the job off, and the next job is tried; one that opted out
--      ends it
--   3. take a slot of the pace, if calls are not paused; denied, steps 1 and 2 are undone and due_at stays as it was
--   4. count the caps, under that lock; one that is reached undoes all that, and puts the job off
-- p_attempt is a random uuid made by the caller, p_from our number. p_lease_s: how long nobody else looks at the job; it must outlast the request.
-- -> {"outcome": "claimed", "job": {...}, "attempt": {"id", "number"}, "now"}
--  | {"outcome": "wait", "wait_s"}                             the pace, and nothing was changed; or many jobs were put off or ended,
--                                                              and there are more to look at
--  | {"outcome": "paused", "until", "reason", "just_now"}      calls are paused; just_now: by p_calls_per_day, in this claim
--  | {"outcome": "unparsed", "job_id", "phone_number"}         parse it, tell set_call_number, claim again
--  | {"outcome": "none", "status", "due_at", "reason_code"}    nothing due; of p_job_id: what it is instead
create function public.claim_call_job(
  p_attempt          uuid,
  p_lease_s          double precision,
  p_calls_per_second double precision,
  p_busy_s           double precision,
  p_job_id           bigint default null,
  p_calls_per_number_per_day  int default 3,
  p_calls_per_prefix_per_hour int default 20,
  p_calls_per_day             int default null,
  p_from                      text default null
) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  -- A claim may come a little early: that keeps the average, and without it every claim that waited for a lock would come too early
  -- by its own, older, clock. At most one call's worth, because what is early waits in Twilio's queue.
  v_early constant interval := make_interval(secs => greatest(0.1, least(0.5, 1 / p_calls_per_second)));
  -- Ten thousand jobs for one busy number must not hold this transaction up until it is canceled, and all that it did undone.
  c_at_most constant int := 100;
  v_now   constant timestamptz := private.clock();
  v_job   public.outbound_call_jobs;
  v_gate  private.call_settings;
  v_cap   record;
  v_until timestamptz;
begin
  for i in 1 .. c_at_most loop
    if p_job_id is null then
      select * into v_job from public.outbound_call_jobs
      where status = 'queued' and due_at <= v_now
      order by due_at, id limit 1
      for update skip locked;
    else
      select * into v_job from public.outbound_call_jobs
      where id = p_job_id and status = 'queued' and due_at <= v_now
      for update skip locked;
    end if;
    if not found then
      select * into v_job from public.outbound_call_jobs where id = p_job_id;
      return jsonb_build_object('outcome', 'none', 'status', v_job.status, 'due_at', v_job.due_at, 'reason_code', v_job.reason_code);
    end if;
    if v_job.phone_e164 is null then
      return jsonb_build_object('outcome', 'unparsed', 'job_id', v_job.id, 'phone_number', v_job.phone_number);
    end if;
    if exists (select from public.call_opt_outs o where o.phone_e164 = v_job.phone_e164) then
      update public.outbound_call_jobs
      set status = 'canceled', due_at = null, finished_at = v_now, reason_code = 'opted_out', reason = private.why_canceled('opted_out')
      where id = v_job.id;
      continue;
    end if;

    begin
      insert into public.outbound_call_attempts (id, job_id, number, phone_e164, from_e164, started_at)
      select p_attempt, v_job.id, v_job.attempts + 1, v_job.phone_e164, p_from, v_now
      where not exists (select from public.outbound_call_attempts a
                        where a.phone_e164 = v_job.phone_e164 and a.state = 'duplicate' and a.closed_at is null)
      on conflict (phone_e164) where state in ('started', 'in_doubt', 'accepted') do nothing;
      if not found then
        update public.outbound_call_jobs
        set due_at = v_now + make_interval(secs => p_busy_s), reason_code = 'number_in_use',
            reason = 'another call to this number is under way'
        where id = v_job.id;
        continue;
      end if;

      update public.outbound_call_jobs
      set status = 'dialing', due_at = v_now + make_interval(secs => p_lease_s), attempts = attempts + 1,
          reason_code = null, reason = null
      where id = v_job.id
      returning * into v_job;

      -- The gate. The row lock makes it exact: once a pause has committed, no claim passes.
      update private.call_settings
      set next_call_at = greatest(next_call_at, v_now) + make_interval(secs => 1 / p_calls_per_second),
          probe_until = case when halts > 0 then v_job.due_at end
      where only_row
        and next_call_at <= v_now + v_early
        and (paused_until is null or paused_until <= v_now)
        and (halts = 0 or probe_until is null or probe_until <= v_now);
      if not found then
        raise exception sqlstate 'CD001';  -- undoes this block, and nothing else
      end if;
      v_cap := private.cap_in_the_way(p_attempt, v_job.phone_e164, v_now,
                                      p_calls_per_number_per_day, p_calls_per_prefix_per_hour, p_calls_per_day);
      if v_cap.code is not null then
        raise exception sqlstate 'CD002';
      end if;
      return jsonb_build_object(
        'outcome', 'claimed',
        'now', v_now,
        'attempt', jsonb_build_object('id', p_attempt, 'number', v_job.attempts),
        'job', jsonb_build_object(
          'id', v_job.id, 'user_id', v_job.user_id, 'phone_number', v_job.phone_number, 'phone_e164', v_job.phone_e164,
          'first_name', v_job.first_name, 'signup_mode', v_job.signup_mode,
          'metadata', private.readable(v_job.metadata)));
    exception when sqlstate 'CD001' then
      select * into v_gate from private.call_settings;
    when sqlstate 'CD002' then
      if v_cap.code = 'calls_per_day' then
        -- Those that are about to be dialed count, and may yet be given back (hours): only what was dialed pauses everybody.
        perform from public.outbound_call_attempts
        where state not in ('refused', 'absent') and put_off_until is null  -- as the index has it
          and state = 'started' and started_at > v_now - make_interval(secs => p_lease_s)
        order by started_at desc limit 1;
        if found then
          return jsonb_build_object('outcome', 'wait', 'wait_s', 1.0);
        end if;
        update private.call_settings set paused_until = v_cap.until, pause_reason = 'CALLS_PER_DAY is reached', stopped = false
        where only_row and (paused_until is null or paused_until <= v_now);
        return jsonb_build_object('outcome', 'paused', 'until', v_cap.until, 'reason', 'CALLS_PER_DAY is reached', 'just_now', found);
      end if;
      update public.outbound_call_jobs
      set due_at = v_cap.until, reason_code = v_cap.code,
          reason = case v_cap.code when 'calls_per_number_per_day' then 'this number has been called as often as it may be in 24 hours'
                                   else 'many numbers of the same prefix in an hour: it is held' end
      where id = v_job.id;
      continue;
    end;

    v_until := greatest(v_gate.paused_until, case when v_gate.halts > 0 then v_gate.probe_until end);
    if v_until > v_now then
      return jsonb_build_object('outcome', 'paused', 'until', v_until, 'reason', v_gate.pause_reason);
    end if;
    return jsonb_build_object('outcome', 'wait',
      'wait_s', greatest(extract(epoch from v_gate.next_call_at - v_early - v_now), 0.01));
  end loop;
  return jsonb_build_object('outcome', 'wait', 'wait_s', 0.01);
end
$$;

-- Called by the dispatcher after "unparsed", or when what was typed reads as another number than phone_e164:
-- write down the number, or end the job because there is none (p_phone_e164 null; p_code and p_reason say why).
-- Counts only while the job is queued and still holds the text that was parsed. -> true if it counted
create function public.set_call_number(p_job_id bigint, p_phone_number text, p_phone_e164 text, p_code text default null, p_reason text default null)
returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  update public.outbound_call_jobs
  set phone_e164  = coalesce(p_phone_e164, phone_e164),
      status      = case when p_phone_e164 is null then 'failed' else status end,
      due_at      = case when p_phone_e164 is not null then due_at end,
      finished_at = case when p_phone_e164 is null then private.clock() end,
      reason_code = p_code, reason = p_reason
  where id = p_job_id and status = 'queued' and phone_number = p_phone_number;
  return found;
end
$$;

create type private.locked_attempt as (attempt public.outbound_call_attempts, job public.outbound_call_jobs);

-- The open attempt and its job, locked in that order: job first. Null fields when there is no such attempt.
-- Called by every function that writes an outcome.
create function private.lock_attempt(p_attempt uuid) returns private.locked_attempt
language plpgsql set search_path = '' as $$
declare
  v_job     public.outbound_call_jobs;
  v_attempt public.outbound_call_attempts;
begin
  select j.* into v_job from public.outbound_call_jobs j
  where j.id = (select a.job_id from public.outbound_call_attempts a where a.id = p_attempt)
  for update;
  select a.* into v_attempt from public.outbound_call_attempts a where a.id = p_attempt for update;
  return (v_attempt, v_job);
end
$$;

-- Called by the dispatcher: give a job back, the attempt unspent, because nothing was dialed (hours, a frozen process)
-- or because Twilio took nothing (429, a halt). It is due again after p_delay_s, or at p_not_before. p_slot_s: how long a slot
-- of the pace is, to give that back, too, because Twilio was not asked. p_halt_s: our account or configuration is broken, so pause all calls that
-- long, twice as long each time in a row, up to an hour. Counts only from started and in_doubt. -> true if it counted
create function public.release_call_job(
  p_attempt uuid,
  p_delay_s double precision,
  p_code    text,
  p_reason  text,
  p_halt_s  double precision default null,
  p_not_before timestamptz default null,
  p_slot_s  double precision default 0
) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_locked  record;
  v_job     public.outbound_call_jobs;
  v_attempt public.outbound_call_attempts;
begin
  select * into v_locked from private.lock_attempt(p_attempt);
  v_attempt := v_locked.attempt;
  v_job := v_locked.job;
  if v_attempt.state is null or v_attempt.state not in ('started', 'in_doubt') then
    return false;
  end if;
  delete from public.outbound_call_attempts where id = p_attempt;
  update public.outbound_call_jobs
  set attempts    = attempts - 1,
      status      = case when cancel_requested then 'canceled' else 'queued' end,
      due_at      = case when not cancel_requested then coalesce(p_not_before, v_now + make_interval(secs => p_delay_s)) end,
      finished_at = case when cancel_requested then v_now end,
      reason_code = case when cancel_requested then coalesce(cancel_code, 'canceled') else p_code end,
      reason      = case when cancel_requested then private.why_canceled(cancel_code) else p_reason end
  where id = v_job.id;

  if p_halt_s is null then
    -- The probe proved nothing: the next one may go. Its lease is the mark of the probe; others leave the gate as it is.
    update private.call_settings set probe_until = null where only_row and probe_until = v_job.due_at;
  else
    -- Ten requests under way that all meet the same broken account are one halt, not ten.
    update private.call_settings
    set paused_until = greatest(paused_until, v_now + make_interval(secs => least(p_halt_s * 2 ^ least(halts, 20), greatest(p_halt_s, 3600)))),
        pause_reason = p_reason,
        stopped      = false,
        halts        = halts + 1,
        probe_until  = null
    where only_row and (paused_until is null or paused_until <= v_now);
  end if;
  perform private.give_back_slot(p_slot_s);
  return true;
end
$$;

-- Called when a claim came to nothing before Twilio was asked: the next one need not wait for it. With p_job's lock held.
create function private.give_back_slot(p_slot_s double precision) returns void
language sql set search_path = '' as $$
  update private.call_settings set next_call_at = next_call_at - make_interval(secs => p_slot_s) where only_row and p_slot_s > 0
$$;

-- Why a job was canceled, in words.
create function private.why_canceled(p_cancel_code text) returns text
language sql immutable set search_path = '' as $$
  select case p_cancel_code when 'opted_out' then 'the number has opted out of calls'
                            when 'user_deleted' then 'the user was deleted'
                            when 'paused' then 'picked up while all calls were paused, and hung up on'
                            else 'canceled by hand' end
$$;

revoke all on function
  private.lock_attempt(uuid),
  private.cap_in_the_way(uuid, text, timestamptz, int, int, int),
  private.give_back_slot(double precision),
  private.readable(jsonb),
  private.why_canceled(text)
from public, anon, authenticated, service_role;
revoke all on function public.claim_call_job(uuid, double precision, double precision, double precision, bigint, int, int, int, text) from public, anon, authenticated;
revoke all on function public.set_call_number(bigint, text, text, text, text) from public, anon, authenticated;
revoke all on function public.release_call_job(uuid, double precision, text, text, double precision, timestamptz, double precision) from public, anon, authenticated;
grant execute on function public.claim_call_job(uuid, double precision, double precision, double precision, bigint, int, int, int, text) to service_role;
grant execute on function public.set_call_number(bigint, text, text, text, text) to service_role;
grant execute on function public.release_call_job(uuid, double precision, text, text, double precision, timestamptz, double precision) to service_role;
