import { parseByteSize } from "../util/byte-sizes.ts";
import { parseDuration } from "../util/durations.ts";
import { assert, BakeliteError } from "../util/errors.ts";
import { type ListenAddress, parseListenAddress } from "../util/listen-address.ts";

/** An option that a command, or every command, accepts. */
export interface OptionSpec {
  /** Without dashes: `max-lag`. Never beginning with `no-`. */
  readonly name: string;
  /** One letter, without a dash. */
  readonly short?: string;
  /** What the value is, for help: `duration`. Without it the option is a switch. */
  readonly value?: string;
  /** May be given several times; else a second value is an error. */
  readonly repeatable?: boolean;
  /** One sentence without a full stop. */
  readonly description: string;
}

/** What the command line says of the options in `specs`. Asking for an option that is not among them is a bug. */
export class OptionValues {
  readonly #specs: ReadonlySet<string>;
  readonly #values: ReadonlyMap<string, readonly string[]>;

  /** `values` holds the given options by name, a switch with no values. */
  constructor(specs: readonly OptionSpec[], values: ReadonlyMap<string, readonly string[]>) {
    this.#specs = new Set(specs.map((spec) => spec.name));
    this.#values = values;
  }

  /** True when the option was given, with or without a value. */
  has(name: string): boolean {
    assert(this.#specs.has(name), `the command declares the option --${name}`);
    return this.#values.has(name);
  }

  /** The value exactly as typed, never empty; undefined when not given. */
  text(name: string): string | undefined {
    return this.texts(name)[0];
  }

  /** All values of a repeatable option, in order. */
  texts(name: string): readonly string[] {
    return this.has(name) ? (this.#values.get(name) ?? []) : [];
  }

  /** As `text`, for an option that the command cannot do without. Throws `usage` when not given. */
  requiredText(name: string): string {
    const text = this.text(name);
    if (text === undefined) throw new BakeliteError("usage", `\`--${name}\` is required`);
    return text;
  }

  /** Milliseconds of a duration such as `10m`. Throws `usage`. */
  durationMs(name: string): number | undefined {
    return this.#parsed(name, parseDuration);
  }

  /** Bytes of a size such as `5GiB`. Throws `usage`. */
  byteSize(name: string): number | undefined {
    return this.#parsed(name, parseByteSize);
  }

  /** An address and port such as `127.0.0.1:9090`. Throws `usage`. */
  listenAddress(name: string): ListenAddress | undefined {
    return this.#parsed(name, parseListenAddress);
  }

  /** A whole number of at least `min`, and at most `max`. Throws `usage`. */
  integer(name: string, min: number, max = Number.POSITIVE_INFINITY): number | undefined {
    return this.#parsed(name, (text) => {
      const value = Number(text);
      if (/^\d{1,15}$/.test(text) && value >= min && value <= max) return value;
      const range = max === Number.POSITIVE_INFINITY ? `of at least ${min}` : `from ${min} to ${max}`;
      throw new BakeliteError("usage", `${JSON.stringify(text)} is not a whole number ${range}`);
    });
  }

  /** One of `accepted`. Throws `usage`. */
  oneOf<const T extends string>(name: string, accepted: readonly T[]): T | undefined {
    return this.#parsed(name, (text) => {
      const value = accepted.find((candidate) => candidate === text);
      if (value !== undefined) return value;
      throw new BakeliteError("usage", `${JSON.stringify(text)} is not one of ${accepted.join(", ")}`);
    });
  }

  #parsed<T>(name: string, parse: (text: string) => T): T | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    try {
      return parse(text);
    } catch (error) {
      if (!(error instanceof BakeliteError)) throw error;
      throw new BakeliteError("usage", `\`--${name}\`: ${error.message}`);
    }
  }
}
