#!/usr/bin/python3
"""The plant of the demo: schema, believable data, a concurrent workload with a ledger outside the device, the check.

    mes.py load                      create the schema and its master data
    mes.py run   --ledger FILE       work until SIGTERM; one line in FILE per COMMIT that returned
    mes.py check --ledger FILE       is every ledger entry in the database, row by row, and do the books balance?
    mes.py gaps  --ledger FILE --from S --to S [--after S]   stalls seen by the clients, from the ledger alone

A ledger line is `client txn digest begin_us end_us how`: both times are microseconds of the wall clock, `how` is
`returned` when COMMIT returned, `found` when the connection died during COMMIT and the client found its
transaction after it had reconnected. A commit of unknown outcome that is not found later is not in the ledger:
nobody was told that it happened. Exit codes: 0 good, 1 the check failed, 2 usage or no database.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import psycopg2
import psycopg2.extras

HERE = os.path.dirname(os.path.abspath(__file__))
LOADER = 0  # client number of the loader's own journal entries

AREAS = ("machining", "moulding", "assembly", "paint")
CLASSES = ("lathe", "mill", "grinder", "washer", "press", "robot", "tester")
SUPPLIERS = ("Norsk Stal", "Hang Zhou Alloy", "Rheinguss", "Osaka Resin", "Delta Fasteners")
CHARACTERISTICS = (("bore diameter", 25_000, 18), ("flange runout", 0, 35), ("thread depth", 14_000, 120),
                   ("surface height", 62_500, 60), ("seat angle offset", 0, 45))
STEPS = (("saw blank", "mill"), ("turn", "lathe"), ("mill flange", "mill"), ("grind seat", "grinder"),
         ("wash", "washer"), ("press bearing", "press"), ("assemble", "robot"), ("end-of-line test", "tester"))


class Transaction:
    """What one transaction inserts, as lines whose digest goes to the journal and to the ledger."""

    def __init__(self, cursor, client, number):
        self.cursor, self.client, self.number, self.lines = cursor, client, number, []

    @property
    def digest(self):
        return hashlib.md5("\n".join(sorted(self.lines)).encode()).hexdigest()

    def lot(self, lot_no, material, supplier, qty):
        self.cursor.execute(
            "INSERT INTO material_lot (lot_no, material_id, supplier, qty_received, qty_on_hand, client_no, txn_no)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (lot_no, material, supplier, qty, qty, self.client, self.number))
        self.lines.append(f"L|{lot_no}|{material}|{qty}")

    def order(self, order_no, product, qty):
        self.cursor.execute(
            "INSERT INTO work_order (order_no, product_id, qty, status, due_at, client_no, txn_no)"
            " VALUES (%s, %s, %s, 'released', clock_timestamp() + interval '3 days', %s, %s) RETURNING order_id",
            (order_no, product, qty, self.client, self.number))
        order = self.cursor.fetchone()[0]
        self.cursor.execute(
            "INSERT INTO routing_operation (order_id, seq, product_id, status, qty_in)"
            " SELECT %s, seq, product_id, CASE WHEN seq = 10 THEN 'ready' ELSE 'waiting' END,"
            "        CASE WHEN seq = 10 THEN %s END"
            " FROM routing_step WHERE product_id = %s", (order, qty, product))
        self.lines.append(f"W|{order_no}|{product}|{qty}")

    def consume(self, lot, order, seq, qty):
        self.cursor.execute("UPDATE material_lot SET qty_on_hand = qty_on_hand - %s WHERE lot_id = %s", (qty, lot))
        self.cursor.execute(
            "INSERT INTO lot_consumption (lot_id, order_id, seq, qty, client_no, txn_no) VALUES (%s, %s, %s, %s, %s, %s)",
            (lot, order, seq, qty, self.client, self.number))
        self.lines.append(f"C|{lot}|{order}|{seq}|{qty}")

    def event(self, equipment, kind, reading, order=None, seq=None):
        self.cursor.execute(
            "INSERT INTO equipment_event (equipment_id, kind, order_id, seq, reading, client_no, txn_no)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)", (equipment, kind, order, seq, reading, self.client, self.number))
        self.lines.append(f"E|{equipment}|{kind}|{'' if order is None else order}|{'' if seq is None else seq}|{reading}")

    def measurement(self, order, seq, name, nominal, tolerance, value):
        self.cursor.execute(
            "INSERT INTO quality_measurement (order_id, seq, characteristic, nominal_um, tolerance_um, value_um,"
            " client_no, txn_no) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (order, seq, name, nominal, tolerance, value, self.client, self.number))
        self.lines.append(f"Q|{order}|{seq}|{name}|{value}")

    def journal(self, kind):
        self.cursor.execute(
            "INSERT INTO txn_journal (client_no, txn_no, kind, rows_written, digest) VALUES (%s, %s, %s, %s, %s)",
            (self.client, self.number, kind, len(self.lines), self.digest))


# --- the six things that happen on a shop floor; each returns False when there is nothing to do -------------------


def release_order(txn, rng):
    """Planning releases an order with its whole routing."""
    txn.order(f"WO-{txn.client:02d}-{txn.number:07d}", rng.randrange(1, 13), rng.choice((20, 50, 80, 120)))
    return True


def start_operation(txn, rng):
    """A worker takes the next ready operation to a free machine of the right class."""
    txn.cursor.execute(
        "SELECT o.order_id, o.seq, s.equipment_class FROM routing_operation o JOIN routing_step s USING (product_id, seq)"
        " WHERE o.status = 'ready' ORDER BY o.order_id, o.seq LIMIT 1 FOR UPDATE OF o SKIP LOCKED")
    found = txn.cursor.fetchone()
    if found is None:
        return False
    order, seq, wanted = found
    txn.cursor.execute("SELECT equipment_id FROM equipment WHERE class = %s", (wanted,))
    equipment = rng.choice(txn.cursor.fetchall())[0]
    txn.cursor.execute(
        "UPDATE routing_operation SET status = 'running', started_at = clock_timestamp(), equipment_id = %s"
        " WHERE order_id = %s AND seq = %s", (equipment, order, seq))
    if seq == 10:
        txn.cursor.execute("UPDATE work_order SET status = 'running' WHERE order_id = %s", (order,))
    txn.event(equipment, "start", 0, order, seq)
    return True


def finish_operation(txn, rng):
    """The operation is reported: material booked first in first out, pieces counted and measured, next step readied."""
    txn.cursor.execute(
        "SELECT o.order_id, o.seq, o.product_id, o.equipment_id, o.qty_in, s.inspected"
        " FROM routing_operation o JOIN routing_step s USING (product_id, seq)"
        " WHERE o.status = 'running' ORDER BY o.order_id, o.seq LIMIT 1 FOR UPDATE OF o SKIP LOCKED")
    found = txn.cursor.fetchone()
    if found is None:
        return False
    order, seq, product, equipment, qty_in, inspected = found
    txn.cursor.execute("SELECT material_id, per_piece FROM bill_of_material WHERE product_id = %s AND seq = %s"
                       " ORDER BY material_id", (product, seq))
    for material, per_piece in txn.cursor.fetchall():
        if not book_material(txn, material, per_piece * qty_in, order, seq):
            return False
    scrap = min(qty_in, int(rng.random() < 0.15) + int(rng.random() < 0.03) * 2)
    if inspected:
        for name, nominal, tolerance in rng.sample(CHARACTERISTICS, 3):
            txn.measurement(order, seq, name, nominal, tolerance, round(rng.gauss(nominal, tolerance / 3)))
    txn.event(equipment, "finish", qty_in - scrap, order, seq)
    txn.cursor.execute(
        "UPDATE routing_operation SET status = 'done', finished_at = clock_timestamp(), qty_good = %s, qty_scrap = %s"
        " WHERE order_id = %s AND seq = %s", (qty_in - scrap, scrap, order, seq))
    txn.cursor.execute("UPDATE routing_operation SET status = 'ready', qty_in = %s WHERE order_id = %s AND seq = %s",
                       (qty_in - scrap, order, seq + 10))
    if txn.cursor.rowcount == 0:
        txn.cursor.execute("UPDATE work_order SET status = 'completed', qty_good = %s WHERE order_id = %s",
                           (qty_in - scrap, order))
    return True


def book_material(txn, material, need, order, seq):
    """Takes `need` from the oldest lots nobody else is booking; False when the store cannot give it now."""
    txn.cursor.execute(
        "SELECT lot_id, qty_on_hand FROM material_lot WHERE material_id = %s AND qty_on_hand > 0"
        " ORDER BY lot_id LIMIT 4 FOR UPDATE SKIP LOCKED", (material,))
    for lot, on_hand in txn.cursor.fetchall():
        take = min(on_hand, need)
        txn.consume(lot, order, seq, take)
        need -= take
        if need == 0:
            return True
    return False


def close_order(txn, rng):
    """The office closes a completed order and keeps the last reading of the machines that made it."""
    txn.cursor.execute("SELECT order_id, qty_good FROM work_order WHERE status = 'completed'"
                       " ORDER BY order_id LIMIT 1 FOR UPDATE SKIP LOCKED")
    found = txn.cursor.fetchone()
    if found is None:
        return False
    txn.cursor.execute("UPDATE work_order SET status = 'closed', closed_at = clock_timestamp() WHERE order_id = %s",
                       (found[0],))
    txn.event(rng.randrange(1, 29), "reading", found[1])
    return True


def receive_lot(txn, rng):
    """The store receives a lot."""
    txn.lot(f"LOT-{txn.client:02d}-{txn.number:07d}", rng.randrange(1, 17), rng.choice(SUPPLIERS),
            rng.randrange(40_000, 90_000))
    return True


def poll_machines(txn, rng):
    """A gateway posts a burst of readings, now and then an alarm and its end."""
    equipment = rng.randrange(1, 29)
    for _ in range(rng.randrange(4, 13)):
        txn.event(equipment, "reading", rng.randrange(200, 1800))
    if rng.random() < 0.1:
        txn.event(equipment, "alarm", rng.randrange(100, 999))
        txn.event(equipment, "cleared", 0)
    return True


MIX = ((start_operation, 34), (finish_operation, 34), (poll_machines, 16), (release_order, 7), (close_order, 5),
       (receive_lot, 4))


# --- clients ------------------------------------------------------------------------------------------------------


class Client:
    """One connection's worth of work. Reconnects for ever: the failover is the database's business, not the client's."""

    def __init__(self, number, options):
        self.number, self.options = number, options
        self.rng = random.Random(f"{options.seed}/{number}")
        self.ledger = os.open(options.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.connection, self.in_doubt, self.stopping = None, None, False

    def run(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.stop)
        kinds, weights = [kind for kind, _ in MIX], [weight for _, weight in MIX]
        number = 0
        while not self.stopping:
            try:
                if self.connection is None:
                    self.connect()
                number += 1
                self.transact(number, self.rng.choices(kinds, weights)[0])
                time.sleep(self.options.think_ms / 1000)
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if not isinstance(error, psycopg2.extensions.TransactionRollbackError):
                    self.drop()
                    time.sleep(0.02)
                else:
                    self.connection.rollback()
        self.resolve_before_leaving()

    def stop(self, *_):
        self.stopping = True

    def connect(self):
        self.connection = psycopg2.connect(self.options.dsn, connect_timeout=2, options="-c search_path=mes")
        if self.in_doubt is not None:
            number, digest, begin = self.in_doubt
            with self.connection.cursor() as cursor:
                cursor.execute("SELECT digest FROM txn_journal WHERE client_no = %s AND txn_no = %s",
                               (self.number, number))
                found = cursor.fetchone()
            self.connection.rollback()
            if found is not None:
                self.record(number, digest, begin, "found")
            self.in_doubt = None

    def drop(self):
        if self.connection is not None:
            try:
                self.connection.close()
            except psycopg2.Error:
                pass  # it is gone either way
        self.connection = None

    def transact(self, number, kind):
        begin = time.time_ns()
        with self.connection.cursor() as cursor:
            txn = Transaction(cursor, self.number, number)
            if not kind(txn, self.rng):
                self.connection.rollback()
                return
            txn.journal(kind.__name__)
        self.in_doubt = (number, txn.digest, begin)
        self.connection.commit()
        self.in_doubt = None
        self.record(number, txn.digest, begin, "returned")

    def record(self, number, digest, begin, how):
        line = f"{self.number} {number} {digest} {begin // 1000} {time.time_ns() // 1000} {how}\n"
        os.write(self.ledger, line.encode())

    def resolve_before_leaving(self):
        """A commit of unknown outcome is looked up once more, so that the ledger is complete when the process ends."""
        if self.in_doubt is not None:
            try:
                self.connect()
            except psycopg2.Error:
                pass  # the database is down: nobody was told, so it is rightly not in the ledger


def run(options):
    clients = [multiprocessing.Process(target=Client(number, options).run) for number in range(1, options.clients + 1)]
    for client in clients:
        client.start()

    def stop(*_):
        for client in clients:
            client.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for client in clients:
        client.join()
    failed = [client.exitcode for client in clients if client.exitcode != 0]
    if failed:
        sys.exit(f"mes: {len(failed)} of {len(clients)} clients ended with an error")
    return 0


# --- master data --------------------------------------------------------------------------------------------------


def load(options):
    rng = random.Random(options.seed)
    connection = psycopg2.connect(options.dsn)
    with connection, connection.cursor() as cursor, open(os.path.join(HERE, "mes_schema.sql"), encoding="utf-8") as ddl:
        cursor.execute(ddl.read())
        machines = [(n, f"{CLASSES[n % 7].upper()}-{n:02d}", CLASSES[n % 7], AREAS[n % 4]) for n in range(1, 29)]
        psycopg2.extras.execute_values(cursor, "INSERT INTO equipment VALUES %s", machines)
        products = [(n, f"HB-{4100 + 7 * n}", f"hub bearing, variant {n}") for n in range(1, 13)]
        psycopg2.extras.execute_values(cursor, "INSERT INTO product VALUES %s", products)
        materials = [(n, f"RM-{300 + n}", "g" if n <= 8 else "pcs") for n in range(1, 17)]
        psycopg2.extras.execute_values(cursor, "INSERT INTO material VALUES %s", materials)
        steps, bill = [], []
        for product, _, _ in products:
            kept = sorted(rng.sample(range(len(STEPS)), rng.randrange(5, 9)))
            for seq, step in enumerate(kept, 1):
                operation, wanted = STEPS[step]
                steps.append((product, seq * 10, operation, wanted, rng.randrange(40, 600), step in (3, 5, 7)))
                if step in (0, 5, 6):
                    for material in rng.sample(range(1, 17), 2):
                        bill.append((product, seq * 10, material, rng.randrange(1, 12)))
        psycopg2.extras.execute_values(cursor, "INSERT INTO routing_step VALUES %s", steps)
        psycopg2.extras.execute_values(cursor, "INSERT INTO bill_of_material VALUES %s", bill)
        number = 0
        for lot in range(options.lots):
            number += 1
            txn = Transaction(cursor, LOADER, number)
            txn.lot(f"LOT-{LOADER:02d}-{number:07d}", lot % 16 + 1, rng.choice(SUPPLIERS), rng.randrange(80_000, 200_000))
            txn.journal("receive_lot")
        for _ in range(options.orders):
            number += 1
            txn = Transaction(cursor, LOADER, number)
            release_order(txn, rng)
            txn.journal("release_order")
    with connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("VACUUM (ANALYZE)")
        cursor.execute("SELECT pg_database_size(current_database())")
        size = cursor.fetchone()[0]
    print(f"{options.orders} work orders, {options.lots} material lots, {len(machines)} machines, {len(products)} routings;"
          f" {size / 2**20:.0f} MiB")
    return 0


# --- the check ----------------------------------------------------------------------------------------------------

BOOKS = {
    "every lot's stock is what was received less what was consumed":
        "SELECT count(*) FROM material_lot l WHERE qty_received - qty_on_hand <>"
        " (SELECT coalesce(sum(qty), 0) FROM lot_consumption c WHERE c.lot_id = l.lot_id)",
    "an order is completed exactly when all of its operations are done":
        "SELECT count(*) FROM work_order w WHERE (status IN ('completed', 'closed')) <>"
        " (SELECT bool_and(o.status = 'done') FROM routing_operation o WHERE o.order_id = w.order_id)",
    "an operation passes on exactly the good pieces of the one before":
        "SELECT count(*) FROM routing_operation o JOIN routing_operation p ON p.order_id = o.order_id AND p.seq = o.seq - 10"
        " WHERE o.status <> 'waiting' AND (p.status <> 'done' OR o.qty_in IS DISTINCT FROM p.qty_good)",
    "every started operation has its start event and every done one its finish event":
        "SELECT count(*) FROM routing_operation o LEFT JOIN (SELECT order_id, seq,"
        " count(*) FILTER (WHERE kind = 'start') AS starts, count(*) FILTER (WHERE kind = 'finish') AS finishes"
        " FROM equipment_event WHERE order_id IS NOT NULL GROUP BY 1, 2) e USING (order_id, seq)"
        " WHERE coalesce(starts, 0) <> (o.status IN ('running', 'done'))::int"
        " OR coalesce(finishes, 0) <> (o.status = 'done')::int",
    "every inspected operation that is done has its three measurements":
        "SELECT count(*) FROM routing_operation o JOIN routing_step s USING (product_id, seq)"
        " WHERE o.status = 'done' AND s.inspected AND 3 <>"
        " (SELECT count(*) FROM quality_measurement q WHERE q.order_id = o.order_id AND q.seq = o.seq)",
    "every journal entry has exactly the rows it says, with the content it says":
        "SELECT count(*) FROM txn_journal j LEFT JOIN (SELECT client_no, txn_no, count(*) AS n,"
        " md5(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\")) AS digest FROM txn_content GROUP BY 1, 2) c"
        " USING (client_no, txn_no) WHERE coalesce(c.n, 0) <> j.rows_written OR c.digest IS DISTINCT FROM j.digest",
}


def read_ledger(path):
    """Entries as (client, txn, digest, begin_us, end_us, how); a line cut short by a kill of the writer is an error."""
    with open(path, encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if len(fields) != 6 or not line.endswith("\n"):
                sys.exit(f"mes: {path}, line {number}: not a ledger entry: {line!r}")
            yield int(fields[0]), int(fields[1]), fields[2], int(fields[3]), int(fields[4]), fields[5]


def check(options):
    # The ledger first, then the database: entries added in between must not look lost.
    entries = list(read_ledger(options.ledger))
    connection = psycopg2.connect(options.dsn, options="-c search_path=mes")
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT client_no, txn_no, digest FROM txn_journal")
        held = {(client, number): digest for client, number, digest in cursor}
        missing = [entry for entry in entries if (entry[0], entry[1]) not in held]
        altered = [entry for entry in entries if held.get((entry[0], entry[1]), entry[2]) != entry[2]]
        unbalanced = {}
        for rule, query in BOOKS.items():
            cursor.execute(query)
            wrong = cursor.fetchone()[0]
            if wrong:
                unbalanced[rule] = wrong
    lost = len(missing) + len(altered)
    for entry in (missing + altered)[:10]:
        print(f"mes: LOST client {entry[0]} transaction {entry[1]}, acknowledged at {entry[4]} us ({entry[5]})",
              file=sys.stderr)
    for rule, wrong in unbalanced.items():
        print(f"mes: BROKEN for {wrong} rows: {rule}", file=sys.stderr)
    report = {"committed": len(entries), "lost": lost, "found_after_reconnect":
              sum(entry[5] == "found" for entry in entries), "journal": len(held), "books_wrong": sum(unbalanced.values()),
              "books": len(BOOKS)}
    print(json.dumps(report))
    return 1 if lost or unbalanced else 0


def gaps(options):
    """Stalls between two wall-clock instants in seconds: the longest transaction that overlaps them, per any client,
    the longest silence of all clients together, the commits in that time, and the time from the first instant to the
    first commit of a transaction begun after `--after`."""
    begin_us, end_us = int(options.begin * 1e6), int(options.end * 1e6)
    entries = sorted(read_ledger(options.ledger), key=lambda entry: entry[4])
    inside = [entry for entry in entries if entry[4] >= begin_us and entry[3] <= end_us]
    times = [entry[4] for entry in inside]
    durations = sorted(entry[4] - entry[3] for entry in inside)
    silences = [late - early for early, late in zip(times, times[1:])]
    after = [entry[4] for entry in entries if options.after is not None and entry[3] >= options.after * 1e6]
    print(json.dumps({
        "commits": len(inside),
        "longest_commit_ms": round(max(durations, default=0) / 1000),
        "median_commit_ms": round(durations[len(durations) // 2] / 1000, 1) if durations else 0,
        "longest_silence_ms": round(max(silences, default=0) / 1000),
        "first_commit_ms": round((min(after) - begin_us) / 1000) if after else None,
    }))
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", default="host=/run/postgresql user=postgres dbname=mes")
    parser.add_argument("--seed", default="plant7")
    commands = parser.add_subparsers(dest="command", required=True)
    loading = commands.add_parser("load")
    loading.add_argument("--orders", type=int, default=600)
    loading.add_argument("--lots", type=int, default=480)
    running = commands.add_parser("run")
    running.add_argument("--clients", type=int, default=6)
    running.add_argument("--think-ms", type=float, default=2)
    checking = commands.add_parser("check")
    gapping = commands.add_parser("gaps")
    gapping.add_argument("--from", dest="begin", type=float, required=True)
    gapping.add_argument("--to", dest="end", type=float, required=True)
    gapping.add_argument("--after", type=float)
    for command in (running, checking, gapping):
        command.add_argument("--ledger", required=True)
    options = parser.parse_args()
    try:
        return {"load": load, "run": run, "check": check, "gaps": gaps}[options.command](options)
    except psycopg2.OperationalError as error:
        print(f"mes: no database: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
