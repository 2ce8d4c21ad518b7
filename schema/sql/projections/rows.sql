-- read.rows(source, filter, search, sorted, lim, off): one page of a read table as JSON, with the total that matches.
-- `filter` holds column: value pairs that must be equal (text of the value; the ids' indexes serve them);
-- `search` is a substring of the name (empty: any); null sorts last.
CREATE OR REPLACE FUNCTION read.rows(source text, filter jsonb, search text, sorted text, lim int, off int)
RETURNS TABLE (total bigint, item jsonb) LANGUAGE plpgsql STABLE SET search_path = read, pg_temp AS $$
DECLARE
    target regclass := format('read.%I', source)::regclass;
    wanted text := '';
    pair record;
BEGIN
    FOR pair IN SELECT key, value FROM jsonb_each_text(filter) LOOP
        IF pair.value IS NULL THEN
            wanted := wanted || format(' AND t.%I IS NULL', pair.key);
        ELSE
            wanted := wanted || format(' AND t.%I::text = %L', pair.key, pair.value);
        END IF;
    END LOOP;
    IF search <> '' THEN
        wanted := wanted || format(' AND strpos(lower(t.name), lower(%L)) > 0', search);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT (SELECT count(*) FROM %1$s t WHERE true %2$s), to_jsonb(t) FROM %1$s t WHERE true %2$s
         ORDER BY t.%3$I NULLS LAST, t.id LIMIT $1 OFFSET $2', target, wanted, sorted) USING lim, off;
END $$;
