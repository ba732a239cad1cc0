import type { ObjectName } from "../format/names.ts";
import type { CurrentHint } from "../replica/documents.ts";
import { WHOLE_OBJECT_BYTES } from "../replica/repair-scan.ts";

/** An object that the mirror lacks. */
export interface Wanted {
  readonly name: ObjectName;
  /** null: not known. */
  readonly sizeBytes: number | null;
}

/** More than this is not remembered but listed again. */
const MAX_NOTED = 10_000;

/** What a mirror lacks, each object by its key, in the order in which it is to be copied. */
export class Backlog {
  /** Heard of since the last listing: they lead to the newest states, so they go first. */
  readonly #noted = new Map<string, Wanted>();
  /** Found by the last listing. */
  #planned = new Map<string, Wanted>();
  readonly #inFlight = new Map<string, Wanted>();
  /** Cannot be copied, for a reason of its own. */
  #stuck = new Map<string, Wanted>();

  /** Something was stored elsewhere. False: there is no room to remember it. */
  note(key: string, wanted: Wanted): boolean {
    if (this.#planned.has(key)) return true;
    if (this.#noted.size >= MAX_NOTED) return false;
    this.#noted.set(key, wanted);
    return true;
  }

  /** What was heard of until now. */
  get noted(): ReadonlySet<string> {
    return new Set(this.#noted.keys());
  }

  /** A listing has found this; what was heard of before it began, `listed`, is settled with that. */
  replace(planned: Map<string, Wanted>, stuck: Map<string, Wanted>, listed: ReadonlySet<string>): void {
    for (const key of [...listed, ...planned.keys()]) this.#noted.delete(key);
    this.#planned = planned;
    this.#stuck = stuck;
  }

  /** The next one to copy, from now on in flight. */
  take(isLarge: boolean): readonly [string, Wanted] | null {
    for (const wanted of [this.#noted, this.#planned])
      for (const [key, one] of wanted) {
        if (isLargeOne(one) !== isLarge) continue;
        wanted.delete(key);
        this.#inFlight.set(key, one);
        return [key, one];
      }
    return null;
  }

  /** It is in flight no longer: it has arrived, or is nowhere any more. */
  settled(key: string): void {
    this.#inFlight.delete(key);
  }

  /** The copy failed, and is to be tried again. */
  putBack(key: string, wanted: Wanted): void {
    this.#noted.set(key, wanted);
  }

  /** It cannot be copied, until another listing says otherwise. */
  stick(key: string, wanted: Wanted): void {
    this.#stuck.set(key, wanted);
  }

  get isStuck(): boolean {
    return this.#stuck.size > 0;
  }

  /** How many are wanted and not stuck. */
  get count(): number {
    return this.#inFlight.size + this.#noted.size + this.#planned.size;
  }

  /** All that is lacking, stuck or not. */
  get lacking(): readonly Wanted[] {
    return [this.#inFlight, this.#noted, this.#planned, this.#stuck].flatMap((some) => [...some.values()]);
  }

  /** Whether nothing is lacking of what `CURRENT` names. */
  hasAllOf({ full, index }: CurrentHint): boolean {
    return !this.lacking.some(({ name }) =>
      name.kind === "full" ? name.index === full : name.last > full && name.first <= index,
    );
  }
}

function isLargeOne({ name, sizeBytes }: Wanted): boolean {
  return sizeBytes === null ? name.kind === "full" : sizeBytes > WHOLE_OBJECT_BYTES;
}
