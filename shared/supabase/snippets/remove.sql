-- Removes everything that these migrations made from a Supabase project: tables and rows, functions, triggers, Vault's
-- secrets, the cron job, the push history. All of it or nothing. `auth.users` stays as it is, and sign-ups go on.
-- `supabase db push` sets everything up again. Stop the function and its scheduler first.
--
-- It forgets the opt-outs. To keep them: `select * from public.call_opt_outs`.
--
-- It is refused, with nothing changed, while something of yours depends on something of ours (a view on the jobs, say).
-- One statement, because `supabase db query` takes only one. Ours is what bears "Call dispatcher" in its comment.

do $$
declare
  v_mark constant text := '^Call dispatcher[^:]*: ';
  v_ours record;
begin
  perform set_config('lock_timeout', '5s', true);

  -- Triggers go with their functions: only the owner of auth.users could drop a trigger there.
  for v_ours in
    select 1 as step, format('view %s', oid::regclass) as what
    from pg_catalog.pg_class where relkind = 'v' and pg_catalog.obj_description(oid, 'pg_class') ~ v_mark
    union all
    select 2, format('function %s%s', oid::regprocedure, case when prorettype = 'trigger'::regtype then ' cascade' end)
    from pg_catalog.pg_proc where pg_catalog.obj_description(oid, 'pg_proc') ~ v_mark
    union all
    select 3, format('type %s', oid::regtype)
    from pg_catalog.pg_type where pg_catalog.obj_description(oid, 'pg_type') ~ v_mark
    union all
    select 4, 'table ' || string_agg(oid::regclass::text, ', ')
    from pg_catalog.pg_class where relkind = 'r' and pg_catalog.obj_description(oid, 'pg_class') ~ v_mark
    having count(*) > 0
    order by 1
  loop
    execute 'drop ' || v_ours.what;
  end loop;

  -- The rest of `private` is yours, and so is any other use of btree_gist.
  if not exists (select from pg_catalog.pg_class where relnamespace = pg_catalog.to_regnamespace('private'))
     and not exists (select from pg_catalog.pg_proc where pronamespace = pg_catalog.to_regnamespace('private')) then
    drop schema if exists private;
  end if;
  begin
    drop extension if exists btree_gist;
  exception when dependent_objects_still_exist then
    raise notice 'btree_gist stays: something else uses it';
  end;

  if pg_catalog.to_regclass('cron.job') is not null then
    perform cron.unschedule(jobname) from cron.job where jobname = 'call-dispatcher-sweep';
  end if;
  delete from vault.secrets where name in ('call_dispatcher_url', 'call_dispatcher_secret');
  delete from supabase_migrations.schema_migrations
  where version || '_' || name in (
    '20261201000100_tables', '20261201000150_numbers', '20261201000200_signup', '20261201000300_claim',
    '20261201000400_outcomes', '20261201000500_follow_up', '20261201000600_answers', '20261201000650_results',
    '20261201000700_by_hand', '20261201000800_statistics', '20261201000850_explain', '20261201000900_privacy',
    '20261201001000_doctor');
end
$$;
