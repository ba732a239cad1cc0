import { expect, test } from "bun:test";
import { child, children, childText, encodeText, MAX_XML_BYTES, parseXml } from "../../src/storage/http/xml.ts";

const LISTING = `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix/><IsTruncated>false</IsTruncated><Contents><Key>a&amp;b &#x20AC;</Key><Size>1</Size><Owner><ID>x</ID></Owner></Contents><Contents><Key>c</Key><Size>22</Size></Contents><CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes></ListBucketResult>`;

test("an answer is read by name, whatever its namespace", () => {
  const { rootName, root } = parseXml(LISTING);
  expect(rootName).toBe("ListBucketResult");
  expect(children(root, "Contents").map((object) => childText(object, "Key"))).toEqual(["a&b €", "c"]);
  expect([childText(root, "Prefix"), childText(child(root, "CommonPrefixes"), "Prefix")]).toEqual(["", "p/"]);
});

test("an answer that was cut anywhere is refused: it must not look like a shorter one", () => {
  for (let end = 0; end < LISTING.length; end++) expect(() => parseXml(LISTING.slice(0, end))).toThrow();
});

test.each([
  ["an end tag of another element", LISTING.replace("</Key><Size>22", "</Kee><Size>22")],
  ["a missing end tag", LISTING.replace("</Size></Contents><CommonPrefixes>", "</Size><CommonPrefixes>")],
  [
    "a hole with tags in it",
    LISTING.replace("1</Size><Owner><ID>x</ID></Owner></Contents><Contents>", "").replace("<Key>c</Key>", ""),
  ],
  ["two roots", "<a>1</a><b>2</b>"],
  ["HTML that is not XML", "<html><body><p>Bad gateway<br></body></html>"],
  ["text", "internal error"],
  ["nothing", ""],
  ["a document type", `<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>`],
  ["more than 16 MiB", `<a>${"x".repeat(MAX_XML_BYTES)}</a>`],
  ["elements nested 10,000 deep", `${"<a>".repeat(10_000)}${"</a>".repeat(10_000)}`],
])("%s is refused", (_, text) => {
  expect(() => parseXml(text)).toThrow();
});

test("names that mean something to JavaScript are refused or are only names", () => {
  for (const name of ["__proto__", "constructor", "prototype"])
    expect(() => parseXml(`<a><${name}>1</${name}></a>`)).toThrow();
  const { root } = parseXml("<a><b>2</b></a>");
  expect([childText(root, "b"), childText(root, "toString"), childText(root, "hasOwnProperty")]).toEqual([
    "2",
    undefined,
    undefined,
  ]);
});

test("text is encoded so that it reads back, and refused where XML cannot hold it", () => {
  for (const text of ["a", "a&b<c>\"'", "\t\r\n ", "€😀", "]]>"]) {
    const { root } = parseXml(`<a><k>${encodeText(text)}</k></a>`);
    expect(childText(root, "k")).toBe(text);
  }
  for (const text of ["\u0000", "a\u0001", "\ufffe"]) expect(encodeText(text)).toBeNull();
});
