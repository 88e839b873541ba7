-- Every item has a shelf; the old ones all stood on the first.
ALTER TABLE items ADD COLUMN shelf TEXT NOT NULL DEFAULT 'A-1';
