import { dirname, join } from "node:path/posix";
import type { Habit, SourceFacts } from "./source-facts.ts";

/** Ground floor first; a file imports from its own folder and from folders before it. docs/architecture.md says why. */
export const FLOORS = [
  "util",
  "sqlite",
  "format",
  "storage",
  "config",
  "state",
  "replica",
  "replicator",
  "daemon",
  "setup",
  "cli",
  "main.ts",
] as const;

type Files = ReadonlyMap<string, SourceFacts>;
type Place = (file: string) => boolean;

/** Where a package may be imported, so that replacing it touches one place. */
interface Doorway {
  readonly allowed: Place;
  readonly description: string;
}

const anywhere: Doorway = { allowed: () => true, description: "anywhere" };

const DOORWAYS: Readonly<Record<string, Doorway>> = {
  "@clack/prompts": within("setup/"),
  "@noble/ciphers": files("format/envelope.ts"),
  "@noble/hashes": files("format/envelope.ts"),
  aws4fetch: within("storage/s3/"),
  "bun:ffi": oneImporter(),
  "bun:sqlite": files("sqlite/control.ts", "state/instance-lock.ts", "replica/restore-check.ts"),
  cac: within("cli/"),
  "fast-xml-parser": oneImporter((file) => /^storage\/(?:.*\/)?xml\.ts$/.test(file), "one xml.ts in storage/"),
  "smol-toml": within("config/"),
  ssh2: within("storage/sftp/"),
  zod: anywhere,
};

/** Folders that have never met; what needs both lives upstairs. */
const STRANGERS: readonly (readonly [string, string])[] = [["sqlite", "storage"]];

/** Imports that the floors would allow and the house does not. */
const CLOSED_DOORS: readonly { readonly from: string; readonly to: string; readonly because: string }[] = [
  { from: "replica/", to: "sqlite/control.ts", because: "replica/ never touches a live database" },
];

/** Bytes in and values out: no clock, file, network or randomness. */
const isPure: Place = (file) =>
  file.startsWith("format/") || file === "sqlite/wal.ts" || file === "sqlite/database-file.ts";
const PURE_BUILTINS = new Set(["node:crypto", "node:zlib", "node:buffer", "node:util", "node:path", "node:path/posix"]);
const IMPURE_HABITS: readonly Habit[] = ["reads the clock", "draws randomness", "touches the world"];

/** Files outside `src/` that a file may import. */
const OUTSIDE: Readonly<Record<string, Place>> = {
  "../package.json": (file) => file === "util/build-info.ts",
};

/** Every broken rule of the house as one sentence each. `files` are all of `src/`, by path relative to it. */
export function findViolations(files: Files): readonly string[] {
  const perFile = [...files].flatMap(([file, facts]) => [
    ...checkPlace(file),
    ...checkHabits(file, facts),
    ...facts.imports.flatMap(({ specifier, kind }) =>
      specifier.startsWith(".") || kind === "worker"
        ? checkLocalImport(file, resolveLocal(file, specifier, kind), files)
        : checkPackageImport(file, specifier),
    ),
  ]);
  return [...perFile, ...checkSingleImporters(files), ...findCycles(files)];
}

function checkPlace(file: string): readonly string[] {
  const violations: string[] = [];
  if (floorOf(file) === -1) violations.push(`${file} stands on no floor of the house`);
  if (/(?:^|\/)index\.ts$/.test(file)) violations.push(`${file}: there are no index.ts files`);
  return violations;
}

function checkHabits(file: string, { habits }: SourceFacts): readonly string[] {
  const forbidden: Habit[] = ["exports everything", "computes an import", "starts a worker by path"];
  if (file !== "main.ts") forbidden.push("calls process.exit");
  if (isPure(file)) forbidden.push(...IMPURE_HABITS);
  return forbidden.filter((habit) => habits.has(habit)).map((habit) => `${file} ${habit}`);
}

function checkLocalImport(file: string, target: string, files: Files): readonly string[] {
  if (target.startsWith("../")) {
    return OUTSIDE[target]?.(file) === true ? [] : [`${file} imports ${target}, which is outside src/`];
  }
  if (isText(target)) {
    return folderOf(target) === folderOf(file) ? [] : [`${file} imports ${target}, a text of another room`];
  }
  if (!files.has(target)) return [`${file} imports ${target}, which does not exist`];
  const violations: string[] = [];
  if (floorOf(target) > floorOf(file)) violations.push(`${file} imports ${target}, which is a floor above it`);
  for (const pair of STRANGERS) {
    const folders: readonly string[] = pair;
    const [own, other] = [folderOf(file), folderOf(target)];
    if (own !== other && folders.includes(own) && folders.includes(other)) {
      violations.push(`${file} imports ${target}, and ${pair.join("/ and ")}/ have never met`);
    }
  }
  for (const door of CLOSED_DOORS) {
    if (file.startsWith(door.from) && target === door.to) {
      violations.push(`${file} imports ${target}, and ${door.because}`);
    }
  }
  return violations;
}

function checkPackageImport(file: string, specifier: string): readonly string[] {
  if (isPure(file) && isBuiltin(specifier) && !PURE_BUILTINS.has(specifier)) {
    return [`${file} imports ${specifier}, and pure files know no clock, file, network or randomness`];
  }
  if (specifier.startsWith("node:") || specifier === "bun") return [];
  const doorway = DOORWAYS[packageOf(specifier)];
  if (doorway === undefined) {
    return [`${file} imports ${specifier}, which has no doorway yet: name one in test/architecture/house-rules.ts`];
  }
  if (doorway.allowed(file)) return [];
  return [`${file} imports ${specifier}, whose doorway is ${doorway.description}`];
}

function checkSingleImporters(files: Files): readonly string[] {
  return Object.entries(DOORWAYS)
    .filter(([, doorway]) => doorway.description.startsWith("one "))
    .flatMap(([name, doorway]) => {
      const importers = [...files]
        .filter(([, facts]) => facts.imports.some(({ specifier }) => packageOf(specifier) === name))
        .map(([file]) => file);
      if (importers.length < 2) return [];
      return [`${importers.sort().join(" and ")} import ${name}, whose doorway is ${doorway.description}`];
    });
}

/** Each cycle once, beginning at the file that sorts first on it. */
function findCycles(files: Files): readonly string[] {
  const cycles: string[] = [];
  const finished = new Set<string>();
  const path: string[] = [];
  const visit = (file: string): void => {
    const start = path.indexOf(file);
    if (start !== -1) {
      cycles.push(`imports go round: ${[...path.slice(start), file].join(" -> ")}`);
      return;
    }
    if (finished.has(file)) return;
    path.push(file);
    for (const { specifier, kind } of files.get(file)?.imports ?? []) {
      if (kind === "module" && specifier.startsWith(".")) visit(resolveLocal(file, specifier, kind));
    }
    path.pop();
    finished.add(file);
  };
  for (const file of [...files.keys()].sort()) visit(file);
  return cycles;
}

/** Files that the executable carries as texts; a missing one breaks the build. */
function isText(target: string): boolean {
  return target.startsWith("setup/recipes/");
}

function resolveLocal(file: string, specifier: string, kind: "module" | "worker"): string {
  return kind === "worker" ? specifier : join(dirname(file), specifier);
}

function folderOf(file: string): string {
  return file.split("/", 1)[0] ?? file;
}

function floorOf(file: string): number {
  const floors: readonly string[] = FLOORS;
  return floors.indexOf(folderOf(file));
}

function isBuiltin(specifier: string): boolean {
  return specifier.startsWith("node:") || specifier.startsWith("bun:") || specifier === "bun";
}

function packageOf(specifier: string): string {
  return specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");
}

function within(folder: string): Doorway {
  return { allowed: (file) => file.startsWith(folder), description: folder };
}

function files(...paths: readonly string[]): Doorway {
  return { allowed: (file) => paths.includes(file), description: paths.join(", ") };
}

function oneImporter(allowed: Place = () => true, description = "one file"): Doorway {
  return { allowed, description };
}
