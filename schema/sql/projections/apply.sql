-- read.apply(changes): a page of changes, in one commit.
-- changes: [[table, id, {column: value, ...} | null], ...]; null removes the row; given columns overlay the row, or make it.
-- Removals come first, so a row that is removed and made again in one page starts anew. An id comes at most once in each.
-- One statement for each table: the cost of a page is its rows, not their planning.
CREATE OR REPLACE FUNCTION read.apply(changes jsonb)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = read, pg_temp AS $$
DECLARE
    source text;
    target regclass;
    overlay text;
    gone text[];
    ids text[];
    given jsonb[];
BEGIN
    FOR source, gone, ids, given IN
        SELECT c->>0,
               array_agg(c->>1) FILTER (WHERE c->2 = 'null'),
               array_agg(c->>1) FILTER (WHERE c->2 <> 'null'),
               array_agg(c->2 || jsonb_build_object('id', c->>1)) FILTER (WHERE c->2 <> 'null')
        FROM jsonb_array_elements(changes) AS c GROUP BY 1
    LOOP
        -- Only tables of this schema can be named: the cast fails for anything else.
        target := format('read.%I', source)::regclass;
        IF gone IS NOT NULL THEN
            EXECUTE format('DELETE FROM %s WHERE id = ANY ($1)', target) USING gone;
        END IF;
        CONTINUE WHEN ids IS NULL;
        SELECT string_agg(format('%1$I = excluded.%1$I', attname), ', ') INTO overlay
            FROM pg_attribute WHERE attrelid = target AND attnum > 0 AND NOT attisdropped AND attname <> 'id';
        EXECUTE format(
            'INSERT INTO %1$s SELECT made.*
             FROM unnest($1, $2) AS g (id, given) LEFT JOIN %1$s AS t USING (id),
                  LATERAL jsonb_populate_record(t, g.given) AS made
             ON CONFLICT (id) DO UPDATE SET %2$s', target, overlay)
        USING ids, given;
    END LOOP;
END $$;
