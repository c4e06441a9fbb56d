-- Each change of a row that the telephone page shows, told when it is committed. Runs as superuser, after the migrations.

create function sandbox.tell() returns trigger
language plpgsql set search_path = '' as $$
begin
  perform pg_catalog.pg_notify('sandbox', jsonb_build_object(
    'table', tg_table_name, 'gone', tg_op = 'DELETE', 'at', extract(epoch from clock_timestamp()) * 1000,
    'row', case when tg_op = 'DELETE' then to_jsonb(old) else to_jsonb(new) end
           - '{metadata,dedupe_window,dedupe_key,database_id}'::text[])::text);
  return null;
end
$$;

create trigger sandbox_tells after insert or update or delete on public.outbound_call_jobs
  for each row execute function sandbox.tell();
create trigger sandbox_tells after insert or update or delete on public.outbound_call_attempts
  for each row execute function sandbox.tell();
create trigger sandbox_tells after insert or update on public.outbound_call_answers
  for each row execute function sandbox.tell();
create trigger sandbox_tells after insert on public.call_opt_outs
  for each row execute function sandbox.tell();
create trigger sandbox_tells after update on private.call_settings
  for each row when (old.paused_until is distinct from new.paused_until) execute function sandbox.tell();
