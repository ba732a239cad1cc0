import { dirname } from "node:path";
import { isWithin } from "./doctor-files.ts";

/** What the service needs beyond its unit. */
export interface ServiceNeeds {
  /** null: as the unit says. */
  readonly user: string | null;
  readonly group: string | null;
  /** Directories of databases and of backups on this host, absolute. */
  readonly writable: readonly string[];
  /** Files to read that a hidden home directory would hide. */
  readonly readable: readonly string[];
  /** null: the default one. */
  readonly configPath: string | null;
}

/** The first line of every drop-in that init wrote, and so may write anew. */
export const DROP_IN_MARK = "# Written by `bakelite init`, which may write it anew.";

/** `ProtectHome=yes` of the unit hides these. Source: systemd.exec(5) */
const HOMES = ["/home", "/root", "/run/user"];

/**
 * The text of the drop-in for `bakelite.service` and those beside it. Paths have a `-` in front: a database that does not exist yet, or a disk
 * that is not mounted, must not keep the daemon from telling so. Pure. Source: systemd.unit(5), systemd.exec(5)
 */
export function dropInText({ user, group, writable, readable, configPath }: ServiceNeeds): string {
  const lines = [DROP_IN_MARK, "[Service]"];
  if (user !== null) lines.push(`User=${user}`);
  if (group !== null) lines.push(`Group=${group}`);
  if (configPath !== null) lines.push(`Environment=${quoted(`BAKELITE_CONFIG=${configPath}`)}`);
  const inHomes = (path: string) => HOMES.some((home) => isWithin(path, home));
  const writableOnes = withoutNested(writable);
  if (writableOnes.length > 0) lines.push(`ReadWritePaths=${writableOnes.map(optionalPath).join(" ")}`);
  const hidden = writableOnes.filter(inHomes);
  const hiddenToRead = withoutNested(readable.filter(inHomes).map((path) => dirname(path))).filter(
    (path) => !hidden.some((root) => isWithin(path, root)),
  );
  if (hidden.length + hiddenToRead.length > 0) {
    // Of the homes only these are seen.
    lines.push("ProtectHome=tmpfs");
    if (hidden.length > 0) lines.push(`BindPaths=${hidden.map(optionalPath).join(" ")}`);
    if (hiddenToRead.length > 0) lines.push(`BindReadOnlyPaths=${hiddenToRead.map(optionalPath).join(" ")}`);
  }
  return `${lines.join("\n")}\n`;
}

/** Each once, and none that is inside another. */
function withoutNested(paths: readonly string[]): readonly string[] {
  const distinct = [...new Set(paths)].sort();
  return distinct.filter((path) => !distinct.some((other) => other !== path && isWithin(path, other)));
}

function optionalPath(path: string): string {
  return quoted(`-${path}`);
}

/** `%` begins a specifier, and a space ends a word. Source: systemd.syntax(7), "Quoting" */
function quoted(word: string): string {
  const escaped = word.replaceAll("%", "%%");
  return /^[\w./:@+=,~%-]+$/.test(escaped) ? escaped : `"${escaped.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
}
