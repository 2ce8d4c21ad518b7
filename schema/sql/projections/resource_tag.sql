-- Tags: a column of each thing that may have some, and the table of all of them as a view over what is not gone.
DO $$
DECLARE
    source text;
BEGIN
    FOREACH source IN ARRAY ARRAY['volume', 'snapshot', 'template'] LOOP
        EXECUTE format(
            'ALTER TABLE read.%1$I ADD COLUMN tags jsonb;
             CREATE INDEX %2$I ON read.%1$I USING gin (tags jsonb_path_ops);
             CREATE INDEX %3$I ON read.%1$I (created) WHERE tags IS NOT NULL', source, source || '_by_tags', source || '_tagged');
    END LOOP;
END $$;

CREATE VIEW read.resource_tag AS
    SELECT t.id || '/' || each.key AS id, each.key AS name, each.value AS value, 'Volume' AS resource_type, t.id AS resource_id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, t.created
    FROM read.volume t, jsonb_each_text(t.tags) each
    WHERE t.tags IS NOT NULL AND t.state NOT IN ('Failed', 'Expunged')
    UNION ALL
    SELECT t.id || '/' || each.key, each.key, each.value, 'Snapshot', t.id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, t.created
    FROM read.snapshot t, jsonb_each_text(t.tags) each
    WHERE t.tags IS NOT NULL AND t.state NOT IN ('Error', 'Destroyed')
    UNION ALL
    SELECT t.id || '/' || each.key, each.key, each.value, CASE WHEN lower(t.format) = 'iso' THEN 'ISO' ELSE 'Template' END, t.id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, t.created
    FROM read.template t, jsonb_each_text(t.tags) each
    WHERE t.tags IS NOT NULL AND t.state NOT IN ('Failed', 'Deleted');
GRANT SELECT ON read.resource_tag TO storebus_app, storebus_projector;

-- read.conditions(filter): as before, and
--   column: {"has": {k: v}}  a JSON object that holds each of these pairs (tags)
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
            ELSE format(' AND t.%I::text = %L', pair.key, pair.plain)
        END;
    END LOOP;
    RETURN wanted;
END $$;
