import { currentKey, manifestKey, objectKey } from "../format/names.ts";
import { upperBound } from "../util/upper-bound.ts";
import { keyOf, type ReplicaObject } from "./catalog.ts";
import type { CurrentHint } from "./documents.ts";
import type { ObjectFacts } from "./facts.ts";
import { latePuts } from "./late-put.ts";
import { LineageGraph } from "./paths.ts";
import type { Replica } from "./replica.ts";
import type { RestorePoint } from "./restore-points.ts";
import { contradictedBy, type Documents } from "./verify-documents.ts";
import type { LocalState } from "./verify-local.ts";
import type { ObjectChecks } from "./verify-objects.ts";
import {
  FindingList,
  type Problem,
  type ProblemKind,
  type Restorability,
  type Warning,
  type WarningKind,
} from "./verify-report.ts";

/** Everything that a judgement is made of. */
export interface Evidence {
  readonly replica: Replica;
  readonly checks: ObjectChecks;
  /** By destination; undefined for one that could not be listed. */
  readonly documents: readonly (Documents | undefined)[];
  /** Which destinations are background mirrors: those may lag behind the others. */
  readonly isMirror: readonly boolean[];
  readonly local: LocalState | null;
  readonly nowMs: number;
}

export interface Judgement {
  readonly problems: FindingList<Problem>;
  readonly warnings: FindingList<Warning>;
  readonly restorability: Restorability;
  /** Of all destinations together. */
  readonly graph: LineageGraph;
  /** Some finding may come of a listing that was overtaken: a second one confirms or withdraws it. */
  readonly needsSecondLook: boolean;
}

/** What one destination lacks and another one has had for less than this may still be on its way. */
const ON_ITS_WAY_MS = 10 * 60 * 1000;
/** CURRENT is rewritten right after a full backup is stored. */
const CURRENT_FOLLOWS_MS = 60 * 1000;

/** Weighs what was read: pure but for asking the replica for names. docs/storage-format.md sections 6 to 8. */
export function judge(evidence: Evidence): Judgement {
  return new Judge(evidence).judge();
}

/** The graph of the objects that are sound and that `accept` takes. Nothing is believed that was not read. */
export function soundGraph(
  replica: Replica,
  checks: ObjectChecks,
  accept: (object: ReplicaObject) => boolean = () => true,
): LineageGraph {
  const { seal } = replica.options;
  return new LineageGraph(
    replica.catalog,
    (object) => (accept(object) ? (checks.factsOf(object) ?? "unusable") : "unusable"),
    { seal, current: replica.current },
  );
}

/** Restore point `index` of a graph of sound objects, with its stamp. */
export function pointOf(graph: LineageGraph, checks: ObjectChecks, index: number | undefined): RestorePoint | null {
  if (index === undefined) return null;
  for (const object of graph.stampSources(index)) {
    const facts = checks.factsOf(object);
    if (facts !== null) return { index, stampMs: facts.lastCommitMs };
  }
  return null;
}

/** Change-sets that follow one another and that no full backup leads to. */
interface Strand {
  readonly sample: ReplicaObject;
  readonly chain: string | null;
  readonly first: number;
  last: number;
  count: number;
  hasDigest: boolean;
}

class Judge {
  readonly #evidence: Evidence;
  readonly #replica: Replica;
  readonly #checks: ObjectChecks;
  readonly #problems = new FindingList<Problem>();
  readonly #warnings = new FindingList<Warning>();
  readonly #graph: LineageGraph;
  readonly #forks: ReadonlySet<ReplicaObject>;
  /** Of all destinations together: change-sets that no path reaches. */
  readonly #unreachedAnywhere: ReadonlySet<ReplicaObject>;
  #needsSecondLook = false;

  constructor(evidence: Evidence) {
    this.#evidence = evidence;
    this.#replica = evidence.replica;
    this.#checks = evidence.checks;
    this.#graph = soundGraph(evidence.replica, evidence.checks);
    this.#forks = new Set(this.#graph.forks);
    this.#unreachedAnywhere = new Set(this.#graph.unreached);
  }

  judge(): Judgement {
    for (const [destination, error] of this.#checks.failedDestinations)
      this.#problem("unreachable", destination, null, {
        message: error.message,
        nextStep: error.hint ?? "check the destination and run verify again",
      });
    this.#judgeFaults();
    this.#judgeForks();
    const destinations: { location: string; newest: RestorePoint | null }[] = [];
    for (const destination of this.#replica.options.backends.keys()) {
      const graph = soundGraph(this.#replica, this.#checks, (object) => object.destination === destination);
      destinations.push({
        location: this.#replica.locationOf(destination),
        newest: this.#hasFailed(destination) ? null : pointOf(graph, this.#checks, graph.restorePoints.at(-1)),
      });
      if (!this.#hasFailed(destination)) this.#judgeDestination(destination, graph);
    }
    this.#judgeLedger();
    this.#judgeCatalog();
    for (const warning of this.#evidence.local?.warnings ?? []) this.#warnings.add(warning);
    // What no destination gives at this moment cannot be restored at this moment, whatever was read before.
    const isLost = destinations.every((_, destination) => this.#hasFailed(destination));
    const points = isLost ? [] : this.#graph.restorePoints;
    const newest = pointOf(this.#graph, this.#checks, points.at(-1));
    if (newest === null && this.#problems.count === 0) this.#judgeNothing();
    return {
      problems: this.#problems,
      warnings: this.#warnings,
      graph: this.#graph,
      needsSecondLook: this.#needsSecondLook,
      restorability: {
        newest,
        oldest: pointOf(this.#graph, this.#checks, points[0]),
        pointCount: points.length,
        destinations,
      },
    };
  }

  #hasFailed(destination: number): boolean {
    return this.#checks.failedDestinations.has(destination);
  }

  /** What reading the objects has shown. */
  #judgeFaults(): void {
    for (const object of this.#allObjects()) {
      const fault = this.#checks.faultOf(object);
      if (fault === null) continue;
      if (fault.gone) this.#needsSecondLook = true;
      this.#problem(fault.kind, object.destination, keyOf(this.#replica.database, object), {
        message: fault.kind === "missing" ? "it is listed, but it is not there when it is read" : fault.message,
        nextStep: this.#cureOf(object, fault.kind, fault.error.hint),
      });
    }
  }

  #cureOf(object: ReplicaObject, kind: ProblemKind, hint: string | undefined): string {
    if (kind === "unreadable-key" || (kind === "foreign" && hint !== undefined)) return hint ?? "check the key";
    if (kind === "unreadable") return hint ?? "check the destination";
    const healthy = this.#copies(object).find((copy) => this.#checks.factsOf(copy) !== null);
    if (healthy !== undefined)
      return `run \`bakelite repair --db ${this.#replica.database}\`: ${this.#replica.locationOf(healthy.destination)} has a sound copy`;
    const newest = this.#graph.restorePoints.at(-1);
    if (newest !== undefined && newest >= object.last)
      return `nothing newer needs it: the newest state is restorable without it, and retention will delete it`;
    return "no sound copy is configured: states that need it are lost, and the next full backup (`snapshot_interval`) makes later ones restorable; keep the database file safe until then";
  }

  /** The same object at other destinations. */
  #copies(object: ReplicaObject): readonly ReplicaObject[] {
    const { fulls, levels } = this.#replica.catalog;
    const candidates = object.kind === "full" ? fulls : (levels[object.level] ?? []);
    const { start, end } = equalRange(candidates, object);
    return candidates.slice(start, end).filter((copy) => copy !== object && copy.last === object.last);
  }

  #judgeForks(): void {
    const late = latePuts(this.#forks, this.#replica.catalog.changeSets, (object) => this.#checks.factsOf(object));
    for (const object of this.#forks) {
      this.#needsSecondLook = true;
      const key = keyOf(this.#replica.database, object);
      if (late.has(object))
        this.#warning("leftover", object.destination, key, {
          message:
            "it is left over: its daemon ended while it was being stored, and has gone on without it; what follows holds the same",
          nextStep: "nothing: restores do not use it, and retention deletes it",
        });
      else
        this.#problem("fork", object.destination, key, {
          message: "it belongs to a history that the replica has left behind: two writers may have stored here",
          nextStep:
            "make sure that only one daemon backs up this database to this destination; restores do not use the object, and it may be deleted",
        });
    }
  }

  #judgeDestination(destination: number, graph: LineageGraph): void {
    const objects = [...this.#allObjects()].filter((object) => object.destination === destination);
    const documents = this.#evidence.documents[destination];
    const covered = this.#judgeStrands(destination, graph, objects);
    this.#judgeSettled(destination, graph, objects, covered);
    this.#judgePageSizes(destination, objects);
    if (documents === undefined) return;
    this.#judgeEnd(destination, objects, documents);
    this.#judgeCurrent(destination, graph, objects, documents);
    this.#judgeManifest(destination, objects, documents);
  }

  /** Gaps, and what has no full backup to build on. Returns the states that these findings explain. */
  #judgeStrands(
    destination: number,
    graph: LineageGraph,
    objects: readonly ReplicaObject[],
  ): readonly { readonly first: number; readonly last: number }[] {
    const unreached = new Set(graph.unreached);
    const explained: { first: number; last: number }[] = [];
    if (unreached.size === 0) return explained;
    const reachedLasts = new Map<string | null, number[]>();
    const reachedRanges: ReplicaObject[] = [];
    const lowestFull = new Map<string | null, number>();
    for (const object of objects) {
      const chain = this.#checks.factsOf(object)?.chain ?? null;
      if (chain === null || unreached.has(object)) continue;
      getOrMake(reachedLasts, chain).push(object.last);
      if (object.kind === "change-set") reachedRanges.push(object);
      if (object.kind === "full") lowestFull.set(chain, Math.min(lowestFull.get(chain) ?? object.first, object.first));
    }
    for (const lasts of reachedLasts.values()) lasts.sort((a, b) => a - b);
    reachedRanges.sort(byFirst);
    const faulty = this.#faultyOf(objects);

    for (const strand of strandsOf(graph.unreached, this.#checks)) {
      explained.push({ first: strand.first, last: strand.last });
      if (firstUncovered(reachedRanges, strand.first - 1, strand.last) > strand.last) {
        this.#superseded(destination, strand);
        continue;
      }
      const start = strand.first - 1;
      const lowest = lowestFull.get(strand.chain);
      if (lowest === undefined || start < lowest) {
        if (!faulty.some((object) => object.kind === "full" && object.first <= start))
          this.#judgeBaseless(destination, strand, objects);
        continue;
      }
      const lasts = reachedLasts.get(strand.chain) ?? [];
      const before = lasts[upperBound(lasts, start) - 1] ?? lowest;
      explained.push({ first: before + 1, last: start });
      if (before === start) {
        this.#needsSecondLook = true;
        this.#problem("fork", destination, keyOf(this.#replica.database, strand.sample), {
          message: `it does not continue the stored state ${start}: it was written on another history${tail(strand)}`,
          nextStep: "make sure that only one daemon backs up this database to this destination; restores do not use it",
        });
        continue;
      }
      const from = firstUncovered(faulty, before + 1, start);
      if (from <= start) this.#judgeGap(destination, strand, { first: from, last: start });
    }
    return explained;
  }

  /** Compacted ones step over it, and over what led to it, as while the inputs of a compaction are being deleted. */
  #superseded(destination: number, strand: Strand): void {
    this.#needsSecondLook = true;
    this.#warning("leftover", destination, keyOf(this.#replica.database, strand.sample), {
      message: `${strand.first === strand.last ? `change-set ${strand.first} is` : `change-sets ${strand.first} to ${strand.last} are`} left over: what leads up to there is gone, and compacted ones hold the same`,
      nextStep: "nothing: restores do not use them, and compaction deletes them",
    });
  }

  #judgeGap(destination: number, strand: Strand, gap: { readonly first: number; readonly last: number }): void {
    const elsewhere = !this.#unreachedAnywhere.has(strand.sample);
    const what = gap.first === gap.last ? `change-set ${gap.first} is` : `change-sets ${gap.first} to ${gap.last} are`;
    this.#lacking(destination, elsewhere, {
      key:
        gap.first === gap.last
          ? objectKey(this.#replica.database, {
              kind: "change-set",
              level: 0,
              first: gap.first,
              last: gap.first,
              seal: strand.sample.seal,
            })
          : null,
      message: `${what} missing: states ${gap.first} to ${strand.last} cannot be restored from here by way of what is stored before them`,
    });
  }

  /** Change-sets before which no full backup stands. Where they carry digests there was one. */
  #judgeBaseless(destination: number, strand: Strand, objects: readonly ReplicaObject[]): void {
    const elsewhere = !this.#unreachedAnywhere.has(strand.sample);
    if (strand.hasDigest || elsewhere) {
      this.#lacking(destination, elsewhere, {
        key: objectKey(this.#replica.database, {
          kind: "full",
          index: strand.first - 1,
          seal: strand.sample.seal,
        }),
        message: `the full backup that change-sets ${strand.first} to ${strand.last} build on is missing`,
      });
      return;
    }
    const isNewest = objects.every((object) => object.last <= strand.last);
    this.#warning(isNewest ? "first-backup" : "leftover", destination, keyOf(this.#replica.database, strand.sample), {
      message: isNewest
        ? `change-sets ${strand.first} to ${strand.last} belong to a chain whose first full backup is not stored yet`
        : `change-sets ${strand.first} to ${strand.last} belong to a chain that was never finished`,
      nextStep: isNewest
        ? "wait until the daemon has stored it (`bakelite status`)"
        : "nothing: restores do not use them, and retention deletes them",
    });
  }

  /** What must be stored at a destination and is not; on a mirror, what is still to be copied. */
  #lacking(
    destination: number,
    elsewhere: boolean,
    { key, message }: { readonly key: string | null; readonly message: string },
  ): void {
    this.#needsSecondLook = true;
    if (elsewhere && this.#evidence.isMirror[destination] === true) {
      this.#warning("behind", destination, key, {
        message,
        nextStep:
          "wait for the mirror to catch up (`bakelite status`); what was lost there comes back within a day, or with `bakelite repair`",
      });
      return;
    }
    this.#problem("missing", destination, key, {
      message,
      nextStep: elsewhere
        ? `run \`bakelite repair --db ${this.#replica.database}\`: another destination has it`
        : "find out who deleted it, and look for it in the destination's versions or snapshots; the next full backup (`snapshot_interval`) makes later states restorable",
    });
  }

  /** A full backup is stored only when everything up to its `settled` is. */
  #judgeSettled(
    destination: number,
    graph: LineageGraph,
    objects: readonly ReplicaObject[],
    explained: readonly { readonly first: number; readonly last: number }[],
  ): void {
    const unreached = new Set(graph.unreached);
    const newest = new Map<string | null, number>();
    for (const object of objects) {
      const facts = this.#checks.factsOf(object);
      if (facts !== null && !unreached.has(object))
        newest.set(facts.chain, Math.max(newest.get(facts.chain) ?? 0, object.last));
    }
    const covered = [...this.#faultyOf(objects), ...explained].sort(byFirst);
    for (const object of objects) {
      const facts = object.kind === "full" ? this.#checks.factsOf(object) : null;
      if (facts === null || this.#forks.has(object)) continue;
      const reached = newest.get(facts.chain) ?? object.last;
      if (facts.settled <= reached) continue;
      const from = firstUncovered(covered, reached + 1, facts.settled);
      if (from > facts.settled) continue;
      const elsewhere = this.#graph.restorePoints.some((point) => point >= facts.settled);
      this.#lacking(destination, elsewhere, {
        key: null,
        message: `change-sets ${from} to ${facts.settled}, which full backup ${object.first} needs, are missing`,
      });
    }
  }

  /** Ascending by first. */
  #faultyOf(objects: readonly ReplicaObject[]): readonly ReplicaObject[] {
    return objects.filter((object) => this.#checks.faultOf(object) !== null).sort(byFirst);
  }

  #judgePageSizes(destination: number, objects: readonly ReplicaObject[]): void {
    const sizes = new Map<string, number>();
    for (const object of objects) {
      const facts = this.#checks.factsOf(object);
      if (facts?.chain == null || facts.pageSizeBytes === null) continue;
      const known = sizes.get(facts.chain) ?? facts.pageSizeBytes;
      sizes.set(facts.chain, known);
      if (known === facts.pageSizeBytes) continue;
      this.#problem("corrupt", destination, keyOf(this.#replica.database, object), {
        message: `its pages have ${facts.pageSizeBytes} bytes, and those of its chain ${known}`,
        nextStep: "report this: no bakelite writes such an object",
      });
    }
  }

  /** Whether the newest objects have been deleted: what CURRENT, this host and the other destinations know of. */
  #judgeEnd(destination: number, objects: readonly ReplicaObject[], documents: Documents): void {
    const highest = objects.reduce((max, object) => Math.max(max, object.last), 0);
    const isMirror = this.#evidence.isMirror[destination] === true;
    const witnesses = isMirror ? [] : [...this.#localWitnesses(this.#replica.locationOf(destination))];
    if (documents.current.outcome === "read") witnesses.push({ who: "CURRENT", index: documents.current.value.index });
    const [witness] = witnesses.filter(({ index }) => index > highest).sort((a, b) => b.index - a.index);
    const beyond = [...this.#allObjects()].filter((object) => object.last > highest);
    const elsewhere = witness === undefined ? beyond.length > 0 : beyond.some(({ last }) => last >= witness.index);
    if (witness !== undefined) {
      this.#lacking(destination, elsewhere, {
        key: null,
        message:
          highest === 0
            ? `${witness.who} knows of state ${witness.index}, and nothing is stored: everything has been deleted`
            : `${witness.who} knows of state ${witness.index}, and the newest that is stored is ${highest}: the newest objects have been deleted`,
      });
      return;
    }
    if (!elsewhere) return;
    const oldestMs = beyond.reduce((min, object) => Math.min(min, object.modifiedMs), Number.POSITIVE_INFINITY);
    const newest = beyond.reduce((max, object) => Math.max(max, object.last), 0);
    const message = `it ends at state ${highest}, and another destination has states up to ${newest}`;
    if (isMirror || this.#evidence.nowMs - oldestMs < ON_ITS_WAY_MS)
      this.#warning("behind", destination, null, {
        message,
        nextStep: "wait for the daemon to copy them (`bakelite status` shows how far it is)",
      });
    else this.#lacking(destination, true, { key: null, message });
  }

  /**
   * Up to where this host has stored at a destination. A chain whose first full backup is under way has an index and no
   * object yet; and a destination that has just been configured has nothing of what was stored before.
   */
  #localWitnesses(location: string): readonly { readonly who: string; readonly index: number }[] {
    const { local } = this.#evidence;
    if (local === null) return [];
    const { cursor, ledger } = local;
    if (cursor !== null && cursor.destinations[location] === undefined) return [];
    const isStored = (chain: string) =>
      [...this.#allObjects()].some((object) => this.#checks.factsOf(object)?.chain === chain);
    const witnesses: { who: string; index: number }[] = [];
    if (cursor !== null && (cursor.fullBackup !== null || isStored(cursor.chain)))
      witnesses.push({ who: "this host's cursor", index: cursor.index });
    // The ledger of the chain before stays until the new chain has its first full backup; it is complete all the same.
    if (ledger?.complete === true) witnesses.push({ who: "this host's page ledger", index: ledger.index });
    return witnesses;
  }

  #judgeCurrent(
    destination: number,
    graph: LineageGraph,
    objects: readonly ReplicaObject[],
    { current }: Documents,
  ): void {
    const key = currentKey(this.#replica.database);
    const newest = this.#newestUsableFull(graph, objects);
    switch (current.outcome) {
      case "missing":
        if (newest !== null)
          this.#warning("no-current", destination, key, {
            message: "there is no CURRENT, so the replica itself cannot tell whether newer backups were deleted",
            nextStep: "nothing, if a first full backup has just been stored; the daemon writes it with the next one",
          });
        return;
      case "fault":
        this.#problem(current.kind, destination, key, {
          message: current.message,
          nextStep:
            current.kind === "unreadable-key"
              ? "check key_file, or accept_plaintext, under [defaults.encryption]"
              : "restores do without it; the daemon rewrites it with the next full backup, or delete it",
        });
        return;
      case "read":
        this.#compareCurrent(destination, graph, objects, current.value, newest);
    }
  }

  #compareCurrent(
    destination: number,
    graph: LineageGraph,
    objects: readonly ReplicaObject[],
    hint: CurrentHint,
    newest: ReplicaObject | null,
  ): void {
    const key = currentKey(this.#replica.database);
    if (newest !== null && hint.full < newest.first) {
      const message = `CURRENT points at full backup ${hint.full}, and ${newest.first} is the newest: a possible rollback`;
      const nextStep =
        "find out whether somebody put an older CURRENT back; if the daemon was stopped right after a full backup, the next one rewrites it";
      this.#needsSecondLook = true;
      if (
        this.#evidence.isMirror[destination] === true ||
        this.#evidence.nowMs - newest.modifiedMs < CURRENT_FOLLOWS_MS
      )
        this.#warning("stale-current", destination, key, { message, nextStep });
      else this.#problem("stale-current", destination, key, { message, nextStep });
      return;
    }
    const isListed = objects.some((object) => object.kind === "full" && object.first === hint.full);
    if ((newest === null || hint.full > newest.first) && !isListed) {
      this.#lacking(destination, this.#hasFullElsewhere(destination, hint.full), {
        key: objectKey(this.#replica.database, { kind: "full", index: hint.full, seal: hint.seal }),
        message: "the full backup that CURRENT points at is missing",
      });
      return;
    }
    const atIndex = graph.stampSources(hint.index).map((object) => this.#checks.factsOf(object));
    if (atIndex.length === 0 || atIndex.some((facts) => facts?.result === hint.lineage)) return;
    this.#needsSecondLook = true;
    this.#problem("stale-current", destination, key, {
      message: `CURRENT names another history for state ${hint.index} than the objects that are stored`,
      nextStep: "make sure that only one daemon backs up this database to this destination",
    });
  }

  #hasFullElsewhere(destination: number, index: number): boolean {
    return this.#replica.catalog.fulls.some(
      (object) => object.destination !== destination && object.first === index && this.#checks.factsOf(object) !== null,
    );
  }

  #newestUsableFull(graph: LineageGraph, objects: readonly ReplicaObject[]): ReplicaObject | null {
    const newestPoint = graph.restorePoints.at(-1);
    return (
      objects.findLast((object) => {
        const facts = object.kind === "full" ? this.#checks.factsOf(object) : null;
        return facts !== null && !this.#forks.has(object) && newestPoint !== undefined && facts.settled <= newestPoint;
      }) ?? null
    );
  }

  #judgeManifest(destination: number, objects: readonly ReplicaObject[], { manifest }: Documents): void {
    const key = manifestKey(this.#replica.database);
    const nextStep =
      "delete it: it is a cache only, and the daemon writes a new one; until then it may lead restores astray";
    if (manifest.outcome === "fault")
      this.#problem(manifest.kind, destination, key, { message: manifest.message, nextStep });
    if (manifest.outcome !== "read") return;
    const contradicted = contradictedBy(manifest.value, objects, this.#checks);
    if (contradicted === null) return;
    this.#problem("corrupt", destination, key, {
      message: `it tells something else of ${keyOf(this.#replica.database, contradicted)} than that object itself`,
      nextStep,
    });
  }

  /** The ledger says what the daemon takes to be stored: where it is wrong, changed pages would not be. */
  #judgeLedger(): void {
    const { local } = this.#evidence;
    for (const [what, path, state] of [
      ["cursor", local?.cursorPath, local?.cursor],
      ["page ledger", local?.ledgerPath, local?.ledger],
    ] as const) {
      if (path === undefined || state == null) continue;
      const stored = this.#graph.stampSources(state.index).map((object) => this.#checks.factsOf(object));
      if (stored.length === 0 || stored.some((facts) => facts?.result === state.lineage)) continue;
      this.#needsSecondLook = true;
      this.#problems.add({
        kind: what === "cursor" ? "fork" : "ledger",
        destination: path,
        key: null,
        message: `this host's ${what} knows another history of state ${state.index} than what is stored: another writer has taken over`,
        nextStep: "make sure that only one daemon backs up this database to this destination",
      });
    }
  }

  /** What names alone show. */
  #judgeCatalog(): void {
    const { catalog } = this.#replica;
    for (const { kind, key, destination } of catalog.anomalies)
      if (kind === "foreign-name")
        this.#warning("foreign-name", destination, key, {
          message: "it has no name that bakelite gives, and is ignored",
          nextStep: "move it away if it is yours",
        });
    const [twin] = catalog.twins.keys();
    if (twin !== undefined)
      this.#warning("two-seals", twin.destination, keyOf(this.#replica.database, twin), {
        message: `${catalog.twins.size} objects are stored under two seals, as a \`reencrypt\` that was cut short leaves them`,
        nextStep: `stop the daemon and run \`bakelite reencrypt --db ${this.#replica.database}\` again`,
      });
  }

  #judgeNothing(): void {
    const { database, catalog, options } = this.#replica;
    const isNone = catalog.fulls.length === 0 && catalog.changeSets.length === 0;
    for (const destination of options.backends.keys())
      this.#problem("missing", destination, null, {
        message: isNone
          ? `nothing is stored for database \`${database}\``
          : catalog.fulls.length === 0
            ? "no full backup is stored, so nothing can be restored"
            : "no full backup leads to a state that can be restored",
        nextStep: "wait if the daemon is still writing the first full backup (`bakelite status`); else start it",
      });
  }

  *#allObjects(): Generator<ReplicaObject> {
    yield* this.#replica.catalog.fulls;
    yield* this.#replica.catalog.changeSets;
  }

  #problem(kind: ProblemKind, destination: number, key: string | null, words: Words): void {
    this.#problems.add({ kind, destination: this.#replica.locationOf(destination), key, ...words });
  }

  #warning(kind: WarningKind, destination: number, key: string | null, words: Words): void {
    this.#warnings.add({ kind, destination: this.#replica.locationOf(destination), key, ...words });
  }
}

interface Words {
  readonly message: string;
  readonly nextStep: string;
}

/** Joins change-sets of which each continues another one, or shares its beginning with one. Given and returned ascending by first. */
function strandsOf(unreached: readonly ReplicaObject[], checks: ObjectChecks): readonly Strand[] {
  const strands: Strand[] = [];
  const byLineage = new Map<string, Strand>();
  for (const object of unreached) {
    const facts: ObjectFacts | null = checks.factsOf(object);
    if (facts === null) continue;
    const start = `${object.first - 1} ${facts.parent}`;
    let strand = byLineage.get(start);
    if (strand === undefined) {
      strand = {
        sample: object,
        chain: facts.chain,
        first: object.first,
        last: object.last,
        count: 0,
        hasDigest: false,
      };
      strands.push(strand);
      byLineage.set(start, strand);
    }
    strand.last = Math.max(strand.last, object.last);
    strand.count++;
    strand.hasDigest ||= checks.hasDigest(object);
    byLineage.set(`${object.last} ${facts.result}`, strand);
  }
  return strands;
}

function tail({ count }: Strand): string {
  return count === 1 ? "" : `, with the ${count - 1} that follow it`;
}

/** The first state from `first` to `last` over which none of `ranges`, ascending by first, lies; above `last` when there is none. */
function firstUncovered(
  ranges: readonly { readonly first: number; readonly last: number }[],
  first: number,
  last: number,
): number {
  let from = first;
  for (const range of ranges) {
    if (range.first > from || from > last) break;
    from = Math.max(from, range.last + 1);
  }
  return from;
}

function byFirst(a: { readonly first: number }, b: { readonly first: number }): number {
  return a.first - b.first;
}

/** Where in a list ascending by `first` those with the same `first` stand, half-open. */
function equalRange(objects: readonly ReplicaObject[], { first }: ReplicaObject): { start: number; end: number } {
  const bound = (value: number) => {
    let [low, high] = [0, objects.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((objects[middle]?.first ?? 0) < value) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  return { start: bound(first), end: bound(first + 1) };
}

function getOrMake(map: Map<string | null, number[]>, key: string | null): number[] {
  const known = map.get(key);
  if (known !== undefined) return known;
  const made: number[] = [];
  map.set(key, made);
  return made;
}
