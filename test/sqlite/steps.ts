import { Connection } from "../../src/sqlite/control.ts";
import { WalFile } from "../../src/sqlite/wal-file.ts";

type Method = (this: unknown, ...parameters: unknown[]) => unknown;
type Patchable = Record<string, Method>;

/** Each of them is a moment at which other processes see what we do, or we what they did. */
const STEPS = [
  [Connection, ["begin", "beginImmediate", "rollback", "noop", "passive", "restart"]],
  [WalFile, ["refresh", "readHeader", "forEachFrame", "readImage", "readFrameHeader"]],
] as const;

/**
 * Calls `before` with a running number, from 0, before each step that this process takes on a live database, until it is
 * disposed. What `before` does itself is not counted. This is how a test lets the application act between any two steps
 * of a method that never lets go of the event loop.
 */
export function interposeSteps(before: (number: number, name: string) => void): Disposable {
  let steps = 0;
  let inside = false;
  const undo: (() => void)[] = [];
  for (const [owner, names] of STEPS) {
    for (const name of names) {
      undo.push(
        replaceMethod(owner.prototype, name, (original) => {
          return function (...parameters) {
            if (!inside) {
              inside = true;
              try {
                before(steps++, name);
              } finally {
                inside = false;
              }
            }
            return original.apply(this, parameters);
          };
        }),
      );
    }
  }
  return {
    [Symbol.dispose]() {
      for (const each of undo) each();
    },
  };
}

/** Puts `make(original)` in place of a method; the result puts the original back. */
export function replaceMethod(owner: object, name: string, make: (original: Method) => Method): () => void {
  // A method is looked up by its name at run time, which no type describes; a wrong name fails at once.
  const patchable = owner as Patchable;
  const original = patchable[name];
  if (original === undefined) throw new Error(`there is no method ${name}`);
  patchable[name] = make(original);
  return () => {
    patchable[name] = original;
  };
}
