import { type Backend, type ByteSource, bytesSource, type CallOptions } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { keyOf, type ReplicaObject } from "./catalog.ts";
import { GuardedCopy } from "./guarded-copy.ts";
import { agrees, type Healing } from "./repair-plan.ts";
import { type RepairScan, type SoundVerdict, WHOLE_OBJECT_BYTES } from "./repair-scan.ts";
import type { Replica } from "./replica.ts";

export interface HealOptions {
  readonly signal?: AbortSignal | undefined;
  /** Change-sets of this level are kept for long, as full backups are. */
  readonly highestLevel: number;
  /** Hears of the bytes that were stored. */
  readonly onStored?: ((bytes: number) => void) | undefined;
}

export type HealOutcome =
  | { readonly kind: "healed"; readonly source: ReplicaObject; readonly sizeBytes: number }
  /** Things are no longer as they were planned with, or a destination stopped answering: to be looked at anew. */
  | { readonly kind: "outdated" }
  /** The destination did not take it. */
  | { readonly kind: "refused"; readonly error: BakeliteError };

const OUTDATED: HealOutcome = { kind: "outdated" };

/**
 * Writes one object where it is damaged or missing, byte for byte as it is elsewhere. What is there is read once more first: only
 * damage that shows twice is written over. Nothing becomes visible but bytes that match the SHA-256 of a copy that was read whole and
 * found sound; what was written is read back whole. Rejects when interrupted, with nothing half written.
 */
export async function healObject(
  replica: Replica,
  scan: RepairScan,
  healing: Healing,
  options: HealOptions,
): Promise<HealOutcome> {
  const backend = replica.options.backends[healing.destination];
  if (backend === undefined) return OUTDATED;
  try {
    if (!(await isAsPlanned(replica, scan, { backend, healing }, options))) return OUTDATED;
    for (const source of healing.sources) {
      const sound = scan.soundOf(source);
      const origin = replica.options.backends[source.destination];
      if (sound === null || origin === undefined || scan.isDown(source.destination)) continue;
      const copy = new GuardedCopy(
        origin,
        {
          key: keyOf(replica.database, source),
          sizeBytes: source.sizeBytes,
          sha256: sound.sha256,
          onBytes: (bytes) => scan.collect(bytes),
        },
        options.signal,
      );
      try {
        const body = source.sizeBytes <= WHOLE_OBJECT_BYTES ? bytesSource(await copy.readWhole()) : copy;
        return await put(replica, scan, { backend, healing, source, sound, body }, options);
      } catch (error) {
        if (copy.failure === null) throw error;
        await noteSource(scan, source, copy.failure, options);
      }
    }
    return OUTDATED;
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    switch (error.code) {
      case "storage-unreachable":
        scan.setFailed(healing.destination, error);
        return OUTDATED;
      case "storage-denied":
      case "storage-full":
      case "io":
      case "replica-corrupt":
      case "replica-missing":
        return { kind: "refused", error };
      default:
        throw error;
    }
  }
}

/** Whether what is to be written over is still there and still damaged, or what is to be added still missing. */
async function isAsPlanned(
  replica: Replica,
  scan: RepairScan,
  { backend, healing }: { readonly backend: Backend; readonly healing: Healing },
  options: HealOptions,
): Promise<boolean> {
  const { damaged, sources } = healing;
  const [source] = sources;
  if (source === undefined) return false;
  const found = await backend.stat(keyOf(replica.database, source), callOptions(options));
  if (damaged === null) return found === null;
  if (found === null || found.sizeBytes !== damaged.sizeBytes || found.modifiedMs !== damaged.modifiedMs) return false;
  const verdict = await scan.check(damaged, options);
  if (verdict === null) return false;
  scan.remember(damaged, verdict);
  const expected = scan.soundOf(source);
  if (verdict.kind !== "damaged" || expected === null) return false;
  return verdict.facts === null || agrees(verdict.facts, expected.facts);
}

interface Writing {
  readonly backend: Backend;
  readonly healing: Healing;
  readonly source: ReplicaObject;
  readonly sound: SoundVerdict;
  readonly body: ByteSource;
}

async function put(
  replica: Replica,
  scan: RepairScan,
  { backend, healing, source, sound, body }: Writing,
  options: HealOptions,
): Promise<HealOutcome> {
  const key = keyOf(replica.database, source);
  const call = callOptions(options);
  const longLived = source.kind === "full" || (source.level > 0 && source.level >= options.highestLevel);
  // A name that somebody took meanwhile is never written over: he may have stored something else than we have.
  const ifAbsent = healing.action === "add";
  const outcome = await backend.put(key, body, { ifAbsent, longLived, ...call });
  const stored = await backend.stat(key, call);
  const subject = `${backend.location}/${key}`;
  if (stored === null) {
    if (outcome === "exists") return OUTDATED;
    throw new BakeliteError("replica-missing", "an object is not where it was just stored", {
      subject,
      hint: "check the destination: it lost an object that it had confirmed",
    });
  }
  const { sizeBytes, modifiedMs } = stored;
  const object: ReplicaObject = { ...source, destination: healing.destination, sizeBytes, modifiedMs };
  const verdict = await scan.check(object, options);
  if (verdict === null) return OUTDATED;
  scan.remember(object, verdict);
  if (verdict.kind === "sound" && verdict.sha256 === sound.sha256) {
    options.onStored?.(sizeBytes);
    return { kind: "healed", source, sizeBytes };
  }
  if (outcome === "exists") return OUTDATED;
  throw new BakeliteError("replica-corrupt", "what was written does not read back as it was written", {
    subject,
    hint: "check the destination's disk or service: it does not keep what it is given",
    cause: "error" in verdict ? verdict.error : undefined,
  });
}

/** A source that turned out to be of no use is known as what it is from now on. */
async function noteSource(
  scan: RepairScan,
  source: ReplicaObject,
  failure: BakeliteError,
  options: HealOptions,
): Promise<void> {
  if (failure.code === "storage-unreachable") {
    scan.setFailed(source.destination, failure);
    return;
  }
  const verdict = failure.code === "replica-missing" ? { kind: "gone" as const } : await scan.check(source, options);
  if (verdict !== null) scan.remember(source, verdict);
}

function callOptions({ signal }: HealOptions): CallOptions {
  return signal === undefined ? {} : { signal };
}
