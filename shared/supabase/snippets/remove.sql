-- Takes away from a Supabase project everything that these migrations made: tables and what is in them, functions, triggers,
-- Vault's secrets, the cron job, the history of the push. All of it or nothing. `auth.users` stays as it is, sign-ups go on, and
-- `supabase db push` sets all of it up anew. Stop the function and its scheduler first.
--
-- It forgets who opted out. Keep them: `select * from public.call_opt_outs`.
--
-- Refused, with nothing changed, while something of yours needs something of ours (a view on the jobs, say).
-- One statement, because `supabase db query` takes no more.

do $$
declare
  v_function record;
begin
  perform set_config('lock_timeout', '5s', true);

  drop view if exists public.outbound_call_overview, public.call_stats, public.call_stats_per_hour;

  -- By name, whatever their arguments are by now; only those that, as ours do, belong to postgres and pin their search_path. Of the
  -- trigger functions the triggers go with them: auth.users is not ours, and its owner alone might drop one there.
  for v_function in
    select p.oid::regprocedure as name, case when p.prorettype = 'trigger'::regtype then ' cascade' else '' end as and_its_triggers
    from pg_catalog.pg_proc p
    where p.proconfig @> array['search_path=""'] and pg_catalog.pg_get_userbyid(p.proowner) = 'postgres'
      and (p.pronamespace = 'public'::regnamespace and p.proname in (
             'accept_call', 'call_job_stats', 'call_stats_by_hour', 'cancel_call_job', 'check_call_setup', 'claim_call_job',
             'claim_open_call', 'doubt_call', 'enqueue_call_job', 'heal_onboarding_calls', 'opt_out', 'pause_calls', 'prune_call_jobs',
             'put_off_call', 'record_call_answer', 'record_call_status', 'refuse_call', 'release_call_job', 'require_verified_phones',
             'resume_calls', 'retry_call_job', 'set_call_number', 'settle_call')
        or p.pronamespace = pg_catalog.to_regnamespace('private') and p.proname in (
             'bind_call', 'call_answer', 'call_rank', 'cap_in_the_way', 'clock', 'complete_call_job', 'e164', 'forget_user',
             'give_back_slot', 'has_opted_out_by_key', 'hmac_sha256', 'is_by_machine', 'is_stopped', 'keep_open_call_job',
             'lock_attempt', 'migration_versions', 'net_facts', 'on_auth_user_created', 'on_auth_user_deleted',
             'on_outbound_call_job_created', 'open_call', 'open_to', 'qualification', 'queue_onboarding_call', 'readable',
             'retry_or_fail', 'summarize_call_job', 'vault_facts', 'why_canceled'))
  loop
    execute format('drop function %s%s', v_function.name, v_function.and_its_triggers);
  end loop;

  drop type if exists private.locked_attempt;
  drop table if exists public.outbound_call_answers, public.outbound_call_attempts, public.outbound_call_jobs, public.call_opt_outs;
  drop table if exists private.missed_signups, private.deleted_calls, private.deleted_users, private.call_settings;

  -- What else lives in `private` is yours, and so is what uses btree_gist.
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
    '20261124000100_call_jobs', '20261124000200_claim', '20261124000300_outcomes', '20261124000400_settle', '20261124000500_signup',
    '20261124000600_operate', '20261124000800_forget', '20261126000100_answers', '20261126000200_seeing', '20261126000300_doctor');
end
$$;
