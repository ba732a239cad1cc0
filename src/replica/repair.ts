import type { DestinationNews } from "../config/assemble.ts";
import type { DatabaseConfig } from "../config/types.ts";
import { BakeliteError } from "../util/errors.ts";
import { keyOf, markedIndexes, type ReplicaObject } from "./catalog.ts";
import { openConfiguredReplica } from "./configured.ts";
import { policyOf } from "./maintain.ts";
import { type HealOutcome, healObject } from "./repair-copy.ts";
import { type DocumentRepair, repairDocuments } from "./repair-documents.ts";
import { type Healing, type LostPoints, planRepair, type RepairPlan, type TroubleKind } from "./repair-plan.ts";
import { eachOf, RepairScan, WHOLE_OBJECT_BYTES } from "./repair-scan.ts";
import type { Replica } from "./replica.ts";
import type { RetentionPolicy } from "./retention-policy.ts";
import { sentenceOf } from "./verify-objects.ts";

export interface RepairOptions {
  /** Plan only. */
  readonly dryRun: boolean;
  readonly nowMs: number;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: RepairProgress | undefined;
  readonly news?: DestinationNews | undefined;
}

/** Hears how far it is. */
export interface RepairProgress {
  /** So many bytes are to be read, or to be stored. */
  begin(what: string, totalBytes: number): void;
  add(bytes: number): void;
}

export interface ReplicaRepairOptions extends RepairOptions {
  readonly policy: RetentionPolicy;
  /** The highest level of compaction; 0 without compaction. */
  readonly highestLevel: number;
}

/** One object that was written at one destination; with `dryRun`, that would be. */
export interface Healed {
  /** "replace": the copy there was damaged; "add": there was none. */
  readonly action: "replace" | "add";
  /** The destination's location. */
  readonly destination: string;
  /** The location that it was copied from. */
  readonly source: string;
  /** Below the destination's prefix. */
  readonly key: string;
  readonly sizeBytes: number;
  /** What was wrong with the copy that was replaced, as a sentence without a full stop; null for "add". */
  readonly damage: string | null;
}

export type RepairTroubleKind =
  | TroubleKind
  | "not-replaced" // the destination refused to have a damaged object written over
  | "not-added" // the destination refused an object that it lacks
  | "unreachable" // it does not answer
  | "unfinished"; // what is stored changed so often meanwhile that this run gave up

/** What is not as it should be when repair ends. */
export interface RepairTrouble {
  readonly kind: RepairTroubleKind;
  /** The destination's location. */
  readonly destination: string;
  /** Key of the object below the destination's prefix; null when it concerns no single object. */
  readonly key: string | null;
  /** One sentence without a full stop. */
  readonly message: string;
  /** An imperative sentence without a full stop. */
  readonly nextStep: string;
  /** Restore points that nothing but a lost object stands in the way of; null where that is not known. */
  readonly cost: LostPoints | null;
}

/** `degraded`: some object there is damaged, lacking or not readable when repair ends. */
export type DestinationState = "healthy" | "degraded" | "unreachable";

export interface RepairReport {
  readonly database: string;
  /** It has one destination only: there was nothing to heal from, and nothing was looked at. */
  readonly singleDestination: boolean;
  readonly destinations: readonly { readonly location: string; readonly state: DestinationState }[];
  /** Copies that were read. */
  readonly objectsChecked: number;
  readonly bytesRead: number;
  readonly healed: readonly Healed[];
  readonly troubles: readonly RepairTrouble[];
}

/** Copying takes its time, and a daemon, compaction and retention may all be at work meanwhile: so often it lists and plans again. */
const MAX_ROUNDS = 5;
/** What is listed and not there may be on its way out: so often that makes us list again. */
const MAX_LOOKS = 5;
const SMALL_AT_ONCE = 8;
const LARGE_AT_ONCE = 1;
/** A destination that has refused so many in a row, and taken none, is not asked again. */
const MAX_REFUSALS = 10;

/**
 * Heals every destination of a configured database from its others: the rules are in docs/repair.md. Deletes nothing. A destination that
 * fails, and an object that cannot be healed, are in the report. Rejects when interrupted, when the key cannot be read, and when
 * no destination answers.
 */
export async function repairDatabase(database: DatabaseConfig, options: RepairOptions): Promise<RepairReport> {
  if (database.backends.length < 2) return nothingToHealFrom(database.name);
  const replica = await openConfiguredReplica(database, { signal: options.signal, news: options.news });
  return await repairReplica(replica, {
    ...options,
    highestLevel: database.compactionLevelsMs.length,
    policy: policyOf(database),
  });
}

function nothingToHealFrom(database: string): RepairReport {
  const nothing = { destinations: [], objectsChecked: 0, bytesRead: 0, healed: [], troubles: [] };
  return { database, singleDestination: true, ...nothing };
}

/** As `repairDatabase`, for a replica that has just been opened on all its destinations. */
export async function repairReplica(replica: Replica, options: ReplicaRepairOptions): Promise<RepairReport> {
  return await new Repair(replica, options).run();
}

class Repair {
  readonly #replica: Replica;
  readonly #options: ReplicaRepairOptions;
  readonly #scan: RepairScan;
  readonly #healed: Healed[] = [];
  /** By destination and key: what was refused is not tried again. */
  readonly #refused = new Map<string, { readonly healing: Healing; readonly error: BakeliteError }>();
  /** By destination and action; absent once something was taken. */
  readonly #refusalCounts = new Map<string, number>();
  readonly #taken = new Set<string>();

  constructor(replica: Replica, options: ReplicaRepairOptions) {
    this.#replica = replica;
    this.#options = options;
    this.#scan = new RepairScan(replica);
  }

  async run(): Promise<RepairReport> {
    const { dryRun, nowMs, signal } = this.#options;
    let plan: RepairPlan;
    let isFinished: boolean;
    for (let round = 1; ; round++) {
      await this.#read();
      plan = this.#plan();
      const healings = plan.healings.filter((healing) => !this.#refused.has(this.#placeOf(healing)));
      if (dryRun) for (const healing of healings) this.#note(healing, healing.sources[0], this.#damageOf(healing));
      isFinished = dryRun || healings.length === 0;
      if (isFinished || round > MAX_ROUNDS) break;
      await this.#heal(healings);
      if (!(await this.#list())) break;
    }
    const documents = await repairDocuments(this.#replica, this.#scan, { nowMs, dryRun, signal });
    return this.#report(plan, documents, isFinished);
  }

  /** Reads what has not been read yet, until nothing that is listed is gone. */
  async #read(): Promise<void> {
    const { progress, signal } = this.#options;
    for (let look = 1; ; look++) {
      const { catalog } = this.#replica;
      progress?.begin("reading", this.#scan.unreadBytes(catalog));
      await this.#scan.read({ signal, onBytes: (bytes) => progress?.add(bytes) });
      const hasGone = [...catalog.fulls, ...catalog.changeSets].some(
        (object) => this.#scan.verdictOf(object)?.kind === "gone",
      );
      if (!hasGone || look === MAX_LOOKS || !(await this.#list())) return;
    }
  }

  /** False when no destination answers any longer. */
  async #list(): Promise<boolean> {
    try {
      await this.#replica.refresh();
      return true;
    } catch (error) {
      if (!(error instanceof BakeliteError) || !isOfDestination(error)) throw error;
      for (const destination of this.#replica.options.backends.keys()) this.#scan.setFailed(destination, error);
      return false;
    }
  }

  #plan(): RepairPlan {
    const { catalog, current, options } = this.#replica;
    return planRepair({
      catalog,
      destinationCount: options.backends.length,
      verdictOf: (object) => this.#scan.verdictOf(object),
      isDown: (destination) => this.#scan.isDown(destination),
      preferences: { seal: options.seal, current },
      policy: this.#options.policy,
      marks: markedIndexes(catalog),
      nowMs: this.#options.nowMs,
    });
  }

  async #heal(healings: readonly Healing[]): Promise<void> {
    const { progress, signal } = this.#options;
    const sizeOf = ({ sources }: Healing) => sources[0]?.sizeBytes ?? 0;
    const small = healings.filter((healing) => sizeOf(healing) <= WHOLE_OBJECT_BYTES);
    const large = healings.filter((healing) => sizeOf(healing) > WHOLE_OBJECT_BYTES);
    progress?.begin(
      "copying",
      healings.reduce((sum, healing) => sum + sizeOf(healing), 0),
    );
    const heal = async (healing: Healing) => {
      signal?.throwIfAborted();
      await this.#healOne(healing);
    };
    await Promise.all([eachOf(small, SMALL_AT_ONCE, heal), eachOf(large, LARGE_AT_ONCE, heal)]);
  }

  async #healOne(healing: Healing): Promise<void> {
    if (this.#scan.isDown(healing.destination)) return;
    const { progress, signal, highestLevel } = this.#options;
    const kind = `${healing.destination} ${healing.action}`;
    // Before the verdict on the new copy takes its place.
    const damage = this.#damageOf(healing);
    const onStored = (bytes: number) => progress?.add(bytes);
    const outcome =
      this.#givenUp(kind, healing) ??
      (await healObject(this.#replica, this.#scan, healing, { signal, highestLevel, onStored }));
    switch (outcome.kind) {
      case "healed":
        this.#taken.add(kind);
        this.#note(healing, outcome.source, damage);
        return;
      case "refused":
        this.#refusalCounts.set(kind, (this.#refusalCounts.get(kind) ?? 0) + 1);
        this.#refused.set(this.#placeOf(healing), { healing, error: outcome.error });
        return;
      case "outdated":
        return;
    }
  }

  /** The failure of the others, where a destination takes nothing. */
  #givenUp(kind: string, { destination, action }: Healing): HealOutcome | null {
    if (this.#taken.has(kind) || (this.#refusalCounts.get(kind) ?? 0) < MAX_REFUSALS) return null;
    for (const { healing, error } of this.#refused.values())
      if (healing.destination === destination && healing.action === action) return { kind: "refused", error };
    return null;
  }

  #placeOf({ destination, sources }: Healing): string {
    const [source] = sources;
    return `${destination} ${source === undefined ? "" : keyOf(this.#replica.database, source)}`;
  }

  #note({ action, destination }: Healing, source: ReplicaObject | undefined, damage: string | null): void {
    if (source === undefined) return;
    this.#healed.push({
      action,
      destination: this.#replica.locationOf(destination),
      source: this.#replica.locationOf(source.destination),
      key: keyOf(this.#replica.database, source),
      sizeBytes: source.sizeBytes,
      damage,
    });
  }

  #damageOf({ damaged }: Healing): string | null {
    const verdict = damaged === null ? null : this.#scan.verdictOf(damaged);
    return verdict?.kind === "damaged" ? sentenceOf(verdict.error) : null;
  }

  #report(plan: RepairPlan, documents: DocumentRepair, isFinished: boolean): RepairReport {
    const troubles = [...this.#objectTroubles(plan), ...this.#documentTroubles(documents)];
    for (const [destination, error] of this.#scan.failedDestinations)
      troubles.push({
        kind: "unreachable",
        destination: this.#replica.locationOf(destination),
        key: null,
        message: `it was left aside: ${sentenceOf(error)}`,
        nextStep: error.hint ?? "run `bakelite repair` again when it answers",
        cost: null,
      });
    const degraded = new Set(troubles.map(({ destination }) => destination));
    const destinations = [...this.#replica.options.backends].map(({ location }, destination) => ({
      location,
      state: this.#scan.isDown(destination)
        ? ("unreachable" as const)
        : degraded.has(location)
          ? ("degraded" as const)
          : ("healthy" as const),
    }));
    if (!isFinished && this.#scan.failedDestinations.size < destinations.length)
      troubles.push({
        kind: "unfinished",
        destination: destinations[0]?.location ?? "",
        key: null,
        message: "what is stored went on changing while it was repaired",
        nextStep: "run `bakelite repair` again",
        cost: null,
      });
    const healed = documents.healed.map((document) => ({
      action: document.action,
      destination: this.#replica.locationOf(document.destination),
      source: this.#replica.locationOf(document.source),
      key: document.key,
      sizeBytes: document.sizeBytes,
      damage: null,
    }));
    return {
      database: this.#replica.database,
      singleDestination: false,
      destinations,
      objectsChecked: this.#countChecked() + documents.checkedCount,
      bytesRead: this.#scan.bytesRead,
      healed: [...this.#healed, ...healed],
      troubles,
    };
  }

  #countChecked(): number {
    const { fulls, changeSets } = this.#replica.catalog;
    return [...fulls, ...changeSets].filter((object) => this.#scan.verdictOf(object) !== null).length;
  }

  *#objectTroubles({ troubles }: RepairPlan): Generator<RepairTrouble> {
    for (const { kind, object, cost } of troubles) {
      const verdict = this.#scan.verdictOf(object);
      const error = verdict !== null && "error" in verdict ? verdict.error : null;
      const isBroken = verdict?.kind === "sealed" && !verdict.matches;
      const { message, nextStep } = this.#wordsFor(kind, { error, cost, isBroken });
      const destination = this.#replica.locationOf(object.destination);
      yield { kind, destination, key: keyOf(this.#replica.database, object), message, nextStep, cost };
    }
    for (const { healing, error } of this.#refused.values()) {
      const [source] = healing.sources;
      if (source === undefined || this.#scan.isDown(healing.destination)) continue;
      yield {
        kind: healing.action === "replace" ? "not-replaced" : "not-added",
        destination: this.#replica.locationOf(healing.destination),
        key: keyOf(this.#replica.database, source),
        message: `${healing.action === "replace" ? "it is damaged, and a sound copy could not be written over it" : "it is missing, and a copy could not be stored"}: ${sentenceOf(error)}`,
        nextStep:
          error.hint ??
          "allow bakelite to write there; where Object Lock or a write-once policy forbids it, restores use the other destinations",
        cost: null,
      };
    }
  }

  *#documentTroubles({ troubles }: DocumentRepair): Generator<RepairTrouble> {
    for (const { kind, destination: position, key, error } of troubles) {
      const destination = this.#replica.locationOf(position);
      if (kind === "refused") {
        const message = `a sound copy could not be written: ${error === null ? "" : sentenceOf(error)}`;
        const nextStep = error?.hint ?? "allow bakelite to write there";
        yield { kind: "not-replaced", destination, key, message, nextStep, cost: null };
      } else if (kind === "lost") {
        const message = `it is damaged, and no other destination that answers has a sound copy: ${error === null ? "" : sentenceOf(error)}`;
        const nextStep = key.includes("/keep/")
          ? "take the mark away and set it again with `bakelite keep`; until then it keeps its state"
          : "delete it: restores do without it, and the daemon writes a new one";
        yield { kind, destination, key, message, nextStep, cost: null };
      } else {
        const { message, nextStep } = this.#wordsFor(kind, { error, cost: null, isBroken: false });
        yield { kind, destination, key, message, nextStep, cost: null };
      }
    }
  }

  #wordsFor(
    kind: TroubleKind,
    about: {
      readonly error: BakeliteError | null;
      readonly cost: LostPoints | null;
      readonly isBroken: boolean;
    },
  ): { readonly message: string; readonly nextStep: string } {
    const { error, cost, isBroken } = about;
    const why = error === null ? "" : `: ${sentenceOf(error)}`;
    switch (kind) {
      case "lost":
        return {
          message: `it is damaged, and no other destination that answers has a sound copy${why}${costText(cost)}`,
          nextStep:
            cost?.count === 0
              ? "nothing needs it: every state can be restored without it, and it may be deleted"
              : "keep the database file safe: the next full backup (`snapshot_interval`) makes later states restorable from here",
        };
      case "fork":
        return {
          message: "it is of another history than what the other destinations hold, so it was left alone",
          nextStep:
            "make sure that only one daemon backs up this database to this destination; `bakelite verify` says which history restores use",
        };
      case "sealed":
        return {
          message: `it cannot be read${why}; its SHA-256 was all that could be checked, and that ${isBroken ? "does not match: it is damaged" : "matches"}`,
          nextStep: error?.hint ?? "configure the key that it was written with",
        };
      case "foreign":
        return { message: `it was left alone${why}`, nextStep: error?.hint ?? "find out who put it there" };
      case "denied":
        return {
          message: `the destination does not give it${why}`,
          nextStep: error?.hint ?? "check the permissions there",
        };
      case "plaintext":
        return {
          message:
            "another destination lacks it, and it is not encrypted although a key is configured, so it was not copied there",
          nextStep: `run \`bakelite reencrypt --db ${this.#replica.database}\`, and repair again`,
        };
    }
  }
}

function costText(cost: LostPoints | null): string {
  if (cost === null || cost.count === 0) return "";
  const { count, oldest, newest } = cost;
  if (count === 1) return `; state ${oldest} cannot be restored without it`;
  return `; ${count} states from ${oldest} to ${newest} cannot be restored without it`;
}

function isOfDestination({ code }: BakeliteError): boolean {
  return code === "storage-unreachable" || code === "storage-denied";
}
