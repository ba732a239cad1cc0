import { realpath } from "node:fs/promises";
import type { BackendConfig } from "../config/types.ts";
import { findObstacle, READ } from "./doctor-access.ts";
import { formatMode, kindOf, shellWord, statOrNull } from "./doctor-files.ts";
import { type Check, fail, pass } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";
import { judgeServicePaths } from "./doctor-service.ts";

interface NamedFile {
  readonly path: string;
  /** What is in it is nobody else's business. */
  readonly isSecret: boolean;
}

/** The files that a destination's configuration names besides the backups themselves. Pure. */
export function namedFiles(config: BackendConfig): readonly NamedFile[] {
  const secret = (path: string | undefined) => (path === undefined ? [] : [{ path, isSecret: true }]);
  const open = (path: string | undefined) => (path === undefined ? [] : [{ path, isSecret: false }]);
  switch (config.type) {
    case "file":
      return [];
    case "s3":
      return [...secret(config.credentialsFile), ...open(config.caFile)];
    case "gcs":
      return [...secret(config.serviceAccountFile), ...open(config.caFile)];
    case "azure":
      switch (config.authentication.method) {
        case "account-key-file":
          return secret(config.authentication.accountKeyFile);
        case "sas-file":
          return secret(config.authentication.sasTokenFile);
        default:
          return [];
      }
    case "sftp":
      switch (config.authentication.method) {
        case "key-file":
          return [
            ...secret(config.authentication.keyFile),
            ...secret(config.authentication.keyPassphraseFile),
            ...open(config.knownHosts),
          ];
        case "password-file":
          return [...secret(config.authentication.passwordFile), ...open(config.knownHosts)];
        default:
          return open(config.knownHosts);
      }
  }
}

/** The daemon must be able to read them, and nobody who is not meant to what is secret. Nothing where none is named. */
export async function judgeCredentials(config: BackendConfig, scene: Scene): Promise<readonly Check[]> {
  const files = namedFiles(config);
  const checks: Check[] = [];
  for (const file of files) checks.push(...(await judgeFile(file, scene)));
  if (files.length === 0 || checks.length > 0) return checks;
  return [pass("credentials", `${files.map(({ path }) => path).join(" and ")} can be read`)];
}

async function judgeFile({ path, isSecret }: NamedFile, { user, people, unit }: Scene): Promise<readonly Check[]> {
  const info = await statOrNull(path);
  if (info === null) return [fail("credentials", `${path} does not exist`, "correct its path in the configuration")];
  if (!info.isFile())
    return [fail("credentials", `${path} is ${kindOf(info)}, not a file`, "correct its path in the configuration")];
  const checks: Check[] = [];
  if (isSecret && (info.mode & 0o006) !== 0)
    checks.push(
      fail(
        "credentials",
        `${path} has mode ${formatMode(info.mode)}: everybody may use what is in it`,
        `run: chmod o= ${shellWord(path)}`,
      ),
    );
  const obstacle = user === null ? null : await findObstacle(user, people, { path, wanted: READ });
  if (obstacle !== null)
    checks.push(fail("credentials", obstacle, `run: chown ${shellWord(user?.name ?? "")} ${shellWord(path)}`));
  const reach = judgeServicePaths(unit, { writable: [], readable: [await realpath(path)] });
  return [...checks, ...reach.filter(({ level }) => level !== "pass")];
}
