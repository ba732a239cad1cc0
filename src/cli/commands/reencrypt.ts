import { resolve } from "node:path";
import { describeExposure, keyFileExposure, readKeyFile } from "../../config/key-file.ts";
import type { DatabaseConfig } from "../../config/types.ts";
import { deriveSealKey, type SealKey } from "../../format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../format/names.ts";
import type { ReencryptProblem, ReencryptProgress } from "../../replica/reencrypt.ts";
import { type ReencryptOutcome, reencryptDatabase } from "../../replica/reencrypt-database.ts";
import { describeSeal, type ReencryptPlan } from "../../replica/reencrypt-plan.ts";
import { buildInfo } from "../../util/build-info.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import type { BakeliteError } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { createProgress, type Progress } from "../../util/progress.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";
import { noticesOf } from "../notices.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--old-key-file <path>] [--dry-run] [--without-database] [--json]",
  description: [
    "Rewrites everything that is stored under the encryption that is configured now: encrypts a replica that was in plaintext, changes its key (with the old one in --old-key-file), or decrypts it (no encryption configured, and --old-key-file).",
    "Stop the daemon of the database first. At each destination everything is stored and read back under its new name before the first old object is deleted. Interrupted at any moment, nothing is lost: run it again to finish.",
  ],
  options: [
    {
      name: "old-key-file",
      value: "path",
      repeatable: true,
      description: "A key that stored objects are sealed with; may be given several times",
    },
    { name: "dry-run", description: "Only show what would be rewritten; the daemon may run" },
    {
      name: "without-database",
      description: "The database is not on this host, so nothing can be locked, and no daemon follows it anywhere",
    },
  ],
  examples: [
    { comment: "Encrypt what was stored before a key was configured", command: "bakelite reencrypt --db app" },
    {
      comment: "Change the key: look first",
      command: "bakelite reencrypt --db app --old-key-file /etc/bakelite/key-old.txt --dry-run",
    },
  ],
  async run(context) {
    const { options, flags, signal, stderr } = context;
    const dryRun = options.has("dry-run");
    const config = await context.loadConfig();
    const oldKeys = await readOldKeys(context);
    const results: Result[] = [];
    try {
      for (const database of context.selectDatabases(config)) {
        signal.throwIfAborted();
        const result = await reencryptOne(context, database, { dryRun, oldKeys });
        results.push(result);
        if (!flags.json) writeText(context, result);
      }
    } catch (error) {
      if (signal.aborted && !dryRun)
        stderr.write("stopped: nothing is lost, and what was rewritten stays; run the same command again to finish\n");
      throw error;
    }
    if (flags.json) writeDocument(context, results, dryRun);
    return results.some(hasFailed) ? 1 : 0;
  },
};

interface Result {
  readonly database: string;
  readonly outcome: ReencryptOutcome | null;
  readonly error: BakeliteError | null;
}

function hasFailed({ outcome, error }: Result): boolean {
  return error !== null || (outcome !== null && outcome.problems.count > 0);
}

async function readOldKeys({ options, stderr }: CommandContext): Promise<readonly SealKey[]> {
  const keys: SealKey[] = [];
  for (const path of options.texts("old-key-file").map((given) => resolve(given))) {
    keys.push(deriveSealKey(await readKeyFile(path, "--old-key-file")));
    const exposure = await keyFileExposure(path);
    if (exposure !== null) stderr.write(`note: ${printable(describeExposure(exposure))}\n`);
  }
  return keys;
}

async function reencryptOne(
  context: CommandContext,
  database: DatabaseConfig,
  { dryRun, oldKeys }: { readonly dryRun: boolean; readonly oldKeys: readonly SealKey[] },
): Promise<Result> {
  const { options, signal, clock, logger } = context;
  using progress = new Line(context, database.name);
  try {
    logger.debug("reencrypting", { database: database.name, dryRun, destinations: database.backends.length });
    const outcome = await reencryptDatabase(database, {
      oldKeys,
      dryRun,
      withoutDatabase: options.has("without-database"),
      writer: `bakelite/${buildInfo.version}`,
      randomHex: (bytes) => Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex"),
      nowMs: () => clock.nowMs(),
      signal,
      progress,
      news: noticesOf(database.name, context.stderr),
    });
    return { database: database.name, outcome, error: null };
  } catch (error) {
    signal.throwIfAborted();
    return { database: database.name, outcome: null, error: failureOfPart(error) };
  }
}

/** Bytes, rate and ETA on a terminal. */
class Line implements ReencryptProgress, Disposable {
  readonly #context: CommandContext;
  readonly #database: string;
  #line: Progress | null = null;

  constructor(context: CommandContext, database: string) {
    this.#context = context;
    this.#database = database;
  }

  begin(totalBytes: number): void {
    const { stderr: output, clock } = this.#context;
    this.#line = createProgress({ label: `reencrypting ${this.#database}`, totalBytes, output, clock });
  }

  add(bytes: number): void {
    this.#line?.add(bytes);
  }

  [Symbol.dispose](): void {
    this.#line?.[Symbol.dispose]();
  }
}

function writeText({ stdout, stderr }: CommandContext, { database, outcome, error }: Result): void {
  if (error !== null) writeFailedPart(stderr, database, error);
  if (outcome === null) return;
  const lines = [`${database}: ${sentence(outcome)}`];
  for (const problem of outcome.problems.listed) {
    lines.push(
      `  ${problem.kind}  ${[problem.destination, problem.key].filter(Boolean).join("/")}: ${problem.message}`,
    );
    lines.push(`    next: ${problem.nextStep}`);
  }
  const { count, listed } = outcome.problems;
  if (count > listed.length) lines.push(`  and ${count - listed.length} more problems, which were counted only`);
  stdout.write(`${lines.map((line) => printable(line)).join("\n")}\n`);
  for (const note of outcome.notes) stderr.write(`note: ${printable(note)}\n`);
}

function sentence({ plan, documentCount, report, problems }: ReencryptOutcome): string {
  const { objectCount, sizeBytes, rightCount } = plan;
  if (objectCount === 0 && documentCount === 0) {
    if (problems.count > 0) return `nothing was done; ${plural(problems.count, "problem")}`;
    if (rightCount === 0) return "nothing is stored yet";
    return `nothing to do: ${rightCount === 1 ? "the one stored object is" : `all ${rightCount} stored objects are`} ${inSeal(plan.seal)}`;
  }
  const work = `${plural(objectCount, "object")}, ${formatByteSize(sizeBytes)} (${describeOldSeals(plan)})`;
  const right =
    rightCount === 0 ? "" : `; ${rightCount} ${rightCount === 1 ? "is" : "are"} ${inSeal(plan.seal)} already`;
  if (report === null) return `would rewrite ${work} ${intoSeal(plan.seal)}${right}`;
  const done = `${verb(plan)}: ${report.rewrittenCount} of ${plural(objectCount, "object")} rewritten, ${formatByteSize(report.rewrittenBytes)}; ${plural(report.deletedCount, "old one")} deleted`;
  return problems.count === 0 ? done : `${done}; ${plural(problems.count, "problem")}`;
}

function verb({ seal, oldSeals }: ReencryptPlan): string {
  if (seal === PLAINTEXT_SEAL) return "decrypted";
  return [...oldSeals.keys()].every((old) => old === PLAINTEXT_SEAL)
    ? `encrypted with key ${seal}`
    : `changed to key ${seal}`;
}

function inSeal(seal: string): string {
  return seal === PLAINTEXT_SEAL ? "in plaintext" : `sealed with key ${seal}`;
}

function intoSeal(seal: string): string {
  return seal === PLAINTEXT_SEAL ? "in plaintext" : `under key ${seal}`;
}

function describeOldSeals({ oldSeals }: ReencryptPlan): string {
  return [...oldSeals]
    .map(([seal, count]) => `${count} in ${describeSeal(seal)}`.replace(" in key ", " under key "))
    .join(", ");
}

function writeDocument({ stdout }: CommandContext, results: readonly Result[], dryRun: boolean): void {
  const document = {
    dry_run: dryRun,
    outcome: results.some(hasFailed) ? "problems" : "done",
    databases: results.map(databaseDocument),
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}

function databaseDocument(result: Result): Record<string, unknown> {
  const { database, outcome, error } = result;
  const plan = outcome?.plan;
  const report = outcome?.report ?? null;
  return {
    name: database,
    outcome: hasFailed(result) ? "problems" : "done",
    error: errorDocument(error),
    key_fingerprint: plan === undefined ? null : fingerprintOf(plan.seal),
    objects: plan?.objectCount ?? null,
    bytes: plan?.sizeBytes ?? null,
    from: [...(plan?.oldSeals ?? [])].map(([seal, objects]) => ({ key_fingerprint: fingerprintOf(seal), objects })),
    documents: outcome?.documentCount ?? null,
    already_right: plan?.rightCount ?? null,
    rewritten: report?.rewrittenCount ?? null,
    rewritten_bytes: report?.rewrittenBytes ?? null,
    deleted: report?.deletedCount ?? null,
    problem_count: outcome?.problems.count ?? 0,
    problems: (outcome?.problems.listed ?? []).map(problemDocument),
    notes: outcome?.notes ?? [],
  };
}

function problemDocument({ kind, destination, key, message, nextStep }: ReencryptProblem): Record<string, unknown> {
  return { kind, destination, key, message, next_step: nextStep };
}

/** null: plaintext. */
function fingerprintOf(seal: string): string | null {
  return seal === PLAINTEXT_SEAL ? null : seal;
}
