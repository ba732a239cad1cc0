/** A deterministic source of randomness: the same seed gives the same sequence on every machine. */
export interface Random {
  readonly seed: number;
  /** A number in [0, 1) with 32 random bits. */
  next(): number;
  /** An integer from `min` to `max`, both included. */
  integer(min: number, max: number): number;
  /** True with the given probability. */
  chance(probability: number): boolean;
  pick<T>(choices: readonly T[]): T;
  bytes(length: number): Uint8Array;
  /** An independent source whose sequence depends on this seed and `label` only, not on what was drawn so far. */
  fork(label: string | number): Random;
}

/** xoshiro128** seeded through splitmix32. Source: https://prng.di.unimi.it/xoshiro128starstar.c */
export function seededRandom(seed: number): Random {
  let mixer = seed >>> 0;
  const mix = (): number => {
    mixer = (mixer + 0x9e3779b9) >>> 0;
    let z = mixer;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  };
  let [a, b, c, d] = [mix(), mix(), mix(), mix()];
  const nextU32 = (): number => {
    const result = Math.imul(rotateLeft(Math.imul(b, 5), 7), 9) >>> 0;
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = rotateLeft(d, 11);
    return result;
  };
  const random: Random = {
    seed: seed >>> 0,
    next: () => nextU32() / 0x1_0000_0000,
    integer: (min, max) => min + Math.floor(random.next() * (max - min + 1)),
    chance: (probability) => random.next() < probability,
    pick(choices) {
      const choice = choices[random.integer(0, choices.length - 1)];
      if (choice === undefined) throw new Error("cannot pick from an empty list");
      return choice;
    },
    bytes(length) {
      const words = new Uint32Array(Math.ceil(length / 4));
      for (let i = 0; i < words.length; i++) words[i] = nextU32();
      return new Uint8Array(words.buffer, 0, length);
    },
    fork: (label) => seededRandom(hashLabel(seed >>> 0, String(label))),
  };
  return random;
}

const DEFAULT_SEED = 1;
let drawn: number | undefined;

/**
 * The seed of this run: always the same one, so that a suite which passed passes again, unless `BAKELITE_TEST_SEED` gives another number or
 * says `random`, which draws one for each process.
 */
export function runSeed(): number {
  const given = process.env["BAKELITE_TEST_SEED"] ?? "";
  if (given === "") return DEFAULT_SEED;
  if (given === "random") {
    drawn ??= crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
    return drawn;
  }
  const seed = Number(given);
  if (!Number.isInteger(seed) || seed < 0)
    throw new Error(`BAKELITE_TEST_SEED is neither "random" nor a whole number: ${given}`);
  return seed >>> 0;
}

/** Runs `body` with this run's seed; a failure says how to repeat it. */
export async function withSeed<T>(body: (random: Random) => T | Promise<T>, seed = runSeed()): Promise<T> {
  try {
    return await body(seededRandom(seed));
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new Error(`${message}\n(repeat with BAKELITE_TEST_SEED=${seed})`, { cause: error });
  }
}

function rotateLeft(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

/** FNV-1a over the label, started from the seed. */
function hashLabel(seed: number, label: string): number {
  let hash = (0x811c9dc5 ^ seed) >>> 0;
  for (let i = 0; i < label.length; i++) hash = Math.imul(hash ^ label.charCodeAt(i), 0x01000193) >>> 0;
  return hash;
}
