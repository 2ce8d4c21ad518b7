-- es.hold: keep a message that failed. Its number.
CREATE OR REPLACE FUNCTION es.hold(of_key text, of_partition int, of_headers jsonb, of_body bytea, why text, from_source text)
RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO es.held (key, partition, headers, body, reason, source)
    VALUES (of_key, of_partition, of_headers, of_body, why, from_source) RETURNING id;
$$;
