-- Facts about a database for the doctor (python -m function.doctor); Python judges them. Nothing here writes. A part
-- that cannot be read becomes an "error" in its place, never a failure of the whole.

create function private.vault_facts(p_nonce text) returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'url', (select decrypted_secret from vault.decrypted_secrets where name = 'call_dispatcher_url'),
    'hmac', (
      -- The key is read as in private.on_outbound_call_job_created.
      select encode(private.hmac_sha256(
        decode(nullif(substr(split_part(btrim(decrypted_secret), ' ', 1), length('whsec_') + 1), ''), 'base64'),
        convert_to('doctor:' || p_nonce, 'UTF8')), 'hex')
      from vault.decrypted_secrets where name = 'call_dispatcher_secret'));
exception when others then
  return jsonb_build_object('error', sqlerrm);
end $$;
comment on function private.vault_facts is
  'Call dispatcher: where webhooks go, and a proof of the secret that signs them: an HMAC of the caller''s nonce under'
  ' their key. A nonce is hexadecimal, so the proof is no webhook''s signature. -> {"url", "hmac"} or {"error"}';

create function private.net_facts() returns jsonb language plpgsql stable set search_path = '' as $$
begin
  perform private.raise_if(not has_function_privilege('net.http_post(text, jsonb, jsonb, jsonb, integer)', 'execute'),
                           'no right to call net.http_post');
  return jsonb_build_object(
    'waiting', (select count(*) from net.http_request_queue),
    'oldest_waiting', (select min(id) from net.http_request_queue),
    'answers', (
      select coalesce(jsonb_agg(jsonb_build_object(
        'status', status_code, 'age_s', extract(epoch from clock_timestamp() - created),
        'error', case when timed_out then 'timed out' else left(error_msg, 100) end)), '[]')
      from (select * from net._http_response where created > clock_timestamp() - interval '1 hour'
            order by created desc limit 50) newest));
exception when others then
  return jsonb_build_object('error', sqlerrm);
end $$;
comment on function private.net_facts is
  'Call dispatcher: how many requests wait for pg_net''s worker, and its newest 50 answers of the last hour, also to'
  ' other webhooks. -> {"waiting", "oldest_waiting", "answers": [{"status", "error", "age_s"}]} or {"error"}';

create function private.open_objects() returns jsonb language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(distinct name), '[]')
  from unnest(array['anon', 'authenticated']) role
  cross join lateral (
    select c.oid::regclass::text as name from pg_catalog.pg_class c
    where c.relkind in ('r', 'v') and pg_catalog.obj_description(c.oid, 'pg_class') ~ '^Call dispatcher[^:]*: '
      and (has_table_privilege(role, c.oid, 'delete, truncate, trigger')
           or has_any_column_privilege(role, c.oid, 'select, insert, update, references'))
    union all select 'function ' || p.oid::regprocedure from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace and has_function_privilege(role, p.oid, 'execute')
      and pg_catalog.obj_description(p.oid, 'pg_proc') ~ '^Call dispatcher[^:]*: ') ours
$$;
comment on function private.open_objects is
  'Call dispatcher: our functions, tables and views that browsers may use, wholly or one column of them, as GRANT names'
  ' them. Supabase''s Security Advisor finds other views over our tables. -> ["public.call_stats", "function ..."]';

create function public.check_call_setup(p_nonce text) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  perform private.raise_if(p_nonce is null or p_nonce !~ '^[0-9a-f]{32}$', 'p_nonce must be 32 hexadecimal digits');
  return jsonb_build_object(
    'now', clock_timestamp(), 'postgres', current_setting('server_version'),
    'read_only', current_setting('default_transaction_read_only')::boolean,
    'vault', private.vault_facts(p_nonce), 'net', private.net_facts(), 'open', private.open_objects(),
    'functions', (
      select coalesce(jsonb_agg(distinct p.proname), '[]') from pg_catalog.pg_proc p
      where p.pronamespace = 'public'::regnamespace and has_function_privilege('service_role', p.oid, 'execute')
        and pg_catalog.obj_description(p.oid, 'pg_proc') ~ '^Call dispatcher[^:]*: '),
    'guards', (
      select coalesce(jsonb_agg(c.relname), '[]')
      from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
      where i.indrelid in (pg_catalog.to_regclass('public.outbound_call_jobs'),
                           pg_catalog.to_regclass('public.outbound_call_attempts'))
        and i.indisvalid and (i.indisunique or i.indisexclusion)),
    'calls', (
      select jsonb_build_object(
        'paused_until', case when s.paused_until > private.clock() then s.paused_until end,
        'paused_by', case when s.paused_until > private.clock() then s.paused_by end,
        'pause_reason', s.pause_reason, 'verified_phones_only', s.verified_phones_only)
      from private.call_settings s where s.only_row),
    'oldest_due_s', extract(epoch from private.clock() - least(
      (select min(due_at) from public.outbound_call_jobs where status = 'queued' and due_at <= private.clock()),
      (select min(due_at) from public.outbound_call_jobs
       where status in ('dialing', 'in_doubt', 'calling') and due_at <= private.clock()))),
    'missed_signups', (select count(*) from private.missed_signups));
end $$;
comment on function public.check_call_setup is
  'Call dispatcher: facts for the doctor. p_nonce: 32 hexadecimal digits, new each time.';

select private.apply_rights();
