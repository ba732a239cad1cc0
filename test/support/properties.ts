import fc from "fast-check";
import { runSeed } from "./random.ts";

// A property that gives no seed of its own takes that of the run. A failure prints it, with the path to the smallest case.
fc.configureGlobal({ seed: runSeed() | 0 });

export { fc };
