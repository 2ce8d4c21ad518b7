-- What lists of snapshots filter by. What there is already was taken by hand, and lies in its volume's zone.
ALTER TABLE read.snapshot ADD COLUMN snapshot_type text DEFAULT 'MANUAL', ADD COLUMN policy_id text,
    ADD COLUMN location_type text, ADD COLUMN chain_size bigint;
UPDATE read.snapshot SET location_type = CASE WHEN physical_size IS NULL THEN 'PRIMARY' ELSE 'SECONDARY' END;
CREATE INDEX snapshot_by_volume ON read.snapshot (volume_id, created);
CREATE INDEX snapshot_by_created ON read.snapshot (created, id);

-- A row for each zone in which a snapshot can be used.
CREATE TABLE read.snapshot_zone_ref (
    id text PRIMARY KEY, snapshot_id text, zone_id text, created timestamptz);
CREATE INDEX snapshot_zone_ref_by_snapshot ON read.snapshot_zone_ref (snapshot_id);
INSERT INTO read.snapshot_zone_ref SELECT id || '/' || zone_id, id, zone_id, created FROM read.snapshot;

-- The same rows as lists show them: with what they filter and sort by.
CREATE VIEW read.snapshot_in_zone AS
    SELECT r.id, r.snapshot_id, r.zone_id, s.name, s.volume_id, s.state, s.snapshot_type, s.location_type, s.tags, s.account_id,
           s.account, s.domain_id, s.domain_path, s.project_id, s.created, s.removed
    FROM read.snapshot s JOIN read.snapshot_zone_ref r ON r.snapshot_id = s.id;

CREATE TABLE read.snapshot_policy (
    id text PRIMARY KEY, name text, volume_id text, interval_type text, schedule text, timezone text, max_snaps int,
    for_display boolean, zone_ids jsonb, tags jsonb, next_at timestamptz, last_at timestamptz, last_job_id text, account_id text,
    account text, domain_id text, domain_path text, project_id text, created timestamptz, removed timestamptz);
CREATE INDEX snapshot_policy_by_volume ON read.snapshot_policy (volume_id);
CREATE INDEX snapshot_policy_by_account ON read.snapshot_policy (account_id, created);
CREATE INDEX snapshot_policy_by_domain ON read.snapshot_policy (domain_path text_pattern_ops);
GRANT SELECT ON read.snapshot_zone_ref, read.snapshot_in_zone, read.snapshot_policy TO storebus_app, storebus_projector;
