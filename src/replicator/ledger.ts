import { rm } from "node:fs/promises";
import { lockPageNumber, PAGE_HASH_BYTES } from "../format/pages.ts";
import type { Replica } from "../replica/replica.ts";
import type { OpenedObject } from "../replica/trailers.ts";
import { LedgerFile, replaceLedger } from "../state/ledger-file.ts";
import type { Logger } from "../util/logger.ts";
import { digestOfLedger } from "./digest.ts";
import { stateAfter, walkLineage } from "./lineage-walk.ts";
import type { StoredState } from "./stored-state.ts";

export interface LedgerAt {
  readonly ledger: LedgerFile;
  /** The state that the ledger describes, with its digest. */
  readonly state: StoredState;
}

/**
 * Brings the ledger file at `path` to `target`: by replaying the page lists of the objects since its slot, or from the newest
 * full backup on when the file is absent, damaged, of another chain, or its entries do not add up to the digest that was
 * recorded. Null when the replica cannot give it. The caller closes it.
 */
export async function openLedgerAt(
  path: string,
  replica: Replica,
  target: StoredState,
  log: Logger,
): Promise<LedgerAt | null> {
  const ledger = await LedgerFile.open(path, { create: true });
  try {
    const slot = ledger.slot;
    if (slot?.complete === true && slot.chain === target.chain && slot.pageSizeBytes === target.pageSizeBytes) {
      const reached = await replay(ledger, replica, slot, slot.sizePages, target);
      const settled = reached === null || reached.digest === null ? null : await settle(ledger, target, reached.digest);
      if (settled !== null) return settled;
      const why = reached === null ? "objects are missing" : "its entries are not what its slot says";
      log.warn("the page ledger cannot be brought up to date", { why, slot: slot.index, wanted: target.index });
    }
  } catch (error) {
    await ledger.close();
    throw error;
  }
  await ledger.close();
  return await rebuildLedger(path, replica, target, log);
}

/**
 * Writes the page lists of every object after `from` up to `target`, and gives the digest recorded there; null, with the
 * entries in any state, if an object is missing.
 */
export async function replay(
  ledger: LedgerFile,
  replica: Replica,
  from: { readonly index: number; readonly lineage: string; readonly chain: string; readonly digest: string | null },
  fromSizePages: number,
  target: StoredState,
): Promise<{ readonly digest: string | null } | null> {
  if (from.index === target.index) return from.lineage === target.lineage ? from : null;
  if (from.index > target.index) return null;
  let sizePages = fromSizePages;
  for await (const opened of walkLineage(replica, from)) {
    const state = stateAfter(opened);
    if (state.index > target.index) return null;
    await applyPageLists(ledger, opened);
    if (state.sizePages < sizePages) ledger.truncate(state.sizePages);
    sizePages = state.sizePages;
    if (state.index === target.index) return state.lineage === target.lineage ? state : null;
  }
  return null;
}

/** The entries of every page in the object. Absolute, so they can be applied again. */
export async function applyPageLists(ledger: LedgerFile, { reader }: OpenedObject): Promise<void> {
  for (let i = 0; i < reader.trailer.indexChunks.length; i++) {
    const { pageNumbers, hashes } = await reader.indexChunk(i);
    ledger.write(pageNumbers, hashes);
  }
}

async function rebuildLedger(
  path: string,
  replica: Replica,
  target: StoredState,
  log: Logger,
): Promise<LedgerAt | null> {
  for (const full of replica.catalog.fulls.toReversed()) {
    if (full.first > target.index) continue;
    const opened = await replica.trailers.open(full);
    if (opened === null || opened.reader.header.chain !== target.chain) continue;
    // Pages that were read too late belong to a state after the target: a ledger of them would claim what is not stored.
    if (opened.reader.trailer.settled > target.index) continue;
    log.info("rebuilding the page ledger from the replica", { fullBackup: full.first, index: target.index });
    const newPath = `${path}.new`;
    await rm(newPath, { force: true });
    const ledger = await LedgerFile.open(newPath, { fresh: true });
    try {
      await applyPageLists(ledger, opened);
      const start = { ...stateAfter(opened), index: full.first };
      const reached = await replay(ledger, replica, start, start.sizePages, target);
      const settled = reached === null ? null : await settle(ledger, target, reached.digest);
      if (settled !== null) {
        await replaceLedger(path, newPath);
        return settled;
      }
      await ledger.close();
    } catch (error) {
      await ledger.close();
      throw error;
    }
  }
  return null;
}

/** Null when the entries do not add up to the digest that was recorded for `target`, as far as one was. */
async function settle(ledger: LedgerFile, target: StoredState, recorded: string | null): Promise<LedgerAt | null> {
  ledger.truncate(target.sizePages);
  const digest = digestOfLedger(ledger, target.sizePages, target.pageSizeBytes);
  if (recorded !== null && recorded !== digest) return null;
  const state = { ...target, digest };
  await commitLedger(ledger, state);
  return { ledger, state };
}

/** Makes the ledger durable as that of `state`. */
export async function commitLedger(ledger: LedgerFile, state: StoredState): Promise<void> {
  await ledger.commitSlot({
    index: state.index,
    lineage: state.lineage,
    chain: state.chain,
    sizePages: state.sizePages,
    pageSizeBytes: state.pageSizeBytes,
    digest: state.digest,
    complete: true,
  });
}

/** The pages whose hash is not the ledger's, or that state `state` does not have; the lock page is left out. */
export function* pagesThatDiffer(
  ledger: LedgerFile,
  pageNumbers: Uint32Array,
  hashes: Uint8Array,
  state: StoredState,
): Generator<number> {
  const known = ledger.read(pageNumbers);
  const lockPage = lockPageNumber(state.pageSizeBytes);
  for (const [i, page] of pageNumbers.entries()) {
    if (page === lockPage) continue;
    const offset = i * PAGE_HASH_BYTES;
    const same = Buffer.compare(
      hashes.subarray(offset, offset + PAGE_HASH_BYTES),
      known.subarray(offset, offset + PAGE_HASH_BYTES),
    );
    if (page > state.sizePages || same !== 0) yield page;
  }
}
