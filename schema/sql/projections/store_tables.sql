-- The tables of stores that CloudStack's administrators read, as views: what a store was told (secrets are named, and have no
-- value), and the tables that image_store and template_store_ref replaced. Those hold what is there now, and no secret.
CREATE VIEW read.image_store_details AS
    SELECT s.id || '/' || d.key AS id, s.id AS store_id, d.key AS name, d.value, d.value IS NOT NULL AS display
    FROM read.image_store s, jsonb_each_text(s.details) d;

-- Deprecated: see image_store.
CREATE VIEW read.s3 AS
    SELECT s.id, s.id AS uuid, s.details->>'accesskey' AS access_key, coalesce(s.details->>'endpoint', s.url) AS end_point,
           s.details->>'bucket' AS bucket, (s.details->>'usehttps')::boolean AS https,
           (s.details->>'connectiontimeout')::int AS connection_timeout, (s.details->>'maxerrorretry')::int AS max_error_retry,
           (s.details->>'sockettimeout')::int AS socket_timeout, s.created
    FROM read.image_store s WHERE s.provider = 's3' AND s.role = 'Image' AND s.state = 'Ready';
CREATE VIEW read.swift AS
    SELECT s.id, s.id AS uuid, s.url, s.details->>'account' AS account, s.details->>'username' AS username, s.created
    FROM read.image_store s WHERE s.provider = 'swift' AND s.role = 'Image' AND s.state = 'Ready';

-- Deprecated: see template_store_ref. The host was the one that served a zone's NFS; here it is the store itself.
CREATE VIEW read.template_host_ref AS
    SELECT r.id, r.store_id AS host_id, r.template_id, r.created, 100 AS download_pct, r.size, r.physical_size,
           CASE r.state WHEN 'Ready' THEN 'DOWNLOADED' ELSE upper(r.state) END AS download_state, r.key AS install_path, t.url,
           r.state = 'Destroying' AS destroyed, false AS is_copy
    FROM read.template_store_ref r JOIN read.image_store s ON s.id = r.store_id JOIN read.template t ON t.id = r.template_id
    WHERE s.scope = 'ZONE';
CREATE VIEW read.template_s3_ref AS
    SELECT r.id, r.store_id AS s3_id, r.template_id, r.created, r.size, r.physical_size
    FROM read.template_store_ref r JOIN read.image_store s ON s.id = r.store_id WHERE s.provider = 's3';
CREATE VIEW read.template_swift_ref AS
    SELECT r.id, r.store_id AS swift_id, r.template_id, r.created, r.key AS path, r.size, r.physical_size, false AS is_copy
    FROM read.template_store_ref r JOIN read.image_store s ON s.id = r.store_id WHERE s.provider = 'swift';

GRANT SELECT ON read.image_store_details, read.s3, read.swift, read.template_host_ref, read.template_s3_ref, read.template_swift_ref
    TO storebus_app, storebus_projector;
