import { constants, type Stats } from "node:fs";
import { lstat, open, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { systemErrorCode } from "../util/errors.ts";

/**
 * The first bytes of a regular file, at most `maxBytes`. O_NONBLOCK: a pipe in its place must not hang us; it and anything
 * else that is no regular file give null. Throws what the system does.
 */
export async function readStart(path: string, maxBytes: number): Promise<Uint8Array | null> {
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  if (!(await file.stat()).isFile()) return null;
  const bytes = new Uint8Array(maxBytes);
  let length = 0;
  for (;;) {
    const { bytesRead } = await file.read(bytes, length, maxBytes - length, length);
    length += bytesRead;
    if (bytesRead === 0 || length === maxBytes) return bytes.subarray(0, length);
  }
}

/** What stands at the path, links followed; null when nothing does. Throws for anything else, such as no permission. */
export async function statOrNull(path: string): Promise<Stats | null> {
  return await orNull(stat(path));
}

/** As `statOrNull`, of a link itself. */
export async function lstatOrNull(path: string): Promise<Stats | null> {
  return await orNull(lstat(path));
}

async function orNull(looking: Promise<Stats>): Promise<Stats | null> {
  try {
    return await looking;
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "")) return null;
    throw error;
  }
}

/** The path itself if something stands there, else the nearest directory above it that exists. */
export async function nearestExisting(path: string): Promise<string> {
  for (let place = path; ; place = dirname(place))
    if (place === dirname(place) || (await statOrNull(place)) !== null) return place;
}

/** What a person calls a thing that is no regular file. */
export function kindOf(info: Stats): string {
  if (info.isDirectory()) return "a directory";
  if (info.isSymbolicLink()) return "a symbolic link";
  if (info.isFIFO()) return "a pipe";
  if (info.isSocket()) return "a socket";
  return info.isFile() ? "a file" : "a device";
}

/** `0640` */
export function formatMode(mode: number): string {
  return (mode & 0o7777).toString(8).padStart(4, "0");
}

/** True for `root` itself and what is below it. Both absolute, without a slash at the end. */
export function isWithin(path: string, root: string): boolean {
  return path === root || path.startsWith(root === "/" ? "/" : `${root}/`);
}

/** A word for the shell, quoted where it must be. */
export function shellWord(text: string): string {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
