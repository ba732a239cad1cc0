import { expect, test } from "bun:test";
import { formatByteSize, parseByteSize } from "../../src/util/byte-sizes.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";

test.each([
  ["0", 0],
  ["1048576", 1_048_576],
  ["512KiB", 524_288],
  ["16MiB", 16_777_216],
  ["5GiB", 5_368_709_120],
  ["1TiB", 1_099_511_627_776],
  ["5KB", 5_000],
  ["500MB", 500_000_000],
  ["3GB", 3_000_000_000],
  ["2TB", 2_000_000_000_000],
  ["16 MiB", 16_777_216],
])("parseByteSize reads %s as %d bytes", (text, bytes) => {
  expect(parseByteSize(text)).toBe(bytes);
});

test.each(["", "MiB", "-1", "1.5GiB", "16mib", "16M", "1e3", "0x10", "16  MiB", "9007199254740993", "99999999999TiB"])(
  "parseByteSize refuses %j",
  (text) => {
    expect(() => parseByteSize(text)).toThrow(BakeliteError);
  },
);

test("parseByteSize gives whole bytes or a BakeliteError for any text", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(..."0129KMGTiB .-") })), (text) => {
      try {
        expect(Number.isSafeInteger(parseByteSize(text))).toBe(true);
      } catch (error) {
        expect(error).toBeInstanceOf(BakeliteError);
      }
    }),
  );
});

test.each([
  [0, "0 B"],
  [999, "999 B"],
  [1_023, "1023 B"],
  [1_024, "1.00 KiB"],
  [1_536, "1.50 KiB"],
  [16 * 2 ** 20, "16.0 MiB"],
  [512 * 2 ** 30, "512 GiB"],
  [1_023 * 1_024, "1.00 MiB"],
  [2 ** 53, "8.00 PiB"],
])("formatByteSize shows %d as %s", (bytes, text) => {
  expect(formatByteSize(bytes)).toBe(text);
});
