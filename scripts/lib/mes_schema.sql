-- A small but honest manufacturing schema: what a plant's execution system keeps per shift.
--
-- Quantities are pieces and grams, measurements are micrometres: integers, so that a digest of a row is the same
-- text in the client and in the database. Every row a transaction inserts carries (client_no, txn_no) of the journal
-- entry of that transaction, so that after a failover each acknowledged commit can be checked row by row.

CREATE SCHEMA mes;
SET search_path = mes;

CREATE TABLE txn_journal (
    client_no    integer     NOT NULL,
    txn_no       bigint      NOT NULL,
    kind         text        NOT NULL,
    rows_written integer     NOT NULL CHECK (rows_written >= 0),
    digest       text        NOT NULL CHECK (length(digest) = 32),
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (client_no, txn_no)
);

CREATE TABLE equipment (
    equipment_id integer PRIMARY KEY,
    code         text    NOT NULL UNIQUE,
    class        text    NOT NULL,
    area         text    NOT NULL
);
CREATE INDEX equipment_by_class ON equipment (class);

CREATE TABLE product (
    product_id  integer PRIMARY KEY,
    part_no     text    NOT NULL UNIQUE,
    description text    NOT NULL
);

CREATE TABLE routing_step (
    product_id      integer NOT NULL REFERENCES product,
    seq             integer NOT NULL CHECK (seq BETWEEN 10 AND 990 AND seq % 10 = 0),
    operation       text    NOT NULL,
    equipment_class text    NOT NULL,
    std_seconds     integer NOT NULL CHECK (std_seconds > 0),
    inspected       boolean NOT NULL,
    PRIMARY KEY (product_id, seq)
);

CREATE TABLE material (
    material_id integer PRIMARY KEY,
    code        text    NOT NULL UNIQUE,
    unit        text    NOT NULL CHECK (unit IN ('g', 'pcs'))
);

CREATE TABLE bill_of_material (
    product_id  integer NOT NULL,
    seq         integer NOT NULL,
    material_id integer NOT NULL REFERENCES material,
    per_piece   integer NOT NULL CHECK (per_piece > 0),
    PRIMARY KEY (product_id, seq, material_id),
    FOREIGN KEY (product_id, seq) REFERENCES routing_step
);

CREATE TABLE material_lot (
    lot_id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lot_no       text        NOT NULL UNIQUE,
    material_id  integer     NOT NULL REFERENCES material,
    supplier     text        NOT NULL,
    qty_received bigint      NOT NULL CHECK (qty_received > 0),
    qty_on_hand  bigint      NOT NULL CHECK (qty_on_hand BETWEEN 0 AND qty_received),
    received_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    client_no    integer     NOT NULL,
    txn_no       bigint      NOT NULL,
    FOREIGN KEY (client_no, txn_no) REFERENCES txn_journal DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX material_lot_fifo ON material_lot (material_id, lot_id) WHERE qty_on_hand > 0;
CREATE INDEX material_lot_by_txn ON material_lot (client_no, txn_no);

CREATE TABLE work_order (
    order_id    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_no    text        NOT NULL UNIQUE,
    product_id  integer     NOT NULL REFERENCES product,
    qty         integer     NOT NULL CHECK (qty > 0),
    qty_good    integer     CHECK (qty_good BETWEEN 0 AND qty),
    status      text        NOT NULL CHECK (status IN ('released', 'running', 'completed', 'closed')),
    due_at      timestamptz NOT NULL,
    closed_at   timestamptz,
    client_no   integer     NOT NULL,
    txn_no      bigint      NOT NULL,
    CHECK ((status = 'closed') = (closed_at IS NOT NULL)),
    CHECK ((status IN ('completed', 'closed')) = (qty_good IS NOT NULL)),
    FOREIGN KEY (client_no, txn_no) REFERENCES txn_journal DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX work_order_completed ON work_order (order_id) WHERE status = 'completed';
CREATE INDEX work_order_by_txn ON work_order (client_no, txn_no);

CREATE TABLE routing_operation (
    order_id     bigint  NOT NULL REFERENCES work_order,
    seq          integer NOT NULL,
    product_id   integer NOT NULL,
    equipment_id integer REFERENCES equipment,
    status       text    NOT NULL CHECK (status IN ('waiting', 'ready', 'running', 'done')),
    started_at   timestamptz,
    finished_at  timestamptz,
    qty_in       integer,
    qty_good     integer,
    qty_scrap    integer,
    PRIMARY KEY (order_id, seq),
    FOREIGN KEY (product_id, seq) REFERENCES routing_step,
    CHECK ((status IN ('running', 'done')) = (started_at IS NOT NULL AND equipment_id IS NOT NULL)),
    CHECK ((status = 'done') = (finished_at IS NOT NULL)),
    CHECK (status <> 'done' OR qty_good + qty_scrap = qty_in)
) WITH (fillfactor = 80);
CREATE INDEX routing_operation_ready ON routing_operation (order_id, seq) WHERE status = 'ready';
CREATE INDEX routing_operation_running ON routing_operation (order_id, seq) WHERE status = 'running';

CREATE TABLE lot_consumption (
    consumption_id bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lot_id         bigint  NOT NULL REFERENCES material_lot,
    order_id       bigint  NOT NULL,
    seq            integer NOT NULL,
    qty            bigint  NOT NULL CHECK (qty > 0),
    client_no      integer NOT NULL,
    txn_no         bigint  NOT NULL,
    FOREIGN KEY (order_id, seq) REFERENCES routing_operation,
    FOREIGN KEY (client_no, txn_no) REFERENCES txn_journal DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX lot_consumption_genealogy ON lot_consumption (lot_id, order_id);
CREATE INDEX lot_consumption_by_order ON lot_consumption (order_id, seq);
CREATE INDEX lot_consumption_by_txn ON lot_consumption (client_no, txn_no);

CREATE TABLE equipment_event (
    event_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    equipment_id integer     NOT NULL REFERENCES equipment,
    kind         text        NOT NULL CHECK (kind IN ('start', 'finish', 'reading', 'alarm', 'cleared')),
    order_id     bigint,
    seq          integer,
    reading      integer     NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    client_no    integer     NOT NULL,
    txn_no       bigint      NOT NULL,
    CHECK ((kind IN ('start', 'finish')) = (order_id IS NOT NULL AND seq IS NOT NULL)),
    FOREIGN KEY (order_id, seq) REFERENCES routing_operation,
    FOREIGN KEY (client_no, txn_no) REFERENCES txn_journal DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX equipment_event_history ON equipment_event (equipment_id, at);
CREATE INDEX equipment_event_by_order ON equipment_event (order_id, seq) WHERE order_id IS NOT NULL;
CREATE INDEX equipment_event_by_txn ON equipment_event (client_no, txn_no);

CREATE TABLE quality_measurement (
    measurement_id bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id       bigint  NOT NULL,
    seq            integer NOT NULL,
    characteristic text    NOT NULL,
    nominal_um     integer NOT NULL,
    tolerance_um   integer NOT NULL CHECK (tolerance_um > 0),
    value_um       integer NOT NULL,
    in_tolerance   boolean GENERATED ALWAYS AS (abs(value_um - nominal_um) <= tolerance_um) STORED,
    client_no      integer NOT NULL,
    txn_no         bigint  NOT NULL,
    FOREIGN KEY (order_id, seq) REFERENCES routing_operation,
    FOREIGN KEY (client_no, txn_no) REFERENCES txn_journal DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX quality_measurement_by_order ON quality_measurement (order_id, seq, characteristic);
CREATE INDEX quality_measurement_by_txn ON quality_measurement (client_no, txn_no);

-- What each transaction inserted, as the client saw it: the text whose digest the journal and the outside ledger hold.
CREATE VIEW txn_content AS
    SELECT client_no, txn_no, format('L|%s|%s|%s', lot_no, material_id, qty_received) AS line FROM material_lot
    UNION ALL
    SELECT client_no, txn_no, format('W|%s|%s|%s', order_no, product_id, qty) FROM work_order
    UNION ALL
    SELECT client_no, txn_no, format('C|%s|%s|%s|%s', lot_id, order_id, seq, qty) FROM lot_consumption
    UNION ALL
    SELECT client_no, txn_no, format('E|%s|%s|%s|%s|%s', equipment_id, kind, order_id, seq, reading)
        FROM equipment_event
    UNION ALL
    SELECT client_no, txn_no, format('Q|%s|%s|%s|%s', order_id, seq, characteristic, value_um)
        FROM quality_measurement;
