-- es.set_progress: the last progress of an order. What nobody spoke of for a day is forgotten.
CREATE OR REPLACE FUNCTION es.set_progress(of text, said bytea)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM es.progress WHERE work IN (SELECT work FROM es.progress WHERE at < now() - interval '1 day' LIMIT 10);
    INSERT INTO es.progress VALUES (of, said) ON CONFLICT (work) DO UPDATE SET progress = excluded.progress, at = now();
$$;
