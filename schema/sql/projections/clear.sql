-- read.clear(): empty every read table, for a rebuild.
CREATE OR REPLACE FUNCTION read.clear()
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = read, pg_temp AS $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'read' LOOP
        EXECUTE format('DELETE FROM read.%I', name);
    END LOOP;
END $$;
