-- Facts about a database for the doctor (python -m function.doctor); Python judges them. Nothing here writes. A part
-- that cannot be read becomes an "error" in its place, never a failure of the whole.

create function private.vault_facts(p_nonce text) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_url   text;
  v_first text;
  v_key   bytea;
  v_form  text := 'ok';
begin
  select decrypted_secret into v_url from vault.decrypted_secrets where name = 'call_dispatcher_url';
  select split_part(btrim(decrypted_secret), ' ', 1) into v_first
  from vault.decrypted_secrets where name = 'call_dispatcher_secret';
  if coalesce(v_first, '') = '' then
    v_form := 'missing';
  else
    begin
      v_key := decode(substr(v_first, length('whsec_') + 1), 'base64');
    exception when others then
      v_form := 'not base64';
    end;
    if left(v_first, length('whsec_')) <> 'whsec_' then
      v_form := 'no prefix';
    end if;
  end if;
  return jsonb_build_object('url', v_url, 'form', v_form, 'hmac',
                            encode(private.hmac_sha256(v_key, convert_to('doctor:' || p_nonce, 'UTF8')), 'hex'));
exception when others then
  return jsonb_build_object('error', sqlerrm);
end
$$;
comment on function private.vault_facts is
  'Call dispatcher: where webhooks go, and a proof of the secret that signs them: an HMAC of the caller''s nonce under'
  ' the webhooks'' own key. A nonce is hexadecimal, so the proof is no webhook''s signature. -> {"url", "form":'
  ' missing | no prefix | not base64 | ok, "hmac"} or {"error"}';

create function private.net_facts() returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_may   boolean;
  v_facts jsonb;
begin
  select has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute') into v_may
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'net' and p.proname = 'http_post';
  if not found then
    return jsonb_build_object('installed', false);
  elsif not v_may then
    return jsonb_build_object('error', 'no right to call net.http_post');
  end if;
  select jsonb_build_object('installed', true, 'waiting', count(*), 'oldest_waiting', min(id)) into v_facts
  from net.http_request_queue;
  return v_facts || jsonb_build_object('answers', (
    select coalesce(jsonb_agg(jsonb_build_object(
      'status', status_code, 'age_s', extract(epoch from clock_timestamp() - created),
      'error', case when timed_out then 'timed out' else left(error_msg, 100) end)), '[]')
    from (select * from net._http_response where created > clock_timestamp() - interval '1 hour'
          order by created desc limit 50) newest));
exception when others then
  return jsonb_build_object('error', sqlerrm);
end
$$;
comment on function private.net_facts is
  'Call dispatcher: whether pg_net is there, how many requests wait for its worker, and its answers of the last hour'
  ' (50 at most). They do not say whose they are: other webhooks of the project are among them. -> {"installed",'
  ' "waiting", "oldest_waiting", "answers": [{"status", "error", "age_s"}], newest first} or {"error"}';

create function private.open_to(p_table regclass) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(role || ': ' || privilege order by role, privilege), '[]')
  from unnest(array['anon', 'authenticated']) role,
       unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) privilege
  where has_table_privilege(role, p_table, privilege)
     or privilege in ('select', 'insert', 'update', 'references') and has_any_column_privilege(role, p_table, privilege)
$$;
comment on function private.open_to is
  'Call dispatcher: the privileges of the public API''s roles on a table or any column of it. -> ["anon: select", ...]';

create function private.open_objects() returns jsonb
language sql stable set search_path = '' as $$
  with recursive ours as (
    select c.oid from pg_catalog.pg_class c
    where c.relkind in ('r', 'v') and pg_catalog.obj_description(c.oid, 'pg_class') ~ '^Call dispatcher[^:]*: '
  ), shows_ours as (
    select oid from ours
    union
    -- A view reads with its owner's rights, unless it is a security_invoker one.
    select c.oid
    from shows_ours s
    join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = s.oid
                                   and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite r on r.oid = d.objid
    join pg_catalog.pg_class c on c.oid = r.ev_class
    where not coalesce((select option_value::boolean from pg_catalog.pg_options_to_table(c.reloptions)
                        where option_name = 'security_invoker'), false)
  ), open as (
    select s.oid::regclass::text as name, s.oid in (select oid from ours) as ours, private.open_to(s.oid) as roles
    from shows_ours s
    union all
    select 'function ' || p.oid::regprocedure, true, coalesce(jsonb_agg(role || ': execute'), '[]')
    from pg_catalog.pg_proc p
    join unnest(array['anon', 'authenticated']) role on has_function_privilege(role, p.oid, 'execute')
    where p.pronamespace = 'public'::regnamespace
      and pg_catalog.obj_description(p.oid, 'pg_proc') ~ '^Call dispatcher[^:]*: '
    group by p.oid
  )
  select coalesce(jsonb_agg(jsonb_build_object('name', name, 'ours', ours, 'roles', roles) order by name), '[]')
  from open where roles <> '[]'
$$;
comment on function private.open_objects is
  'Call dispatcher: what browsers may use, with the roles: our functions, tables and views, and other views that show'
  ' our rows. -> [{"name", "ours", "roles": ["anon: select", ...]}]';

create function public.check_call_setup(p_nonce text) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_nonce is null or p_nonce !~ '^[0-9a-f]{32}$' then
    raise exception 'p_nonce must be 32 hexadecimal digits';
  end if;
  return jsonb_build_object(
    'now',       clock_timestamp(),
    'postgres',  current_setting('server_version'),
    'read_only', current_setting('default_transaction_read_only')::boolean,
    'vault',     private.vault_facts(p_nonce),
    'net',       private.net_facts(),
    'open',      private.open_objects(),
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
        'paused_until',         case when s.paused_until > private.clock() then s.paused_until end,
        'paused_by',            case when s.paused_until > private.clock() then s.paused_by end,
        'pause_reason',         s.pause_reason,
        'verified_phones_only', s.verified_phones_only)
      from private.call_settings s where s.only_row),
    'oldest_due_s', extract(epoch from private.clock() - least(
      (select min(due_at) from public.outbound_call_jobs where status = 'queued' and due_at <= private.clock()),
      (select min(due_at) from public.outbound_call_jobs
       where status in ('dialing', 'in_doubt', 'calling') and due_at <= private.clock()))),
    'missed_signups', (select count(*) from private.missed_signups));
end
$$;
comment on function public.check_call_setup is
  'Call dispatcher: for the doctor: all facts at once. Reads only. p_nonce: 32 hexadecimal digits, made for this'
  ' question.';

select private.apply_rights();
