-- es.beat: this member of a role lives.
CREATE OR REPLACE FUNCTION es.beat(of text, who text, about jsonb, ttl float8)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM es.member WHERE until < clock_timestamp() - interval '1 hour';
    INSERT INTO es.member VALUES (of, who, about, clock_timestamp() + make_interval(secs => ttl))
        ON CONFLICT (role, member) DO UPDATE SET info = excluded.info, until = excluded.until;
$$;
