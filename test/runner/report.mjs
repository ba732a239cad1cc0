// Plain JavaScript, as `npm test` runs on Node before anything is installed. `tsc` checks the types in the comments.

/**
 * @typedef {object} Tally
 * @property {number} passed
 * @property {number} failed
 * @property {number} skipped
 */

/** @type {Tally} */
export const NOTHING = Object.freeze({ passed: 0, failed: 0, skipped: 0 });

/**
 * @param {Tally} a
 * @param {Tally} b
 * @returns {Tally}
 */
export function addTallies(a, b) {
  return { passed: a.passed + b.passed, failed: a.failed + b.failed, skipped: a.skipped + b.skipped };
}

/**
 * The last line of every run.
 *
 * @param {Tally} tally
 * @returns {string}
 */
export function closingLine({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed${skipped === 0 ? "" : `, ${skipped} skipped`}`;
}

/**
 * Reads the counts that `bun test --reporter=junit` left in the attributes of the outermost element; null when the text
 * is not a complete report, as after a crash. A test that is `todo` counts as skipped.
 *
 * @param {string} xml
 * @returns {(Tally & { readonly skippedNames: readonly string[], readonly failedNames: readonly string[] }) | null}
 */
export function parseReport(xml) {
  const root = /<testsuites\b([^>]*)>/.exec(xml)?.[1];
  if (root === undefined || !xml.trimEnd().endsWith("</testsuites>")) return null;
  const [tests, failed, skipped] = ["tests", "failures", "skipped"].map((name) => readCount(root, name));
  if (tests === undefined || failed === undefined || skipped === undefined) return null;
  return {
    passed: tests - failed - skipped,
    failed,
    skipped,
    skippedNames: namesOf(xml, "skipped"),
    failedNames: namesOf(xml, "failure"),
  };
}

/**
 * @param {string} attributes
 * @param {string} name
 * @returns {number | undefined}
 */
function readCount(attributes, name) {
  const digits = new RegExp(`\\b${name}="(\\d+)"`).exec(attributes)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/**
 * The names of the test cases that hold an element `child`.
 *
 * @param {string} xml
 * @param {string} child
 * @returns {readonly string[]}
 */
function namesOf(xml, child) {
  const cases = xml.matchAll(/<testcase name="([^"]*)"[^>]*?(?:\/>|>([\s\S]*?)<\/testcase>)/g);
  return [...cases]
    .filter(([, , body]) => body?.includes(`<${child}`) === true)
    .map(([, name]) => unescapeXml(name ?? ""));
}

/**
 * @param {string} text
 * @returns {string}
 */
function unescapeXml(text) {
  /** @type {Readonly<Record<string, string>>} */
  const entities = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  return text.replace(/&(lt|gt|quot|apos|amp);/g, (whole, name) => entities[name] ?? whole);
}
