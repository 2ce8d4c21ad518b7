-- es.append: the one write transaction of the log. A batch of requests, each all-or-nothing; one that loses a race does
-- not fail the others.
--
-- s_*  expected streams: request, name, version, whether the request writes it; each name once in a batch
-- e_*  rows in log order: request, and the columns; versions follow from the expected ones
-- extra  [{req, take: [[name, value, holder]], release: [[name, holder]], counters: [[name, delta, ceiling, lift]],
--         timers: [[id, after_s, key, type, payload hex]], clear: [id]}] for the requests that have any of it
--
-- Order of locks: streams sorted, claims, counters, and last the log's advisory lock, held to the commit. Only then, in a
-- new statement (READ COMMITTED: a new snapshot), the head is read and dense positions are given.
CREATE OR REPLACE FUNCTION es.append(
    s_req int[], s_name text[], s_version int[], s_write boolean[],
    e_req int[], e_stream text[], e_version int[], e_kind text[], e_type text[], e_type_version int[], e_id uuid[],
    e_key text[], e_address text[], e_tenant text[], e_correlation uuid[], e_causation uuid[], e_payload bytea[],
    e_meta bytea[], e_effects bytea[], extra jsonb,
    OUT base bigint, OUT failed jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bad int[] := '{}';
    link bytea;
    links bytea[] := '{}';
    at timestamptz;
    pos bigint;
    item jsonb;
    refusal jsonb;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'es.append runs in READ COMMITTED only';
    END IF;
    failed := '[]';
    INSERT INTO es.stream (name, version)
        SELECT n, -1 FROM unnest(s_name, s_version, s_write) AS s (n, v, w) WHERE v = -1 AND w ORDER BY n
        ON CONFLICT DO NOTHING;
    PERFORM 1 FROM es.stream WHERE name = ANY (s_name) ORDER BY name FOR UPDATE;
    SELECT coalesce(array_agg(DISTINCT r), '{}'),
           coalesce(jsonb_agg(jsonb_build_object('req', r, 'what', 'stream', 'name', n, 'actual', a)), '[]')
        INTO bad, failed
        FROM (SELECT s.r, s.n, coalesce(t.version, -1) AS a
              FROM unnest(s_req, s_name, s_version) AS s (r, n, v) LEFT JOIN es.stream t ON t.name = s.n
              WHERE coalesce(t.version, -1) <> s.v) AS wrong;
    IF extra IS NOT NULL THEN
        PERFORM es.lock_effects(extra);
        FOR item IN SELECT value FROM jsonb_array_elements(extra) LOOP
            CONTINUE WHEN (item->>'req')::int = ANY (bad);
            refusal := es.apply_effects(item);
            IF refusal IS NOT NULL THEN
                bad := bad || (item->>'req')::int;
                failed := failed || jsonb_build_array(refusal || jsonb_build_object('req', item->'req'));
            END IF;
        END LOOP;
    END IF;
    PERFORM pg_advisory_xact_lock(727401);
    SELECT e.position, e.hash, greatest(e.recorded_at, clock_timestamp()) INTO pos, link, at
        FROM es.event e ORDER BY e.position DESC LIMIT 1;
    base := coalesce(pos, 0);
    pos := base;
    link := coalesce(link, ''::bytea);
    at := coalesce(at, clock_timestamp());
    FOR i IN 1 .. coalesce(array_length(e_req, 1), 0) LOOP
        IF e_req[i] = ANY (bad) THEN
            links := links || NULL::bytea;
        ELSE
            pos := pos + 1;
            link := es.link(link, pos, e_stream[i], e_version[i], e_kind[i], e_type[i], e_type_version[i], e_id[i],
                            e_key[i], e_address[i], e_tenant[i], e_correlation[i], e_causation[i], at, e_payload[i],
                            e_meta[i], e_effects[i]);
            links := links || link;
        END IF;
    END LOOP;
    INSERT INTO es.event
        SELECT base + row_number() OVER (ORDER BY o), s, v, k, t, tv, i, ky, a, te, co, ca, at, p, m, ef, h
        FROM unnest(e_stream, e_version, e_kind, e_type, e_type_version, e_id, e_key, e_address, e_tenant,
                    e_correlation, e_causation, e_payload, e_meta, e_effects, links)
             WITH ORDINALITY AS e (s, v, k, t, tv, i, ky, a, te, co, ca, p, m, ef, h, o)
        WHERE h IS NOT NULL;
    UPDATE es.stream SET version = w.v
        FROM (SELECT s, max(v) AS v FROM unnest(e_stream, e_version, links) AS e (s, v, h) WHERE h IS NOT NULL GROUP BY s) w
        WHERE name = w.s;
END $$;
