import { afterAll, test } from "bun:test";
import { missingForRgw, type RgwOptions, type RgwServer, startRgw } from "./rgw.ts";
import { newBucketName, type S3Account, S3Requests } from "./s3-account.ts";
import { missingForSwift, startSwift } from "./swift.ts";
import { missingForVersityGateway, startVersityGateway } from "./versitygw.ts";

/** A bucket, or a part of one, for one test alone. */
export interface S3Place extends AsyncDisposable {
  readonly account: S3Account;
  readonly bucket: string;
  /** Without slashes at its ends; "" for the whole bucket. */
  readonly prefix: string;
  readonly requests: S3Requests;
}

/** A running server that tests may fill. */
export interface S3Server extends AsyncDisposable {
  /** For the reader of a run: `Ceph RGW 16.2.15`. */
  readonly name: string;
  readonly account: S3Account;
  newPlace(): Promise<S3Place>;
}

/** A kind of server, and whether this machine has it. */
export interface S3ServerKind {
  readonly id: S3ServerName;
  readonly label: string;
  /** How to get what is missing, for the reason of a skip. */
  readonly packages: string;
  /** Nobody is told when it is not there. */
  readonly isOptional: boolean;
  /** A put with If-None-Match is atomic there. */
  readonly hasConditionalPut: boolean;
  /** So is the completion of an upload in parts. */
  readonly hasConditionalComplete: boolean;
  missing(): readonly string[];
  start(): Promise<S3Server>;
}

const OWN = "BAKELITE_TEST_S3_";
const OWN_REQUIRED = ["ENDPOINT", "BUCKET", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"] as const;

const RGW_PACKAGES = "radosgw, ceph-mon, ceph-osd and ceph-common";

export type S3ServerName = "rgw" | "swift" | "versitygw" | "own";

export const S3_SERVERS: readonly S3ServerKind[] = [
  {
    id: "rgw",
    label: "Ceph RGW",
    packages: RGW_PACKAGES,
    isOptional: false,
    hasConditionalPut: true,
    hasConditionalComplete: false,
    missing: missingForRgw,
    start: async () => withPlaces(await sharedRgw("memory")),
  },
  {
    id: "swift",
    label: "OpenStack Swift",
    packages: "swift-proxy, swift-account, swift-container, swift-object and memcached",
    isOptional: false,
    hasConditionalPut: false,
    hasConditionalComplete: false,
    missing: missingForSwift,
    start: async () => withPlaces(await startSwift()),
  },
  {
    id: "versitygw",
    label: "Versity S3 Gateway",
    packages: "github.com/versity/versitygw",
    isOptional: true,
    hasConditionalPut: true,
    hasConditionalComplete: true,
    missing: missingForVersityGateway,
    start: async () => withPlaces(await startVersityGateway()),
  },
  {
    id: "own",
    label: "S3 of your own",
    packages: `${OWN_REQUIRED.map((name) => OWN + name).join(", ")} in the environment`,
    isOptional: true,
    hasConditionalPut: process.env[`${OWN}CONDITIONAL_PUT`] !== "0",
    hasConditionalComplete: process.env[`${OWN}CONDITIONAL_PUT`] !== "0",
    missing: () => OWN_REQUIRED.map((name) => OWN + name).filter((name) => (process.env[name] ?? "") === ""),
    start: async () => ownServer(),
  },
];

/** The servers that tests can run against here, and those that they cannot, with what is missing. */
export function findServers(ids: readonly S3ServerName[] = S3_SERVERS.map(({ id }) => id)): {
  readonly found: readonly S3ServerKind[];
  readonly lacking: readonly { readonly kind: S3ServerKind; readonly reason: string }[];
} {
  const wanted = S3_SERVERS.filter(({ id }) => ids.includes(id));
  const lacking = wanted
    .filter((kind) => kind.missing().length > 0)
    .map((kind) => ({
      kind,
      reason: reasonOf(kind.missing(), kind.packages),
    }));
  return { found: wanted.filter((kind) => kind.missing().length === 0), lacking };
}

/**
 * For the top of a test file: `define` names the tests of each server that is to be had, which is stopped after them. One
 * that is missing becomes a skipped test with the reason, and the run says which ones it met.
 */
export async function forEachS3Server(
  define: (server: S3Server, kind: S3ServerKind) => void,
  ids?: readonly S3ServerName[],
): Promise<void> {
  const { found, lacking } = findServers(ids);
  const started = await Promise.all(found.map(async (kind) => ({ kind, server: await kind.start() })));
  for (const { server, kind } of started) {
    announce(server.name);
    afterAll(() => server[Symbol.asyncDispose]());
    define(server, kind);
  }
  for (const { kind, reason } of lacking)
    if (!kind.isOptional) test.skip(`everything against ${kind.label} (${reason})`, () => {});
}

/** Why Ceph RGW cannot be started here; null: it can. */
export function whyNoRgw(): string | null {
  const missing = missingForRgw();
  return missing.length === 0 ? null : reasonOf(missing, RGW_PACKAGES);
}

/** The same for tests that need what only Ceph RGW has; it listens by HTTP and HTTPS. */
export async function forRgw(
  define: (server: S3Server & { readonly rgw: RgwServer }) => void,
  { store = "memory" }: RgwOptions = {},
): Promise<void> {
  const reason = whyNoRgw();
  if (reason !== null) {
    test.skip(`everything against Ceph RGW (${reason})`, () => {});
    return;
  }
  const rgw = await sharedRgw(store);
  announce(rgw.name);
  afterAll(() => rgw[Symbol.asyncDispose]());
  define({ ...withPlaces(rgw), rgw });
}

const sharedRgws = new Map<string, Promise<RgwServer>>();

/** One for all tests of a file. Disposing it twice does nothing more. */
function sharedRgw(store: "memory" | "disk"): Promise<RgwServer> {
  const started = sharedRgws.get(store) ?? startRgw({ store });
  sharedRgws.set(store, started);
  return started;
}

/** A server of our own: each test gets a bucket, and all of them go with the server. */
export function withPlaces<T extends AsyncDisposable & Pick<S3Server, "name" | "account">>(server: T): S3Server {
  return {
    name: server.name,
    account: server.account,
    newPlace: async () => await newBucketPlace(server.account),
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

async function newBucketPlace(account: S3Account): Promise<S3Place> {
  const requests = new S3Requests(account);
  const bucket = newBucketName();
  await requests.createBucket(bucket);
  return { account, bucket, prefix: "", requests, async [Symbol.asyncDispose]() {} };
}

/** A bucket that somebody else runs: each test gets a random prefix, and cleans up below it. */
function ownServer(): S3Server {
  const value = (name: string) => process.env[OWN + name] ?? "";
  const account: S3Account = {
    endpoint: value("ENDPOINT").replace(/\/+$/, ""),
    region: process.env[`${OWN}REGION`] ?? "us-east-1",
    accessKeyId: value("ACCESS_KEY_ID"),
    secretAccessKey: value("SECRET_ACCESS_KEY"),
  };
  return {
    name: `S3 of your own at ${account.endpoint}`,
    account,
    async newPlace() {
      const requests = new S3Requests(account);
      const [bucket, prefix] = [value("BUCKET"), newBucketName()];
      return { account, bucket, prefix, requests, [Symbol.asyncDispose]: () => requests.clear(bucket, `${prefix}/`) };
    },
    async [Symbol.asyncDispose]() {},
  };
}

function announce(name: string): void {
  console.log(`note: ran against ${name}`);
}

function reasonOf(missing: readonly string[], packages: string): string {
  return `${missing.join(", ")} not found: install ${packages}`;
}
