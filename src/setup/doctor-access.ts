import { constants, type Stats } from "node:fs";
import { access, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { systemErrorCode } from "../util/errors.ts";
import { formatMode } from "./doctor-files.ts";
import type { DaemonUser, People } from "./doctor-users.ts";

/** What is wanted of a file or directory, as in a mode's last digit. */
export const READ = 4;
export const WRITE = 2;
/** Of a directory: to reach what is in it. */
export const ENTER = 1;

/**
 * Whether the mode grants all that is wanted: the owner's digit for the owner, the group's for a member of the group, else the
 * last, and the first that applies decides. Source: path_resolution(7).
 */
export function modeGrants(
  { mode, uid, gid }: Pick<Stats, "mode" | "uid" | "gid">,
  user: Pick<DaemonUser, "uid" | "gids" | "overridesModes">,
  wanted: number,
): boolean {
  if (user.overridesModes) return true;
  const shift = user.uid === uid ? 6 : user.gids.has(gid) ? 3 : 0;
  return ((mode >> shift) & wanted) === wanted;
}

/** Why the user may not do what is wanted with the path: a clause. */
export type Obstacle = string;

/**
 * What keeps the user from what is wanted with the file or directory at `path` (absolute, without links), or null. Of ourselves the
 * kernel is asked; of another user the modes of the file and of every directory above it tell, which know nothing of ACLs.
 */
export async function findObstacle(
  user: DaemonUser,
  people: People,
  { path, wanted }: { readonly path: string; readonly wanted: number },
): Promise<Obstacle | null> {
  let refusal: string | undefined;
  if (user.isPresent) {
    refusal = await askKernel(path, wanted);
    if (refusal === undefined) return null;
  }
  for (const directory of directoriesAbove(path)) {
    const obstacle = await lookAt(user, people, { path: directory, wanted: ENTER });
    if (obstacle !== null) return obstacle;
  }
  const obstacle = await lookAt(user, people, { path, wanted });
  if (obstacle !== null || refusal === undefined) return obstacle;
  const why = refusal === "EROFS" ? "the file system is read-only" : refusal;
  return `${user.name} may not ${verbs(wanted, true)} ${path}: ${why}`;
}

async function askKernel(path: string, wanted: number): Promise<string | undefined> {
  // The bits of access(2) are those of a mode's digit: R_OK 4, W_OK 2, X_OK 1.
  const mode = wanted & (constants.R_OK | constants.W_OK | constants.X_OK);
  try {
    await access(path, mode);
    return undefined;
  } catch (error) {
    return systemErrorCode(error) ?? "refused";
  }
}

async function lookAt(
  user: DaemonUser,
  people: People,
  { path, wanted }: { readonly path: string; readonly wanted: number },
): Promise<Obstacle | null> {
  let info: Stats;
  try {
    info = await stat(path);
  } catch (error) {
    return `${path} cannot be looked at: ${systemErrorCode(error) ?? "unexpected failure"}`;
  }
  if (modeGrants(info, user, wanted)) return null;
  const owner = `${people.userName(info.uid)}:${people.groupName(info.gid)}`;
  return `${user.name} may not ${verbs(wanted, info.isDirectory())} ${path} (mode ${formatMode(info.mode)}, ${owner})`;
}

function verbs(wanted: number, isDirectory: boolean): string {
  if (wanted === ENTER) return "enter";
  if ((wanted & WRITE) === 0) return "read";
  return isDirectory ? "read and write in" : "read and write";
}

/** From the root down. */
function directoriesAbove(path: string): readonly string[] {
  const above: string[] = [];
  for (let place = dirname(path); ; place = dirname(place)) {
    above.unshift(place);
    if (place === dirname(place)) return above;
  }
}
