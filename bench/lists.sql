-- :rows volumes, snapshots with a copy, and templates, of :owners accounts, every fifth volume from a template. Written past the log.
INSERT INTO read.volume (id, name, zone_id, state, size, physical_size, primary_id, path, template_id, hypervisor, created,
                         account_id, account, domain_id, domain_path)
SELECT md5('v' || n)::uuid, 'disk-' || n || '-x' || lpad(to_hex(n), 6, '0'), (SELECT id FROM read.zone LIMIT 1), 'Ready', 1073741824, 200704,
       (SELECT id FROM read.primary_store LIMIT 1), md5('v' || n)::uuid || '.qcow2',
       CASE WHEN n % 5 = 0 THEN md5('t' || n)::uuid::text END, 'KVM', now() - n * interval '1 second',
       md5('a' || n % :owners)::uuid, 'account-' || n % :owners, md5('d' || n % 10)::uuid, '/domain-' || n % 10 || '/'
FROM generate_series(1, :rows) n;

INSERT INTO read.template (id, name, display_text, url, format, hypervisor, state, size, physical_size, checksum, is_public, is_featured,
                           is_extractable, kind, cross_zones, created, account_id, account, domain_id, domain_path)
SELECT md5('t' || n)::uuid, 'image-' || n || '-x' || lpad(to_hex(n), 6, '0'), 'An image', 'http://images.example/' || n || '.qcow2', 'qcow2', 'KVM',
       'Ready', 1073741824, 536870912, '{SHA-256}' || md5('c' || n), n % 3 = 0, n % 30 = 0, true, 'template', true, now() - n * interval '1 second',
       md5('a' || n % :owners)::uuid, 'account-' || n % :owners, md5('d' || n % 10)::uuid, '/domain-' || n % 10 || '/'
FROM generate_series(1, :rows) n;

INSERT INTO read.template_zone (id, template_id, created)
SELECT md5('t' || n)::uuid || '/*', md5('t' || n)::uuid, now() FROM generate_series(1, :rows) n;

INSERT INTO read.template_store_ref (id, template_id, store_id, key, state, size, physical_size, root, created)
SELECT md5('t' || n)::uuid || '/' || s.id, md5('t' || n)::uuid, s.id, 'template/' || n, 'Ready', 1073741824, 536870912, md5('r' || n), now()
FROM generate_series(1, :rows) n, (SELECT id FROM read.image_store LIMIT 1) s;

INSERT INTO read.snapshot (id, name, volume_id, zone_id, state, size, physical_size, on_primary, created, snapshot_type, location_type,
                           account_id, account, domain_id, domain_path)
SELECT md5('s' || n)::uuid, 'shot-' || n || '-x' || lpad(to_hex(n), 6, '0'), md5('v' || n)::uuid, (SELECT id FROM read.zone LIMIT 1), 'BackedUp',
       1073741824, 200704, false, now() - n * interval '1 second', 'MANUAL', 'SECONDARY',
       md5('a' || n % :owners)::uuid, 'account-' || n % :owners, md5('d' || n % 10)::uuid, '/domain-' || n % 10 || '/'
FROM generate_series(1, :rows) n;

INSERT INTO read.snapshot_store_ref (id, snapshot_id, store_id, key, state, size, physical_size, root, created)
SELECT md5('s' || n)::uuid || '/' || s.id, md5('s' || n)::uuid, s.id, 'snapshot/' || n, 'Ready', 1073741824, 200704, md5('r' || n), now()
FROM generate_series(1, :rows) n, (SELECT id FROM read.image_store LIMIT 1) s;

INSERT INTO read.snapshot_zone_ref (id, snapshot_id, zone_id, created)
SELECT md5('s' || n)::uuid || '/' || z.id, md5('s' || n)::uuid, z.id, now()
FROM generate_series(1, :rows) n, (SELECT id FROM read.zone LIMIT 1) z;

VACUUM ANALYZE read.volume;
VACUUM ANALYZE read.template;
VACUUM ANALYZE read.template_zone;
VACUUM ANALYZE read.template_store_ref;
VACUUM ANALYZE read.snapshot;
VACUUM ANALYZE read.snapshot_store_ref;
VACUUM ANALYZE read.snapshot_zone_ref;
