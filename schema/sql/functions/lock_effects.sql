-- es.lock_effects(extra): make missing counters and lock claims, counters and timers, each kind in one order for everybody.
CREATE OR REPLACE FUNCTION es.lock_effects(extra jsonb)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names text[];
BEGIN
    SELECT array_agg(DISTINCT c->>0) INTO names
        FROM jsonb_array_elements(extra) AS r, jsonb_array_elements(coalesce(r->'take', '[]') || coalesce(r->'release', '[]')) AS c;
    -- A claim that nobody holds has no row to lock: its name is locked instead, by its hash, so hashes give the order.
    PERFORM pg_advisory_xact_lock(727402, h) FROM (SELECT DISTINCT hashtext(n) AS h FROM unnest(names) AS n ORDER BY 1) AS sorted;
    SELECT array_agg(DISTINCT c->>0) INTO names
        FROM jsonb_array_elements(extra) AS r, jsonb_array_elements(coalesce(r->'counters', '[]')) AS c;
    IF names IS NOT NULL THEN
        INSERT INTO es.counter (name) SELECT n FROM unnest(names) AS n ORDER BY n ON CONFLICT DO NOTHING;
        PERFORM 1 FROM es.counter WHERE name = ANY (names) ORDER BY name FOR UPDATE;
    END IF;
    SELECT array_agg(t) INTO names
        FROM jsonb_array_elements(extra) AS r,
             LATERAL (SELECT jsonb_array_elements_text(r->'clear') AS t
                      UNION SELECT s->>0 FROM jsonb_array_elements(r->'timers') AS s) AS touched;
    PERFORM 1 FROM es.timer WHERE id = ANY (names) ORDER BY id FOR UPDATE;
END $$;
