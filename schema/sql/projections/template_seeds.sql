-- Templates' bytes on primary stores. `id` is the template's and the primary store's.
CREATE TABLE read.template_spool_ref (
    id text PRIMARY KEY, template_id text, pool_id text, zone_id text, store_id text, key text, path text, state text, size bigint,
    physical_size bigint, job_id text, created timestamptz);
CREATE INDEX template_spool_ref_by_template ON read.template_spool_ref (template_id);
CREATE INDEX template_spool_ref_by_pool ON read.template_spool_ref (pool_id);
CREATE INDEX template_spool_ref_going ON read.template_spool_ref (created) WHERE state = 'Destroying';

-- As before, and what lies on primary stores: their id is in the place of the image store's, the file's name in that of the key.
CREATE OR REPLACE VIEW read.pending_deletion AS
    SELECT r.id, t.kind, t.id AS thing_id, t.name, r.store_id, r.key, r.physical_size, coalesce(r.job_id, t.job_id) AS job_id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, r.created
    FROM read.template_store_ref r JOIN read.template t ON t.id = r.template_id WHERE r.state = 'Destroying'
    UNION ALL
    SELECT r.id, 'snapshot', t.id, t.name, r.store_id, r.key, r.physical_size, t.job_id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, r.created
    FROM read.snapshot_store_ref r JOIN read.snapshot t ON t.id = r.snapshot_id WHERE r.state = 'Destroying'
    UNION ALL
    SELECT r.id, t.kind, t.id, t.name, r.pool_id, r.path, r.physical_size, r.job_id,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, r.created
    FROM read.template_spool_ref r JOIN read.template t ON t.id = r.template_id WHERE r.state = 'Destroying';
GRANT SELECT ON read.template_spool_ref TO storebus_app, storebus_projector;
