-- The one row that says which installation this is; made once.
INSERT INTO es.installation (id, partitions, epoch) VALUES ('$ID', $PARTITIONS, 1) ON CONFLICT DO NOTHING;
