-- Erasing the data of deleted users, and jobs older than the retention.

set local lock_timeout = '2s';  -- of auth.users: fail and be pushed again rather than make sign-ups wait

create function private.forget_user(p_user_id uuid) returns void language sql set search_path = '' as $$
  update public.outbound_call_jobs
  set status           = case when status = 'queued' then 'canceled' else status end,
      -- A failed job's call may still turn up.
      cancel_requested = cancel_requested or status in ('dialing', 'in_doubt', 'calling', 'failed'),
      cancel_code      = case when status in ('dialing', 'in_doubt', 'calling', 'failed') and not cancel_requested
                              then 'user_deleted' else cancel_code end,
      due_at           = case when status in ('in_doubt', 'calling') then private.clock()
                              when status = 'dialing' then due_at end,
      finished_at      = case when status = 'queued' then private.clock() else finished_at end,
      reason_code      = case when status = 'queued' then 'user_deleted' else reason_code end,
      reason           = case when status = 'queued' then private.in_words('user_deleted') else reason end,
      phone_number     = 'erased',
      first_name       = null,
      metadata         = '{}',
      qualification    = null
  where user_id = p_user_id;
  -- Under the locks of the jobs: an answer that is being written now is waited for, and then deleted.
  delete from public.outbound_call_answers
  where job_id in (select id from public.outbound_call_jobs where user_id = p_user_id);
  update private.call_results
  set data = data || '{"phone_number": null, "metadata": {}}'
             || case type when 'number.opted_out' then '{}' else '{"answers": {}, "qualification": null}' end::jsonb
  where user_id = p_user_id;
  delete from private.call_history
  where job_id in (select id from public.outbound_call_jobs where user_id = p_user_id) and code <> 'user_deleted'
$$;
comment on function private.forget_user is
  'Call dispatcher: erase a user''s text and answers at once, and cancel or end their calls. Their numbers stay a day'
  ' for the caps and the fence: a deleted account that signs up again must not evade them.';

create function private.on_auth_user_deleted() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
begin
  delete from private.missed_signups where user_id = old.id;
  if not exists (select from public.outbound_call_jobs where user_id = old.id) then
    return null;
  end if;
  insert into private.deleted_users (user_id, deleted_at, forgotten) values (old.id, private.clock(), false)
  on conflict (user_id) do update set deleted_at = excluded.deleted_at, forgotten = false;
  begin
    perform private.forget_user(old.id);
    update private.deleted_users set forgotten = true where user_id = old.id;
  exception when others then
    raise warning 'the calls of deleted user % could not be forgotten yet; the sweep will: %', old.id, sqlerrm;
  end;
  return null;
exception when others then
  raise warning 'the calls of deleted user % could not be forgotten: %', old.id, sqlerrm;
  return null;
end $$;
comment on function private.on_auth_user_deleted is
  'Call dispatcher: after a user is deleted, or marked as deleted. It never fails or delays that; a sweep finishes.';

create trigger on_auth_user_deleted_onboarding after delete on auth.users
  for each row execute function private.on_auth_user_deleted();

create trigger on_auth_user_marked_deleted_onboarding after update of deleted_at on auth.users
  for each row when (old.deleted_at is null and new.deleted_at is not null)
  execute function private.on_auth_user_deleted();

create function public.prune_call_jobs(p_retention_days int, p_limit int default 500, p_results jsonb default null)
returns jsonb language plpgsql security definer set search_path = '' set lock_timeout = '500ms' as $$
declare
  v_now       constant timestamptz := private.clock();
  v_user      record;
  v_forgotten int := 0;
  v_erased    int := 0;
  v_deleted   int;
begin
  for v_user in
    select user_id, forgotten from private.deleted_users d
    where not forgotten or deleted_at <= v_now - interval '24 hours' order by forgotten, deleted_at limit p_limit
    for update skip locked
  loop
    begin
      if not v_user.forgotten then
        perform private.forget_user(v_user.user_id);
        update private.deleted_users set forgotten = true where user_id = v_user.user_id;
        v_forgotten := v_forgotten + 1;
      elsif not exists (select from public.outbound_call_jobs j
                        left join public.outbound_call_attempts a on a.job_id = j.id
                        where j.user_id = v_user.user_id
                          and (j.finished_at is null or a.closed_at is null and a.id is not null
                               or a.started_at > v_now - interval '24 hours')) then
        update public.outbound_call_jobs set phone_e164 = null where user_id = v_user.user_id;  -- job, then attempt
        update public.outbound_call_attempts set phone_e164 = null
        where job_id in (select id from public.outbound_call_jobs where user_id = v_user.user_id);
        delete from private.deleted_users where user_id = v_user.user_id;
        v_erased := v_erased + 1;
      end if;
    exception when lock_not_available then
      raise warning 'the calls of deleted user % are in use; the next sweep will forget them', v_user.user_id;
    end;
  end loop;

  delete from private.call_counts
  where began in (select began from private.call_counts where began < v_now - interval '2 days' for update skip locked);
  with old as (
    delete from public.outbound_call_jobs
    where id in (select id from public.outbound_call_jobs
                 where finished_at < v_now - make_interval(days => p_retention_days)
                 order by finished_at limit p_limit for update skip locked)
    returning 1)
  select count(*) into v_deleted from old;

  if p_results = '{}' then  -- nobody sends the due events
    update private.call_results set state = 'gave_up', ended_at = v_now, note = 'RESULT_URL is not set'
    where state = 'due' and give_up_at <= v_now;
  end if;
  delete from private.call_results
  where id in (select id from private.call_results
               where state in ('told', 'gone', 'gave_up')
                 and created_at < v_now - make_interval(days => p_retention_days) limit p_limit for update skip locked);
  update private.call_settings set results = p_results where only_row and results <> p_results;
  return jsonb_build_object('forgotten', v_forgotten, 'erased', v_erased, 'deleted', v_deleted);
end $$;
comment on function public.prune_call_jobs is
  'Call dispatcher: for the sweep, a little each time: forget the users that could not be forgotten at once, erase the'
  ' numbers of users deleted a day ago, delete jobs that finished more than p_retention_days ago, with their attempts,'
  ' and events of that age that are not due. Opt-outs stay. p_results: call_settings.results from now on, unless null.'
  ' -> {"forgotten": users, "erased": users, "deleted": jobs}';

select private.apply_rights();
