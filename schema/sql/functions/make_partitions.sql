-- es.make_partitions(ahead): partitions of a million positions each, so that `ahead` positions after the head have room.
CREATE OR REPLACE FUNCTION es.make_partitions(ahead bigint DEFAULT 2000000)
RETURNS int LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    size CONSTANT bigint := 1000000;
    head bigint;
    made int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(727403);
    SELECT coalesce(max(position), 0) INTO head FROM es.event;
    FOR n IN 0 .. ((head + ahead) / size) LOOP
        IF to_regclass(format('es.event_%s', n)) IS NULL THEN
            EXECUTE format('CREATE TABLE es.event_%s PARTITION OF es.event FOR VALUES FROM (%s) TO (%s)',
                           n, n * size, (n + 1) * size);
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
