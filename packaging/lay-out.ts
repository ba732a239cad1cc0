import { chmod, mkdir, readdir, utimes, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { PackageFile } from "./package-files.ts";

/** Every file with its mode, and every file and folder with the one time: nothing of this machine stays. */
export async function layOut(files: readonly PackageFile[], root: string, timeSeconds: number): Promise<void> {
  for (const { path, mode, bytes } of files) {
    const target = join(root, path);
    await mkdir(dirname(target), { recursive: true });
    await writeFile(target, bytes);
    await chmod(target, mode);
  }
  await setTimes(root, timeSeconds);
}

/** The same for what was put beside them. */
export async function setTimes(folder: string, timeSeconds: number): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await setTimes(path, timeSeconds);
    else await utimes(path, timeSeconds, timeSeconds);
  }
  await chmod(folder, 0o755);
  await utimes(folder, timeSeconds, timeSeconds);
}
