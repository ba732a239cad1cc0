import { existsSync } from "node:fs";
import { resolve } from "node:path";

/** The compiled program that `npm test` and `npm run build` leave behind. */
const EXECUTABLE = resolve(import.meta.dir, "../../dist/bakelite");

/** The path of the compiled executable. Throws when it has not been built. */
export function executablePath(): string {
  if (!existsSync(EXECUTABLE)) throw new Error(`${EXECUTABLE} does not exist: run \`npm run build\`, or \`npm test\``);
  return EXECUTABLE;
}
