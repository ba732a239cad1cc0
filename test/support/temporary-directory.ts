import { mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface TemporaryDirectory extends AsyncDisposable {
  readonly path: string;
  /** The path of `names` inside this directory. */
  file(...names: readonly string[]): string;
}

/**
 * A fresh empty directory, removed with all it holds when disposed. `BAKELITE_TEST_KEEP=1` keeps it and prints where it
 * is. The path has no symbolic link in it, so that it equals what `/proc` shows.
 */
export async function temporaryDirectory(label = "test"): Promise<TemporaryDirectory> {
  const path = await realpath(await mkdtemp(join(tmpdir(), `bakelite-${label}-`)));
  return {
    path,
    file: (...names) => join(path, ...names),
    async [Symbol.asyncDispose]() {
      if (process.env["BAKELITE_TEST_KEEP"] === "1") console.error(`kept ${path}`);
      else await rm(path, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}
