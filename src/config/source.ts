import { constants, type Stats } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join, resolve } from "node:path";
import { formatByteSize } from "../util/byte-sizes.ts";
import { BakeliteError, systemErrorCode } from "../util/errors.ts";
import type { Environment } from "./interpolate.ts";

export const DEFAULT_CONFIG_PATH = "/etc/bakelite/bakelite.toml";

/** Which file is the configuration, and what says so. */
export interface ConfigSource {
  /** Absolute. */
  readonly path: string;
  readonly namedBy: "--config" | "$BAKELITE_CONFIG" | "default";
}

/** `--config`, else `$BAKELITE_CONFIG` (empty counts as unset), else `/etc/bakelite/bakelite.toml`. */
export function configSource(flag: string | undefined, env: Environment): ConfigSource {
  if (flag !== undefined) return { path: resolve(flag), namedBy: "--config" };
  const fromEnv = env["BAKELITE_CONFIG"];
  if (fromEnv !== undefined && fromEnv !== "") return { path: resolve(fromEnv), namedBy: "$BAKELITE_CONFIG" };
  return { path: DEFAULT_CONFIG_PATH, namedBy: "default" };
}

/** A thousand databases fit into a fiftieth of it. */
const MAX_CONFIG_BYTES = 16 * 2 ** 20;

/**
 * The text of the file, without a byte order mark. Throws `config-invalid` when it cannot be read, is no regular file,
 * is larger than 16 MiB or is not UTF-8. A pipe is refused because it might never end, and a daemon could not read it a
 * second time.
 */
export async function readConfigText(source: ConfigSource): Promise<string> {
  const bytes = await readRegularFile(source);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new BakeliteError("config-invalid", "the configuration file is not UTF-8 text", {
      subject: `${source.path}:${firstBrokenLine(bytes)}`,
      hint: "save it as UTF-8, or correct that line; `--config <path>` names another file",
    });
  }
}

async function readRegularFile(source: ConfigSource): Promise<Uint8Array> {
  let file: FileHandle | undefined;
  try {
    // Without O_NONBLOCK, opening a named pipe waits for somebody who writes to it.
    file = await open(source.path, constants.O_RDONLY | constants.O_NONBLOCK);
    const info = await file.stat();
    checkFile(source, info);
    const bytes = await file.readFile();
    // It may have grown since.
    if (bytes.byteLength > MAX_CONFIG_BYTES) throw tooLarge(source, bytes.byteLength);
    return bytes;
  } catch (cause) {
    throw cause instanceof BakeliteError ? cause : unreadable(source, cause);
  } finally {
    await file?.close();
  }
}

function checkFile(source: ConfigSource, info: Stats): void {
  if (info.isDirectory()) {
    throw new BakeliteError("config-invalid", `the configuration ${placed(source)} is a directory`, {
      subject: source.path,
      hint: `name the file in it, such as --config ${join(source.path, "bakelite.toml")}`,
    });
  }
  if (!info.isFile()) {
    throw new BakeliteError("config-invalid", `the configuration ${placed(source)} is not a regular file`, {
      subject: source.path,
      hint: "a pipe or a device cannot be read again by a daemon; write the configuration to a file",
    });
  }
  if (info.size > MAX_CONFIG_BYTES) throw tooLarge(source, info.size);
}

function tooLarge(source: ConfigSource, bytes: number): BakeliteError {
  const [size, limit] = [formatByteSize(bytes), formatByteSize(MAX_CONFIG_BYTES)];
  return new BakeliteError("config-invalid", `the configuration file is too large: ${size}, and at most ${limit}`, {
    subject: source.path,
    hint: "is it the right file? `--config <path>` names another one",
  });
}

/** No byte of a character beyond ASCII is a line feed, so each line stands alone. */
function firstBrokenLine(bytes: Uint8Array): number {
  for (let line = 1, start = 0; ; line++) {
    const end = bytes.indexOf(0x0a, start);
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(start, end === -1 ? bytes.length : end));
    } catch {
      return line;
    }
    if (end === -1) return line;
    start = end + 1;
  }
}

function placed({ namedBy }: ConfigSource): string {
  return namedBy === "default" ? "at the default place" : `named by ${namedBy}`;
}

function unreadable(source: ConfigSource, cause: unknown): BakeliteError {
  const named = placed(source);
  switch (systemErrorCode(cause)) {
    case "ENOENT":
    case "ENOTDIR":
      return new BakeliteError("config-invalid", `there is no configuration file ${named}`, {
        subject: source.path,
        hint:
          source.namedBy === "default"
            ? "give --config <path>, set $BAKELITE_CONFIG, or make one with `bakelite init`"
            : `correct ${source.namedBy}; without --config and $BAKELITE_CONFIG it is ${DEFAULT_CONFIG_PATH}`,
      });
    case "EACCES":
    case "EPERM":
      return new BakeliteError("config-invalid", `no permission to read the configuration file ${named}`, {
        subject: source.path,
        hint: "run as the user that owns it, or with sudo; `--config <path>` names another file",
      });
    default:
      return new BakeliteError("config-invalid", `cannot read the configuration file ${named}`, {
        subject: source.path,
        hint: "`--config <path>` names another file",
        cause,
      });
  }
}
