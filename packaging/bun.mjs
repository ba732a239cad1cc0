// Runs Bun with the arguments given, after installing the dependencies when they are missing: the first command on a
// fresh clone, where there is only Node and npm. `node packaging/bun.mjs packaging/build.ts --help`
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { bunPath, ensureDependencies } from "./dependencies.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
ensureDependencies(root);

const child = spawn(bunPath(root), process.argv.slice(2), { cwd: root, stdio: "inherit" });
// A Ctrl-C reaches the child from the terminal; a signal sent to this process alone has to be handed on.
for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"])) {
  process.on(signal, () => void child.kill(signal));
}
child.on("error", (error) => {
  console.error(`cannot start bun: ${error.message}`);
  process.exitCode = 1;
});
child.on("exit", (code, signal) => {
  process.exitCode = code ?? (signal === "SIGINT" ? 130 : 1);
});
