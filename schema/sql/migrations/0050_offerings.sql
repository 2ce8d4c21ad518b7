-- Disk offerings, and what a volume has of them.
CREATE TABLE read.disk_offering (
    id text PRIMARY KEY, name text, display_text text, disk_size bigint, tags text, min_iops bigint, max_iops bigint,
    provisioning_type text, domains jsonb, display boolean, created timestamptz, removed timestamptz);
GRANT SELECT ON read.disk_offering TO storebus_app, storebus_projector;

ALTER TABLE read.volume
    ADD COLUMN type text DEFAULT 'DATADISK', ADD COLUMN disk_offering_id text, ADD COLUMN min_iops bigint,
    ADD COLUMN max_iops bigint, ADD COLUMN display boolean DEFAULT true, ADD COLUMN delete_protection boolean DEFAULT false;
CREATE INDEX volume_by_offering ON read.volume (disk_offering_id);
