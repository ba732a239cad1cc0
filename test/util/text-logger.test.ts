import { expect, test } from "bun:test";
import type { LogLevel } from "../../src/util/logger.ts";
import { createTextLogger, type TextLoggerOptions } from "../../src/util/text-logger.ts";
import { MemoryOutput } from "../support/memory-output.ts";
import { fc } from "../support/properties.ts";

const CLOCK = { nowMs: () => Date.UTC(2026, 4, 25, 12), monotonicMs: () => 0 };

function logger(options: Partial<TextLoggerOptions> = {}) {
  const output = new MemoryOutput();
  const log = createTextLogger({ level: "debug", format: "text", output, clock: CLOCK, env: {}, ...options });
  return { log, output };
}

test("a text line has time, level, message and fields", () => {
  const { log, output } = logger();
  log.info("full backup stored", { database: "app", pages: 1_024, took: "3 s", note: undefined, hole: null, ok: true });
  expect(output.text).toBe(
    '2026-05-25T12:00:00.000Z INFO  full backup stored database=app pages=1024 took="3 s" hole=null ok=true\n',
  );
});

test("a JSON line is one object, whose time, level and message no field can replace", () => {
  const { log, output } = logger({ format: "json" });
  log.child({ database: "app" }).warn("slow", { level: "no", lagMs: 12, note: undefined });
  expect(output.text).toBe(
    '{"time":"2026-05-25T12:00:00.000Z","level":"warn","message":"slow","database":"app","lagMs":12}\n',
  );
});

test("a child adds its fields to every line, and a line may replace them", () => {
  const { log, output } = logger();
  const child = log.child({ database: "app" }).child({ destination: "s3" });
  child.error("put failed", { destination: "file" });
  log.error("other");
  expect(output.text.split("\n").map((line) => line.slice(31))).toEqual([
    "put failed database=app destination=file",
    "other",
    "",
  ]);
});

test.each([
  ["error", "E"],
  ["warn", "EW"],
  ["info", "EWI"],
  ["debug", "EWID"],
] as const)("at level %s the lines %s are written", (level: LogLevel, initials) => {
  const { log, output } = logger({ level });
  log.error("x");
  log.warn("x");
  log.info("x");
  log.debug("x");
  const written = output.text.split("\n").slice(0, -1);
  expect(written.map((line) => line.charAt(25)).join("")).toBe(initials);
});

test("colour appears on a terminal only, and never with NO_COLOR", () => {
  for (const [isTerminal, env, coloured] of [
    [true, {}, true],
    [true, { NO_COLOR: "" }, true],
    [true, { NO_COLOR: "1" }, false],
    [true, { TERM: "dumb" }, false],
    [false, {}, false],
  ] as const) {
    const output = new MemoryOutput({ isTerminal });
    logger({ output, env }).log.info("x");
    expect(output.text.includes("\u001b[")).toBe(coloured);
  }
});

test("no message or field can make a second line or move the cursor", () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), fc.constantFrom("text", "json"), (message, value, format) => {
      const { log, output } = logger({ format });
      log.info(`\n\u001b[2J${message}`, { value: `\r\n${value}`, other: value });
      expect(output.text).toMatch(/^[^\p{Cc}]*\n$/u);
    }),
  );
});

test("in JSON, too, what a terminal could obey is an escape that means the same", () => {
  const value = "\u009b2J\u007f\u202e\u2028";
  const { log, output } = logger({ format: "json" });
  log.info("x", { value });
  expect(output.text).toMatch(/^[ -~]*\n$/);
  expect(JSON.parse(output.text)).toHaveProperty("value", value);
});

test("level and format may change while the logger, and its children, are in use", () => {
  const output = new MemoryOutput();
  const style = { level: "error" as LogLevel, format: "text" as "text" | "json" };
  const options = Object.assign(style, { output, clock: CLOCK, env: {} });
  const own = createTextLogger(options).child({ db: "app" });
  own.info("dropped");
  style.level = "info";
  style.format = "json";
  own.info("shown");
  expect(output.text).toBe('{"time":"2026-05-25T12:00:00.000Z","level":"info","message":"shown","db":"app"}\n');
});
