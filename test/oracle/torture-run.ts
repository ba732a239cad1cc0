// Tortures one database: `npm run torture -- --seconds 60 --kills 8 --writers 3 --seed 1`. With --runs it goes on with the
// seeds that follow. Ends with status 1 at the first thing that is wrong.
import { parseArgs } from "node:util";
import type { Setting } from "./daemon-process.ts";
import { tortureLockStep } from "./lock-step-torture.ts";
import { describeReport, type TortureOptions, torture } from "./torture.ts";
import { isRoleName, type RoleName } from "./torture-cast.ts";
import { DESTINATION_KINDS, type DestinationKind } from "./torture-destination.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "60" },
    kills: { type: "string", default: "8" },
    /** A number, or roles: `--writers normal,hostile,flat-out`. */
    writers: { type: "string", default: "3" },
    seed: { type: "string" },
    runs: { type: "string", default: "1" },
    "page-size": { type: "string" },
    "auto-vacuum": { type: "string" },
    "target-bytes": { type: "string" },
    /** Bytes that the database has from the beginning. */
    ballast: { type: "string", default: "0" },
    /** `file`, or a server behind a line with faults and outages: `s3`, `gcs`, `azure`, `sftp`. */
    to: { type: "string", default: "file" },
    /** With a background mirror in a directory besides. */
    mirror: { type: "boolean", default: false },
    /** Three destinations in lock-step (with `--to s3` one of them is a real S3 server), of which one after the other fails. */
    destinations: { type: "boolean", default: false },
    encrypted: { type: "boolean", default: false },
    /** The encryption changes all the while, by `bakelite reencrypt`, which is killed as well; `--rotations` says how often. */
    rotate: { type: "boolean", default: false },
    rotations: { type: "string" },
    /** The compiled program instead of the source. */
    executable: { type: "boolean", default: false },
    /** A key of [defaults], as `--set max_wal_size=64KiB`; several times. */
    set: { type: "string", multiple: true, default: [] },
    verbose: { type: "boolean", default: false },
  },
});

const interrupted = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const)
  process.once(name, () => interrupted.abort(new Error(`interrupted by ${name}`)));
try {
  await run();
} catch (error) {
  console.error(values.verbose ? error : `FAILED: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}

async function run(): Promise<void> {
  const drawn = crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
  const firstSeed = values.seed === undefined ? drawn : wholeNumber("seed", values.seed);
  for (let i = 0; i < wholeNumber("runs", values.runs); i++) {
    const startedMs = performance.now();
    const since = () => `${((performance.now() - startedMs) / 1000).toFixed(1)} s`;
    if (values.destinations) {
      await runLockStep((firstSeed + i) >>> 0, since);
      continue;
    }
    const options = readOptions((firstSeed + i) >>> 0);
    const report = await torture({
      ...options,
      signal: interrupted.signal,
      ...(values.verbose ? { tell: (what) => console.error(`${since()}  ${what}`) } : {}),
    });
    console.log(describeReport(report));
  }
}

async function runLockStep(seed: number, since: () => string): Promise<void> {
  const report = await tortureLockStep({
    seed,
    seconds: wholeNumber("seconds", values.seconds),
    kills: wholeNumber("kills", values.kills),
    writers: wholeNumber("writers", values.writers),
    s3: values.to === "s3",
    program: values.executable ? "executable" : "source",
    signal: interrupted.signal,
    ...(values.verbose ? { tell: (what) => console.error(`${since()}  ${what}`) } : {}),
  });
  console.log(JSON.stringify(report));
}

function readOptions(seed: number): TortureOptions {
  const pageSize = values["page-size"];
  const targetBytes = values["target-bytes"];
  return {
    seed,
    seconds: wholeNumber("seconds", values.seconds),
    kills: wholeNumber("kills", values.kills),
    writers: writers(values.writers),
    writerOptions: {
      ...(pageSize === undefined ? {} : { pageSizeBytes: wholeNumber("page-size", pageSize) }),
      ...(targetBytes === undefined ? {} : { targetBytes: wholeNumber("target-bytes", targetBytes) }),
      ...(values["auto-vacuum"] === undefined ? {} : { autoVacuum: autoVacuum(values["auto-vacuum"]) }),
    },
    settings: Object.fromEntries(values.set.map(setting)),
    ballastBytes: wholeNumber("ballast", values.ballast),
    mirror: values.mirror,
    encrypted: values.encrypted,
    rotations: rotations(),
    destination: destination(values.to),
    program: values.executable ? "executable" : "source",
  };
}

function wholeNumber(name: string, text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new Error(`--${name} is ${text}, and must be a whole number`);
  return value;
}

/** With `--rotate` a whole circle at least. */
function rotations(): number {
  if (values.rotations !== undefined) return wholeNumber("rotations", values.rotations);
  return values.rotate ? Math.max(3, Math.ceil(wholeNumber("seconds", values.seconds) / 8)) : 0;
}

function destination(text: string): DestinationKind {
  const kind = DESTINATION_KINDS.find((each) => each === text);
  if (kind !== undefined) return kind;
  throw new Error(`--to is ${text}, and must be one of ${DESTINATION_KINDS.join(", ")}`);
}

function writers(text: string): number | readonly RoleName[] {
  if (/^\d+$/.test(text)) return Number(text);
  return text.split(",").map((name) => {
    if (isRoleName(name)) return name;
    throw new Error(`--writers has no role ${name}`);
  });
}

function autoVacuum(text: string): "none" | "full" | "incremental" {
  if (text === "none" || text === "full" || text === "incremental") return text;
  throw new Error(`--auto-vacuum is ${text}, and must be none, full or incremental`);
}

/** `key=value`: numbers and booleans as they are, all else as a string. */
function setting(text: string): [string, Setting] {
  const at = text.indexOf("=");
  if (at < 1) throw new Error(`--set is ${text}, and must be key=value`);
  const value = text.slice(at + 1);
  if (value === "true" || value === "false") return [text.slice(0, at), value === "true"];
  return [text.slice(0, at), /^\d+$/.test(value) ? Number(value) : value];
}
