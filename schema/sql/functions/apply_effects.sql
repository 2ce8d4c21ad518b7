-- es.apply_effects(item): the claims, counters and timers of one request; NULL when applied, else why not (nothing applied).
CREATE OR REPLACE FUNCTION es.apply_effects(item jsonb)
RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part jsonb;
    known record;
    sums jsonb := '{}';
    ceilings jsonb := '{}';
    total bigint;
    most bigint;
BEGIN
    FOR part IN SELECT value FROM jsonb_array_elements(coalesce(item->'take', '[]')) LOOP
        SELECT c.value, c.holder INTO known FROM es.claim c
            WHERE c.name = part->>0 AND c.value <> part->>1
              AND NOT EXISTS (SELECT 1 FROM jsonb_array_elements(coalesce(item->'release', '[]')) r
                              WHERE r->>0 = c.name AND r->>1 = c.holder) LIMIT 1;
        IF NOT FOUND THEN  -- nor may the request itself ask for two values
            SELECT t->>1 AS value, t->>2 AS holder INTO known FROM jsonb_array_elements(item->'take') t
                WHERE t->>0 = part->>0 AND t->>1 <> part->>1 LIMIT 1;
        END IF;
        IF FOUND THEN
            RETURN jsonb_build_object('what', 'claim', 'name', part->>0, 'holder', known.holder, 'value', known.value);
        END IF;
    END LOOP;
    FOR part IN SELECT value FROM jsonb_array_elements(coalesce(item->'counters', '[]')) LOOP
        SELECT c.value, c.ceiling INTO known FROM es.counter c WHERE c.name = part->>0;
        total := coalesce((sums->>(part->>0))::bigint, known.value);
        most := CASE WHEN ceilings ? (part->>0) THEN (ceilings->>(part->>0))::bigint ELSE known.ceiling END;
        IF (part->>3)::boolean THEN most := NULL; END IF;
        most := coalesce((part->>2)::bigint, most);
        IF total + (part->>1)::bigint < 0 OR total + (part->>1)::bigint > most THEN
            RETURN jsonb_build_object('what', 'counter', 'name', part->>0, 'actual', total, 'ceiling', most);
        END IF;
        sums := sums || jsonb_build_object(part->>0, total + (part->>1)::bigint);
        ceilings := ceilings || jsonb_build_object(part->>0, most);
    END LOOP;
    DELETE FROM es.claim c USING jsonb_array_elements(coalesce(item->'release', '[]')) r
        WHERE c.name = r->>0 AND c.holder = r->>1;
    INSERT INTO es.claim (name, value, holder)
        SELECT t->>0, t->>1, t->>2 FROM jsonb_array_elements(coalesce(item->'take', '[]')) t ON CONFLICT DO NOTHING;
    UPDATE es.counter c SET value = s.value::bigint, ceiling = (ceilings->>s.key)::bigint
        FROM jsonb_each_text(sums) s WHERE c.name = s.key;
    DELETE FROM es.timer t USING jsonb_array_elements_text(coalesce(item->'clear', '[]')) c WHERE t.id = c;
    INSERT INTO es.timer (id, due_at, key, type, payload)  -- set twice, the last one counts
        SELECT DISTINCT ON (t->>0)
               t->>0, clock_timestamp() + make_interval(secs => (t->>1)::float8), t->>2, t->>3, decode(t->>4, 'hex')
        FROM jsonb_array_elements(coalesce(item->'timers', '[]')) WITH ORDINALITY AS e (t, o) ORDER BY t->>0, o DESC
        ON CONFLICT (id) DO UPDATE SET due_at = excluded.due_at, key = excluded.key, type = excluded.type,
                                       payload = excluded.payload;
    RETURN NULL;
END $$;
