import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openDestination } from "../config/assemble.ts";
import { parseConfig } from "../config/load.ts";
import { emptyKeyRing } from "../format/envelope.ts";
import { writeFileAtomically } from "../util/atomic-file.ts";
import { BakeliteError } from "../util/errors.ts";
import { askDestination, locationOf } from "./doctor-destination.ts";
import { readMounts } from "./doctor-mounts.ts";
import { type Check, describeForCheck, fail } from "./doctor-report.ts";
import type { InitWorld } from "./init-request.ts";
import type { Recipe } from "./recipe.ts";
import { type Choices, renderRecipe } from "./recipe-render.ts";

export interface TestedDestination {
  readonly location: string;
  readonly checks: readonly Check[];
}

const DEADLINE_MS = 15_000;

/**
 * Asks every destination that is not a directory of this host, with the answers given so far, before anything is written. What
 * belongs into the credentials file stands in a private temporary one meanwhile.
 */
export async function testDestinations(
  recipe: Recipe,
  choices: Choices,
  { source, env, people, signal, onAsking }: InitWorld & { readonly onAsking: (location: string) => void },
): Promise<readonly TestedDestination[]> {
  const folder = await mkdtemp(join(tmpdir(), "bakelite-init-"));
  try {
    const { toml, credentials } = renderRecipe(recipe, { ...choices, keyFile: null, credentialsDirectory: folder });
    if (credentials !== null) await writeFileAtomically(credentials.path, credentials.text, { mode: 0o600 });
    const { databases } = parseConfig(toml, { sourcePath: source.path, env });
    const [database] = databases;
    const scene = {
      user: null,
      unit: null,
      people,
      mounts: await readMounts(),
      nowMs: Date.now(),
      deadlineMs: DEADLINE_MS,
      signal,
    };
    const key = { sealKey: null, ring: emptyKeyRing, isLost: true, checks: [] };
    const tested: TestedDestination[] = [];
    for (const config of database?.backends ?? []) {
      if (database === undefined || config.type === "file") continue;
      const location = locationOf(config);
      onAsking(location);
      try {
        const backend = openDestination({ ...config, retries: 1 });
        const { checks } = await askDestination(
          { backend, database: database.name, key, acceptPlaintext: true },
          scene,
        );
        tested.push({ location, checks });
      } catch (error) {
        if (signal.aborted) throw error;
        const fix = error instanceof BakeliteError ? error.hint : undefined;
        tested.push({ location, checks: [fail("reachable", describeForCheck(error), fix ?? "correct the answers")] });
      }
    }
    return tested;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
