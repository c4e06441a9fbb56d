set local lock_timeout = '2s';  -- rather fail, and be pushed again, than make sign-ups and callbacks wait

alter table public.outbound_call_jobs add column note text;

create function public.note_call_job(p_job_id bigint, p_note text) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  update public.outbound_call_jobs set note = p_note where id = p_job_id;
  return found;
end
$$;
comment on function public.note_call_job is 'Call dispatcher: a later release''s function. -> true if the job exists';

select private.apply_rights();
