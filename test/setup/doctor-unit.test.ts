import { describe, expect, test } from "bun:test";
import { DEFAULT_CONFIG, parseService, reachOf, splitWords } from "../../src/setup/doctor-unit.ts";
import { fc } from "../support/properties.ts";

const unit = (...texts: readonly string[]) =>
  parseService(texts.map((text, i) => ({ path: `/units/${i}`, text: `[Service]\n${text}\n` })));

test("later files win, an empty value empties a list, and other sections do not count", () => {
  const service = parseService([
    { path: "/a", text: "[Unit]\nUser=wrong\n[Service]\nUser=one\nReadWritePaths=/a /b\nLimitNOFILE=1024:4096\n" },
    { path: "/b", text: "# a comment\n[Service]\nUser = two\nReadWritePaths=\nReadWritePaths=-/c/ +/d\n" },
  ]);
  expect(service).toMatchObject({
    files: ["/a", "/b"],
    user: "two",
    readWritePaths: [
      { path: "/c", optional: true },
      { path: "/d", optional: false },
    ],
    openFiles: 4096,
    problems: [],
  });
});

test("lines may be continued, values quoted, and specifiers are filled in", () => {
  const service = unit(
    'ReadWritePaths=/one \\\n; a comment between\n  "/with space" %S/app \\\n  %h/unknown',
    "User=%i",
  );
  expect(service.readWritePaths.map(({ path }) => path)).toEqual(["/one", "/with space", "/var/lib/app"]);
  expect(service.user).toBeNull();
  expect(splitWords(`a 'b c'  "d\\"e" f\\ g ''`)).toEqual(["a", "b c", 'd"e', "f g", ""]);
});

test.each([
  ["ExecStart=/usr/bin/bakelite daemon", DEFAULT_CONFIG],
  ["ExecStart=/usr/bin/bakelite daemon --config /a.toml", "/a.toml"],
  ["ExecStart=-/usr/bin/bakelite --config=/a.toml daemon", "/a.toml"],
  ["ExecStart=/usr/bin/bakelite -c '/a b.toml' daemon", "/a b.toml"],
  ["ExecStart=/usr/bin/bakelite daemon --config $CONF", null],
  ["ExecStart=/usr/bin/bakelite daemon\nEnvironment=X=1 BAKELITE_CONFIG=/e.toml", "/e.toml"],
  ["ExecStart=/usr/bin/bakelite daemon\nEnvironmentFile=/etc/default/bakelite", null],
  ["ExecStart=/usr/bin/old daemon\nExecStart=\nExecStart=/usr/bin/bakelite daemon -c /n.toml", "/n.toml"],
  ["User=app", null],
])("the configuration of %j is %j", (text, expected) => {
  expect(unit(text).configPath).toBe(expected);
});

test.each([
  ["", true],
  ["CapabilityBoundingSet=", false],
  ["CapabilityBoundingSet=\nCapabilityBoundingSet=CAP_DAC_OVERRIDE", true],
  ["CapabilityBoundingSet=CAP_DAC_OVERRIDE\nCapabilityBoundingSet=CAP_CHOWN", true],
  ["CapabilityBoundingSet=CAP_DAC_OVERRIDE\nCapabilityBoundingSet=", false],
  ["CapabilityBoundingSet=CAP_CHOWN", false],
  ["CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE", true],
  ["CapabilityBoundingSet=~CAP_SYS_ADMIN", true],
  ["CapabilityBoundingSet=~CAP_DAC_OVERRIDE CAP_SYS_ADMIN", false],
])("with %j root overrides modes: %j", (text, expected) => {
  expect(unit(text).keepsDacOverride).toBe(expected);
});

describe("what the sandbox makes of a path", () => {
  const strict = "ProtectSystem=strict\nReadWritePaths=/var/lib/app\n";
  test.each([
    ["", "/var/lib/app", "writable"],
    ["ProtectSystem=yes", "/etc/bakelite", "writable"],
    ["ProtectSystem=full", "/etc/bakelite", "read-only"],
    [strict, "/var/lib/app", "writable"],
    [strict, "/var/lib/app/deeper", "writable"],
    [strict, "/var/lib/application", "read-only"],
    [strict, "/dev/shm/x", "writable"],
    [`${strict}ReadOnlyPaths=/var/lib/app/deeper`, "/var/lib/app/deeper/x", "read-only"],
    [`${strict}StateDirectory=bakelite`, "/var/lib/bakelite/x", "writable"],
    [`${strict}BindPaths=/data:/srv`, "/srv/x", "writable"],
    [strict, "/tmp/x", "read-only"],
    ["PrivateTmp=yes", "/tmp/x", "hidden"],
    ["PrivateTmp=yes\nBindPaths=/tmp/x", "/tmp/x/y", "writable"],
    ["ProtectHome=yes\nReadWritePaths=/home/app", "/home/app/x", "hidden"],
    ["ProtectHome=tmpfs\nBindPaths=/home/app", "/home/app/x", "writable"],
    ["ProtectHome=read-only", "/root/x", "read-only"],
    ["ProtectHome=read-only\nReadWritePaths=/home/app", "/home/app/x", "writable"],
    ["InaccessiblePaths=-/secret", "/secret/key", "hidden"],
    ["DynamicUser=yes", "/var/lib/app", "read-only"],
  ])("%j: %s is %s", (text, path, kind) => {
    expect(reachOf(unit(text), path).kind).toBe(kind as never);
  });
});

test("garbage is never more than three problems, and never throws", async () => {
  await fc.assert(
    fc.property(fc.array(fc.string({ unit: "binary" }), { maxLength: 20 }), (lines) => {
      const service = parseService([{ path: "/g", text: lines.join("\n") }]);
      expect(service.problems.length).toBeLessThanOrEqual(3);
    }),
  );
  expect(parseService([{ path: "/g", text: "nonsense\n=x\n" }]).problems).toEqual([
    "/g:1: not a setting",
    "/g:2: not a setting",
  ]);
});
