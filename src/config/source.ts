import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
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

/** The text of the file. Throws `config-invalid` when it cannot be read or is not UTF-8. */
export async function readConfigText(source: ConfigSource): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(source.path);
  } catch (cause) {
    throw unreadable(source, cause);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new BakeliteError("config-invalid", "the configuration file is not UTF-8 text", {
      subject: source.path,
      cause,
    });
  }
}

function unreadable(source: ConfigSource, cause: unknown): BakeliteError {
  const named = source.namedBy === "default" ? "at the default place" : `named by ${source.namedBy}`;
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
        cause,
      });
  }
}
