-- es.put_secret, es.get_secret, es.drop_secret: sealed before they come here; the table itself is readable by nobody else.
CREATE OR REPLACE FUNCTION es.put_secret(of uuid, value bytea)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO es.secret (id, sealed) VALUES (of, value) ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed;
$$;
CREATE OR REPLACE FUNCTION es.get_secret(of uuid)
RETURNS bytea LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT sealed FROM es.secret WHERE id = of;
$$;
CREATE OR REPLACE FUNCTION es.drop_secret(of uuid)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM es.secret WHERE id = of;
$$;
