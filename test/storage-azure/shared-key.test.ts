import { expect, test } from "bun:test";
import { blobUrl } from "../../src/storage/azure/address.ts";
import { stringToSign } from "../../src/storage/azure/shared-key.ts";

// The examples of https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key. The signature itself is judged by Azurite.

test("signs the text of Microsoft's example for a request about a container", () => {
  const text = stringToSign(
    {
      method: "GET",
      url: new URL("https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20"),
      headers: new Headers({ "x-ms-date": "Fri, 26 Jun 2015 23:39:12 GMT", "x-ms-version": "2015-02-21" }),
      contentBytes: 0,
    },
    "myaccount",
  );
  expect(text).toBe(
    "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20",
  );
});

test("signs Microsoft's examples of resources: sorted, decoded, several values of one name as a list", () => {
  const resource = (url: string) =>
    stringToSign({ method: "GET", url: new URL(url), headers: new Headers(), contentBytes: 0 }, "myaccount")
      .split("\n")
      .slice(12)
      .join("\n");
  expect(
    resource(
      "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=list&include=snapshots&include=metadata&include=uncommittedblobs",
    ),
  ).toBe("/myaccount/mycontainer\ncomp:list\ninclude:metadata,snapshots,uncommittedblobs\nrestype:container");
  // An emulator has the account in its path already.
  expect(resource("http://127.0.0.1:10000/myaccount/mycontainer/a%20b?comp=block&blockid=a%2Bb%3D")).toBe(
    "/myaccount/myaccount/mycontainer/a%20b\nblockid:a+b=\ncomp:block",
  );
});

test("every standard header has its line, and headers of Azure stand sorted by name", () => {
  const text = stringToSign(
    {
      method: "PUT",
      url: new URL("https://myaccount.blob.core.windows.net/c/b"),
      headers: new Headers({
        "content-md5": "md5",
        "content-type": "type",
        "if-match": "tag",
        "if-none-match": "*",
        range: "bytes=0-1",
        "x-ms-range-get-content-md5": "true",
        "x-ms-range": "bytes=0-1",
        "x-ms-blob-type": " BlockBlob ",
      }),
      contentBytes: 11,
    },
    "myaccount",
  );
  expect(text).toBe(
    "PUT\n\n\n11\nmd5\ntype\n\n\ntag\n*\n\nbytes=0-1\nx-ms-blob-type:BlockBlob\nx-ms-range:bytes=0-1\nx-ms-range-get-content-md5:true\n/myaccount/c/b",
  );
});

test("addresses of blobs, of the container and of the account, in the cloud and at an endpoint", () => {
  const cloud = { account: "acc", container: "con", endpoint: undefined };
  expect(blobUrl(cloud, { key: "a b/c'd#?" }).href).toBe("https://acc.blob.core.windows.net/con/a%20b/c%27d%23%3F");
  expect(blobUrl(cloud, "container", { restype: "container", prefix: "a+b/" }).href).toBe(
    "https://acc.blob.core.windows.net/con?restype=container&prefix=a%2Bb%2F",
  );
  const emulator = { ...cloud, endpoint: "http://127.0.0.1:10000/acc/" };
  expect(blobUrl(emulator, { key: "k" }).href).toBe("http://127.0.0.1:10000/acc/con/k");
  expect(blobUrl(emulator, "service", { comp: "properties" }).href).toBe("http://127.0.0.1:10000/acc/?comp=properties");
});
