-- The numbers of this moment and of the last hours, for the sweep's log and for people.

create function public.call_job_stats() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_now constant timestamptz := private.clock();
begin
  -- Each set of rows is read once, and to a limit: the time stays the same, however many jobs wait or end.
  return (select to_jsonb(q) || to_jsonb(o) || to_jsonb(d) || to_jsonb(c) || to_jsonb(f) || jsonb_build_object(
    'queued',          case when q.queued < 1000 then q.queued
                            else greatest(q.queued, (select reltuples::bigint from pg_class
                                                     where oid = 'public.outbound_call_jobs_to_dial'::regclass)) end,
    -- A job may be inserted as due long ago; it has waited since it was inserted.
    'oldest_due_s',    coalesce((select greatest(0, round(extract(epoch from v_now - greatest(due_at, created_at))))
                                 from public.outbound_call_jobs where status = 'queued' and due_at <= v_now
                                 order by due_at, id limit 1), 0),
    'live_duplicates', (select count(*) from public.outbound_call_attempts
                        where state = 'duplicate' and closed_at is null),
    'opt_outs_24h',    (select count(*) from public.call_opt_outs where opted_out_at > v_now - interval '24 hours'),
    'missed_signups',  (select count(*) from private.missed_signups),
    'paused',          coalesce(s.paused_until > v_now, false),
    'paused_by',       case when s.paused_until > v_now then s.paused_by end,
    'paused_until',    case when s.paused_until > v_now then s.paused_until end,
    'pause_reason',    case when s.paused_until > v_now then s.pause_reason end,
    'halts',           s.halts,
    'results_due',      (select count(*) from private.call_results where state = 'due'),
    'results_oldest_s', coalesce((select greatest(0, round(extract(epoch from v_now - min(created_at))))
                                  from private.call_results where state = 'due'), 0),
    'results_gave_up',  (select count(*) from private.call_results where state = 'gave_up'))
  from private.call_settings s,
    (select coalesce(sum(jobs), 0) as queued, coalesce(sum(due), 0) as due, coalesce(sum(held), 0) as held_by_prefix,
            coalesce(jsonb_object_agg(rule, jobs) filter (where rule is not null), '{}') as held_by_rule
     from (select case when due_at > v_now and reason_code in ('outside_calling_hours', 'another_time_of_day')
                       then coalesce(split_part(reason, ': not before', 1), reason_code) end as rule,
                  count(*) as jobs,
                  count(*) filter (where due_at <= v_now) as due,
                  count(*) filter (where reason_code = 'calls_per_prefix_per_hour') as held
           from (select due_at, reason_code, reason from public.outbound_call_jobs
                 where status = 'queued' order by due_at, id limit 1000) w group by 1) r) q,
    (select count(*) filter (where status = 'dialing') as dialing,
            count(*) filter (where status = 'calling') as calling
     from (select status from public.outbound_call_jobs
           where status in ('dialing', 'in_doubt', 'calling') order by due_at, id limit 1000) j) o,
    (select count(*) as in_doubt, greatest(0, round(extract(epoch from v_now - min(doubted_at)))) as oldest_doubt_s
     from (select doubted_at from public.outbound_call_attempts
           where state = 'in_doubt' order by doubted_at limit 1000) a) d,
    (select count(*) as calls_24h,
            count(*) filter (where in_hour) as calls_1h,
            count(*) filter (where answered) as answered_24h,
            count(*) filter (where answered and in_hour) as answered_1h,
            count(*) filter (where state = 'duplicate') as duplicates_24h
     from (select state, started_at > v_now - interval '1 hour' as in_hour,
                  call_status in ('in-progress', 'completed')
                    and coalesce(answered_by, 'human') not like all ('{machine%,fax%}') as answered
           from private.counted_calls where started_at > v_now - interval '24 hours'
           order by started_at desc limit 10000) t) c,
    (select coalesce(sum(jobs) filter (where status = 'completed'), 0) as completed_24h,
            coalesce(sum(jobs) filter (where status = 'failed'), 0) as failed_24h,
            coalesce(sum(jobs) filter (where status = 'canceled'), 0) as canceled_24h,
            coalesce(jsonb_object_agg(code, jobs) filter (where status = 'failed'), '{}') as failures_24h
     from (select status, case status when 'failed' then coalesce(reason_code, 'unknown') end as code, count(*) as jobs
           from (select status, reason_code from public.outbound_call_jobs
                 where finished_at > v_now - interval '24 hours' order by finished_at desc limit 10000) n
           group by 1, 2) e) f
  );
end $$;
comment on function public.call_job_stats is
  'Call dispatcher: the numbers of this moment, as JSON, logged by each sweep; call_stats is the same as one row. Its'
  ' time does not grow with the jobs: waiting and open ones are counted to 1,000 (the earliest due; "queued" goes on as'
  ' Postgres'' estimate), those that ended and the calls of 24 hours to 10,000 (the newest). "calls" counts as'
  ' CALLS_PER_DAY does; "answered": by a person.';

create function public.call_stats_by_hour(p_hours int default 48)
returns table (hour timestamptz, calls bigint, answered bigint, not_reached bigint, put_off bigint, under_way bigint,
               duplicates bigint, in_doubt bigint, refused bigint, absent bigint)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_this  constant timestamptz := date_trunc('hour', private.clock(), 'UTC');
  v_first constant timestamptz := v_this - make_interval(hours => p_hours - 1);
begin
  perform private.raise_if(p_hours is null or p_hours not between 1 and 2160, 'p_hours must be between 1 and 2160');
  return query
  select h,
         count(a.call_sid),
         count(*) filter (where a.kind = 'answered'), count(*) filter (where a.kind = 'not_reached'),
         count(*) filter (where a.kind = 'put_off'), count(*) filter (where a.kind = 'under_way'),
         count(*) filter (where a.kind = 'duplicate'), count(*) filter (where a.kind = 'in_doubt'),
         count(*) filter (where a.kind = 'refused'), count(*) filter (where a.kind = 'absent')
  from generate_series(v_this, v_first, interval '-1 hour') h
  left join (
    select date_trunc('hour', t.started_at, 'UTC') as began, t.call_sid,
           case when t.state not in ('accepted', 'ended') then t.state
                when t.call_status in ('in-progress', 'completed')
                     and coalesce(t.answered_by, 'human') not like all ('{machine%,fax%}') then 'answered'
                when t.state = 'accepted' then 'under_way'
                when t.put_off_until is not null then 'put_off'
                else 'not_reached' end as kind
    from (select * from private.counted_calls where started_at >= v_first  -- two parts, each with its index
          union all select * from public.outbound_call_attempts  -- all others
          where (state in ('refused', 'absent') or put_off_until is not null) and started_at >= v_first) t
  ) a on a.began = h
  group by h order by h desc;
end $$;
comment on function public.call_stats_by_hour is
  'Call dispatcher: the attempts that began in each of the last p_hours hours (UTC), newest first. calls: Twilio took'
  ' them; they are answered + not_reached + put_off + under_way + duplicates.';

-- paused_until is text, because not every client can read the time 'infinity'.
create view public.call_stats with (security_invoker = true) as
select s.* from jsonb_to_record(public.call_job_stats()) as s (
  queued int, due int, oldest_due_s int, dialing int, calling int, in_doubt int, oldest_doubt_s int,
  live_duplicates int, duplicates_24h int, paused boolean, paused_by text, paused_until text, pause_reason text,
  halts int, calls_1h int, answered_1h int, calls_24h int, answered_24h int, completed_24h int, failed_24h int,
  failures_24h jsonb, canceled_24h int, opt_outs_24h int, held_by_prefix int, held_by_rule jsonb,
  missed_signups int, results_due int, results_oldest_s int, results_gave_up int);
comment on view public.call_stats is 'Call dispatcher: the numbers of this moment: call_job_stats() as one row.';

create view public.call_stats_per_hour with (security_invoker = true) as
select * from public.call_stats_by_hour(48);
comment on view public.call_stats_per_hour is 'Call dispatcher: the attempts of the last 48 hours and their outcomes.';

create view public.outbound_call_overview with (security_invoker = true) as
select
  j.id, j.user_id, j.first_name, j.signup_mode,
  left(j.phone_e164, 2) || '*******' || right(j.phone_e164, 2) as phone,  -- a reader may call nothing of private
  j.status, coalesce(j.reason_code, a.call_status) as outcome, j.reason,
  j.created_at, j.due_at, j.finished_at, j.attempts,
  (select jsonb_object_agg(q.question, q.meaning) from public.outbound_call_answers q where q.job_id = j.id) as answers,
  (j.qualification -> 'opted_out')::boolean as opted_out,
  a.number as last_attempt, a.state as last_state, a.call_status, a.call_sid, a.answered_by, a.started_at as called_at,
  a.duration_s
from public.outbound_call_jobs j
left join lateral (
  select * from public.outbound_call_attempts t where t.job_id = j.id
  order by t.number desc, t.state = 'duplicate', t.started_at desc limit 1) a on true;
comment on view public.outbound_call_overview is
  'Call dispatcher: each job in one row, for the table editor: its last attempt, outcome and answers; numbers masked.';

select private.apply_rights();
