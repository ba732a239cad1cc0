import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Every process that a test file starts inherits this variable, with a value of the file's own. */
export const MARK_VARIABLE = "BAKELITE_TEST_MARK";

const POLL_MS = 20;

/**
 * The living processes that carry `mark`, wherever they moved in the process tree. Only Linux tells; elsewhere none.
 *
 * @param {string} mark
 * @returns {readonly { readonly pid: number, readonly command: string }[]}
 */
export function findMarked(mark) {
  if (process.platform !== "linux") return [];
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && readProc(name, "environ").includes(`${MARK_VARIABLE}=${mark}`))
    .map((name) => ({ pid: Number(name), command: readProc(name, "cmdline").join(" ").trim() }));
}

/**
 * Waits up to `graceMs` for the processes that carry `mark` to end by themselves, kills what is left, and returns the
 * commands of those.
 *
 * @param {string} mark
 * @param {number} graceMs
 * @returns {Promise<readonly string[]>}
 */
export async function endMarked(mark, graceMs) {
  const endMs = performance.now() + graceMs;
  let before = findMarked(mark);
  // The second look is for a process that was in the middle of an exec, when its environment cannot be read.
  await sleep(POLL_MS);
  let left = findMarked(mark);
  while (before.length + left.length > 0 && performance.now() < endMs) {
    await sleep(POLL_MS);
    before = left;
    left = findMarked(mark);
  }
  for (const { pid } of left) kill(pid, "SIGKILL");
  return left.map(({ command }) => command);
}

/**
 * The memory that a process holds, without what is swapped out; 0 when it is gone or the system does not tell.
 *
 * @param {number} pid
 * @returns {number}
 */
export function residentBytes(pid) {
  const line = readProc(String(pid), "status")[0]
    ?.split("\n")
    .find((text) => text.startsWith("VmRSS:"));
  return Number(/\d+/.exec(line ?? "0")?.[0] ?? 0) * 1024;
}

/**
 * Sends a signal to a process that may be gone already. A negative `pid` names a process group.
 *
 * @param {number} pid
 * @param {NodeJS.Signals} signal
 */
export function kill(pid, signal) {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

/**
 * The strings of a file of `/proc/<pid>`; none when the process is gone or not ours to look at.
 *
 * @param {string} pid
 * @param {"environ" | "cmdline" | "status"} file
 * @returns {readonly string[]}
 */
function readProc(pid, file) {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8").split("\0");
  } catch {
    return [];
  }
}
