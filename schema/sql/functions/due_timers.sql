-- es.due_timers: timers whose time has come, each moved on, so that it comes again unless it is cleared.
CREATE OR REPLACE FUNCTION es.due_timers(most int, again float8, all_now boolean)
RETURNS TABLE (id text, key text, type text, payload bytea, due_at timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE es.timer t SET due_at = clock_timestamp() + make_interval(secs => again)
    FROM (SELECT i.id, i.due_at FROM es.timer i WHERE all_now OR i.due_at <= clock_timestamp()
          ORDER BY i.due_at LIMIT most FOR UPDATE SKIP LOCKED) d
    WHERE t.id = d.id RETURNING t.id, t.key, t.type, t.payload, d.due_at;
$$;
