-- Six questions that explain_call_job and the views do not answer, for the SQL editor of Supabase Studio. Replace the number or SID by
-- yours, and run one at a time. Times are UTC. The answers show phone numbers, so do not paste them into a chat.
--
-- Why was this person not called?                 select explain_call_job(p_phone_number => '+14155550100');
-- Who waits, how many, until when and why?        python -m function.explain
-- Which jobs are in doubt, or failed, and why?    select * from outbound_call_overview where status = 'in_doubt';
-- What failed today?                              select failures_24h from call_stats;

-- 1. Which number called this person, and when?
select a.accepted_at as called_at, a.from_e164 as called_from, a.call_status, a.answered_by, a.duration_s, a.call_sid, a.job_id
from public.outbound_call_attempts a
where a.phone_e164 = '+14155550100' and a.call_sid is not null
order by a.started_at desc;

-- 2. Is anybody being called too often?
-- Calls that rang, may ring or may have rung, by number. A day never holds more than CALLS_PER_NUMBER_PER_DAY.
select phone_e164, count(*) filter (where started_at > now() - interval '24 hours') as calls_24h, count(*) as calls_7d,
       count(distinct job_id) as jobs, max(started_at) as last_at
from public.outbound_call_attempts
where state not in ('refused', 'absent') and put_off_until is null and started_at > now() - interval '7 days'
group by phone_e164
having count(*) > 1
order by calls_24h desc, calls_7d desc
limit 100;

-- 3. Who opted out?
select phone_e164, opted_out_at, how from public.call_opt_outs order by opted_out_at desc limit 200;

-- 4. What did calls cost in time?
-- Twilio bills each started minute of an answered call. An unanswered call costs nothing.
select started_at::date as day, count(*) as calls, count(*) filter (where duration_s > 0) as with_talk,
       sum(duration_s) as seconds, sum(ceil(duration_s / 60.0)) as minutes_billed,
       round(avg(duration_s) filter (where duration_s > 0)) as seconds_a_call, max(duration_s) as longest_s
from public.outbound_call_attempts
where call_sid is not null and started_at > now() - interval '30 days'
group by day
order by day desc;

-- 5. How long from sign-up to ring?
-- From the job to Twilio's acceptance of its first call. The phone rings a second or two later, or after Twilio's queue.
select count(*) as jobs,
       percentile_cont(0.5) within group (order by waited_s) as p50_s,
       percentile_cont(0.95) within group (order by waited_s) as p95_s,
       max(waited_s) as longest_s
from (select extract(epoch from min(a.accepted_at) - j.created_at) as waited_s
      from public.outbound_call_jobs j join public.outbound_call_attempts a on a.job_id = j.id
      where j.created_at > now() - interval '7 days' and a.accepted_at is not null
      group by j.id) as first_calls;

-- 6. What happened to this call SID?
select a.state, a.call_status, a.answered_by, a.duration_s, a.sip_code, a.error_code, a.error_message, a.phone_e164, a.from_e164,
       a.started_at, a.accepted_at, a.closed_at, j.id as job, j.status as job_status, j.reason
from public.outbound_call_attempts a join public.outbound_call_jobs j on j.id = a.job_id
where a.call_sid = 'CA00000000000000000000000000000000'
union all
select 'its job was deleted', null, null, null, null, null, null, null, null, null, null, d.deleted_at, null, null, null
from private.deleted_calls d
where d.call_sid = 'CA00000000000000000000000000000000';
