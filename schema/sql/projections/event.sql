-- Events: up to four for each job (it was accepted, made something, began, ended), as a view over the jobs, so that none is kept
-- twice. `rank` sorts the newest first; `name` is what a keyword is looked for in; `open`: its job goes on.
ALTER TABLE read.job ADD COLUMN event text, ADD COLUMN started timestamptz, ADD COLUMN makes boolean;
CREATE INDEX job_by_event ON read.job (event, created);
CREATE INDEX job_by_subject ON read.job (subject);

CREATE VIEW read.event AS
    SELECT md5(j.id || '/' || s.state)::uuid::text AS id,
           j.event || ' ' || told.level || ' ' || told.description AS name,
           j.event AS type, s.state, told.level, told.description, j.principal, j.id AS job_id,
           CASE WHEN s.step > 1 THEN md5(j.id || '/Scheduled')::uuid::text END AS parent_id,
           thing.resource_type, thing.resource_id, s.created, j.completed IS NULL AS open, false AS archived,
           -(extract(epoch FROM s.created) * 1000000)::bigint * 8 - s.step AS rank,
           j.account_id, j.account, j.domain_id, j.domain_path, j.project_id
    FROM read.job j
    CROSS JOIN LATERAL (VALUES ('Scheduled', 1, j.created), ('Created', 2, CASE WHEN j.makes THEN j.started END),
                               ('Started', 3, j.started), ('Completed', 4, j.completed)) AS s (state, step, created)
    CROSS JOIN LATERAL (SELECT
        nullif(replace(initcap(replace(split_part(j.subject, '-', 1), '_', ' ')), ' ', ''), '') AS resource_type,
        nullif(substr(j.subject, strpos(j.subject, '-') + 1), '') AS resource_id) AS thing
    CROSS JOIN LATERAL (SELECT
        CASE WHEN s.step < 4 OR j.status = 'completed' THEN 'INFO' WHEN j.status = 'cancelled' THEN 'WARN' ELSE 'ERROR' END AS level,
        s.state || ' ' || j.event || coalesce(' of ' || thing.resource_type || ' ' || thing.resource_id, '')
            || CASE WHEN s.step = 4 AND j.status <> 'completed' THEN ', ' || j.status || ': ' || coalesce(j.failure->>'cause', '')
               ELSE '' END AS description) AS told
    WHERE s.created IS NOT NULL AND j.event IS NOT NULL;
GRANT SELECT ON read.event TO storebus_app, storebus_projector;

-- read.conditions(filter): as before, and
--   column: {"from": v, "until": v}   not before, not after (each may be left out)
CREATE OR REPLACE FUNCTION read.conditions(filter jsonb)
RETURNS text LANGUAGE plpgsql STABLE SET search_path = read, pg_temp AS $$
DECLARE
    wanted text := 'true';
    pair record;
BEGIN
    FOR pair IN SELECT key, value, filter->>key AS plain FROM jsonb_each(filter) LOOP
        wanted := wanted || CASE
            WHEN pair.key = 'any' THEN ' AND (' || coalesce(
                (SELECT string_agg('(' || read.conditions(each) || ')', ' OR ') FROM jsonb_array_elements(pair.value) AS each),
                'false') || ')'
            WHEN pair.key = 'all' THEN coalesce(
                (SELECT string_agg(' AND (' || read.conditions(each) || ')', '') FROM jsonb_array_elements(pair.value) AS each), '')
            WHEN pair.plain IS NULL THEN format(' AND t.%I IS NULL', pair.key)
            WHEN pair.value ? 'prefix' THEN format(' AND t.%I ^@ %L', pair.key, pair.value->>'prefix')
            WHEN pair.value ? 'in' THEN format(' AND t.%I::text = ANY (%L::text[])', pair.key,
                ARRAY(SELECT jsonb_array_elements_text(pair.value->'in')))
            WHEN pair.value ? 'has' THEN format(' AND t.%I @> %L::jsonb', pair.key, pair.value->'has')
            WHEN pair.value ?| ARRAY['from', 'until'] THEN
                coalesce(format(' AND t.%I >= ', pair.key) || quote_literal(pair.value->>'from'), '')
                || coalesce(format(' AND t.%I <= ', pair.key) || quote_literal(pair.value->>'until'), '')
            ELSE format(' AND t.%I::text = %L', pair.key, pair.plain)
        END;
    END LOOP;
    RETURN wanted;
END $$;
