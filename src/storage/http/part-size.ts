/** Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html */
export const MAX_PART_COUNT = 10_000;
const MAX_PART_BYTES = 5 * 2 ** 30;
const MIB = 2 ** 20;
/** Of a body of unknown size, so many parts have the configured size; then the size doubles after every so many. */
const PARTS_OF_FIRST_SIZE = 5000;
const PARTS_OF_LATER_SIZES = 1000;

/**
 * The size of part `number` (from 1). A known body gets parts of one size, large enough that 10,000 hold it. One of unknown
 * size starts with the configured size, and only if it turns out very large the parts grow: 5,000 of 8 MiB are
 * 39 GiB, and all 10,000 together more than half a TiB. (Some servers want all parts but the last to have one size.)
 */
export function partSizeBytes(number: number, configuredBytes: number, bodyBytes: number | undefined): number {
  if (bodyBytes !== undefined) return Math.max(configuredBytes, Math.ceil(bodyBytes / MAX_PART_COUNT / MIB) * MIB);
  const doublings = Math.max(0, Math.ceil((number - PARTS_OF_FIRST_SIZE) / PARTS_OF_LATER_SIZES));
  return Math.min(MAX_PART_BYTES, configuredBytes * 2 ** doublings);
}
