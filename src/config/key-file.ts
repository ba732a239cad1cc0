import { constants, type Stats } from "node:fs";
import { type FileHandle, open, stat, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { parseKeyText } from "../format/envelope.ts";
import { syncDirectory } from "../util/atomic-file.ts";
import { BakeliteError, systemErrorCode } from "../util/errors.ts";
import { systemError } from "../util/system-error.ts";

/** Who besides its owner can do what with a key file. */
export interface KeyFileExposure {
  readonly path: string;
  /** Its permission bits as four octal digits: `0644`. */
  readonly mode: string;
  /** A clause for people: `every user of this host can read it`. */
  readonly problem: string;
}

/** A key has 72 characters; a file that is much larger is something else. */
const MAX_KEY_FILE_BYTES = 4096;
const KEY_FILE_MODE = 0o600;

/** What names the key file, for hints, unless the caller says otherwise. */
const KEY_FILE_SETTING = "[defaults.encryption] key_file";

/**
 * The 32 bytes of the key in the file. White space and line ends around it, of whatever system, and a byte order mark do no
 * harm. Throws `key-wrong` when it cannot be read or holds no key, and never waits for one: a directory, a pipe or a device is
 * refused. No message repeats any of the file's content. `setting` is what names the file, for hints.
 */
export async function readKeyFile(path: string, setting: string = KEY_FILE_SETTING): Promise<Uint8Array> {
  return parseKeyText(await readText(path, setting), path);
}

/**
 * Writes a key into a file that does not exist yet, with mode 0600 whatever the umask; it survives a power cut once this
 * resolves. Throws `output-exists` rather than replace anything, a link that leads nowhere included, `not-found` when
 * its folder does not exist, else as `systemError`; then no file is left behind.
 */
export async function createKeyFile(path: string, keyText: string): Promise<void> {
  let file: FileHandle;
  try {
    file = await open(path, "wx", KEY_FILE_MODE);
  } catch (error) {
    throw await creationError(error, path);
  }
  try {
    // The umask may have taken bits away, and a default ACL may have given some.
    await file.chmod(KEY_FILE_MODE);
    await file.writeFile(`${keyText}\n`);
    await file.sync();
    await file.close();
    await syncDirectory(dirname(path));
  } catch (error) {
    await file.close().catch(() => {});
    await unlink(path).catch(() => {});
    throw systemError("cannot write the key file", path, error);
  }
}

async function creationError(error: unknown, path: string): Promise<BakeliteError> {
  const code = systemErrorCode(error);
  if (code === "EEXIST" || code === "EISDIR")
    return new BakeliteError("output-exists", "the file exists, and a key is never overwritten", {
      subject: path,
      hint: "choose another name; what is sealed with a key that is gone cannot be read any more",
    });
  if (code !== "ENOENT" && code !== "ENOTDIR") return systemError("cannot create the key file", path, error);
  return new BakeliteError("not-found", "cannot create the key file: its folder does not exist", {
    subject: dirname(path),
    hint: `make it first: \`mkdir -p ${dirname(path)}\``,
  });
}

/**
 * Whether others than the owner can read the key file, or can write it, and so put another key in its place; null when they
 * cannot, or when it is no file that can be looked at. Reading by its group is no exposure: a daemon that does not own the file reads it so.
 */
export async function keyFileExposure(path: string): Promise<KeyFileExposure | null> {
  let info: Stats;
  try {
    info = await stat(path);
  } catch {
    // Whoever reads it will say what is wrong with it.
    return null;
  }
  const { mode } = info;
  if (!info.isFile()) return null;
  const problem = exposureOf(mode);
  return problem === null ? null : { path, mode: (mode & 0o7777).toString(8).padStart(4, "0"), problem };
}

/** One sentence with the remedy, for a note or a log line. */
export function describeExposure({ path, mode, problem }: KeyFileExposure): string {
  return `${problem} (mode ${mode}): run \`chmod 600 ${path}\`, or 640 if a group must read it`;
}

function exposureOf(mode: number): string | null {
  if ((mode & 0o006) === 0o006) return "every user of this host can read and change the encryption key";
  if ((mode & 0o004) !== 0) return "every user of this host can read the encryption key";
  if ((mode & 0o002) !== 0) return "every user of this host can change the encryption key";
  if ((mode & 0o020) !== 0) return "every member of its group can change the encryption key";
  return null;
}

async function readText(path: string, setting: string): Promise<string> {
  let file: FileHandle | undefined;
  try {
    // Without O_NONBLOCK the open of a pipe waits until somebody writes to it.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const info = await file.stat();
    if (!info.isFile())
      throw unfit(path, setting, `the key file is ${info.isDirectory() ? "a directory" : "not a regular file"}`);
    const bytes = Buffer.alloc(MAX_KEY_FILE_BYTES + 1);
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0);
    if (bytesRead > MAX_KEY_FILE_BYTES)
      throw unfit(path, setting, "this is not a bakelite key: the file is too large for one");
    if (bytesRead === 0) throw unfit(path, setting, "this is not a bakelite key: the file is empty");
    return bytes.toString("utf8", 0, bytesRead);
  } catch (error) {
    if (error instanceof BakeliteError) throw error;
    throw new BakeliteError("key-wrong", "cannot read the key file", {
      subject: path,
      hint:
        systemErrorCode(error) === "ENOENT"
          ? `check the path in ${setting}; if the file is lost, put the copy there that you keep off this host`
          : `check ${setting}, and that the user running bakelite may read it`,
      cause: error,
    });
  } finally {
    await file?.close();
  }
}

function unfit(path: string, setting: string, message: string): BakeliteError {
  return new BakeliteError("key-wrong", message, {
    subject: path,
    hint: `name the file that \`bakelite keygen\` wrote in ${setting}`,
  });
}
