-- How many things there are, kept: a list without filters says its count without counting. One row for each account, domain and
-- project that has some, and kind of template; what is removed does not count. Triggers keep it in the transaction that changes the table.
CREATE TABLE read.kept_count (
    source text NOT NULL, kind text, account_id text, domain_id text, domain_path text, project_id text, live bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (source, kind, account_id, domain_id, domain_path, project_id));
GRANT SELECT ON read.kept_count TO storebus_app, storebus_projector;

CREATE OR REPLACE FUNCTION read.keep_count()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = read, pg_temp AS $$
DECLARE
    columns text := CASE TG_TABLE_NAME WHEN 'template' THEN 'kind' ELSE 'NULL::text AS kind' END || ', account_id, domain_id, domain_path, project_id';
    added text := format('SELECT %s, 1 AS one FROM added WHERE removed IS NULL', columns);
    gone text := format('SELECT %s, -1 AS one FROM gone WHERE removed IS NULL', columns);
BEGIN
    EXECUTE format(
        'INSERT INTO read.kept_count AS k (source, kind, account_id, domain_id, domain_path, project_id, live)
         SELECT %L, c.kind, c.account_id, c.domain_id, c.domain_path, c.project_id, sum(c.one) FROM (%s) c
         GROUP BY 2, 3, 4, 5, 6 HAVING sum(c.one) <> 0
         ON CONFLICT (source, kind, account_id, domain_id, domain_path, project_id) DO UPDATE SET live = k.live + excluded.live',
        TG_TABLE_NAME,
        CASE TG_OP WHEN 'INSERT' THEN added WHEN 'DELETE' THEN gone ELSE added || ' UNION ALL ' || gone END);
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION read.keep_count() FROM PUBLIC;

DO $$
DECLARE
    source text;
BEGIN
    FOREACH source IN ARRAY ARRAY['volume', 'snapshot', 'template'] LOOP
        EXECUTE format(
            'INSERT INTO read.kept_count (source, kind, account_id, domain_id, domain_path, project_id, live)
             SELECT %2$L, %5$s, account_id, domain_id, domain_path, project_id, count(*) FROM read.%1$I WHERE removed IS NULL
             GROUP BY 2, 3, 4, 5, 6;
             CREATE TRIGGER kept_added AFTER INSERT ON read.%1$I REFERENCING NEW TABLE AS added
                 FOR EACH STATEMENT EXECUTE FUNCTION read.keep_count();
             CREATE TRIGGER kept_changed AFTER UPDATE ON read.%1$I REFERENCING NEW TABLE AS added OLD TABLE AS gone
                 FOR EACH STATEMENT EXECUTE FUNCTION read.keep_count();
             CREATE TRIGGER kept_gone AFTER DELETE ON read.%1$I REFERENCING OLD TABLE AS gone
                 FOR EACH STATEMENT EXECUTE FUNCTION read.keep_count();
             CREATE INDEX %3$I ON read.%1$I (created, id) WHERE removed IS NULL;
             CREATE INDEX %4$I ON read.%1$I (account_id, created, id) WHERE removed IS NULL',
            source, source, source || '_live', source || '_live_of_account', CASE source WHEN 'template' THEN 'kind' ELSE 'NULL::text' END);
    END LOOP;
END $$;
CREATE INDEX snapshot_store_ref_by_snapshot ON read.snapshot_store_ref (snapshot_id);
DROP INDEX read.volume_by_account, read.snapshot_by_account, read.template_by_account, read.snapshot_by_created, read.template_by_created;

-- The rows of the list of snapshots, whole, with what they show of their volumes: one question for a page.
CREATE OR REPLACE VIEW read.snapshot_in_zone AS
    SELECT r.id, r.snapshot_id, r.zone_id, s.name, s.volume_id, s.state, s.snapshot_type, s.location_type, s.tags, s.account_id,
           s.account, s.domain_id, s.domain_path, s.project_id, s.created, s.removed, s.size, s.physical_size, s.job_id, s.error,
           s.policy_id, s.chain_size, v.name AS volume_name, v.state AS volume_state, v.removed AS volume_removed
    FROM read.snapshot s JOIN read.snapshot_zone_ref r ON r.snapshot_id = s.id LEFT JOIN read.volume v ON v.id = s.volume_id;

-- read.clear(): as before; the kept counts follow by their triggers.
CREATE OR REPLACE FUNCTION read.clear()
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = read, pg_temp AS $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'read' AND tablename <> 'kept_count' LOOP
        EXECUTE format('DELETE FROM read.%I', name);
    END LOOP;
END $$;

-- read.only_owners(filter): whether a filter asks only whose the things are, and that they are not removed.
CREATE OR REPLACE FUNCTION read.only_owners(filter jsonb)
RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = read, pg_temp AS $$
    SELECT filter = 'null' OR coalesce(bool_and(CASE
        WHEN p.key IN ('any', 'all') THEN (SELECT coalesce(bool_and(read.only_owners(each)), true) FROM jsonb_array_elements(p.value) AS each)
        WHEN p.key = 'removed' THEN p.value = 'null'
        ELSE p.key IN ('kind', 'account_id', 'domain_id', 'domain_path', 'project_id') END), true)
    FROM jsonb_each(filter) AS p
$$;

-- read.only_live(filter): whether what is removed is left out.
CREATE OR REPLACE FUNCTION read.only_live(filter jsonb)
RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = read, pg_temp AS $$
    SELECT coalesce(filter->'removed' = 'null', false) OR EXISTS (
        SELECT FROM jsonb_array_elements(filter->'all') AS each WHERE read.only_live(each))
$$;

-- read.without_removed(filter): the filter for the kept counts, which know of nothing removed.
CREATE OR REPLACE FUNCTION read.without_removed(filter jsonb)
RETURNS jsonb LANGUAGE sql IMMUTABLE SET search_path = read, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(p.key, CASE
        WHEN p.key IN ('any', 'all') THEN (SELECT coalesce(jsonb_agg(read.without_removed(each)), '[]') FROM jsonb_array_elements(p.value) AS each)
        ELSE p.value END), '{}')
    FROM jsonb_each(filter) AS p WHERE p.key <> 'removed'
$$;

-- Names are searched by trigrams where the server has them; without, by reading.
DO $$
DECLARE
    source text;
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;
    FOREACH source IN ARRAY ARRAY['volume', 'snapshot'] LOOP
        EXECUTE format('CREATE INDEX %2$I ON read.%1$I USING gin (lower(name) public.gin_trgm_ops)', source, source || '_by_name');
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'no trigram index of names: %', SQLERRM;
END $$;

-- read.total(...): how many rows match, of which `shown` are shown from `off` on. Exact where the page is the last; kept where the filter
-- asks only for owners; else exact up to 10,000, and beyond as the planner guesses. Never less than one more than what was shown
-- when the page is full: who pages on until he has as many comes to the end. A view with a row for each zone counts things.
CREATE OR REPLACE FUNCTION read.total(source text, filter jsonb, wanted text, search text, lim int, off int, shown int)
RETURNS bigint LANGUAGE plpgsql VOLATILE SET search_path = read, pg_temp AS $$
DECLARE
    of_things text := CASE source WHEN 'template_view' THEN 'template' WHEN 'snapshot_in_zone' THEN 'snapshot' ELSE source END;
    total bigint;
    guess json;
BEGIN
    IF shown < lim OR jsonb_typeof(filter->'id') = 'string' THEN
        RETURN off + shown;
    END IF;
    IF search = '' AND of_things IN ('volume', 'snapshot', 'template') AND read.only_live(filter) AND read.only_owners(filter) THEN
        EXECUTE format('SELECT coalesce(sum(t.live), 0) FROM read.kept_count t WHERE t.source = %L AND %s', of_things,
                       read.conditions(read.without_removed(filter))) INTO total;
        RETURN greatest(total, off + shown + (of_things <> source)::int);
    END IF;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM read.%I t WHERE %s LIMIT 10001) AS few', source, wanted) INTO total;
    IF total <= 10000 THEN
        RETURN greatest(total, off + shown);
    END IF;
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM read.%I t WHERE %s', source, wanted) INTO guess;
    RETURN greatest(total, (guess->0->'Plan'->>'Plan Rows')::bigint, off + shown + 1);
END $$;

-- read.rows: as before; its total comes from read.total.
CREATE OR REPLACE FUNCTION read.rows(source text, filter jsonb, search text, sorted text, lim int, off int)
RETURNS TABLE (total bigint, item jsonb) LANGUAGE plpgsql VOLATILE SET search_path = read, pg_temp AS $$
DECLARE
    target regclass := format('read.%I', source)::regclass;
    wanted text := read.conditions(filter);
    items jsonb[];
    matching bigint;
BEGIN
    IF search <> '' THEN
        wanted := wanted || format(' AND lower(t.name) LIKE %L',
            '%' || replace(replace(replace(lower(search), '\', '\\'), '%', '\%'), '_', '\_') || '%');
    END IF;
    EXECUTE format('SELECT array(SELECT to_jsonb(t) FROM %1$s t WHERE %2$s ORDER BY t.%3$I NULLS LAST, t.id LIMIT $1 OFFSET $2)',
                   target, wanted, sorted) INTO items USING lim, off;
    IF cardinality(items) > 0 THEN
        matching := read.total(source, filter, wanted, search, lim, off, cardinality(items));
        RETURN QUERY SELECT matching, each FROM unnest(items) AS each;
    END IF;
END $$;
REVOKE EXECUTE ON FUNCTION read.total(text, jsonb, text, text, int, int, int), read.only_owners(jsonb), read.only_live(jsonb), read.without_removed(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read.total(text, jsonb, text, text, int, int, int), read.only_owners(jsonb), read.only_live(jsonb), read.without_removed(jsonb) TO storebus_app;
