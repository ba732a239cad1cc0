import { lockPageNumber, PAGE_HASH_BYTES, xorDigest } from "../format/pages.ts";
import type { LedgerFile } from "../state/ledger-file.ts";

/** A state digest that follows the changes from one stored state to the next; the ledger stands at the earlier one. */
export class DigestFollower {
  readonly #ledger: LedgerFile;
  readonly #fromSizePages: number;
  readonly #digest: Uint8Array;

  constructor(ledger: LedgerFile, from: { readonly digest: string; readonly sizePages: number }) {
    this.#ledger = ledger;
    this.#fromSizePages = from.sizePages;
    this.#digest = new Uint8Array(Buffer.from(from.digest, "hex"));
  }

  /** Page number by page number, `oldHashes` replaced by `newHashes`; a page above the earlier size had none. */
  replace(pageNumbers: Uint32Array, oldHashes: Uint8Array, newHashes: Uint8Array): void {
    for (let i = 0; i < pageNumbers.length; i++) {
      if ((pageNumbers[i] ?? 0) <= this.#fromSizePages) xorDigest(this.#digest, oldHashes, i * PAGE_HASH_BYTES);
      xorDigest(this.#digest, newHashes, i * PAGE_HASH_BYTES);
    }
  }

  /** The digest of the later state, 32 hex digits. To be called once, last. */
  finish(toSizePages: number, pageSizeBytes: number): string {
    if (toSizePages < this.#fromSizePages) {
      const gone = this.#ledger.xorRange(toSizePages + 1, this.#fromSizePages, lockPageNumber(pageSizeBytes));
      xorDigest(this.#digest, gone);
    }
    return Buffer.from(this.#digest).toString("hex");
  }
}

/** The digest of the whole state that the ledger describes, 32 hex digits. */
export function digestOfLedger(ledger: LedgerFile, sizePages: number, pageSizeBytes: number): string {
  return Buffer.from(ledger.xorRange(1, sizePages, lockPageNumber(pageSizeBytes))).toString("hex");
}
