import { XMLParser, XMLValidator } from "fast-xml-parser";

/** Larger answers are refused: a page of a listing has some 300 KiB, at most 3 MiB with the longest keys. */
export const MAX_XML_BYTES = 16 * 1024 * 1024;

/** An element's text, or its children by name in the order of the document. */
export type XmlNode = string | { readonly [name: string]: XmlNode | readonly XmlNode[] };

export interface XmlDocument {
  readonly rootName: string;
  readonly root: XmlNode;
}

/** Entities stay as they are: the parser would expand those that a DOCTYPE declares. `decodeText` knows the rest. */
const parser = new XMLParser({
  ignoreAttributes: true,
  ignoreDeclaration: true,
  ignorePiTags: true,
  parseTagValue: false,
  processEntities: false,
  trimValues: false,
  removeNSPrefix: true,
  maxNestedTags: 32,
});

/**
 * Parses an answer of a server: attributes, namespaces and comments are dropped. Throws a plain Error for what is not one whole element
 * (a cut answer, HTML, nothing at all), for a DOCTYPE and for what is larger than `MAX_XML_BYTES`.
 *
 * A page of 1,000 keys takes some 30 ms. Between two pages stands a request, so nothing else waits for longer than that,
 * and a worker would only move the work.
 */
export function parseXml(text: string): XmlDocument {
  if (text.length > MAX_XML_BYTES) throw new Error("the XML is too large");
  if (/<!(?:DOCTYPE|ENTITY)/i.test(text)) throw new Error("the XML has a document type");
  // The parser closes by itself what is open at the end of the text and takes any end tag for the one that is due: a listing
  // that was cut behind `<Prefix/>` would be a whole one without objects.
  const validity = XMLValidator.validate(text);
  if (validity !== true) throw new Error(`it is not well-formed XML (${validity.err.msg})`);
  const parsed: unknown = parser.parse(text);
  if (!isRecord(parsed)) throw new Error("it is not XML");
  const [only, ...others] = Object.entries(parsed).filter(([name]) => name !== "#text");
  if (only === undefined || others.length > 0 || Array.isArray(only[1])) throw new Error("it is not one XML element");
  const [rootName, root] = only;
  return { rootName, root: toNode(root) };
}

/** All children of this name. */
export function children(node: XmlNode | undefined, name: string): readonly XmlNode[] {
  if (node === undefined || typeof node === "string") return [];
  const found = Object.hasOwn(node, name) ? node[name] : undefined;
  if (found === undefined) return [];
  return isList(found) ? found : [found];
}

/** The first child of this name. */
export function child(node: XmlNode | undefined, name: string): XmlNode | undefined {
  return children(node, name)[0];
}

/** The text of the first child of this name; undefined without one. Throws when it has children of its own. */
export function childText(node: XmlNode | undefined, name: string): string | undefined {
  const found = child(node, name);
  if (found === undefined || typeof found === "string") return found;
  if (Object.keys(found).length === 0) return "";
  throw new Error(`<${name}> is not a text`);
}

/** Text as it may stand in an element; null when XML 1.0 cannot express it, as most control characters. */
export function encodeText(text: string): string | null {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what XML 1.0 section 2.2 leaves out
  if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/.test(text)) return null;
  return text.replace(/[<>&"'\t\r\n]/g, (character) => `&#${character.charCodeAt(0)};`);
}

const NAMED = new Map([
  ["lt", "<"],
  ["gt", ">"],
  ["amp", "&"],
  ["quot", '"'],
  ["apos", "'"],
]);

/** The five named entities of XML and character references; anything else stays. */
function decodeText(text: string): string {
  if (!text.includes("&")) return text;
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|([a-z]{2,4}));/g, (whole, decimal, hex, name) => {
    if (name !== undefined) return NAMED.get(name) ?? whole;
    const code = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal);
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

function toNode(value: unknown): XmlNode {
  if (!isRecord(value)) return decodeText(String(value ?? ""));
  const entries = Object.entries(value).filter(([name]) => name !== "#text");
  if (entries.length === 0) return decodeText(String(value["#text"] ?? ""));
  return Object.fromEntries(
    entries.map(([name, inner]) => [name, Array.isArray(inner) ? inner.map(toNode) : toNode(inner)]),
  );
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isList(value: XmlNode | readonly XmlNode[]): value is readonly XmlNode[] {
  return Array.isArray(value);
}
