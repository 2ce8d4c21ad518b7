-- es.drop_held: handled or discarded.
CREATE OR REPLACE FUNCTION es.drop_held(of bigint)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM es.held WHERE id = of;
$$;
