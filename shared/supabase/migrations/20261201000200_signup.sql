-- From a sign-up to a job, and from a job to the webhook. Neither may fail or delay the insert that it hangs on.

set local lock_timeout = '2s';  -- of auth.users: fail and be pushed again rather than make sign-ups wait

create function private.hmac_sha256(p_key bytea, p_message bytea) returns bytea
language plpgsql immutable strict set search_path = '' as $$
declare
  v_key   bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
  v_inner bytea;
  v_outer bytea;
begin
  v_key := v_key || decode(repeat('00', 64 - length(v_key)), 'hex');
  v_inner := v_key;
  v_outer := v_key;
  for i in 0..63 loop
    v_inner := set_byte(v_inner, i, get_byte(v_key, i) # 54);
    v_outer := set_byte(v_outer, i, get_byte(v_key, i) # 92);
  end loop;
  return sha256(v_outer || sha256(v_inner || p_message));
end
$$;
comment on function private.hmac_sha256 is
  'Call dispatcher: HMAC-SHA256 (RFC 2104) over core''s sha256. Not every Postgres that runs this has pgcrypto.';

create function private.queue_onboarding_call(
  p_user_id uuid, p_phone text, p_confirmed_at timestamptz, p_metadata jsonb
) returns void
language plpgsql set search_path = '' as $$
declare
  v_verified_only constant boolean := (select verified_phones_only from private.call_settings);
  v_metadata constant jsonb := case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end;
  v_name     constant text := coalesce(
    case jsonb_typeof(v_metadata -> 'first_name') when 'string' then nullif(btrim(v_metadata ->> 'first_name'), '') end,
    case jsonb_typeof(v_metadata -> 'name')
      when 'string' then nullif(split_part(btrim(v_metadata ->> 'name'), ' ', 1), '') end,
    case jsonb_typeof(v_metadata -> 'full_name')
      when 'string' then nullif(split_part(btrim(v_metadata ->> 'full_name'), ' ', 1), '') end);
  v_typed    constant text := coalesce(nullif(btrim(v_metadata ->> 'phone'), ''),
                                       nullif(btrim(v_metadata ->> 'phone_number'), ''));
  v_phone    constant text := left(coalesce('+' || nullif(p_phone, ''),
                                            case when not v_verified_only then v_typed end), 64);
begin
  if v_phone is null or (v_verified_only and p_confirmed_at is null) then
    return;
  end if;
  insert into public.outbound_call_jobs (user_id, phone_number, signup_mode, first_name, metadata)
  values (
    p_user_id,
    v_phone,
    coalesce(left(nullif(btrim(v_metadata ->> 'signup_mode'), ''), 64), 'default'),
    left(v_name, 100),
    case when length(v_metadata::text) <= 8192 then v_metadata else '{}' end)  -- an avatar, say: no script reads it out
  on conflict do nothing;
end
$$;
comment on function private.queue_onboarding_call is
  'Call dispatcher: queue the onboarding call of one user. A user without a phone gets none. Any text typed as a phone'
  ' gets a job, and its reason says what is wrong with it. Supabase keeps auth.users.phone without its "+"; the user'
  ' wrote the metadata. Where only verified phones are called, the phone is the one in auth.users, once it is'
  ' confirmed.';

create function private.on_auth_user_created() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
begin
  -- Confirming a phone queues a call only if verified phones are required and the user has no job yet.
  if tg_op = 'UPDATE' and (not (select verified_phones_only from private.call_settings)
                           or exists (select from public.outbound_call_jobs j where j.user_id = new.id)) then
    return null;
  end if;
  perform private.queue_onboarding_call(new.id, new.phone, new.phone_confirmed_at, new.raw_user_meta_data);
  return null;
exception when others then
  begin
    insert into private.missed_signups (user_id, error, noted_at)
    values (new.id, sqlstate || ': ' || sqlerrm, private.clock())
    on conflict do nothing;
    raise warning 'the onboarding call of user % could not be queued and was noted for the sweep: %', new.id, sqlerrm;
  exception when others then
    raise warning 'the onboarding call of user % could be neither queued nor noted: %', new.id, sqlerrm;
  end;
  return null;
end
$$;
comment on function private.on_auth_user_created is
  'Call dispatcher: after each sign-up and each confirmation of a phone, in that transaction. lock_timeout turns a'
  ' long wait into an error, which is caught: the sign-up commits, and the sweep queues its call later.';

create trigger on_auth_user_created_onboarding after insert on auth.users
  for each row execute function private.on_auth_user_created();

create trigger on_auth_user_phone_confirmed_onboarding after update of phone_confirmed_at on auth.users
  for each row when (old.phone_confirmed_at is null and new.phone_confirmed_at is not null)
  execute function private.on_auth_user_created();

create function public.require_verified_phones(p_required boolean default true) returns text
language plpgsql security definer set search_path = '' as $$
begin
  if p_required is null then
    raise exception 'p_required must be true or false';
  end if;
  update private.call_settings set verified_phones_only = p_required where only_row;
  return case when p_required then 'a sign-up is called when its phone is confirmed'
              else 'a sign-up is called at once, confirmed or not' end;
end
$$;
comment on function public.require_verified_phones is
  'Call dispatcher, by hand: call sign-ups only when their phone is confirmed by SMS (true), or at once (false, the'
  ' default of a new project). A typed number may be anybody''s. -> what holds now';

create function public.heal_onboarding_calls(p_limit int default 100) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_missed record;
  v_healed int := 0;
begin
  for v_missed in
    select m.user_id, u.id as existing_id, u.phone, u.phone_confirmed_at, u.raw_user_meta_data
    from private.missed_signups m left join auth.users u on u.id = m.user_id
    order by m.noted_at limit p_limit
    for update of m skip locked
  loop
    begin
      if v_missed.existing_id is not null then
        perform private.queue_onboarding_call(
          v_missed.user_id, v_missed.phone, v_missed.phone_confirmed_at, v_missed.raw_user_meta_data);
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
end
$$;
comment on function public.heal_onboarding_calls is
  'Call dispatcher: for the sweep: queue the calls that a sign-up could not. -> how many were healed';

create function public.enqueue_call_job(
  p_user_id      uuid,
  p_phone_number text,
  p_signup_mode  text default 'default',
  p_first_name   text default null,
  p_metadata     jsonb default '{}',
  p_not_before   timestamptz default null,
  p_dedupe_key   text default null
) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_id  bigint;
  v_key constant text := coalesce(p_dedupe_key, 'onboarding:' || p_user_id);
begin
  if p_user_id is null then
    raise exception 'p_user_id must be given: a user is called once';
  end if;
  if nullif(btrim(p_phone_number), '') is null or length(p_phone_number) > 64 then
    raise exception 'p_phone_number must be given, in at most 64 characters';
  end if;
  if length(p_signup_mode) not between 1 and 64 then
    raise exception 'p_signup_mode must have 1 to 64 characters';
  end if;
  if length(p_first_name) > 100 then
    raise exception 'p_first_name must have at most 100 characters';
  end if;
  if jsonb_typeof(p_metadata) <> 'object' then
    raise exception 'p_metadata must be a JSON object';
  end if;
  if not isfinite(p_not_before) then
    raise exception 'p_not_before must be a moment, not infinity';
  end if;
  insert into public.outbound_call_jobs (user_id, phone_number, signup_mode, first_name, metadata, due_at, dedupe_key)
  values (p_user_id, p_phone_number, coalesce(p_signup_mode, 'default'), p_first_name, coalesce(p_metadata, '{}'),
          p_not_before, v_key)
  on conflict do nothing
  returning id into v_id;
  if found then
    return jsonb_build_object('job_id', v_id, 'created', true);
  end if;
  select j.id into v_id from public.outbound_call_jobs j
  where j.dedupe_key = v_key and j.dedupe_window && tstzrange(private.clock(), private.clock() + interval '1 hour')
  order by j.id desc limit 1;
  return jsonb_build_object('job_id', v_id, 'created', false);
end
$$;
comment on function public.enqueue_call_job is
  'Call dispatcher, by hand or by code: have one person called. Within an hour of another job with the same key it'
  ' makes none and answers with that job. -> {"job_id", "created"}';

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
  perform net.http_post(
    url := v_url,
    body := v_body,
    headers := jsonb_build_object(
      'Content-Type', 'application/json',
      'webhook-id', v_id,
      'webhook-timestamp', v_at,
      'webhook-signature', 'v1,' || encode(private.hmac_sha256(
        decode(v_secret, 'base64'),
        convert_to(v_id || '.' || v_at || '.' || v_body::text, 'UTF8')), 'base64')),
    timeout_milliseconds := 10000);
  return null;
exception when others then
  raise warning 'no webhook for call job %: %; the sweep will take it', new.id, sqlerrm;
  return null;
end
$$;
comment on function private.on_outbound_call_job_created is
  'Call dispatcher: after each insert of a due job, send a Database Webhook through pg_net, signed as Standard'
  ' Webhooks define. It is a hint: pg_net loses, repeats and delays, and an error here costs only the time until the'
  ' next sweep. The body holds the job''s id and no personal data, because every database role can read pg_net''s'
  ' tables.';

create trigger on_outbound_call_job_created after insert on public.outbound_call_jobs
  for each row when (new.status = 'queued') execute function private.on_outbound_call_job_created();

select private.apply_rights();
