-- What an image store is for (Image, or ImageCache: a staging store); what it was told, secrets left out; the provider chosen
-- for backups.
ALTER TABLE read.image_store ADD COLUMN role text DEFAULT 'Image', ADD COLUMN details jsonb;
-- A view's columns are those of the day it was made.
CREATE OR REPLACE VIEW read.image_data_store AS SELECT * FROM read.image_store;

CREATE TABLE read.backup_provider (
    id text PRIMARY KEY, name text, provider text, created timestamptz);
GRANT SELECT ON read.backup_provider TO storebus_app, storebus_projector;
