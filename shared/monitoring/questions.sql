-- Ten questions about calls, for the SQL editor of Supabase Studio. Replace the number, id or SID by yours, and run one at a time.
-- Times are UTC. The answers show phone numbers, so do not paste them into a chat.

-- 1. Why was this person not called?
with person as (select '+14155550100' as phone)
select 'opted out' as what, o.opted_out_at as at, o.how as why
from public.call_opt_outs o, person p where o.phone_e164 = p.phone
union all
select 'job ' || j.id || ' is ' || j.status, coalesce(j.finished_at, j.due_at),
       coalesce(j.reason, case j.status when 'queued' then 'waits for its call, due at this time' when 'completed' then 'was called' else 'is being called' end)
from public.outbound_call_jobs j, person p where j.phone_e164 = p.phone or j.phone_number = p.phone
union all
select 'signed up, and could not be queued', m.noted_at, m.error
from private.missed_signups m join auth.users u on u.id = m.user_id, person p where '+' || u.phone = p.phone
union all
select 'signed up, and has no job', u.created_at,
       case when u.phone_confirmed_at is null then 'phone not confirmed (see require_verified_phones), or ' else '' end
       || 'signed up before the trigger existed, or the job was deleted after CALL_RETENTION_DAYS'
from auth.users u, person p
where '+' || u.phone = p.phone and not exists (select from public.outbound_call_jobs j where j.user_id = u.id)
union all
select 'all calls are paused until ' || s.paused_until, null, s.pause_reason from public.call_stats s where s.paused
order by 2 desc nulls first;

-- 2. Which number called this person, and when?
select a.accepted_at as called_at, a.from_e164 as called_from, a.call_status, a.answered_by, a.duration_s, a.call_sid, a.job_id
from public.outbound_call_attempts a
where a.phone_e164 = '+14155550100' and a.call_sid is not null
order by a.started_at desc;

-- 3. Who is waiting, and until when?
select id, user_id, phone_number, due_at, greatest(due_at - now(), '0') as still, attempts, reason_code, reason
from public.outbound_call_jobs
where status = 'queued'
order by due_at, id
limit 200;

-- 4. What failed today, and why?
select reason_code, count(*) as jobs, max(reason) as reason, max(finished_at) as last_at, max(id) as last_job
from public.outbound_call_jobs
where status = 'failed' and finished_at > now() - interval '24 hours'
group by reason_code
order by jobs desc;

-- 5. Is anybody being called too often?
-- Calls that rang, may ring or may have rung, by number. A day never holds more than CALLS_PER_NUMBER_PER_DAY.
select phone_e164, count(*) filter (where started_at > now() - interval '24 hours') as calls_24h, count(*) as calls_7d,
       count(distinct job_id) as jobs, max(started_at) as last_at
from public.outbound_call_attempts
where state not in ('refused', 'absent') and put_off_until is null and started_at > now() - interval '7 days'
group by phone_e164
having count(*) > 1
order by calls_24h desc, calls_7d desc
limit 100;

-- 6. Who opted out?
select phone_e164, opted_out_at, how from public.call_opt_outs order by opted_out_at desc limit 200;

-- 7. What did calls cost in time?
-- Twilio bills each started minute of an answered call. An unanswered call costs nothing.
select started_at::date as day, count(*) as calls, count(*) filter (where duration_s > 0) as with_talk,
       sum(duration_s) as seconds, sum(ceil(duration_s / 60.0)) as minutes_billed,
       round(avg(duration_s) filter (where duration_s > 0)) as seconds_a_call, max(duration_s) as longest_s
from public.outbound_call_attempts
where call_sid is not null and started_at > now() - interval '30 days'
group by day
order by day desc;

-- 8. How long from sign-up to ring?
-- From the job to Twilio's acceptance of its first call. The phone rings a second or two later, or after Twilio's queue.
select count(*) as jobs,
       percentile_cont(0.5) within group (order by waited_s) as p50_s,
       percentile_cont(0.95) within group (order by waited_s) as p95_s,
       max(waited_s) as longest_s
from (select extract(epoch from min(a.accepted_at) - j.created_at) as waited_s
      from public.outbound_call_jobs j join public.outbound_call_attempts a on a.job_id = j.id
      where j.created_at > now() - interval '7 days' and a.accepted_at is not null
      group by j.id) as first_calls;

-- 9. Which jobs are in doubt?
select j.id, a.phone_e164, a.doubted_at, now() - a.doubted_at as since, j.reason_code, j.reason, j.due_at as next_ask, a.id as attempt
from public.outbound_call_jobs j join public.outbound_call_attempts a on a.job_id = j.id and a.state = 'in_doubt'
where j.status = 'in_doubt'
order by a.doubted_at;

-- 10. What happened to this call SID?
select a.state, a.call_status, a.answered_by, a.duration_s, a.sip_code, a.error_code, a.error_message, a.phone_e164, a.from_e164,
       a.started_at, a.accepted_at, a.closed_at, j.id as job, j.status as job_status, j.reason
from public.outbound_call_attempts a join public.outbound_call_jobs j on j.id = a.job_id
where a.call_sid = 'CA00000000000000000000000000000000'
union all
select 'its job was deleted', null, null, null, null, null, null, null, null, null, null, d.deleted_at, null, null, null
from private.deleted_calls d
where d.call_sid = 'CA00000000000000000000000000000000';
