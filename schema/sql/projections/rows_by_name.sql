-- read.rows: as before; part of a name is looked for in a form that a trigram index serves.
CREATE OR REPLACE FUNCTION read.rows(source text, filter jsonb, search text, sorted text, lim int, off int)
RETURNS TABLE (total bigint, item jsonb) LANGUAGE plpgsql STABLE SET search_path = read, pg_temp AS $$
DECLARE
    target regclass := format('read.%I', source)::regclass;
    wanted text := read.conditions(filter);
BEGIN
    IF search <> '' THEN
        wanted := wanted || format(' AND lower(t.name) LIKE %L',
            '%' || replace(replace(replace(lower(search), '\', '\\'), '%', '\%'), '_', '\_') || '%');
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT (SELECT count(*) FROM %1$s t WHERE %2$s), to_jsonb(t) FROM %1$s t WHERE %2$s
         ORDER BY t.%3$I NULLS LAST, t.id LIMIT $1 OFFSET $2', target, wanted, sorted) USING lim, off;
END $$;
