-- es.held_failed: one more attempt failed.
CREATE OR REPLACE FUNCTION es.held_failed(of bigint, why text)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE es.held SET attempts = attempts + 1, reason = why, last_failed = now() WHERE id = of;
$$;
