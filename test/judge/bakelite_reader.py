#!/usr/bin/env python3
"""An independent reader of bakelite's storage format, version 1.

Written from docs/storage-format.md alone, to judge what the program itself
writes.  Section numbers in comments and messages are those of that page.
It needs Python 3.11 and the system's libzstd.so.1, nothing else.

    bakelite_reader.py list    DIR --database NAME [KEY]...
    bakelite_reader.py verify  DIR --database NAME [KEY]...
    bakelite_reader.py restore DIR --database NAME [KEY]...
                       (--index N | --latest | --at-ms T) --output FILE [--force]

DIR is the destination's prefix: the objects are in DIR/NAME/.  KEY is --key-hex
with 64 hex digits or --key-file with a file of the key as text.  Every command
prints one JSON document on standard output.

Exit codes: 0 done and in order; 1 there are problems, or the state cannot be
restored; 2 the command could not be carried out at all (arguments, folder).
"""

import argparse
import ctypes
import hashlib
import heapq
import hmac
import json
import os
import re
import struct
import sys
import tempfile
from array import array
from collections import defaultdict, namedtuple

MAGIC, END_MAGIC = b"bakelite", b"etilekab"
FOOTER_SIZE = 72
MAX_HEADER_JSON = 65_536
DATA, INDEX, TRAILER = 0, 1, 2
KIND_NAMES = {DATA: "data", INDEX: "index", TRAILER: "trailer"}
RAW_LIMITS = {DATA: 262_144, INDEX: 1_048_576, TRAILER: 67_108_864}
DATA_CHUNKS_PER_INDEX = 64
FRAME_HEADER, TAG_SIZE = 8, 16
MAX_INDEX = 10**16 - 1
READ_SIZE = 1 << 20


class Damage(Exception):
    """An object does not hold what the format says it should."""


class NoKey(Damage):
    """An object is sealed with a key that was not given."""


class NotRestorable(Exception):
    """The state asked for cannot be had from this replica."""


class UsageError(Exception):
    """The command cannot be carried out as it was given."""


# --- ChaCha20, Poly1305, HKDF -----------------------------------------------

_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
             (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _twenty_rounds(words, mask):
    """ChaCha's 20 rounds, on any number of blocks at once.

    Each of the 16 words is a Python integer of 64-bit lanes, one lane for each
    block, the 32-bit word in the lane's lower half; `mask` selects those
    halves.  Big-integer arithmetic then works on all blocks in one step.
    """
    words = list(words)
    for _ in range(10):
        for i, j, k, m in _QUARTERS:
            a, b, c, d = words[i], words[j], words[k], words[m]
            a = (a + b) & mask
            d ^= a
            d = (d << 16 | d >> 16) & mask
            c = (c + d) & mask
            b ^= c
            b = (b << 12 | b >> 20) & mask
            a = (a + b) & mask
            d ^= a
            d = (d << 8 | d >> 24) & mask
            c = (c + d) & mask
            b ^= c
            b = (b << 7 | b >> 25) & mask
            words[i], words[j], words[k], words[m] = a, b, c, d
    return words


def chacha20_stream(key, counter, nonce, length):
    """`length` bytes of ChaCha20 key stream (RFC 8439, 12-byte nonce)."""
    blocks = -(-length // 64)
    if not blocks:
        return b""
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * blocks, "little")
    mask = ones * 0xFFFFFFFF
    start = [word * ones for word in _SIGMA + struct.unpack("<8I", key)]
    numbers = struct.pack(f"<{blocks}Q", *range(counter, counter + blocks))
    start.append(int.from_bytes(numbers, "little") & mask)
    start += [word * ones for word in struct.unpack("<3I", nonce)]
    words = [(a + b) & mask for a, b in zip(_twenty_rounds(start, mask), start)]
    out = array("Q", bytes(64 * blocks))
    for i in range(8):
        pair = words[2 * i] | words[2 * i + 1] << 32
        out[i::8] = array("Q", pair.to_bytes(8 * blocks, "little"))
    return out.tobytes()[:length]


def hchacha20(key, nonce):
    """The 32-byte subkey of a key and a 16-byte nonce."""
    start = _SIGMA + struct.unpack("<8I", key) + struct.unpack("<4I", nonce)
    words = _twenty_rounds(start, 0xFFFFFFFF)
    return struct.pack("<8I", *words[:4], *words[12:])


def poly1305(key, message):
    """The 16-byte Poly1305 tag of a message under a one-time key."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    prime, high, total, read = (1 << 130) - 5, 1 << 128, 0, int.from_bytes
    whole = len(message) & ~15
    for i in range(0, whole, 16):
        total = (total + read(message[i:i + 16], "little") + high) * r % prime
    if whole < len(message):
        total = (total + read(message[whole:] + b"\1", "little")) * r % prime
    total += read(key[16:], "little")
    return (total & (high - 1)).to_bytes(16, "little")


def _aead_tag(key, nonce, ciphertext, associated):
    """The tag of ChaCha20-Poly1305 (RFC 8439, section 2.8)."""
    return poly1305(chacha20_stream(key, 0, nonce, 32), b"".join((
        associated, bytes(-len(associated) % 16),
        ciphertext, bytes(-len(ciphertext) % 16),
        struct.pack("<QQ", len(associated), len(ciphertext)))))


def chacha20_poly1305_open(key, nonce, sealed, associated):
    """The plaintext, or None when the tag is not that of this key and data."""
    if len(sealed) < TAG_SIZE:
        return None
    ciphertext, tag = sealed[:-TAG_SIZE], sealed[-TAG_SIZE:]
    expected = _aead_tag(key, nonce, ciphertext, associated)
    if not hmac.compare_digest(tag, expected):
        return None
    stream = chacha20_stream(key, 1, nonce, len(ciphertext))
    clear = int.from_bytes(ciphertext, "little") ^ int.from_bytes(stream, "little")
    return clear.to_bytes(len(ciphertext), "little")


def xchacha20_poly1305_open(key, nonce, sealed, associated):
    """The same with a 24-byte nonce (draft-irtf-cfrg-xchacha-03)."""
    return chacha20_poly1305_open(hchacha20(key, nonce[:16]),
                                  bytes(4) + nonce[16:], sealed, associated)


def hkdf_sha256(secret, info, length, salt=b""):
    """HKDF-SHA-256 (RFC 5869); an empty salt is the same as none."""
    inner = hmac.digest(salt or bytes(32), secret, "sha256")
    out = block = b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(inner, block + info + bytes([number]), "sha256")
        out += block
    return out[:length]


class Key:
    """A 32-byte key and what section 5 derives from it."""

    PREFIX, DIGITS = "BAKELITE-KEY-V1-", "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

    @classmethod
    def from_text(cls, text):
        """The key of a key file: 56 digits of Crockford's base 32, 3 bytes of checksum."""
        text = text.strip().upper()
        if not text.startswith(cls.PREFIX):
            raise UsageError(f"a key begins with {cls.PREFIX}")
        digits = text[len(cls.PREFIX):].replace("-", "").translate(str.maketrans("ILO", "110"))
        if len(digits) != 56 or not set(digits) <= set(cls.DIGITS):
            raise UsageError("a key has 56 digits of Crockford's base 32 behind its prefix")
        number = 0
        for digit in digits:
            number = number << 5 | cls.DIGITS.index(digit)
        raw = number.to_bytes(35, "big")
        if hashlib.sha256(raw[:32]).digest()[:3] != raw[32:]:
            raise UsageError("the key's checksum is wrong: it is mistyped")
        return cls(raw[:32])

    def __init__(self, raw):
        self.sealing = hkdf_sha256(raw, b"bakelite v1 seal", 32)
        self.fingerprint = hkdf_sha256(raw, b"bakelite v1 fingerprint", 4).hex()


# --- zstd --------------------------------------------------------------------

class Zstd:
    """One-shot zstd decompression by the system's library."""

    _UNKNOWN, _INVALID = (1 << 64) - 1, (1 << 64) - 2
    _lib = None

    @classmethod
    def _load(cls):
        if cls._lib is None:
            try:
                lib = ctypes.CDLL("libzstd.so.1")
            except OSError as error:
                raise UsageError(f"libzstd.so.1 cannot be loaded: {error}") from error
            lib.ZSTD_getFrameContentSize.restype = ctypes.c_ulonglong
            lib.ZSTD_getFrameContentSize.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
            lib.ZSTD_findFrameCompressedSize.restype = ctypes.c_size_t
            lib.ZSTD_findFrameCompressedSize.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
            lib.ZSTD_isError.restype = ctypes.c_uint
            lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
            lib.ZSTD_decompress.restype = ctypes.c_size_t
            lib.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                                            ctypes.c_char_p, ctypes.c_size_t]
            cls._lib = lib
        return cls._lib

    @classmethod
    def decompress(cls, payload, raw_length):
        """Exactly `raw_length` bytes out of exactly one, smaller frame, or Damage."""
        lib = cls._load()
        if len(payload) >= raw_length:
            raise Damage("zstd frame is not smaller than what it holds")
        claimed = lib.ZSTD_getFrameContentSize(payload, len(payload))
        if claimed == cls._INVALID:
            raise Damage("payload is not a zstd frame")
        if claimed == cls._UNKNOWN:
            raise Damage("zstd frame does not declare its content size")
        if claimed != raw_length:
            raise Damage(f"zstd frame holds {claimed} bytes, not {raw_length}")
        used = lib.ZSTD_findFrameCompressedSize(payload, len(payload))
        if lib.ZSTD_isError(used) or used != len(payload):
            raise Damage("payload is not exactly one zstd frame")
        out = ctypes.create_string_buffer(raw_length)
        got = lib.ZSTD_decompress(out, raw_length, payload, len(payload))
        if lib.ZSTD_isError(got) or got != raw_length:
            raise Damage("zstd frame does not decompress to its raw length")
        return ctypes.string_at(out, raw_length)


# --- names, fields, small helpers ------------------------------------------------

Name = namedtuple("Name", "text kind level first last seal")

_DATABASE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_FULL = re.compile(r"full/([0-9]{16})\.(p|[0-9a-f]{8})")
_MARK = re.compile(r"keep/([0-9]{16})\.(p|[0-9a-f]{8})")
_CHANGE_SET = re.compile(r"L([0-9])/([0-9]{16})-([0-9]{16})\.(p|[0-9a-f]{8})")


def parse_name(text):
    """The meaning of a name below the database's folder (section 2), or None."""
    if text in ("CURRENT", "manifest"):
        return Name(text, text.lower(), 0, None, None, None)
    match = _FULL.fullmatch(text)
    if match and int(match[1]) > 0:
        return Name(text, "full", 0, int(match[1]), int(match[1]), match[2])
    match = _MARK.fullmatch(text)
    if match and int(match[1]) > 0:
        return Name(text, "mark", 0, int(match[1]), int(match[1]), match[2])
    match = _CHANGE_SET.fullmatch(text)
    if match:
        level, first, last = int(match[1]), int(match[2]), int(match[3])
        if 0 < first <= last:
            return Name(text, "change-set", level, first, last, match[4])
    return None


def lock_page(page_size):
    """The number of the page SQLite never uses."""
    return (1 << 30) // page_size + 1


def pages_expected(size_pages, page_size):
    """How many pages a complete state of this size has, less the lock page."""
    return size_pages - (size_pages >= lock_page(page_size))


def page_hash(number, image):
    """The 16-byte hash of a page (section 3.2)."""
    return hashlib.sha256(number.to_bytes(4, "big") + image).digest()[:16]


def cut_hash(data):
    """SHA-256 cut to 16 bytes."""
    return hashlib.sha256(data).digest()[:16]


def lineage(parent, last, hashes, size_pages):
    """The lineage an ordinary change-set gives its state (section 6), in hex."""
    digest = hashlib.sha256(bytes.fromhex(parent) + last.to_bytes(8, "big"))
    for number, value in hashes:
        digest.update(number.to_bytes(4, "big") + value)
    digest.update(size_pages.to_bytes(4, "big"))
    return digest.hexdigest()


def _refuse_constant(text):
    raise ValueError(f"{text} is not JSON")


def parse_json(data, what):
    """A JSON object out of UTF-8 bytes, or Damage."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Damage(f"{what} is not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise Damage(f"{what} is not a JSON object")
    return value


def _is_int(value, low=0, high=MAX_INDEX):
    return type(value) is int and low <= value <= high


def _int(low=0, high=MAX_INDEX):
    return lambda value: _is_int(value, low, high)


def _hex(digits):
    pattern = re.compile(f"[0-9a-f]{{{digits}}}")
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _text(value):
    return isinstance(value, str)


def _one_of(*allowed):
    return lambda value: type(value) in (str, int) and value in allowed


def _or_null(check):
    return lambda value: value is None or check(value)


def _list_of(check):
    return lambda value: isinstance(value, list) and all(map(check, value))


def _u32_pair(value):
    return _list_of(_int(0, 2**32 - 1))(value) and len(value) == 2


def _wal(value):
    return (isinstance(value, dict) and _u32_pair(value.get("salt"))
            and _is_int(value.get("frame")) and _u32_pair(value.get("checksum")))


def _epochs(value):
    triples = _list_of(lambda e: _list_of(_is_int)(e) and len(e) == 3)
    return (triples(value) and len(value) <= 64 and all(e[1] > 0 for e in value)
            and all(a[0] < b[0] and a[1] < b[1] for a, b in zip(value, value[1:])))


def _index_chunk_entry(value):
    return (isinstance(value, list) and len(value) == 6
            and all(map(_is_int, value[:5])) and _hex(32)(value[5]))


HEADER_FIELDS = {
    "format": _one_of(1),
    "writer": _text,
    "kind": _one_of("full", "change-set", "current", "manifest", "mark"),
    "database": _text,
    "level": _int(0, 9),
    "first": _int(),
    "chain": _hex(32),
    "page_size": _one_of(*(1 << n for n in range(9, 17))),
    "compression": _one_of("zstd", "none"),
    "cipher": _one_of("none", "xchacha20-poly1305"),
    "key_fingerprint": _or_null(_hex(8)),
    "nonce_seed": _hex(48),
    "session": _hex(32),
    "run": _hex(32),
}
STATE_TRAILER_FIELDS = {
    "last": _int(1),
    "settled": _int(1),
    "size_pages": _int(0, 2**32 - 1),
    "page_count": _int(0, 2**32 - 1),
    "parent": _or_null(_hex(64)),
    "result": _hex(64),
    "digest": _or_null(_hex(32)),
    "first_commit_ms": _int(),
    "last_commit_ms": _int(),
    "commits": _int(),
    "epochs": _epochs,
    "wal": _or_null(_wal),
    "reason": _text,
    "index_chunks": _list_of(_index_chunk_entry),
}
CURRENT_FIELDS = {
    "chain": _hex(32),
    "full": _int(1),
    "seal": lambda value: value == "p" or _hex(8)(value),
    "index": _int(1),
    "lineage": _hex(64),
    "written_ms": _int(),
}
MARK_FIELDS = {
    "index": _int(1),
    "lineage": _hex(64),
    "label": lambda value: _text(value) and 1 <= len(value) <= 64,
    "stamp_ms": _int(),
    "created_ms": _int(),
}
MANIFEST_FIELDS = {
    "objects": _list_of(lambda e: isinstance(e, dict) and _text(e.get("name"))
                        and _is_int(e.get("size"))),
}


def check_fields(value, fields, what):
    """Refuse a header or trailer that lacks a documented field or mistypes it."""
    for field, check in fields.items():
        if field not in value:
            raise Damage(f"{what} lacks {field}")
        if not check(value[field]):
            raise Damage(f"{what} has an impossible {field}: {str(value[field])[:80]}")


# --- one container -----------------------------------------------------------------

class Container:
    """One stored object: its header and trailer, and its pages on demand.

    The constructor reads and checks the header; `open` the footer and the
    trailer.  `check_whole` checks the footer's SHA-256; `pages` walks through
    all index and data chunks and checks everything it passes.
    """

    def __init__(self, path, name, database):
        self.path, self.name, self.database = path, name, database
        self.trailer = None
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self._read_header(file)
        except OSError as error:
            raise Damage(f"cannot be read: {error.strerror}") from error

    # The object's place in the graph of states.

    @property
    def start(self):
        """The state a change-set leads from: (chain, page size, index, lineage)."""
        return (self.header["chain"], self.header["page_size"],
                self.name.first - 1, self.trailer["parent"])

    @property
    def end(self):
        """The state this object leads to, in the same terms."""
        return (self.header["chain"], self.header["page_size"],
                self.name.last, self.trailer["result"])

    @property
    def settled(self):
        return self.trailer["settled"]

    def _read(self, file, offset, length, what):
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Damage(f"{what} lies outside the object")
        file.seek(offset)
        data = file.read(length)
        if len(data) != length:
            raise Damage(f"{what} is cut short")
        return data

    def _read_header(self, file):
        start = self._read(file, 0, 12, "header")
        if start[:8] != MAGIC:
            raise Damage("does not begin with 'bakelite'")
        length = int.from_bytes(start[8:], "big")
        if length > MAX_HEADER_JSON:
            raise Damage(f"header claims {length} bytes")
        text = self._read(file, 12, length, "header")
        self.header_length, self.header_bytes = 12 + length, start + text
        self.header_hash = hashlib.sha256(self.header_bytes).digest()
        self.header = header = parse_json(text, "header")
        if type(header.get("format")) is int and header["format"] != 1:
            raise Damage(f"is of format {header['format']}, which this reader does not know")
        check_fields(header, HEADER_FIELDS, "header")
        self.sealed = header["cipher"] != "none"
        if self.sealed == (header["key_fingerprint"] is None):
            raise Damage("header's cipher and key_fingerprint contradict each other")
        expected = {"kind": self.name.kind, "database": self.database,
                    "level": self.name.level}
        if self.name.first is not None:
            expected["first"] = self.name.first
        for field, value in expected.items():
            if header[field] != value:
                raise Damage(f"header says {field} {header[field]!r}, the name {value!r}")
        seal = header["key_fingerprint"] if self.sealed else "p"
        if self.name.seal not in (None, seal):
            raise Damage(f"header says seal {seal!r}, the name {self.name.seal!r}")

    def open(self, keys):
        """Check the footer, read the trailer and check it against the name."""
        try:
            with open(self.path, "rb") as file:
                self._read_trailer(file, keys)
        except OSError as error:
            raise Damage(f"cannot be read: {error.strerror}") from error

    def _read_trailer(self, file, keys):
        footer = self._read(file, self.size - FOOTER_SIZE, FOOTER_SIZE, "footer")
        offset, stored, header_length = struct.unpack(">QII", footer[:16])
        if footer[64:] != END_MAGIC:
            raise Damage("does not end with 'etilekab'")
        if header_length != self.header_length:
            raise Damage("footer and header disagree on the header's length")
        if offset < self.header_length or offset + stored + FOOTER_SIZE != self.size:
            raise Damage("trailer chunk does not lie between header and footer")
        self.trailer_offset, self.footer_hash = offset, footer[32:64]
        chunk = self._read_chunk(file, TRAILER, offset, stored, footer[16:32])
        if self.sealed:
            key = keys.get(self.header["key_fingerprint"])
            if key is None:
                raise NoKey(f"is sealed with key {self.header['key_fingerprint']}, "
                            "which was not given")
            seed = bytes.fromhex(self.header["nonce_seed"])
            self.subkey = hchacha20(key.sealing, seed[:16])
            self.nonce_base = int.from_bytes(seed[16:], "big")
        raw = self._unframe(self._unseal(chunk, TRAILER, offset), TRAILER)
        self.trailer = parse_json(raw, "trailer")
        kind = self.name.kind
        check_fields(self.trailer, {"current": CURRENT_FIELDS, "manifest": MANIFEST_FIELDS,
                                    "mark": MARK_FIELDS}
                     .get(kind, STATE_TRAILER_FIELDS), "trailer")
        if kind in ("full", "change-set"):
            self._check_state_trailer()
        elif offset != self.header_length:
            raise Damage("has data in front of its trailer chunk")

    def _check_state_trailer(self):
        trailer, full = self.trailer, self.name.kind == "full"
        if trailer["last"] != self.name.last:
            raise Damage(f"trailer says last {trailer['last']}, the name {self.name.last}")
        if trailer["settled"] < trailer["last"]:
            raise Damage("settled is below last")
        if full != (trailer["parent"] is None):
            raise Damage("a full backup has no parent, a change-set has one")
        if full and (trailer["settled"] == trailer["last"]) == (trailer["digest"] is None):
            raise Damage("a full backup has a digest exactly if it is settled at n0")
        # Where each index chunk must be, and what is left between them for data.
        position = self.header_length
        last_page = pages = 0
        for entry in trailer["index_chunks"]:
            offset, stored, first, last, count = entry[:5]
            if offset <= position or offset + stored > self.trailer_offset:
                raise Damage("index chunks are not in order inside the object")
            if not (last_page < first <= last and 0 < count <= last - first + 1):
                raise Damage("the trailer's page ranges are impossible")
            position, last_page, pages = offset + stored, last, pages + count
        if position != self.trailer_offset:
            raise Damage("the trailer chunk does not follow the last index chunk")
        if pages != trailer["page_count"]:
            raise Damage(f"trailer counts {trailer['page_count']} pages, its index chunks {pages}")
        if last_page > trailer["size_pages"]:
            raise Damage(f"holds page {last_page}, above size_pages {trailer['size_pages']}")
        if full and pages != pages_expected(trailer["size_pages"], self.header["page_size"]):
            raise Damage("a full backup holds every page")

    # Chunks: stored bytes -> frame -> raw bytes.

    def _read_chunk(self, file, kind, offset, stored, expected_hash):
        what = KIND_NAMES[kind] + " chunk"
        limit = RAW_LIMITS[kind]
        # A frame is never longer than its raw bytes and 8 more.
        if stored > limit + FRAME_HEADER + (TAG_SIZE if self.sealed else 0):
            raise Damage(f"{what} claims {stored} stored bytes")
        chunk = self._read(file, offset, stored, what)
        if cut_hash(self.header_bytes + chunk if kind == TRAILER else chunk) != expected_hash:
            raise Damage(f"{what} at {offset} does not match its SHA-256")
        return chunk

    def _unseal(self, chunk, kind, offset):
        """The frame of a stored chunk; the chunk's offset is its counter (section 5)."""
        if not self.sealed:
            return chunk
        low = (self.nonce_base + offset) % (1 << 64)
        associated = self.header_hash + struct.pack(">QBB", offset, kind, kind == TRAILER)
        frame = chacha20_poly1305_open(self.subkey, bytes(4) + low.to_bytes(8, "big"),
                                       chunk, associated)
        if frame is None:
            raise Damage(f"{KIND_NAMES[kind]} chunk at {offset} does not open with its key")
        return frame

    @staticmethod
    def _unframe(frame, kind):
        what = KIND_NAMES[kind] + " chunk"
        if len(frame) < FRAME_HEADER:
            raise Damage(f"{what} is too short")
        got, compression, encoding, zero, raw_length = struct.unpack(">BBBBI", frame[:8])
        if got != kind:
            raise Damage(f"{what} is marked as type {got}")
        if compression > 1 or encoding or zero:
            raise Damage(f"{what} uses a reserved value")
        if not 0 < raw_length <= RAW_LIMITS[kind]:
            raise Damage(f"{what} claims {raw_length} raw bytes")
        payload = frame[8:]
        if compression:
            return Zstd.decompress(payload, raw_length)
        if len(payload) != raw_length:
            raise Damage(f"{what} has {len(payload)} bytes, not {raw_length}")
        return payload

    # The whole object.

    def check_whole(self):
        """Check the footer's SHA-256 of everything before it."""
        left, digest = self.size - 40, hashlib.sha256()
        try:
            with open(self.path, "rb") as file:
                while left:
                    piece = file.read(min(left, READ_SIZE))
                    if not piece:
                        raise Damage("object is cut short")
                    digest.update(piece)
                    left -= len(piece)
        except OSError as error:
            raise Damage(f"cannot be read: {error.strerror}") from error
        if digest.digest() != self.footer_hash:
            raise Damage("the object does not match the footer's SHA-256")

    def _parse_index(self, raw):
        """-> [(offset, stored length, pages, hash)], [(page number, page hash)]"""
        chunks, position = [], 4
        count = int.from_bytes(raw[:4], "big")
        if not 1 <= count <= DATA_CHUNKS_PER_INDEX or len(raw) < 4 + 32 * count:
            raise Damage(f"index chunk describes {count} data chunks")
        for _ in range(count):
            chunks.append(struct.unpack_from(">QII16s", raw, position))
            position += 32
        pages = list(struct.iter_unpack(">I16s", raw[position:])) \
            if (len(raw) - position) % 20 == 0 else None
        if pages is None or len(pages) != sum(chunk[2] for chunk in chunks):
            raise Damage("index chunk has another length than its counts give")
        return chunks, pages

    def pages(self):
        """Yield (page number, page hash, image) for every page, all checked."""
        try:
            with open(self.path, "rb") as file:
                yield from self._walk(file)
        except OSError as error:
            raise Damage(f"cannot be read: {error.strerror}") from error

    def _walk(self, file):
        page_size = self.header["page_size"]
        never = lock_page(page_size)
        position, before = self.header_length, 0
        entries = self.trailer["index_chunks"]
        for i, (offset, stored, first, last, count, digest) in enumerate(entries):
            final = i == len(entries) - 1
            stored_bytes = self._read_chunk(file, INDEX, offset, stored, bytes.fromhex(digest))
            raw = self._unframe(self._unseal(stored_bytes, INDEX, offset), INDEX)
            chunks, pages = self._parse_index(raw)
            if not final and len(chunks) != DATA_CHUNKS_PER_INDEX:
                raise Damage(f"index chunk {i} describes {len(chunks)} data chunks")
            if (len(pages), pages[0][0] if pages else 0, pages[-1][0] if pages else 0) \
                    != (count, first, last):
                raise Damage(f"index chunk {i} and the trailer disagree on its pages")
            taken = 0
            for start, length, number_of, expected in chunks:
                if start != position:
                    raise Damage(f"gap or overlap before the data chunk at {start}")
                if not number_of or number_of * page_size > RAW_LIMITS[DATA]:
                    raise Damage(f"data chunk claims {number_of} pages")
                chunk = self._read_chunk(file, DATA, start, length, expected)
                data = self._unframe(self._unseal(chunk, DATA, start), DATA)
                if len(data) != number_of * page_size:
                    raise Damage(f"data chunk at {start} does not hold {number_of} pages")
                for k in range(number_of):
                    number, known = pages[taken + k]
                    image = data[k * page_size:(k + 1) * page_size]
                    if number <= before:
                        raise Damage(f"page {number} comes after page {before}")
                    if number == never:
                        raise Damage(f"holds the lock page, {number}")
                    if page_hash(number, image) != known:
                        raise Damage(f"page {number} does not match its page hash")
                    before = number
                    yield number, known, image
                taken += number_of
                position = start + length
            if offset != position:
                raise Damage(f"gap or overlap before the index chunk at {offset}")
            position = offset + stored

    def hashes(self):
        """Check the whole object; its [(page number, page hash)]."""
        self.check_whole()
        return [(number, value) for number, value, _ in self.pages()]


# --- the replica as a graph of states ----------------------------------------------

class Replica:
    """Everything below one database's folder, and the states it leads to.

    A state is a node (chain, page size, index, lineage); a change-set is an
    edge.  Objects in `bad` (name -> reason) are left out of every search.
    """

    def __init__(self, root, database, keys):
        if not _DATABASE.fullmatch(database):
            raise UsageError(f"{database!r} cannot be a database's name")
        self.folder = os.path.join(root, database)
        if not os.path.isdir(self.folder):
            raise UsageError(f"there is no folder {self.folder}")
        self.database, self.keys = database, keys
        self.warnings, self.bad, self.headers, self.sizes = [], {}, {}, {}
        self.objects, self.marks, self.current, self.manifest = [], [], None, None
        self._scan()

    def _names(self):
        """All valid names below the folder, sorted; warn of everything else."""
        found = []
        for folder in ("", "full", "keep", *(f"L{level}" for level in range(10))):
            path = os.path.join(self.folder, folder)
            if folder and not os.path.isdir(path):
                continue
            try:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from error
            for entry in entries:
                text = f"{folder}/{entry.name}" if folder else entry.name
                if not folder and entry.is_dir() and re.fullmatch("full|keep|L[0-9]", entry.name):
                    continue
                name = parse_name(text)
                if name and entry.is_file():
                    found.append(name)
                else:
                    self.warnings.append(f"{text}: is not ours; ignored")
        return found

    def _scan(self):
        for name in self._names():
            path = os.path.join(self.folder, *name.text.split("/"))
            self.sizes[name.text] = None
            try:
                self.sizes[name.text] = os.path.getsize(path)
                item = Container(path, name, self.database)
                self.headers[name.text] = item.header
                item.open(self.keys)
            except (Damage, OSError) as error:
                self.bad[name.text] = str(error)
                continue
            if name.kind in ("current", "manifest"):
                setattr(self, name.kind, item)
            elif name.kind == "mark":
                self.marks.append(item)
            else:
                self.objects.append(item)

    def good(self, kind, most_settled=None, without=()):
        """The usable objects of one kind."""
        return [item for item in self.objects
                if item.name.kind == kind and item.name.text not in self.bad
                and item.name.text not in without
                and (most_settled is None or item.settled <= most_settled)]

    def edges(self, change_sets):
        edges = defaultdict(list)
        for item in change_sets:
            edges[item.start].append(item)
        return edges

    def states(self):
        """Every reachable state: node -> the least `settled` any path to it needs.

        Of a path the largest `settled` counts, of several paths the best one.  What an
        ordinary change-set of several states steps over is left out (section 8).
        """
        best = self._states_without(())
        left_out = self._stepped_over(best)
        return self._states_without(left_out) if left_out else best

    def _stepped_over(self, states):
        """The nodes between the ends of ordinary change-sets of several states."""
        wide = [item for item in self.good("change-set")
                if item.name.first < item.name.last and item.start in states
                and item.name.level == 0]
        return {node for node in states for item in wide
                if node[0] == item.end[0] and item.start[2] < node[2] < item.end[2]}

    def _states_without(self, left_out):
        edges = self.edges(item for item in self.good("change-set")
                           if item.end not in left_out)
        best = {}
        for full in self.good("full"):
            best[full.end] = min(full.settled, best.get(full.end, full.settled))
        heap = [(node[2], node) for node in best]
        heapq.heapify(heap)
        done = set()
        while heap:
            _, node = heapq.heappop(heap)
            if node in done:
                continue
            done.add(node)
            for item in edges[node]:
                needed = max(best[node], item.settled)
                if item.end not in best:
                    heapq.heappush(heap, (item.end[2], item.end))
                    best[item.end] = needed
                best[item.end] = min(best[item.end], needed)
        return best

    def restore_points(self, states=None):
        """The nodes that are restore points (section 8, step 3), by index."""
        states = self.states() if states is None else states
        return sorted(node for node, needed in states.items() if needed <= node[2])

    def find_path(self, index, without=()):
        """[full backup, change-set, …] to a restore point of this index, or None.

        The newest full backup first; from it the path of fewest objects.
        """
        fulls = [item for item in self.good("full", index, without)
                 if item.name.first <= index]
        edges = self.edges(item for item in self.good("change-set", index, without)
                            if item.name.last <= index)
        for full in sorted(fulls, key=lambda f: (-f.name.first, f.sealed)):
            came = {full.end: (0, None)}
            heap = [(full.end[2], full.end)]
            while heap:
                at, node = heapq.heappop(heap)
                if at == index:
                    path = []
                    while came[node][1]:
                        path.append(came[node][1])
                        node = path[-1].start
                    return [full, *reversed(path)]
                steps = came[node][0] + 1
                for item in edges[node]:
                    if item.end not in came:
                        heapq.heappush(heap, (item.end[2], item.end))
                    elif came[item.end][0] <= steps:
                        continue
                    came[item.end] = (steps, item)
        return None

    def reachable(self, states=None):
        """The usable objects that lie on a path from a full backup."""
        states = self.states() if states is None else states
        return [item for item in self.objects if item.name.text not in self.bad
                and (item.name.kind == "full" or item.start in states)]

    def stamps(self, reachable):
        """node -> every stamp that objects ending there give, change-sets first."""
        found = defaultdict(list)
        for item in sorted(reachable, key=lambda item: item.name.kind):
            stamp = item.trailer["last_commit_ms"]
            if stamp not in found[item.end]:
                found[item.end].append(stamp)
        return found

    def epochs(self, reachable):
        """The time epochs of all objects together: [[number, first, stamp]].

        Where objects differ, the one with the highest index counts.
        """
        merged = {}
        for item in sorted(reachable, key=lambda item: item.name.last):
            for number, first, stamp in item.trailer["epochs"]:
                merged[first] = [number, first, stamp]
        return [merged[first] for first in sorted(merged)]

    def index_at(self, moment, points, reachable):
        """The index of the restore point for a moment (section 9)."""
        stamps, epochs = self.stamps(reachable), self.epochs(reachable)
        low, high = 0, MAX_INDEX + 1
        if epochs:
            started = [i for i, epoch in enumerate(epochs) if epoch[2] <= moment]
            if not started:
                raise NotRestorable(f"no time epoch begins at or before {moment}")
            low = epochs[started[-1]][1]
            if started[-1] + 1 < len(epochs):
                high = epochs[started[-1] + 1][1]
        fitting = [node[2] for node in points
                   if low <= node[2] < high and stamps[node][0] <= moment]
        if not fitting:
            raise NotRestorable(f"no restore point of the time epoch that holds {moment} "
                                "is as old as that")
        return max(fitting)

    def summary(self):
        """Counts that every report begins with."""
        return {"database": self.database, "format": 1}


# --- list ----------------------------------------------------------------------------

def command_list(replica):
    """Every object with header and trailer; chains; states and restore points."""
    states = replica.states()
    reachable = replica.reachable(states)
    stamps = replica.stamps(reachable)
    used = {item.name.text for item in reachable}
    known = {item.name.text: item for item in replica.objects}
    for extra in (replica.current, replica.manifest, *replica.marks):
        if extra:
            known[extra.name.text] = extra
    objects = []
    for text in sorted(replica.sizes):
        name, item = parse_name(text), known.get(text)
        objects.append({
            "name": text, "kind": name.kind, "level": name.level, "first": name.first,
            "last": name.last, "seal": name.seal, "size": replica.sizes[text],
            "header": replica.headers.get(text), "trailer": item.trailer if item else None,
            "reachable": text in used, "error": replica.bad.get(text)})
    sizes = {item.end: item.trailer["size_pages"] for item in reachable
             if item.name.kind == "change-set" or item.settled == item.name.first}
    chains = defaultdict(list)
    for node in sorted(states, key=lambda node: node[2]):
        chains[node[0]].append({
            "index": node[2], "lineage": node[3], "stamp_ms": stamps[node][0],
            "settled": states[node], "restore_point": states[node] <= node[2],
            "size_pages": sizes.get(node)})
    fulls = defaultdict(list)
    for item in replica.good("full"):
        fulls[item.header["chain"]].append(item.name.text)
    points = replica.restore_points(states)
    return {
        **replica.summary(),
        "objects": objects,
        "chains": [{"chain": chain, "first": rows[0]["index"], "last": rows[-1]["index"],
                    "full_backups": fulls[chain], "states": rows}
                   for chain, rows in sorted(chains.items(), key=lambda c: c[1][0]["index"])],
        "restore_points": [{"index": node[2], "chain": node[0], "stamp_ms": stamps[node][0]}
                           for node in sorted(points, key=lambda node: node[2])],
        "epochs": replica.epochs(reachable),
        "unreachable": sorted(item.name.text for item in replica.objects
                              if item.name.text not in used and item.name.text not in replica.bad),
        "warnings": replica.warnings,
    }, 0


# --- verify --------------------------------------------------------------------------

class State:
    """A state as page hashes: enough for its digest, without the images."""

    def __init__(self, size, pages, digest, needed):
        self.size, self.pages, self.digest, self.needed = size, pages, digest, needed

    @classmethod
    def of_full(cls, full, hashes):
        digest = 0
        for _, value in hashes:
            digest ^= int.from_bytes(value, "big")
        return cls(full.trailer["size_pages"], dict(hashes), digest, full.settled)

    def then(self, change_set, hashes):
        """The state after a change-set (section 8, step 4)."""
        size, digest, pages = change_set.trailer["size_pages"], self.digest, self.pages.copy()
        if size < self.size:
            for number in [number for number in pages if number > size]:
                digest ^= int.from_bytes(pages.pop(number), "big")
        for number, value in hashes:
            digest ^= int.from_bytes(value, "big")
            digest ^= int.from_bytes(pages.get(number, b""), "big")
            pages[number] = value
        return State(size, pages, digest, max(self.needed, change_set.settled))

    def identity(self):
        return self.size, f"{self.digest:032x}"


class Verifier:
    """Checks a whole replica; collects problems as {"object", "problem"}."""

    def __init__(self, replica):
        self.replica = replica
        self.problems, self.warnings = [], replica.warnings
        self.hashes = {}
        self.identities = {}

    def problem(self, name, text):
        self.problems.append({"object": name, "problem": text})

    def run(self):
        replica = self.replica
        for name, reason in replica.bad.items():
            self.problem(name, reason)
        for item in replica.objects:
            self._check_object(item)
        self.states = replica.states()
        self.points = replica.restore_points(self.states)
        self.reachable = replica.reachable(self.states)
        self._check_twins()
        for full in replica.good("full"):
            self._check_states_from(full)
        self._check_forks()
        self._check_time()
        self._check_current()
        self._check_manifest()
        self._check_marks()
        return self._report()

    def _check_object(self, item):
        name = item.name.text
        try:
            hashes = item.hashes()
        except Damage as error:
            self.replica.bad[name] = str(error)
            self.problem(name, str(error))
            return
        self.hashes[name] = hashes
        if item.name.kind == "change-set" and item.name.level == 0:
            trailer = item.trailer
            if lineage(trailer["parent"], item.name.last, hashes,
                       trailer["size_pages"]) != trailer["result"]:
                self.problem(name, "result is not the lineage of parent and pages")

    def _check_twins(self):
        """Section 2: names that differ only in the seal hold the same."""
        twins = {}
        for item in self.replica.objects:
            if item.name.text in self.replica.bad:
                continue
            stem = item.name.text.rpartition(".")[0]
            other = twins.setdefault(stem, item)
            for field in ("parent", "result", "settled"):
                if item.trailer[field] != other.trailer[field]:
                    self.problem(item.name.text, f"{field} is not that of {other.name.text}")

    def _check_states_from(self, full):
        """Rebuild every state this full backup leads to, along every path."""
        edges = self.replica.edges(self.replica.good("change-set"))
        digests = defaultdict(list)
        for item in self.reachable:
            if item.trailer["digest"] is not None:
                digests[item.end].append((item.name.text, item.trailer["digest"]))
        held = {full.end: State.of_full(full, self.hashes[full.name.text])}
        heap = [(full.end[2], full.end)]
        while heap:
            index, node = heapq.heappop(heap)
            state = held.pop(node)
            if state.needed <= index:
                self._check_state(node, state, full, digests[node])
            for item in edges[node]:
                after = state.then(item, self.hashes[item.name.text])
                other = held.get(item.end)
                if other is None:
                    heapq.heappush(heap, (item.end[2], item.end))
                elif (max(after.needed, other.needed) <= item.name.last
                      and after.identity() != other.identity()):
                    self.problem(item.name.text, f"leads to another state {item.name.last} "
                                 f"than another path from {full.name.text}")
                if other is None or after.needed < other.needed:
                    held[item.end] = after

    def _check_state(self, node, state, full, digests):
        index, where = node[2], f"state {node[2]} from {full.name.text}"
        if len(state.pages) != pages_expected(state.size, node[1]):
            self.problem(full.name.text, f"{where}: has {len(state.pages)} pages "
                         f"of {pages_expected(state.size, node[1])}")
        size, digest = state.identity()
        for name, expected in digests:
            if digest != expected:
                self.problem(name, f"{where}: digest is {digest}, not {expected}")
        first = self.identities.setdefault(node, (size, digest, full.name.text))
        if first[:2] != (size, digest):
            self.problem(full.name.text, f"state {index} is another one than from {first[2]}")

    def _check_forks(self):
        """Two reachable states of one index, and chains that overlap."""
        by_index = defaultdict(list)
        spans = {}
        for node in self.states:
            by_index[node[2]].append(node)
            low, high = spans.get(node[0], (node[2], node[2]))
            spans[node[0]] = min(low, node[2]), max(high, node[2])
        for index, nodes in sorted(by_index.items()):
            if len({node[0] for node in nodes}) < len(nodes):
                self.problem(None, f"state {index} has several lineages in one chain")
        order = sorted((low, high, chain) for chain, (low, high) in spans.items())
        for (_, high, chain), (low, _, other) in zip(order, order[1:]):
            if low <= high:
                self.problem(None, f"chain {other} begins at {low}, "
                             f"but chain {chain} reaches {high}")
        used = {item.name.text for item in self.reachable}
        self.unreachable = sorted(set(self.hashes) - used)
        for name in self.unreachable:
            self.warnings.append(f"{name}: no path from a full backup leads here "
                                 "(a fork or a leftover)")

    def _check_time(self):
        """Section 9: one stamp for each state; stamps never fall within an epoch."""
        stamps = self.replica.stamps(self.reachable)
        for node, found in stamps.items():
            if len(found) > 1:
                self.problem(None, f"state {node[2]} has several stamps: {found}")
        claims = defaultdict(set)
        for item in self.reachable:
            for number, first, stamp in item.trailer["epochs"]:
                claims["epoch that begins at", first].add((number, stamp))
                claims["beginning of epoch", number, item.header["chain"]].add(first)
        for what, found in claims.items():
            if len(found) > 1:
                self.problem(None, f"objects disagree on the {what[0]} {what[1]}")
        epochs = self.replica.epochs(self.reachable)
        rows = sorted((node[2], found[0]) for node, found in stamps.items())
        for i, (number, first, stamp) in enumerate(epochs):
            end = epochs[i + 1][1] if i + 1 < len(epochs) else MAX_INDEX + 1
            highest = stamp
            for index, value in rows:
                if not first <= index < end:
                    continue
                if index == first and value != stamp:
                    self.problem(None, f"epoch {number} begins with stamp {stamp}, "
                                 f"but state {index} has {value}")
                if value < highest:
                    self.problem(None, f"the stamp falls at state {index}, inside epoch {number}")
                highest = max(highest, value)

    def _check_current(self):
        """Section 7: has the replica lost what CURRENT remembers?"""
        item = self.replica.current
        if not item:
            return
        try:
            item.check_whole()
        except Damage as error:
            self.problem("CURRENT", str(error))
            return
        hint = item.trailer
        if item.header["first"] != hint["index"] or item.header["chain"] != hint["chain"]:
            self.problem("CURRENT", "header and trailer disagree on index or chain")
        newest = max((node[2] for node in self.states), default=0)
        point = max((node[2] for node in self.points), default=0)
        if newest < hint["index"]:
            self.problem("CURRENT", f"names state {hint['index']}, the newest that can be "
                         f"reached is {newest}: something is lost")
        elif point < hint["index"]:
            self.warnings.append(f"CURRENT names state {hint['index']}, the newest restore "
                                 f"point is {point}: later states are not settled yet")
        lineages = {node[3] for node in self.states
                    if node[2] == hint["index"] and node[0] == hint["chain"]}
        if lineages and hint["lineage"] not in lineages:
            self.problem("CURRENT", f"has another lineage for state {hint['index']}")
        name = f"full/{hint['full']:016d}.{hint['seal']}"
        if name not in self.replica.sizes:
            self.warnings.append(f"CURRENT names {name}, which is not there")

    def _check_marks(self):
        """Section 7: a marked state is a restore point of the lineage that was marked."""
        for item in self.replica.marks:
            name, mark = item.name.text, item.trailer
            try:
                item.check_whole()
            except Damage as error:
                self.problem(name, str(error))
                continue
            if mark["index"] != item.name.first:
                self.problem(name, f"its trailer says state {mark['index']}")
            elif not any(node[2] == mark["index"] and node[3] == mark["lineage"]
                         for node in self.points):
                self.problem(name, f"state {mark['index']}, marked {mark['label']!r}, "
                             "is not a restore point of the lineage that was marked")

    def _check_manifest(self):
        """Section 7: entries that count must repeat the trailers truly."""
        item = self.replica.manifest
        if not item:
            return
        try:
            item.check_whole()
        except Damage as error:
            self.problem("manifest", str(error))
            return
        known = {item.name.text: item for item in self.replica.objects}
        for entry in item.trailer["objects"]:
            name = entry["name"]
            if self.replica.sizes.get(name) != entry["size"] or name not in known:
                continue
            for field in STATE_TRAILER_FIELDS:
                if field in entry and entry[field] != known[name].trailer[field]:
                    self.problem("manifest", f"{name}: {field} is not that of the object")

    def _report(self):
        if self.replica.objects and not self.points:
            self.problem(None, "there are objects, but no restore point")
        ok = not self.problems
        rows = [{"index": node[2], "chain": node[0],
                 "digest": self.identities[node][1] if node in self.identities else None}
                for node in sorted(self.points, key=lambda node: node[2])]
        return {**self.replica.summary(), "ok": ok,
                "objects": len(self.replica.sizes), "reachable_states": len(self.states),
                "restore_points": rows, "unreachable": self.unreachable,
                "problems": self.problems, "warnings": self.warnings}, 0 if ok else 1


# --- restore -------------------------------------------------------------------------

class WrongDigest(Exception):
    """A path gave a state that is not the one its last object describes."""


def write_state(path, output):
    """Lay a path's pages down in a file (section 8, steps 4 and 5).

    Returns size in pages, digest, and the SHA-256 of the file.  Raises Damage
    with `.culprit` set where an object proves unusable, WrongDigest where the
    result is not what the last object says.
    """
    page_size = path[0].header["page_size"]
    laid, before = set(), 0
    with open(output, "r+b") as file:
        file.truncate(0)
        for item in path:
            size = item.trailer["size_pages"]
            try:
                item.check_whole()
                if size < before:
                    laid = {number for number in laid if number <= size}
                    file.truncate(min(size * page_size, file.seek(0, os.SEEK_END)))
                for number, _, image in item.pages():
                    file.seek((number - 1) * page_size)
                    file.write(image)
                    laid.add(number)
                before = size
            except Damage as error:
                error.culprit = item
                raise
        if len(laid) != pages_expected(size, page_size):
            raise WrongDigest(f"the path gives {len(laid)} of "
                              f"{pages_expected(size, page_size)} pages")
        file.truncate(size * page_size)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        whole, digest = hashlib.sha256(), 0
        for number in range(1, size + 1):
            image = file.read(page_size)
            whole.update(image)
            if number != lock_page(page_size):
                digest ^= int.from_bytes(page_hash(number, image), "big")
    digest = f"{digest:032x}"
    expected = path[-1].trailer["digest"]
    if expected is not None and expected != digest:
        raise WrongDigest(f"the result's digest is {digest}, not {expected}")
    return size, digest, whole.hexdigest()


def choose(replica, args, failed):
    """The index to restore, out of the restore points that are left."""
    states = replica.states()
    points = [node for node in replica.restore_points(states) if node[2] not in failed]
    if args.index is not None:
        if not any(node[2] == args.index for node in points):
            near = max((node[2] for node in points if node[2] < args.index), default=None)
            raise NotRestorable(failed.get(args.index) or f"state {args.index} is not a restore "
                                f"point; the nearest one before it is {near}")
        return args.index
    if not points:
        raise NotRestorable("there is no restore point")
    if args.latest:
        return max(node[2] for node in points)
    return replica.index_at(args.at_ms, points, replica.reachable(states))


def restore_to(replica, args, scratch):
    """Try paths until one gives the state; damaged objects count as absent."""
    failed = {}
    while True:
        index = choose(replica, args, failed)
        without, reason = set(), None
        while True:
            path = replica.find_path(index, without)
            if path is None:
                break
            try:
                return index, path, write_state(path, scratch)
            except Damage as error:
                replica.bad[error.culprit.name.text] = str(error)
                reason = f"{error.culprit.name.text}: {error}"
            except WrongDigest as error:
                # No telling which object is at fault.  Try the ordinary
                # change-sets in place of compacted ones, then older full backups.
                reason = str(error)
                replica.warnings.append(f"state {index} by way of "
                                        f"{', '.join(o.name.text for o in path)}: {error}")
                compacted = {item.name.text for item in path[1:] if item.name.level > 0}
                without |= compacted or {path[0].name.text}
        failed[index] = f"state {index} cannot be restored: {reason or 'no path leads to it'}"


def command_restore(replica, args):
    """Restore one state into a new file."""
    output = os.path.abspath(args.output)
    for extra in ("-wal", "-shm", "-journal"):
        if os.path.exists(output + extra):
            raise UsageError(f"{output + extra} is in the way: "
                             "SQLite would mix it with the restored file")
    if os.path.exists(output) and not args.force:
        raise UsageError(f"{output} is there already (--force replaces it)")
    try:
        handle, scratch = tempfile.mkstemp(prefix=".restore-", dir=os.path.dirname(output))
        os.close(handle)
    except OSError as error:
        raise UsageError(f"cannot write beside {output}: {error.strerror}") from error
    try:
        index, path, (size, digest, sha256) = restore_to(replica, args, scratch)
        os.replace(scratch, output)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)
    last = path[-1]
    if replica.current and replica.current.trailer["index"] > index and args.latest:
        replica.warnings.append(f"CURRENT names state {replica.current.trailer['index']}, "
                                f"newer than what was restored")
    reachable = replica.reachable()
    return {
        **replica.summary(), "index": index, "sha256": sha256, "output": output,
        "chain": last.header["chain"], "page_size": last.header["page_size"],
        "size_pages": size, "digest": digest,
        "digest_checked": last.trailer["digest"] is not None,
        "stamp_ms": replica.stamps(reachable)[last.end][0],
        "path": [item.name.text for item in path],
        "damaged": [{"object": name, "problem": reason}
                    for name, reason in sorted(replica.bad.items())],
        "warnings": replica.warnings}, 0


# --- command line ----------------------------------------------------------------------

def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description="Independent reader of bakelite's storage format, version 1.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "verify", "restore"):
        sub = commands.add_parser(name)
        sub.add_argument("directory", help="the destination's prefix: holds the database's folder")
        sub.add_argument("--database", required=True)
        sub.add_argument("--key-hex", action="append", default=[], metavar="HEX",
                         help="a raw key, 64 hex digits; may be given several times")
        sub.add_argument("--key-file", action="append", default=[], metavar="FILE",
                         help="a file with a key as text; may be given several times")
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--index", type=int)
    which.add_argument("--latest", action="store_true")
    which.add_argument("--at-ms", type=int)
    sub.add_argument("--output", required=True)
    sub.add_argument("--force", action="store_true", help="replace an existing output file")
    return parser.parse_args(argv)


def read_keys(args):
    """The keys given on the command line: fingerprint -> Key."""
    keys = []
    for text in args.key_hex:
        if not re.fullmatch("[0-9a-fA-F]{64}", text):
            raise UsageError("--key-hex takes 64 hexadecimal digits")
        keys.append(Key(bytes.fromhex(text)))
    for path in args.key_file:
        try:
            with open(path, encoding="ascii") as file:
                keys.append(Key.from_text(file.read(1000)))
        except ValueError as error:
            raise UsageError(f"{path} is not a key file") from error
    return {key.fingerprint: key for key in keys}


def main(argv=None):
    args = parse_arguments(argv)
    try:
        keys = read_keys(args)
        replica = Replica(args.directory, args.database, keys)
        if args.command == "list":
            report, code = command_list(replica)
        elif args.command == "verify":
            report, code = Verifier(replica).run()
        else:
            try:
                report, code = command_restore(replica, args)
            except NotRestorable as error:
                report, code = {**replica.summary(), "error": str(error),
                                "damaged": [{"object": name, "problem": reason}
                                            for name, reason in sorted(replica.bad.items())],
                                "warnings": replica.warnings}, 1
                print(f"bakelite_reader: {error}", file=sys.stderr)
    except UsageError as error:
        report, code = {"error": str(error)}, 2
        print(f"bakelite_reader: {error}", file=sys.stderr)
    except OSError as error:
        report, code = {"error": str(error)}, 2
        print(f"bakelite_reader: {error}", file=sys.stderr)
    json.dump(report, sys.stdout, indent=1)
    print()
    return code


if __name__ == "__main__":
    sys.exit(main())
