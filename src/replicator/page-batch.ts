import type { PageBatch } from "../format/encode.ts";
import { hashPage, lockPageNumber, PAGE_HASH_BYTES } from "../format/pages.ts";
import type { WalFollower } from "../sqlite/follow.ts";

/** The images, at the follower's position of this moment, and the hashes of `pages` (ascending), less the lock page. */
export function readPages(follower: WalFollower, pages: Uint32Array): PageBatch {
  const size = follower.pageSizeBytes;
  const lockPage = lockPageNumber(size);
  const pageNumbers = pages.includes(lockPage) ? pages.filter((page) => page !== lockPage) : pages;
  const images = new Uint8Array(pageNumbers.length * size);
  follower.resolve(pageNumbers, images);
  const hashes = new Uint8Array(pageNumbers.length * PAGE_HASH_BYTES);
  for (let i = 0; i < pageNumbers.length; i++) {
    hashPage(pageNumbers[i] ?? 0, images.subarray(i * size, (i + 1) * size), hashes, i * PAGE_HASH_BYTES);
  }
  return { pageNumbers, images, hashes };
}

/** `first` to `last`, both included, but those that `skip` names. */
export function pageRange(
  first: number,
  last: number,
  skip: (pageNumber: number) => boolean = () => false,
): Uint32Array {
  const pages = new Uint32Array(Math.max(0, last - first + 1));
  let count = 0;
  for (let page = first; page <= last; page++) if (!skip(page)) pages[count++] = page;
  return pages.subarray(0, count);
}
