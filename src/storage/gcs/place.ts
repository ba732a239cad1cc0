/** What this process has found out about one bucket. Shared by all destinations there. */
export interface Place {
  /** Some request was answered with success, so the bucket is there. */
  isSeen: boolean;
}

const places = new Map<string, Place>();

/** The one of this process for that bucket; `base` is the server's URL. */
export function placeOf(base: string, bucket: string): Place {
  const name = `${base} ${bucket}`;
  const known = places.get(name) ?? { isSeen: false };
  places.set(name, known);
  return known;
}
