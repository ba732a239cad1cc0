import { constants } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { BakeliteError, systemErrorCode } from "../../../util/errors.ts";
import { type IniFile, type IniSection, parseIni } from "./ini.ts";
import type { CredentialsOptions } from "./types.ts";

/** A file that holds credentials or settings of AWS's tools; anything much larger is something else. */
const MAX_FILE_BYTES = 1024 * 1024;

/** The two files of AWS's tools, after reading. A missing one has no sections. */
export interface SharedFiles {
  readonly credentials: SharedFile;
  readonly config: SharedFile;
}

export interface SharedFile {
  readonly path: string;
  /** By the name of the profile. */
  readonly profiles: IniFile;
  /** null: it was read. Else why there is nothing in it: `not there`. */
  readonly absence: string | null;
  /** Any user of the host can change the file. */
  readonly isWritableByAll: boolean;
}

/** A profile of both files. */
export interface Profile {
  readonly name: string;
  readonly inCredentials: IniSection;
  readonly inConfig: IniSection;
  /** A setting of either file, the credentials file first; undefined when it is not set or empty. */
  setting(name: string): string | undefined;
}

/** The name of the profile that counts, and whose will that is. */
export interface ProfileChoice {
  readonly name: string;
  readonly chosenBy: "config" | "AWS_PROFILE" | "default";
}

/** A variable of the environment; undefined when it is not set or empty, which AWS's tools take for the same. */
export function variable({ env }: Pick<CredentialsOptions, "env">, name: string): string | undefined {
  return env[name] || undefined;
}

export function chosenProfile(options: CredentialsOptions): ProfileChoice {
  if (options.profile !== undefined) return { name: options.profile, chosenBy: "config" };
  const named = variable(options, "AWS_PROFILE");
  if (named !== undefined) return { name: named, chosenBy: "AWS_PROFILE" };
  return { name: "default", chosenBy: "default" };
}

/**
 * Reads the credentials file (`credentialsFile`, else AWS_SHARED_CREDENTIALS_FILE, else ~/.aws/credentials) and the config
 * file (AWS_CONFIG_FILE, else ~/.aws/config). In the config file a profile's section is `[profile NAME]`, but `[default]`.
 *
 * A file that is not there is an empty one, unless the configuration names it; and one in a directory that we may not look
 * into counts as not there, since that is how a service with ProtectHome= finds a home. Throws `storage-denied` for a
 * file that is there and cannot be read or parsed.
 */
export async function readSharedFiles(options: CredentialsOptions): Promise<SharedFiles> {
  const { credentialsFile } = options;
  const home = options.homeDirectory ?? variable(options, "HOME") ?? homedir();
  const place = (name: string, otherwise: string) => expandHome(variable(options, name) ?? otherwise, home);
  const [credentials, config] = await Promise.all([
    credentialsFile === undefined
      ? readSharedFile(place("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "may be missing")
      : readSharedFile(credentialsFile, "must exist"),
    readSharedFile(place("AWS_CONFIG_FILE", "~/.aws/config"), "may be missing"),
  ]);
  return { credentials, config: { ...config, profiles: configProfiles(config.profiles) } };
}

/** The profile of that name, or null when neither file has it. */
export function findProfile({ credentials, config }: SharedFiles, name: string): Profile | null {
  const inCredentials = credentials.profiles.get(name);
  const inConfig = config.profiles.get(name);
  if (inCredentials === undefined && inConfig === undefined) return null;
  const none: IniSection = new Map();
  return {
    name,
    inCredentials: inCredentials ?? none,
    inConfig: inConfig ?? none,
    setting: (setting) => inCredentials?.get(setting) || inConfig?.get(setting) || undefined,
  };
}

/**
 * The text of a small file with secrets in it, or why there is none: it is not there, or lies where we may not look.
 * Throws `storage-denied` for anything else that is in the way; never waits, so a pipe is refused. No message repeats
 * the content. `what` names the file: `the web identity token`.
 */
export async function readSecretFile(
  path: string,
  what: string,
): Promise<{ readonly text: string; readonly mode: number } | { readonly absence: string }> {
  let file: FileHandle | undefined;
  try {
    // Without O_NONBLOCK the open of a pipe waits until somebody writes to it.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const info = await file.stat();
    // Pointing a variable of AWS's tools at /dev/null is the usual way to say that there shall be no such file.
    if (path === "/dev/null") return { absence: "/dev/null" };
    if (!info.isFile()) {
      throw unreadable(path, what, info.isDirectory() ? "it is a directory" : "it is not a regular file");
    }
    if (info.size > MAX_FILE_BYTES) throw unreadable(path, what, "it is larger than 1 MiB");
    const bytes = Buffer.alloc(MAX_FILE_BYTES);
    let endOffset = 0;
    while (endOffset < bytes.length) {
      const { bytesRead } = await file.read(bytes, endOffset, bytes.length - endOffset, endOffset);
      if (bytesRead === 0) break;
      endOffset += bytesRead;
    }
    return { text: bytes.toString("utf8", 0, endOffset), mode: info.mode };
  } catch (error) {
    if (error instanceof BakeliteError) throw error;
    const absence = await absenceOf(path, systemErrorCode(error));
    if (absence !== null) return { absence };
    throw unreadable(
      path,
      what,
      systemErrorCode(error) === "EACCES" ? "permission denied" : "it cannot be read",
      error,
    );
  } finally {
    await file?.close();
  }
}

async function readSharedFile(path: string, presence: "must exist" | "may be missing"): Promise<SharedFile> {
  const read = await readSecretFile(path, "AWS's shared file");
  if ("text" in read) {
    const profiles = parseIni(read.text, path);
    return { path, profiles, absence: null, isWritableByAll: (read.mode & 0o002) !== 0 };
  }
  if (presence === "may be missing") {
    return { path, profiles: new Map(), absence: read.absence, isWritableByAll: false };
  }
  throw new BakeliteError("storage-denied", `cannot read the AWS credentials file: it is ${read.absence}`, {
    subject: path,
    hint: "check `credentials_file` of the backend, and that the user running bakelite may read it",
  });
}

/** `[profile NAME]` sections by NAME; `[default]` too, but `[profile default]` wins over it, as in AWS's tools. */
function configProfiles(sections: IniFile): IniFile {
  const profiles = new Map<string, IniSection>();
  for (const [section, properties] of sections) {
    const name = /^profile\s+(.+)$/s.exec(section)?.[1];
    if (name !== undefined) profiles.set(unquoted(name), properties);
    else if (section === "default" && !profiles.has("default")) profiles.set("default", properties);
  }
  return profiles;
}

/** `[profile "with space"]` */
function unquoted(name: string): string {
  return /^(["'])(.*)\1$/s.exec(name)?.[2] ?? name;
}

function expandHome(path: string, home: string): string {
  return path === "~" || path.startsWith("~/") ? join(home, path.slice(1)) : path;
}

/** Not there, as far as we can see; null when the file is there and something else is wrong. */
async function absenceOf(path: string, code: string | undefined): Promise<string | null> {
  if (code === "ENOENT" || code === "ENOTDIR") return "not there";
  if (code !== "EACCES" && code !== "EPERM") return null;
  try {
    await stat(path);
    return null;
  } catch {
    return "in a directory that may not be looked into";
  }
}

function unreadable(path: string, what: string, why: string, cause?: unknown): BakeliteError {
  return new BakeliteError("storage-denied", `cannot read ${what}: ${why}`, {
    subject: path,
    hint: "check the path, and give the user that bakelite runs as the right to read the file",
    ...(cause === undefined ? {} : { cause }),
  });
}
