import { expect, test } from "bun:test";
import { BakeliteError } from "../../src/util/errors.ts";
import { formatListenAddress, parseListenAddress } from "../../src/util/listen-address.ts";
import { fc } from "../support/properties.ts";

test.each([
  ["127.0.0.1:9090", "127.0.0.1", 9_090],
  ["localhost:0", "localhost", 0],
  ["[::1]:65535", "::1", 65_535],
])("parseListenAddress reads %s and formatListenAddress writes it back", (text, host, port) => {
  expect(parseListenAddress(text)).toEqual({ host, port });
  expect(formatListenAddress({ host, port })).toBe(text);
});

test.each(["", "9090", ":9090", "::1:9090", "host:", "host:65536", "host:1e3", "http://host:1", "[::1]"])(
  "parseListenAddress refuses %j",
  (text) => {
    expect(() => parseListenAddress(text)).toThrow(BakeliteError);
  },
);

test("parseListenAddress gives a port in range or a BakeliteError for any text", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(..."[]:.019af") })), (text) => {
      try {
        expect(parseListenAddress(text).port).toBeLessThanOrEqual(65_535);
      } catch (error) {
        expect(error).toBeInstanceOf(BakeliteError);
      }
    }),
  );
});
