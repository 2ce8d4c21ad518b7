-- es.acquire_lease: take or renew; the fence, or NULL while somebody else has it. The fence grows with each new holder.
CREATE OR REPLACE FUNCTION es.acquire_lease(lease_name text, who text, ttl float8, steal boolean)
RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO es.lease AS l VALUES (lease_name, who, 1, clock_timestamp() + make_interval(secs => ttl))
    ON CONFLICT (name) DO UPDATE
        SET fence = l.fence + CASE WHEN l.holder = excluded.holder THEN 0 ELSE 1 END,
            holder = excluded.holder, until = excluded.until
        WHERE l.holder = excluded.holder OR steal OR l.until < clock_timestamp()
    RETURNING fence;
$$;
