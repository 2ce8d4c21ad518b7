-- Deprecated: see volume_store_ref. The host was the one that served a zone's image stores; here it is the store itself.
CREATE VIEW read.volume_host_ref AS
    SELECT r.id, r.store_id AS host_id, r.volume_id, r.zone_id, r.created, CASE WHEN r.state = 'Ready' THEN 100 ELSE 0 END AS download_pct,
           r.size, r.physical_size,
           CASE r.state WHEN 'Ready' THEN 'DOWNLOADED' WHEN 'Creating' THEN 'DOWNLOAD_IN_PROGRESS' WHEN 'Allocated' THEN 'NOT_DOWNLOADED'
               ELSE upper(r.state) END AS download_state,
           CASE WHEN r.sha256 <> '' THEN '{SHA-256}' || r.sha256 END AS checksum, r.error AS error_str, r.job_id, r.key AS install_path,
           'QCOW2' AS format, r.state = 'Destroying' AS destroyed
    FROM read.volume_store_ref r;
GRANT SELECT ON read.volume_host_ref TO storebus_app, storebus_projector;
