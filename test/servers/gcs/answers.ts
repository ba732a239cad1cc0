/** A refusal in the words of the JSON API. Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes */
export class Refused extends Error {
  readonly status: number;
  readonly reason: string;

  constructor(status: number, reason: string, message: string) {
    super(message);
    this.status = status;
    this.reason = reason;
  }

  get answer(): Response {
    const { status, reason, message } = this;
    return Response.json(
      { error: { code: status, message, errors: [{ message, domain: "global", reason }] } },
      { status },
    );
  }
}

export const notFound = (message: string) => new Refused(404, "notFound", message);
export const invalid = (message: string) => new Refused(400, "invalid", message);
export const conditionNotMet = () =>
  new Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.");

/** What other clients send with everything. Source: https://cloud.google.com/storage/docs/json_api/v1/parameters */
const COMMON = ["alt", "prettyPrint", "projection", "userProject"];

/** Only these may be asked; a parameter that Google does not know would be a mistake of ours. */
export function knownParameters(url: URL, names: readonly string[]): void {
  for (const name of url.searchParams.keys())
    if (!names.includes(name) && !COMMON.includes(name)) throw invalid(`Unknown parameter: ${name}`);
}

/**
 * The fields of a resource that `fields` asks for: names, and names with a list in parentheses. One that the resource cannot have
 * is refused. Source: https://cloud.google.com/storage/docs/json_api#partial-response
 */
export function selected(resource: Fields, fields: string | null, known: readonly string[]): Fields {
  if (fields === null) return resource;
  const wanted: [string, unknown][] = [];
  for (const [, name = "", nested] of fields.matchAll(/([A-Za-z0-9]+)(?:\(([^)]*)\))?/g)) {
    if (!known.includes(name)) throw invalid(`Invalid field selection ${name}`);
    const value = resource[name];
    if (value === undefined) continue;
    wanted.push([
      name,
      nested !== undefined && Array.isArray(value)
        ? value.map((each: Fields) => selected(each, nested, OBJECT_FIELDS))
        : value,
    ]);
  }
  return Object.fromEntries(wanted);
}

export type Fields = Readonly<Record<string, unknown>>;

export const OBJECT_FIELDS = [
  ...["name", "bucket", "generation", "size", "timeCreated", "updated", "timeDeleted", "contentType"],
  ...["storageClass", "crc32c", "md5Hash", "temporaryHold", "retentionExpirationTime"],
];
