-- The sweep, each minute, by the database itself (pg_net, and pg_cron: Integrations -> Cron), where there is no Cloud Scheduler.
-- Run it once; again, it replaces the job. Stop it: select cron.unschedule('call-dispatcher-sweep');
--
-- Weaker than a scheduler of its own, for it goes down with the database and with pg_net. And /sweep takes the secret itself here,
-- which every role that can connect to the database may read in pg_net's queue for the moment that it waits there.
-- The timeout is short because pg_net sends nothing else until the slowest request of a batch has ended, webhooks included: a
-- longer sweep is noted as timed_out in net._http_response, and goes on all the same. On Cloud Run use Cloud Scheduler: an instance
-- may be left without CPU when nobody waits for its answer any more.

select cron.schedule('call-dispatcher-sweep', '* * * * *', $$
  select net.http_post(
    url := (select rtrim(decrypted_secret, '/') || '/sweep' from vault.decrypted_secrets where name = 'call_dispatcher_url'),
    headers := (select jsonb_build_object('Content-Type', 'application/json', 'Authorization', 'Bearer ' || split_part(btrim(decrypted_secret), ' ', 1))
                from vault.decrypted_secrets where name = 'call_dispatcher_secret'),
    timeout_milliseconds := 3000)
$$);
