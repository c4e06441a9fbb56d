-- The results of a call: answers by key, the opt-out key, person or machine, and the job's summary.

create function private.has_opted_out_in_call(p_attempt public.outbound_call_attempts) returns boolean
language sql stable set search_path = '' as $$
  select exists (select from public.call_opt_outs o
                 where o.phone_e164 = p_attempt.phone_e164 and o.how in ('key press', 'spoken', 'agent')
                   and o.opted_out_at >= p_attempt.started_at)
$$;
comment on function private.has_opted_out_in_call is 'Call dispatcher: whether the person opted out in this call.';

create function private.is_by_machine(p_attempt public.outbound_call_attempts) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  if p_attempt.answered_by = 'fax' or p_attempt.answered_by like 'machine%' then  -- rare, and asked with each status
    return not exists (select from public.outbound_call_answers a
                       where a.job_id = p_attempt.job_id and a.attempt_id = p_attempt.id)
           and not private.has_opted_out_in_call(p_attempt);
  end if;
  return false;
end $$;
comment on function private.is_by_machine is
  'Call dispatcher: whether a machine answered. Detection errs: a key or a spoken answer means a person.';

create function private.qualification(p_job_id bigint) returns jsonb language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'answers', coalesce((select jsonb_object_agg(q.question, q.meaning) from public.outbound_call_answers q
                         where q.job_id = p_job_id), '{}'),
    'opted_out', private.has_opted_out_in_call(a),
    'answered_by', a.answered_by)
  from public.outbound_call_attempts a
  where a.job_id = p_job_id and a.state <> 'duplicate'
    and (a.call_status in ('in-progress', 'completed')
         or exists (select from public.outbound_call_answers q where q.job_id = p_job_id and q.attempt_id = a.id))
  order by a.number desc, a.started_at desc limit 1
$$;
comment on function private.qualification is 'Call dispatcher: the summary of a job that is over, if it was answered.';

create function public.record_call_answer(
  p_attempt uuid, p_call_sid text, p_ask_s double precision, p_question text default null, p_meaning text default null,
  p_digits text default null, p_opt_out boolean default false, p_heard text default null,
  p_later_at timestamptz default null
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_now     constant timestamptz := private.clock();
  v_how     constant text := case when p_heard is null then 'key press' else 'spoken' end;
  v_attempt public.outbound_call_attempts;
  v_job     public.outbound_call_jobs;
  v_answer  jsonb;
begin
  -- Before the job is locked: an opt_out by hand of this number may have written its row and wait for the job.
  -- A call whose SID is still unknown is bound first: if its number opted out earlier, the call must end.
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;
  if p_opt_out and v_attempt.phone_e164 is not null then
    perform private.stop_calls_to(
      v_attempt.phone_e164, v_how, case when v_attempt.state = 'accepted' then v_attempt.id end);
  end if;
  v_answer := public.record_call_status(p_attempt, p_call_sid, 'in-progress', p_ask_s, '{}');
  if v_answer ->> 'then' = 'unknown' then
    return v_answer;
  end if;
  if p_opt_out and v_attempt.id is null then
    perform private.stop_calls_to(a.phone_e164, v_how, case when a.state = 'accepted' then a.id end)
    from public.outbound_call_attempts a where a.call_sid = p_call_sid and a.phone_e164 is not null;
  end if;
  select * into v_attempt from public.outbound_call_attempts where call_sid = p_call_sid;

  if p_question is not null and p_meaning is not null and v_answer ->> 'then' = 'keep'
     and v_attempt.state in ('accepted', 'ended') and not private.is_by_machine(v_attempt)
     and exists (select from public.outbound_call_jobs j
                 where j.id = v_attempt.job_id and j.phone_number <> 'erased') then
    insert into public.outbound_call_answers (job_id, question, meaning, digits, heard, attempt_id, answered_at)
    values (v_attempt.job_id, p_question, p_meaning, p_digits, p_heard, v_attempt.id, v_now)
    on conflict (job_id, question) do update
    set meaning = excluded.meaning, digits = excluded.digits, heard = excluded.heard,
        attempt_id = excluded.attempt_id, answered_at = excluded.answered_at;
    if p_later_at is not null and not private.has_opted_out_in_call(v_attempt) then
      -- The job is locked. A call that has ended counts only if it is the last one, and ended its job.
      select * into v_job from public.outbound_call_jobs where id = v_attempt.job_id;
      if v_attempt.state = 'accepted' then
        update public.outbound_call_attempts set later_at = p_later_at where id = v_attempt.id;
      elsif v_job.status = 'completed' and v_attempt.number = v_job.attempts and v_attempt.later_at is null then
        update public.outbound_call_attempts set later_at = p_later_at where id = v_attempt.id;
        perform private.give_back_job(v_job, p_later_at, 'asked_for_later');
      end if;
    end if;
  end if;
  if p_opt_out then
    update public.outbound_call_attempts set later_at = null where id = v_attempt.id and state = 'accepted';
  end if;
  -- The final status may have come first.
  update public.outbound_call_jobs set qualification = private.qualification(id)
  where id = v_attempt.job_id and finished_at is not null and phone_number <> 'erased';
  return v_answer || jsonb_build_object(
    'by_machine', private.is_by_machine(v_attempt),
    'answered_by', v_attempt.answered_by,
    'later_at', (select later_at from public.outbound_call_attempts where id = v_attempt.id),
    'opted_out', private.has_opted_out_in_call(v_attempt),
    'agent_answers', (select coalesce(jsonb_object_agg(a.question, a.meaning), '{}')
                      from public.outbound_call_answers a
                      where a.job_id = v_attempt.job_id and a.attempt_id = v_attempt.id and a.digits is null));
end $$;
comment on function public.record_call_answer is
  'Call dispatcher: for /voice after each Gather: record the key, or the words in its place (p_heard), if it has a'
  ' meaning (p_question, p_meaning), or that this number is never to be called again (p_opt_out). Binds and answers as'
  ' record_call_status does with "in-progress". Idempotent. No answer is written for a call that is not wanted or that'
  ' a machine took. An opt-out is always written, before this answers; the call goes on to confirm it. p_later_at,'
  ' beside an answer: when the call ends, its job is queued for then, the attempt unspent; the last one in a call'
  ' counts. -> as record_call_status; "later_at": what holds; "opted_out": in this call; "answered_by";'
  ' "agent_answers": question -> meaning of the answers without p_digits, as your own agent records them';

select private.apply_rights();
