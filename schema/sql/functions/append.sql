-- es.append: the one write transaction of the log. A batch of requests, each all-or-nothing; one that loses a race does
-- not fail the others.
--
-- s_*    expected streams: request (0, 1, ...), name, version; each name once in a batch, written or not
-- e_*    rows in log order, requests together: e_s is the row's stream as an index into s_*; versions follow from it
-- extra  [{req, take: [[name, value, holder]], release: [[name, holder]], counters: [[name, delta, ceiling, lift]],
--         timers: [[id, after_s, key, type, payload hex]], clear: [id]}] for the requests that have any of it
-- base   the head before this append: the rows of the requests that did not fail follow it, in their order
-- failed [{req, what: stream | claim | counter, name, actual, ...}]
--
-- Order of locks: streams sorted, claims, counters, timers, and last the log's advisory lock, held to the commit. Only then,
-- in a new statement (READ COMMITTED: a new snapshot), the head is read and dense positions are given.
CREATE OR REPLACE FUNCTION es.append(
    s_req int[], s_name text[], s_version int[],
    e_s int[], e_kind text[], e_type text[], e_type_version int[], e_id uuid[], e_key text[], e_address text[],
    e_tenant text[], e_correlation uuid[], e_causation uuid[], e_payload bytea[], e_meta bytea[], e_effects bytea[],
    extra jsonb, OUT base bigint, OUT failed jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    bad int[];
    e_version int[];
    link bytea;
    links bytea[] := '{}';
    at timestamptz;
    micros bigint;
    pos bigint;
    said bytea;
    item jsonb;
    refusal jsonb;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'es.append runs in READ COMMITTED only';
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);  -- acknowledged means on disk, whatever the server's default
    END IF;
    IF (SELECT count(DISTINCT n) FROM unnest(s_name) AS n) <> cardinality(s_name) THEN
        RAISE EXCEPTION 'a stream is expected twice in one batch';
    END IF;
    -- A stream that must not exist yet gets a row also when it is only read: without one nothing could be locked, and
    -- another append could create it before this one commits.
    INSERT INTO es.stream (name, version)
        SELECT n, -1 FROM unnest(s_name, s_version) AS s (n, v) WHERE v = -1 ORDER BY n ON CONFLICT DO NOTHING;
    -- One lookup for each stream whatever the planner knows of the table: the sorted names drive it, so locks are taken in
    -- their order, and a row that was waited for is read as it is after the wait.
    SELECT coalesce(array_agg(DISTINCT r), '{}'),
           coalesce(jsonb_agg(jsonb_build_object('req', r, 'what', 'stream', 'name', n, 'actual', a)), '[]')
        INTO bad, failed
        FROM (SELECT s.r, s.n, coalesce(t.version, -1) AS a
              FROM (SELECT r, n, v FROM unnest(s_req, s_name, s_version) AS u (r, n, v) ORDER BY n) AS s
                   LEFT JOIN LATERAL (SELECT version FROM es.stream WHERE name = s.n FOR UPDATE) AS t ON true
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
    SELECT array_agg(v ORDER BY o) INTO e_version
        FROM (SELECT o, s_version[k] + row_number() OVER (PARTITION BY k ORDER BY o) AS v
              FROM unnest(e_s) WITH ORDINALITY AS e (k, o)) AS numbered;
    PERFORM pg_advisory_xact_lock(727401);
    SELECT e.position, e.hash, greatest(e.recorded_at, clock_timestamp()) INTO pos, link, at
        FROM es.event e ORDER BY e.position DESC LIMIT 1;
    base := coalesce(pos, 0);
    pos := base;
    link := coalesce(link, '');
    at := coalesce(at, clock_timestamp());
    micros := (extract(epoch FROM at) * 1000000)::bigint;
    FOR said IN
        SELECT es.body(s_name[k], v, kd, t, tv, i, ky, a, te, co, ca, p, m, ef)
        FROM unnest(e_s, e_version, e_kind, e_type, e_type_version, e_id, e_key, e_address, e_tenant, e_correlation,
                    e_causation, e_payload, e_meta, e_effects)
             WITH ORDINALITY AS e (k, v, kd, t, tv, i, ky, a, te, co, ca, p, m, ef, o)
        WHERE s_req[k] <> ALL (bad) ORDER BY o
    LOOP
        pos := pos + 1;
        link := es.link(link, pos, micros, said);
        links := links || link;
    END LOOP;
    INSERT INTO es.event
        SELECT base + n, s_name[k], v, kd, t, tv, i, ky, a, te, co, ca, at, p, m, ef, links[n]
        FROM (SELECT *, row_number() OVER (ORDER BY o) AS n
              FROM unnest(e_s, e_version, e_kind, e_type, e_type_version, e_id, e_key, e_address, e_tenant, e_correlation,
                          e_causation, e_payload, e_meta, e_effects)
                   WITH ORDINALITY AS e (k, v, kd, t, tv, i, ky, a, te, co, ca, p, m, ef, o)
              WHERE s_req[k] <> ALL (bad)) AS good;
    UPDATE es.stream SET version = w.v
        FROM (SELECT s_name[k] AS name, max(v) AS v FROM unnest(e_s, e_version) AS e (k, v)
              WHERE s_req[k] <> ALL (bad) GROUP BY k) AS w
        WHERE stream.name = w.name;
END $$;
