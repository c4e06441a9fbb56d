-- What a call learns: answers by key, the opt-out key, who picked up, and all of it in one row for whoever reads it.

set local lock_timeout = '2s';  -- rather fail, and be pushed again, than let sign-ups and callbacks wait behind us

create table public.outbound_call_answers (
  job_id      bigint not null references public.outbound_call_jobs (id) on delete cascade,
  question    text not null check (length(question) between 1 and 64),
  meaning     text not null check (length(meaning) between 1 and 100),
  digits      text not null check (digits ~ '^[0-9*#A-D]{1,32}$'),
  attempt_id  uuid not null,  -- no reference: it would make each release of an attempt look here
  answered_at timestamptz not null,
  primary key (job_id, question)
);

comment on table public.outbound_call_answers is 'What a person answered, by question; the last answer wins. Written by record_call_answer.';
comment on column public.outbound_call_answers.meaning is 'What the key means, as the script says ("means"); digits is what was pressed.';

alter table public.outbound_call_answers enable row level security;
revoke all on public.outbound_call_answers from public, anon, authenticated, service_role;
grant select on public.outbound_call_answers to service_role;

alter table public.outbound_call_jobs add column qualification jsonb;
comment on column public.outbound_call_jobs.qualification is
  'What the call has learned, once the job is over and somebody or something had picked up; else null. '
  '{"answers": {"<question>": "<meaning>", ...}, "opted_out": true if by a key in the call, "answered_by": as Twilio says, or null}';

-- Whether the opt-out key was pressed in this call.
create function private.has_opted_out_by_key(p_attempt public.outbound_call_attempts) returns boolean
language sql stable set search_path = '' as $$
  select exists (select from public.call_opt_outs o
                 where o.phone_e164 = p_attempt.phone_e164 and o.how = 'key press' and o.opted_out_at >= p_attempt.started_at)
$$;

-- Whether a machine picked up, as far as anyone knows. Detection errs: who presses a key is a person. Called by record_call_status,
-- record_call_answer and call_answer.
create function private.is_by_machine(p_attempt public.outbound_call_attempts) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  if p_attempt.answered_by = 'fax' or p_attempt.answered_by like 'machine%' then  -- hardly ever: each word of a call comes here
    return not exists (select from public.outbound_call_answers a where a.job_id = p_attempt.job_id and a.attempt_id = p_attempt.id)
           and not private.has_opted_out_by_key(p_attempt);
  end if;
  return false;
end
$$;

-- The summary of a job that is over; null when nobody picked up. Called by summarize_call_job and record_call_answer.
create function private.qualification(p_job_id bigint) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'answers', coalesce((select jsonb_object_agg(q.question, q.meaning) from public.outbound_call_answers q where q.job_id = p_job_id), '{}'),
    'opted_out', private.has_opted_out_by_key(a),
    'answered_by', a.answered_by)
  from public.outbound_call_attempts a
  where a.job_id = p_job_id and a.state <> 'duplicate'
    and (a.call_status in ('in-progress', 'completed')
         or exists (select from public.outbound_call_answers q where q.job_id = p_job_id and q.attempt_id = a.id))
  order by a.number desc limit 1
$$;

-- Called when a job ends, however it ends, and when it is taken up again. Of who was deleted nothing is kept.
create function private.summarize_call_job() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  new.qualification := case when new.finished_at is not null and new.phone_number <> 'erased' then private.qualification(new.id) end;
  return new;
end
$$;

create trigger summarize_call_job before update on public.outbound_call_jobs
  for each row when ((old.finished_at is null) <> (new.finished_at is null)) execute function private.summarize_call_job();

-- What Python is told about a live call.
create or replace function private.call_answer(p_then text, p_sid text) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(
    (select jsonb_build_object(
       'then', p_then, 'state', a.state, 'call_status', a.call_status, 'by_machine', private.is_by_machine(a),
       'job', jsonb_build_object('id', j.id, 'status', j.status, 'first_name', j.first_name,
                                 'signup_mode', j.signup_mode, 'metadata', private.readable(j.metadata)))
     from public.outbound_call_attempts a join public.outbound_call_jobs j on j.id = a.job_id
     where a.call_sid = p_sid),
    jsonb_build_object('then', p_then, 'state', null, 'call_status', null, 'job', null))
$$;

-- Called by /status, by /voice and by the sweep's asking: what Twilio says about a call, in any order. Binds the SID first.
-- p_redial_delays_s: as in retry_or_fail, for a person who was not reached. p_answered_by may come by itself, with a p_call_status
-- that is no news. p_machine_counts_as: what a call that a machine picked up has been, "reached" or "missed" (then it is tried again).
-- -> as accept_call; "moved" is true when this word was news, "machine_now" when it is news that a machine has picked up
drop function public.record_call_status(uuid, text, text, double precision, double precision[], text, int, int, text);
create function public.record_call_status(
  p_attempt         uuid,
  p_call_sid        text,
  p_call_status     text,
  p_ask_s           double precision,
  p_redial_delays_s double precision[],
  p_answered_by     text default null,
  p_duration_s      int default null,
  p_sip_code        int default null,
  p_error_code      text default null,
  p_machine_counts_as text default 'reached'
) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_then    text := private.bind_call(p_attempt, p_call_sid, p_ask_s);
  v_attempt public.outbound_call_attempts;
  v_job     public.outbound_call_jobs;
  v_final   constant boolean := private.call_rank(p_call_status) = 4;
  v_ends_job boolean;
  v_moved   boolean;
  v_put_off_until timestamptz;
  v_was_machine boolean;
begin
  if p_machine_counts_as not in ('reached', 'missed') then
    raise exception 'p_machine_counts_as must be reached or missed';
  end if;
  if v_then = 'unknown' then
    return private.call_answer(v_then, p_call_sid) || '{"moved": false}';
  end if;
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;
  v_put_off_until := v_attempt.put_off_until;
  v_was_machine := private.is_by_machine(v_attempt);
  -- An attempt that was given up as outcome_unknown keeps its job as it is, whatever comes now.
  v_ends_job := v_final and v_attempt.state = 'accepted';
  if p_answered_by <> coalesce(v_attempt.answered_by, '') then  -- asynchronous detection: how far the call is does not matter
    update public.outbound_call_attempts set answered_by = p_answered_by where call_sid = p_call_sid;
    -- The word that the call is over may have come first: its job stays as it is, and its summary says who picked up.
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

  -- Picked up after calls were stopped: nobody speaks. A call that was answered before goes on.
  if v_moved and p_call_status = 'in-progress' and v_attempt.state = 'accepted' and private.is_stopped() then
    update public.outbound_call_jobs set cancel_requested = true, cancel_code = coalesce(cancel_code, 'paused'), due_at = v_now
    where id = v_attempt.job_id and not cancel_requested;
    v_then := 'end';
  end if;

  if v_moved and v_ends_job then
    select * into v_job from public.outbound_call_jobs where id = v_attempt.job_id;
    if p_call_status = 'canceled' and v_put_off_until is not null then  -- it never rang: the attempt is unspent
      update public.outbound_call_jobs
      set attempts    = attempts - 1,
          status      = case when cancel_requested then 'canceled' else 'queued' end,
          due_at      = case when not cancel_requested then v_put_off_until end,
          finished_at = case when cancel_requested then v_now end,
          reason_code = case when cancel_requested then coalesce(cancel_code, 'canceled') else reason_code end,
          reason      = case when cancel_requested then private.why_canceled(cancel_code) else reason end
      where id = v_job.id;
    elsif p_call_status = 'completed' and p_machine_counts_as = 'missed' and private.is_by_machine(v_attempt) then
      perform private.retry_or_fail(v_job, p_redial_delays_s, 'machine', 'a machine picked up');
    elsif p_call_status = 'completed' or (p_call_status = 'canceled' and not v_job.cancel_requested) then
      update public.outbound_call_jobs
      set status      = case when cancel_requested or p_call_status = 'canceled' then 'canceled' else 'completed' end,
          due_at      = null,
          finished_at = v_now,
          reason_code = case when cancel_requested then coalesce(cancel_code, 'canceled') when p_call_status = 'canceled' then 'call_canceled' end,
          reason      = case when cancel_requested then private.why_canceled(cancel_code)
                             when p_call_status = 'canceled' then 'the call was canceled at Twilio' end
      where id = v_job.id;
    else
      perform private.retry_or_fail(v_job, p_redial_delays_s, p_call_status,
        case p_call_status when 'busy' then 'the line was busy' when 'no-answer' then 'nobody answered'
                           when 'failed' then 'the call could not be put through' else 'canceled while the call was under way' end
        || coalesce(' (SIP ' || p_sip_code || ')', ''));
    end if;
  end if;
  return private.call_answer(case when v_final then 'keep' else v_then end, p_call_sid)
         || jsonb_build_object('moved', v_moved,
                               'machine_now', v_attempt.state = 'accepted' and not v_was_machine and private.is_by_machine(v_attempt));
end
$$;

-- Called by /voice after each Gather: what was pressed, if it means something (p_question, p_meaning), or that this number is never to be called
-- again (p_opt_out). Binds and answers as record_call_status does with "in-progress". Nothing is written for a call that is not
-- wanted, or that a machine has picked up; an opt-out is, whoever asks for it in whatever call of ours, and it holds before this
-- answers. This call goes on, so that it can say so; its job counts as reached. Twice is as good as once.
-- -> as record_call_status
create function public.record_call_answer(
  p_attempt  uuid,
  p_call_sid text,
  p_ask_s    double precision,
  p_question text default null,
  p_meaning  text default null,
  p_digits   text default null,
  p_opt_out  boolean default false
) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_attempt public.outbound_call_attempts;
  v_answer  jsonb;
begin
  -- Before the locks of its job are taken: who opts the number out by hand at this moment has written its row and waits for them.
  -- A call that is not known by its SID yet must be bound first: who opted out before that is not to be called at all.
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;
  if p_opt_out and v_attempt.phone_e164 is not null then
    perform public.opt_out(v_attempt.phone_e164, 'key press', case when v_attempt.state <> 'duplicate' then v_attempt.id end);
  end if;
  v_answer := public.record_call_status(p_attempt, p_call_sid, 'in-progress', p_ask_s, '{}');
  if v_answer ->> 'then' = 'unknown' then
    return v_answer;
  end if;
  if p_opt_out and v_attempt.id is null then
    select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;
    perform public.opt_out(v_attempt.phone_e164, 'key press', case when v_attempt.state <> 'duplicate' then v_attempt.id end)
    where v_attempt.phone_e164 is not null;
  end if;
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;

  if p_question is not null and p_meaning is not null and v_answer ->> 'then' = 'keep'
        and v_attempt.state in ('accepted', 'ended') and not private.is_by_machine(v_attempt)
        and exists (select from public.outbound_call_jobs j where j.id = v_attempt.job_id and j.phone_number <> 'erased') then
    insert into public.outbound_call_answers (job_id, question, meaning, digits, attempt_id, answered_at)
    values (v_attempt.job_id, p_question, p_meaning, p_digits, v_attempt.id, v_now)
    on conflict (job_id, question) do update
    set meaning = excluded.meaning, digits = excluded.digits, attempt_id = excluded.attempt_id, answered_at = excluded.answered_at;
  end if;
  -- The word that the call is over may have come first.
  update public.outbound_call_jobs set qualification = private.qualification(id)
  where id = v_attempt.job_id and finished_at is not null and phone_number <> 'erased';
  return v_answer || jsonb_build_object('by_machine', private.is_by_machine(v_attempt));
end
$$;

-- What a person told us, at once; their calls are canceled, or ended. Their numbers stay for the caps and the fence, for a day:
-- to delete an account and sign up again is no way round them.
create or replace function private.forget_user(p_user_id uuid) returns void
language sql set search_path = '' as $$
  update public.outbound_call_jobs
  set status           = case when status = 'queued' then 'canceled' else status end,
      -- A failed job's call may still turn up.
      cancel_requested = cancel_requested or status in ('dialing', 'in_doubt', 'calling', 'failed'),
      cancel_code      = case when status in ('dialing', 'in_doubt', 'calling', 'failed') and not cancel_requested then 'user_deleted' else cancel_code end,
      due_at           = case when status in ('in_doubt', 'calling') then private.clock() when status = 'dialing' then due_at end,
      finished_at      = case when status = 'queued' then private.clock() else finished_at end,
      reason_code      = case when status = 'queued' then 'user_deleted' else reason_code end,
      reason           = case when status = 'queued' then private.why_canceled('user_deleted') else reason end,
      phone_number     = 'erased',
      first_name       = null,
      metadata         = '{}',
      qualification    = null
  where user_id = p_user_id;
  -- After that, and so under the locks of the jobs: an answer that is being written now is waited for, and goes, too.
  delete from public.outbound_call_answers
  where job_id in (select id from public.outbound_call_jobs where user_id = p_user_id)
$$;

-- For Supabase's table editor and whoever reports: each job in one row, with its last attempt and what it learned.
create view public.outbound_call_overview with (security_invoker = true) as
select
  j.id, j.user_id, j.first_name, j.signup_mode,
  left(j.phone_e164, 2) || '*******' || right(j.phone_e164, 2) as phone,
  j.status, coalesce(j.reason_code, a.call_status) as outcome, j.reason, j.created_at, j.due_at, j.finished_at, j.attempts,
  (select jsonb_object_agg(q.question, q.meaning) from public.outbound_call_answers q where q.job_id = j.id) as answers,
  (j.qualification -> 'opted_out')::boolean as opted_out,
  a.number as last_attempt, a.state as last_state, a.call_status, a.call_sid, a.answered_by, a.started_at as called_at, a.duration_s
from public.outbound_call_jobs j
left join lateral (
  select * from public.outbound_call_attempts t where t.job_id = j.id
  order by t.number desc, t.state = 'duplicate', t.started_at desc limit 1) a on true;

comment on view public.outbound_call_overview is 'Each job in one row: its last attempt, its outcome and its answers. Numbers are masked.';
revoke all on public.outbound_call_overview from public, anon, authenticated, service_role;
grant select on public.outbound_call_overview to service_role;

revoke all on function
  private.is_by_machine(public.outbound_call_attempts),
  private.has_opted_out_by_key(public.outbound_call_attempts),
  private.qualification(bigint),
  private.summarize_call_job()
from public, anon, authenticated, service_role;
revoke all on function public.record_call_status(uuid, text, text, double precision, double precision[], text, int, int, text, text) from public, anon, authenticated;
revoke all on function public.record_call_answer(uuid, text, double precision, text, text, text, boolean) from public, anon, authenticated;
grant execute on function public.record_call_status(uuid, text, text, double precision, double precision[], text, int, int, text, text) to service_role;
grant execute on function public.record_call_answer(uuid, text, double precision, text, text, text, boolean) to service_role;

comment on function public.record_call_answer(uuid, text, double precision, text, text, text, boolean) is
  'For /voice: what a person has pressed, or that their number is never to be called again.';
