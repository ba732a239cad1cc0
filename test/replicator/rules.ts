import {
  killedAfterPut,
  ledgerIsWrongInOneBit,
  secondWriterIsRefused,
  stopWhileFullWaitsForItsTurn,
  walIsGone,
} from "./scenarios/attach.ts";
import { clockIsSlewed, clockStepsBack, clockStepsOn } from "./scenarios/clocks.ts";
import {
  firstFullAmongCommits,
  fullInPeace,
  fullWhoseChangeSetFails,
  fullWhoseChangeSetIsGivenBack,
  fullWithEverythingStored,
  fullWithPagesInFlight,
  fullWithPagesPending,
  fullWithPagesPendingAndInFlight,
} from "./scenarios/full-backups.ts";
import {
  largeSetInPeace,
  largeSetIsGivenBack,
  largeSetIsSettledByAnEmptyOne,
  largeSetIsTorn,
  powerCutAfterLargeSet,
} from "./scenarios/large-sets.ts";
import {
  alteredPageIsAlteredBack,
  alteredPageIsFoundByCheck,
  alteredPageIsFoundByFull,
  pageChangesBackAfterFull,
  pageChangesBackDuringFull,
  pageChangesBackInSetGivenBack,
  pageOfLargeSetChangesBackAfterFull,
  pagesComeBackAfterFull,
  pagesComeBackAsTheyWere,
  unchangedPagesAreDropped,
} from "./scenarios/unchanged-pages.ts";

/** One place in `src/replicator/` and what stands there when a rule is left out. White space counts for nothing. */
export interface Change {
  readonly file: string;
  readonly from: string;
  readonly to: string;
}

/** A rule of replication, the run that needs it, and the code without it. */
export interface Rule {
  readonly rule: string;
  readonly scenario: () => Promise<void>;
  readonly without: readonly Change[];
}

export const RULES: readonly Rule[] = [
  {
    rule: "a set that commits overtook while it was read is settled by the next one, and its own state is no restore point",
    scenario: largeSetIsTorn,
    without: [{ file: "change-set.ts", from: "this.#inputs.capturedSince() ? last + 1 : last", to: "last" }],
  },
  {
    rule: "what settles a set is stored even when nothing is left to store",
    scenario: largeSetIsSettledByAnEmptyOne,
    without: [{ file: "shipper.ts", from: "|| this.#stored.settled > this.#stored.index", to: "" }],
  },
  {
    rule: "a set whose put failed goes back to what is pending",
    scenario: largeSetIsGivenBack,
    without: [{ file: "pending.ts", from: "this.#pages.addAll(taken.pages);", to: "" }],
  },
  {
    rule: "after a boot a set that is not settled is compared, for its images may be of commits that are lost",
    scenario: powerCutAfterLargeSet,
    without: [{ file: "attachment.ts", from: "(isSettled || !bootedSince)", to: "true" }],
  },
  {
    rule: "a full backup is settled by the index that carries what is pending at its last read",
    scenario: fullWithPagesPending,
    without: [
      {
        file: "shipper.ts",
        from: "if (this.#hasPending()) return (this.#inFlight?.index ?? this.#nextRange().last - 1) + 1;",
        to: "",
      },
    ],
  },
  {
    rule: "a full backup is settled by the index that is in flight at its last read",
    scenario: fullWithPagesInFlight,
    without: [
      {
        file: "shipper.ts",
        from: "return this.#inFlight?.index ?? this.#stored.index;",
        to: "return this.#stored.index;",
      },
    ],
  },
  {
    rule: "a full backup is settled by the index after the one in flight when pages wait behind it",
    scenario: fullWithPagesPendingAndInFlight,
    without: [
      {
        file: "shipper.ts",
        from: "return (this.#inFlight?.index ?? this.#nextRange().last - 1) + 1;",
        to: "return this.#inFlight?.index ?? this.#nextRange().last;",
      },
    ],
  },
  {
    rule: "a full backup is finished only when the index that settles it is stored",
    scenario: fullWithPagesInFlight,
    without: [{ file: "full-backup.ts", from: "await stored(settled);", to: "" }],
  },
  {
    rule: "the ledger of a first full backup takes in what was stored while it was read",
    scenario: firstFullAmongCommits,
    without: [
      {
        file: "full-backups.ts",
        from: "(await replay(ledger, await openReplica(signal), from, from.sizePages, stored)) === null",
        to: "false",
      },
    ],
  },
  {
    rule: "a page captured while a full backup runs is written even if it is as the ledger says",
    scenario: pageChangesBackDuringFull,
    without: [{ file: "change-set.ts", from: "taken.forced.has(page) ||", to: "" }],
  },
  {
    rule: "so is a page that was pending when the full backup began",
    scenario: pageChangesBackAfterFull,
    without: [{ file: "pending.ts", from: "this.#forced.addAll(this.#pages);", to: "" }],
  },
  {
    rule: "so is a page of a large set that was on its way when the full backup began",
    scenario: pageOfLargeSetChangesBackAfterFull,
    without: [{ file: "full-backups.ts", from: "shipper.forceInFlight();", to: "" }],
  },
  {
    rule: "so is a page of a set that was given back",
    scenario: pageChangesBackInSetGivenBack,
    without: [{ file: "pending.ts", from: "this.#forced.addAll(taken.forced);", to: "" }],
  },
  {
    rule: "so is a page that was cut off and came back",
    scenario: pagesComeBackAfterFull,
    without: [
      { file: "pending.ts", from: "this.#pages.add(page); this.#forced.add(page);", to: "this.#pages.add(page);" },
    ],
  },
  {
    rule: "so is a page that the full backup found altered",
    scenario: alteredPageIsAlteredBack,
    without: [
      {
        file: "pending.ts",
        from: "this.page(pageNumber); this.#compared = true;",
        to: "this.#pages.add(pageNumber); this.#compared = true;",
      },
    ],
  },
  {
    rule: "any other page that is as the ledger says is not written",
    scenario: unchangedPagesAreDropped,
    without: [{ file: "change-set.ts", from: "!sameHash(batch.hashes, old, i)", to: "true" }],
  },
  {
    rule: "a set of which nothing is left stores nothing and moves the position on",
    scenario: unchangedPagesAreDropped,
    without: [
      {
        file: "shipper.ts",
        from: "if (!changeSet.isEmpty || this.#isAwaited(index.last))",
        to: "if (changeSet !== null)",
      },
    ],
  },
  {
    rule: "pages beyond the size before are written, whatever the ledger held there once",
    scenario: pagesComeBackAsTheyWere,
    // Three belts and braces: each alone is enough.
    without: [
      { file: "change-set.ts", from: "page > from.sizePages ||", to: "" },
      { file: "pending.ts", from: "this.#pages.add(page); this.#forced.add(page);", to: "this.#pages.add(page);" },
      {
        file: "shipper.ts",
        from: "if (state.sizePages < this.#stored.sizePages) ledger.truncate(state.sizePages);",
        to: "",
      },
    ],
  },
  {
    rule: "a page that nobody was seen to change is stored when a full backup finds it altered",
    scenario: alteredPageIsFoundByFull,
    without: [{ file: "full-backups.ts", from: "if (!shipper.isUnstored(page)) this.#storeAltered(page);", to: "" }],
  },
  {
    rule: "a page that nobody was seen to change is stored when a check of the file finds it altered",
    scenario: alteredPageIsFoundByCheck,
    without: [
      { file: "full-backups.ts", from: "&& !shipper.isUnstored(page)) this.#storeAltered(page);", to: ") return;" },
    ],
  },
  {
    rule: "what nothing proves to be seen is compared",
    scenario: walIsGone,
    without: [{ file: "attachment.ts", from: "if (this.#proven && provenBeyond)", to: "if (this.#local !== null)" }],
  },
  {
    rule: "an object beyond the cursor is ours when the cursor names it as attempted",
    scenario: killedAfterPut,
    without: [
      {
        file: "adopt.ts",
        from: "if (isAttempted(cursor, opened)) attempted++;",
        to: "if (opened === null) attempted++;",
      },
    ],
  },
  {
    rule: "a ledger that does not add up to the digest that was recorded is built again",
    scenario: ledgerIsWrongInOneBit,
    without: [{ file: "ledger.ts", from: "if (recorded !== null && recorded !== digest) return null;", to: "" }],
  },
  {
    rule: "an object is put only where there is none of its name",
    scenario: secondWriterIsRefused,
    without: [{ file: "destinations.ts", from: "{ ifAbsent: true, longLived, signal }", to: "{ longLived, signal }" }],
  },
  {
    rule: "what waits for its turn between two change-sets is let go at a stop",
    scenario: stopWhileFullWaitsForItsTurn,
    without: [{ file: "shipper.ts", from: "this.#between.splice(place, 1); reject(signal.reason);", to: "" }],
  },
  {
    rule: "a clock that steps back begins a new time epoch",
    scenario: clockStepsBack,
    without: [{ file: "time-epochs.ts", from: "nowMs >= previous.stampMs - SLEW_MS", to: "previous !== null" }],
  },
  {
    rule: "stamps do not fall within an epoch",
    scenario: clockIsSlewed,
    without: [{ file: "time-epochs.ts", from: "Math.max(nowMs, previous.stampMs)", to: "nowMs" }],
  },
];

/** Runs in which nothing special may happen: what the rules must not cost. */
export const CALM: Readonly<Record<string, () => Promise<void>>> = {
  "a large set that nothing overtakes is a restore point": largeSetInPeace,
  "a full backup that nothing overtakes is settled by itself and has a digest": fullInPeace,
  "a full backup during which everything was stored is settled by that": fullWithEverythingStored,
  "a full backup waits for a change-set whose put fails and is tried again": fullWhoseChangeSetFails,
  "a full backup waits for a change-set whose pages go into another one": fullWhoseChangeSetIsGivenBack,
  "a clock that steps on a day keeps the epoch, and one that steps back again does not": clockStepsOn,
};
