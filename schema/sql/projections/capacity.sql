-- Bytes that the operator lets rest on an image store; null or 0: no limit but its own.
ALTER TABLE read.image_store ADD COLUMN capacity_bytes bigint;
-- A view's columns are those of the day it was made.
CREATE OR REPLACE VIEW read.image_data_store AS SELECT * FROM read.image_store;
