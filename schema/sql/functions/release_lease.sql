-- es.release_lease: give it back; the row stays, so that fences never repeat.
CREATE OR REPLACE FUNCTION es.release_lease(lease_name text, who text, with_fence bigint)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE es.lease SET until = '-infinity', holder = '' WHERE name = lease_name AND holder = who AND fence = with_fence;
$$;
