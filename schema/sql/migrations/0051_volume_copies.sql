-- What volumes have in image stores: copies that are extracted from (kind extract), and uploads (kind upload).
CREATE TABLE read.volume_store_ref (
    id text PRIMARY KEY, volume_id text, store_id text, zone_id text, kind text, key text, state text, size bigint,
    physical_size bigint, root text, sha256 text, error text, job_id text, created timestamptz);
CREATE INDEX volume_store_ref_by_volume ON read.volume_store_ref (volume_id);
GRANT SELECT ON read.volume_store_ref TO storebus_app, storebus_projector;
