-- es.save_checkpoint: move a reader. NULL: saved; else what is wrong (epoch, fence).
CREATE OR REPLACE FUNCTION es.save_checkpoint(
    reader text, at_epoch int, at_position bigint, at_event uuid, lease_name text, with_fence bigint)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF at_epoch <> (SELECT epoch FROM es.installation) THEN
        RETURN 'epoch';
    END IF;
    IF with_fence IS NOT NULL THEN
        -- FOR SHARE: a new holder waits until this commit, so an old one cannot write after it.
        PERFORM 1 FROM es.lease WHERE name = lease_name AND fence = with_fence FOR SHARE;
        IF NOT FOUND THEN
            RETURN 'fence';
        END IF;
    END IF;
    INSERT INTO es.checkpoint VALUES (reader, at_epoch, at_position, at_event)
        ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, position = excluded.position, event_id = excluded.event_id;
    RETURN NULL;
END $$;
