import { expect, test } from "bun:test";
import { parseService, reachOf } from "../../src/setup/doctor-unit.ts";
import { dropInText } from "../../src/setup/service-drop-in.ts";
import { fc } from "../support/properties.ts";

const needs = { user: "app", group: "web", writable: ["/var/lib/app"], readable: [], configPath: null };
const UNIT = { path: "/u/bakelite.service", text: "[Service]\nProtectSystem=strict\nProtectHome=yes\n" };

/** As systemd reads the unit with the drop-in on it. */
function serviceWith(more: Partial<typeof needs> | { configPath: string }) {
  return parseService([UNIT, { path: "/u/bakelite.service.d/10.conf", text: dropInText({ ...needs, ...more }) }]);
}

test("the service runs as the user and the group, and may write where it must", () => {
  const unit = serviceWith({ writable: ["/var/lib/app", "/var/backups/bakelite", "/var/lib/app/inner"] });
  expect(unit).toMatchObject({ user: "app", group: "web", problems: [] });
  for (const path of ["/var/lib/app", "/var/lib/app/inner", "/var/backups/bakelite/app"])
    expect(reachOf(unit, path)).toEqual({ kind: "writable" });
  expect(reachOf(unit, "/etc")).toMatchObject({ kind: "read-only" });
  // A disk that is not mounted is no reason not to start.
  expect(unit.readWritePaths.every(({ optional }) => optional)).toBe(true);
  expect(unit.readWritePaths.map(({ path }) => path)).toEqual(["/var/backups/bakelite", "/var/lib/app"]);
});

test("what is in a home directory is shown, and the rest of the homes stays hidden", () => {
  const unit = serviceWith({ writable: ["/home/app/data"], readable: ["/root/keys/key.txt"] as never });
  expect(reachOf(unit, "/home/app/data")).toEqual({ kind: "writable" });
  expect(reachOf(unit, "/root/keys")).toMatchObject({ kind: "read-only" });
  expect(reachOf(unit, "/home/other")).toMatchObject({ kind: "hidden" });
});

test("any path is read back by a reader of unit files as it was", () => {
  const part = fc
    .string({ unit: "grapheme-ascii", minLength: 1, maxLength: 12 })
    .filter((s) => !/[/\p{Cc}]|^\.{1,2}$/u.test(s));
  fc.assert(
    fc.property(fc.array(part, { minLength: 1, maxLength: 3 }), (parts) => {
      const path = `/srv/${parts.join("/")}`;
      expect(serviceWith({ writable: [path] }).readWritePaths).toEqual([{ path, optional: true }]);
    }),
    { examples: [[["50% off"]], [['a "b" \\c']]] },
  );
});
