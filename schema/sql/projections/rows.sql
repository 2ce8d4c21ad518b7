-- read.rows(table, where, search, sorted, lim, off): one page of a read table as JSON, with the total that matches.
-- `filter` holds column: value pairs that must be equal; `search` is a substring of the name (empty: any).
CREATE OR REPLACE FUNCTION read.rows(source text, filter jsonb, search text, sorted text, lim int, off int)
RETURNS TABLE (total bigint, item jsonb) LANGUAGE plpgsql STABLE SET search_path = read, pg_temp AS $$
DECLARE
    target regclass := format('read.%I', source)::regclass;
BEGIN
    RETURN QUERY EXECUTE format(
        'WITH found AS (
             SELECT t.%2$I AS sort_key, to_jsonb(t) AS item FROM %1$s t
             WHERE to_jsonb(t) @> $1 AND ($2 = '''' OR strpos(lower(to_jsonb(t)->>''name''), lower($2)) > 0))
         SELECT (SELECT count(*) FROM found), item FROM found ORDER BY sort_key, item->>''id'' LIMIT $3 OFFSET $4',
        target, sorted) USING filter, search, lim, off;
END $$;
