-- What was applied to this database. Outside of any migration: it has to be there before the first.
CREATE TABLE IF NOT EXISTS public.storebus_migration (
    name text PRIMARY KEY, checksum text NOT NULL, applied timestamptz NOT NULL DEFAULT now());
