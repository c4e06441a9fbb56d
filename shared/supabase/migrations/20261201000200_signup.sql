-- From a sign-up to a job, and from a job to the webhook. Neither may fail or delay the insert that it hangs on.

set local lock_timeout = '2s';  -- of auth.users: fail and be pushed again rather than make sign-ups wait

create function private.hmac_sha256(p_key bytea, p_message bytea) returns bytea
language plpgsql immutable strict set search_path = '' as $$
declare
  v_short constant bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
  v_key   constant bit(512) := ('x' || rpad(encode(v_short, 'hex'), 128, '0'))::bit(512);
  v_inner constant bit(512) := v_key # ('x' || repeat('36', 64))::bit(512);
  v_outer constant bit(512) := v_key # ('x' || repeat('5c', 64))::bit(512);
begin
  -- varbit_send: four bytes of length, then the bits.
  return sha256(substr(varbit_send(v_outer), 5) || sha256(substr(varbit_send(v_inner), 5) || p_message));
end $$;
comment on function private.hmac_sha256 is 'Call dispatcher: RFC 2104. Not every Postgres that runs this has pgcrypto.';

create function private.onboarding_phone(p_phone text, p_confirmed_at timestamptz, p_metadata jsonb) returns text
language sql stable set search_path = '' as $$
  select left(case when not s.verified_phones_only
                   then coalesce('+' || nullif(p_phone, ''), nullif(btrim(p_metadata ->> 'phone'), ''),
                                 nullif(btrim(p_metadata ->> 'phone_number'), ''))
                   when p_confirmed_at is not null then '+' || nullif(p_phone, '') end, 64)
  from private.call_settings s
$$;
comment on function private.onboarding_phone is
  'Call dispatcher: the phone at which a user is called, as typed, or null. auth.users.phone lacks its "+"; where only'
  ' verified phones are called, it is that one, once it is confirmed. The user wrote the metadata.';

create function private.queue_onboarding_call(p_user_id uuid, p_phone text, p_metadata jsonb, p_app_metadata jsonb)
returns void language plpgsql set search_path = '' as $$
declare
  v_metadata constant jsonb := case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end;
  v_name     constant text := (
    select case key when 'first_name' then name else split_part(name, ' ', 1) end
    from unnest(array['first_name', 'name', 'full_name']) with ordinality k (key, n), btrim(v_metadata ->> key) name
    where jsonb_typeof(v_metadata -> key) = 'string' and name <> '' order by n limit 1);
  v_zone     constant text := coalesce(p_app_metadata ->> 'timezone', p_app_metadata ->> 'time_zone',
                                       p_app_metadata ->> 'tz');
begin
  insert into public.outbound_call_jobs (user_id, phone_number, signup_mode, first_name, metadata)
  values (p_user_id, p_phone, left(v_metadata ->> 'signup_mode', 64), left(v_name, 100),
          case when length(v_metadata::text) <= 8192 then v_metadata - 'app_timezone' else '{}' end  -- not an avatar
            || jsonb_strip_nulls(jsonb_build_object('app_timezone', v_zone)))
  on conflict do nothing;
end $$;
comment on function private.queue_onboarding_call is
  'Call dispatcher: queue the onboarding call of one user. Any text typed as a phone gets a job, and its reason names'
  ' the fault. Only the server writes p_app_metadata: its time zone is passed on as app_timezone.';

create function private.follow_phone(
  p_user_id uuid, p_was text, p_phone text, p_metadata jsonb, p_app_metadata jsonb
) returns void language plpgsql set search_path = '' as $$
declare
  v_now constant timestamptz := private.clock();
begin
  if p_phone is not distinct from p_was then
    return;
  end if;
  if p_was is null and not exists (select from public.outbound_call_jobs where user_id = p_user_id) then
    perform private.queue_onboarding_call(p_user_id, p_phone, p_metadata, p_app_metadata);
    return;
  end if;
  -- A job with another number than p_was was queued by hand or by the user's own code, and stays. So does a
  -- finished job that was canceled by hand, or for which a phone may have rung.
  update public.outbound_call_jobs j
  set phone_number = coalesce(p_phone, j.phone_number),
      phone_e164   = case when private.is_e164(p_phone) then p_phone end,
      status       = case when p_phone is null then 'canceled' else 'queued' end,
      due_at       = case when p_phone is null then null
                          when j.reason_code is null and j.status = 'queued' then j.due_at  -- it may be a chosen time
                          else v_now end,
      finished_at  = case when p_phone is null then v_now end,
      reason_code  = case when p_phone is null then 'phone_removed' end,
      reason       = case when p_phone is null then 'the user has no phone to call any more' end
  where j.id in (
    select o.id from public.outbound_call_jobs o
    where o.user_id = p_user_id
      and (o.phone_number = p_was
             and (o.status = 'queued'
                  or o.status = 'failed' and p_phone is not null and not o.cancel_requested
                     and not exists (select from public.outbound_call_attempts a
                                     where a.job_id = o.id and a.state <> 'refused'))
           or o.status = 'canceled' and o.reason_code = 'phone_removed' and p_phone is not null)
    order by o.id for update);
  -- An open call keeps the number that it dials. If it reaches nobody, the dispatcher reads the new one.
  update public.outbound_call_jobs set phone_number = p_phone
  where user_id = p_user_id and phone_number = p_was and status in ('dialing', 'in_doubt', 'calling')
    and p_phone is not null;
end $$;
comment on function private.follow_phone is
  'Call dispatcher: a user''s phone was p_was and is p_phone, perhaps null. The first phone queues the call once. A job'
  ' that waits, or whose number was refused, takes the new number, its attempts kept; without a phone it is canceled.';

create function private.on_auth_user_changed() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
declare
  v_was   text;
  v_phone text;
begin
  if tg_op = 'UPDATE' then
    v_was := '+' || nullif(old.phone, '');  -- for the note below, should the next line fail
    v_was := private.onboarding_phone(old.phone, old.phone_confirmed_at, old.raw_user_meta_data);
  end if;
  v_phone := private.onboarding_phone(new.phone, new.phone_confirmed_at, new.raw_user_meta_data);
  perform private.follow_phone(new.id, v_was, v_phone, new.raw_user_meta_data, new.raw_app_meta_data);
  return null;
exception when others then
  begin
    insert into private.missed_signups (user_id, error, noted_at, phone_was)
    values (new.id, sqlstate || ': ' || sqlerrm, private.clock(), v_was) on conflict do nothing;
    raise warning 'the onboarding call of user % could not be queued and was noted for the sweep: %', new.id, sqlerrm;
  exception when others then
    begin
      -- A sequence can be written while every table is locked.
      perform setval('private.lost_signups', floor(extract(epoch from clock_timestamp()))::bigint);
      raise warning 'the onboarding call of user % could not be noted; a sweep will find it: %', new.id, sqlerrm;
    exception when others then
      raise warning 'the onboarding call of user % could be neither queued nor noted: %', new.id, sqlerrm;
    end;
  end;
  return null;
end $$;
comment on function private.on_auth_user_changed is
  'Call dispatcher: after each sign-up and each change of a phone. lock_timeout turns a long wait into an error, which'
  ' is caught: the statement commits, and the sweep tries again.';

create trigger on_auth_user_created_onboarding after insert on auth.users
  for each row execute function private.on_auth_user_changed();

create trigger on_auth_user_phone_changed_onboarding
  after update of phone, phone_confirmed_at, raw_user_meta_data on auth.users
  for each row when (new.deleted_at is null
                     and (old.phone, old.phone_confirmed_at, old.raw_user_meta_data)
                         is distinct from (new.phone, new.phone_confirmed_at, new.raw_user_meta_data))
  execute function private.on_auth_user_changed();

create function public.require_verified_phones(p_required boolean default true) returns text
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_if(p_required is null, 'p_required must be true or false');
  update private.call_settings set verified_phones_only = p_required where only_row;
  return case when p_required then 'a sign-up is called when its phone is confirmed'
              else 'a sign-up is called at once, confirmed or not' end;
end $$;
comment on function public.require_verified_phones is
  'Call dispatcher, by hand: call sign-ups when their phone is confirmed by SMS (true), or at once (false, the default'
  ' of a new project). A typed number may be anybody''s. -> the new rule, in words';

create function private.find_lost_signups(p_limit int default 2000) returns void
language plpgsql set search_path = '' as $$
declare
  v_lost  constant bigint := (select last_value from private.lost_signups);
  v_state constant private.call_settings := (select s from private.call_settings s);
  v_users uuid[];
begin
  if v_state.lost_after is null and v_state.lost_seen >= v_lost
     or not pg_try_advisory_xact_lock('private.lost_signups'::regclass::oid::bigint) then  -- one sweep at a time
    return;
  end if;
  v_users := array(select id from auth.users
                   where id > coalesce(v_state.lost_after, '00000000-0000-0000-0000-000000000000')
                   order by id limit p_limit);
  insert into private.missed_signups (user_id, error, noted_at)
  select u.id, 'neither queued nor noted', private.clock() from auth.users u
  where u.id = any (v_users)
    and u.created_at between to_timestamp(v_lost) - interval '1 day' and to_timestamp(v_lost) + interval '1 minute'
    and not exists (select from public.outbound_call_jobs j where j.user_id = u.id)
  on conflict do nothing;
  update private.call_settings
  set lost_seen  = case when v_state.lost_after is null then v_lost else lost_seen end,  -- of the look that begins
      lost_after = case when cardinality(v_users) = p_limit then v_users[p_limit] end
  where only_row;
end $$;
comment on function private.find_lost_signups is
  'Call dispatcher: after a sign-up that could be neither queued nor noted, look through auth.users by primary key,'
  ' p_limit users at a time, and note those who signed up in the day before and have no job. Else it reads one number.';

create function public.heal_onboarding_calls(p_limit int default 100) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_missed record;
  v_healed int := 0;
begin
  perform setval('private.last_sweep', extract(epoch from private.clock())::bigint);
  perform private.find_lost_signups();
  for v_missed in
    select m.user_id, m.phone_was, m.error, u.id as existing_id, u.phone, u.phone_confirmed_at,
           u.raw_user_meta_data, u.raw_app_meta_data
    from private.missed_signups m left join auth.users u on u.id = m.user_id and u.deleted_at is null
    order by m.noted_at limit p_limit for update of m skip locked
  loop
    begin
      if v_missed.existing_id is not null then
        perform private.follow_phone(
          v_missed.user_id, v_missed.phone_was,
          private.onboarding_phone(v_missed.phone, v_missed.phone_confirmed_at, v_missed.raw_user_meta_data),
          v_missed.raw_user_meta_data, v_missed.raw_app_meta_data);
        perform private.remember(j.id, null, null, 'healed', 'it could not be queued or changed with the user ('
                                 || v_missed.error || '): this sweep did it', null, null)
        from (select max(id) as id from public.outbound_call_jobs where user_id = v_missed.user_id) j
        where j.id is not null;
      end if;
      delete from private.missed_signups where user_id = v_missed.user_id;
      v_healed := v_healed + 1;
    exception when others then
      -- To the end of the line: a sign-up that cannot be healed must not block the others.
      update private.missed_signups
      set error = sqlstate || ': ' || sqlerrm, noted_at = private.clock()
      where user_id = v_missed.user_id;
    end;
  end loop;
  return v_healed;
end $$;
comment on function public.heal_onboarding_calls is
  'Call dispatcher: for the sweep: queue the calls that a sign-up or a change of a phone could not. -> how many';

create function public.enqueue_call_job(
  p_user_id uuid, p_phone_number text, p_signup_mode text default 'default', p_first_name text default null,
  p_metadata jsonb default '{}', p_not_before timestamptz default null, p_dedupe_key text default null
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_id  bigint;
  v_key constant text := coalesce(p_dedupe_key, 'onboarding:' || p_user_id);
begin
  perform private.raise_if(p_user_id is null, 'p_user_id must be given: a user is called once');
  perform private.raise_if(nullif(btrim(p_phone_number), '') is null or length(p_phone_number) > 64,
                           'p_phone_number must be given, in at most 64 characters');
  perform private.raise_if(length(p_signup_mode) not between 1 and 64, 'p_signup_mode must have 1 to 64 characters');
  perform private.raise_if(length(p_first_name) > 100, 'p_first_name must have at most 100 characters');
  perform private.raise_if(jsonb_typeof(p_metadata) <> 'object', 'p_metadata must be a JSON object');
  perform private.raise_if(not isfinite(p_not_before), 'p_not_before must be a moment, not infinity');
  insert into public.outbound_call_jobs (user_id, phone_number, signup_mode, first_name, metadata, due_at, dedupe_key)
  values (p_user_id, p_phone_number, coalesce(p_signup_mode, 'default'), p_first_name, coalesce(p_metadata, '{}'),
          p_not_before, v_key) on conflict do nothing
  returning id into v_id;
  if found then
    return jsonb_build_object('job_id', v_id, 'created', true);
  end if;
  select j.id into v_id from public.outbound_call_jobs j
  where j.dedupe_key = v_key and j.dedupe_window && tstzrange(private.clock(), null) order by j.id desc limit 1;
  perform private.remember(
    v_id, null, null, 'asked_again',
    'another call was asked for with the same key'
      || case when p_phone_number = phone_number then '' else ' and for ' || private.masked_number(p_phone_number) end
      || ', while this one was open or within the hour after it: this job stands for both', null, null)
  from (select j.phone_number from public.outbound_call_jobs j where j.id = v_id for key share skip locked) unlocked;
  return jsonb_build_object('job_id', v_id, 'created', false);
end $$;
comment on function public.enqueue_call_job is
  'Call dispatcher, by hand or by code: have one person called. While another job with the same key waits or is open,'
  ' and for an hour after, it makes none and answers with that job. -> {"job_id", "created"}';

create function private.on_outbound_call_job_created() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
declare
  v_url    text;
  v_secret text;
  v_body   jsonb;
  v_id     constant text := 'job_' || new.id || '_' || gen_random_uuid();
  v_at     constant text := floor(extract(epoch from clock_timestamp()))::bigint;  -- real time, not private.clock()
begin
  if new.due_at > private.clock() then
    return null;
  end if;
  select decrypted_secret into v_url from vault.decrypted_secrets where name = 'call_dispatcher_url';
  -- While two secrets are rotated, the first one signs. Its key is base64, after the prefix.
  select nullif(substr(split_part(btrim(decrypted_secret), ' ', 1), length('whsec_') + 1), '') into v_secret
  from vault.decrypted_secrets where name = 'call_dispatcher_secret';
  if v_url is null or v_secret is null then
    raise warning 'no webhook for call job %: Vault lacks call_dispatcher_url or call_dispatcher_secret; the sweep will'
                  ' take it', new.id;
    return null;
  end if;
  v_body := jsonb_build_object('type', tg_op, 'table', tg_table_name, 'schema', tg_table_schema,
                               'record', jsonb_build_object('id', new.id), 'old_record', null);
  perform net.http_post(url := v_url, body := v_body, timeout_milliseconds := 10000, headers := jsonb_build_object(
    'Content-Type', 'application/json', 'webhook-id', v_id, 'webhook-timestamp', v_at,
    'webhook-signature', 'v1,' || encode(private.hmac_sha256(
      decode(v_secret, 'base64'), convert_to(v_id || '.' || v_at || '.' || v_body::text, 'UTF8')), 'base64')));
  return null;
exception when others then
  raise warning 'no webhook for call job %: %; the sweep will take it', new.id, sqlerrm;
  return null;
end $$;
comment on function private.on_outbound_call_job_created is
  'Call dispatcher: after each insert of a due job, send a Database Webhook through pg_net, signed as Standard Webhooks'
  ' define. It is a hint: pg_net loses, repeats and delays, and the sweep comes anyway. The body holds no personal'
  ' data, because every database role can read pg_net''s tables.';

create trigger on_outbound_call_job_created after insert on public.outbound_call_jobs
  for each row when (new.status = 'queued') execute function private.on_outbound_call_job_created();

select private.apply_rights();
