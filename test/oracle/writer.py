"""The oracle writer on another SQLite engine: `python3 writer.py '<WriterSpec as JSON>'`.

Speaks the protocol of protocol.ts and keeps the tables of schema.ts, for the modes `normal`, `hostile` and `flat-out`.
Written on its own from those two descriptions, so that an error in the arithmetic of one side shows on the other.
Needs only the standard library of Python 3.8 with SQLite 3.35 or newer (RETURNING).
"""

import base64
import collections
import hashlib
import json
import os
import random
import select
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback

MODULUS = 2**48
KEYS_PER_WRITER = 2**34
# One wait inside SQLite. Short, so that between two of them acknowledgements go out and commands come in.
BUSY_SLICE_S = 0.025
FLUSH_EVERY_S = 0.020
MAX_CATCH_UP_S = 1.0
VACUUM_PATIENCE_S = 0.5
MAX_HOLDS = 2
FLAT_OUT_ROWS_BYTES = 100_000
BIG_TRANSACTION_PAGES = 1100
BIG_TRANSACTION_MAX_BYTES = 16 * 1024 * 1024

SCHEMA = [
    "CREATE TABLE IF NOT EXISTS oracle_global (id INTEGER PRIMARY KEY CHECK (id = 1), n INTEGER NOT NULL, link INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO oracle_global (id, n, link) VALUES (1, 0, 0)",
    """CREATE TABLE IF NOT EXISTS oracle_log (
     n INTEGER PRIMARY KEY, writer INTEGER NOT NULL, seq INTEGER NOT NULL, at_ms INTEGER NOT NULL,
     parts INTEGER NOT NULL, digest INTEGER NOT NULL, next_id INTEGER NOT NULL, seed INTEGER NOT NULL,
     link INTEGER NOT NULL, UNIQUE (writer, seq))""",
    """CREATE TABLE IF NOT EXISTS oracle_item (
     key INTEGER PRIMARY KEY, seq INTEGER NOT NULL, tag TEXT NOT NULL, body, hash INTEGER NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS oracle_item_tag ON oracle_item (tag)",
]

WEIGHTS = {
    "normal": {"tiny": 30, "small": 50, "batch": 3, "savepoint": 6, "rollback": 4, "table": 4, "index": 2, "shrink": 0.2},
    "hostile": {
        "tiny": 30, "small": 30, "batch": 4, "savepoint": 12, "rollback": 10, "table": 5, "index": 3, "big": 0.7, "shrink": 1,
    },
    "flat-out": {"tiny": 1},
}


def first_48_bits(*pieces):
    hasher = hashlib.sha1()
    for piece in pieces:
        hasher.update(piece.encode() if isinstance(piece, str) else piece)
    return int.from_bytes(hasher.digest()[:6], "big")


def row_hash(table, key, seq, tag, body):
    kind = "n" if body is None else "t" if isinstance(body, str) else "b"
    return first_48_bits(f"{table}|{key}|{seq}|{tag}|{kind}|", b"" if body is None else body)


def name_hash(name):
    return first_48_bits(f"exists|{name}|")


def item_key(writer, number):
    within = number if number % 2 == 0 else 2**33 + (number * 0x9E3779B1) % 2**32
    return writer * KEYS_PER_WRITER + within


def is_busy(error):
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def now_ms():
    return time.time_ns() // 1_000_000


def leaves_frames_without_checksum():
    """Whether this engine commits WAL frames whose salts and checksums are zero, which recovery takes for the end.

    SQLite 3.40.1 does. A spilled page that is spilled again overwrites its frame, and all later frames of the
    transaction are written without salts and checksums, to be filled in at COMMIT from the overwritten frame on. Its
    ROLLBACK TO forgets to reset where that begins, so frames that then take the place of rolled back ones before that
    point stay as they are. Connections do not notice, since the WAL index is right; after a crash the commits are lost.
    """
    with tempfile.TemporaryDirectory(prefix="bakelite-probe-") as directory:
        path = os.path.join(directory, "probe.db")
        db = open_connection(path)
        for sql in [
            "PRAGMA journal_mode=WAL",
            "PRAGMA wal_autocheckpoint=0",
            "PRAGMA synchronous=OFF",
            "PRAGMA cache_size=10",
            "CREATE TABLE t (id INTEGER PRIMARY KEY, body)",
            "WITH RECURSIVE c (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM c WHERE i < 80) INSERT INTO t SELECT i, zeroblob(3000) FROM c",
            "BEGIN",
            "UPDATE t SET body = randomblob(3000) WHERE id = 80",
            "SAVEPOINT s",
            "UPDATE t SET body = randomblob(3000) WHERE id < 60",
            "UPDATE t SET body = randomblob(3000) WHERE id BETWEEN 30 AND 50",
            "ROLLBACK TO s",
            "UPDATE t SET body = randomblob(3000) WHERE id > 60",
            "COMMIT",
        ]:
            db.execute(sql).fetchall()
        copy = os.path.join(directory, "copy.db")
        for suffix in ["", "-wal"]:
            shutil.copyfile(path + suffix, copy + suffix)
        recovered = open_connection(copy)
        sql = "SELECT count(*) FROM t WHERE id > 60 AND body <> zeroblob(3000)"
        lost = db.execute(sql).fetchone() != recovered.execute(sql).fetchone()
        recovered.close()
        db.close()
        return lost


class Channel:
    """Standard input and output. What the pipe does not take is kept, so a parent that does not read never blocks us."""

    def __init__(self):
        self.commands = collections.deque()
        self.ended = False
        self._partial = b""
        self._unsent = bytearray()
        self._flushed_at = time.monotonic()
        os.set_blocking(1, False)

    def acknowledge(self, n, writer, seq, before_ms, after_ms):
        self._unsent += f"A {n} {writer} {seq} {before_ms} {after_ms}\n".encode()
        if time.monotonic() - self._flushed_at >= FLUSH_EVERY_S:
            self.breathe()

    def say(self, letter, value):
        self._unsent += f"{letter} {json.dumps(value)}\n".encode()
        self.flush()

    def flush(self):
        self._flushed_at = time.monotonic()
        while self._unsent:
            try:
                del self._unsent[: os.write(1, self._unsent)]
            except BlockingIOError:
                return

    def breathe(self, timeout_s=0.0):
        """Lets output out and commands in; waits at most so long for a command."""
        self.flush()
        end = time.monotonic() + timeout_s
        while not self.ended and not self.commands:
            left = max(0.0, end - time.monotonic())
            readable, _, _ = select.select([0], [1] if self._unsent else [], [], left)
            if readable:
                self._read()
            elif left == 0.0:
                return
            self.flush()

    def end(self):
        os.set_blocking(1, True)
        self.flush()

    def _read(self):
        chunk = os.read(0, 65536)
        self.ended = chunk == b""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self.commands.extend(line.decode().strip() for line in lines)


class State:
    """What a writer knows of its own part of the database; put back when a transaction or savepoint is rolled back."""

    def __init__(self, seq=0, parts=0, digest=0, next_id=0, content_bytes=0, tables=(), indexes=()):
        self.seq, self.parts, self.digest, self.next_id = seq, parts, digest, next_id
        self.content_bytes, self.tables, self.indexes = content_bytes, tuple(tables), tuple(indexes)

    def copy(self):
        return State(self.seq, self.parts, self.digest, self.next_id, self.content_bytes, self.tables, self.indexes)

    def add(self, part_hash, content_bytes):
        self.parts += 1
        self.digest = (self.digest + part_hash) % MODULUS
        self.content_bytes += content_bytes

    def remove(self, part_hash, content_bytes):
        self.parts -= 1
        self.digest = (self.digest - part_hash) % MODULUS
        self.content_bytes -= content_bytes


def open_connection(path):
    return sqlite3.connect(path, timeout=BUSY_SLICE_S, isolation_level=None)


class Store:
    """Numbered transactions over rows, extra tables and indexes that this writer owns."""

    def __init__(self, spec, rng, channel):
        self.spec, self.rng, self.channel = spec, rng, channel
        self.id = spec["id"]
        self.low, self.high = self.id * KEYS_PER_WRITER, (self.id + 1) * KEYS_PER_WRITER
        pool = rng.getrandbits(8 * 1024 * 1024).to_bytes(1024 * 1024, "big")
        self.blob_pool, self.text_pool = pool, base64.b64encode(pool[: 256 * 1024]).decode()
        self.db, self.state = None, State()
        self.connect()

    def connect(self):
        if self.db is not None:
            return
        db = open_connection(self.spec["database"])
        try:
            self.state = self.retry_busy(lambda: self._set_up(db))
        except BaseException:
            db.close()
            raise
        self.db = db

    def disconnect(self):
        if self.db is not None:
            self.db.close()
        self.db = None

    def retry_busy(self, action, timeout_s=None):
        end = time.monotonic() + (self.spec["busyTimeoutMs"] / 1000 if timeout_s is None else timeout_s)
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= end:
                    raise
            self.channel.flush()

    def _set_up(self, db):
        spec = self.spec
        for pragma, value in [
            ("page_size", spec["pageSizeBytes"]),
            ("auto_vacuum", spec["autoVacuum"]),
            ("journal_mode", "WAL"),
            ("synchronous", spec["synchronous"]),
            ("wal_autocheckpoint", spec["walAutocheckpoint"]),
            ("cache_size", spec["cacheSizePages"]),
        ]:
            db.execute(f"PRAGMA {pragma}={value}").fetchall()
        (present,) = db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'oracle_item_tag'").fetchone()
        if not present:
            db.execute("BEGIN IMMEDIATE")
            for sql in SCHEMA:
                db.execute(sql)
            db.execute("COMMIT")
        last = db.execute(
            "SELECT seq, parts, digest, next_id FROM oracle_log WHERE writer = ? ORDER BY seq DESC LIMIT 1", (self.id,)
        ).fetchone()
        (content,) = db.execute(
            "SELECT coalesce(sum(length(body)), 0) FROM oracle_item WHERE key >= ? AND key < ?", (self.low, self.high)
        ).fetchone()
        return State(*(last or (0, 0, 0, 0)), content, self._owned(db, "table", "x"), self._owned(db, "index", "ix"))

    def _owned(self, db, kind, letters):
        prefix = f"oracle_{letters}_{self.id}_"
        rows = db.execute("SELECT name FROM sqlite_schema WHERE type = ?", (kind,)).fetchall()
        return [int(name[len(prefix) :]) for (name,) in rows if name.startswith(prefix)]

    def commit(self, work):
        self.retry_busy(lambda: self.db.execute("BEGIN IMMEDIATE"))
        saved = self.state.copy()
        try:
            work()
            state = self.state
            state.seq += 1
            n, link = self.db.execute("SELECT n, link FROM oracle_global WHERE id = 1").fetchone()
            n, at_ms = n + 1, now_ms()
            link = first_48_bits(f"{link}|{n}|{self.id}|{state.seq}|{at_ms}|{state.parts}|{state.digest}")
            self.db.execute("UPDATE oracle_global SET n = ?, link = ? WHERE id = 1", (n, link))
            self.db.execute(
                "INSERT INTO oracle_log (n, writer, seq, at_ms, parts, digest, next_id, seed, link)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (n, self.id, state.seq, at_ms, state.parts, state.digest, state.next_id, self.spec["seed"], link),
            )
            self.db.execute("COMMIT")
            return n, self.id, state.seq, at_ms, now_ms()
        except BaseException:
            self.state = saved
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def roll_back(self, work):
        self.retry_busy(lambda: self.db.execute("BEGIN IMMEDIATE"))
        saved = self.state.copy()
        try:
            work()
        finally:
            self.state = saved
            self.db.execute("ROLLBACK")

    def savepoint(self, keep, work):
        self.db.execute("SAVEPOINT step")
        saved = self.state.copy()
        work()
        if not keep:
            self.db.execute("ROLLBACK TO step")
            self.state = saved
        self.db.execute("RELEASE step")

    def insert_item(self, size):
        self._insert("oracle_item", item_key(self.id, self._take_id()), size)

    def update_item(self, size):
        row = self._random_item()
        if row is None:
            return False
        key, old_hash, old_bytes = row
        seq, tag, body, new_hash = self._content("oracle_item", key, size)
        self.db.execute("UPDATE oracle_item SET seq = ?, tag = ?, body = ?, hash = ? WHERE key = ?", (seq, tag, body, new_hash, key))
        self.state.remove(old_hash, old_bytes)
        self.state.add(new_hash, len(body or ""))
        return True

    def delete_item(self):
        row = self._random_item()
        if row is None:
            return False
        key, old_hash, old_bytes = row
        self.db.execute("DELETE FROM oracle_item WHERE key = ?", (key,))
        self.state.remove(old_hash, old_bytes)
        return True

    def delete_many(self, fraction):
        bounds = (self.low, self.high)
        (count,) = self.db.execute("SELECT count(*) FROM oracle_item WHERE key >= ? AND key < ?", bounds).fetchone()
        deleted = self.db.execute(
            "DELETE FROM oracle_item WHERE key IN (SELECT key FROM oracle_item WHERE key >= ? AND key < ? ORDER BY key LIMIT ?)"
            " RETURNING hash, coalesce(length(body), 0)",
            (*bounds, int(count * fraction)),
        ).fetchall()
        for old_hash, old_bytes in deleted:
            self.state.remove(old_hash, old_bytes)

    def create_table(self):
        k = self._take_id()
        name = f"oracle_x_{self.id}_{k}"
        suffix = " WITHOUT ROWID" if k % 2 == 0 else ""
        columns = "key INTEGER PRIMARY KEY, seq INTEGER NOT NULL, tag TEXT NOT NULL UNIQUE, body, hash INTEGER NOT NULL"
        self.db.execute(f"CREATE TABLE {name} ({columns}){suffix}")
        self.state.tables += (k,)
        self.state.add(name_hash(name), 0)
        return k

    def insert_extra(self, k, size):
        self._insert(f"oracle_x_{self.id}_{k}", self._take_id(), size)

    def drop_table(self, k):
        name = f"oracle_x_{self.id}_{k}"
        for old_hash, old_bytes in self.db.execute(f"SELECT hash, coalesce(length(body), 0) FROM {name}").fetchall():
            self.state.remove(old_hash, old_bytes)
        self.db.execute(f"DROP TABLE {name}")
        self.state.remove(name_hash(name), 0)
        self.state.tables = tuple(other for other in self.state.tables if other != k)

    def create_index(self):
        k = self._take_id()
        name = f"oracle_ix_{self.id}_{k}"
        columns = "tag, seq" if k % 2 == 0 else "seq"
        self.db.execute(f"CREATE INDEX {name} ON oracle_item ({columns}) WHERE key >= {self.low} AND key < {self.high}")
        self.state.indexes += (k,)
        self.state.add(name_hash(name), 0)

    def drop_index(self, k):
        name = f"oracle_ix_{self.id}_{k}"
        self.db.execute(f"DROP INDEX {name}")
        self.state.remove(name_hash(name), 0)
        self.state.indexes = tuple(other for other in self.state.indexes if other != k)

    def _insert(self, table, key, size):
        seq, tag, body, new_hash = self._content(table, key, size)
        self.db.execute(f"INSERT INTO {table} (key, seq, tag, body, hash) VALUES (?, ?, ?, ?, ?)", (key, seq, tag, body, new_hash))
        self.state.add(new_hash, len(body or ""))

    def _content(self, table, key, size):
        seq = self.state.seq + 1
        tag = f"{self.rng.randint(0, 0xFFFF):x}-{self.id}-{key}"
        body = self._body(size)
        return seq, tag, body, row_hash(table, key, seq, tag, body)

    def _body(self, size):
        if self.rng.random() < 0.02:
            return None
        pool = self.text_pool if self.rng.random() < 0.3 and size < len(self.text_pool) else self.blob_pool
        size = min(size, len(pool))
        start = self.rng.randint(0, len(pool) - size)
        return pool[start : start + size]

    def _random_item(self):
        near = item_key(self.id, self.rng.randint(0, max(0, self.state.next_id - 1)))
        sql = "SELECT key, hash, coalesce(length(body), 0) FROM oracle_item WHERE key >= ? AND key < ? ORDER BY key LIMIT 1"
        return self.db.execute(sql, (near, self.high)).fetchone() or self.db.execute(sql, (self.low, self.high)).fetchone()

    def _take_id(self):
        self.state.next_id += 1
        return self.state.next_id - 1


class Workload:
    """Chooses and carries out one transaction after another."""

    def __init__(self, store, rng):
        self.store, self.rng, self.spec = store, rng, store.spec
        weights = WEIGHTS[self.spec["mode"]]
        self.shapes, self.weights = list(weights), list(weights.values())
        self.rollbacks = 0
        self.spills_in_savepoints = self.spec["savepointSpills"] == "always" or not leaves_frames_without_checksum()

    def step(self):
        """One commit; None when the transaction chosen was one that is rolled back."""
        (shape,) = self.rng.choices(self.shapes, self.weights)
        if shape == "rollback":
            self.rollbacks += 1
            self.store.roll_back(lambda: self._change_rows(self._spill_rows() if self.rng.random() < 0.7 else 3))
            return None
        if shape != "savepoint" or self.spills_in_savepoints:
            return self.store.commit(lambda: self._perform(shape))
        self.store.db.execute("PRAGMA cache_spill=OFF")
        try:
            return self.store.commit(lambda: self._perform(shape))
        finally:
            self.store.db.execute("PRAGMA cache_spill=ON")

    def _perform(self, shape):
        rng = self.rng
        if shape == "tiny":
            self._change_rows(1, self.spec["mode"] == "flat-out")
        elif shape == "small":
            self._change_rows(rng.randint(1, 6))
        elif shape == "batch":
            self._change_rows(rng.randint(50, 300), True)
        elif shape == "savepoint":
            self._use_savepoints()
        elif shape == "big":
            self._grow_by(min(BIG_TRANSACTION_PAGES * self.spec["pageSizeBytes"], BIG_TRANSACTION_MAX_BYTES))
        elif shape == "shrink":
            self.store.delete_many(rng.choice([0.5, 0.9, 1]))
        elif shape == "table":
            self._change_tables()
        elif shape == "index":
            self._change_indexes()

    def _change_rows(self, count, tiny=False):
        """Inserts, updates and deletes; the balance keeps this writer's content near its target."""
        store, rng = self.store, self.rng
        target = FLAT_OUT_ROWS_BYTES if self.spec["mode"] == "flat-out" else self.spec["targetBytes"]
        for _ in range(count):
            size = rng.randint(10, 100) if tiny else self._row_size()
            choice = rng.random()
            if choice < 0.45:
                done = store.update_item(size)
            else:
                insert_below = 0.55 if store.state.content_bytes > target else 0.85
                done = store.delete_item() if choice >= insert_below else False
            if not done:
                store.insert_item(size)

    def _use_savepoints(self):
        rng = self.rng
        self._change_rows(rng.randint(1, 3))
        for _ in range(rng.randint(1, 3)):
            keep = rng.random() >= 0.7
            self.store.savepoint(keep, lambda: self._inside_savepoint(keep))
            self._change_rows(rng.randint(0, 3))

    def _inside_savepoint(self, keep):
        self._change_rows(self._spill_rows() if not keep and self.rng.random() < 0.7 else 3)
        if self.rng.random() < 0.3:
            self.store.savepoint(False, lambda: self._change_rows(self._spill_rows()))

    def _spill_rows(self):
        """So many changed rows dirty more pages than the cache holds, and the overflow goes into the WAL uncommitted."""
        return min(self.spec["cacheSizePages"] * 2, 200)

    def _grow_by(self, total_bytes):
        row_bytes = max(20_000, self.spec["pageSizeBytes"] * 2)
        for _ in range(0, total_bytes, row_bytes):
            self.store.insert_item(row_bytes)

    def _change_tables(self):
        store, rng = self.store, self.rng
        tables, choice = store.state.tables, rng.random()
        if not tables or (choice < 0.3 and len(tables) < 4):
            k = store.create_table()
            for _ in range(rng.randint(0, 20)):
                store.insert_extra(k, self._row_size())
        elif choice < 0.55:
            store.drop_table(rng.choice(tables))
        else:
            for _ in range(rng.randint(1, 10)):
                store.insert_extra(rng.choice(tables), self._row_size())

    def _change_indexes(self):
        indexes = self.store.state.indexes
        if not indexes or (len(indexes) < 3 and self.rng.random() < 0.5):
            self.store.create_index()
        else:
            self.store.drop_index(self.rng.choice(indexes))

    def _row_size(self):
        """Mostly small; one in ten needs overflow pages, one in a hundred many of them."""
        choice, rng = self.rng.random(), self.rng
        if choice < 0.6:
            return rng.randint(10, 200)
        if choice < 0.9:
            return rng.randint(200, 2000)
        return rng.randint(2000, 20_000) if choice < 0.99 else rng.randint(20_000, 100_000)


class Hostility:
    """What a hostile application does between its commits. Nothing here changes what the database means."""

    def __init__(self, store, rng):
        self.store, self.rng, self.spec = store, rng, store.spec
        self.holds, self.counts = [], collections.Counter()

    def act(self):
        self._end_holds(time.monotonic())
        choice, rng = self.rng.random(), self.rng
        if choice < 0.16:
            self._checkpoint()
        elif choice < 0.20:
            self._once("autocheckpoint", f"PRAGMA wal_autocheckpoint={rng.randint(1, 10)}")
        elif choice < 0.24:
            self._once("incremental vacuum", f"PRAGMA incremental_vacuum({rng.randint(1, 200)})")
        elif choice < 0.25:
            self._vacuum()
        elif choice < 0.28:
            self._reconnect()
        elif choice < 0.32:
            self._hold()
        elif choice < 0.34:
            self._once("cache size", f"PRAGMA cache_size={rng.randint(3, 40)}")

    def rest(self):
        self._end_holds(float("inf"))

    def _checkpoint(self):
        mode = self.rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        self._once("busy timeout", f"PRAGMA busy_timeout={self.rng.choice([0, 5, 100])}")
        self._once(f"checkpoint {mode}", f"PRAGMA wal_checkpoint({mode})")
        self._once("busy timeout", f"PRAGMA busy_timeout={int(BUSY_SLICE_S * 1000)}")

    def _vacuum(self):
        self.counts["vacuum"] += 1
        try:
            self.store.retry_busy(lambda: self.store.db.execute("VACUUM"), VACUUM_PATIENCE_S)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise

    def _reconnect(self):
        self.counts["reconnect"] += 1
        self.rest()
        self.store.disconnect()
        self.store.connect()
        self._once("autocheckpoint", f"PRAGMA wal_autocheckpoint={self.rng.randint(1, 10)}")

    def _hold(self):
        """A read transaction on a connection of its own, kept while this writer and others go on."""
        if len(self.holds) >= MAX_HOLDS:
            return
        self.counts["hold"] += 1
        connection = open_connection(self.spec["database"])
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM oracle_item").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if not is_busy(error):
                raise
            return
        self.holds.append((connection, time.monotonic() + self.rng.randint(5, self.spec["maxHoldMs"]) / 1000))

    def _end_holds(self, now):
        for hold in [hold for hold in self.holds if hold[1] <= now]:
            self.holds.remove(hold)
            hold[0].execute("COMMIT")
            hold[0].close()

    def _once(self, what, sql):
        self.counts[what] += 1
        try:
            self.store.db.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise


class Writer:
    """One run of the program, from ready to stopped."""

    def __init__(self, spec, channel):
        def rng(label):
            return random.Random(f"{spec['seed']}/{spec['id']}/{label}")

        self.spec, self.channel = spec, channel
        self.store = Store(spec, rng("store"), channel)
        self.workload = Workload(self.store, rng("workload"))
        self.hostility = Hostility(self.store, rng("hostility"))
        self.paused, self.stopping, self.rate = spec["startPaused"], False, spec["rate"]
        self.commits, self.started = 0, time.monotonic()
        self.next_at = time.monotonic()

    def run(self):
        while not self.stopping:
            self.channel.breathe(1.0 if self.paused else 0.0)
            self._obey_all()
            if self.stopping or self.paused:
                continue
            early = self.next_at - time.monotonic()
            if early > 0:
                self.channel.breathe(early)
                continue
            if self.spec["mode"] == "hostile":
                self.hostility.act()
            self._commit_once()
            now = time.monotonic()
            self.next_at = now if self.rate == 0 else max(self.next_at, now - MAX_CATCH_UP_S) + 1 / self.rate
        self.hostility.rest()
        self.store.disconnect()
        self.channel.say("I", {"state": "stopped", **self._statistics()})

    def _commit_once(self):
        ack = self.workload.step()
        if ack is not None:
            self.commits += 1
            self.channel.acknowledge(*ack)
        return ack

    def _obey_all(self):
        while self.channel.commands and not self.stopping:
            line = self.channel.commands.popleft()
            try:
                reply = self._obey(*line.partition(" ")[::2])
            except Exception as error:
                reply = {"error": str(error), "busy": is_busy(error)}
            self.channel.say("R", reply)
        self.stopping = self.stopping or self.channel.ended

    def _obey(self, verb, argument):
        if verb == "pause":
            self.paused = True
            self.hostility.rest()
            return self._statistics()
        if verb == "resume":
            self.store.connect()
            self.paused, self.next_at = False, time.monotonic()
            return {}
        if verb == "rate":
            self.rate, self.next_at = float(argument), time.monotonic()
            return {}
        if verb == "burst":
            return self._burst(int(argument))
        if verb == "sql":
            self.store.connect()
            return {"rows": self.store.retry_busy(lambda: self._rows(argument))}
        if verb == "checkpoint":
            return self._checkpoint(*argument.upper().split())
        if verb == "disconnect":
            self.paused = True
            self.hostility.rest()
            self.store.disconnect()
            return {}
        if verb == "connect":
            self.store.connect()
            return {}
        if verb == "statistics":
            return self._statistics()
        if verb == "stop":
            self.stopping = True
            return {}
        raise ValueError(f"no such command: {verb} {argument}")

    def _checkpoint(self, mode, busy_timeout_ms=int(BUSY_SLICE_S * 1000)):
        if mode not in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
            raise ValueError(f"no such checkpoint: {mode}")
        self.store.connect()
        self.store.db.execute(f"PRAGMA busy_timeout={int(busy_timeout_ms)}")
        busy, log, checkpointed = self.store.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self.store.db.execute(f"PRAGMA busy_timeout={int(BUSY_SLICE_S * 1000)}")
        return {"busy": busy != 0, "log": log, "checkpointed": checkpointed}

    def _burst(self, count):
        self.store.connect()
        last, done = None, 0
        while done < count:
            ack = self._commit_once()
            if ack is not None:
                last, done = ack, done + 1
        return {} if last is None else {"n": last[0], "seq": last[2]}

    def _rows(self, sql):
        cursor = self.store.db.execute(sql)
        names = [column[0] for column in cursor.description or []]
        rows = [[value.hex() if isinstance(value, bytes) else value for value in row] for row in cursor.fetchall()]
        return [dict(zip(names, row)) for row in rows]

    def _statistics(self):
        return {
            "commits": self.commits,
            "rollbacks": self.workload.rollbacks,
            "snapshots": 0,
            "exclusivePhases": 0,
            "hostile": dict(self.hostility.counts),
            "seconds": time.monotonic() - self.started,
        }


def main():
    channel = Channel()
    try:
        spec = json.loads(sys.argv[1])
        writer = Writer(spec, channel)
        engine = f"python sqlite3 {sqlite3.sqlite_version}"
        spills = writer.workload.spills_in_savepoints
        channel.say("I", {"state": "ready", "engine": engine, "spillsInSavepoints": spills, "spec": spec})
        writer.run()
        status = 0
    except Exception:
        channel.say("E", traceback.format_exc())
        status = 1
    channel.end()
    sys.exit(status)


main()
