-- What templates and ISOs say about themselves, who may use them, and where they are listed: a zone of null is every zone.
ALTER TABLE read.template
    ADD COLUMN kind text DEFAULT 'template', ADD COLUMN cross_zones boolean, ADD COLUMN granted jsonb DEFAULT '[]', ADD COLUMN volume_id text,
    ADD COLUMN snapshot_id text, ADD COLUMN bits int DEFAULT 64, ADD COLUMN requires_hvm boolean DEFAULT true,
    ADD COLUMN password_enabled boolean DEFAULT false, ADD COLUMN ssh_key_enabled boolean DEFAULT false,
    ADD COLUMN dynamically_scalable boolean DEFAULT false, ADD COLUMN bootable boolean DEFAULT true,
    ADD COLUMN details jsonb DEFAULT '{}', ADD COLUMN template_tag text DEFAULT '', ADD COLUMN template_type text DEFAULT 'USER',
    ADD COLUMN arch text DEFAULT 'x86_64', ADD COLUMN sort_key int DEFAULT 0;
UPDATE read.template SET cross_zones = zone_id IS NULL;

ALTER TABLE read.template_store_ref ADD COLUMN zone_id text, ADD COLUMN job_id text;
CREATE INDEX template_store_ref_by_template ON read.template_store_ref (template_id);
CREATE INDEX template_store_ref_by_store ON read.template_store_ref (store_id);

CREATE TABLE read.template_zone (id text PRIMARY KEY, template_id text, zone_id text, error text, created timestamptz);
CREATE INDEX template_zone_by_template ON read.template_zone (template_id);
INSERT INTO read.template_zone (id, template_id, zone_id, created)
    SELECT id || '/' || coalesce(zone_id, '*'), id, zone_id, created FROM read.template;

CREATE TABLE read.launch_permission (id text PRIMARY KEY, template_id text, account_id text, created timestamptz);
CREATE INDEX launch_permission_by_account ON read.launch_permission (account_id, template_id);
CREATE INDEX launch_permission_by_template ON read.launch_permission (template_id);

-- One row for each template and zone: `id` is both, `state` the copy's that serves the zone, or Absent where none does.
CREATE VIEW read.template_view AS
    SELECT t.id || '/' || z.id AS id, t.id AS template_id, z.id AS in_zone, z.name AS zone_name, t.name, t.display_text, t.url, t.format,
           t.hypervisor, t.zone_id, coalesce(r.state, CASE WHEN t.state = 'Ready' THEN 'Absent' ELSE t.state END) AS state, t.size,
           coalesce(r.physical_size, t.physical_size) AS physical_size, t.checksum, t.is_public, t.is_featured, t.is_extractable, t.os_type_id,
           coalesce(r.error, tz.error, t.error) AS error, coalesce(r.job_id, t.job_id) AS job_id, t.created, t.removed, t.account_id, t.account,
           t.domain_id, t.domain_path, t.project_id, t.tags, t.kind, t.cross_zones, t.granted, t.volume_id, t.snapshot_id, t.bits,
           t.requires_hvm, t.password_enabled, t.ssh_key_enabled, t.dynamically_scalable, t.bootable, t.details, t.template_tag,
           t.template_type, t.arch, t.sort_key
    FROM read.template t
    JOIN read.template_zone tz ON tz.template_id = t.id
    JOIN read.zone z ON tz.zone_id IS NULL OR z.id = tz.zone_id
    LEFT JOIN LATERAL (SELECT c.state, c.physical_size, c.error, c.job_id FROM read.template_store_ref c
                       WHERE c.template_id = t.id AND (c.zone_id IS NULL OR c.zone_id = z.id)
                       ORDER BY c.state <> 'Ready', c.created LIMIT 1) r ON true;

-- Bytes that nobody can reach any more, until their store confirms that they are gone.
CREATE VIEW read.pending_deletion AS
    SELECT r.id, t.kind, t.id AS thing_id, t.name, r.store_id, r.key, r.physical_size, coalesce(r.job_id, t.job_id) AS job_id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, r.created
    FROM read.template_store_ref r JOIN read.template t ON t.id = r.template_id WHERE r.state = 'Destroying'
    UNION ALL
    SELECT r.id, 'snapshot', t.id, t.name, r.store_id, r.key, r.physical_size, t.job_id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, r.created
    FROM read.snapshot_store_ref r JOIN read.snapshot t ON t.id = r.snapshot_id WHERE r.state = 'Destroying';
CREATE INDEX template_store_ref_going ON read.template_store_ref (created) WHERE state = 'Destroying';
CREATE INDEX snapshot_store_ref_going ON read.snapshot_store_ref (created) WHERE state = 'Destroying';
GRANT SELECT ON read.pending_deletion, read.template_zone, read.launch_permission, read.template_view TO storebus_app, storebus_projector;

CREATE INDEX template_by_created ON read.template (created, id);
CREATE INDEX template_by_kind ON read.template (kind, created);
CREATE INDEX template_public ON read.template ((is_public::text), (is_featured::text), created);
CREATE INDEX template_granted ON read.template USING gin (granted jsonb_path_ops);
-- Parts of names are found by trigrams where the server has them; without, by reading.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;
    EXECUTE 'CREATE INDEX template_by_name ON read.template USING gin (lower(name) public.gin_trgm_ops)';
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'no trigram index of template names: %', SQLERRM;
END $$;
