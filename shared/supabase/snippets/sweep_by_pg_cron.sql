-- The sweep, each minute, by the database itself, where there is no Cloud Scheduler. Needs pg_net, and pg_cron
-- (Integrations -> Cron). Run it once; a second run replaces the job.
-- To stop it: select cron.unschedule('call-dispatcher-sweep');
--
-- Weaker than a scheduler of its own: it fails with the database and with pg_net. And it sends the secret itself, which
-- every role of the database may read in pg_net's queue until the request is sent.
-- The timeout is short because pg_net sends nothing else, webhooks included, until the slowest request of a batch ends.
-- A longer sweep is noted as timed_out in net._http_response, and continues. On Cloud Run use Cloud Scheduler: an
-- instance may lose its CPU when no request waits for its answer.

select cron.schedule('call-dispatcher-sweep', '* * * * *', $$
  select net.http_post(
    url := (select rtrim(decrypted_secret, '/') || '/sweep'
            from vault.decrypted_secrets where name = 'call_dispatcher_url'),
    headers := (select jsonb_build_object('Content-Type', 'application/json', 'Authorization',
                                          'Bearer ' || split_part(btrim(decrypted_secret), ' ', 1))
                from vault.decrypted_secrets where name = 'call_dispatcher_secret'),
    timeout_milliseconds := 3000)
$$);
