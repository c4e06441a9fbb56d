-- From a queued job to one request to Twilio: claim it, or release it undialed.

create function private.cap_reached(
  p_attempt uuid, p_phone_e164 text, p_now timestamptz, p_calls_per_number_per_day int,
  p_calls_per_prefix_per_hour int, p_calls_per_day int, p_calls_without_key int, out code text, out until timestamptz
) language plpgsql stable set search_path = '' as $$
declare
  v_numbers int;
begin
  -- The n-th newest call of the day: when it is a day old, there is room for one more.
  select started_at + interval '24 hours' into until from private.counted_calls
  where phone_e164 = p_phone_e164 and started_at > p_now - interval '24 hours' and id <> p_attempt
  order by started_at desc offset p_calls_per_number_per_day - 1 limit 1;
  if found and p_calls_per_number_per_day is not null then
    code := 'calls_per_number_per_day';
    return;
  end if;

  select started_at + interval '7 days' into until from private.counted_calls
  where phone_e164 = p_phone_e164 and started_at > p_now - interval '7 days' and id <> p_attempt
  order by started_at desc offset p_calls_without_key - 1 limit 1;
  if found and not exists (
    select from private.counted_calls a join public.outbound_call_answers q on q.job_id = a.job_id
    where a.phone_e164 = p_phone_e164 and a.started_at <= p_now and q.attempt_id = a.id) then
    code := 'calls_without_key';
    return;
  end if;

  -- Many numbers that differ in their last four digits only are the mark of toll fraud. They are held for an hour.
  if p_calls_per_prefix_per_hour > 0 then
    select count(distinct phone_e164), max(started_at) + interval '1 hour' into v_numbers, until
    from private.counted_calls
    where left(phone_e164, -4) = left(p_phone_e164, -4) and started_at > p_now - interval '1 hour'
      and phone_e164 <> p_phone_e164;
    if v_numbers >= p_calls_per_prefix_per_hour then
      code := 'calls_per_prefix_per_hour';
      return;
    end if;
  end if;

  if p_calls_per_day is not null then
    -- From the newest count to the oldest: the one that reaches the ceiling, and when it is a day old.
    select c.began + interval '24 hours 5 minutes' into until
    from (select began, sum(calls) over (order by began desc) as calls from private.call_counts
          where began > p_now - interval '24 hours 5 minutes') c
    where c.calls >= p_calls_per_day order by c.began desc limit 1;
    if found then
      code := 'calls_per_day';
    end if;
  end if;
end $$;
comment on function private.cap_reached is
  'Call dispatcher: which cap forbids a call to this number now. With call_settings locked, the count holds over all'
  ' instances. A null cap, and a prefix cap of 0, is none; p_attempt itself is not counted. -> code: null, or the cap;'
  ' calls_per_day holds all jobs until "until", the others hold this one';

create function private.count_call(p_started_at timestamptz, p_calls int) returns void
language plpgsql set search_path = '' as $$
declare
  v_began constant timestamptz := date_bin('5 minutes', p_started_at, '2000-01-01Z');
begin
  update private.call_counts set calls = calls + p_calls where began = v_began;
  if not found and p_calls > 0 then
    insert into private.call_counts (began, calls) values (v_began, p_calls);
  end if;
end $$;
comment on function private.count_call is
  'Call dispatcher: count a call (1), or take one back (-1). It locks its row of call_counts, after call_settings.';

create function private.gate_closed(p_gate private.call_settings, p_now timestamptz, p_early interval) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  v_until constant timestamptz := greatest(p_gate.paused_until, case when p_gate.halts > 0 then p_gate.probe_until end);
begin
  return case
    when v_until > p_now then jsonb_build_object('outcome', 'paused', 'until', v_until, 'reason', p_gate.pause_reason)
    when p_gate.next_call_at > p_now + p_early then jsonb_build_object(
      'outcome', 'wait', 'wait_s', greatest(extract(epoch from p_gate.next_call_at - p_early - p_now), 0.01)) end;
end $$;
comment on function private.gate_closed is 'Call dispatcher: the answer of a claim that a pause, probe or rate denies.';

create function private.in_words(p_code text) returns text language sql immutable set search_path = '' as $$
  select case p_code
    when 'number_in_use' then 'another call to this number is under way, or is tried again first'
    when 'calls_per_number_per_day' then 'this number reached CALLS_PER_NUMBER_PER_DAY'
    when 'calls_without_key' then 'too many calls within 7 days to a number at which nobody has ever pressed a key'
    when 'calls_per_prefix_per_hour' then 'held: too many numbers with this prefix within an hour'
    when 'calls_per_day' then 'CALLS_PER_DAY is reached'
    when 'opted_out' then 'the number has opted out of calls'
    when 'user_deleted' then 'the user was deleted'
    when 'user_banned' then 'the user is banned'
    when 'number_reached' then 'this number was reached within the hour, for another user'
    when 'paused' then 'answered while all calls were paused, and ended'
    when 'busy' then 'the line was busy'
    when 'no-answer' then 'nobody answered'
    when 'failed' then 'the call could not be put through'
    when 'outcome_unknown' then 'the end of the call never became known'
    when 'asked_for_later' then 'the person asked to be called at this time'
    when 'absent' then 'it was in doubt, and Twilio has no such call'
    when 'gave_up' then 'it was in doubt, Twilio has no such call, and doubtful calls are not repeated here'
    when 'canceled' then 'canceled by hand' end  -- the job, never the call
$$;
comment on function private.in_words is 'Call dispatcher: why a job was put off or ended, or what became of its call.';

create function private.readable(p_metadata jsonb) returns jsonb language plpgsql immutable set search_path = '' as $$
begin
  return (select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(p_metadata)
          where jsonb_typeof(value) in ('string', 'number', 'boolean') and length(value #>> '{}') <= 1000);
end $$;
comment on function private.readable is
  'Call dispatcher: the metadata that the dispatcher gets: texts and numbers that a script can say. An answer that a'
  ' client cannot read (a list nested a thousand deep, a number of 5,000 digits) would stop the sweep for everybody.';

create function private.pause_for_restore() returns jsonb language plpgsql set search_path = '' as $$
declare
  c_reason constant text := 'this database was restored or copied, and its jobs may have been called since: see'
                            ' shared/docs/restore.md, then select confirm_restore()';
begin
  -- A pause by hand stays: confirm_restore() must not end it.
  update private.call_settings set paused_until = 'infinity', paused_by = 'restore', pause_reason = c_reason
  where only_row
    and (paused_until is null or paused_until <= private.clock() or paused_by in ('halt', 'calls_per_day'));
  return jsonb_build_object('outcome', 'paused', 'until', 'infinity', 'reason', c_reason);
end $$;
comment on function private.pause_for_restore is 'Call dispatcher: the claimed job was queued in another database.';

create function private.ask_before_dialing(p_job public.outbound_call_jobs, p_from text, p_busy_s double precision)
returns void language plpgsql set search_path = '' as $$
declare
  c_reason constant text := 'queued before the restore: Twilio is asked whether it was called since';
begin
  insert into public.outbound_call_attempts
    (id, job_id, number, phone_e164, from_e164, state, started_at, doubted_at, error_code, error_message)
  values (gen_random_uuid(), p_job.id, p_job.attempts + 1, p_job.phone_e164, p_from, 'in_doubt', p_job.created_at,
          private.clock(), 'restored', c_reason)
  on conflict (phone_e164) where state in ('started', 'in_doubt', 'accepted') do nothing;
  update public.outbound_call_jobs
  set status      = case when found then 'in_doubt' else status end,
      attempts    = attempts + found::int,
      database_id = case when found then private.database_id() else database_id end,
      due_at      = private.clock() + case when found then interval '0' else make_interval(secs => p_busy_s) end,
      reason_code = case when found then 'restored' else 'number_in_use' end,
      reason      = case when found then c_reason else private.in_words('number_in_use') end
  where id = p_job.id;
end $$;
comment on function private.ask_before_dialing is
  'Call dispatcher: a job older than a confirmed restore is in doubt since it was queued: Twilio''s list settles it.';

create function private.whom_not_to_call(
  p_job public.outbound_call_jobs, p_now timestamptz, out code text, out until timestamptz
) language plpgsql stable set search_path = '' as $$
declare
  v_reached boolean;
begin
  -- Another user's job for this number goes first, once it was dialed. Of two such jobs, the older one.
  select bool_or(k.status = 'completed' and k.finished_at > p_now - interval '1 hour'),
         max(case when k.status = 'queued' then k.due_at else p_now end)
           filter (where k.finished_at is null and (p_job.attempts = 0 or k.id < p_job.id))
  into v_reached, until
  from private.counted_calls a join public.outbound_call_jobs k on k.id = a.job_id
  where a.phone_e164 = p_job.phone_e164 and a.started_at > p_now - interval '7 days' and k.user_id <> p_job.user_id;
  code := case
    when exists (select from public.call_opt_outs o where o.phone_e164 = p_job.phone_e164) then 'opted_out'
    when exists (select from auth.users u where u.id = p_job.user_id and u.banned_until > p_now) then 'user_banned'
    when p_job.reason_code = 'retried' then null
    when v_reached then 'number_reached'
    when until is not null then 'number_in_use' end;
end $$;
comment on function private.whom_not_to_call is
  'Call dispatcher: null: it may be dialed · number_in_use: it waits, at least until "until" · else it is canceled.';

create function private.redial(p_job public.outbound_call_jobs) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select case when a.call_status <> 'completed' or private.is_by_machine(a) then jsonb_build_object(
      'missed_at', a.started_at, 'due_at', greatest(p_job.due_at, a.started_at)) end
    from public.outbound_call_attempts a
    where a.job_id = p_job.id and a.state = 'ended' and a.put_off_until is null
      and coalesce(p_job.reason_code, '') not in ('retried', 'asked_for_later')  -- a person chose this time
    order by a.number desc, a.started_at desc limit 1);
end $$;
comment on function private.redial is
  'Call dispatcher: of a job whose last call nobody picked up: when that call began, and when the next was due.';

create function public.claim_call_job(
  p_attempt uuid, p_lease_s double precision, p_calls_per_second double precision, p_busy_s double precision,
  p_job_id bigint default null, p_calls_per_number_per_day int default 3, p_calls_per_prefix_per_hour int default 20,
  p_calls_per_day int default null, p_from text default null
) returns jsonb language plpgsql security definer set search_path = '' set lock_timeout = '1s' as $$
declare
  v_slot  constant interval := make_interval(secs => 1 / p_calls_per_second);
  -- A claim may come a little early. That keeps the average: a claim that waited for a lock has an older clock and
  -- would come too early by it. At most one call's worth, because an early call waits in Twilio's queue.
  v_early constant interval := greatest(interval '0.1 s', least(interval '0.5 s', v_slot));
  v_now    constant timestamptz := private.clock();
  v_lease_ends constant timestamptz := v_now + make_interval(secs => p_lease_s);
  v_here   constant text := private.database_id();
  v_job    public.outbound_call_jobs;
  v_gate   private.call_settings;
  v_closed jsonb;
  v_code   text;
  v_until  timestamptz;
begin
  for i in 1 .. 100 loop  -- ten thousand jobs for one busy number must not hold this transaction until it is canceled
    -- 1. Look at the gate, without a lock: a claim that it denies writes nothing. If it has one slot left, one claim
    -- goes on, and the others are told the next slot.
    select * into v_gate from private.call_settings;
    v_closed := private.gate_closed(v_gate, v_now, v_early);
    if v_closed is null and greatest(v_gate.next_call_at, v_now) + v_slot > v_now + v_early then
      if pg_try_advisory_xact_lock('pg_class'::regclass::int, 'private.call_settings'::regclass::int) then
        select * into v_gate from private.call_settings;  -- the claim before this one may have taken the slot
      else
        v_gate.next_call_at := greatest(v_gate.next_call_at, v_now) + v_slot;
      end if;
      v_closed := private.gate_closed(v_gate, v_now, v_early);
    end if;

    -- 2. Lock the job. A job that another claim holds is skipped.
    if v_closed is not null then
      select * into v_job from public.outbound_call_jobs
      where status = 'queued' and due_at <= v_now
        and id = coalesce(p_job_id, (select j.id from public.outbound_call_jobs j
                                     where j.status = 'queued' and j.due_at <= v_now order by j.due_at, j.id limit 1));
    elsif p_job_id is null then
      select * into v_job from public.outbound_call_jobs
      where status = 'queued' and due_at <= v_now
      order by due_at, id limit 1 for update skip locked;
    else
      select * into v_job from public.outbound_call_jobs
      where id = p_job_id and status = 'queued' and due_at <= v_now for update skip locked;
    end if;
    if not found then
      select * into v_job from public.outbound_call_jobs where id = p_job_id;
      return jsonb_build_object(
        'outcome', 'none', 'status', v_job.status, 'reason_code', v_job.reason_code,
        'due_at', case when v_job.status <> 'queued' or v_job.due_at > v_now then v_job.due_at end);
    end if;
    if v_job.phone_e164 is null then
      return jsonb_build_object('outcome', 'unparsed', 'job_id', v_job.id, 'phone_number', v_job.phone_number);
    elsif v_closed is not null then
      return v_closed;
    end if;

    -- 3. Who may not be called, or not before another user.
    select w.code, w.until into v_code, v_until from private.whom_not_to_call(v_job, v_now) w;
    if v_code in ('opted_out', 'user_banned', 'number_reached') then
      perform private.move_job(v_job, 'canceled', null, v_code);
      continue;
    end if;
    if v_job.database_id <> v_here then
      if v_gate.confirmed_id is distinct from v_here then
        return private.pause_for_restore();
      end if;
      perform private.ask_before_dialing(v_job, p_from, p_busy_s);
      continue;
    end if;

    v_until := greatest(v_until, v_now) + make_interval(secs => p_busy_s);
    if v_code is null then
      begin
        -- 4. Insert the attempt. A number that has an open attempt puts the job off, and the next job is tried.
        insert into public.outbound_call_attempts (id, job_id, number, phone_e164, from_e164, started_at)
        select p_attempt, v_job.id, v_job.attempts + 1, v_job.phone_e164, p_from, v_now
        where not exists (select from public.outbound_call_attempts a
                          where a.phone_e164 = v_job.phone_e164 and a.state = 'duplicate' and a.closed_at is null)
        on conflict (phone_e164) where state in ('started', 'in_doubt', 'accepted') do nothing;
        if found then
          update public.outbound_call_jobs
          set status = 'dialing', due_at = v_lease_ends, attempts = attempts + 1, reason_code = null, reason = null
          where id = v_job.id;

          -- 5. Take a slot of the rate. The row lock makes it exact: once a pause has committed, no claim passes.
          update private.call_settings
          set next_call_at = greatest(next_call_at, v_now) + v_slot,
              probe_until = case when halts > 0 then v_lease_ends end
          where only_row
            and next_call_at <= v_now + v_early
            and (paused_until is null or paused_until <= v_now)
            and (halts = 0 or probe_until is null or probe_until <= v_now);
          if not found then
            raise exception sqlstate 'CD001';  -- undoes this block, and nothing else
          end if;

          -- 6. Count the caps, under that lock.
          select c.code, c.until into v_code, v_until
          from private.cap_reached(p_attempt, v_job.phone_e164, v_now, p_calls_per_number_per_day,
                                   p_calls_per_prefix_per_hour, p_calls_per_day, v_gate.calls_without_key) c;
          if v_code is not null then
            raise exception sqlstate 'CD001';
          end if;
          perform private.count_call(v_now, 1);
          return jsonb_build_object('outcome', 'claimed', 'now', v_now, 'redial', private.redial(v_job),
            'attempt', jsonb_build_object('id', p_attempt, 'number', v_job.attempts + 1),
            'job', jsonb_build_object(
              'id', v_job.id, 'user_id', v_job.user_id, 'phone_number', v_job.phone_number,
              'phone_e164', v_job.phone_e164, 'first_name', v_job.first_name, 'signup_mode', v_job.signup_mode,
              'metadata', private.readable(v_job.metadata)));
        end if;
        v_code := 'number_in_use';
      exception when sqlstate 'CD001' then
        if v_code is null then
          continue;  -- the gate has just closed: look again, and answer
        end if;
      end;
    end if;

    if v_code = 'calls_per_day' then
      -- A job about to be dialed counts, and may yet be released (hours): only dialed calls pause everybody.
      perform from private.counted_calls  -- with the condition of outbound_call_attempts_per_day
      where state = 'started' and started_at > v_now - make_interval(secs => p_lease_s)
      order by started_at desc limit 1;
      if found then
        return jsonb_build_object('outcome', 'wait', 'wait_s', 1.0);
      end if;
      update private.call_settings
      set paused_until = v_until, paused_by = v_code, pause_reason = private.in_words(v_code)
      where only_row and (paused_until is null or paused_until <= v_now);
      return jsonb_build_object('outcome', 'paused', 'until', v_until, 'reason', private.in_words(v_code),
                                'just_now', found);
    end if;
    perform private.move_job(v_job, 'queued', v_until, v_code);
  end loop;
  return jsonb_build_object('outcome', 'wait', 'wait_s', 0.01);
exception when lock_not_available then  -- after lock_timeout; everything is undone, and the sweep comes back to the job
  return jsonb_build_object('outcome', 'wait', 'wait_s', 5.0, 'reason', 'a lock in the database is held');
end $$;
comment on function public.claim_call_job is
  'Call dispatcher: for the webhook (with p_job_id) and the sweep: take one due job, alone, and write its attempt'
  ' before Twilio is asked. p_attempt is a random uuid made by the caller, p_from our number; p_lease_s, in which'
  ' nobody else looks at the job, must outlast the request. -> {"outcome": "claimed", "job", "attempt": {"id",'
  ' "number"}, "now", "redial": {"missed_at": the last call, if nobody picked it up, "due_at": when this one was due}}'
  ' | {"outcome": "wait", "wait_s", "reason"}: the rate, a lock that is held (reason), or 100 jobs were put off, and'
  ' there may be more | {"outcome": "paused", "until", "reason", "just_now": by p_calls_per_day, in this claim} |'
  ' {"outcome": "unparsed", "job_id", "phone_number"}: parse it, call set_call_number, claim again | {"outcome":'
  ' "none", "status", "due_at", "reason_code"}: nothing is due; the rest is of p_job_id';

create function public.set_call_number(
  p_job_id bigint, p_phone_number text, p_phone_e164 text, p_code text default null, p_reason text default null
) returns boolean language plpgsql security definer set search_path = '' as $$
begin
  update public.outbound_call_jobs
  set phone_e164  = coalesce(p_phone_e164, phone_e164),
      status      = case when p_phone_e164 is null then 'failed' else status end,
      due_at      = case when p_phone_e164 is not null then due_at end,
      finished_at = case when p_phone_e164 is null then private.clock() end,
      reason_code = p_code, reason = p_reason
  where id = p_job_id and status = 'queued' and phone_number = p_phone_number;
  return found;
end $$;
comment on function public.set_call_number is
  'Call dispatcher: after "unparsed", or when phone_number reads as another number than phone_e164: write the E.164'
  ' number. p_phone_e164 null: there is none, and the job fails for p_code. Counts only while the job is queued and'
  ' still holds the text that was parsed. -> true if it counted';

create type private.locked_attempt as (attempt public.outbound_call_attempts, job public.outbound_call_jobs);
comment on type private.locked_attempt is 'Call dispatcher: the answer of private.lock_attempt.';

create function private.lock_attempt(p_attempt uuid) returns private.locked_attempt
language plpgsql set search_path = '' as $$
declare
  v_job     public.outbound_call_jobs;
  v_attempt public.outbound_call_attempts;
begin
  select j.* into v_job from public.outbound_call_jobs j
  where j.id = (select a.job_id from public.outbound_call_attempts a where a.id = p_attempt) for update;
  select a.* into v_attempt from public.outbound_call_attempts a where a.id = p_attempt for update;
  return (v_attempt, v_job);
end $$;
comment on function private.lock_attempt is
  'Call dispatcher: an attempt and its job, locked job first; or nulls. Every outcome is written under these locks.';

create function private.give_back_slot(p_slot_s double precision, p_started_at timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
  if p_slot_s > 0 then
    update private.call_settings set next_call_at = next_call_at - make_interval(secs => p_slot_s) where only_row;
  end if;
  perform private.count_call(p_started_at, -1);
end $$;
comment on function private.give_back_slot is
  'Call dispatcher: a claim ended before Twilio was asked: the next one need not wait for it. The job is locked.';

create function private.move_job(
  p_job public.outbound_call_jobs, p_status text, p_due_at timestamptz, p_code text, p_reason text default null,
  p_give_back int default 0
) returns void language plpgsql set search_path = '' as $$
begin
  update public.outbound_call_jobs
  set attempts    = attempts - p_give_back,
      status      = case when cancel_requested then 'canceled' else p_status end,
      due_at      = case when not cancel_requested then p_due_at end,
      finished_at = case when cancel_requested or p_due_at is null then private.clock() end,
      reason_code = case when cancel_requested then coalesce(cancel_code, 'canceled') else p_code end,
      reason      = case when cancel_requested then private.in_words(coalesce(cancel_code, 'canceled'))
                         else coalesce(p_reason, private.in_words(p_code)) end
  where id = p_job.id;
end $$;
comment on function private.move_job is
  'Call dispatcher: the locked job has no call now: queue it (p_due_at) or end it (null). A requested cancel wins.'
  ' p_reason null: p_code in words. p_give_back: attempts that do not count.';

create function private.give_back_job(
  p_job public.outbound_call_jobs, p_due_at timestamptz, p_code text, p_reason text default null
) returns void language sql set search_path = '' as $$
  select private.move_job(p_job, 'queued', p_due_at, p_code, p_reason, 1)
$$;
comment on function private.give_back_job is
  'Call dispatcher: queue the locked job, its attempt unspent: nothing rang, or the person asked for a later call.';

create function public.release_call_job(
  p_attempt uuid, p_delay_s double precision, p_code text, p_reason text, p_halt_s double precision default null,
  p_not_before timestamptz default null, p_slot_s double precision default 0
) returns boolean language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_locked  constant private.locked_attempt := private.lock_attempt(p_attempt);
  v_job     constant public.outbound_call_jobs := v_locked.job;
  v_attempt constant public.outbound_call_attempts := v_locked.attempt;
begin
  if v_attempt.state is null or v_attempt.state not in ('started', 'in_doubt') then
    return false;
  end if;
  delete from public.outbound_call_attempts where id = p_attempt;
  perform private.give_back_job(
    v_job, coalesce(p_not_before, v_now + make_interval(secs => p_delay_s)), p_code, p_reason);

  if p_halt_s is null then
    -- The probe showed nothing, so the next one may go. Its lease identifies the probe; other jobs change nothing.
    update private.call_settings set probe_until = null where only_row and probe_until = v_job.due_at;
  else
    -- Ten requests that meet the same broken account at once are one halt, not ten.
    update private.call_settings
    set paused_until = v_now + make_interval(secs => least(p_halt_s * 2 ^ least(halts, 20), greatest(p_halt_s, 3600))),
        paused_by = 'halt', pause_reason = p_reason, halts = halts + 1, probe_until = null
    where only_row and (paused_until is null or paused_until <= v_now);
  end if;
  perform private.give_back_slot(p_slot_s, v_attempt.started_at);
  return true;
end $$;
comment on function public.release_call_job is
  'Call dispatcher: give a job back, its attempt unspent: nothing was dialed (hours, a frozen process), or Twilio took'
  ' nothing (429, a halt). It is due after p_delay_s, or at p_not_before. p_slot_s: Twilio was not asked: the length of'
  ' the slot that is given back. p_halt_s: our account or configuration is broken: pause all calls that long, twice as'
  ' long each time in a row, up to an hour. Counts only from started and in_doubt. -> true if it counted';

select private.apply_rights();
