CREATE TABLE movements (
    id INTEGER PRIMARY KEY,
    item INTEGER NOT NULL REFERENCES items (id),
    pieces INTEGER NOT NULL
);

CREATE TRIGGER movement_changes_stock AFTER INSERT ON movements
BEGIN
    UPDATE items SET stock = stock + new.pieces WHERE id = new.item;
    SELECT raise(ABORT, 'stock below zero; check the count') FROM items WHERE id = new.item AND stock < 0;
END;
