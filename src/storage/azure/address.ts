/** Where a container is, as the configuration says it. */
export interface ContainerAddress {
  readonly account: string;
  readonly container: string;
  /** The URL of the account's blob service, without a slash at its end, perhaps with a path; undefined: Azure's public cloud. */
  readonly endpoint: string | undefined;
}

export type Query = Readonly<Record<string, string>>;

/** The URL of the account's blob service. */
export function serviceUrl({ account, endpoint }: ContainerAddress): string {
  return (endpoint ?? `https://${account}.blob.core.windows.net`).replace(/\/+$/, "");
}

/** The URL of a blob of the container, of the container itself, or (`service`) of the account, with a query. */
export function blobUrl(
  address: ContainerAddress,
  of: { readonly key: string } | "container" | "service",
  query: Query = {},
): URL {
  const base = serviceUrl(address);
  const container = `${base}/${encodeSegment(address.container)}`;
  const path = of === "service" ? `${base}/` : of === "container" ? container : `${container}/${encodeKey(of.key)}`;
  const url = new URL(path);
  url.search = Object.entries(query)
    .map(([name, value]) => `${encodeSegment(name)}=${encodeSegment(value)}`)
    .join("&");
  return url;
}

/** For messages, without credentials: `azure://account/container/key`, as `bakelite doctor` says it. */
export function locationOf({ account, container }: ContainerAddress, path: string): string {
  return `azure://${account}/${container}${path === "" ? "" : `/${path}`}`;
}

/** A key as the path of a URL: everything but unreserved characters and the slash is percent-encoded (RFC 3986). */
export function encodeKey(key: string): string {
  return key.split("/").map(encodeSegment).join("/");
}

function encodeSegment(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}
