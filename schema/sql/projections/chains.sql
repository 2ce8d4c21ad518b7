-- A snapshot's place in its chain: what it is a delta of, how many links are before it, why it is full.
ALTER TABLE read.snapshot ADD COLUMN parent_id text, ADD COLUMN depth int, ADD COLUMN reason text;
