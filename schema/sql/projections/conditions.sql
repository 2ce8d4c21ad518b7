-- read.conditions(filter): the filter of a list as the text of a WHERE clause over the alias t. Each of its pairs must hold:
--   column: value            equal (text of the value; the ids' indexes serve them); null: is null
--   column: {"prefix": p}    begins with p (the paths of domains)
--   column: {"in": [v, ...]} one of them; none: nothing matches
--   "any": [filter, ...]     at least one of these filters holds; none: nothing matches
--   "all": [filter, ...]     each of these filters holds
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
            ELSE format(' AND t.%I::text = %L', pair.key, pair.plain)
        END;
    END LOOP;
    RETURN wanted;
END $$;

-- read.rows: as before, with these conditions.
CREATE OR REPLACE FUNCTION read.rows(source text, filter jsonb, search text, sorted text, lim int, off int)
RETURNS TABLE (total bigint, item jsonb) LANGUAGE plpgsql STABLE SET search_path = read, pg_temp AS $$
DECLARE
    target regclass := format('read.%I', source)::regclass;
    wanted text := read.conditions(filter);
BEGIN
    IF search <> '' THEN
        wanted := wanted || format(' AND strpos(lower(t.name), lower(%L)) > 0', search);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT (SELECT count(*) FROM %1$s t WHERE %2$s), to_jsonb(t) FROM %1$s t WHERE %2$s
         ORDER BY t.%3$I NULLS LAST, t.id LIMIT $1 OFFSET $2', target, wanted, sorted) USING lim, off;
END $$;
REVOKE EXECUTE ON FUNCTION read.conditions(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read.conditions(jsonb) TO storebus_app;
