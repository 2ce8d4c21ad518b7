-- read.apply(changes, name, epoch, position, event_id): a page of changes and its checkpoint in one commit.
-- changes: [[table, id, {column: value, ...} | null], ...] in log order; null removes the row; given columns overlay the row.
CREATE OR REPLACE FUNCTION read.apply(changes jsonb)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = read, pg_temp AS $$
DECLARE
    change jsonb;
    target regclass;
BEGIN
    FOR change IN SELECT value FROM jsonb_array_elements(changes) LOOP
        -- Only tables of this schema can be named: the cast fails for anything else.
        target := format('read.%I', change->>0)::regclass;
        IF change->2 = 'null'::jsonb THEN -- the row is gone
            EXECUTE format('DELETE FROM %s WHERE id = $1', target) USING change->>1;
        ELSE
            EXECUTE format(
                'WITH old AS (DELETE FROM %1$s WHERE id = $1 RETURNING *)
                 INSERT INTO %1$s SELECT (jsonb_populate_record((SELECT old::%1$s FROM old), $2)).*', target)
            USING change->>1, (change->2) || jsonb_build_object('id', change->>1);
        END IF;
    END LOOP;
END $$;
