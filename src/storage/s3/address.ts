/** Where a bucket is, as the configuration says it. */
export interface BucketAddress {
  readonly bucket: string;
  /** An http or https URL, perhaps with a path; undefined: Amazon. */
  readonly endpoint: string | undefined;
  /** The bucket stands in the path instead of the host name. */
  readonly pathStyle: boolean;
}

/**
 * The URL of a key of the bucket, or without one that of the bucket itself, without a query. Amazon's host name has the
 * region in it. A bucket with a dot in its name goes into the path there, since no wildcard certificate covers it.
 * Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
 */
export function objectUrl(address: BucketAddress, region: string, key?: string): string {
  const { bucket, endpoint } = address;
  const pathStyle = address.pathStyle || (endpoint === undefined && bucket.includes("."));
  const base = new URL(endpoint ?? `https://s3.${region}.${amazonDomain(region)}`);
  const host = pathStyle ? base.host : `${bucket}.${base.host}`;
  const path = base.pathname.replace(/\/+$/, "") + (pathStyle ? `/${encodeSegment(bucket)}` : "");
  return `${base.protocol}//${host}${path}/${key === undefined ? "" : encodeKey(key)}`.replace(
    // The bucket itself, in the path, is asked for without a slash at its end.
    key === undefined && pathStyle ? /\/$/ : /(?!)/,
    "",
  );
}

/**
 * A key as a URL's path: everything but unreserved characters and the slash is percent-encoded, which is also the canonical
 * form that is signed. Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
 */
export function encodeKey(key: string): string {
  return key.split("/").map(encodeSegment).join("/");
}

/**
 * A key out of a listing that was asked for with `encoding-type=url`, where a space may be `+`. Throws a plain Error for
 * what is not such an encoding.
 */
export function decodeListedKey(encoded: string): string {
  try {
    return decodeURIComponent(encoded.replaceAll("+", " "));
  } catch (cause) {
    throw new Error("a key is not URL-encoded", { cause });
  }
}

function encodeSegment(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

function amazonDomain(region: string): string {
  if (region.startsWith("cn-")) return "amazonaws.com.cn";
  if (region.startsWith("eusc-")) return "amazonaws.eu";
  return "amazonaws.com";
}
