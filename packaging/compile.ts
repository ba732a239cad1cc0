import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** One program to compile into an executable. */
export interface Program {
  /** Absolute path of the main module. */
  readonly main: string;
  /** Absolute paths of the modules that are started as workers. */
  readonly workers: readonly string[];
  /** Absolute path of the folder that worker paths are relative to; see `src/util/worker-url.ts`. */
  readonly root: string;
  /** Absolute path of the executable to write. */
  readonly outfile: string;
  /** Another platform than this one. Without a `runtime`, Bun then fetches its own for it from the package registry. */
  readonly target?: Bun.Build.CompileTarget;
  /** Absolute path of the runtime to build with: Bun's executable for `target`. */
  readonly runtime?: string;
  /** Names to replace, and the JavaScript expressions to put in their place. */
  readonly define: Readonly<Record<string, string>>;
}

/**
 * Compiles `program`. The same source and the same Bun give the same bytes, in whatever folder the source lies. The
 * executable takes its final name once it is complete, so that a running one is never written to.
 */
export async function compile(program: Program): Promise<void> {
  await mkdir(dirname(program.outfile), { recursive: true });
  const staging = await mkdtemp(join(dirname(program.outfile), ".build-"));
  try {
    // The name is embedded in the executable, so it has to be the final one already.
    const staged = join(staging, basename(program.outfile));
    await bundle(program, staged);
    await rename(staged, program.outfile);
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

async function bundle(program: Program, outfile: string): Promise<void> {
  await Bun.build({
    entrypoints: [program.main, ...program.workers],
    root: program.root,
    target: "bun",
    format: "esm",
    // ssh2 tries these two, native and for this machine alone, and goes on without them: none may get in here.
    external: ["cpu-features", "*/sshcrypto.node"],
    // Start-up halves: 11 ms in place of 24 ms, for 2 MB, with all dependencies in the bundle.
    bytecode: true,
    // A command's own modules stay apart until it is the one that runs: `version` takes 12 ms in place of 29, and the daemon
    // has some 5 MiB less resident.
    splitting: true,
    // Names are kept: a stack trace in a bug report is worth more than a few kilobytes of a hundred megabytes.
    minify: { whitespace: true, syntax: true, identifiers: false },
    // The map is embedded, so that those traces name our files and lines.
    sourcemap: "linked",
    define: { "process.env.NODE_ENV": JSON.stringify("production"), ...program.define },
    compile: {
      outfile,
      ...(program.target === undefined ? {} : { target: program.target }),
      ...(program.runtime === undefined ? {} : { executablePath: program.runtime }),
      // By default a compiled executable obeys `.env` and `bunfig.toml` of the current directory, and a `preload` in
      // that bunfig is code that would run as us, perhaps as root.
      autoloadDotenv: false,
      autoloadBunfig: false,
      autoloadTsconfig: false,
      autoloadPackageJson: false,
      // Only modules inside the executable may run: no `--preload` by way of BUN_OPTIONS, no inspector, no worker from
      // a file on disk. It also makes `new Function` throw, for which zod has another way.
      execArgv: ["--disallow-code-generation-from-strings=strict"],
    },
  });
}
