-- Why a person was called, or was not: the unusual events of each job, and its story in sentences.

create table private.call_history (
  id       bigint generated always as identity primary key,
  job_id   bigint references public.outbound_call_jobs (id) on delete cascade,  -- null: a pause of all calls
  at       timestamptz not null,
  last_at  timestamptz,            -- of an event that came several times in a row; of a pause: its end
  times    int not null default 1,
  was      text, status text,      -- the job's status before, and after
  code     text, reason text,
  due_at   timestamptz,            -- of a pause: until when
  attempts int
);
create index call_history_job on private.call_history (job_id, id);
comment on table private.call_history is
  'Call dispatcher: for explain_call_job: the last 50 unusual events of each job (holds, releases, refusals, doubts,'
  ' acts by hand), and the last 50 pauses. A call that goes as planned writes nothing here.';

create sequence private.last_sweep owned by private.call_history.id;
comment on sequence private.last_sweep is 'Call dispatcher: when the last sweep began, in seconds since 1970.';

create function private.remember(
  p_job_id bigint, p_was text, p_status text, p_code text, p_reason text, p_due_at timestamptz, p_attempts int
) returns void language plpgsql set search_path = '' as $$
begin
  update private.call_history set times = times + 1, last_at = private.clock(), due_at = p_due_at
  where id = (select max(h.id) from private.call_history h where h.job_id = p_job_id)
    and (was, status, code, reason, attempts) is not distinct from (p_was, p_status, p_code, p_reason, p_attempts);
  if not found then
    insert into private.call_history (job_id, at, was, status, code, reason, due_at, attempts)
    values (p_job_id, private.clock(), p_was, p_status, p_code, p_reason, p_due_at, p_attempts);
    delete from private.call_history
    where id in (select h.id from private.call_history h where h.job_id = p_job_id order by h.id desc offset 50);
  end if;
end $$;
comment on function private.remember is 'Call dispatcher: add an event to a job''s history. A repeated one counts up.';

create function private.remember_call_job() returns trigger language plpgsql security definer set search_path = '' as $$
declare
  v_code constant text := case
    when new.phone_number = 'erased' and old.phone_number <> 'erased' then 'user_deleted'
    when new.cancel_requested and not old.cancel_requested then coalesce(new.cancel_code, 'canceled')
    when new.reason_code is null and (new.phone_number <> old.phone_number or old.reason_code = 'phone_removed')
      then 'number_changed'
    when old.status = 'queued' and new.status = 'queued' and old.due_at <> new.due_at
      and (old.reason_code, old.reason) is not distinct from (new.reason_code, new.reason)
      and (old.due_at > private.clock() or new.due_at <= private.clock() or new.reason is null)
      then 'time_changed'  -- a claim puts off a due job only, to a later time
    else new.reason_code end;
begin
  perform private.remember(
    new.id, old.status, new.status, v_code,
    case when v_code = 'number_changed' then 'the user''s phone is now ' || private.masked_number(new.phone_number)
           || coalesce(' (before: ' || nullif(private.masked_number(old.phone_number),
                                              private.masked_number(new.phone_number)) || ')', '')
         when v_code = 'time_changed' then 'its time was changed'
         when v_code is distinct from new.reason_code then private.in_words(v_code) else new.reason end,
    case when new.status = 'queued' then new.due_at end, new.attempts);
  return null;
end $$;
comment on function private.remember_call_job is
  'Call dispatcher: after each update of a job that is out of the ordinary, by any function or by hand: remember it.';

-- The ordinary way (claim, acceptance, end, redial) is told by the attempts. Its updates fail this condition.
create trigger remember_call_job after update on public.outbound_call_jobs
  for each row when (
    (new.reason_code is not null or new.cancel_requested or old.finished_at is not null
     or new.phone_number <> old.phone_number or new.status in ('failed', 'canceled')
     or new.status = 'queued' and (old.status <> 'queued' or old.due_at <> new.due_at))
    and (old.status, old.reason_code, old.reason, old.cancel_requested, old.phone_number,
         case when old.status = 'queued' then old.due_at end)
        is distinct from (new.status, new.reason_code, new.reason, new.cancel_requested, new.phone_number,
                          case when new.status = 'queued' then new.due_at end)
    and not (old.status = 'calling' and coalesce(new.reason_code, '') in ('busy', 'no-answer', 'failed', 'machine')))
  execute function private.remember_call_job();

create function private.remember_pause() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  update private.call_history set last_at = private.clock() where job_id is null and last_at is null;
  if new.paused_until is not null then
    insert into private.call_history (at, code, reason, due_at)
    values (private.clock(), new.paused_by, new.pause_reason, new.paused_until);
    delete from private.call_history
    where id in (select h.id from private.call_history h where h.job_id is null order by h.id desc offset 50);
  end if;
  return null;
end $$;
comment on function private.remember_pause is 'Call dispatcher: remember when calls are paused, and when they go on.';

create trigger remember_pause after update on private.call_settings for each row
  when ((old.paused_until, old.paused_by, old.pause_reason)
        is distinct from (new.paused_until, new.paused_by, new.pause_reason))
  execute function private.remember_pause();

create function private.masked(p_text text) returns text language sql immutable set search_path = '' as $$
  select regexp_replace(p_text, '\+\d[\d ().\-/]{5,}\d'
    '|(?<!\d)(?<!20\d\d-)(?!20\d\d-[01]\d-[0-3]\d(?![\d-]))\d[\d ().\-/]{5,}\d', '*******', 'g')
$$;
comment on function private.masked is 'Call dispatcher: a text that somebody else wrote, without phone numbers.';

create function private.zone_of(p_metadata jsonb) returns text language sql stable set search_path = '' as $$
  select z.name
  from unnest(array['app_timezone', 'timezone', 'time_zone', 'tz']) with ordinality key (name, n)
  join pg_catalog.pg_timezone_names z on z.name = btrim(p_metadata ->> key.name) and z.name like '%_/_%'
  where p_metadata ?| array['app_timezone', 'timezone', 'time_zone', 'tz']  -- else the slow view is not read
  order by key.n limit 1
$$;
comment on function private.zone_of is 'Call dispatcher: a person''s time zone, as the server or the device named it.';

create function private.told(p_at timestamptz, p_zone text default null) returns text
language sql stable set search_path = '' as $$
  select case when isfinite(p_at) then to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
                || coalesce(to_char(p_at at time zone p_zone, '" ("Dy HH24:MI" in "')
                            || replace(regexp_replace(p_zone, '^.*/', ''), '_', ' ') || ')', '')
              when p_at is not null then 'never' end
$$;
comment on function private.told is 'Call dispatcher: a time in words: UTC, and by the clock of the zone, if any.';

create function private.lasted(p_from timestamptz, p_to timestamptz) returns text
language sql immutable strict set search_path = '' as $$
  select case when s < 120 then round(s, case when s < 10 then 1 else 0 end) || ' s'
              when s < 7200 then round(s / 60) || ' min' when s < 172800 then round(s / 3600) || ' h'
              else round(s / 86400) || ' days' end
  from (select greatest(0, extract(epoch from p_to) - extract(epoch from p_from)) as s) seconds
$$;
comment on function private.lasted is 'Call dispatcher: the time between two moments in words.';

create function private.swept() returns text language sql stable set search_path = '' as $$
  select case when is_called then 'the last sweep began ' || private.lasted(to_timestamp(last_value), private.clock())
                                  || ' ago, at ' || private.told(to_timestamp(last_value))
              else 'no sweep has ever run: set up the scheduler' end
  from private.last_sweep
$$;
comment on function private.swept is 'Call dispatcher: when the last sweep began, in words.';

create function private.paused(p_pause private.call_history, p_zone text) returns text
language sql stable set search_path = '' as $$
  select case (p_pause).code when 'hand' then ' by hand' when 'halt' then ' because our account or its setup is broken'
                             else '' end
    || case when over <= private.clock() then ', for ' || private.lasted((p_pause).at, over)
            when isfinite(over) then ', until ' || private.told(over, p_zone)
            else ', until somebody calls ' || case (p_pause).code when 'restore' then 'confirm_restore()'
                                              else 'resume_calls()' end end
    || coalesce(': ' || private.masked((p_pause).reason), '')
  from (select least((p_pause).last_at, (p_pause).due_at) as over) pause
$$;
comment on function private.paused is 'Call dispatcher: whose pause of all calls it is, how long and why, in words.';

create function private.held_lock(p_xmax xid, p_what text) returns text language sql stable set search_path = '' as $$
  select 'an open transaction holds ' || p_what || ' (process ' || l.pid || '): end that session'
  from pg_catalog.pg_locks l
  where l.locktype = 'transactionid' and l.transactionid = p_xmax and l.granted and l.pid <> pg_backend_pid() limit 1
$$;
comment on function private.held_lock is 'Call dispatcher: which open transaction locked the row of this xmax.';

create function private.trigger_off(p_trigger text, p_so text) returns text
language sql stable set search_path = '' as $$
  select 'the trigger ' || p_trigger || ' is missing or disabled: ' || p_so
  where not exists (select from pg_catalog.pg_trigger where tgname = p_trigger and tgenabled in ('O', 'A'))
$$;
comment on function private.trigger_off is 'Call dispatcher: that a trigger does not fire, and what follows, in words.';

create function private.not_claimed(
  p_job public.outbound_call_jobs, p_zone text, p_gate private.call_settings, p_now timestamptz
) returns text language sql stable set search_path = '' as $$
  select concat_ws('; ',
      case when (p_gate).halts > 0 and (p_gate).probe_until > p_now
           then 'after a halt one call goes first, and it is being made' end,
      (select private.held_lock(j.xmax, 'its row') from public.outbound_call_jobs j where j.id = p_job.id),
      (select private.held_lock(s.xmax, 'call_settings, which each claim needs') from private.call_settings s),
      (select 'an open transaction locks the table ' || min(l.relation::regclass::text) || ' (process ' || min(l.pid)
              || '): end that session'
       from pg_catalog.pg_locks l
       where l.relation in ('public.outbound_call_jobs'::regclass, 'public.outbound_call_attempts'::regclass,
                            'private.call_settings'::regclass)
         and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
         and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock') and l.granted
         and l.pid <> pg_backend_pid() having count(*) > 0),
      (select 'a call to its number is under way, of job ' || string_agg(distinct a.job_id::text, ', ')
       from public.outbound_call_attempts a
       where a.phone_e164 = p_job.phone_e164 and a.closed_at is null and a.job_id <> p_job.id),
      (select 'jobs due before it: ' || case count(*) when 10000 then 'at least ' else '' end || nullif(count(*), 0)
       from (select from public.outbound_call_jobs j
             where j.status = 'queued' and (j.due_at, j.id) < (p_job.due_at, p_job.id) limit 10000) earlier),
      case when (p_gate).next_call_at > p_now
           then 'the rate allows a call at ' || private.told((p_gate).next_call_at, p_zone) end,
      case when (select count(*) from vault.decrypted_secrets
                 where name in ('call_dispatcher_url', 'call_dispatcher_secret')) < 2
           then 'Vault has no webhook URL and secret: only sweeps dial'
           else private.trigger_off('on_outbound_call_job_created', 'only sweeps dial') end,
      private.swept())
$$;
comment on function private.not_claimed is 'Call dispatcher: what is in the way of a job that is due, in words.';

create function private.waits_because(p_job public.outbound_call_jobs, p_zone text) returns text
language sql stable set search_path = '' as $$
  select case
    when p_job.due_at = 'infinity' then 'it is never due: its due_at is infinity'
    when p_job.due_at > t.now and coalesce(h.reason, p_job.reason, p_job.reason_code) is null
      then 'it is not due before ' || private.told(p_job.due_at, p_zone)
    when p_job.due_at > t.now
      then private.masked(coalesce(h.reason, p_job.reason, p_job.reason_code)) || '; due '
           || private.told(p_job.due_at, p_zone)
    else 'due since ' || private.told(least(greatest(p_job.due_at, p_job.created_at), t.now), p_zone)
      || coalesce(' (' || private.masked(p_job.reason) || ')', '') || '; nothing has claimed it' end
    || coalesce(case when p_job.due_at > t.now then '; ' else ': ' end || nullif(concat_ws('; ',
      case when s.only_row is null then 'private.call_settings has lost its row, which each claim needs'
           when s.paused_until > t.now and (p_job.due_at <= t.now or s.paused_until > p_job.due_at)
           then coalesce((
             select 'calls are paused since ' || private.told(h.at, p_zone) || private.paused(h, p_zone)
             from private.call_history h where h.job_id is null and h.last_at is null order by h.id desc limit 1),
             'calls are paused' || coalesce(': ' || private.masked(s.pause_reason), '')) end,
      case when exists (select from public.call_opt_outs o where o.phone_e164 = p_job.phone_e164)
             then 'its number has opted out: the next claim cancels it'
           when exists (select from auth.users u
                        where u.id = p_job.user_id and u.banned_until > greatest(t.now, p_job.due_at))
             then 'its user is banned: the next claim cancels it'
           when p_job.due_at > t.now then null
           when p_job.phone_e164 is null then 'its number has not been read yet'
           when p_job.database_id <> private.database_id() then 'it was queued in another database' end,
      case when p_job.due_at <= t.now then private.not_claimed(p_job, p_zone, s, t.now) end), ''), '')
  from (select private.clock() as now) t left join private.call_settings s on true
  left join lateral (select l.* from private.call_history l where l.job_id = p_job.id order by l.id desc limit 1) h
    on h.code = 'time_changed' and p_job.due_at = h.due_at
$$;
comment on function private.waits_because is 'Call dispatcher: why a queued job has not been dialed, in words.';

create function private.stands(p_job public.outbound_call_jobs, p_zone text) returns text
language sql stable set search_path = '' as $$
  select coalesce(case p_job.status
      when 'completed' then 'completed: ' || coalesce((
        select 'its call was picked up' || case when private.is_by_machine(b) then ' by a machine' else '' end
        from public.outbound_call_attempts b where b.job_id = p_job.id and b.call_status = 'completed'
        order by b.number desc, b.state = 'duplicate' limit 1), private.masked(p_job.reason), 'no call of it is stored')
      when 'queued' then 'waits: ' || private.waits_because(p_job, p_zone)
      when 'dialing' then 'a dispatcher holds it since ' || private.told(a.started_at, p_zone)
        || '; unless it reports, Twilio is asked about the call' || ask
      when 'in_doubt' then 'in doubt for ' || private.lasted(a.doubted_at, private.clock()) || ': '
        || private.masked(coalesce(p_job.reason, a.error_message, 'nobody knows whether Twilio took the call'))
        || '; nobody dials before that is settled; Twilio is asked' || ask
        || case when a.doubted_at > private.clock() - interval '15 minutes' or p_job.reason_code = 'ambiguous' then ''
                else '; the function''s log says why Twilio could not answer for so long' end
      when 'calling' then case a.call_status when 'queued' then 'its call waits in Twilio''s queue'
          when 'in-progress' then 'the person is on the line' when 'ringing' then 'the phone rings'
          else 'its call is under way' end
        || case when a.put_off_until is null then '' else
             coalesce('; it must not ring now and is canceled there: ' || private.masked(a.error_message), '') end
        || coalesce('; the person asked to be called again at ' || private.told(a.later_at, p_zone), '')
        || '; without news Twilio is asked' || ask
      else p_job.status || ': ' || private.masked(coalesce(p_job.reason, p_job.reason_code, 'no reason was stored'))
      end, p_job.status || '; its rows do not fit together, as if changed by hand')
    || coalesce((select '; the same number has ' || string_agg('job ' || k.id || ' (' || k.status || ')', ', ')
                 from public.outbound_call_jobs k
                 where k.phone_e164 = p_job.phone_e164 and k.id <> p_job.id and case p_job.reason_code
                   when 'number_in_use' then k.finished_at is null when 'number_reached' then k.status = 'completed'
                   else p_job.reason_code in ('calls_per_number_per_day', 'calls_without_key') and exists (
                     select from public.outbound_call_attempts a
                     where a.job_id = k.id and a.started_at > private.clock() - interval '7 days') end), '')
    || case when p_job.cancel_requested and p_job.finished_at is null
            then '; it will be canceled (' || private.in_words(coalesce(p_job.cancel_code, 'canceled'))
                 || ') when its call is over'
            else '' end
  from (select case when p_job.due_at > private.clock() then ' at ' || private.told(p_job.due_at, p_zone)
               else concat_ws('; ', ' since ' || private.told(p_job.due_at, p_zone), (
                 select private.held_lock(j.xmax, 'its row') from public.outbound_call_jobs j where j.id = p_job.id),
                 private.swept()) end as ask) t
  left join public.outbound_call_attempts a on a.job_id = p_job.id and a.state in ('started', 'in_doubt', 'accepted')
$$;
comment on function private.stands is 'Call dispatcher: how a job stands now, in words.';

create function private.story(p_job public.outbound_call_jobs) returns setof text
language plpgsql stable set search_path = '' as $$
declare
  v_now  constant timestamptz := private.clock();
  v_zone constant text := private.zone_of(p_job.metadata);
begin
  return query
  with past as (select h.* from private.call_history h where h.job_id = p_job.id),
  mine as (select a.*, private.is_by_machine(a) as by_machine
           from public.outbound_call_attempts a where a.job_id = p_job.id),
  events (at, rank, sentence) as (
    select x.at, 0, x.words
    from auth.users u, lateral (values (u.created_at, 'the user signed up'),
                                       (u.phone_confirmed_at, 'the user''s phone was confirmed')) x (at, words)
    where u.id = p_job.user_id
    union all select min(h.at), 2, 'unusual events before this one are forgotten' from past h having count(*) >= 50
    union all select p_job.created_at, 1, 'queued, signup mode ' || private.masked(p_job.signup_mode)
      || case when p_job.phone_number = 'erased'
                or exists (select from past h where h.code = 'number_changed') then ''
              else ', for ' || private.masked_number(coalesce(p_job.phone_e164, p_job.phone_number)) end
    union all select h.at, 2, 'all calls were paused' || private.paused(h, v_zone) from private.call_history h
    where h.job_id is null and h.at < coalesce(p_job.finished_at, v_now)
      and least(h.last_at, h.due_at, v_now) >= p_job.created_at
    union all
    -- The second of two calls of one request has no claim of its own.
    select m.started_at, 3, concat('claimed for call ', m.number, ' from ' || private.masked_number(min(m.from_e164)),
                                   ' to ' || private.masked_number(min(m.phone_e164)))
    from mine m where m.error_code is distinct from 'restored' group by m.started_at, m.number
    union all
    select m.doubted_at, 4, 'in doubt: ' || private.masked(coalesce(m.error_message, 'nobody knows what became of it'))
    from mine m where m.doubted_at not in (select h.at from past h where h.status = 'in_doubt')
    union all
    select m.accepted_at, 5, case when m.state = 'duplicate' then 'Twilio took one call too many, which is ended'
      else 'Twilio has the call' || coalesce(', after ' || private.lasted(m.doubted_at, m.accepted_at) || ' in doubt',
      '') end || ' (' || m.call_sid || ')'
    from mine m
    union all select m.closed_at, 7, case
      when m.error_code = 'outcome_unknown' then private.in_words(m.error_code)
      when m.state = 'duplicate' then 'the call too many is over'
      when m.state = 'refused' then 'refused: ' || private.masked(coalesce(m.error_message, m.error_code, 'no reason'))
      when m.state = 'absent' then 'Twilio has no such call'
      else case when m.call_status in ('busy', 'no-answer', 'failed') then private.in_words(m.call_status)
             when m.call_status = 'completed' then 'the call is over'
             else 'the call was canceled' || case when m.put_off_until is null then '' else ' before it rang' end end
        || case when m.by_machine then ': a machine picked up' else '' end
        || coalesce(', after ' || m.duration_s || ' s', '') || coalesce(' (SIP ' || m.sip_code || ')', '')
        || coalesce(' (Twilio error ' || substring(m.error_code from '^[0-9]{1,6}$') || ')', '') end
    from mine m where m.state not in ('refused', 'absent') or m.closed_at not in (select h.at from past h)
    union all
    select h.at, case when h.status <> 'calling' and h.was in ('dialing', 'in_doubt', 'calling') then 8 else 6 end,
      case
        when h.was is null then ''
        when h.was in ('completed', 'failed', 'canceled') and h.status in ('queued', 'calling') then 'taken up again: '
        when h.status in ('dialing', 'in_doubt', 'calling') and h.reason = private.in_words(h.code)
          then 'its call will be ended: '
        when h.code in ('number_changed', 'time_changed')
          or h.was = h.status and h.status in ('completed', 'failed', 'canceled') then ''
        when h.status = 'calling' then 'its call must not ring now: '
        when h.status = 'in_doubt' then 'in doubt: '
        when h.was = 'dialing' and h.status = 'queued' then 'given back before it was dialed: '
        when h.status = 'queued' then 'put off: '
        else h.status || ': ' end
      || private.masked(coalesce(h.reason, h.code, case h.status when 'calling' then 'Twilio has its call after all'
                                                   else 'no reason was stored' end))
      || coalesce('; due ' || private.told(h.due_at, v_zone), '')
      || case when h.times = 1 then '' else ' (' || h.times || ' times, the last at ' || private.told(h.last_at, v_zone)
         || ')' end
    from past h
    union all select o.opted_out_at, 9, 'this number opted out of calls (' || private.masked(o.how) || ')'
    from public.call_opt_outs o where o.phone_e164 = p_job.phone_e164
    union all select d.deleted_at, 9, 'the user was deleted: what was known before is erased'
    from private.deleted_users d where d.user_id = p_job.user_id
    union all select coalesce(r.ended_at, r.created_at), 9, 'the result ' || case r.state
      when 'told' then 'was told' when 'due' then 'waits to be told' else 'could not be told' end || ' to your system'
      || case when r.state = 'told' then '' else coalesce(': ' || private.masked(r.note), '') end
    from private.call_results r where r.job_id = p_job.id
    union all select m.noted_at, 9, 'a change of the user''s phone could not be followed (' || private.masked(m.error)
      || '): each sweep tries again; ' || private.swept()
    from private.missed_signups m where m.user_id = p_job.user_id
  )
  select private.told(e.at, v_zone) || ': ' || e.sentence || '.' from events e where e.at is not null
  order by e.at, e.rank;
  return next private.told(v_now, v_zone) || ', now: ' || private.stands(p_job, v_zone) || '.';
end $$;
comment on function private.story is 'Call dispatcher: the events of a job, in order, and its state now.';

create function private.why_no_job(p_user_id uuid) returns text language sql stable set search_path = '' as $$
  select 'User ' || p_user_id || ' has no call job: ' || case
    when u.id is null then 'there is no such user; deleted users, and jobs older than the retention, leave nothing.'
    when m.user_id is not null then 'it could not be queued at ' || private.told(m.noted_at) || ' ('
      || private.masked(m.error) || '). Each sweep tries again; ' || private.swept() || '.'
    when u.deleted_at is not null then 'the user was marked as deleted at ' || private.told(u.deleted_at) || '.'
    when private.onboarding_phone(u.phone, now(), u.raw_user_meta_data) is null
      then 'the user has no phone' || case when s.verified_phones_only
                                        then ' in auth.users, and no other is called (require_verified_phones).'
                                      else ', neither in auth.users nor in the metadata of the sign-up.' end
    when private.onboarding_phone(u.phone, u.phone_confirmed_at, u.raw_user_meta_data) is null
      then 'the phone is not confirmed, and only confirmed phones are called (require_verified_phones).'
    when s.lost_after is not null or s.lost_seen < l.last_value then 'sign-ups of ' || private.told(
      to_timestamp(l.last_value)) || ' were lost to a locked table. Sweeps look for them; ' || private.swept() || '.'
    else coalesce(
      private.trigger_off('on_auth_user_created_onboarding', 'no sign-up is queued; ') || 'or ', '')
      || coalesce('the user signed up at ' || private.told(u.created_at) || ', ', '') || 'before the dispatcher was'
      ' installed; or the job ended and was deleted, after CALL_RETENTION_DAYS or by hand. enqueue_call_job queues one.'
    end
  from private.lost_signups l left join private.call_settings s on true
  left join auth.users u on u.id = p_user_id left join private.missed_signups m on m.user_id = p_user_id
$$;
comment on function private.why_no_job is 'Call dispatcher: why a user has no job, in words.';

create function public.explain_call_job(
  p_job_id bigint default null, p_user_id uuid default null, p_phone_number text default null
) returns setof text language plpgsql stable security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_job    public.outbound_call_jobs;
  v_phones text[];
  v_jobs   bigint[];  -- that called the number once
  v_last   bigint;
  v_found  boolean := false;
begin
  perform private.raise_if(num_nonnulls(p_job_id, p_user_id, p_phone_number) <> 1,
                           'give one of p_job_id, p_user_id and p_phone_number');
  v_phones := array_remove(private.spellings(private.read_number(p_phone_number)), null);
  v_jobs := array(select a.job_id from public.outbound_call_attempts a where a.phone_e164 = any (v_phones));
  for v_job in
    select * from public.outbound_call_jobs j
    where j.id = p_job_id or j.user_id = p_user_id or j.phone_e164 = any (v_phones) or j.phone_number = p_phone_number
       or j.id = any (v_jobs)
       or j.phone_e164 is null and exists (  -- typed without its country code, and not read, or refused
         select from unnest(v_phones || regexp_replace(p_phone_number, '\D', '', 'g')) v,
              ltrim(regexp_replace(j.phone_number, '\D', '', 'g'), '0') d
         where length(d) >= 7 and v like '%' || d)
    order by j.id
  loop
    v_found := true;
    if p_job_id is null then
      return next 'Job ' || v_job.id || ':';
    end if;
    return query select private.story(v_job);
  end loop;
  if p_phone_number is not null then
    if v_phones = '{}' then
      return next 'This text cannot be read as one certain number'
        || coalesce(': was it ' || private.masked_number(private.nearest_number(p_phone_number)) || '?',
                    '. Write + and the country code, then the number.');
    end if;
    return query
    select 'The number opted out of calls at ' || private.told(min(o.opted_out_at)) || ' ('
      || private.masked(min(o.how)) || ').' from public.call_opt_outs o
    where o.phone_e164 = any (v_phones) having count(*) > 0
    union all select private.why_no_job(u.id) from auth.users u
    where not exists (select from public.outbound_call_jobs j where j.user_id = u.id)
      and u.id in (select p.id from auth.users p
                   where p.phone = any (array(select ltrim(v, '+') from unnest(v_phones) v))
                   union all select m.user_id from private.missed_signups m join auth.users p on p.id = m.user_id
                   where private.read_number(private.onboarding_phone(p.phone, now(), p.raw_user_meta_data))
                         = any (v_phones));
    if not v_found and not found then
      return next 'No call job has this number. It may be in the metadata of a sign-up only, be typed another way, or'
        ' have changed since: ask with p_user_id.';
    end if;
  elsif p_user_id is not null and not v_found then
    return next private.why_no_job(p_user_id);
  elsif not v_found then
    select coalesce(max(s.last_value), 0) into v_last from pg_catalog.pg_sequences s
    where format('%I.%I', s.schemaname, s.sequencename) = pg_get_serial_sequence('public.outbound_call_jobs', 'id');
    return next case when p_job_id between 1 and v_last then 'There is no call job ' || p_job_id || ' any more: it'
        ' was deleted, after CALL_RETENTION_DAYS or by hand; or its insert was undone.' || coalesce((
          select ' The job before it was queued at ' || private.told(j.created_at) || '.'
          from public.outbound_call_jobs j where j.id < p_job_id order by j.id desc limit 1), '')
      else 'There has never been a call job ' || p_job_id || ': the ids go up to ' || v_last || '.' end;
  end if;
exception when lock_not_available then
  return next 'The tables are locked by an open transaction' || coalesce((
    select ' (process ' || min(l.pid) || ')' from pg_catalog.pg_locks l
    where l.mode = 'AccessExclusiveLock' and l.granted and l.relation is not null and l.pid <> pg_backend_pid()), '')
    || ': no call is made, and nothing can be told, before that session ends.';
end $$;
comment on function public.explain_call_job is
  'Call dispatcher, by hand: why a person was called, or was not: the story of a job, or of all jobs of a user or a'
  ' number, in sentences, and how it stands now. Times in UTC and by the person''s clock, numbers masked. -> sentences';

create function public.waiting_calls(
  p_after bigint, p_calls_per_number_per_day int, p_calls_per_prefix_per_hour int, p_limit int default 1000
) returns jsonb language plpgsql stable security definer set search_path = '' as $$
declare
  v_now   constant timestamptz := private.clock();
  v_state constant private.call_settings := (select s from private.call_settings s);
begin
  return jsonb_build_object(
    'now', v_now, 'paused', case when v_state.paused_until > v_now then v_state.pause_reason end,
    'jobs', (
      select coalesce(jsonb_agg(jsonb_build_object(
        'id', j.id, 'phone_number', j.phone_number, 'metadata', private.readable(j.metadata),
        'due_at', greatest(j.created_at, least(j.due_at, '9998-01-01')), 'reason_code', j.reason_code,
        'redial', private.redial(j), 'held', coalesce(w.code, c.code), 'until', coalesce(w.until, c.until))
        order by j.id), '[]')
      from (select * from public.outbound_call_jobs where status = 'queued' and id > p_after
            order by id limit p_limit) j
      cross join lateral private.whom_not_to_call(j, v_now) w
      left join lateral private.cap_reached(gen_random_uuid(), j.phone_e164, v_now, p_calls_per_number_per_day,
        p_calls_per_prefix_per_hour, null, v_state.calls_without_key) c on j.due_at <= v_now));
end $$;
comment on function public.waiting_calls is
  'Call dispatcher: the queued jobs after p_after, by id, at most p_limit, as a claim sees them. -> {"now", "paused":'
  ' why all are, "jobs": [{"id", "phone_number", "metadata", "due_at", "reason_code", "redial", "held", "until"}]}';

select private.apply_rights();
