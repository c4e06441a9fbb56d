-- From a sign-up to a job, and from a job to the webhook. Neither may ever fail or hold up the insert that it hangs on.

set local lock_timeout = '2s';  -- of auth.users: rather fail, and be pushed again, than let sign-ups wait behind us

-- HMAC-SHA256 (RFC 2104) over the sha256 that is in core: pgcrypto is not there on every Postgres that runs this.
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

-- Queue the onboarding call of one user. Called by the triggers and by heal_onboarding_calls. A user without a phone gets none;
-- whatever was typed as a phone gets a job, and the dispatcher says in its reason what is wrong with it.
-- Supabase keeps auth.users.phone without its "+"; what the metadata holds, the user wrote. Where only verified phones are
-- called, it is the one in auth.users, and its confirmation is waited for.
create function private.queue_onboarding_call(p_user_id uuid, p_phone text, p_confirmed_at timestamptz, p_metadata jsonb) returns void
language plpgsql set search_path = '' as $$
declare
  v_verified_only constant boolean := (select verified_phones_only from private.call_settings);
  v_metadata constant jsonb := case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end;
  v_name     constant text := coalesce(
    case jsonb_typeof(v_metadata -> 'first_name') when 'string' then nullif(btrim(v_metadata ->> 'first_name'), '') end,
    case jsonb_typeof(v_metadata -> 'name') when 'string' then nullif(split_part(btrim(v_metadata ->> 'name'), ' ', 1), '') end,
    case jsonb_typeof(v_metadata -> 'full_name') when 'string' then nullif(split_part(btrim(v_metadata ->> 'full_name'), ' ', 1), '') end);
  v_typed    constant text := coalesce(nullif(btrim(v_metadata ->> 'phone'), ''), nullif(btrim(v_metadata ->> 'phone_number'), ''));
  v_phone    constant text := left(coalesce('+' || nullif(p_phone, ''), case when not v_verified_only then v_typed end), 64);
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
    case when length(v_metadata::text) <= 8192 then v_metadata else '{}' end)  -- no script reads an avatar out
  on conflict do nothing;
end
$$;

-- After each sign-up, and after each confirmation of a phone, in that transaction. lock_timeout turns a wait for a lock into an
-- error, which is caught: the sign-up commits, and what could not be queued is noted aside for the sweep.
create function private.on_auth_user_created() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
begin
  -- A confirmation says something new only where one was waited for; who has been called is not called again for it.
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

create trigger on_auth_user_created_onboarding after insert on auth.users
  for each row execute function private.on_auth_user_created();

create trigger on_auth_user_phone_confirmed_onboarding after update of phone_confirmed_at on auth.users
  for each row when (old.phone_confirmed_at is null and new.phone_confirmed_at is not null)
  execute function private.on_auth_user_created();

-- By hand: trust only phones that were confirmed (by SMS), or, as at first, whatever was typed. Typed numbers are anybody's.
create function public.require_verified_phones(p_required boolean default true) returns void
language sql security definer set search_path = '' as $$
  update private.call_settings set verified_phones_only = coalesce(p_required, true) where only_row
$$;

-- Called by each sweep: queue the calls that a sign-up could not. -> how many were healed
create function public.heal_onboarding_calls(p_limit int default 100) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_missed record;
  v_healed int := 0;
begin
  for v_missed in
    select m.user_id, u.id as still_there, u.phone, u.phone_confirmed_at, u.raw_user_meta_data
    from private.missed_signups m left join auth.users u on u.id = m.user_id
    order by m.noted_at limit p_limit
    for update of m skip locked
  loop
    begin
      if v_missed.still_there is not null then
        perform private.queue_onboarding_call(v_missed.user_id, v_missed.phone, v_missed.phone_confirmed_at, v_missed.raw_user_meta_data);
      end if;
      delete from private.missed_signups where user_id = v_missed.user_id;
      v_healed := v_healed + 1;
    exception when others then
      -- To the end of the line: one that cannot be healed must not keep the others from it.
      update private.missed_signups
      set error = sqlstate || ': ' || sqlerrm, noted_at = private.clock()
      where user_id = v_missed.user_id;
    end;
  end loop;
  return v_healed;
end
$$;

-- After each insert of a due job: a Database Webhook, signed as Standard Webhooks say, sent by pg_net after the commit. It is a
-- hint (pg_net loses, repeats and delays), so whatever goes wrong here only costs the time until the next sweep.
-- The body holds the job's id and nothing about the person: pg_net's tables can be read by every database role.
-- Vault holds call_dispatcher_url and call_dispatcher_secret (whsec_...).
create function private.on_outbound_call_job_created() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
declare
  v_url    text;
  v_secret text;
  v_body   jsonb;
  v_id     constant text := 'job_' || new.id || '_' || gen_random_uuid();
  v_at     constant text := floor(extract(epoch from clock_timestamp()))::bigint;  -- the wire's time, not private.clock()
begin
  if new.due_at > private.clock() then
    return null;
  end if;
  select decrypted_secret into v_url from vault.decrypted_secrets where name = 'call_dispatcher_url';
  -- The first of two, while they are rotated, less its prefix: base64.
  select nullif(substr(split_part(btrim(decrypted_secret), ' ', 1), length('whsec_') + 1), '') into v_secret
  from vault.decrypted_secrets where name = 'call_dispatcher_secret';
  if v_url is null or v_secret is null then
    raise warning 'no webhook for call job %: Vault lacks call_dispatcher_url or call_dispatcher_secret; the sweep will take it', new.id;
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

create trigger on_outbound_call_job_created after insert on public.outbound_call_jobs
  for each row when (new.status = 'queued') execute function private.on_outbound_call_job_created();

revoke all on function
  private.hmac_sha256(bytea, bytea),
  private.queue_onboarding_call(uuid, text, timestamptz, jsonb),
  private.on_auth_user_created(),
  private.on_outbound_call_job_created()
from public, anon, authenticated, service_role;
revoke all on function public.heal_onboarding_calls(int) from public, anon, authenticated;
revoke all on function public.require_verified_phones(boolean) from public, anon, authenticated;
grant execute on function public.heal_onboarding_calls(int) to service_role;
grant execute on function public.require_verified_phones(boolean) to service_role;
