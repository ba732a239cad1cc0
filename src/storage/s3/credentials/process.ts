import { delay } from "../../../util/delay.ts";
import { abortError } from "../../abort.ts";
import { type Origin, parseKeysDocument, unfit } from "./keys.ts";
import type { AwsCredentials } from "./types.ts";

/** Such a program may ask a server; it cannot ask a person, since it has no terminal. */
const DEFAULT_TIMEOUT_MS = 60_000;
const MAX_OUTPUT_BYTES = 64 * 1024;

export interface ProcessOptions {
  /** As it stands in the file. */
  readonly commandLine: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs a `credential_process` and reads the credentials off its standard output. AWS's tools hand the line to a shell; we
 * do not: it is split at white space, with quotes and backslashes as in `splitCommandLine`, and run as it is, so that nothing
 * in it is expanded or chained. Its input is empty, and its standard error is thrown away, for a message of it may hold a
 * secret and would end in a log. It is killed after `timeoutMs`, and when `signal` is aborted.
 *
 * Throws `storage-denied` when the program cannot be run, fails, takes too long or prints something else; then too, nothing
 * that it printed is repeated, and of its line only the first word.
 * Source: AWS SDKs and Tools Reference Guide, "Process credential provider".
 */
export async function runCredentialProcess(options: ProcessOptions, origin: Origin): Promise<AwsCredentials> {
  const words = splitCommandLine(options.commandLine);
  const [program] = words ?? [];
  if (words === null || program === undefined) {
    throw unfit("the line of credential_process is empty, or a quote in it does not end", origin);
  }
  return parseKeysDocument(await outputOf(words, program, options, origin), origin);
}

/**
 * The words of a command line: '…' takes all as it stands, "…" all but \" and \\, and a backslash outside of quotes takes the
 * character after it. null when a quote does not end. No variable, `~`, pipe or `;` means anything.
 */
export function splitCommandLine(line: string): readonly string[] | null {
  const words: string[] = [];
  let word: string | undefined;
  for (let i = 0; i < line.length; i++) {
    const character = line.charAt(i);
    if (/\s/.test(character)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (character === "'" || character === '"') {
      const quoted = readQuoted(line, i + 1, character);
      if (quoted === null) return null;
      word = (word ?? "") + quoted.text;
      i = quoted.endOffset;
    } else if (character === "\\" && i + 1 < line.length) {
      i++;
      word = (word ?? "") + line.charAt(i);
    } else {
      word = (word ?? "") + character;
    }
  }
  return word === undefined ? words : [...words, word];
}

/** The text from `start` up to the quote that ends it, at `endOffset`. */
function readQuoted(line: string, start: number, quote: string): { text: string; endOffset: number } | null {
  let text = "";
  for (let i = start; i < line.length; i++) {
    const character = line.charAt(i);
    if (character === quote) return { text, endOffset: i };
    const next = line.charAt(i + 1);
    if (quote === '"' && character === "\\" && (next === '"' || next === "\\")) {
      i++;
      text += next;
    } else {
      text += character;
    }
  }
  return null;
}

async function outputOf(
  words: readonly string[],
  program: string,
  { env, timeoutMs = DEFAULT_TIMEOUT_MS, signal }: ProcessOptions,
  origin: Origin,
): Promise<string> {
  const child = startChild(words, program, env, origin);
  const finished = new AbortController();
  const limit = signal === undefined ? finished.signal : AbortSignal.any([signal, finished.signal]);
  try {
    // Not the end of the child but that of its output is waited for, within the same time: a grandchild may hold on to it.
    const output = readOutput(child.stdout);
    output.catch(() => {});
    const outcome = await Promise.race([
      output.then(async (text) => ({ text, exitCode: text === null ? null : await child.exited })),
      delay(timeoutMs, limit).then(() => "late" as const),
    ]);
    if (outcome === "late") throw unfit(`${program} did not finish within ${timeoutMs} ms`, origin);
    const { text, exitCode } = outcome;
    if (text === null) throw unfit(`${program} printed more than ${MAX_OUTPUT_BYTES / 1024} KiB`, origin);
    if (exitCode !== 0) throw unfit(`${program} ended with exit status ${exitCode}`, origin);
    return text;
  } catch (error) {
    if (signal?.aborted) throw abortError(signal);
    throw error;
  } finally {
    finished.abort();
    child.kill("SIGKILL");
  }
}

function startChild(
  words: readonly string[],
  program: string,
  env: Readonly<Record<string, string | undefined>>,
  origin: Origin,
): Bun.Subprocess<"ignore", "pipe", "ignore"> {
  try {
    return Bun.spawn([...words], { env: { ...env }, stdin: "ignore", stdout: "pipe", stderr: "ignore" });
  } catch {
    // Without a cause: the runtime's message repeats the words of the line, and one may be a password.
    throw unfit(`${program} cannot be run; is it there, with its whole path, and executable?`, origin);
  }
}

/** null when it is too much. */
async function readOutput(stream: ReadableStream<Uint8Array>): Promise<string | null> {
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const piece of stream) {
    sizeBytes += piece.byteLength;
    if (sizeBytes > MAX_OUTPUT_BYTES) return null;
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}
