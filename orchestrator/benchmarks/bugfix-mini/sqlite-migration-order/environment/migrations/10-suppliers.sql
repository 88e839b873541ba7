CREATE TABLE suppliers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    shelf TEXT
);
INSERT INTO suppliers (name, shelf) SELECT 'unknown', shelf FROM items GROUP BY shelf;
ALTER TABLE items ADD COLUMN supplier INTEGER REFERENCES suppliers (id);
UPDATE items SET supplier = 1;
