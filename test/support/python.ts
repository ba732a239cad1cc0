import { existsSync } from "node:fs";

const SYSTEM_PYTHON = "/usr/bin/python3";

/**
 * The Python whose `sqlite3` module is an engine of its own beside Bun's: the operating system's if there is one, since
 * a version manager's may be linked to anything.
 */
export function pythonPath(): string {
  if (existsSync(SYSTEM_PYTHON)) return SYSTEM_PYTHON;
  const found = Bun.which("python3");
  if (found === null) throw new Error("these tests need python3 with its sqlite3 module as a second SQLite engine");
  return found;
}
