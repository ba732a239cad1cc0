import { readKeyFile } from "../config/key-file.ts";
import type { EncryptionConfig } from "../config/types.ts";
import { deriveSealKey, emptyKeyRing, type KeyRing, keyRing, type SealKey } from "../format/envelope.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import { findObstacle, READ } from "./doctor-access.ts";
import { formatMode, isWithin, shellWord, statOrNull } from "./doctor-files.ts";
import { type Check, fail, pass, warn } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";

export interface KeyLook {
  /** null: no key is configured, or it cannot be had; `ring` is empty then. */
  readonly sealKey: SealKey | null;
  readonly ring: KeyRing;
  /** A key is configured and cannot be had: nothing can be said of what is stored with it. */
  readonly isLost: boolean;
  readonly checks: readonly Check[];
}

/** The key that the configuration names. `backupDirectories`: where the same database's backups go on this host. */
export async function lookAtKey(
  encryption: EncryptionConfig,
  backupDirectories: readonly string[],
  scene: Scene,
): Promise<KeyLook> {
  if (encryption.mode === "none") {
    const checks = [pass("key file", "none is configured: backups are not encrypted")];
    return { sealKey: null, ring: emptyKeyRing, isLost: false, checks };
  }
  const path = encryption.keyFile;
  const { key, problem } = await readKey(path);
  const checks: Check[] = [...(problem === null ? [] : [problem]), ...(await judgeKeyFile(path, scene))];
  for (const directory of backupDirectories)
    if (isWithin(path, directory))
      checks.push(
        warn(
          "key file",
          `${path} lies beside the backups that it locks: who has those has the key`,
          `move it out of ${directory}, and keep a copy off this host`,
        ),
      );
  if (key === null) return { sealKey: null, ring: emptyKeyRing, isLost: true, checks };
  if (checks.length === 0) checks.push(pass("key file", `${path} holds the key ${key.fingerprint}`));
  return { sealKey: key, ring: keyRing([key]), isLost: false, checks };
}

interface ReadKey {
  readonly key: SealKey | null;
  readonly problem: Check | null;
}

async function readKey(path: string): Promise<ReadKey> {
  try {
    return { key: deriveSealKey(await readKeyFile(path)), problem: null };
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code !== "key-wrong") throw error;
    const fix = error.hint ?? "name the file that `bakelite keygen` wrote in key_file";
    return { key: null, problem: fail("key file", describeError(error), fix) };
  }
}

/** Reading by the group is right only where it is how the daemon, which does not own the file, gets at the key. */
async function judgeKeyFile(path: string, { user, people }: Scene): Promise<readonly Check[]> {
  const info = await statOrNull(path).catch(() => null);
  if (info === null || !info.isFile()) return [];
  const checks: Check[] = [];
  const isReadByGroup = user !== null && user.uid !== info.uid && user.gids.has(info.gid);
  if ((info.mode & (isReadByGroup ? 0o037 : 0o077)) !== 0)
    checks.push(
      fail(
        "key file",
        `${path} has mode ${formatMode(info.mode)}: others than its owner, ${people.userName(info.uid)}, may use the key`,
        `run: chmod ${isReadByGroup ? "640" : "600"} ${shellWord(path)}`,
      ),
    );
  const obstacle = user === null ? null : await findObstacle(user, people, { path, wanted: READ });
  if (obstacle !== null)
    checks.push(fail("key file", obstacle, `run: chown ${shellWord(user?.name ?? "")} ${shellWord(path)}`));
  return checks;
}
