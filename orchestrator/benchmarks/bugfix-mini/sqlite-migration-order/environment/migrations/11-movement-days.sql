ALTER TABLE movements ADD COLUMN day TEXT;
CREATE INDEX movements_by_item ON movements (item, day)
-- for the monthly report
