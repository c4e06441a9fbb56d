-- What leaves: one event for each job that ends and each opt-out, written in the transaction of the outcome itself.
--
-- Events are no columns of the job: a job may end twice before its first end was told, an opt-out may have no job, and
-- a column more would make each claim write more.
--
--   An event   due -> told (2xx) | gone (410) | gave_up (failed for three days)
--   due_at is when the event is sent next; while it is being sent, the end of the sender's lease.

create table private.call_results (
  id         uuid primary key default gen_random_uuid(),  -- webhook-id: the same each time this event is sent
  seq        bigint generated always as identity,
  subject    text not null,  -- a job's id, or a hash of an opted-out number: its events are told in the order of seq
  job_id     bigint,  -- no reference: an opt-out is written before the job may be locked, and an event may outlive it
  user_id    uuid,
  type       text not null check (type in ('call.completed', 'call.failed', 'call.canceled', 'number.opted_out')),
  data       jsonb not null,
  created_at timestamptz not null,
  state      text not null default 'due' check (state in ('due', 'told', 'gone', 'gave_up')),
  due_at     timestamptz not null,
  give_up_at timestamptz not null,
  tries      int not null default 0,
  ended_at   timestamptz,
  note       text check (length(note) <= 200),  -- what the receiver answered last, or why it did not
  constraint due_results_have_not_ended check ((ended_at is null) = (state = 'due'))
);
comment on table private.call_results is 'Call dispatcher: the outbox. One row is one event to tell at RESULT_URL.';

create index call_results_due on private.call_results (due_at, seq) where state = 'due';
create index call_results_order on private.call_results (subject, seq) where state = 'due';
create index call_results_state on private.call_results (state, created_at);  -- for prune_call_jobs and the statistics
create index call_results_user on private.call_results (user_id);  -- for forget_user and retell

create function private.result_data(p_job public.outbound_call_jobs, p_phone_e164 text) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'job_id', p_job.id, 'user_id', p_job.user_id, 'signup_mode', p_job.signup_mode,
    'phone_number', case when p_job.phone_number = 'erased' then null
                         when s.results ->> 'number' = 'full' then p_phone_e164
                         else private.masked_number(p_phone_e164) end,
    'metadata', (select coalesce(jsonb_object_agg(key, case when length((p_job.metadata -> key)::text) <= 4000
                                                            then p_job.metadata -> key end), '{}')
                 from jsonb_array_elements_text(s.results -> 'metadata') key where p_job.metadata ? key))
  from private.call_settings s
$$;
comment on function private.result_data is
  'Call dispatcher: whom an event is about, as RESULT_METADATA and RESULT_NUMBER allow. A value of more than 4000'
  ' characters becomes null: receivers limit a body.';

create function private.write_result(p_job public.outbound_call_jobs, p_late boolean) returns void
language plpgsql set search_path = '' as $$
declare
  v_now  constant timestamptz := private.clock();
  v_data jsonb;
begin
  select private.result_data(p_job, p_job.phone_e164) || jsonb_build_object(
    'reason_code', p_job.reason_code, 'reason', p_job.reason, 'attempts', p_job.attempts,
    'answered_by', a.answered_by, 'duration_s', a.duration_s,
    'answers', coalesce(p_job.qualification -> 'answers', '{}'), 'qualification', p_job.qualification,
    'finished_at', p_job.finished_at) into v_data
  from (select) one left join lateral (
    select t.answered_by, t.duration_s from public.outbound_call_attempts t
    where t.job_id = p_job.id and t.state <> 'duplicate' order by t.number desc, t.started_at desc limit 1) a on true;
  if p_late then
    update private.call_results set data = v_data
    where state = 'due' and tries = 0 and note is null  -- nobody was told it yet
      and seq = (select max(seq) from private.call_results where subject = p_job.id::text and state = 'due');
    if found then
      return;
    end if;
  end if;
  insert into private.call_results (subject, job_id, user_id, type, data, created_at, due_at, give_up_at)
  values (p_job.id::text, p_job.id, p_job.user_id, 'call.' || p_job.status, v_data, v_now, v_now,
          v_now + interval '3 days');
end $$;
comment on function private.write_result is
  'Call dispatcher: write the event of a job that is over. p_late: an unsent event takes the new summary in.';

create function private.note_call_result() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  if (select results <> '{}' from private.call_settings) then
    perform private.write_result(new, old.finished_at is not null);
  end if;
  return null;
end $$;
comment on function private.note_call_result is
  'Call dispatcher: when a job ends, and when an answer or machine detection comes after the end, write its event.';

create trigger note_call_result after update on public.outbound_call_jobs
  for each row when (new.finished_at is not null
                     and (old.finished_at is null
                          or new.qualification is distinct from old.qualification and new.phone_number <> 'erased'))
  execute function private.note_call_result();

create function private.note_opt_out_result() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_now constant timestamptz := private.clock();
begin
  if (select results = '{}' from private.call_settings) then
    return null;
  end if;
  insert into private.call_results (subject, job_id, user_id, type, data, created_at, due_at, give_up_at)
  select md5(o.phones[1]), (n.job).id, (n.job).user_id, 'number.opted_out',
         private.result_data(n.job, coalesce((n.job).phone_e164, o.phone_e164)) || jsonb_build_object(
           'reason_code', 'opted_out', 'reason', private.masked(o.how),
           'user_ids', (select coalesce(jsonb_agg(distinct j.user_id), '[]') from public.outbound_call_jobs j
                        where j.phone_e164 = any (o.phones) and j.phone_number <> 'erased')),
         v_now, v_now, v_now + interval '3 days'
  from (select distinct on (private.spellings(phone_e164)) private.spellings(phone_e164) as phones, phone_e164, how
        from new_opt_outs order by 1, phone_e164) o
  left join lateral (
    select j as job from public.outbound_call_jobs j
    where j.phone_e164 = any (o.phones) and j.phone_number <> 'erased'
    order by j.status = 'calling' desc, j.id desc limit 1) n on true;
  return null;
end $$;
comment on function private.note_opt_out_result is
  'Call dispatcher: after an opt-out, write one event for all spellings of the phone: of the job that is being called,'
  ' else the newest. "user_ids": everybody with a job to this number.';

create trigger note_opt_out_result after insert on public.call_opt_outs
  referencing new table as new_opt_outs for each statement execute function private.note_opt_out_result();

create function public.claim_call_result(p_lease_s double precision, p_results jsonb default null) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now    constant timestamptz := private.clock();
  v_result private.call_results;
begin
  update private.call_settings set results = p_results where only_row and results <> p_results;
  update private.call_results set tries = tries + 1, due_at = v_now + make_interval(secs => p_lease_s)
  where id = (select r.id from private.call_results r
              where r.state = 'due' and r.due_at <= v_now
                and not exists (select from private.call_results e
                                where e.subject = r.subject and e.state = 'due' and e.seq < r.seq)
              order by r.due_at, r.seq limit 1 for update skip locked) returning * into v_result;
  if not found then
    return jsonb_build_object('outcome', 'none');
  end if;
  return jsonb_build_object(
    'outcome', 'claimed', 'id', v_result.id, 'try', v_result.tries, 'type', v_result.type, 'job_id', v_result.job_id,
    'body', json_build_object(
      'type', v_result.type,
      'timestamp', to_char(v_result.created_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
      'data', v_result.data)::text);
end $$;
comment on function public.claim_call_result is
  'Call dispatcher: the next event to tell, held for p_lease_s. A later event of a subject waits for earlier ones.'
  ' p_results: as in prune_call_jobs. -> {"outcome": "claimed" | "none", "id", "try", "type", "job_id", "body": the'
  ' text}';

create function public.record_call_result(
  p_id uuid, p_try int, p_state text, p_note text, p_delay_s double precision default 0
) returns text language plpgsql security definer set search_path = '' as $$
declare
  v_now   constant timestamptz := private.clock();
  v_state text;
begin
  perform private.raise_if(p_state is null or p_state not in ('due', 'told', 'gone'),
                           'p_state must be due, told or gone');
  -- After its lease, a sender's report counts only if it is certain: the receiver took the event, or wants no more.
  update private.call_results
  set state    = case when p_state = 'due' and v_now >= give_up_at then 'gave_up' else p_state end,
      ended_at = case when p_state <> 'due' or v_now >= give_up_at then v_now end,
      due_at   = least(v_now + make_interval(secs => p_delay_s), greatest(give_up_at, v_now)),
      note     = left(p_note, 200)
  where id = p_id and (state = 'due' and (tries = p_try or p_state <> 'due') or p_state = 'told')
  returning state into v_state;
  return v_state;
end $$;
comment on function public.record_call_result is
  'Call dispatcher: the outcome of a sending: told, gone, or due again after p_delay_s (gave_up three days after the'
  ' event). p_try: as claimed. p_note: in words. -> the state now; null if it did not count';

create function public.retell(p_job_id bigint) returns text language plpgsql security definer set search_path = '' as $$
declare
  v_now  constant timestamptz := private.clock();
  v_job  public.outbound_call_jobs;
  v_told int;
begin
  perform private.raise_if(results = '{}', 'nothing is told here: set RESULT_URL, and wait for a sweep')
  from private.call_settings;
  perform private.raise_if(p_job_id is null, 'p_job_id must be given');
  select * into v_job from public.outbound_call_jobs where id = p_job_id for update;
  perform private.raise_if(not found, format('there is no call job %s', p_job_id));
  update private.call_results set state = 'due', due_at = v_now, give_up_at = v_now + interval '3 days', tries = 0,
                                  ended_at = null, note = coalesce(note, 'retold')
  where user_id = v_job.user_id and job_id = p_job_id and state <> 'due';
  get diagnostics v_told = row_count;
  if v_job.finished_at is not null  -- perhaps before RESULT_URL was set, and the number was opted out since
     and not exists (select from private.call_results
                     where user_id = v_job.user_id and job_id = p_job_id and type <> 'number.opted_out') then
    perform private.write_result(v_job, false);
    v_told := v_told + 1;
  end if;
  if v_told = 0 and exists (select from private.call_results where user_id = v_job.user_id and job_id = p_job_id) then
    return format('the events of call job %s are due already', p_job_id);
  end if;
  perform private.raise_if(v_told = 0, format('call job %s is %s: it has not ended yet', p_job_id, v_job.status));
  return format('the next sweep tells %s event(s) of call job %s', v_told, p_job_id);
end $$;
comment on function public.retell is
  'Call dispatcher, by hand: tell the events of a job again, in order, each with its own id; or tell a job that ended'
  ' before RESULT_URL was set. -> what happens now';

select private.apply_rights();
