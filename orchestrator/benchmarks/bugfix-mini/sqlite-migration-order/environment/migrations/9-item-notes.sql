ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT '';
UPDATE items SET note = 'heavy; two people' WHERE name = 'bracket';
